"""Access tokens: the right to one stream, for whoever has it. A backend gives its browser one, and nothing else.

    mst1.<key id>.<rights>.<expires, Unix seconds>.<stream id>.<signature>      rights: r (read), rc (read and cancel)

Nothing is stored: the signature says that a gateway made it (docs/decisions/0013-a-stream-has-an-owner-and-tokens-are-signed.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from gateway.access.signing import SigningKeys
from gateway.http.principal import Principal
from shared.ids import created_at, is_stream_id
from shared.settings import Settings

KIND = "mst1"
_SCOPES = {"r": frozenset({"read"}), "rc": frozenset({"read", "cancel"})}
GRANTABLE = _SCOPES["rc"]
"""The scopes that an access token can have."""
_EXPIRES_DIGITS_MAX = 11


class StreamTokens:
    """Makes access tokens, and recognizes them (`Authenticator`)."""

    is_for_urls = True
    """May stand in a URL: it opens one stream, for a time."""

    def __init__(self, keys: SigningKeys, settings: Settings) -> None:
        self._keys = keys
        self._lives_seconds = settings.log_ttl_seconds + settings.ended_ttl_seconds

    def last_moment(self, stream_id: str) -> int:
        """Returns until when a stream can be read at the latest (Unix seconds)."""
        return int(created_at(stream_id)) + self._lives_seconds

    def token(self, stream_id: str, scopes: Iterable[str] = GRANTABLE, expires_at: float | None = None) -> str:
        """Returns a token for a stream; if nothing else is said to read and cancel it for as long as it can be read."""
        rights = "rc" if "cancel" in scopes else "r"
        last = self.last_moment(stream_id)
        expires = last if expires_at is None else min(last, int(expires_at))
        return self._keys.signed(KIND, f"{rights}.{expires}.{stream_id}")

    async def principal_of(self, token: str) -> Principal | None:
        """Returns the principal that may ask for the token's stream; None if the token is expired, or not one of ours."""
        fields = self._keys.verified(KIND, token)
        if fields is None or len(fields) != 3:
            return None
        rights, expires, stream_id = fields
        scopes = _SCOPES.get(rights)
        if scopes is None or not is_stream_id(stream_id):
            return None
        if not expires.isdecimal() or len(expires) > _EXPIRES_DIGITS_MAX or int(expires) <= time.time():
            return None
        return Principal(f"stream:{stream_id}", scopes, stream_id, float(expires))
