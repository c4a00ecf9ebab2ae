"""AG-UI through Midstream, with its own client in Chromium: an agent's events, a reload in mid-run, a killed worker, a stop.

Authentication is on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route

from shared.api_keys import new_key
from tests.support.packages import packages
from tests.support.recipes import run
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

_PAGE = Path(__file__).parent / "ag_ui" / "page.js"
_TEXT = "".join(f"word {number}, " for number in range(1, 41))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    provider = {"provider": "examples.ag_ui_agent:answer"}
    async with System(workers=2, settings={"lease_seconds": 1}, worker_settings=provider, api_key=new_key()) as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page's script, bundled with AG-UI's client."""
    modules = await asyncio.to_thread(packages, "ag_ui") / "node_modules"
    command = [str(modules / ".bin/esbuild"), str(_PAGE), "--bundle", "--format=iife", "--log-level=error"]
    return await run(command, tmp_path_factory.mktemp("ag-ui"), NODE_PATH=str(modules))


class Thread:
    """A page that shows one thread, on the gateway's origin."""

    def __init__(self, page: Page, url: str, script: str) -> None:
        self.page, self._url, self._script = page, url, script

    @classmethod
    async def open(cls, browser: Browser, system: System, script: str) -> Thread:
        async def html(route: Route) -> None:
            await route.fulfill(body="<!doctype html><body></body>", content_type="text/html")

        thread = cls(await browser.new_page(), f"{system.gateway_url()}/ag-ui-page?key={system.api_key}", script)
        await thread.page.route("**/ag-ui-page?*", html)
        await thread.load()
        return thread

    async def load(self) -> None:
        await self.page.goto(self._url)
        await self.page.add_script_tag(content=self._script)

    async def until_words(self, count: int) -> None:
        await self.page.wait_for_function("count => text().split(',').length > count", arg=count)

    async def until_ended(self) -> str:
        """Waits for the end of the run; returns the answer's text."""
        await self.page.wait_for_function("window.ended")
        assert (await self.page.evaluate("ended")) is True
        return str(await self.page.evaluate("text()"))

    async def stream_id(self) -> str:
        url: str = await self.page.evaluate("localStorage.getItem('ag-ui:thread-1')")
        return url.rpartition("/")[2]


async def test_a_run_goes_on_after_a_reload_and_a_killed_worker(browser: Browser, system: System, script: str) -> None:
    thread = await Thread.open(browser, system, script)
    await thread.page.evaluate("void start()")
    await thread.until_words(8)
    stream_id = await thread.stream_id()
    await thread.load()
    await thread.page.evaluate("void resume()")
    await thread.until_words(12)
    worker = await system.worker_of(stream_id)
    worker.kill()
    try:
        assert await thread.until_ended() == _TEXT
    finally:
        await system.start_worker(system.workers.index(worker))
    seen: list[str] = await thread.page.evaluate("seen")
    assert (seen[0], seen[-1], seen.count("RUN_STARTED")) == ("RUN_STARTED", "RUN_FINISHED", 1)
    assert seen.count("TEXT_MESSAGE_CONTENT") == 40, "each once, over two attempts"
    results = await thread.page.evaluate("agent.messages.filter(({ role }) => role === 'tool').length")
    assert results == 1, "the tool was called once"
    assert len(await system.logs()) == 1, "the reload began no second run"

    await thread.load()
    await thread.page.evaluate("void resume()")
    assert await thread.until_ended() == _TEXT, "a run that has ended is shown again, whole"
    await thread.page.context.close()


async def test_a_stop_after_a_reload_reaches_the_agent(browser: Browser, system: System, script: str) -> None:
    thread = await Thread.open(browser, system, script)
    await thread.page.evaluate("void start()")
    await thread.until_words(5)
    stream_id = await thread.stream_id()
    await thread.load()
    await thread.page.evaluate("void resume()")
    await thread.until_words(6)
    await thread.page.evaluate("agent.abortRun()")
    await wait_until(
        lambda: thread.page.evaluate("window.failure === 'cancelled'"), what="the page has the end of its run"
    )
    state = await system.state(stream_id)
    assert (state["status"], state["cancelled_by"]) == ("cancelled", "client")
    await thread.page.context.close()


async def test_a_thread_without_a_run_is_empty(browser: Browser, system: System, script: str) -> None:
    thread = await Thread.open(browser, system, script)
    await thread.page.evaluate("void resume()")
    assert await thread.until_ended() == ""
    await thread.page.context.close()
