"""The chat at `/chat`, in Chromium: whatever happens to its connection, it shows the complete answer once."""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, expect

from tests.support.browser import Opened
from tests.support.openai_server import OpenAIServer
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
_SHOW_MS = 20_000
_WHOLE = "none lost, none doubled, and the text equals what the server keeps."


@asynccontextmanager
async def chat(browser: Browser, system: System, **options: object) -> AsyncIterator[Page]:
    """Yields the page. Afterwards the test fails if the browser has logged errors other than lost connections."""
    one = await Opened.at(browser, f"{system.gateway_url()}/chat", **options)
    one.page.set_default_timeout(_SHOW_MS)
    yield one.page
    one.complaints = [
        complaint for complaint in one.complaints if "ERR_" not in complaint and "status of 502" not in complaint
    ]
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
    """Waits for the end, and returns the stream's state. AssertionError if the page shows another text."""
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
        await expect(page.locator(".story")).to_contain_text("The page was reloaded")
        await expect(page.locator(".story")).to_contain_text("120 tokens over 3 connections")
        assert await system.metric("midstream_streams_created_total") == 1
        assert await system.metric("midstream_resumes_total") == 2
        await page.reload()  # a reload after the end makes no new request
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
        how = {"restart": "starts again", "continue": "continues after token"}[policy]
        await expect(page.locator(".story")).to_contain_text(f"Its worker died or was stopped. Attempt 2 {how}")
        shown = await page.locator("main").inner_text()
        assert shown.count("Attempt 2") == 1, shown
        assert "worker_lost" not in shown


async def test_stopped_and_asked_again(browser: Browser) -> None:
    async with System() as system, chat(browser, system) as page:
        await ask(page, tokens=2000, pace=40)
        await until_tokens(page, 10)
        first = urlsplit(page.url).fragment
        await page.get_by_role("button", name="Stop").click()
        await expect(page.locator(".story")).to_contain_text("■ It was stopped.")
        assert await page.locator(".story .good").count() == 0
        assert (await system.state(first))["status"] == "cancelled"
        await page.get_by_text("Options").click()
        await ask(page, tokens=20, pace=1000)
        await expect(page.locator("article")).to_have_count(2)
        assert (await whole(page, system))["tokens"] == 20
        assert urlsplit(page.url).fragment != first
        await page.get_by_role("button", name="New chat").click()
        await expect(page.locator("article")).to_have_count(0)


async def test_the_end_of_the_answer_is_in_view(browser: Browser) -> None:
    """At the end of the page new text stays visible above the bar; on a phone the state, too."""
    async with System() as system, chat(browser, system, viewport={"width": 390, "height": 740}) as page:
        await ask(page, tokens=400, pace=400)
        # Not `click`, which scrolls up and down while it tries to hit what moves.
        await page.get_by_text("Options").dispatch_event("click")
        await whole(page, system)
        for seen in (".story .good", "#status", "#look"):
            await wait_until(partial(is_in_view, page, seen), what=f"{seen} is in view")
        await expect(page.locator("#status")).to_have_text("The answer is complete")
        await page.evaluate("scrollTo(0, 0)")  # further up the page does not scroll
        await ask(page, tokens=2000, pace=40)
        await until_tokens(page, 20)
        assert await is_in_view(page, "#status")
        await expect(page.locator("#controls > :not([hidden])")).to_have_count(3)
        tops = await page.locator("#controls > :not([hidden])").evaluate_all(
            "all => all.map(e => [e.offsetTop, e.offsetHeight])"
        )
        assert len({tuple(one) for one in tops}) == 1, tops  # on one line
        await page.evaluate("scrollTo(0, 0)")
        await page.get_by_role("button", name="Stop").click()
        await expect(page.locator(".story").last).to_contain_text("It was stopped")
        assert await page.evaluate("scrollY") == 0
        assert await is_in_view(page, "#status")


async def is_in_view(page: Page, selector: str) -> bool:
    """Returns whether an element is visible, and not covered by another one."""
    seen: bool = await page.locator(selector).evaluate(
        """e => { const r = e.getBoundingClientRect(), x = r.x + Math.min(r.width / 2, 40);
        return [r.y + 3, r.bottom - 3].every(y => e.contains(document.elementFromPoint(x, y))); }"""
    )
    return seen


async def test_enter_while_an_answer_arrives(browser: Browser) -> None:
    async with System() as system, chat(browser, system) as page:
        await ask(page, tokens=60, pace=30)
        await until_tokens(page, 5)
        question = page.get_by_label("Your question")
        await question.fill("And then?")
        await question.press("Enter")
        await expect(page.locator("#status")).to_contain_text("This answer still comes: stop it, or send when")
        await expect(page.get_by_role("button", name="Send")).to_be_disabled()
        assert await question.input_value() == "And then?"
        assert await page.locator("article").count() == 1
        await whole(page, system)
        await expect(page.get_by_role("button", name="Send")).to_be_enabled()
        await question.press("Enter")
        await expect(page.locator("article")).to_have_count(2)
        await expect(question).to_have_value("")


async def test_a_dead_worker_is_shown(browser: Browser) -> None:
    async with System(settings={"lease_seconds": 1}) as system, chat(browser, system) as page:
        await ask(page, tokens=80, pace=30)
        await until_tokens(page, 10)
        system.workers[0].kill()
        status = page.get_by_role("status").first
        await expect(status).to_have_text("Its worker has died: no other one runs")
        await system.start_worker(0)
        await whole(page, system)
        await expect(page.locator(".story")).to_contain_text("Its worker died or was stopped. Attempt 2 starts again")
        await expect(status).to_have_text("The answer is complete")


