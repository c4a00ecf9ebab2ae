"""Sessions of the console: a signed cookie in place of the API key that was entered once.

mss1.<key id>.<scopes, joined by +>.<expires, Unix seconds>.<principal's name, base64url>.<signature>
"""

from __future__ import annotations

import base64
import binascii
import time

from gateway.access.signing import SigningKeys
from gateway.http.principal import SCOPES, Principal

KIND = "mss1"
SESSION_SECONDS = 8 * 3600
"""A working day. A session outlives the revocation of its key by so long at most; another first key in MIDSTREAM_TOKEN_KEYS
alone ends all sessions at once."""
_EXPIRES_DIGITS_MAX = 11


class Sessions:
    """Makes session tokens, and recognizes them (`Authenticator`)."""

    is_for_urls = False

    def __init__(self, keys: SigningKeys) -> None:
        self._keys = keys

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
        return Principal(decoded, SCOPES & frozenset(scopes.split("+")), None, float(expires))
