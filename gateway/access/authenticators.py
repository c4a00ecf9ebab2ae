"""From a token that a request carries to the principal that it stands for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from gateway.http.principal import Principal


class Authenticator(Protocol):
    """One kind of token."""

    is_for_urls: bool = False
    """Whether such a token may also stand in a URL (`?access_token=`) and in a cookie: it expires soon. An API key may not."""

    async def principal_of(self, token: str) -> Principal | None:
        """Returns whom a token stands for; None if it is of another kind, expired, revoked, or wrong in any other way.

        The token comes from a stranger: it may be any text of up to 8 KB.
        """


class KeptUp(Authenticator, Protocol):
    """An authenticator that keeps its data up to date, in the background."""

    def start(self) -> None: ...

    async def close(self) -> None: ...

    async def knows(self, who: Principal) -> bool:
        """Returns whether a credential of this principal, with these scopes, is still valid: for a session that it began.

        Raises Problem 503 while it cannot be known.
        """


@dataclass(frozen=True, slots=True)
class Proof:
    """A credential that was accepted, to be looked at again while the response that it opened lasts."""

    token: str
    who: Principal
    authenticators: Sequence[Authenticator]

    @property
    def name(self) -> str:
        return self.who.name

    async def holds(self) -> bool:
        """Returns whether the credential still stands for its bearer. Raises Problem 503."""
        if self.who.stream_id is not None and self.who.expires_at is not None:
            return time.time() < self.who.expires_at  # an access token cannot be revoked
        found = await principal_of(self.token, self.authenticators)
        return found is not None and found.name == self.who.name

    def __repr__(self) -> str:
        return f"Proof({self.name})"


proof: ContextVar[Proof | None] = ContextVar("proof", default=None)
"""The credential of the request for which the current task works; None if it has none, or authentication is off."""


async def principal_of(token: str, authenticators: Iterable[Authenticator]) -> Principal | None:
    """Returns the principal from the first authenticator that recognizes the token; None if none does."""
    for authenticator in authenticators:
        found = await authenticator.principal_of(token)
        if found is not None:
            return found
    return None
