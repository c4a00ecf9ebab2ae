"""Hostile responses of a provider: what is kept, read or followed of them is limited."""

from __future__ import annotations

import asyncio
import functools
import gzip
import itertools
import os
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.bounded_transport import ERROR_BYTES_MAX, BoundedTransport, decoded
from producer.direct_transport import DirectTransport
from producer.openai_provider import OpenAIProvider
from producer.provider import ProviderError, Refused, Unavailable
from tests.support.hearing import Heard
from tests.support.waiting import wait_until

MEGABYTE = 1 << 20
CHUNK = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


class HostileServer:
    """Answers each request with the next of its responses, the last one repeatedly; counts the bytes sent."""

    def __init__(self, *responses: Iterable[bytes], hangs: bool = False) -> None:
        self.responses = [list(response) if isinstance(response, list) else response for response in responses]
        self.hangs = hangs
        self.requests: list[bytes] = []
        self.sent = self.open = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                self.requests.append(head + await reader.readexactly(length))
                response = self.responses[min(len(self.requests), len(self.responses)) - 1]
                for part in response:
                    writer.write(part)
                    await writer.drain()
                    self.sent += len(part)
                if self.hangs:
                    await reader.read()
                return
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            self.open -= 1
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def serving(*responses: Iterable[bytes], hangs: bool = False) -> AsyncIterator[HostileServer]:
    server = HostileServer(*responses, hangs=hangs)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        await wait_until(lambda: server.open == 0)


async def generated(server: HostileServer) -> tuple[Heard, Any]:
    """Returns the items of an answer, and its Finish or ProviderError."""
    provider = OpenAIProvider(api_key="secret", base_url=server.url, default_model="m", connections_max=2)
    hearer = Heard()
    try:
        return hearer, await provider.generate({"messages": [{"role": "user", "content": "prompt"}]}, "", hearer)
    except ProviderError as error:
        return hearer, error
    finally:
        await provider.close()


async def peak_of(call: Callable[[], Awaitable[Any]]) -> tuple[Any, int]:
    """Returns the call's result, and the most memory that Python used meanwhile."""
    tracemalloc.start()
    try:
        given = await call()
        return given, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def head(status: str, *headers: bytes) -> bytes:
    return b"\r\n".join([f"HTTP/1.1 {status}".encode(), *headers, b"", b""])


def answer(body: bytes, *headers: bytes) -> list[bytes]:
    return [head("200 OK", b"Content-Length: %d" % len(body), *headers), body]


def endless(first: bytes, part: bytes, megabytes: int = 64) -> Iterable[bytes]:
    """Yields so many bytes that only a limit can have stopped the reading."""
    yield first
    for _ in range(megabytes * MEGABYTE // len(part)):
        yield part


# --- errors


@pytest.mark.parametrize("status", ["400 Bad Request", "500 Internal Server Error", "429 Too Many", "999 What"])
async def test_an_error_s_body_is_read_up_to_a_limit(status: str) -> None:
    body = endless(head(status, b"Transfer-Encoding: chunked"), b"10000\r\n" + b"x" * 65536 + b"\r\n")
    async with serving(body) as server:
        (items, error), peak = await peak_of(lambda: generated(server))
        assert server.sent < 32 * MEGABYTE
    assert isinstance(error, ProviderError)
    assert error.status == int(status[:3])
    assert items.items == []
    assert peak < 8 * MEGABYTE


def zipped(body: bytes, times: int) -> bytes:
    for _ in range(times):
        body = gzip.compress(body, 9)
    return body


@functools.cache
def bomb(times: int) -> bytes:
    """Returns 64 MB of zeros in gzip, so many times; 0: in deflate."""
    zeros = b"\0" * (64 * MEGABYTE)
    return zipped(zeros, times) if times else zlib.compress(zeros, 9)


@pytest.mark.parametrize(
    ("coding", "times"), [("gzip", 1), ("gzip, gzip", 2), ("deflate", 0), ("gzip, gzip, gzip, gzip", 2), ("gzip", None)]
)
@pytest.mark.parametrize("status", ["400 Bad Request", "200 OK"])
async def test_a_body_that_decompresses_to_much_is_decompressed_in_pieces(
    status: str, coding: str, times: int | None
) -> None:
    body = b"no gzip" if times is None else bomb(times)
    response = [head(status, b"Content-Encoding: " + coding.encode(), b"Content-Length: %d" % len(body)), body]
    async with serving(response) as server:
        (items, error), peak = await peak_of(lambda: generated(server))
    assert isinstance(error, ProviderError)
    assert items.items == []
    assert peak < 20 * MEGABYTE, peak


async def test_a_compressed_error_is_reported() -> None:
    body = gzip.compress(orjson.dumps({"error": {"message": "the reason why", "code": 2**63}}))
    about = (b"Content-Encoding: gzip", b"Content-Type: text/html; charset=zlib_codec", b"Retry-After: 3")
    async with serving([head("429 Slow Down", b"Content-Length: %d" % len(body), *about), body]) as server:
        _, error = await generated(server)
    assert isinstance(error, Unavailable)
    assert "the reason why" in str(error)
    assert error.retry_after_seconds == 3.0


async def test_an_endless_error_body_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.bounded_transport._ERROR_SECONDS_MAX", 0.05)
    response = [head("400 Bad Request", b"Content-Length: 1000"), b'{"error":']
    async with serving(response, hangs=True) as server:
        _, error = await generated(server)
    assert isinstance(error, Refused)
    assert error.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 60_000,
        b'{"error":{"message":' + b"[" * 900 + b"]" * 900 + b',"code":["a"],"type":{"a":1},"param":3}}',
        b'{"error":{"message":"\\ud83d","code":1' + b"0" * 30 + b"}}",
        b'{"error":{"message":{"a":"\\ud83d"},"type":"' + b"x" * 50_000 + b'"}}',
        b'{"error":["a"]}',
        b'"text"',
        b"\xff\xfe" * 100,
        b"",
    ],
)
async def test_any_error_body_can_be_stored(body: bytes) -> None:
    async with serving([head("400 Bad Request", b"Content-Length: %d" % len(body)), body]) as server:
        _, error = await generated(server)
    assert isinstance(error, Refused)
    own = orjson.loads(orjson.dumps(error.about()))["provider_error"]
    assert isinstance(own["message"], str)
    assert all(own[name] is None or isinstance(own[name], str | int) for name in ("type", "param", "code"))
    assert len(orjson.dumps(own)) < 20_000


