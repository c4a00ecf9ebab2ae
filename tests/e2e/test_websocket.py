"""The WebSocket face with the `websockets` library, Chromium, and a client that breaks the rules."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import async_playwright
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from shared.ids import new_stream_id
from tests.support.needs import needs
from tests.support.raw_websocket import CLOSE, PING, TEXT, RawWebSocket
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAST = {"tokens": 200, "tokens_per_second": 400}
SLOW = {"tokens": 400, "tokens_per_second": 40}
_ARGUMENTS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync".split()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with System(gateways=2, settings={"ended_ttl_seconds": 3600}) as system:
        yield system


def path_of(stream_id: str, query: str = "") -> str:
    return f"/v1/streams/{stream_id}/ws{query}"


async def raw(system: System, stream_id: str, *, read_bytes_max: int = 1 << 16) -> RawWebSocket:
    port = system.gateway_port()
    return await RawWebSocket.open("127.0.0.1", port, path_of(stream_id), read_bytes_max=read_bytes_max)


def connected(system: System, stream_id: str, query: str = "", *, gateway: int = 0) -> connect:
    url = system.gateway_url(gateway).replace("http", "ws", 1) + path_of(stream_id, query)
    return connect(url, proxy=None, open_timeout=10)


async def rest_of(socket: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """Returns every message until the connection is closed, and its close code."""
    messages = []
    try:
        async with asyncio.timeout(30):
            while True:
                messages.append(json.loads(await socket.recv()))
    except ConnectionClosed as closed:
        return messages, closed.rcvd.code if closed.rcvd else 1006


async def read(system: System, stream_id: str, query: str = "", *, gateway: int = 0) -> tuple[list[Any], int]:
    async with connected(system, stream_id, query, gateway=gateway) as socket:
        return await rest_of(socket)


async def test_the_same_events_as_server_sent_events(system: System) -> None:
    stream_id = await system.create("same ä ✓", simulate=FAST)
    (messages, code), sse = await asyncio.gather(
        read(system, stream_id), system.follow(stream_id, gateway=1).until_end()
    )
    assert code == 1000
    received = [(one["id"], one["event"], one["data"]) for one in messages if one["event"] != "live"]
    assert received == [(one.id, one.event, json.loads(one.data)) for one in sse.messages if one.event != "live"]
    assert [one["id"] for one in messages if one["event"] == "live"] == [None]
    replayed, code = await read(system, stream_id, gateway=1)
    assert ([tuple(one.values()) for one in replayed], code) == (received, 1000)


async def test_resumed(system: System) -> None:
    stream_id = await system.create("resume", simulate=FAST)
    await system.until_status(stream_id, "completed")
    whole, _ = await read(system, stream_id)
    for offset in (0, 57, 200):
        assert await read(system, stream_id, f"?last_event_id=1-{offset}", gateway=1) == (whole[offset + 1 :], 1000)
    assert await read(system, stream_id, "?last_event_id=1-201") == ([], 1000), "nothing more, and it says so"
    now, _ = await read(system, stream_id, "?from=now")
    assert [one["event"] for one in now] == ["done"]


async def test_cancel(system: System) -> None:
    stream_id = await system.create("cancel", simulate=SLOW)
    async with connected(system, stream_id) as socket:
        messages = [json.loads(await socket.recv()) for _ in range(10)]
        await socket.send('{"type": "cancel"}')
        rest, code = await rest_of(socket)
    assert rest[-1]["event"] == "cancelled"
    assert rest[-1]["data"] == {"by": "client"}
    assert code == 1000
    state = await system.state(stream_id)
    assert state["status"] == "cancelled"
    tokens = [one["data"]["token"] for one in messages + rest if one["event"] == "message"]
    assert "".join(tokens) == state["text"]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("cancel", "JSON"),
        ("[]", "cancel"),
        ('"cancel"', "cancel"),
        ('{"type": "stop"}', "'stop'"),
        ("{}", "None"),
        (b'{"type": "cancel"}', "text, not binary"),
    ],
)
async def test_unknown_messages_are_refused(system: System, message: str | bytes, named: str) -> None:
    stream_id = await system.create("malformed", simulate=SLOW)
    async with connected(system, stream_id) as socket:
        await socket.recv()
        await socket.send(message)
        messages, code = await rest_of(socket)
        assert code == 4400
        assert socket.close_reason
        (error,) = [one for one in messages if one["event"] == "error"]
        assert error == messages[-1]
        assert error["data"]["status"] == 400
        assert named in error["data"]["detail"]
    assert (await system.state(stream_id))["status"] in ("queued", "running"), "the stream has not suffered"
    await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")


async def test_a_message_that_is_too_long(system: System) -> None:
    stream_id = await system.create("long", simulate=SLOW)
    async with connected(system, stream_id) as socket:
        await socket.send(json.dumps({"type": "cancel", "because": "x" * 5000}))
        assert (await rest_of(socket))[1] == 1009
    await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")


async def test_permanent_errors_have_their_own_close_codes(system: System) -> None:
    stream_id = await system.create("codes", simulate={"tokens": 1})
    old = new_stream_id(now=0)
    for path_id, query, status in (
        (new_stream_id(), "", 404),
        ("nonsense", "", 404),
        (old, "", 410),
        (stream_id, "?last_event_id=x", 400),
        (stream_id, "?from=tomorrow", 400),
    ):
        (error,), code = await read(system, path_id, query)
        assert code == 4000 + status
        assert error["event"] == "error"
        plain = await system.http.get(system.events_url(path_id) + query)
        assert error["data"] == {"status": plain.status_code, "detail": plain.json()["detail"]}
        assert plain.status_code == status


async def test_temporary_errors_are_refused_in_the_handshake(system: System) -> None:
    async with System(gateway_settings={"connections_max": 1}) as own:
        stream_id = await own.create("full", simulate=SLOW)
        async with connected(own, stream_id) as socket:
            await socket.recv()
            with pytest.raises(InvalidStatus) as refused:
                await read(own, stream_id)
            response = refused.value.response
            assert response.status_code == 503
            assert response.headers["retry-after"] == "2"
            assert json.loads(response.body)["status"] == 503


async def test_other_paths(system: System) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{system.gateway_url().replace('http', 'ws', 1)}/v1/streams", proxy=None):
            pass
    assert refused.value.response.status_code == 404
    stream_id = await system.create("426", simulate={"tokens": 1})
    response = await system.http.get(system.gateway_url() + path_of(stream_id))
    assert (response.status_code, response.headers["upgrade"]) == (426, "websocket")


async def test_rotated_and_reconnected(system: System) -> None:
    """Rotated every half second: 1012 and when to reconnect; the messages have no hole and no repetition."""
    async with System(gateway_settings={"connection_seconds": 0.5, "retry_milliseconds": 100}) as own:
        stream_id = await own.create("rotated", simulate={"tokens": 80, "tokens_per_second": 40})
        messages: list[dict[str, Any]] = []
        codes: list[int] = []
        last_id = ""
        while not codes or codes[-1] != 1000:
            got, code = await read(own, stream_id, f"?last_event_id={last_id}")
            messages += got
            codes.append(code)
            if code != 1000:
                assert got[-1]["event"] == "retry"
                await asyncio.sleep(got[-1]["data"]["milliseconds"] / 1000)
            last_id = next((one["id"] for one in reversed(messages) if one["id"]), "")
        assert set(codes[:-1]) == {1012}
        assert len(codes) >= 3
        tokens = [one for one in messages if one["event"] == "message"]
        assert [one["id"] for one in tokens] == [f"1-{offset}" for offset in range(1, 81)]
        assert "".join(one["data"]["token"] for one in tokens) == (await own.state(stream_id))["text"]


@pytest.mark.alone("it leaves within a second or so")
async def test_drained() -> None:
    """At SIGTERM all readers are told to reconnect, and the process ends within a second or so, also with a client that does not read."""
    async with System() as own:
        stream_id = await own.create("drained", simulate=SLOW)
        stuck = await raw(own, stream_id)
        async with connected(own, stream_id) as socket:
            await socket.recv()
            stopped_at = time.monotonic()
            own.gateways[0].send(signal.SIGTERM)
            messages, code = await rest_of(socket)
            assert (messages[-1]["event"], code) == ("retry", 1012)
        assert await own.gateways[0].exit_code() == 0
        assert time.monotonic() - stopped_at < 2.5
        assert [kind for kind, _ in [one async for one in stuck.frames()]][-1] == CLOSE
        stuck.close()


async def test_a_reader_that_leaves_is_removed(system: System) -> None:
    stream_id = await system.create("leave", simulate=SLOW)
    async with connected(system, stream_id) as socket:
        await socket.recv()
        assert await system.metric("midstream_readers") == 1
    leaving = await raw(system, stream_id)
    leaving.writer.transport.abort()

    async def nobody() -> bool:
        return await system.metric("midstream_readers") == 0

    await wait_until(nobody, what="the readers are forgotten")
    await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")


async def test_a_client_that_does_not_read_delays_nobody_and_loses_nothing(system: System) -> None:
    """The reader falls out of the ring, delays no other reader, and gets everything when it reads again."""
    stream_id = await system.create("backpressure", simulate={"tokens": 40_000, "tokens_per_second": 20_000})
    slow = await raw(system, stream_id, read_bytes_max=4096)
    other = await system.follow(stream_id).until_end()
    assert len(other.tokens) == 40_000
    assert await system.metric("midstream_ring_fallouts_total") >= 1
    ids, code = [], 0
    async for kind, payload in slow.frames():
        if kind == TEXT:
            one = json.loads(payload)
            if one["event"] == "message":
                ids.append(one["id"])
        elif kind == CLOSE:
            (code,) = struct.unpack(">H", payload[:2])
            slow.send(CLOSE, payload[:2])
    assert ids == [f"1-{offset}" for offset in range(1, 40_001)]
    assert code == 1000
    slow.close()


async def test_pongs_for_a_client_that_does_not_read_do_not_accumulate(system: System) -> None:
    """Each ping needs a pong. The gateway stops reading from a client that does not read its pongs."""
    stream_id = await system.create("pings", simulate={"tokens": 5, "stall_after": 0})
    rude = await raw(system, stream_id, read_bytes_max=4096)
    sent = 0
    try:
        while sent < 64 << 20:
            for _ in range(500):
                rude.send(PING, b"x" * 125)
            sent += 500 * 131
            async with asyncio.timeout(1.0):
                await rude.writer.drain()
    except TimeoutError:
        pass
    assert sent < 32 << 20, "it went on to read"
    rude.writer.transport.abort()
    await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")


async def test_silence_is_checked_with_pings(system: System) -> None:
    """A client that answers stays connected; one that has disappeared is cut off."""
    async with System(gateway_settings={"keepalive_seconds": 1, "dead_peer_seconds": 1}) as own:
        stream_id = await own.create("pings", simulate={"tokens": 5, "stall_after": 0})
        silent = await raw(own, stream_id)
        async with connected(own, stream_id) as socket, asyncio.timeout(10):
            kinds = [(kind, payload) async for kind, payload in silent.frames()]
            assert PING in [kind for kind, _ in kinds]
            assert kinds[-1][0] == CLOSE
            assert struct.unpack(">H", kinds[-1][1][:2]) == (1011,)
            await (await socket.ping())  # this client has answered all the time, and is still connected
        silent.close()


async def test_a_cancel_while_redis_is_down(system: System) -> None:
    """The client gets an error and may try again, but only a limited number of times."""
    async with System(gateway_settings={"redis_wait_seconds": 0.5}) as own:
        stream_id = await own.create("away", simulate={"tokens": 5, "stall_after": 0})
        async with connected(own, stream_id) as socket:
            await socket.recv()
            own.redis.kill()
            for _ in range(16):
                await socket.send('{"type": "cancel"}')
            messages, code = await rest_of(socket)
        assert [one["data"]["status"] for one in messages if one["event"] == "error"] == [503] * 16
        assert code == 1008


async def test_chromium(system: System) -> None:
    """A page's own WebSocket: events, cancel, and the close codes that its script sees."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    needs("chromium (Debian: apt install chromium)", program)
    script = """([path, cancel_after]) => new Promise(resolve => {
        const received = [], socket = new WebSocket(path);
        socket.onmessage = event => {
            received.push(JSON.parse(event.data));
            if (received.length === cancel_after) socket.send(JSON.stringify({type: 'cancel'}));
        };
        socket.onclose = event => resolve([received, event.code, event.wasClean]);
    })"""
    whole, cancelled = [await system.create("chromium", simulate=one) for one in (FAST, SLOW)]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        try:
            page = await browser.new_page()
            await page.goto(f"{system.gateway_url()}/healthz")
            base = system.gateway_url().replace("http", "ws", 1)
            received, *closed = await page.evaluate(script, [base + path_of(whole), 0])
            assert closed == [1000, True]
            tokens = [one["data"]["token"] for one in received if one["event"] == "message"]
            assert "".join(tokens) == (await system.state(whole))["text"]
            received, *closed = await page.evaluate(script, [base + path_of(cancelled), 5])
            assert (received[-1]["event"], closed) == ("cancelled", [1000, True])
            _, *closed = await page.evaluate(script, [base + path_of(new_stream_id()), 0])
            assert closed == [4404, True]
        finally:
            await browser.close()
