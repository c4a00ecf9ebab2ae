"""Where a request begins and ends in the bytes that a client sends, within bounds. No I/O.

    a head, line by line, until it is complete ──► llhttp parses it (`read_head`) ──► how its body is framed (`Body`)

llhttp gets complete heads and nothing else: it has no bound on what it gathers, and after a declined upgrade it takes the
body for the next request. So bodies are separated from requests here, by the two framings of RFC 9112 (section 6):
Content-Length and chunked. What deviates is refused with a Problem, and the caller closes the connection.
"""

from __future__ import annotations

import re
from typing import Protocol

from httptools import HttpParserError, HttpParserInvalidURLError, HttpParserUpgrade, HttpRequestParser

from gateway.http.problems import Problem

REQUEST_LINE_BYTES_MAX = 8 << 10
"""The bound of most servers: long input belongs into a body. RFC 9112 (section 3) recommends at least 8,000."""
HEADER_BYTES_MAX = 16 << 10
"""One header line: the cookies of a large site are 4 KB, a Kerberos ticket is 12."""
HEAD_BYTES_MAX = 64 << 10
"""All lines of a head, or of the trailers: the memory that a connection can occupy before it has made a request."""
FIELDS_MAX = 100
"""Header fields of a head, and of the trailers: browsers send 20, and each proxy adds a few."""
CHUNK_EXTENSIONS_BYTES_MAX = 4 << 10
"""All chunk extensions of one body: no known client uses them."""
_CHUNKS_FREE, _CHUNK_BYTES_LEAST = 10_000, 16
"""After the first so many chunks, a body's chunks must average so many bytes: each costs as much work as 10 KB of body."""

_SPACE_BYTES = 2  # the line break
_BLANK_LINE = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"[\r\n]*[A-Z-]{1,20} [^\s\x00-\x1f\x7f]+ HTTP/1\.[01]\r\n")
_REQUEST_LINE_BEGUN = re.compile(rb"[A-Z][A-Z-]{0,19}(?:\Z| )")
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:\[\]%-]*")  # RFC 3986, section 3.2.2, with the port
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_FRAMING_FIELDS = frozenset((b"host", b"content-length", b"transfer-encoding", b"upgrade", b"expect"))


def no_request() -> Problem:
    return Problem(400, "this is not an HTTP/1.1 request")


def _head_too_large() -> Problem:
    return Problem(431, f"the header fields have more than {HEAD_BYTES_MAX} bytes in all, which is the limit")


def _too_many_fields() -> Problem:
    return Problem(431, f"there are more than {FIELDS_MAX} header fields, which is the limit")


def _header_too_large() -> Problem:
    return Problem(431, f"a header field has more than {HEADER_BYTES_MAX} bytes, which is the limit")


class Lines:
    """Finds the end of a head, or of trailers, that come in pieces. Each byte is searched once."""

    __slots__ = ("_fields", "_line", "_searched")

    def __init__(self, *, trailers: bool = False) -> None:
        self._line = self._searched = 0
        self._fields = 1 if trailers else 0  # the first line of a head is the request line

    def end(self, data: bytes) -> int:
        """The number of bytes up to the empty line that ends the lines, with it; 0 while it has not come.

        `data` is everything from the first line on. Raises Problem 400, 414, 431.
        """
        while True:
            line_break = data.find(b"\n", self._searched, HEAD_BYTES_MAX)
            if line_break < 0:
                self._searched = min(len(data), HEAD_BYTES_MAX)
                self._check_size(self._searched - self._line - _SPACE_BYTES)
                if len(data) > HEAD_BYTES_MAX:
                    raise _head_too_large()
                return 0
            if data[line_break - 1 : line_break] != b"\r":
                raise no_request()
            size = line_break - 1 - self._line
            self._check_size(size)
            self._searched = self._line = line_break + 1
            if not size:
                return line_break + 1
            self._fields += 1
            if self._fields > FIELDS_MAX + 1:
                raise _too_many_fields()

    def _check_size(self, size: int) -> None:
        if self._fields:
            if size > HEADER_BYTES_MAX:
                raise _header_too_large()
        elif size > REQUEST_LINE_BYTES_MAX:
            raise Problem(414, f"the request line has more than {REQUEST_LINE_BYTES_MAX} bytes, which is the limit")


