"""Signed texts: `<kind>.<key id>.<fields>.<signature>`, in characters that stand in a URL, a header and a cookie as they are.

The signature is HMAC-SHA256 (RFC 2104), cut to 128 bits (section 5), over all that stands before it. `kind` has the format's version.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from shared.errors import Unusable

_KEYS_MAX = 2
"""The one that signs, and the one before it, whose tokens are still in use."""
_KEY_CHARACTERS_MIN = 32
"""128 bits where the key is hexadecimal, as `openssl rand -hex 16` makes it."""
_SIGNATURE_BYTES = 16
_TEXT_CHARACTERS_MAX = 1024


class SigningKeys:
    """The keys of MIDSTREAM_TOKEN_KEYS: the first signs, all verify. Gateways of one Redis have the same."""

    def __init__(self, setting: str) -> None:
        """Raises Unusable, without a word of the keys."""
        keys = [key.strip() for key in setting.split(",") if key.strip()]
        if not keys:
            raise Unusable(
                "MIDSTREAM_TOKEN_KEYS is not set: with authentication on, gateways sign the tokens that they give out by it. "
                "`openssl rand -hex 32` makes a key; all gateways of one Redis need the same"
            )
        if len(keys) > _KEYS_MAX:
            raise Unusable(
                f"MIDSTREAM_TOKEN_KEYS has {len(keys)} keys, and {_KEYS_MAX} are the most: the new one and the one before it"
            )
        if any(len(key) < _KEY_CHARACTERS_MIN for key in keys):
            raise Unusable(
                f"a key of MIDSTREAM_TOKEN_KEYS has less than {_KEY_CHARACTERS_MIN} characters: `openssl rand -hex 32` makes a good one"
            )
        encoded = [key.encode() for key in keys]
        self._keys = {_id_of(key): key for key in encoded}
        self._signing = _id_of(encoded[0])

    def signed(self, kind: str, fields: str) -> str:
        """Returns the text with these fields, which are parts without other characters than a URL's, separated by dots."""
        text = f"{kind}.{self._signing}.{fields}"
        return f"{text}.{_signature(self._keys[self._signing], text)}"

    def verified(self, kind: str, token: str) -> list[str] | None:
        """Returns the fields of a text of this kind; None if it is of another kind, or not signed by one of the keys."""
        if not token.startswith(kind) or len(token) > _TEXT_CHARACTERS_MAX or not token.isascii():
            return None
        text, _, signature = token.rpartition(".")
        found_kind, *fields = text.split(".")
        key = self._keys.get(fields[0]) if fields else None
        if found_kind != kind or key is None or not hmac.compare_digest(_signature(key, text), signature):
            return None
        return fields[1:]


def _signature(key: bytes, text: str) -> str:
    digest = hmac.digest(key, text.encode(), "sha256")[:_SIGNATURE_BYTES]
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _id_of(key: bytes) -> str:
    """Returns a name for a key which does not tell the key."""
    return hashlib.sha256(b"midstream key id\0" + key).hexdigest()[:6]
