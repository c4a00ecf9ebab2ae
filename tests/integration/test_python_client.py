"""What both faces of midstream.client do about each thing that happens to a request, a connection or a token."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from midstream.client import StreamError, async_client, sync_client
from tests.support.python_client import (
    DONE,
    EXPECTED,
    KINDS,
    SERVER,
    STREAM,
    Face,
    Kind,
    Pieces,
    Script,
    Scripted,
    answering,
    recorded_after,
    refused,
    sse,
    streaming,
    token,
    unreachable,
    with_ids,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.parametrize("kind", KINDS)

_EVENTS = f"{SERVER}/v1/streams/{STREAM}/events"
_FIRST = ":\nretry: 0\n" + token("1-1", "a")
_LAST = token("1-2", "b") + sse("1-3", "done", DONE)
broken = streaming(_FIRST, cut=True)
rest = streaming(_LAST)
whole = streaming(_FIRST, _LAST)
page = streaming("<html>", content_type="text/html")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the clients would have waited between their tries; they wait for none of them."""
    seconds: list[float] = []

    async def pause(waited: float) -> None:
        seconds.append(waited)

    monkeypatch.setattr(sync_client, "time", SimpleNamespace(sleep=seconds.append))
    monkeypatch.setattr(async_client, "asyncio", SimpleNamespace(sleep=pause, timeout=asyncio.timeout))
    return seconds


async def error_of(collecting: Any) -> StreamError:
    with pytest.raises(StreamError) as raised:
        await collecting
    return raised.value


# --- statuses


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 409, 410, 421, 422])
@pytest.mark.parametrize("before", [[], [broken]], ids=["at first", "after a loss"])
async def test_statuses_that_are_final(kind: Kind, status: int, before: list[Script], pauses: list[float]) -> None:
    gateway = Scripted(*before, refused(status, '{"detail":"why"}'))
    error = await error_of(Face(kind, gateway).follow())
    assert (str(error), error.status, error.retryable) == (f"{status}: why", status, False)
    assert len(gateway.requests) == 1 + len(before)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_statuses_that_are_tried_again(kind: Kind, status: int, pauses: list[float]) -> None:
    gateway = Scripted(broken, refused(status), refused(status), rest)
    collected = await Face(kind, gateway).follow()
    assert collected.text == "ab"
    assert [lost.error.status for lost in collected.lost] == [0, status, status]
    assert [lost.text for lost in collected.lost] == ["a"] * 3
    assert [lost.wait_seconds for lost in collected.lost] == pauses
    assert gateway.sent("last-event-id") == [None, "1-1", "1-1", "1-1"]


@pytest.mark.parametrize("after", ["1-3", "1-9", "99-0"])
async def test_204_the_terminal_event_is_fetched(kind: Kind, after: str) -> None:
    gateway = Scripted(refused(204), streaming(sse("1-3", "cancelled", {"by": "client"})))
    (event,) = (await Face(kind, gateway).follow(after=after)).events
    assert (event.type, event.data, event.id) == ("cancelled", {"by": "client"}, "1-3")
    assert [str(request.url) for request in gateway.requests] == [_EVENTS, f"{_EVENTS}?from=now"]
    assert gateway.sent("last-event-id") == [after, None]


async def test_204_again_is_final(kind: Kind, pauses: list[float]) -> None:
    gateway = Scripted(broken, refused(204))
    error = await error_of(Face(kind, gateway).follow())
    assert not error.retryable
    assert len(gateway.requests) == 3


async def test_what_is_no_event_stream(kind: Kind, pauses: list[float]) -> None:
    """It is final at first; behind a lost connection it may be a hotel's login page."""
    error = await error_of(Face(kind, Scripted(page, whole)).follow())
    assert str(error) == f"{_EVENTS} answers with text/html, not with an event stream"
    assert not error.retryable
    assert (await Face(kind, Scripted(broken, page, page, rest)).follow()).text == "ab"


async def test_another_event_stream_of_the_server(kind: Kind, pauses: list[float]) -> None:
    """It is followed at its own address; its 204 is its end, and so is OpenAI's [DONE]."""
    gateway = Scripted(streaming(sse("", "message", {"n": 1}), cut=True), refused(204))
    collected = await Face(kind, gateway).follow(f"{SERVER}/v1/overview/events")
    assert [(event.type, event.data) for event in collected.events] == [("event", {"n": 1})]
    assert {str(request.url) for request in gateway.requests} == {f"{SERVER}/v1/overview/events"}
    chunks = Scripted(streaming(sse("1-1", "message", {"choices": []}) + sse("1-1", "message", "[DONE]")))
    collected = await Face(kind, chunks).follow(f"{SERVER}/v1/chat/completions/s1/events")
    assert [event.type for event in collected.events] == ["event", "done"]


# --- connections


