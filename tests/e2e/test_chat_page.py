"""The chat at `/chat`, in Chromium: whatever is done to its connection, it has the answer, whole and once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, expect

from tests.support.browser import Opened
from tests.support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")
_SHOW_MS = 20_000
_WHOLE = "none lost, none doubled, and the text equals what the server keeps."


@asynccontextmanager
async def chat(browser: Browser, system: System) -> AsyncIterator[Page]:
    """The page; its complaints, but for those of lost connections, fail the test when it is left."""
    one = await Opened.at(browser, f"{system.gateway_url()}/chat")
    one.page.set_default_timeout(_SHOW_MS)
    yield one.page
    one.complaints = [told for told in one.complaints if "ERR_" not in told]
    await one.close(host=urlsplit(system.gateway_url()).netloc)


async def ask(page: Page, *, tokens: int, pace: int, on_interrupt: str = "restart") -> None:
    await page.get_by_text("Options").click()
    await page.get_by_label("Simulated tokens").fill(str(tokens))
    await page.get_by_label("per second").fill(str(pace))
    await page.get_by_label("When a worker dies").select_option(on_interrupt)
    await page.get_by_label("Your question").fill("Tell me a story.")
    await page.get_by_label("Your question").press("Enter")


async def until_tokens(page: Page, count: int) -> None:
    await page.wait_for_function(
        "count => document.querySelector('.answer:last-of-type')?.textContent.split(' ').length > count", arg=count
    )


async def whole(page: Page, system: System) -> dict[str, Any]:
    """Wait for the end; the state, whose text must be the page's, to the letter."""
    await expect(page.locator(".story").last).to_contain_text(_WHOLE, timeout=_SHOW_MS)
    state = await system.state(urlsplit(page.url).fragment)
    assert await page.locator(".answer").last.text_content() == state["text"]
    return state


async def test_reloaded_in_mid_answer(browser: Browser) -> None:
    async with System() as system, chat(browser, system) as page:
        await ask(page, tokens=120, pace=30)
        for seen in (15, 60):
            await until_tokens(page, seen)
            await page.reload()
        assert (await whole(page, system))["tokens"] == 120
        await expect(page.locator(".story")).to_contain_text("loaded anew")
        await expect(page.locator(".story")).to_contain_text("120 tokens over 3 connections")
        assert await system.metric("midstream_streams_created_total") == 1
        assert await system.metric("midstream_resumes_total") == 2
        await page.reload()  # and once more after its end: nothing is asked for again
        await expect(page.locator(".story")).to_contain_text(_WHOLE)
        assert await system.metric("midstream_reader_closes_total") == 3


async def test_connection_cut(browser: Browser) -> None:
    async with System() as system, chat(browser, system) as page:
        await ask(page, tokens=150, pace=30)
        await until_tokens(page, 15)
        await page.get_by_role("button", name="Cut the connection").click()
        await expect(page.locator("#status")).to_contain_text("The connection was lost")
        await expect(page.locator(".story")).to_contain_text("Connected again, going on after 1-")
        assert (await whole(page, system))["tokens"] == 150
        assert await page.locator(".answer .cut").count() == 1
        assert await system.metric("midstream_resumes_total") == 1


async def test_gateway_killed(browser: Browser) -> None:
    async with System(settings={"retry_milliseconds": 200}) as system, chat(browser, system) as page:
        await ask(page, tokens=150, pace=30)
        await until_tokens(page, 15)
        system.gateways[0].kill()
        await system.start_gateway(0)
        assert (await whole(page, system))["tokens"] == 150


@pytest.mark.parametrize("policy", ["restart", "continue"])
async def test_worker_killed(browser: Browser, policy: str) -> None:
    async with System(workers=2, settings={"lease_seconds": 1}) as system, chat(browser, system) as page:
        await ask(page, tokens=100, pace=30, on_interrupt=policy)
        await until_tokens(page, 15)
        (await system.worker_of(urlsplit(page.url).fragment)).kill()
        state = await whole(page, system)
        assert (state["tokens"], state["attempt"]) == (100, 2)
        await expect(page.locator(".story")).to_contain_text("Attempt 2, since the last one ended by worker_lost")


async def test_stopped_and_asked_again(browser: Browser) -> None:
    async with System() as system, chat(browser, system) as page:
        await ask(page, tokens=2000, pace=40)
        await until_tokens(page, 10)
        first = urlsplit(page.url).fragment
        await page.get_by_role("button", name="Stop").click()
        await expect(page.locator(".story")).to_contain_text("It was cancelled.")
        assert (await system.state(first))["status"] == "cancelled"
        await page.get_by_text("Options").click()
        await ask(page, tokens=20, pace=1000)
        await expect(page.locator("article")).to_have_count(2)
        assert (await whole(page, system))["tokens"] == 20
        assert urlsplit(page.url).fragment != first
        await page.get_by_role("button", name="New chat").click()
        await expect(page.locator("article")).to_have_count(0)


async def test_opened_by_a_link(browser: Browser) -> None:
    async with System() as system:
        stream_id = await system.create(simulate={"tokens": 60, "tokens_per_second": 30})
        one = await Opened.at(browser, f"{system.gateway_url()}/chat#{stream_id}")
        assert (await whole(one.page, system))["tokens"] == 60
        await one.page.goto("about:blank")
        await one.page.goto(f"{system.gateway_url()}/chat#{'0' * 36}")
        await expect(one.page.locator(".story")).to_contain_text("has expired", timeout=_SHOW_MS)
        await one.page.close()