async def test_a_missing_worker_and_a_silent_provider_are_shown(browser: Browser) -> None:
    async with System() as system:
        stream_id = await system.create(simulate={"tokens": 50, "tokens_per_second": 100, "stall_after": 10})
        one = await Opened.at(browser, f"{system.gateway_url()}/chat#{stream_id}")
        status = one.page.get_by_role("status").first
        await expect(status).to_have_text(
            "No token comes: its worker is there, and waits for the model", timeout=_SHOW_MS
        )
        system.workers[0].send(signal.SIGTERM)
        await one.page.get_by_role("button", name="Stop").click()
        await expect(one.page.locator(".story")).to_contain_text("It was stopped", timeout=_SHOW_MS)
        system.workers[0].kill()
        await one.page.get_by_label("Your question").fill("Who is there?")
        await one.page.get_by_label("Your question").press("Enter")
        await expect(status).to_have_text("No worker runs: it waits for one", timeout=_SHOW_MS)
        await one.page.close()


async def test_a_failed_answer_shows_the_reason_and_no_tick(browser: Browser) -> None:
    async with System() as system, chat(browser, system) as page:
        await page.get_by_text("Options").click()
        await page.get_by_label("Break off after").fill("10")
        await page.get_by_text("Options").click()
        await ask(page, tokens=30, pace=100, on_interrupt="fail")
        story = page.locator(".story")
        await expect(story).to_contain_text("✘ It failed: the provider is overloaded, cannot be reached, or broke off.")
        await expect(story).to_contain_text("broke off after 10 tokens, as it was asked to")
        await expect(story).to_contain_text("10 tokens had come over one connection: none lost")
        await expect(page.locator("#status")).to_have_text("The answer failed")
        assert await page.locator(".good").count() == 0
        assert not {"✔", "provider_unavailable"} & set((await page.locator("main").inner_text()).split())
        await page.reload()
        await expect(page.locator("#status")).to_have_text("The answer failed")


async def test_a_model_that_the_provider_has(browser: Browser) -> None:
    async with OpenAIServer() as provider:
        settings = {"provider": "openai", "openai_base_url": provider.url}
        async with System(settings=settings) as system, chat(browser, system) as page:
            await page.get_by_text("Options").click()
            await expect(page.get_by_label("Model")).to_have_value("scripted")
            await page.get_by_label("Your question").fill("Tell me a story.")
            await page.get_by_label("Your question").press("Enter")
            await whole(page, system)
            assert provider.bodies[-1]["model"] == "scripted"


async def test_an_unreachable_provider_is_shown(browser: Browser, unused_tcp_port: int) -> None:
    address = f"http://127.0.0.1:{unused_tcp_port}/v1"
    settings = {"provider": "openai", "openai_base_url": address, "provider_tries_max": 1}
    async with System(settings=settings) as system, chat(browser, system) as page:
        await expect(page.locator("#models-note")).to_contain_text(
            "The models are not known: the provider could not be"
        )
        await page.get_by_label("Your question").fill("Tell me a story.")
        await page.get_by_label("Your question").press("Enter")
        await expect(page.locator(".story")).to_contain_text(
            "✘ It failed: the provider is overloaded, cannot be reached"
        )
        await expect(page.locator("#status")).to_have_text("The answer failed")
        assert await page.locator(".good").count() == 0


def snippet_of(path: str) -> str:
    """Returns the page's first JavaScript example that has an EventSource."""
    text = (Path(__file__).resolve().parents[2] / path).read_text()
    blocks: list[str] = re.findall(r"```js\n(.*?)```", text, re.DOTALL)
    return next(block for block in blocks if "EventSource" in block)


@pytest.mark.parametrize("page_of", ["README.md", "docs/tutorial/first-answer.md"])
@pytest.mark.parametrize("fails", [False, True])
async def test_the_plain_page_of_the_docs(browser: Browser, page_of: str, fails: bool, unused_tcp_port: int) -> None:
    """The docs' example for a page's console shows the answer, or a failure."""
    address = f"http://127.0.0.1:{unused_tcp_port}/v1"
    settings = {"provider": "openai", "openai_base_url": address, "provider_tries_max": 1} if fails else {}
    async with System(settings=settings) as system:
        page = await browser.new_page()
        await page.goto(f"{system.gateway_url()}/healthz")
        await page.add_script_tag(content=snippet_of(page_of))
        body = page.locator("body")
        await expect(body).to_contain_text("(failed: " if fails else "(done)", timeout=_SHOW_MS)
        await expect(body).to_contain_text("Connection refused" if fails else "This is a simulated answer")
        assert not fails or "(done)" not in await body.inner_text()
        await page.close()


async def test_opened_by_a_link(browser: Browser) -> None:
    async with System() as system:
        stream_id = await system.create(simulate={"tokens": 60, "tokens_per_second": 30})
        one = await Opened.at(browser, f"{system.gateway_url()}/chat#{stream_id}")
        assert (await whole(one.page, system))["tokens"] == 60
        await one.page.goto("about:blank")
        await one.page.goto(f"{system.gateway_url()}/chat#{'0' * 36}")
        await expect(one.page.locator(".story")).to_contain_text("has expired", timeout=_SHOW_MS)
        await one.page.close()