@pytest.mark.parametrize("cut", [True, False], ids=["broken off", "ended"])
async def test_cut_at_every_byte(kind: Kind, cut: bool) -> None:
    recorded = recorded_after("").removesuffix(b":\n")

    def cut_at(place: int) -> Scripted:
        return Scripted(
            streaming(b"retry: 0\n", recorded[:place], cut=cut),
            lambda request: streaming(recorded_after(request.headers.get("last-event-id", "")))(request),
        )

    collected = await asyncio.gather(*(Face(kind, cut_at(place)).follow() for place in range(len(recorded))))
    assert all(with_ids(one.events) == EXPECTED for one in collected)
    assert {len(one.lost) for one in collected} == {1}


async def test_it_gives_up(kind: Kind) -> None:
    gateway = Scripted(broken, unreachable)
    error = await error_of(Face(kind, gateway, give_up_seconds=0.3).follow())
    assert (str(error), error.status, error.retryable) == ("no route", 0, True)
    assert len(gateway.requests) >= 2


@pytest.mark.parametrize("fault", [httpx2.LocalProtocolError("illegal header"), httpx2.UnsupportedProtocol("gopher")])
async def test_a_request_that_cannot_be_sent_is_final(kind: Kind, fault: Exception) -> None:
    def failing(_: httpx2.Request) -> httpx2.Response:
        raise fault

    assert not (await error_of(Face(kind, Scripted(failing)).follow())).retryable


@asynccontextmanager
async def silent_server(sent: bytes, requests: list[int]) -> AsyncIterator[str]:
    """A server that sends this, and then nothing more."""
    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError):  # the client left at once
            await reader.readuntil(b"\r\n\r\n")
            requests.append(1)
            writer.write(sent)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\ncontent-length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + _FIRST.encode(),
    ],
    ids=["nothing", "a head", "half an error", "an event"],
)
async def test_a_server_that_falls_silent(kind: Kind, sent: bytes) -> None:
    requests: list[int] = []
    async with silent_server(sent, requests) as url:
        face = Face(kind, url, stall_seconds=0.2, give_up_seconds=5.0)
        collected = await face.follow(until=lambda collected: bool(collected.lost))
    assert str(collected.lost[0].error) == "nothing came for 0.2 s"
    assert len(requests) == 1


async def test_a_call_to_a_silent_server_is_given_up(kind: Kind) -> None:
    async with silent_server(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", []) as url:
        error = await error_of(Face(kind, url, stall_seconds=0.2, give_up_seconds=0.5).call("state", STREAM))
    assert str(error) == "nothing came for 0.2 s"


async def test_comments_keep_a_connection(kind: Kind) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + _FIRST.encode())
        for _ in range(8):
            await asyncio.sleep(0.05)
            writer.write(b":\n")
        writer.write(_LAST.encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        collected = await Face(kind, url, stall_seconds=0.3).follow()
    assert (collected.text, collected.lost) == ("ab", [])


async def test_who_leaves_closes_the_connection(kind: Kind) -> None:
    body = Pieces([_FIRST, _LAST])
    gateway = Scripted(lambda _: httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=body))
    collected = await Face(kind, gateway).follow(until=lambda collected: bool(collected.events))
    assert collected.text == "a"
    gc.collect()
    await wait_until(lambda: body.closed)


# --- tokens


async def test_a_fresh_token_before_each_try(kind: Kind, pauses: list[float]) -> None:
    tokens = iter(["t1", "t2", "t3", "t4"])
    gateway = Scripted(broken, unreachable, refused(503), rest)
    await Face(kind, gateway, token=lambda refused: next(tokens), headers={"x-app": "1"}).follow()
    assert gateway.sent("authorization") == ["Bearer t1", "Bearer t2", "Bearer t3", "Bearer t4"]
    assert gateway.sent("x-app") == ["1"] * 4


async def test_an_api_key_goes_with_each_try_and_its_refusal_is_final(kind: Kind) -> None:
    gateway = Scripted(broken, refused(401))
    assert (await error_of(Face(kind, gateway, token="msk_key").follow())).status == 401
    assert gateway.sent("authorization") == ["Bearer msk_key"] * 2


@pytest.mark.parametrize("status", [401, 403])
async def test_an_expired_token_is_renewed_at_once_and_a_second_refusal_is_final(
    kind: Kind, status: int, pauses: list[float]
) -> None:
    seen: list[bool] = []

    def fresh(was_refused: bool) -> str:
        seen.append(was_refused)
        return f"t{len(seen)}"

    gateway = Scripted(
        broken, refused(status), streaming(token("1-2", "b"), cut=True), refused(status), refused(status)
    )
    face = Face(kind, gateway, token=fresh)
    assert (await error_of(face.follow())).status == status
    assert seen == [False, False, True, False, True]
    assert pauses[1] == pauses[3] == 0.0


async def test_a_token_function_that_fails_is_tried_again(kind: Kind, pauses: list[float]) -> None:
    calls: list[bool] = []

    def flaky(was_refused: bool) -> str | None:
        calls.append(was_refused)
        if len(calls) < 3:
            raise OSError("the login is away")
        return None

    gateway = Scripted(whole)
    collected = await Face(kind, gateway, token=flaky).follow()
    assert collected.text == "ab"
    assert ["the login is away" in str(lost.error) for lost in collected.lost] == [True, True]
    assert gateway.sent("authorization") == [None]