@pytest.mark.parametrize(
    "value", ["9" * 400, "inf", "nan", "-5", "1e999", "Mon, 01 Jan 9999999 00:00:00 GMT", "x" * 9000, "\xff\xfe"]
)
@pytest.mark.parametrize("name", ["Retry-After", "Retry-After-Ms"])
async def test_retry_after_is_a_number_or_ignored(name: str, value: str) -> None:
    async with serving([head("503 Busy", f"{name}: {value}".encode("latin-1"), b"Content-Length: 0")]) as server:
        _, error = await generated(server)
    assert isinstance(error, Unavailable)
    assert error.retry_after_seconds in (None, 0.0)


# --- redirects


def redirect(location: str, status: str = "307 Temporary Redirect", body: bytes = b"") -> list[bytes]:
    return [head(status, f"Location: {location}".encode(), b"Content-Length: %d" % len(body)), body]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
async def test_a_redirect_on_the_same_server_is_followed_with_the_prompt(status: str) -> None:
    async with serving(redirect("/v2/elsewhere?a=b", status), answer(CHUNK + LAST)) as server:
        items, finish = await generated(server)
        assert items.items == ["a"]
        assert finish.reason == "stop"
        first, second = server.requests
    assert second.startswith(b"POST /v2/elsewhere?a=b HTTP/1.1\r\n")
    assert first.partition(b"\r\n\r\n")[2] == second.partition(b"\r\n\r\n")[2]
    assert b"secret" in second


@pytest.mark.parametrize(
    "location",
    [
        "http://localhost:{port}/v1",
        "http://127.0.0.1:1/v1",
        "https://127.0.0.1:{port}/v1",
        "http://127.0.0.1@localhost:{port}/v1",
        "//localhost:{port}/v1",
        "http://[::1",
        "ftp://127.0.0.1:{port}/",
        "\\\\localhost:{port}\\",
        "http:localhost",
        "",
    ],
)
async def test_a_redirect_to_another_server_is_not_followed(location: str) -> None:
    responses: list[list[bytes]] = [[], answer(CHUNK + LAST)]
    async with serving(*responses) as other, serving([]) as server:
        server.responses = [redirect(location.replace("{port}", str(other.port)))]
        _, error = await generated(server)
        assert not other.requests
    assert isinstance(error, Refused)
    assert error.code == "provider_refused"
    assert "redirects (307)" in str(error)
    if "localhost" in location:
        assert "localhost" in str(error)


@pytest.mark.parametrize(
    "status", ["300 Multiple Choices", "303 See Other", "304 Not Modified", "305 Use Proxy", "399 X"]
)
async def test_a_redirect_that_does_not_keep_the_post_is_an_error(status: str) -> None:
    async with serving(redirect("/v1/other", status), answer(CHUNK + LAST)) as server:
        _, error = await generated(server)
        assert isinstance(error, Refused)
        assert len(server.requests) == 1


async def test_a_loop_of_redirects_ends() -> None:
    async with serving(redirect("/v1/a")) as server:
        _, error = await generated(server)
        assert isinstance(error, Refused)
        assert len(server.requests) == 4


async def test_a_redirect_s_body_is_not_read() -> None:
    body = endless(head("307 Temporary Redirect", b"Location: /b", b"Content-Length: 99999999999"), b"x" * 65536)
    async with serving(body, answer(CHUNK + LAST)) as server:
        (_, finish), peak = await peak_of(lambda: generated(server))
        assert finish.reason == "stop"
        assert server.sent < 32 * MEGABYTE
    assert peak < 8 * MEGABYTE


