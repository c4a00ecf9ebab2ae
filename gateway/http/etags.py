"""ETags of ended streams, whose content no longer changes.

A stream can be deleted, and expires: so a cached copy must be revalidated each time it is used (`no-cache`), which costs a
round trip but no body. A running stream has no ETag.
"""

from __future__ import annotations

import hashlib

from gateway.http.connection import Send
from shared.ids import EventId
from shared.version import VERSION


def etag_of_end(last: EventId, representation: str) -> bytes:
    """The ETag of a whole stream whose last event has this id, in one representation."""
    return f'"{VERSION}-{representation}-{last}"'.encode()


def etag_of_body(body: bytes) -> bytes:
    """The ETag of these bytes."""
    return b'"%b"' % hashlib.sha256(body).hexdigest()[:32].encode()


def is_known(headers: list[tuple[bytes, bytes]], etag: bytes) -> bool:
    """Whether `If-None-Match` has this ETag (RFC 9110, section 13.1.2: weak comparison)."""
    for name, value in headers:
        if name == b"if-none-match":
            known = (candidate.strip().removeprefix(b"W/") for candidate in value.split(b","))
            if value.strip() == b"*" or etag in known:
                return True
    return False


async def not_modified(send: Send, etag: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Answers 304: the client's copy is still valid. `headers` are those that the 200 would have."""
    await send({"type": "http.response.start", "status": 304, "headers": [(b"etag", etag), *headers]})
    await send({"type": "http.response.body", "body": b""})