# --- calls


async def test_create_has_one_key_however_often_it_is_tried(kind: Kind, pauses: list[float]) -> None:
    created = answering({"id": "s1", "status": "queued", "created_at": 1.0, "events_url": "/v1/streams/s1/events"})
    gateway = Scripted(unreachable, refused(503), created)
    face = Face(kind, gateway)
    stream = await face.call("create", "hi")
    assert (stream.id, stream.url) == ("s1", f"{SERVER}/v1/streams/s1")
    assert len(pauses) == 2
    keys = gateway.sent("idempotency-key")
    assert len(set(keys)) == 1
    assert len(keys) == 3
    assert {request.read() for request in gateway.requests} == {b'{"messages":[{"role":"user","content":"hi"}]}'}
    await face.call("create", {"messages": []}, idempotency_key="mine")
    assert gateway.sent("idempotency-key")[-1] == "mine"
    assert gateway.requests[-1].read() == b'{"messages":[]}'
    await face.call("create", "hi")
    assert gateway.sent("idempotency-key")[-1] not in (*keys, "mine")


async def test_ask_creates_and_follows(kind: Kind) -> None:
    gateway = Scripted(answering({"id": "s1", "status": "queued", "created_at": 1.0}), whole)
    assert (await Face(kind, gateway).ask("hi")).text == "ab"
    assert [f"{request.method} {request.url}" for request in gateway.requests] == [
        f"POST {SERVER}/v1/streams",
        f"GET {_EVENTS}",
    ]


_STATE = {
    "id": "s1",
    "status": "completed",
    "text": "ab",
    "tokens": 2,
    "attempt": 1,
    "model": "m",
    "finish_reason": "stop",
    "truncated": False,
    "usage": None,
    "error": None,
    "cancelled_by": None,
    "created_at": 1.0,
    "started_at": 1.1,
    "ended_at": 1.2,
    "metadata": {},
    "new": "field",
}
_RECEIPT = {
    "id": "s1",
    "status": "completed",
    "finish_reason": "stop",
    "metadata": {},
    "undelivered_tokens": 0,
    "generated": {"tokens": 2},
    "delivered": {"tokens": 2},
}


@pytest.mark.parametrize("stream", [STREAM, f"{SERVER}/v1/streams/{STREAM}", f"{_EVENTS}?tenant=7"])
async def test_cancel_receipt_and_state(kind: Kind, stream: str) -> None:
    gateway = Scripted(*[answering(_STATE)] * 3, answering(_RECEIPT))
    face = Face(kind, gateway)
    assert (await face.call("cancel", stream)).text == "ab"
    assert (await face.call("state", stream)).status == "completed"
    assert (await face.call("state", stream, wait_seconds=30)).tokens == 2
    assert (await face.call("receipt", stream)).generated == {"tokens": 2}
    query = "?tenant=7" if "?" in stream else ""
    base = f"{SERVER}/v1/streams/{STREAM}"
    assert [f"{request.method} {request.url}" for request in gateway.requests] == [
        f"POST {base}/cancel{query}",
        f"GET {base}{query}",
        f"GET {base}?wait=30{query.replace('?', '&')}",
        f"GET {base}/receipt{query}",
    ]
    assert [request.extensions["timeout"]["read"] for request in gateway.requests] == [40.0, 40.0, 70.0, 40.0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"detail":"max_tokens"}', "400: max_tokens"),
        ('{"error":{"message":"OpenAI\'s"}}', "400: OpenAI's"),
        ("<html>", "400: <html>"),
        ('{"detail":[1]}', '400: {"detail":[1]}'),
        ("null", "400: null"),
        ("x" * 99_999, "400: " + "x" * 495),
    ],
)
async def test_what_is_refused_says_why(kind: Kind, body: str, message: str) -> None:
    error = await error_of(Face(kind, Scripted(refused(400, body))).call("cancel", STREAM))
    assert (str(error), error.status, error.retryable) == (message, 400, False)


async def test_a_pause_that_would_be_too_long_is_not_begun(kind: Kind, pauses: list[float]) -> None:
    gateway = Scripted(refused(429, headers={"retry-after": "61"}))
    error = await error_of(Face(kind, gateway).call("receipt", STREAM))
    assert (error.status, error.retryable, error.retry_after_seconds) == (429, True, 61.0)
    assert pauses == []


@pytest.mark.parametrize("body", ["<html>", "[1]", "null", '{"id":"s1"}'])
async def test_an_answer_that_is_none_of_a_gateways(kind: Kind, body: str) -> None:
    error = await error_of(Face(kind, Scripted(refused(200, body))).call("state", STREAM))
    assert "did not answer as a gateway does" in str(error)
    assert not error.retryable


async def test_an_answer_that_breaks_off_is_fetched_again(kind: Kind, pauses: list[float]) -> None:
    half = streaming('{"id":"s1",', cut=True)
    assert (await Face(kind, Scripted(half, half, answering(_STATE))).call("state", STREAM)).text == "ab"
    assert len(pauses) == 2