async def test_the_limits_also_hold_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server itself is the proxy that the environment names, and answers for every host."""
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    redirects = redirect("/v1/x", "308 Permanent Redirect")
    error = [head("400 No", b"Content-Encoding: gzip, gzip", b"Content-Length: %d" % len(bomb(2))), bomb(2)]
    elsewhere = redirect("http://other.invalid/v1")
    async with serving(redirects, answer(CHUNK + LAST), error, elsewhere) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        provider = OpenAIProvider(
            api_key="", base_url="http://provider.invalid/v1", default_model="m", connections_max=2
        )
        hearer = Heard()
        finish = await provider.generate({"messages": []}, "", hearer)
        assert (hearer.items, finish.reason) == (["a"], "stop")
        with pytest.raises(Refused):
            await provider.generate({"messages": []}, "", hearer)
        with pytest.raises(Refused, match=r"other\.invalid"):
            await provider.generate({"messages": []}, "", hearer)
        await provider.close()
        assert server.requests[1].startswith(b"POST http://provider.invalid/v1/x HTTP/1.1\r\n")
        assert len(server.requests) == 4


# --- heads, trailers, framing


@pytest.mark.parametrize(
    "response",
    [
        endless(b"HTTP/1.1 200 ", b"x" * 65536),
        endless(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n" * 10_000),
        endless(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65536),
        endless(b"HTTP/1.1 200 OK\r\n", b"x" * 65536),
        endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1000),
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        endless(b"", b"HTTP/1.1 000 X\r\n\r\n" * 1000),
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 10_000),
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"x" * 65536),
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x" * 65536),
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0" * 65536),
    ],
)  # fmt: skip
async def test_heads_and_chunk_framing_are_limited(response: Iterable[bytes]) -> None:
    async with serving(response) as server:
        (_, error), peak = await peak_of(lambda: generated(server))
        assert server.sent < 32 * MEGABYTE
    assert isinstance(error, Unavailable)
    assert peak < 8 * MEGABYTE, peak


async def test_a_hundred_headers_may_come_and_cookies_are_not_kept() -> None:
    more = [b"Set-Cookie: a%d=%s; Path=/" % (number, b"x" * 100) for number in range(90)]
    async with serving(answer(CHUNK + LAST, *more)) as server:
        provider = OpenAIProvider(api_key="k", base_url=server.url, default_model="m", connections_max=2)
        for _ in range(2):
            hearer = Heard()
            finish = await provider.generate({"messages": []}, "", hearer)
            assert finish.reason == "stop"
        await provider.close()
        assert b"cookie" not in server.requests[1].lower()


async def test_many_small_pieces_do_not_fill_the_memory() -> None:
    """The reader does not read meanwhile."""
    body = endless(head("200 OK", b"Transfer-Encoding: chunked"), b"2\r\nab\r\n" * 8192)
    async with serving(body) as server:

        async def wait() -> None:
            client = httpx2.AsyncClient(transport=BoundedTransport(DirectTransport(connections_max=1)))
            async with client, client.stream("POST", server.url):
                seen = -1

                async def has_stopped() -> bool:
                    nonlocal seen
                    before, seen = seen, server.sent
                    await asyncio.sleep(0.05)
                    return before == server.sent

                await wait_until(has_stopped)

        _, peak = await peak_of(wait)
    assert peak < 8 * MEGABYTE, peak


# --- whatever comes


PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 500 X\r\n", b"HTTP/1.1 307 X\r\nLocation: /\r\n", b"HTTP/1.1 100 C\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Content-Encoding: gzip\r\n", b"Connection: upgrade\r\n",
        b"\r\n", b"\r\n\r\n", b"5\r\nabcde\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n", gzip.compress(CHUNK), CHUNK, LAST, b"data: [\n",
    ]
)  # fmt: skip


async def ends(stream: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    parts = [stream[start:end] for start, end in itertools.pairwise(edges)]
    async with serving(parts) as server:
        transport = BoundedTransport(DirectTransport(connections_max=1))
        async with httpx2.AsyncClient(transport=transport, timeout=5.0) as client:
            try:
                async with client.stream("POST", server.url) as response:
                    async for _ in decoded(response):
                        pass
            except (httpx2.TransportError, httpx2.DecodingError, Refused):
                pass


@settings(max_examples=60)
@given(st.lists(PIECES | st.binary(max_size=20), max_size=12), st.lists(st.integers(0, 500), max_size=4))
def test_any_bytes_lead_to_a_response_or_an_error(pieces: list[bytes], cuts: list[int]) -> None:
    asyncio.run(ends(b"".join(pieces), cuts))


def test_a_body_is_the_same_however_it_is_cut() -> None:
    async def whole(body: bytes, size: int) -> bytes:
        async def parts() -> AsyncIterator[bytes]:
            for start in range(0, len(body), size):
                yield body[start : start + size]

        response = httpx2.Response(200, headers={"content-encoding": "deflate, gzip"}, content=parts())
        return b"".join([piece async for piece in decoded(response)])

    plain = os.urandom(1000) + b"a" * 300_000
    for packed in (gzip.compress(zlib.compress(plain)), gzip.compress(zlib.compress(plain)[2:-4])):
        for size in (1, 7, 65536):
            assert asyncio.run(whole(packed, size)) == plain
    assert ERROR_BYTES_MAX == 65536