class Body(Protocol):
    """Separates a request's body from what follows it, as the bytes come in."""

    whole: bool
    """The body has come to its end."""

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Returns the body's content in these bytes, and the rest: of a later request, or to be passed again with what follows.

        Raises Problem 400, 431.
        """


class SizedBody:
    """A body with a Content-Length."""

    __slots__ = ("left", "whole")

    def __init__(self, size: int) -> None:
        self.left = size
        self.whole = False

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        left = self.left - len(data)
        if left > 0:
            self.left = left
            return data, b""
        size, self.left, self.whole = self.left, 0, True
        return (data, b"") if not left else (data[:size], data[size:])


class ChunkedBody:
    """A chunked body (RFC 9112, section 7.1). Chunk extensions and trailers are ignored."""

    __slots__ = ("_bytes", "_chunks", "_extensions", "_left", "_trailers", "has_short_chunks", "whole")

    def __init__(self) -> None:
        self.whole = False
        self.has_short_chunks = False
        """Whether its chunks may be short, however many there are: those of a body that comes as it is made."""
        self._left = 0
        """Bytes that are still to come of the present chunk, with its line break."""
        self._chunks = self._bytes = self._extensions = 0
        self._trailers: Lines | None = None

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        parts: list[bytes] = []
        at = 0
        while self._trailers is None:
            if self._left:
                part = data[at : at + self._left]
                at += len(part)
                self._left -= len(part)
                self._keep(part, parts)
                if self._left:
                    return b"".join(parts), b""
            found = _CHUNK_SIZE.match(data, at, at + CHUNK_EXTENSIONS_BYTES_MAX + 32)
            if found is None:
                rest = data[at:]
                self._check_begun(rest)
                return b"".join(parts), rest
            at = found.end()
            self._begin(int(found[1], 16), len(found[2] or b""))
        return b"".join(parts), self._pass_over_trailers(data[at:])

    def _begin(self, size: int, extension: int) -> None:
        """Begins a chunk of so many bytes; the last chunk has none."""
        self._extensions += extension
        self._check_extensions()
        if not size:
            self._trailers = Lines(trailers=True)
            return
        self._chunks += 1
        self._bytes += size
        self._left = size + _SPACE_BYTES
        if self.has_short_chunks:
            return
        if self._chunks > _CHUNKS_FREE and self._bytes < self._chunks * _CHUNK_BYTES_LEAST:
            raise Problem(400, f"the body comes in chunks of fewer than {_CHUNK_BYTES_LEAST} bytes")

    def _keep(self, part: bytes, parts: list[bytes]) -> None:
        """Adds to `parts` what belongs to the chunk, without the line break after it. Raises Problem 400."""
        beyond = min(len(part), max(0, _SPACE_BYTES - self._left))
        if beyond:
            size = len(part) - beyond
            if part[size:] != b"\r\n"[_SPACE_BYTES - self._left - beyond : _SPACE_BYTES - self._left]:
                raise Problem(400, "a chunk of the body is longer than it says")
            part = part[:size]
        if part:
            parts.append(part)

    def _check_begun(self, line: bytes) -> None:
        """Raises Problem 400 if these bytes cannot become the first line of a chunk."""
        if len(line) > 32:
            self._check_extensions(len(line) - 32)
        # With a line break added it must be a valid line, or its beginning is wrong already.
        ended = line if line.endswith(b"\n") else line + (b"\n" if line.endswith(b"\r") else b"\r\n")
        if line and _CHUNK_SIZE.fullmatch(ended) is None:
            raise Problem(400, "the body is not chunked as its Transfer-Encoding says")

    def _check_extensions(self, more: int = 0) -> None:
        if self._extensions + more > CHUNK_EXTENSIONS_BYTES_MAX:
            raise Problem(400, f"the chunk extensions have more than {CHUNK_EXTENSIONS_BYTES_MAX} bytes in all")

    def _pass_over_trailers(self, data: bytes) -> bytes:
        """The bytes behind the trailers; all bytes while the trailers are incomplete. Raises Problem 400, 431."""
        assert self._trailers is not None
        end = self._trailers.end(data)
        if not end:
            return data
        for line in data[: end - _SPACE_BYTES].split(b"\r\n")[:-1]:
            if _FIELD.fullmatch(line) is None:
                raise Problem(400, "the body's trailers are not valid HTTP fields")
        self.whole = True
        return data[end:]


class Head:
    """A request's head: the callbacks of llhttp, and what they found."""

    __slots__ = ("_coding", "_hosts", "_length", "_parser", "expects_continue", "headers", "keep_alive", "method", "upgrade", "url", "version")  # fmt: skip

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.url = b""
        self.method = self.version = ""
        self.keep_alive = self.expects_continue = False
        self.upgrade = b""
        """The value of `Upgrade` in lower case, empty without `Connection: upgrade`; it may list several protocols."""
        self._hosts: list[bytes] = []
        self._length: bytes | None = None
        self._coding: bytes | None = None
        self._parser: HttpRequestParser

    @property
    def is_websocket(self) -> bool:
        return self.upgrade == b"websocket" and self.version == "1.1"  # RFC 9110, section 7.8: not of HTTP/1.0

    def body(self) -> Body | None:
        """The body's framing; None if there is no body. Raises Problem 400."""
        if self._coding is not None:
            if self._length is not None or self._coding.lower() != b"chunked" or self.version == "1.0":
                raise Problem(400, "Transfer-Encoding must be chunked, of HTTP/1.1 and without a Content-Length")
            return ChunkedBody()
        size = int(self._length or 0)
        return SizedBody(size) if size else None

    def check(self) -> None:
        """Raises Problem 400, 431."""
        if len(self.headers) > FIELDS_MAX:
            raise _too_many_fields()
        hosts = self._hosts
        if len(hosts) != 1 and (hosts or self.version == "1.1"):
            raise Problem(400, "a request must have one Host (RFC 9112, section 3.2)")
        if hosts and _HOST.fullmatch(hosts[0]) is None:
            raise Problem(400, "Host must be a name or an address, with a port if there is one")
        if self.method == "CONNECT":
            raise Problem(400, "CONNECT is not possible: this is not a proxy")

    # --- callbacks of llhttp

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.headers.append((name, value))
        if name in _FRAMING_FIELDS:
            self._note(name, value)

    def on_headers_complete(self) -> None:
        parser = self._parser
        self.version = parser.get_http_version()
        self.method = parser.get_method().decode("ascii")
        self.keep_alive = parser.should_keep_alive() and self.version != "1.0"
        if not parser.should_upgrade():
            self.upgrade = b""  # without `Connection: upgrade` it asks for nothing

    def _note(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self._hosts.append(value.strip())
        elif name == b"content-length":
            self._length = value if self._length is None else b"x"  # two of them: llhttp has refused that
        elif name == b"transfer-encoding":
            self._coding = value.strip() if self._coding is None else b""
        elif name == b"upgrade":
            self.upgrade += value.strip().lower()
        else:
            self.expects_continue = value.strip().lower() == b"100-continue"


def read_head(data: bytes) -> Head:
    """Parses a head, which ends with its empty line. Raises Problem 400, 431."""
    line = _REQUEST_LINE.match(data)
    if line is None:
        raise no_request()
    if not line[0].isascii():
        data = _percent_encoded(line[0]) + data[line.end() :]
    head = Head()
    parser = head._parser = HttpRequestParser(head)
    try:
        parser.feed_data(data)
    except HttpParserUpgrade:
        pass
    except HttpParserInvalidURLError:
        raise Problem(400, "the request's target must be a path whose other characters are percent-encoded") from None
    except HttpParserError:
        raise no_request() from None
    finally:
        del head._parser  # else head and parser refer to each other until the collector runs
    if not head.method:
        raise no_request()
    head.check()
    return head


def _percent_encoded(line: bytes) -> bytes:
    """A request line whose target has UTF-8 as it is, as some clients send it, with that encoded. Raises Problem 400."""
    try:
        line.decode()
    except UnicodeDecodeError:
        raise Problem(400, "the request's target is neither percent-encoded nor UTF-8") from None
    return b"".join(b"%%%02X" % byte if byte >= 0x80 else b"%c" % byte for byte in line)


def check_begun(data: bytes) -> None:
    """Raises Problem 400 if an incomplete head cannot become a request, as TLS or HTTP/0.9, so that its client need not wait."""
    line_break = data.find(b"\n", 0, REQUEST_LINE_BYTES_MAX + _SPACE_BYTES)
    if line_break < 0:
        if _REQUEST_LINE_BEGUN.match(data) is None:
            raise no_request()
    elif _REQUEST_LINE.match(data) is None:
        raise no_request()
