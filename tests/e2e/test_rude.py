"""Slow, hostile and malformed requests: a clear 4xx or a limited effect; never a 500, never a traceback."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from shared.ids import new_stream_id
from shared.keys import log_key
from shared.sse import Decoder, Message
from tests.support.redis_server import RedisServer, binary_of, free_port
from tests.support.system import Process, System, answer_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO = [{"role": "user", "content": "hello"}]
SLOW_SECONDS = 6


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with System(gateways=2, settings={"sweep_seconds": 1, "provider_backoff_seconds": 0.1}) as system:
        yield system


def assert_problem(answer: httpx2.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail"} <= set(problem)
    assert problem["status"] == status
    for word in words:
        assert word in problem["detail"], problem


class RawConnection:
    """A TCP connection that sends any bytes, and reads only when a test calls it."""

    def __init__(self, system: System, *, receive_buffer_bytes: int | None = None) -> None:
        self._socket = socket.socket()
        if receive_buffer_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self._socket.setblocking(False)
        self._port = system.gateway_port()

    async def send(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        if self._port:
            await loop.sock_connect(self._socket, ("127.0.0.1", self._port))
            self._port = 0
        await loop.sock_sendall(self._socket, data)

    async def read_until(self, end: bytes) -> bytes:
        """Reads up to these bytes. AssertionError if more come with them."""
        loop, received = asyncio.get_running_loop(), b""
        async with asyncio.timeout(20):
            while not received.endswith(end):
                part = await loop.sock_recv(self._socket, 65536)
                assert part, f"it ended after {received!r}"
                received += part
        return received

    async def read_to_end(self) -> bytes:
        """Reads up to the end of the connection."""
        loop, parts = asyncio.get_running_loop(), []
        async with asyncio.timeout(20):
            with suppress(ConnectionResetError):
                while part := await loop.sock_recv(self._socket, 65536):
                    parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        self._socket.close()


def events_of_response(raw: bytes) -> list[Message]:
    """Returns the events of a chunked response."""
    body, rest = b"", raw.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return list(Decoder().feed(body))


# --- slow


async def test_a_reader_that_stops_reading(system: System) -> None:
    tokens = 1500 * SLOW_SECONDS
    stream_id = await system.create("slow", simulate={"tokens": tokens, "tokens_per_second": 1500})
    with closing(RawConnection(system, receive_buffer_bytes=4096)) as slow:
        await slow.send(
            b"GET /v1/streams/%b/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % stream_id.encode()
        )
        others = [system.follow(stream_id, gateway=index) for index in (0, 0, 1)]
        # During these 6 s the slow reader reads nothing, and the others keep up with the worker.
        answers = [answer_of((await one.until_end(within_seconds=20)).messages) for one in others]
        state = await system.state(stream_id)
        assert state["ended_at"] - state["started_at"] < SLOW_SECONDS * 1.3
        assert all((one.end, len(one.tokens)) == ("done", tokens) for one in answers)
        assert await system.metric("midstream_ring_fallouts_total") >= 1
        assert await system.metric("midstream_readers") == 1
        answer = answer_of(events_of_response(await slow.read_to_end()))
    assert (answer.end, len(answer.tokens)) == ("done", tokens)
    assert answer.text == state["text"]


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /healthz HT",
        b"POST /v1/streams HTTP/1.1\r\nHost: x\r\n",
        b'POST /v1/streams HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{"mess',
        b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    ],
)
async def test_half_a_request_times_out(system: System, begun: bytes) -> None:
    with closing(RawConnection(system)) as half:
        await half.send(begun)
        stream_id = await system.create("others are served", simulate={"tokens": 3, "tokens_per_second": 0})
        assert (await system.state(stream_id, wait_seconds=10))["status"] == "completed"
    assert (await system.http.get(f"{system.gateway_url()}/readyz")).status_code == 200


async def test_half_requests_do_not_delay_a_shutdown() -> None:
    async with System(workers=0) as system:
        halves = [RawConnection(system) for _ in range(3)]
        for half in halves:
            await half.send(b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
        system.gateways[0].send(signal.SIGTERM)
        assert await system.gateways[0].exit_code(within_seconds=5.0) == 0
        for half in halves:
            half.close()


async def test_an_incomplete_request_is_cut_off() -> None:
    whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with System(workers=1, gateway_settings={"request_seconds": 1.2}) as system:
        stream_id = await system.create("slow", simulate={"tokens": 90, "tokens_per_second": 30})
        reader = system.follow(stream_id)
        waits = asyncio.create_task(system.state(stream_id, wait_seconds=10))

        async def answer_to(*parts: bytes) -> bytes:
            with closing(RawConnection(system)) as raw:
                for part in parts:
                    await raw.send(part)
                return await raw.read_to_end()

        head = b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n"
        halves = [b"GET /healthz HT", head, head + b"\r\n", head + b'\r\n{"mess']
        for answer in await asyncio.gather(*(answer_to(half) for half in halves)):
            assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n"), answer
            problem = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert problem["status"] == 408
            assert "1.2 s" in problem["detail"]
        assert await answer_to(b"") == await answer_to(b"\r\n\r\n") == b"", "without a request there is no answer"
        with closing(RawConnection(system)) as idle:
            await idle.send(whole)
            assert (await idle.read_until(b"}")).startswith(b"HTTP/1.1 200 OK")
            await idle.send(b"\r\n")
            assert await idle.read_to_end() == b""
        second = await answer_to(whole, b"GET /heal")
        assert [part[:3] for part in second.split(b"HTTP/1.1 ")] == [b"", b"200", b"408"]
        # A request that came in time is answered, however long that takes.
        read = answer_of((await reader.until_end()).messages)
        assert (read.end, len(read.tokens)) == ("done", 90)
        assert (await waits)["status"] == "completed"
        assert await system.metric('midstream_http_problems_total{status="408"}') == len(halves) + 1


async def test_half_a_pipelined_request_does_not_cut_off_a_running_answer() -> None:
    async with System(workers=1, gateway_settings={"request_seconds": 1.0}) as system:
        stream_id = await system.create("slow", simulate={"tokens": 90, "tokens_per_second": 30})
        with closing(RawConnection(system)) as raw:
            await raw.send(f"GET /v1/streams/{stream_id}?wait=20 HTTP/1.1\r\nHost: x\r\n\r\nGET /heal".encode())
            received = await raw.read_to_end()
    assert [part[:3] for part in received.split(b"HTTP/1.1 ")] == [b"", b"200", b"408"]
    assert b'"status":"completed"' in received


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\x03 not HTTP at all\r\n\r\n",
        b"GET /v1/streams/\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /stream?prompt=\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/streams/%ff%00%0a/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v1/streams/x/events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: \xff\xfe\r\nConnection: close\r\n\r\n",
        b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\nConnection: close\r\n\r\n",
        b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
)
async def test_broken_http(system: System, sent: bytes) -> None:
    with closing(RawConnection(system)) as raw:
        await raw.send(sent)
        answer = await raw.read_to_end()
    assert re.match(rb"HTTP/1\.1 4\d\d ", answer), answer
    assert b"\r\ncontent-type: application/problem+json\r\n" in answer
    assert b"Traceback" not in answer
    assert (await system.http.get(f"{system.gateway_url()}/readyz")).status_code == 200


# --- wrong ids and places


@pytest.mark.parametrize(
    "wrong", ["-1", "1", "1-", "-1-1", "1-1-1", "a-b", "1-1.5", "01-1", "1-99999999999999999", "１-１"]
)
@pytest.mark.parametrize("by", ["header", "query"])
async def test_malformed_event_id(system: System, wrong: str, by: str) -> None:
    stream_id = await system.create(simulate={"tokens": 1})
    for path in (f"/v1/streams/{stream_id}/events", "/stream?prompt=hello"):
        url = httpx2.URL(system.gateway_url() + path)
        if by == "query":
            answer = await system.http.get(url.copy_merge_params({"last_event_id": wrong}))
        else:
            answer = await system.http.get(url, headers=[(b"last-event-id", wrong.encode())])
        assert_problem(answer, 400, "<attempt>-<offset>")


async def test_id_beyond_the_end(system: System) -> None:
    """Of an ended stream the reader gets the terminal event; in a running one it waits until the stream has come so far."""
    stream_id = await system.create(simulate={"tokens": 60, "tokens_per_second": 60})
    reader = system.follow(stream_id, after="1-50")
    answer = await reader.until_end()
    assert [one.id for one in answer.messages if one.event != "live"] == [f"1-{offset}" for offset in range(51, 62)]
    ended = await system.follow(stream_id, after="7-7").until_end()
    assert (ended.status, [one.id for one in ended.messages]) == (200, ["1-61"])


@pytest.mark.parametrize("wrong", ["x", "%20", "..%2f..", "0" * 36, "0" * 5000, "{}", "\u00e4", "A" * 36])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")],
)
async def test_unknown_stream(system: System, wrong: str, method: str, path: str) -> None:
    answer = await system.http.request(method, f"{system.gateway_url()}/v1/streams/{wrong}{path}")
    # An id of only zeros is well formed, with a creation time in 1970: such a stream has expired.
    assert_problem(answer, 410 if wrong == "0" * 36 else 404)
    fresh = await system.http.request(method, f"{system.gateway_url()}/v1/streams/{new_stream_id()}{path}")
    assert_problem(fresh, 404, "no such stream")


async def test_expired_stream() -> None:
    async with System(settings={"ended_ttl_seconds": 1}) as system:
        stream_id = await system.create(simulate={"tokens": 3})
        url = f"{system.gateway_url()}/v1/streams/{stream_id}"
        assert (await system.state(stream_id, wait_seconds=5))["status"] == "completed"

        async def expired() -> bool:
            return (await system.http.get(url)).status_code != 200

        await wait_until(expired, what="the log has expired")
        assert_problem(await system.http.get(url), 410, "expired")
        assert_problem(await system.http.get(url + "/events"), 410, "expired")
        assert_problem(await system.http.get(url + "/events", headers={"last-event-id": "1-4"}), 410, "expired")
        assert_problem(await system.http.post(url + "/cancel"), 410, "expired")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/streams", 404),  # there is no archive
        ("PUT", "/v1/streams", 405),
        ("PATCH", "/v1/streams/x", 405),
        ("GET", "/v1/streams/x/cancel", 405),
        ("POST", "/healthz", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/streams/x/nowhere", 404),
        ("POST", "/v1/streams/x/text", 405),
        ("POST", "/stream?prompt=x", 405),
        ("GET", "//", 404),
        ("GET", "/stream", 400),
        ("GET", "/stream?prompt=", 400),
        ("GET", "/stream?prompt=%ff", 400),
        ("GET", "/stream?prompt=x&" + "&".join(f"a{n}=1" for n in range(100)), 400),
    ],
)
async def test_wrong_method_or_path(system: System, method: str, path: str, status: int) -> None:
    answer = await system.http.request(method, system.gateway_url() + path)
    assert_problem(answer, status)


async def test_from_must_be_now(system: System) -> None:
    stream_id = await system.create(simulate={"tokens": 1})
    assert_problem(await system.http.get(system.events_url(stream_id) + "?from=then"), 400, "from must be now")


# --- wrong bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"[]",
        b"null",
        b'"text"',
        b"17",
        b'{"messages": NaN}',
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "hello"}], "a": 1e999}',
        b"\xef\xbb\xbf" + json.dumps({"messages": HELLO}).encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ],
)
async def test_not_json(system: System, body: bytes) -> None:
    assert_problem(await system.http.post(f"{system.gateway_url()}/v1/streams", content=body), 400)


@pytest.mark.parametrize("depth", [100, 300, 900])
@pytest.mark.parametrize("name", ["metadata_of_theirs", "messages", "midstream", "simulate", "model"])
async def test_deep_nesting(system: System, depth: int, name: str) -> None:
    nested: Any = "end"
    for _ in range(depth):
        nested = [nested] if name == "messages" else {"a": nested}
    body: dict[str, Any] = {"messages": HELLO, "simulate": {"tokens": 1}, name: nested}
    if name == "messages":
        body["messages"] = [{"role": "user", "content": nested}]
    answer = await system.http.post(f"{system.gateway_url()}/v1/streams", content=json.dumps(body))
    if answer.status_code != 201:
        assert_problem(answer, 400)
    else:
        assert (await system.state(answer.json()["id"], wait_seconds=10))["status"] in ("completed", "failed")


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_of_thirty_megabytes(system: System, chunked: bool) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x" * (30 << 20)}]}).encode()

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    answer = await system.http.post(f"{system.gateway_url()}/v1/streams", content=parts() if chunked else body)
    assert_problem(answer, 413, f"{24 << 20} bytes")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("messages", [None, [], {}, "hello", [1], [{}], [{"role": 1}]]),
        ("model", ["", 5, [], {}]),
        ("stream_options", [1, "x", []]),
        ("simulate", [1, "x", [], {"unknown": 1}]),
        ("simulate.tokens", [-1, 1.5, "9", 10**9, True]),
        ("simulate.tokens_per_second", [-1, "fast", 10**9, True]),
        ("simulate.fail_after", [-1, 0.5]),
        ("simulate.stall_after", [-1, "x"]),
        ("simulate.finish_reason", ["because", 1, None]),
        ("midstream", [None, 1, "x", []]),
        ("midstream.unknown", [1]),
        ("midstream.on_interrupt", ["maybe", 1, None, {}]),
        ("midstream.on_disconnect", ["stop", 1, None, {}, {"after": 1}, {"cancel_after": 1, "more": 2}]),
        ("midstream.on_disconnect.cancel_after", [-1, "1", None, 10**9, True]),
        ("midstream.pace_ms", [-1, 1.5, "100", True, 5001, []]),
        ("midstream.metadata", [1, [], {"a": 1}, {"a": None}, {str(n): "" for n in range(65)}]),
    ],
)
async def test_wrong_values_are_named(system: System, name: str, values: list[Any]) -> None:
    for value in values:
        body: dict[str, Any] = {"messages": HELLO}
        inner, *path = body, *name.split(".")
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = value
        answer = await system.http.post(f"{system.gateway_url()}/v1/streams", json=body)
        assert_problem(answer, 400, name.removeprefix("midstream.") if name == "midstream.unknown" else name)


@pytest.mark.parametrize(
    "body",
    [
        {"simulate": None},
        {"simulate": {"tokens": None, "tokens_per_second": None, "fail_after": None, "stall_after": None}},
        {"simulate": {"tokens": 0}},
        {"simulate": {"tokens": 3, "fail_after": 0}, "midstream": {"on_interrupt": "fail"}},
        {"max_tokens": None, "n": None, "stream_options": None},
        {"max_tokens": -1},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": "5"},
        {"max_tokens": True},
        {"max_tokens": []},
        {"max_completion_tokens": -5, "n": "2"},
        {"messages": [{"role": "user", "content": 5}]},
        {
            "messages": [
                {"role": "user"},
                {"role": "assistant", "content": None},
                {"role": "user", "content": [{"a": 1}]},
            ]
        },
        {"seed": {"a": [1]}, "stream": "perhaps", "temperature": -7},
    ],
)
async def test_unusual_but_valid_requests(system: System, body: dict[str, Any]) -> None:
    answer = await system.http.post(
        f"{system.gateway_url()}/v1/streams", json={"messages": HELLO, "simulate": {"tokens": 1}, **body}
    )
    assert answer.status_code == 201, answer.text
    state = await system.state(answer.json()["id"], wait_seconds=10)
    assert state["status"] == ("failed" if (body.get("simulate") or {}).get("fail_after") == 0 else "completed"), state


@pytest.mark.parametrize("wrong", ["-1", "x", "601", "nan", "inf", "1e99", "-0.001"])
async def test_wrong_wait(system: System, wrong: str) -> None:
    stream_id = await system.create(simulate={"tokens": 1})
    assert_problem(await system.http.get(f"{system.gateway_url()}/v1/streams/{stream_id}?wait={wrong}"), 400, "wait")


async def test_wait(system: System) -> None:
    stream_id = await system.create(simulate={"tokens": 40, "tokens_per_second": 40})
    assert (await system.state(stream_id, wait_seconds=0.05))["status"] in ("queued", "running")
    assert (await system.state(stream_id, gateway=1, wait_seconds=20))["status"] == "completed"


@pytest.mark.parametrize(
    ("path", "header"),
    [
        ("/healthz", "x-long: " + "x" * 300_000),
        ("/healthz?" + "x" * 100_000, "x: y"),
        ("/" + "x" * 100_000, "x: y"),
        (f"/v1/streams/{'x' * 100_000}/events", "x: y"),
        ("/stream?prompt=" + "x" * 2_000_000, "x: y"),
        ("/v1/streams/" + "0" * 36 + "/events", "last-event-id: 1-" + "9" * 100_000),
    ],
    ids=lambda value: value[:30],
)
async def test_huge_header_or_url(system: System, path: str, header: str) -> None:
    """The request may be answered, refused or cut off: all are limited."""
    with closing(RawConnection(system)) as raw:
        with suppress(ConnectionError):
            await raw.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n\r\n".encode())
        answer = await raw.read_to_end()
    assert re.match(rb"HTTP/1\.1 (200|4\d\d) |$", answer), answer[:200]
    assert len(answer) < 2000
    assert (await system.http.get(f"{system.gateway_url()}/readyz")).status_code == 200


# --- idempotency


async def test_concurrent_creates_with_one_idempotency_key_are_one_generation(system: System) -> None:
    """If each of them queued the request again, it would be taken over until its attempts were used up."""
    for number in range(30):
        key = {"idempotency-key": f"at once {number}"}
        ids = await asyncio.gather(
            *(system.create("the same", gateway=n % 2, headers=key, simulate={"tokens": 5}) for n in range(10))
        )
        assert len(set(ids)) == 1
        state = await system.state(ids[0], wait_seconds=10)
        assert (state["status"], state["tokens"], state["attempt"]) == ("completed", 5, 1)


async def test_a_failed_create_is_completed_by_the_next_one_with_its_key(system: System) -> None:
    key = {"idempotency-key": "came to nothing"}
    lost = await system.create("the same", headers=key, simulate={"tokens": 5})
    await system.state(lost, wait_seconds=10)
    await system.commands.delete(log_key(lost))  # as if its gateway had died before it wrote the log
    ids = await asyncio.gather(
        *(system.create("the same", gateway=n % 2, headers=key, simulate={"tokens": 5}) for n in range(6))
    )
    assert set(ids) == {lost}
    state = await system.state(lost, wait_seconds=10)
    assert (state["status"], state["tokens"], state["attempt"]) == ("completed", 5, 1)


async def test_idempotency_key(system: System) -> None:
    key = {"idempotency-key": "once"}
    ids = [await system.create("the same", headers=key, simulate={"tokens": 5})]
    assert (await system.state(ids[0], wait_seconds=10))["tokens"] == 5
    assert await system.create("the same", headers=key, simulate={"tokens": 5}) == ids[0]
    other = {"messages": [{"role": "user", "content": "another"}]}
    url = f"{system.gateway_url(1)}/v1/streams"
    assert_problem(await system.http.post(url, json=other, headers=key), 422, "Idempotency-Key")
    assert_problem(await system.http.post(url, json=other, headers={"idempotency-key": "x" * 256}), 400)
    assert_problem(await system.http.post(url, json=other, headers={"idempotency-key": ""}), 400)


# --- a Redis that cannot be used


async def test_redis_that_may_evict(system: System) -> None:
    async def has_readyz(status: int) -> bool:
        return (await system.http.get(f"{system.gateway_url()}/readyz")).status_code == status

    await system.commands.config_set("maxmemory-policy", "allkeys-lru")
    try:
        await wait_until(lambda: has_readyz(503), what="it is noticed")  # Redis is checked once a second
        assert_problem(await system.http.get(f"{system.gateway_url()}/readyz"), 503, "allkeys-lru", "noeviction")
    finally:
        await system.commands.config_set("maxmemory-policy", "noeviction")
    await wait_until(lambda: has_readyz(200), what="it is noticed again")


async def fails_to_start(
    module: str, directory: Path, settings: dict[str, object], *, within_seconds: float = 10.0
) -> str:
    """Returns the one line that the process logs before it ends with exit code 1."""
    process = Process(module, {"port": 0, "redis_start_seconds": 0.5, **settings}, directory / f"{module}.log")
    process.start()
    try:
        assert await process.exit_code(within_seconds=within_seconds) == 1
    finally:
        if process.runs:
            process.kill()
    process.assert_no_complaints()
    lines = [line for line in process.logged().splitlines() if "SIMULATED" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{module}: ")
    return lines[0]


async def both_fail_to_start(directory: Path, settings: dict[str, object]) -> list[str]:
    """Starts a gateway and a worker; returns the line on which both end."""
    return await asyncio.gather(*(fails_to_start(module, directory, settings) for module in ("gateway", "producer")))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"redis_url": "http://127.0.0.1:6379"}, "redis://host:6379/0"),
        ({"redis_url": "redis://127.0.0.1:port/0"}, "redis://host:6379/0"),
        ({"redis_url": "unix:///nowhere/redis.sock"}, "cannot be reached"),
        ({"redis_url": "redis://:secret-word@no-such-host.invalid:6379"}, "cannot be reached"),
        ({"lease_seconds": "soon"}, "MIDSTREAM_LEASE_SECONDS"),
        ({"log_level": "loud"}, "MIDSTREAM_LOG_LEVEL"),
    ],
)
async def test_wrong_settings(settings: dict[str, object], words: str, tmp_path: Path) -> None:
    for line in await both_fail_to_start(tmp_path, settings):
        assert words in line
        assert "secret-word" not in line


BOTH = pytest.mark.parametrize("module", ["gateway", "producer"])


@BOTH
async def test_an_unreachable_redis_ends_the_start(module: str, tmp_path: Path) -> None:
    """With the default wait it takes less than 3 s; the rest is for the start of the process on a busy machine."""
    settings: dict[str, object] = {"redis_url": f"redis://127.0.0.1:{free_port()}/0", "redis_start_seconds": ""}
    line = await fails_to_start(module, tmp_path, settings, within_seconds=12.0)
    assert "cannot be reached within 2.5 s" in line
    assert "MIDSTREAM_REDIS_URL" in line


async def test_a_redis_that_does_not_answer_ends_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        assert all("cannot be reached" in line for line in await both_fail_to_start(tmp_path, {"redis_url": url}))


@pytest.mark.parametrize("login", ["", ":wrong-word@", "someone:wrong-word@"])
async def test_a_wrong_redis_password_ends_the_start(login: str, tmp_path: Path) -> None:
    with RedisServer("redis" if binary_of("redis") else "valkey", tcp=True, password="right") as server:
        url = f"redis://{login}127.0.0.1:{server.port}/0"
        for line in await both_fail_to_start(tmp_path, {"redis_url": url}):
            assert "refuses the login" in line
            assert "wrong-word" not in line


async def test_a_port_in_use_ends_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"127.0.0.1:{port}" in await fails_to_start("gateway", tmp_path, {"port": port})


@BOTH
@pytest.mark.parametrize(("argument", "words"), [("--help", "Midstream"), ("--version", "midstream 0.")])
async def test_help_and_version(module: str, argument: str, words: str, tmp_path: Path) -> None:
    process = Process(module, {}, tmp_path / "said.log", [argument])
    process.start()
    assert await process.exit_code() == 0
    assert words in process.logged()
