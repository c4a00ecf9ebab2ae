"""What a provider's response may be, whichever transport carries it: of bounded size, and from where it was asked for.

| | |
|---|---|
| a redirect | nothing of its body is read. Followed with the request as it is, three times at most, to the same scheme, host and port; else refused: a prompt goes nowhere but where the owner sends it |
| an error | its body is read to 64 KB, decoded, or for five seconds: nobody reads more of it than its message |
| cookies | are left out: httpx2's jar would keep them for good |
| an answer | goes through as it is. `decoded` takes off its `Content-Encoding`, a bounded piece at a time |
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator

import httpx2

from producer.provider import Refused

ERROR_BYTES_MAX = 64 << 10
_ERROR_SECONDS_MAX = 5.0
_REDIRECTS_MAX = 3
_REPEATED_AFTER = frozenset({301, 302, 307, 308})
"""Redirects after which the request may be sent again as it was (RFC 9110, section 15.4)."""
_LOCATION_CHARACTERS_MAX = 200
_CODINGS_MAX = 2
_PIECE_BYTES = 64 << 10
"""Decoded at once: 1 KB of gzip may become 1 MB, and what decodes it holds up every other answer meanwhile."""
_KEPT_OF_AN_ERROR = frozenset({b"retry-after", b"retry-after-ms"})


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Another transport within these bounds."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends a request and reads the head of its response. Raises httpx2.TransportError, Refused."""
        redirects = 0
        while True:
            response = await self._inner.handle_async_request(request)
            status = response.status_code
            if status < 300:
                if "set-cookie" in response.headers:
                    del response.headers["set-cookie"]
                return response
            if status >= 400:
                return await _with_bounded_body(response)
            await response.aclose()
            redirects += 1
            request = _redirected(request, response, redirects)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _redirected(request: httpx2.Request, response: httpx2.Response, redirects: int) -> httpx2.Request:
    """The request that follows a redirect. Raises Refused."""
    status, location = response.status_code, response.headers.get("location", "")
    shown = location[:_LOCATION_CHARACTERS_MAX].partition("?")[0] or "nowhere"
    refused = f"the provider redirects ({status}) to {shown}"
    if redirects > _REDIRECTS_MAX:
        raise Refused(f"{refused}, after {_REDIRECTS_MAX} redirects: no more are followed", status=status)
    if status not in _REPEATED_AFTER or not location:
        raise Refused(f"{refused}, where a request cannot be sent again", status=status)
    try:
        url = request.url.join(location)
        same = _origin(url) == _origin(request.url)
    except (httpx2.InvalidURL, ValueError):
        raise Refused(f"{refused}, which is no URL", status=status) from None
    if not same:
        raise Refused(f"{refused}, another server than OPENAI_BASE_URL names: not followed", status=status)
    return httpx2.Request(
        request.method, url, headers=request.headers, stream=request.stream, extensions=request.extensions
    )


def _origin(url: httpx2.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


async def _with_bounded_body(response: httpx2.Response) -> httpx2.Response:
    """An error with as much of its body as counts, as UTF-8: whatever charset it names is not looked up."""
    body = bytearray()
    try:
        async with asyncio.timeout(_ERROR_SECONDS_MAX):
            async for piece in decoded(response):
                body += piece
                if len(body) >= ERROR_BYTES_MAX:
                    break
    except (TimeoutError, httpx2.TransportError, httpx2.DecodingError):
        pass  # the status says enough
    finally:
        await response.aclose()
    headers = [(name, value) for name, value in response.headers.raw if name.lower() in _KEPT_OF_AN_ERROR]
    return httpx2.Response(
        response.status_code,
        headers=[*headers, (b"content-type", b"application/json; charset=utf-8")],
        content=bytes(body[:ERROR_BYTES_MAX]),
    )


async def decoded(response: httpx2.Response) -> AsyncIterator[bytes]:
    """A response's body in pieces of at most 64 KB where it was compressed; other tasks have their turn between two.

    A coding that is not known is passed over. Raises httpx2.TransportError, httpx2.DecodingError.
    """
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    codings = [it.strip().lower() for it in response.headers.get("content-encoding", "").split(",")]
    decoders = [_Inflater(coding) for coding in reversed(codings) if coding in _WINDOWS]
    if len(decoders) > _CODINGS_MAX:
        raise httpx2.DecodingError(f"the provider's response is compressed more than {_CODINGS_MAX} times")
    async for part in response.stream:
        pieces: Iterator[bytes] = iter((part,))
        for decoder in decoders:
            pieces = decoder.decode(pieces)
        try:
            for piece in pieces:
                yield piece
                if decoders:
                    await asyncio.sleep(0)
        except zlib.error as error:
            raise httpx2.DecodingError(f"the provider's response is not compressed as it says: {error}") from None


_WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


class _Inflater:
    """One content coding. What stands behind its end is passed over."""

    def __init__(self, coding: str) -> None:
        self._inflate = zlib.decompressobj(_WINDOWS[coding])
        self._may_be_raw = coding == "deflate"
        """Some servers leave out zlib's frame (RFC 9110, section 8.4.1.2), as the first two bytes tell."""
        self._first = b""

    def decode(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        for part in parts:
            rest = self._begin(part) if self._may_be_raw else part
            while not self._inflate.eof:
                piece = self._inflate.decompress(rest, _PIECE_BYTES)
                rest = self._inflate.unconsumed_tail
                if not piece:
                    break
                yield piece

    def _begin(self, part: bytes) -> bytes:
        """What is there to decompress, once the frame is known."""
        self._first += part
        if len(self._first) < 2:
            return b""
        self._may_be_raw = False
        if self._first[0] & 15 != 8 or int.from_bytes(self._first[:2], "big") % 31:  # RFC 1950, section 2.2
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        first, self._first = self._first, b""
        return first
