"""An access token in a URL, a header or a cookie is in no log, metric, trace, answer, page or Redis key, of ours or of a proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx2
import pytest
import pytest_asyncio
import websockets

from tests.support.guarded_gateway import KEYS, MODULE, TOKEN_KEYS
from tests.support.otlp import Collector
from tests.support.proxies import Kind, deployed
from tests.support.raw_http import exchange
from tests.support.redis_server import free_port
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"auth": "required", "token_keys": TOKEN_KEYS, "user_cookie": "user", "log_level": "debug"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def traced() -> AsyncIterator[tuple[System, Collector]]:
    async with (
        Collector() as collector,
        System(
            gateways=2, gateway_module=MODULE, gateway_settings=SETTINGS, environment=collector.environment()
        ) as system,
    ):
        yield system, collector


async def created(system: System) -> tuple[str, str]:
    """Returns the id of a stream that has ended, and its token."""
    answer = await system.http.post(
        f"{system.gateway_url()}/v1/streams",
        json={"messages": [{"role": "user", "content": "Hello"}], "simulate": {"tokens": 3}},
        headers={"authorization": "Bearer tk_alice"},
    )
    stream_id, token = answer.json()["id"], answer.json()["access_token"]
    done = await system.http.get(
        f"{system.gateway_url()}/v1/streams/{stream_id}?wait=20", headers={"authorization": f"Bearer {token}"}
    )
    assert done.json()["status"] == "completed"
    return stream_id, token


async def asked_everywhere(system: System, stream_id: str, token: str) -> list[str]:
    """Uses a token, the right way and the wrong way, wherever one may stand. Returns all that was answered."""
    shown: list[str] = []
    stream, query = f"/v1/streams/{stream_id}", f"access_token={token}"
    paths = [
        *(f"{stream}{tail}?{query}" for tail in ("", "/events", "/text", "/receipt", "/ws", "/nothing")),
        f"{stream}/events?{query}&last_event_id=wrong",
        f"{stream}/text?{query}&after_bytes=-1",
        f"{stream}?wait=x&access%5Ftoken={token}",
        f"{stream}?{query}&{query}x",
        f"{stream}?{query}x",
        f"/v1/probe?{query}&events=1&interval_ms=0",
        f"/v1/probe?{query}&events=-1",
        f"/v1/chat/completions/chatcmpl-{stream_id}/events?{query}",
        f"/v1/responses/resp_{stream_id}?{query}&starting_after=x",
        f"/api/chat/x/stream?ended=x&{query}",
        f"/stream?{query}&prompt=x",
        *(f"{path}?{query}" for path in ("/", "/chat", "/docs", "/login", "/metrics", "/nothing", "/v1/overview", "/console/none.js")),
    ]  # fmt: skip
    for path in paths:
        async with system.http.stream("GET", system.gateway_url() + path, headers={"accept": "*/*"}) as answer:
            assert answer.headers["referrer-policy"] == "no-referrer", path
            shown += [str(answer.headers), (await answer.aread()).decode()]
    for headers in (
        {"authorization": f"Bearer {token}"},
        {"authorization": f"Bearer {token}x"},
        {"authorization": token},
        {"cookie": f"midstream_token={token}"},
        {"cookie": f"midstream_token={token}x; user={token}"},
    ):
        for path in (stream, f"{stream}/events", "/v1/probe?events=1&interval_ms=0", "/nothing"):
            answer = await system.http.get(system.gateway_url() + path, headers=headers)
            shown += [str(answer.headers), answer.text]
        answer = await system.http.post(f"{system.gateway_url()}{stream}/cancel", headers=headers)
        shown.append(answer.text)
    for path in (f"{stream}/ws?{query}", f"{stream}/ws?{query}x", f"/nothing?{query}"):
        url = f"ws://127.0.0.1:{system.gateway_port()}{path}"
        with suppress(websockets.WebSocketException):
            async with websockets.connect(url) as socket:
                async for message in socket:
                    shown.append(str(message))
    await system.http.post(f"{system.gateway_url()}/login", data={"key": token})
    shown.append((await exchange(system.gateway_port(), f"GET {stream}?{query} HTTP/9.9\r\n\r\n".encode())).decode())
    shown.append((await exchange(system.gateway_port(), f"GET {stream}?{query} HTTP/1.1\r\n: \r\n\r\n".encode())).decode())  # fmt: skip
    return shown


async def test_a_token_is_in_no_output(traced: tuple[System, Collector]) -> None:
    system, collector = traced
    stream_id, token = await created(system)
    secret = token.rpartition(".")[2]
    shown = await asked_everywhere(system, stream_id, token)
    spans = len(collector.spans)
    await wait_until(lambda: len(collector.spans) > max(3, spans - 1), what="the traces have come")
    root = {"authorization": "Bearer tk_root"}
    assert "root" in KEYS
    places = {
        "an answer": "".join(shown),
        "the logs": "".join(process.logged() for process in (*system.gateways, *system.workers)),
        "the metrics": (await system.http.get(f"{system.gateway_url()}/metrics", headers=root)).text,
        "the overview": (await system.http.get(f"{system.gateway_url()}/v1/overview", headers=root)).text,
        "the traces": "".join(body.decode("utf-8", "replace") for body in collector.bodies),
    }
    stored = []
    for key in await system.commands.keys("*"):
        kind = await system.commands.type(key)
        read = {b"stream": system.commands.xrange, b"string": system.commands.get, b"hash": system.commands.hgetall}
        stored.append(repr((key, await read[kind](key) if kind in read else "")))
    places["Redis"] = "".join(stored)
    assert all(places.values())
    for place, text in places.items():
        for looked_for in (secret, TOKEN_KEYS, "tk_root", "tk_alice"):
            at = text.find(looked_for)
            assert at < 0, f"in {place}: {text[max(0, at - 200) : at + 100]}"


@pytest.mark.parametrize("kind", ["nginx", "caddy", "haproxy"])
async def test_a_proxy_does_not_log_a_token(traced: tuple[System, Collector], kind: Kind) -> None:
    """Neither while gateways answer, nor when none can be reached, nor when one breaks off."""
    system, _ = traced
    stream_id, token = await created(system)
    path = f"/v1/streams/{stream_id}/events?access_token={token}"
    with deployed(kind, system.gateway_ports) as proxy:
        answer = await system.http.get(proxy.url + path)
        assert answer.status_code == 200
        await system.http.get(f"{proxy.url}/nothing?access_token={token}")
        logged = proxy.logged()

    async def broken_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(broken_off, "127.0.0.1", 0) as broken:
        for ports in ((free_port(), free_port()), (broken.sockets[0].getsockname()[1],) * 2):
            with deployed(kind, ports) as proxy:
                for _ in range(2):
                    with suppress(httpx2.HTTPError):
                        await system.http.get(proxy.url + path)
                logged += proxy.logged()
    assert token not in logged
    assert token.rpartition(".")[2] not in logged
