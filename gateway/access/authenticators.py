"""From a token that a request carries to the principal that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.http.principal import Principal


class Authenticator(Protocol):
    """One kind of token."""

    async def principal_of(self, token: str) -> Principal | None:
        """Returns whom a token stands for; None if it is of another kind, expired, revoked, or wrong in any other way.

        The token comes from a stranger: it may be any text of up to 8 KB.
        """


async def principal_of(token: str, authenticators: Sequence[Authenticator]) -> Principal | None:
    """Returns the principal that the first authenticator knows who knows any."""
    for authenticator in authenticators:
        found = await authenticator.principal_of(token)
        if found is not None:
            return found
    return None
