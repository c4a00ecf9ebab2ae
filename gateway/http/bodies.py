"""Bodies of requests: received within bounds, decoded, and counted for as long as they are in memory.

The bound of one body has room for several photos. So the bytes of all long bodies of this process are bounded, too, and
what a body may become when it is parsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request

from gateway.http.problems import Problem
from gateway.http.whole_bodies import UNCOUNTED_BYTES, Room

REQUESTS_BYTES_MAX = 64 << 20
"""All long bodies of one process, until their streams are created. Each is copied four times on its way to Redis."""
VALUES_MAX = 500_000
"""Commas, brackets and braces in one body: each value takes some 60 bytes when it is parsed, however short it is written."""
CODINGS = "gzip, deflate"
"""What `Content-Encoding` may name; the value of `Accept-Encoding` in a 415 (RFC 9110, section 12.5.3)."""
_DISCARDED_BYTES_MAX = 64 << 20
"""How much of a body that is refused is read and dropped, so that its client gets the answer and not a reset."""
_PIECE_BYTES = 256 << 10
"""Decoded in one turn of the event loop: 1 ms."""
_LEVELS_MAX = 250
_MEMBERS_MAX = 64
"""Of one gzip body: some tools write one for each of their buffers."""

REQUESTS = Room(REQUESTS_BYTES_MAX, "of long requests")


@contextlib.asynccontextmanager
async def received(request: Request, bytes_max: int) -> AsyncIterator[bytes]:
    """The whole body, decoded. Its bytes count until this is left: drop all that was made of it by then.

    Raises Problem 400, 413, 415, 503.
    """
    coding = _coding_of(request)
    body, size, counted = _Parts(request, bytes_max), 0, 0
    parts: list[bytes] = []
    try:
        pieces = body.stream() if coding is None else _decoded(body.stream(), coding)
        try:
            async for piece in pieces:
                size += len(piece)
                if size > bytes_max:
                    raise _too_large(bytes_max)
                if size > UNCOUNTED_BYTES:
                    REQUESTS.take(size - counted)
                    counted = size
                parts.append(piece)
        except Problem:
            parts.clear()
            await body.discard()
            raise
        whole = b"".join(parts)
        parts.clear()
        yield whole
    finally:
        REQUESTS.give(counted)


async def body_of(request: Request, bytes_max: int) -> bytes:
    """The whole body, of which nothing is counted: for short ones. Raises Problem 400, 413, 415."""
    async with received(request, bytes_max) as body:
        return body


def parse_body(body: bytes) -> dict[str, Any]:
    """Parses a body, which must be a JSON object in UTF-8. Raises Problem 400, 413."""
    brackets = body.count(b"[") + body.count(b"{")
    if len(body) > VALUES_MAX and brackets + body.count(b",") > VALUES_MAX:
        raise Problem(413, f"the body has more than {VALUES_MAX} commas, brackets and braces, which is the limit")
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, f"the body is not JSON in UTF-8: {error}") from None
    if not isinstance(parsed, dict):
        raise Problem(400, f"the body must be a JSON object, not {_abridged(parsed)}", param="the body")
    if brackets > _LEVELS_MAX:
        try:
            orjson.dumps([[parsed]])  # as deep as it is stored: orjson reads deeper values than it writes
        except TypeError:
            raise Problem(400, f"the body is nested too deeply: {_LEVELS_MAX} levels are the most") from None
    return parsed


def _abridged(value: Any) -> str:
    try:
        shown = orjson.dumps(value).decode()
    except TypeError:
        return "a list that is nested too deeply"
    return shown if len(shown) <= 80 else shown[:77] + "..."


class _Parts:
    """The parts of a body as they come."""

    def __init__(self, request: Request, bytes_max: int) -> None:
        self._parts = request.stream()
        self._bytes_max = bytes_max
        self._size = 0

    async def stream(self) -> AsyncIterator[bytes]:
        """Yields the parts. Raises Problem 400, 413."""
        try:
            async for part in self._parts:
                self._size += len(part)
                if self._size > self._bytes_max:
                    raise _too_large(self._bytes_max)
                yield part
        except ClientDisconnect:
            raise Problem(400, "the connection ended before the body did") from None

    async def discard(self) -> None:
        """Reads and drops the rest, within bounds."""
        with contextlib.suppress(ClientDisconnect):
            async for part in self._parts:
                self._size += len(part)
                if self._size > _DISCARDED_BYTES_MAX:
                    return


def _too_large(bytes_max: int) -> Problem:
    return Problem(413, f"the body has more than {bytes_max} bytes, which is the most that is taken")


def _coding_of(request: Request) -> str | None:
    """The coding of the body; None if it has none. Raises Problem 415."""
    named = ",".join(request.headers.getlist("content-encoding")).lower()
    codings = [coding.strip() for coding in named.split(",")]
    applied = [coding for coding in codings if coding not in ("", "identity")]
    if not applied:
        return None
    coding = applied[0].removeprefix("x-")
    if len(applied) > 1 or coding not in ("gzip", "deflate"):
        detail = f"Content-Encoding {named[:80]!r} is not understood: send the body as it is, or in one of {CODINGS}"
        raise Problem(415, detail, headers={"accept-encoding": CODINGS})
    return coding


async def _decoded(parts: AsyncIterator[bytes], coding: str) -> AsyncIterator[bytes]:
    """Decodes gzip (RFC 1952), of several members too, or deflate (RFC 1950), in pieces of bounded size. Raises Problem 400."""
    inflate: Any = None
    members = 0
    async for part in parts:
        data = part
        while data:
            if inflate is None:
                members += 1
                if members > (_MEMBERS_MAX if coding == "gzip" else 1):
                    raise Problem(400, f"something follows the end of the body's {coding} data")
                inflate = zlib.decompressobj(_window_bits(coding, data[0]))
            while True:
                try:
                    piece = inflate.decompress(data, _PIECE_BYTES)
                except zlib.error:
                    raise Problem(400, f"the body is not {coding}, as its Content-Encoding says") from None
                data = inflate.unconsumed_tail
                if piece:
                    yield piece
                    await asyncio.sleep(0)
                if inflate.eof or (not data and len(piece) < _PIECE_BYTES):
                    break
            if inflate.eof:
                data, inflate = inflate.unused_data, None
    if inflate is not None:
        raise Problem(400, f"the body ends before its {coding} data do")


def _window_bits(coding: str, first: int) -> int:
    """The format, for zlib. Some clients send bare deflate data (RFC 1951), whose first byte cannot begin a zlib header."""
    if coding == "gzip":
        return zlib.MAX_WBITS | 16
    return zlib.MAX_WBITS if first & 15 == 8 and first >> 4 <= 7 else -zlib.MAX_WBITS
