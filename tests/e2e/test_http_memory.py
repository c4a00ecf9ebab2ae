"""The memory that clients can occupy is limited, and freed when they leave: measured before, during and after each attack."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from tests.support.memory import resident_megabytes
from tests.support.raw_http import RawHttp, exchange, statuses
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOST = b"Host: x\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
MEGABYTES = 30
"""The limit for each attack; without limits in the gateway each takes several times as much."""
GROWN_MEGABYTES_MAX = 10.0
CLOSED_CONNECTIONS = 4_000
"""Without care these were 140 MB, until the garbage collector ran."""
AT_ONCE = 400


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with System() as system:
        for _ in range(3):  # after this the process has allocated what it always keeps
            await asyncio.gather(*(_keep_alive(system) for _ in range(AT_ONCE)))
        yield system


async def _keep_alive(system: System) -> None:
    async with RawHttp(system.gateway_port()) as raw:
        await raw.send(HEALTH)
        await raw.read_until(b"}")


async def _is_back(system: System, before: float) -> None:
    await wait_until(
        lambda: resident_megabytes(system.gateways[0].pid) < before + GROWN_MEGABYTES_MAX,
        what=f"the gateway's memory is back at {before:.0f} MB, and not at {resident_megabytes(system.gateways[0].pid):.0f}",
    )


@pytest.mark.parametrize(
    ("begun", "again"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n", b"A: " + b"a" * 8000 + b"\r\n", id="headers"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"a" * 8000, id="one-header"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a" * 8000, b"a" * 8000, id="one-name"),
        pytest.param(b"GET /", b"a" * 8000, id="url"),
        pytest.param(CHUNKED + b"0\r\n", b"A: b\r\n" * 1000, id="trailers"),
        pytest.param(CHUNKED + b"1;", b"a" * 8000, id="extension"),
        pytest.param(CHUNKED, b"1;aaaa\r\nx\r\n" * 1000, id="extensions"),
        pytest.param(CHUNKED, b"1\r\nx\r\n" * 1000, id="chunks"),
        pytest.param(b"", b"\r\n" * 4000, id="empty-lines"),
        pytest.param(
            b"GET /v1/streams/x/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nA: ",
            b"a" * 8000,
            id="handshake",
        ),
    ],
)
async def test_endless_requests(system: System, begun: bytes, again: bytes) -> None:
    before = resident_megabytes(system.gateways[0].pid)

    async def attack() -> None:
        async with RawHttp(system.gateway_port()) as raw:
            await raw.send(begun)
            for _ in range(MEGABYTES * 1_000_000 // len(again) // 10):
                await raw.send(again * 10)

    attacks = [asyncio.create_task(attack()) for _ in range(3)]
    slowest, most = 0.0, before
    while not all(task.done() for task in attacks):
        began = asyncio.get_running_loop().time()
        assert statuses(await exchange(system.gateway_port(), HEALTH[:-2] + b"Connection: close\r\n\r\n")) == [200]
        slowest = max(slowest, asyncio.get_running_loop().time() - began)
        most = max(most, resident_megabytes(system.gateways[0].pid))
    await asyncio.gather(*attacks)
    assert most < before + GROWN_MEGABYTES_MAX, f"{most:.0f} MB, and {before:.0f} before"
    assert slowest < 1.0, f"somebody else waited {slowest:.2f} s"
    await _is_back(system, before)


async def test_unfinished_heads(system: System) -> None:
    """Each connection occupies no more than the limit while it is open, and nothing afterwards."""
    before = resident_megabytes(system.gateways[0].pid)
    async with AsyncExitStack() as stack:
        for _ in range(50):
            raw = await stack.enter_async_context(RawHttp(system.gateway_port()))
            await raw.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + (b"A: " + b"a" * 15_000 + b"\r\n") * 4)
        await exchange(system.gateway_port(), HEALTH[:-2] + b"Connection: close\r\n\r\n")
        assert resident_megabytes(system.gateways[0].pid) < before + 50 * 0.2 + GROWN_MEGABYTES_MAX
    await _is_back(system, before)


async def test_thousands_of_pipelined_requests_behind_a_waiting_one(system: System) -> None:
    before = resident_megabytes(system.gateways[0].pid)
    stream_id = await system.create(simulate={"tokens": 1000, "tokens_per_second": 1})
    waits = b"GET /v1/streams/%b?wait=600 HTTP/1.1\r\nHost: x\r\n\r\n" % stream_id.encode()
    async with AsyncExitStack() as stack:
        sending = []
        for _ in range(20):
            raw = await stack.enter_async_context(RawHttp(system.gateway_port()))
            sending.append(asyncio.create_task(raw.send(waits + HEALTH * 30_000)))
        await asyncio.gather(*sending)  # the gateway reads and drops all of it
        began = asyncio.get_running_loop().time()
        await exchange(system.gateway_port(), HEALTH[:-2] + b"Connection: close\r\n\r\n")
        assert asyncio.get_running_loop().time() - began < 5, "600,000 answers would take longer"
        assert resident_megabytes(system.gateways[0].pid) < before + GROWN_MEGABYTES_MAX
    await _is_back(system, before)


async def test_closed_keep_alive_connections(system: System) -> None:
    before = resident_megabytes(system.gateways[0].pid)
    for _ in range(CLOSED_CONNECTIONS // AT_ONCE):
        await asyncio.gather(*(_keep_alive(system) for _ in range(AT_ONCE)))
    await _is_back(system, before)


@pytest.mark.parametrize("leaves", ["close", "reset"])
@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 15_000 + b"\r\n\r\n", id="refused"),
        pytest.param(b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + b"x" * 60_000, id="body"),
        pytest.param(b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nContent-Length: 60001\r\n\r\n" + b"x" * 60_000, id="half-body"),
        pytest.param(b"GET /v1/streams/x/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                     b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nA: " + b"a" * 8000 + b"\r\n\r\n", id="websocket"),
        pytest.param(b"GET /v1/streams/x/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                     b"Sec-WebSocket-Key: bad\r\nA: " + b"a" * 8000 + b"\r\n\r\n", id="handshake"),
    ],
)  # fmt: skip
async def test_memory_of_a_closed_connection_is_freed_at_once(system: System, request_: bytes, leaves: str) -> None:
    """If it were kept until the garbage collector runs, it would be 9 to 60 MB."""
    before = resident_megabytes(system.gateways[0].pid)

    async def connect_and_leave() -> None:
        async with RawHttp(system.gateway_port()) as raw:
            await raw.send(request_)
            if not request_.endswith(b"x") or b"60000" in request_:
                await raw.read_until(b"\r\n\r\n")
            if leaves == "reset":
                raw.reset()

    for _ in range(10):
        await asyncio.gather(*(connect_and_leave() for _ in range(100)))
    await _is_back(system, before)
