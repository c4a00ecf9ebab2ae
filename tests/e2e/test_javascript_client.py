"""clients/js against real gateways and workers, cut and killed, in Node, Chromium and Firefox."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.stress.proxy import Proxy
from tests.support.browser import Opened, Tab
from tests.support.javascript import EXAMPLES, SCRIPTS, Site, firefox, follow_in, run_script
from tests.support.needs import needs
from tests.support.openai_server import OpenAIServer
from tests.support.packages import packages
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

_RETRY_MILLISECONDS = 100


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(server: OpenAIServer) -> AsyncIterator[System]:
    """A gateway that any page may use, and one that has its clients come back at once."""
    settings = {"provider": "openai", "openai_base_url": server.url, "lease_seconds": 1}
    gateway_settings = {"cors_origins": "*", "retry_milliseconds": _RETRY_MILLISECONDS}
    system = System(gateways=2, workers=2, settings=settings, gateway_settings=gateway_settings)
    system.gateways[1].settings["retry_milliseconds"] = 0
    async with system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(running: System) -> AsyncIterator[Site]:
    async with Site(running.gateway_url()) as site:
        yield site


def stream_url(system: System, stream_id: str, port: int | None = None) -> str:
    return f"http://127.0.0.1:{port or system.gateway_port()}/v1/streams/{stream_id}"


def expect_whole(events: list[dict[str, Any]], state: dict[str, Any], *, after: str = "0-0", end: str = "done") -> None:
    """By their ids every event is there once and in order; after the last one the text is the gateway's."""
    attempt, offset = map(int, after.split("-"))
    for event in (event for event in events if event.get("id")):
        if event["type"] in ("started", "restarted"):
            assert event["id"] == f"{attempt + 1}-0", f"after {attempt}-{offset}"
            attempt, offset = attempt + 1, event.get("base", 0)
        elif event["type"] == "cancelled":
            assert event["id"] == f"{attempt + 1}-0"
        else:
            offset += 1
            assert event["id"] == f"{attempt}-{offset}"
    assert (events[-1]["type"], events[-1]["text"]) == (end, state["text"])


class Reader:
    """A page of Chromium that follows a stream."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        page.on("request", lambda request: self._note(request.headers) if "/events" in request.url else None)

    def _note(self, headers: dict[str, str]) -> None:
        self.requests.append(headers.get("last-event-id", ""))

    @classmethod
    async def open(cls, browser: Browser, site: Site, name: str, stream_url: str, *, query: str = "") -> Reader:
        site.urls[name] = stream_url
        reader = cls(await browser.new_page())
        await reader.page.goto(site.reader_url(name, query=query))
        return reader

    async def events(self, kind: str = "") -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = await self.page.evaluate("events")
        return [event for event in events if kind in ("", event["type"])]

    async def until(self, kind: str, count: int = 1, *, within_seconds: float = 15.0) -> None:
        async def enough() -> bool:
            return len(await self.events(kind)) >= count

        await wait_until(enough, within_seconds=within_seconds, what=f"{count} × {kind}")

    async def close(self, state: dict[str, Any], **options: str) -> None:
        expect_whole(await self.events(), state, **options)
        await self.page.context.close()


async def test_cut_at_every_byte(system: System) -> None:
    """Of a stream with reasoning, tokens, a tool call and a second attempt; the response's head is cut, too."""
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    script = {"reasoning": ["hm"], "text": ["Grü", "ße ", "👋🏽"], "tool_calls": [call]}
    faulty = {**script, "break_after": 2, "times": 1, "key": "cut"}
    stream_id = await system.create("cut", script=faulty, midstream={"on_interrupt": "restart"}, gateway=1)
    state = await system.until_status(stream_id, "completed")
    assert state["attempt"] == 2
    output = await run_script("cuts.mjs", stream_url(system, stream_id, system.gateway_port(1)))
    assert output["wrong"] == []
    assert output["whole"][-1][2] == state["text"] == "Grüße 👋🏽"
    assert output["requests"] >= 2 * output["bytes"] > 1000


@pytest.mark.parametrize("runtime", ["deno", "bun"])
async def test_other_runtimes_than_node(system: System, runtime: str) -> None:
    needs(f"{runtime} (npm install -g {runtime})", shutil.which(runtime))
    stream_id = await system.create("runtimes", script={"tokens": 60, "tokens_per_second": 40})
    reader = await follow_in(runtime, stream_url(system, stream_id))
    try:
        lines = await reader.until_end()
    finally:
        await reader.kill()
    expect_whole(lines, await system.state(stream_id))


