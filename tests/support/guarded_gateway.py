"""`python -m tests.support.guarded_gateway`: a gateway with authentication, which knows the keys of these tests.

The variable GUARDED_REVOKED names a file with the names of the keys that are revoked.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import gateway.server
from gateway.__main__ import main
from gateway.access.api_keys import ApiKeys
from gateway.access.authenticators import KeptUp
from gateway.http.principal import Principal
from shared.settings import Settings

MODULE = "tests.support.guarded_gateway"
TOKEN_KEYS = "test-key-one-0123456789abcdef-0123456789"
KEYS = {
    "alice": Principal("key:alice", frozenset({"create", "read", "cancel", "write"})),
    "bob": Principal("key:bob", frozenset({"create", "read", "cancel", "write"})),
    "reader": Principal("key:reader", frozenset({"read"})),
    "creator": Principal("key:creator", frozenset({"create"})),
    "backend": Principal("key:backend", frozenset({"create", "read", "cancel", "act"})),
    "other-backend": Principal("key:other-backend", frozenset({"create", "read", "cancel", "act"})),
    "root": Principal("key:root", frozenset({"create", "read", "cancel", "admin"})),
}
"""By name; the token of each is `tk_<name>`. The tokens `jwt_<name>` may stand in URLs and cookies."""


def _revoked() -> list[str]:
    return Path(os.environ["GUARDED_REVOKED"]).read_text().split() if "GUARDED_REVOKED" in os.environ else []


class FixedKeys:
    """The keys above, less those whose names are in the file `GUARDED_REVOKED`."""

    is_for_urls = False
    prefix = "tk_"

    def start(self) -> None:
        """Has nothing to keep up."""

    async def close(self) -> None:
        """Has nothing to close."""

    async def knows(self, who: Principal) -> bool:
        name = who.name.removeprefix("key:")
        return name in KEYS and who.scopes <= KEYS[name].scopes and name not in _revoked()

    async def principal_of(self, token: str) -> Principal | None:
        name = token.removeprefix(self.prefix)
        return KEYS.get(name) if token.startswith(self.prefix) and name not in _revoked() else None


class FixedUserTokens(FixedKeys):
    is_for_urls = True
    prefix = "jwt_"


def _authenticators(api_keys: ApiKeys, settings: Settings) -> list[KeptUp]:
    return [FixedKeys(), FixedUserTokens()]


if __name__ == "__main__":
    gateway.server.authenticators_for = _authenticators
    sys.exit(main())
