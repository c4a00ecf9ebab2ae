"""Who asks: the principal of a request, and what it may do.

`gateway.app` sets `principal` before a handler runs; whoever needs to know it reads it from there.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from gateway.http.problems import Problem

SCOPES = frozenset({"create", "read", "cancel", "write", "act", "admin"})
"""create: create streams, and delete one's own. read: follow them, and read their state and receipts. cancel: stop them.
write: write streams oneself. act: do for a user what the user may do. admin: everybody's streams, the console, the metrics."""
OPEN = "open"
"""In place of a scope: anybody may ask."""


OWNER_CHARACTERS_MAX = 255
"""Of an end user's name: `sub` (OpenID Connect Core, section 2)."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who has shown who they are, or anybody where authentication is off."""

    name: str
    """Stored as the owner of what the principal creates. No two authenticators give one name to different principals: an API
    key's begins with `key:`, a user's with `user:`."""
    scopes: frozenset[str]
    stream_id: str | None = None
    """The only stream that it may ask for; None for all that it owns."""
    expires_at: float | None = None
    """When its credential expires (Unix seconds), if that is known."""
    service: str | None = None
    """The name of the service that acts for this user, if one does."""


ANONYMOUS = Principal("anonymous", SCOPES)
"""Everybody, where authentication is off."""
NOBODY = Principal("anonymous", frozenset())
"""Somebody who has not shown who they are, where authentication is on; they may ask for what is open."""
principal: ContextVar[Principal] = ContextVar("principal", default=NOBODY)
"""The principal of the request for which the current task works."""


def act_for(owner: str | None) -> None:
    """Makes an end user the principal of the current request, for a service that may act for users. None: nobody is named.

    Their JWT, whose `sub` is `owner`, then reaches what is created. Raises Problem 400, 403.
    """
    if owner is None:
        return
    if not 0 < len(owner) <= OWNER_CHARACTERS_MAX or not owner.isprintable():
        raise Problem(400, f"an owner is 1 to {OWNER_CHARACTERS_MAX} printable characters", param="owner")
    who = principal.get()
    require("act", who)
    principal.set(Principal(f"user:{owner}", who.scopes - {"act", "admin"}, None, who.expires_at, who.name))


def require(scope: str, who: Principal | None = None) -> None:
    """Raises Problem 403 if the principal, by default that of the current request, lacks a scope (RFC 6750, section 3.1)."""
    who = principal.get() if who is None else who
    if scope not in who.scopes:
        challenge = f'Bearer realm="midstream", error="insufficient_scope", scope="{scope}"'
        raise Problem(403, f"this needs the scope {scope!r}", headers={"www-authenticate": challenge})