async def test_gateway_killed_twice_and_the_worker_once(browser: Browser, server: OpenAIServer, site: Site) -> None:
    """Node, Deno and Bun where they are, Chromium and Firefox read one stream."""
    runtimes = ["node", *filter(shutil.which, ("deno", "bun"))]
    settings = {"provider": "openai", "openai_base_url": server.url, "lease_seconds": 1}
    gateway_settings = {"cors_origins": "*", "retry_milliseconds": _RETRY_MILLISECONDS}
    async with System(workers=2, settings=settings, gateway_settings=gateway_settings) as system:

        def firefox_events() -> list[dict[str, Any]]:
            events: list[dict[str, Any]] = site.reports.get("firefox", {}).get("events", [])
            return events

        async with firefox(site.reader_url("firefox")):
            await wait_until(lambda: "firefox" in site.waiting, within_seconds=60.0, what="Firefox is there")
            script = {"tokens": 10_000, "tokens_per_second": 40}  # it goes on until it is cancelled
            stream_id = await system.create("killed", script=script, midstream={"on_interrupt": "continue"})
            url = stream_url(system, stream_id)
            site.urls["firefox"] = url
            reader = await Reader.open(browser, site, "chromium", url)
            followers = [await follow_in(runtime, url) for runtime in runtimes]

            def read_on(losses: int) -> bool:
                """Whether all have lost so many connections, and have read 20 events since."""
                had = [
                    [event["type"] for event in events]
                    for events in (firefox_events(), *(each.lines for each in followers))
                ]
                return all(
                    types.count("lost") >= losses and "lost" not in types[-20:] and len(types) >= 20 for types in had
                )

            for losses in (0, 1):
                await wait_until(
                    partial(read_on, losses), within_seconds=30.0, what=f"all read on after {losses} losses"
                )
                await reader.until("token", 20 + 40 * losses)
                system.gateways[0].kill()
                await system.start_gateway(0)
            (await system.worker_of(stream_id)).kill()
            await reader.until("restarted")
            cancelled = await system.http.post(f"{url}/cancel")
            state = cancelled.json()
            for follower in followers:
                lines = await follower.until_end()
                expect_whole(lines, state, end="cancelled")
                assert sum(line["type"] == "lost" for line in lines) >= 2
            await wait_until(lambda: site.reports["firefox"].get("ended"), what="Firefox is done")
            expect_whole(firefox_events(), state, end="cancelled")
            assert sum(event["type"] == "lost" for event in firefox_events()) >= 2
        await reader.until("cancelled")
        await reader.close(state, end="cancelled")


async def test_network_off_and_on(browser: Browser, system: System, site: Site) -> None:
    """It comes back when the browser says that the network is there, long before its pause would be over."""
    async with Proxy(system.gateway_port()) as proxy:
        stream_id = await system.create("offline", script={"tokens": 300, "tokens_per_second": 100})
        reader = await Reader.open(browser, site, "offline", stream_url(system, stream_id, proxy.port))
        await reader.until("token", 20)
        await reader.page.context.set_offline(True)
        proxy.hurt("aborts", random.Random(1), 1.0)
        await reader.until("lost")
        (lost,) = await reader.events("lost")
        assert lost["wait_ms"] >= 30_000
        state = await system.until_status(stream_id, "completed")
        assert await reader.events("done") == []
        await reader.page.context.set_offline(False)
        await reader.until("done", within_seconds=20.0)  # not after the 30 s that it would have waited
        await reader.close(state)


@pytest.mark.parametrize("connection", ["kept", "lost"])
async def test_a_tab_that_is_frozen_and_thawed(browser: Browser, system: System, site: Site, connection: str) -> None:
    async with Proxy(system.gateway_port()) as proxy:
        stream_id = await system.create("frozen", script={"tokens": 300, "tokens_per_second": 150})
        site.urls["frozen"] = stream_url(system, stream_id, proxy.port)
        tab = await Tab.at(browser, site.reader_url("frozen"))

        async def had(count: int) -> bool:
            return int(await tab.evaluate("globalThis.events?.length ?? 0")) >= count

        await wait_until(lambda: had(20), what="20 events")
        await tab.freeze()
        before = await tab.evaluate("[beats, events.length]")
        if connection == "lost":
            proxy.hurt("aborts", random.Random(1), 1.0)
        state = await system.until_status(stream_id, "completed")
        assert await tab.evaluate("[beats, events.length]") == before, "it stood still"
        await tab.thaw()
        await wait_until(lambda: tab.evaluate("globalThis.ended"), what="it is done")
        events = await tab.evaluate("events")
        expect_whole(events, state)
        assert any(event["type"] == "lost" for event in events) == (connection == "lost")
        await tab.close()


