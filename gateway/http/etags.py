"""ETags of what can no longer change: an ended stream.

A stream can be deleted, and expires: so a copy must be compared each time before it is shown again (`no-cache`), which
costs a round trip and no body. What still runs has no ETag.
"""

from __future__ import annotations

import hashlib

from gateway.http.connection import Send
from shared.ids import EventId
from shared.version import VERSION


def etag_of_end(last: EventId, representation: str) -> bytes:
    """Of a whole stream whose last event is this, in one of its representations."""
    return f'"{VERSION}-{representation}-{last}"'.encode()


def etag_of_body(body: bytes) -> bytes:
    return b'"%b"' % hashlib.sha256(body).hexdigest()[:32].encode()


def is_known(headers: list[tuple[bytes, bytes]], etag: bytes) -> bool:
    """Whether the client has it (If-None-Match, RFC 9110 section 13.1.2: weak comparison)."""
    for name, value in headers:
        if name == b"if-none-match":
            known = (one.strip().removeprefix(b"W/") for one in value.split(b","))
            if value.strip() == b"*" or etag in known:
                return True
    return False


async def not_modified(send: Send, etag: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """304: what the client has is still right. `headers` are those that the 200 would have."""
    await send({"type": "http.response.start", "status": 304, "headers": [(b"etag", etag), *headers]})
    await send({"type": "http.response.body", "body": b""})
