"""EventSource libraries that people use, each as in its documentation, over many connections.

The gateway ends every connection after half a second: each library must reconnect by itself, with the last id.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from httpx_sse import ServerSentEvent, aconnect_sse
from playwright.async_api import async_playwright

from shared.sse import Message
from tests.support.needs import needs
from tests.support.npm import Node, bundled, clients
from tests.support.system import System, answer_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANSWER = {"tokens": 90, "tokens_per_second": 45}
_ARGUMENTS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync".split()


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


async def test_eventsource_of_npm(system: System) -> None:
    stream_id = await system.create("npm", simulate=ANSWER)
    reader = await Node.run("eventsource.mjs", system.events_url(stream_id))
    lines = await reader.until_end()
    assert sum("opened" in one for one in lines) >= 3
    assert lines[-1] == {"closed": True, "status": 204}, "it asked for more after the end, and gave up for good"
    await expect_whole(system, stream_id, [Message(**one) for one in lines if "event" in one])


async def test_fetch_event_source_of_microsoft(system: System) -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    needs("chromium (Debian: apt install chromium)", program)
    script = bundled("fetch_event_source.js")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        try:
            page = await browser.new_page()
            await page.goto(f"{system.gateway_url()}/healthz")
            await page.evaluate(script)
            stream_id = await system.create("microsoft", simulate=ANSWER)
            seen = await page.evaluate("url => followed(url)", system.events_url(stream_id))
        finally:
            await browser.close()
    assert seen["connections"] >= 3
    await expect_whole(system, stream_id, [Message(*one) for one in seen["received"]])


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
