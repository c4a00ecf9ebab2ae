"""Admission: each request's principal is found, and its scope checked, before its handler runs.

no credential ──► 401       a credential that nobody knows ──► 401       a scope is missing ──► 403
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.access.authenticators import Authenticator, principal_of
from gateway.http.connection import Scope
from gateway.http.principal import ANONYMOUS, NOBODY, OPEN, principal, require
from gateway.http.problems import Problem
from gateway.http.routes import Route

_REALM = 'Bearer realm="midstream"'
_TOKEN_BYTES_MAX = 8192
"""A JWT of an identity provider that lists many groups has 4 KB."""


class Admission:
    """Lets requests in. Everybody may do everything where authentication is off."""

    def __init__(self, authenticators: Sequence[Authenticator], *, is_on: bool) -> None:
        self._authenticators = authenticators
        self.is_on = is_on

    async def admit(self, scope: Scope, route: Route) -> None:
        """Sets the principal of a request for this route. Raises Problem 401, 403."""
        if not self.is_on:
            principal.set(ANONYMOUS)
            return
        token = _bearer(scope)
        who = None if token is None else await principal_of(token, self._authenticators)
        principal.set(NOBODY if who is None else who)
        if route.scope != OPEN:
            if who is None:
                raise _unknown(token)
            require(route.scope, who)


def _unknown(token: str | None) -> Problem:
    """Returns the answer to a request without a credential, or with one that stands for nobody (RFC 6750, section 3)."""
    if token is None:
        detail, challenge = "this needs a credential: Authorization: Bearer ...", _REALM
    else:
        detail = "this credential is not known here: it is wrong, has expired or was revoked"
        challenge = f'{_REALM}, error="invalid_token"'
    return Problem(401, detail, headers={"www-authenticate": challenge})


def _bearer(scope: Scope) -> str | None:
    """Returns the token of `Authorization: Bearer` (RFC 6750, section 2.1); None without one."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1 or len(values[0]) > _TOKEN_BYTES_MAX:
        return None
    scheme, _, token = values[0].partition(b" ")
    token = token.strip()
    return token.decode("latin-1") if scheme.lower() == b"bearer" and token else None