async def test_a_reloaded_page_goes_on_where_it_was(browser: Browser, system: System, site: Site) -> None:
    script = {"tokens": 150, "tokens_per_second": 50, "break_after": 100, "times": 1, "key": "reloaded"}
    stream_id = await system.create("reloaded", script=script)
    reader = await Reader.open(browser, site, "reloaded", stream_url(system, stream_id), query="&storage=session")
    await reader.until("token", 40)
    await reader.page.reload()
    await reader.until("restarted")
    await reader.until("done")
    state = await system.state(stream_id)
    first, second = reader.requests[:2]
    assert first == ""
    assert int(second.removeprefix("1-")) >= 40
    assert (await reader.page.evaluate("sessionStorage.length")) == 0
    await reader.close(state, after=second)


async def test_the_calls(system: System, server: OpenAIServer) -> None:
    """create, state, receipt and cancel as the gateway answers them, and the end that each gives."""
    output = await run_script("calls.mjs", f"{system.gateway_url()}/v1/streams")
    assert output["same"] is True, "one Idempotency-Key makes one stream"
    assert output["cancelled"] == {"status": "cancelled", "cancelled_by": "client"}
    assert output["ends"] == [
        "cancelled by client",
        "done",
        "done, cut off",
        "failed: retryable",
        "cancelled by client",
    ]
    assert output["waited"] == "completed"
    assert output["undelivered"] == 0
    assert output["refused"] == [400, 404, 410]
    await wait_until(lambda: server.running == 0, what="the provider has stopped")


async def test_the_plain_page(browser: Browser, system: System, site: Site) -> None:
    opened = await Opened.at(browser, f"{site.origin}/examples/plain-page/index.html")
    page = opened.page
    await page.click("text=Ask")
    await page.wait_for_function("location.hash.length === 37")
    await page.reload()
    await page.wait_for_function("document.getElementById('status').textContent === 'done'")
    stream_id = (await page.evaluate("location.hash"))[1:]
    assert await page.inner_text("#text") == (await system.state(stream_id))["text"].strip()
    await page.click("text=Stop")
    await page.close()
    assert opened.complaints == []


@pytest.fixture(scope="module")
def react_page() -> str:
    """The test page with examples/react-hook, bundled with React."""
    place = packages("ai_sdk")
    (hook,) = [path for path in EXAMPLES if path.name == "useAnswer.js"]
    command = [str(place / "node_modules/.bin/esbuild"), str(SCRIPTS / "react_page.jsx"), "--bundle", "--jsx=automatic"]
    command += [f"--alias:useAnswer={hook}", '--define:process.env.NODE_ENV="development"', "--log-level=error"]
    environment = {"NODE_PATH": str(place / "node_modules"), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30.0, env=environment).stdout


async def test_the_react_hook(browser: Browser, system: System, react_page: str, server: OpenAIServer) -> None:
    """Asked, reloaded, stopped; then another question."""
    page = await browser.new_page()

    async def load() -> None:
        await page.goto(f"{system.gateway_url()}/healthz")
        await page.evaluate(react_page)

    async def until(status: str, words: int = 0) -> None:
        condition = "([status, words]) => document.querySelector('main')?.dataset.status === status && document.querySelector('main').textContent.split(' ').length >= words"
        await page.wait_for_function(condition, arg=[status, words])

    await load()
    await until("idle")
    script = {"tokens": 2000, "tokens_per_second": 50}
    await page.evaluate("script => void ask({ messages: [{ role: 'user', content: 'hi' }], script })", script)
    await until("streaming", 10)
    await load()
    await until("streaming", 20)
    await page.evaluate("stop()")
    await until("cancelled", 20)
    await wait_until(lambda: server.running == 0, what="the provider has stopped")
    await page.evaluate(
        "void ask({ messages: [{ role: 'user', content: 'hi' }], script: { tokens: 5 }, max_tokens: 3 })"
    )
    await until("truncated", 3)
    await page.evaluate("void ask({ messages: [] })")
    await until("failed")
    assert "messages" in (await page.get_attribute("main", "data-error") or "")
    await page.close()
