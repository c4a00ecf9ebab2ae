"""EventSource libraries that people use, each as in its documentation, over many connections.

The gateway ends every connection after half a second: each library must reconnect by itself, with the last id.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import pytest_asyncio
from httpx_sse import ServerSentEvent, aconnect_sse
from playwright.async_api import Browser

from shared.sse import Message
from tests.support.cutting import CuttingProxy
from tests.support.npm import Node, bundled, clients
from tests.support.system import System, answer_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANSWER = {"tokens": 90, "tokens_per_second": 45}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    await asyncio.to_thread(clients)  # before any answer begins
    settings = {"connection_seconds": 0.5, "retry_milliseconds": 100}
    async with System(gateway_settings=settings) as system:
        yield system


async def expect_whole(system: System, stream_id: str, messages: list[Message]) -> None:
    """Checks that the client got every event once and in order, over all its connections."""
    answer = answer_of(messages)
    state = await system.state(stream_id)
    assert len(answer.tokens) == ANSWER["tokens"]
    assert answer.text == state["text"]
    assert answer.end == "done"
    assert answer.end_data["usage"] == state["usage"]


@pytest.mark.parametrize("package", ["eventsource", "eventsource-v2"])
async def test_eventsource_of_npm(system: System, package: str) -> None:
    reader = await Node.run("eventsource.mjs", package)
    await reader.until_ready()
    stream_id = await system.create(package, simulate=ANSWER)
    reader.write(system.events_url(stream_id))
    lines = await reader.until_end()
    assert sum("opened" in one for one in lines) >= 3
    assert lines[-1] == {"closed": True, "status": 204}, "it asked for more after the end, and gave up for good"
    await expect_whole(system, stream_id, [Message(**one) for one in lines if "event" in one])


@asynccontextmanager
async def page_with(browser: Browser, origin: str, script: str) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    """A page of this origin, as what a bundled script's `followed` makes of a stream's URL."""
    page = await browser.new_page()
    try:
        await page.goto(f"{origin}/healthz")
        await page.evaluate(await asyncio.to_thread(bundled, script))
        yield lambda url: asyncio.wait_for(page.evaluate("url => followed(url)", url), 60)
    finally:
        await page.close()


async def test_fetch_event_source_of_microsoft(system: System, browser: Browser) -> None:
    async with page_with(browser, system.gateway_url(), "fetch_event_source.js") as followed:
        stream_id = await system.create("microsoft", simulate=ANSWER)
        seen = await followed(system.events_url(stream_id))
    assert seen["connections"] >= 3
    await expect_whole(system, stream_id, [Message(*one) for one in seen["received"]])


async def test_event_source_polyfill(system: System, browser: Browser) -> None:
    """It sends its place as a parameter: `lastEventId`."""
    async with page_with(browser, system.gateway_url(), "polyfill.js") as followed:
        stream_id = await system.create("polyfill", simulate=ANSWER)
        seen = await followed(system.events_url(stream_id))
    assert seen["connections"] >= 2
    assert any("lastEventId=1-" in url for url in seen["urls"])
    await expect_whole(system, stream_id, [Message(*one) for one in seen["received"]])


async def test_event_source_polyfill_asks_for_one_answer(system: System, browser: Browser) -> None:
    before = len([key async for key in system.commands.scan_iter("*:log")])
    async with page_with(browser, system.gateway_url(), "polyfill.js") as followed:
        seen = await followed(f"{system.gateway_url()}/stream?prompt=a%20question")
    assert seen["connections"] >= 2
    assert len([key async for key in system.commands.scan_iter("*:log")]) == before + 1
    ids = [event_id for event_id, _, data in seen["received"] if '"token"' in data]
    assert [int(event_id.rpartition("-")[2]) for event_id in ids] == list(range(1, len(ids) + 1))


@pytest.mark.parametrize("client", ["eventsource", "eventsource-v2", "fetch_event_source.js"])
async def test_no_event_is_lost_with_a_connection_cut_inside_it(system: System, browser: Browser, client: str) -> None:
    """Some clients take an event's id as soon as its line has come, and the event is never completed."""
    stream_id = await system.create(f"cut {client}", simulate=ANSWER)
    await system.until_status(stream_id, "completed")
    path = f"/v1/streams/{stream_id}/events"
    async with CuttingProxy(system.gateway_port(), seed=1) as proxy:
        if client.endswith(".js"):
            async with page_with(browser, proxy.url, client) as followed:
                received = [Message(*one) for one in (await followed(proxy.url + path))["received"]]
        else:
            reader = await Node.run("eventsource.mjs", client)
            reader.write(proxy.url + path)
            lines = await reader.until_end()
            received = [Message(**one) for one in lines if "event" in one]
    assert proxy.cuts >= 5
    await expect_whole(system, stream_id, received)


async def test_httpx_sse(system: System) -> None:
    stream_id = await system.create("httpx-sse", simulate=ANSWER)
    received: list[ServerSentEvent] = []
    last_id, connections = "", 0
    async with httpx.AsyncClient(timeout=10.0, trust_env=False) as client:
        while not received or received[-1].event != "done":
            headers = {"last-event-id": last_id} if last_id else {}
            async with aconnect_sse(client, "GET", system.events_url(stream_id), headers=headers) as source:
                connections += 1
                async for one in source.aiter_sse():
                    assert one.data, "an event without data"
                    received.append(one)
                    last_id = one.id or last_id
            await asyncio.sleep((one.retry or 0) / 1000)
    assert connections >= 3
    await expect_whole(system, stream_id, [Message(one.id, one.event, one.data) for one in received])
