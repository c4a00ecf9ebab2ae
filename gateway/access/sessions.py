"""Sessions of the console: a signed cookie in place of the API key that was entered once.

mss1.<key id>.<scopes, joined by +>.<expires, Unix seconds>.<principal's name, base64url>.<signature>
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Sequence

from gateway.access.authenticators import KeptUp
from gateway.access.signing import SigningKeys
from gateway.http.principal import SCOPES, Principal

KIND = "mss1"
SESSION_SECONDS = 8 * 3600
"""A working day. Before that a session ends with its key: when that is revoked, has expired, or loses a scope."""
_EXPIRES_DIGITS_MAX = 11


class Sessions:
    """Makes session tokens, and recognizes them (`Authenticator`)."""

    is_for_urls = False

    def __init__(self, keys: SigningKeys, authenticators: Sequence[KeptUp]) -> None:
        self._keys = keys
        self._authenticators = authenticators

    def token(self, who: Principal) -> str:
        name = base64.urlsafe_b64encode(who.name.encode()).rstrip(b"=").decode()
        expires = int(time.time()) + SESSION_SECONDS
        return self._keys.signed(KIND, f"{'+'.join(sorted(who.scopes))}.{expires}.{name}")

    async def principal_of(self, token: str) -> Principal | None:
        fields = self._keys.verified(KIND, token)
        if fields is None or len(fields) != 3:
            return None
        scopes, expires, name = fields
        if not expires.isdecimal() or len(expires) > _EXPIRES_DIGITS_MAX or int(expires) <= time.time():
            return None
        try:
            decoded = base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        who = Principal(decoded, SCOPES & frozenset(scopes.split("+")), None, float(expires))
        for authenticator in self._authenticators:
            if await authenticator.knows(who):
                return who
        return None
