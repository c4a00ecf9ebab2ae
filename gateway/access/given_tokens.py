"""Gives the client that has created a stream its access token: in a header, and as a cookie if the client asks for one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from gateway.access.credentials import STREAM_COOKIE
from gateway.access.stream_tokens import StreamTokens

HEADER = b"x-midstream-access-token"
"""For APIs whose bodies have a form of their own."""


class GivenTokens:
    """Gives clients tokens for their streams; nothing where authentication is off (`tokens` is None)."""

    def __init__(self, tokens: StreamTokens | None, path_prefix: str) -> None:
        self.tokens = tokens
        self._path_prefix = path_prefix

    def token(self, stream_id: str) -> str | None:
        """Returns a token to read and cancel a stream, for as long as it can be read."""
        return None if self.tokens is None else self.tokens.token(stream_id)

    def headers(
        self, scope: Mapping[str, Any], stream_id: str, *, as_cookie: bool, path: str | None = None
    ) -> list[tuple[bytes, bytes]]:
        """Returns the headers for the answer to a create. The cookie is for the stream's path, or for `path`."""
        token = self.token(stream_id)
        if token is None or self.tokens is None:
            return []
        headers = [(HEADER, token.encode())]
        if as_cookie:
            headers.append(self.cookie(scope, stream_id, token, self.tokens.last_moment(stream_id), path))
        return headers

    def cookie(
        self, scope: Mapping[str, Any], stream_id: str, token: str, expires_at: float, path: str | None = None
    ) -> tuple[bytes, bytes]:
        """Returns the header that sets a token as a cookie for its stream's path, or for `path`."""
        path = f"/v1/streams/{stream_id}" if path is None else path
        age_seconds = max(0, int(expires_at - time.time()))
        cookie = cookie_of(scope, STREAM_COOKIE, token, f"{self._path_prefix}{path}", age_seconds, "Lax")
        return b"set-cookie", cookie


def cookie_of(scope: Mapping[str, Any], name: str, value: str, path: str, age_seconds: int, same_site: str) -> bytes:
    """Returns the value of a Set-Cookie that no script can read, and that leaves by TLS only if it came by TLS."""
    secure = "; Secure" if is_over_tls(scope) else ""
    return f"{name}={value}; Path={path}; Max-Age={age_seconds}; HttpOnly; SameSite={same_site}{secure}".encode()


def is_over_tls(scope: Mapping[str, Any]) -> bool:
    """Returns whether a client speaks TLS, to this gateway or to a proxy before it.

    The proxy's word is not checked: a client that claims TLS only gets a cookie that it will not send without.
    """
    forwarded = (value for name, value in scope["headers"] if name == b"x-forwarded-proto")
    return scope["scheme"] in ("https", "wss") or any(
        value.split(b",")[0].strip().lower() == b"https" for value in forwarded
    )
