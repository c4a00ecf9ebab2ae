"""The beginning and end of requests in a client's bytes: the same for every division into packets, and within the limits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.framing import (
    CHUNK_EXTENSIONS_BYTES_MAX,
    FIELDS_MAX,
    HEAD_BYTES_MAX,
    HEADER_BYTES_MAX,
    REQUEST_LINE_BYTES_MAX,
    ChunkedBody,
    Lines,
    SizedBody,
    check_begun,
    read_head,
)
from gateway.http.problems import Problem

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


def refusal(call: object, *arguments: object) -> int:
    with pytest.raises(Problem) as raised:
        call(*arguments)  # type: ignore[operator]
    return raised.value.status


# --- heads


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * REQUEST_LINE_BYTES_MAX, 414),
        (b"GET /" + b"a" * REQUEST_LINE_BYTES_MAX + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (HEAD + b"A: " + b"a" * HEADER_BYTES_MAX, 431),
        (HEAD + b"A: " + b"a" * HEADER_BYTES_MAX + b"\r\n\r\n", 431),
        (HEAD + b"A: b\r\n" * FIELDS_MAX, 431),
        (HEAD + (b"A: " + b"a" * 8000 + b"\r\n") * 8 + b"B: " + b"b" * 2000, 431),
        (HEAD + b"A: b\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    ],
)
@pytest.mark.parametrize("piece", [1 << 20, 1000])
def test_lines_that_are_too_long_or_too_many(head: bytes, status: int, piece: int) -> None:
    def feed() -> None:
        lines = Lines()
        for end in range(piece, len(head) + piece, piece):
            assert lines.end(head[:end]) == 0

    assert refusal(feed) == status


def test_a_head_may_be_as_large_as_the_limit() -> None:
    path = b"/" + b"a" * (REQUEST_LINE_BYTES_MAX - len(b"GET / HTTP/1.1"))
    large = b"A: " + b"a" * (HEADER_BYTES_MAX - 3) + b"\r\n"
    head = b"GET %b HTTP/1.1\r\nHost: x\r\n" % path + 3 * large + b"B: b\r\n" * (FIELDS_MAX - 4) + b"\r\n"
    assert Lines().end(head + b"rest") == len(head) <= HEAD_BYTES_MAX
    assert len(read_head(head).headers) == FIELDS_MAX


@given(st.lists(st.integers(1, 40), max_size=40))
@settings(max_examples=100)
def test_the_end_of_a_head_is_found_wherever_it_is_cut(cuts: list[int]) -> None:
    head = HEAD + b"Accept: */*\r\nX: y\r\n\r\n"
    sent = head + b"GET /next HTTP/1.1\r\n"
    lines, upto = Lines(), 0
    for cut in [*cuts, len(sent)]:
        upto = min(len(sent), upto + cut)
        end = lines.end(sent[:upto])
        if end:
            assert end == len(head)
            return
        check_begun(sent[:upto])
    raise AssertionError("the end was not found")


@pytest.mark.parametrize(
    "begun",
    [b"\x16\x03\x01", b"get / HTTP/1.1", b"GET /\r\n", b"GET / HTTP/0.9\r\n", b"GET / HTTP/2.0\r\n", b"GET / RTSP/1.0\r\n",
     b"{}", b"GET / HTTP/1.1\n"],
)  # fmt: skip
def test_a_head_that_cannot_become_valid_is_refused_before_it_is_complete(begun: bytes) -> None:
    assert refusal(check_begun, begun) == 400


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/0.9\r\nHost: x\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
        b"GET / ICE/1.0\r\nHost: x\r\n\r\n",
        b"GET /\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    ],
)
def test_malformed_heads(head: bytes) -> None:
    assert refusal(read_head, head) == 400


@pytest.mark.parametrize(
    "fields",
    [
        b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Content-Length: 5, 5",
        b"Content-Length: +5",
        b"Content-Length: 0x5",
        b"Content-Length: 99999999999999999999",
    ],
)
@pytest.mark.parametrize("upgrade", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
def test_ambiguous_framing_is_refused(fields: bytes, upgrade: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\n%b%b\r\n\r\n" % (upgrade, fields)
    assert refusal(lambda: read_head(head).body()) == 400


def test_http_1_0_has_no_chunked_bodies() -> None:
    assert refusal(lambda: read_head(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").body()) == 400


@pytest.mark.parametrize(
    ("fields", "is_websocket"),
    [
        (b"Connection: Upgrade\r\nUpgrade: websocket", True),
        (b"Connection: keep-alive, upgrade\r\nUpgrade: WebSocket", True),
        (b"Upgrade: websocket", False),
        (b"Connection: Upgrade\r\nUpgrade: h2c", False),
        (b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA", False),
        (b"Connection: Upgrade\r\nUpgrade: websocket, h2c", False),
        (b"Connection: Upgrade", False),
    ],
)
def test_only_a_websocket_is_an_upgrade(fields: bytes, is_websocket: bool) -> None:
    head = read_head(b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n%b\r\n\r\n" % fields)
    assert head.is_websocket is is_websocket
    body = head.body()
    assert isinstance(body, SizedBody)
    assert (body.left, head.keep_alive) == (5, True)


# --- bodies

TRAILERS = b"Origin: https://evil.example\r\nX-Request-Id: forged\r\n"


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=30), st.sampled_from([b"", b";a", b';a="b;c"'])), max_size=12),
    st.sampled_from([b"", TRAILERS]),
    st.lists(st.integers(1, 9), max_size=60),
)
@settings(max_examples=200)
def test_a_chunked_body_wherever_it_is_cut(chunks: list[tuple[bytes, bytes]], trailers: bytes, cuts: list[int]) -> None:
    sent = b"".join(b"%X%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk, extension in chunks)
    sent += b"0\r\n" + trailers + b"\r\n"
    behind = b"GET /next HTTP/1.1\r\n\r\n"
    body, got, unread, at = ChunkedBody(), b"", b"", 0
    for cut in [*cuts, len(sent) + len(behind)]:
        unread += (sent + behind)[at : at + cut]
        at += cut
        if body.whole:
            continue
        part, unread = body.take(unread)
        got += part
    assert body.whole
    assert got == b"".join(chunk for chunk, _ in chunks)
    assert unread == behind


@given(st.binary(min_size=1, max_size=60), st.integers(1, 80), st.integers(1, 80))
@settings(max_examples=100)
def test_a_sized_body_wherever_it_is_cut(sent: bytes, size: int, cut: int) -> None:
    body, got, unread = SizedBody(size), b"", b""
    for part in (sent[:cut], sent[cut:]):
        unread += part
        if part and not body.whole:
            more, unread = body.take(unread)
            got += more
    assert (got, unread, body.whole) == (sent[:size], sent[size:], len(sent) >= size)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"zz\r\n", 400),
        (b"5 \r\n", 400),
        (b"5\n", 400),
        (b"-5\r\n", 400),
        (b"0x5\r\n", 400),
        (b"\r\n", 400),
        (b"00000000000000005\r\n", 400),
        (b"3\r\nabcd\r\n", 400),
        (b"3\r\nabc\n\n", 400),
        (b"3\r\nabc\rX", 400),
        (b"5;\x00\r\n", 400),
        (b"5;a=\n\r\n", 400),
        (b"5;" + b"a" * (CHUNK_EXTENSIONS_BYTES_MAX + 100), 400),
        (b"1;" + b"a" * CHUNK_EXTENSIONS_BYTES_MAX + b"\r\nx\r\n", 400),
        ((b"1;" + b"a" * 99 + b"\r\nx\r\n") * 42, 400),
        (b"1\r\nx\r\n" * 11_000, 400),
        (b"0\r\nno field\r\n\r\n", 400),
        (b"0\r\nA: b\n\r\n\r\n", 400),
        (b"0\r\nA: b\r\n c: d\r\n\r\n", 400),
        (b"0\r\nA: " + b"a" * HEADER_BYTES_MAX + b"\r\n\r\n", 431),
        (b"0\r\nA: " + b"a" * HEADER_BYTES_MAX, 431),
        (b"0\r\n" + b"A: b\r\n" * (FIELDS_MAX + 1), 431),
        (b"0\r\n" + (b"A: " + b"a" * 8000 + b"\r\n") * 9, 431),
    ],
)
@pytest.mark.parametrize("piece", [1 << 20, 997])
def test_chunks_and_trailers_that_are_wrong_or_too_much(sent: bytes, status: int, piece: int) -> None:
    def feed() -> None:
        body, unread = ChunkedBody(), b""
        for at in range(0, len(sent), piece):
            _, unread = body.take(unread + sent[at : at + piece])

    assert refusal(feed) == status


def test_a_few_small_chunks_are_accepted() -> None:
    body = ChunkedBody()
    part, rest = body.take(b"1\r\nx\r\n" * 9_000 + b"0\r\n\r\n")
    assert (part, rest, body.whole) == (b"x" * 9_000, b"", True)
