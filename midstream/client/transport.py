"""What both faces have to know of httpx2: its time-outs, and its errors."""

from __future__ import annotations

import httpx2

from midstream.client.events import StreamError
from midstream.client.protocol import Request

ERRORS = (StreamError, httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError)
"""What a try may end with."""
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
"""Each followed stream holds one connection: the program that follows them bounds their number."""
_CONNECT_SECONDS_MAX = 10.0
_FINAL = (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
"""Errors of the request itself, which no repetition mends."""


def timeout_of(request: Request) -> httpx2.Timeout:
    silence = request.silence_seconds_max
    return httpx2.Timeout(silence, connect=min(silence, _CONNECT_SECONDS_MAX))


def stream_error(error: Exception, request: Request) -> StreamError:
    """Returns the error of a request as the one that a caller sees."""
    if isinstance(error, StreamError):
        return error
    if isinstance(error, httpx2.ConnectTimeout):
        return StreamError("the server cannot be reached: it does not answer")
    if isinstance(error, httpx2.TimeoutException):
        return StreamError(f"nothing came for {request.silence_seconds_max:g} s")
    return StreamError(str(error) or type(error).__name__, retryable=not isinstance(error, _FINAL))
