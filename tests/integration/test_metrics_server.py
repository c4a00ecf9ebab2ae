"""Clients of a metrics port cannot hold up its process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from shared import metrics_server
from shared.metrics_server import Answer, MetricsServer
from shared.settings import Settings
from tests.support.redis_server import free_port
from tests.support.waiting import wait_until


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    async def metrics() -> Answer:
        return Answer(b"midstream_x 1\n")

    async def healthz() -> Answer:
        return Answer(b"ok\n")

    server = MetricsServer({"/metrics": metrics, "/healthz": healthz}, Settings(metrics_port=min(free_port(), 65520)))
    url = await server.open()
    assert url is not None
    found = urlsplit(url).port
    assert found is not None
    yield found
    await server.close()


async def answer(port: int, request: bytes) -> bytes:
    """Returns everything received until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_only_metrics_and_health_are_served(port: int) -> None:
    found = await answer(port, b"GET /metrics?x=1 HTTP/1.1\r\n\r\n")
    assert b"midstream_x 1" in found
    for header in (b"cache-control: no-store", b"x-content-type-options: nosniff", b"referrer-policy: no-referrer"):
        assert found.count(b"\r\n" + header + b"\r\n") == 1
    assert (await answer(port, b"GET /healthz HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\nok\n")
    for request in (b"GET / HTTP/1.1\r\n\r\n", b"POST /metrics HTTP/1.1\r\n\r\n"):
        assert (await answer(port, request)).startswith(b"HTTP/1.1 404 ")


async def test_half_a_request_and_a_long_one_are_closed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "_SECONDS_MAX", 0.1)
    assert await answer(port, b"GET /metr") == b""
    monkeypatch.setattr(metrics_server, "_SECONDS_MAX", 60.0)
    assert await answer(port, b"GET /metrics HTTP/1.1\r\nx: " + b"x" * 20_000) == b""


async def test_connections_are_limited(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "_CONNECTIONS_MAX", 2)
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    healthz = b"GET /healthz HTTP/1.1\r\n\r\n"

    async def is_refused() -> bool:
        return await answer(port, healthz) == b""

    await wait_until(is_refused)
    for _, writer in silent:
        writer.close()

    async def is_served() -> bool:
        return not await is_refused()

    await wait_until(is_served)
