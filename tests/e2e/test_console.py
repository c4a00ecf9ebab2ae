"""The console, in Chromium: it shows the true state, also after faults."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from shared.keys import log_key
from tests.support.browser import Opened
from tests.support.proxies import Proxy
from tests.support.system import Reader, System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
_HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><b>bold</b>"
_LONG = {"tokens": 2000, "tokens_per_second": 40}
_SHOW_MS = 15_000


@asynccontextmanager
async def opened(browser: Browser, url: str, **options: object) -> AsyncIterator[Page]:
    """Yields a page. Afterwards the test fails if the browser has logged errors or sent requests to another host."""
    one = await Opened.at(browser, url, **options)
    one.page.set_default_timeout(_SHOW_MS)
    yield one.page
    await one.close(host=urlsplit(url).netloc)


async def number(page: Page, title: str) -> float:
    text = await page.locator(".tiles div", has_text=title).locator("dd").first.text_content()
    return float((text or "0").replace(",", ""))


async def test_numbers_live(browser: Browser) -> None:
    async with System() as system, opened(browser, system.gateway_url()) as page:
        await expect(page.locator("#streams-empty")).to_be_visible(timeout=_SHOW_MS)
        stream_id = await system.create(simulate=_LONG)
        reader = system.follow(stream_id)
        row = page.locator("#streams tr", has_text=stream_id[:12])
        await expect(row).to_contain_text("running", timeout=_SHOW_MS)
        await reader.until_tokens(20)

        async def all_known() -> bool:
            return (
                await number(page, "Streams running") == 1
                and await number(page, "Readers") == 1
                and await number(page, "Tokens/s generated") > 10
                and await number(page, "Tokens/s delivered") > 10
            )

        await wait_until(all_known, within_seconds=15.0, what="the numbers are those of one stream with one reader")
        first = int((await row.locator(".tokens").text_content() or "0").replace(",", ""))

        async def grows() -> bool:
            return int((await row.locator(".tokens").text_content() or "0").replace(",", "")) > first

        await wait_until(grows, what="its tokens grow")
        await expect(page.locator("#processes")).to_contain_text("gateway")
        await expect(page.locator("#processes tr")).to_have_count(2)
        charts = page.locator("figure svg[role=img]")
        await expect(charts).to_have_count(3)
        assert "generated" in (await charts.first.get_attribute("aria-label") or "")
        assert await page.locator("figure .series").count() >= 6


async def test_cancel_stops_the_provider(browser: Browser) -> None:
    async with System() as system, opened(browser, system.gateway_url()) as page:
        stream_id = await system.create(simulate=_LONG)
        reader = system.follow(stream_id)
        row = page.locator("#streams tr", has_text=stream_id[:12])
        await row.get_by_role("button", name="Cancel").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("Cancel this stream?")
        await page.keyboard.press("Escape")  # changes nothing
        await expect(dialog).to_be_hidden()
        assert (await system.state(stream_id))["status"] == "running"
        await row.get_by_role("button", name="Cancel").click()
        await dialog.get_by_role("button", name="Cancel the stream").click()
        assert await reader.until_event("cancelled") == {"by": "client"}
        await expect(row).to_contain_text("cancelled", timeout=_SHOW_MS)

        async def worker_is_idle() -> bool:
            snapshot = (await system.http.get(f"{system.gateway_url()}/v1/overview")).json()
            return all(one["running"] == 0 for one in snapshot["processes"] if one["kind"] == "worker")

        await wait_until(worker_is_idle, what="the worker has stopped")


async def test_worker_killed_while_watched(browser: Browser) -> None:
    async with System(workers=2, settings={"lease_seconds": 1}) as system:
        stream_id = await system.create(simulate={"tokens": 150, "tokens_per_second": 30})
        async with opened(browser, f"{system.gateway_url()}/#{stream_id}") as page:
            reader = system.follow(stream_id)
            await reader.until_tokens(20)
            timeline = page.get_by_role("list", name="Timeline")
            await expect(timeline).to_contain_text("Attempt 1", timeout=_SHOW_MS)
            (await system.worker_of(stream_id)).kill()
            await expect(timeline).to_contain_text("Attempt 2", timeout=_SHOW_MS)
            await expect(timeline).to_contain_text("its worker died or was stopped")
            await expect(page.locator("#processes")).to_contain_text("silent for", timeout=_SHOW_MS)
            await reader.until_end()
            await expect(timeline).to_contain_text("150 tokens, completed", timeout=_SHOW_MS)
            await expect(timeline).to_contain_text("to the end", timeout=_SHOW_MS)
            assert await timeline.locator("i.bad").count() == 1
            assert await timeline.locator("i.good").count() == 1


async def test_all_streams_are_found_and_have_their_timeline(browser: Browser, tmp_path: Path) -> None:
    """Live and archived: by each field of the search, page after page; one that has left Redis opens with its whole story."""
    settings = {"archive_url": f"sqlite:///{tmp_path}/archive.sqlite", "ended_ttl_seconds": 1}
    async with System(settings=settings) as system:
        metadata = {"customer": "Acme", "note": _HOSTILE}
        simulated = {"tokens": 5, "tokens_per_second": 50}
        ended = [await system.create(simulate=simulated, midstream={"metadata": metadata}) for _ in range(25)]
        await asyncio.gather(*(system.until_status(stream_id, "completed") for stream_id in ended))
        cancelled = await system.create(simulate=_LONG)
        reader = system.follow(cancelled)
        await reader.until_tokens(5)
        await system.http.post(f"{system.gateway_url()}/v1/streams/{cancelled}/cancel")
        await reader.until_end()
        running = await system.create(simulate=_LONG)

        async def is_archived() -> bool:
            listed = await system.http.get(f"{system.gateway_url()}/v1/streams?status=cancelled")
            return [stream["archived"] for stream in listed.json()["streams"]] == [True]

        await wait_until(is_archived, within_seconds=30, what="the cancelled stream is archived")
        await system.commands.delete(log_key(cancelled))
        async with opened(browser, system.gateway_url()) as page:
            rows = page.locator("#kept-rows tr")
            await expect(rows).to_have_count(20, timeout=_SHOW_MS)
            newer = await system.create(simulate=simulated)
            await page.get_by_role("button", name="More").click()
            await expect(rows).to_have_count(27)
            listed = [await row.get_attribute("data-id") for row in await rows.all()]
            assert listed == [running, cancelled, *reversed(ended)], "what came meanwhile moves no page"
            assert await page.locator("#kept img").count() == 0

            async def find(field: str, text: str, *wanted: str) -> None:
                await page.locator("#kept-find").evaluate("form => form.reset()")
                labelled = page.locator("#kept-find").get_by_label(re.compile(f"^{field}"))
                await (labelled.select_option(text) if field == "Status" else labelled.fill(text))
                await page.get_by_role("button", name="Search").click()
                await expect(rows).to_have_count(min(20, len(wanted)))
                assert [await row.get_attribute("data-id") for row in await rows.all()] == list(wanted)[:20]

            await find("Status", "running", running)
            await find("Metadata", "customer=Acme", *reversed(ended))
            await find("Model", "none")
            await expect(page.locator("#kept-empty")).to_be_visible()
            await find("Owner", "anonymous", newer, running, cancelled, *reversed(ended))
            await find("To", "2020-01-01T00:00")
            await page.locator("#kept-find").get_by_label("Metadata").fill("customer")
            await page.get_by_role("button", name="Search").click()
            await expect(page.locator("#kept-note")).to_have_text("Metadata: write key=text")
            await find("Status", "cancelled", cancelled)
            await rows.get_by_role("link").click()
            timeline = page.get_by_role("list", name="Timeline")
            for text in ("Attempt 1", "Reader", "to the end", "Cancelled", "by a client"):
                await expect(timeline).to_contain_text(text)
            await find("Metadata", "customer=Acme", *reversed(ended))
            await rows.last.get_by_role("link").click()
            await expect(timeline).to_contain_text(re.compile(r"5 tokens, completed, first token at 0\.\d s"))
            assert await timeline.locator("i.first").count() == 1
        await system.http.post(f"{system.gateway_url()}/v1/streams/{running}/cancel")


async def test_cuts_and_resumes_in_the_timeline(browser: Browser) -> None:
    async with System() as system:
        stream_id = await system.create(simulate={"tokens": 100, "tokens_per_second": 50})
        first = system.follow(stream_id)
        await first.until_tokens(20)
        await first.leave()
        await system.follow(stream_id, after=first.last_id).until_end()
        async with opened(browser, f"{system.gateway_url()}/#{stream_id}") as page:
            timeline = page.get_by_role("list", name="Timeline")
            await expect(timeline).to_contain_text("its connection broke off", timeout=_SHOW_MS)
            await expect(timeline).to_contain_text(f"resumed after {first.last_id}")
            await page.get_by_role("button", name="Show the answer").click()
            answer = page.get_by_role("region", name="The answer")
            await expect(answer).to_have_text((await system.state(stream_id))["text"])


async def test_hostile_texts_are_not_interpreted_as_html(browser: Browser) -> None:
    async with System() as system:
        midstream = {"metadata": {_HOSTILE: _HOSTILE}}
        simulate = {"tokens": 20, "tokens_per_second": 0}
        stream_id = await system.create(_HOSTILE, simulate=simulate, midstream=midstream, model=_HOSTILE)
        await system.until_status(stream_id, "completed")
        async with opened(browser, f"{system.gateway_url()}/#{stream_id}") as page:
            facts = page.locator("#stream .facts")
            await expect(facts).to_contain_text(_HOSTILE, timeout=_SHOW_MS)
            assert await page.locator("#stream img, #stream b:not(.track b), #stream script").count() == 0
            assert "taken" not in await page.title()
        async with opened(browser, f"{system.gateway_url()}/#{_HOSTILE}") as page:
            await expect(page.locator("#link")).to_have_text("live", timeout=_SHOW_MS)
            assert not await page.locator("#stream").is_visible()


async def test_columns_and_a_search(browser: Browser) -> None:
    async with System() as system, opened(browser, system.gateway_url()) as page:
        midstream = {"metadata": {"customer": "Acme", "note": _HOSTILE}}
        named = await system.create(simulate=_LONG, midstream=midstream)
        plain = await system.create(simulate=_LONG)
        # So short that no snapshot shows it running.
        simulate = {"tokens": 5, "tokens_per_second": 0, "fail_after": 2}
        failed = await system.create(simulate=simulate, midstream={"on_interrupt": "fail"})
        rows = page.locator("#streams tr")
        await expect(rows).to_have_count(3, timeout=_SHOW_MS)
        row = page.locator("#streams tr", has_text=named[:12]).filter(has_text=named[-4:])
        await expect(row).to_contain_text("simulated")
        await expect(row).to_contain_text(f"customer=Acme, note={_HOSTILE}"[:60])
        assert await page.locator("#streams img, #streams script").count() == 0
        await expect(page.locator("#streams tr", has_text="failed")).to_contain_text(
            "The provider is overloaded, cannot be reached, or broke off"
        )
        for width in (1400, 1180, 1000, 865, 725, 390):
            await page.set_viewport_size({"width": width, "height": 800})
            hidden = await page.locator("#streams-table").evaluate("e => e.scrollWidth - e.parentElement.clientWidth")
            assert hidden <= 0, f"at {width} pixels {hidden} of the table cannot be seen"
        for words, found in [("acme RUNNING", named), (plain[-9:], plain), ("overloaded", failed)]:
            await page.get_by_label("Find a stream").fill(words)
            await expect(rows).to_have_count(1)
            await expect(rows.locator("a")).to_have_attribute("href", f"#{found}")
        await expect(page.locator("#streams-note")).to_contain_text("1 of the 3 listed")
        await page.get_by_label("Find a stream").press("Enter")
        await expect(page.get_by_role("heading", name=f"Stream {failed[:12]}")).to_be_visible()
        await page.get_by_label("Find a stream").fill("nobody")
        await expect(page.locator("#streams-empty")).to_have_text("No listed stream matches.")
        await page.get_by_label("Find a stream").fill(plain)
        await page.get_by_label("Find a stream").press("Enter")
        await expect(page).to_have_url(re.compile(plain))


async def test_charts_begin_with_the_last_two_minutes(browser: Browser) -> None:
    async with System() as system:
        stream_id = await system.create(simulate=_LONG)
        await system.follow(stream_id).until_tokens(10)

        async def remembered() -> list[dict[str, Any]]:
            url = f"{system.gateway_url()}/v1/overview/events?history=1"
            watcher = Reader(system.http, url)
            await wait_until(lambda: watcher.named("history"), what="the history")
            await watcher.leave()
            samples: list[dict[str, Any]] = watcher.named("history")[0]
            return samples

        async def enough() -> bool:
            return len([one for one in await remembered() if one["per_second"]["tokens_generated"] > 10]) >= 4

        await wait_until(enough, within_seconds=30.0, what="some samples of a stream that runs")
        async with opened(browser, system.gateway_url()) as page:
            series = page.locator("figure").first.locator(".series.s0")
            await expect(series).to_have_count(1, timeout=_SHOW_MS)
            assert len((await series.get_attribute("points") or "").split()) >= 4


async def test_redis_restarted_empty(browser: Browser) -> None:
    """Streams that the queue has lost still run, and are still shown; also by a gateway that did not know them before."""
    async with (
        System(gateways=2, settings={"redis_reply_seconds": 1}) as system,
        opened(browser, system.gateway_url(0)) as page,
    ):
        readers = [system.follow(await system.create(simulate=_LONG)) for _ in range(3)]
        for reader in readers:
            await reader.until_tokens(5)
        rows = page.locator("#streams tr", has_text="running")
        await expect(rows).to_have_count(3, timeout=_SHOW_MS)
        system.redis.kill()
        await expect(page.locator("#streams-note")).to_contain_text("Redis is away: this is of", timeout=_SHOW_MS)
        await expect(rows).to_have_count(3)
        await expect(page.locator("#streams-empty")).to_be_hidden()
        system.redis.start()
        await expect(page.locator("#streams-note")).to_have_text("", timeout=_SHOW_MS)

        async def all_known() -> bool:
            return await number(page, "Streams running") == 3 and await rows.count() == 3

        await wait_until(all_known, within_seconds=15.0, what="the three that the queue has forgotten")
        await expect(page.locator("#streams-empty")).to_be_hidden()
        async with opened(browser, system.gateway_url(1)) as other:
            await expect(other.locator("#streams-empty")).to_contain_text(
                "Workers still run 3 answers that are not in the queue", timeout=_SHOW_MS
            )


async def test_several_streams_on_a_phone(browser: Browser) -> None:
    async with System() as system:
        ids = [await system.create(simulate=_LONG) for _ in range(4)]
        options = {"viewport": {"width": 390, "height": 740}}
        async with opened(browser, system.gateway_url(), **options) as page:
            await expect(page.locator("#streams tr")).to_have_count(4, timeout=_SHOW_MS)
            shown = await page.locator("#streams a").all_inner_texts()
            assert sorted(shown) == sorted(f"…{one[-4:]}" for one in ids)


@pytest.mark.parametrize("width", [390, 1180])
async def test_a_timeline_opens_in_view(browser: Browser, width: int) -> None:
    async with System() as system:
        for _ in range(20):
            await system.create(simulate=_LONG)
        options = {"viewport": {"width": width, "height": 700}}
        async with opened(browser, system.gateway_url(), **options) as page:
            await expect(page.locator("#streams tr")).to_have_count(20, timeout=_SHOW_MS)
            link = page.locator("#streams a").first
            await link.focus()
            await page.keyboard.press("Enter")
            await expect(page.locator(".timeline li").first).to_be_visible(timeout=_SHOW_MS)
            await wait_until(lambda: in_view(page, "#stream-title"), what="the title is in view")
            await wait_until(lambda: in_view(page, "#stream .actions"), what="its buttons, too")
            assert await page.evaluate("document.activeElement.id") == "stream-title"
            await page.get_by_role("button", name="Close").click()
            await expect(link).to_be_focused()
            address = f"{system.gateway_url()}/{await link.get_attribute('href')}"
        async with opened(browser, address, **options) as page:
            await expect(page.locator("#streams tr")).to_have_count(20, timeout=_SHOW_MS)
            await wait_until(lambda: in_view(page, "#stream-title"), what="the linked one is in view")


async def in_view(page: Page, selector: str) -> bool:
    """Returns whether the whole element is in the window."""
    seen: bool = await page.locator(selector).evaluate(
        "e => { const r = e.getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight && r.right <= innerWidth; }"
    )
    return seen


async def test_reader_of_a_killed_gateway(browser: Browser) -> None:
    async with System(gateways=2, settings={"delivery_report_seconds": 0.2}) as system:
        stream_id = await system.create(simulate=_LONG)
        await system.follow(stream_id, gateway=1).until_tokens(10)
        async with opened(browser, f"{system.gateway_url(0)}/#{stream_id}") as page:
            timeline = page.get_by_role("list", name="Timeline")
            await expect(timeline).to_contain_text("is connected", timeout=_SHOW_MS)
            system.gateways[1].kill()
            await expect(timeline).to_contain_text("its gateway is gone: last sign of life at", timeout=_SHOW_MS)
            await expect(timeline).not_to_contain_text("is connected")
            assert await extent(timeline.locator("i.reader")) < 95
            assert await timeline.locator("i.reader.open").count() == 0


async def extent(bar: Locator) -> float:
    """Returns the end of a bar of the timeline, in percent."""
    ends: float = await bar.evaluate("e => parseFloat(e.style.left) + parseFloat(e.style.width)")
    return ends


async def test_silence_of_a_dead_worker(browser: Browser) -> None:
    async with System(settings={"lease_seconds": 1}) as system:
        stream_id = await system.create(simulate={"tokens": 200, "tokens_per_second": 40})
        reader = system.follow(stream_id)
        await reader.until_tokens(40)
        async with opened(browser, f"{system.gateway_url()}/#{stream_id}") as page:
            timeline = page.get_by_role("list", name="Timeline")
            await expect(timeline).to_contain_text("goes on", timeout=_SHOW_MS)
            system.workers[0].kill()
            await expect(timeline).to_contain_text("its worker has not been heard of for", timeout=_SHOW_MS)
            await expect(timeline).to_contain_text("no other one runs")
            assert await extent(timeline.locator("i.bad")) < 95
            assert await extent(timeline.locator("i.silence")) == pytest.approx(100, abs=1)
            await system.start_worker(0)
            await expect(timeline).to_contain_text(
                re.compile(r"its worker died or was stopped: last heard of at .* s of silence")
            )
            second = timeline.locator("li", has_text="Attempt 2").locator("i")
            await expect(second).to_have_count(1)  # until its worker's first heartbeat it counts as silent, too
            begins: float = await second.evaluate("e => parseFloat(e.style.left)")
            assert await extent(timeline.locator("i.silence")) == pytest.approx(begins, abs=0.5)
            assert await extent(timeline.locator("i.bad")) < begins - 5


async def test_one_stream_for_all_tabs(browser: Browser) -> None:
    """A browser opens only six connections to a host. The first tab may be closed."""
    async with System() as system:
        context = await browser.new_context()
        requested: list[str] = []
        context.on("request", lambda request: requested.append(urlsplit(request.url).path))
        tabs = [await context.new_page() for _ in range(8)]
        for tab in tabs:
            await tab.goto(system.gateway_url())
            await expect(tab.locator("#link")).to_have_text("live", timeout=_SHOW_MS)
            await expect(tab.locator("#processes tr")).to_have_count(2, timeout=_SHOW_MS)
        await tabs[0].close()
        stream_id = await system.create(simulate=_LONG)
        for tab in tabs[1:]:
            await expect(tab.locator("#streams")).to_contain_text(stream_id[:12], timeout=_SHOW_MS)
        assert requested.count("/console/feed.js") == 8
        assert "/v1/overview/events" not in requested, "no tab has one of its own"
        await context.close()


async def test_a_browser_without_shared_workers(browser: Browser) -> None:
    async with System() as system:
        context = await browser.new_context()
        await context.add_init_script("delete window.SharedWorker")
        requested: list[str] = []
        context.on("request", lambda request: requested.append(urlsplit(request.url).path))
        page = await context.new_page()
        await page.goto(system.gateway_url())
        await expect(page.locator("#link")).to_have_text("live", timeout=_SHOW_MS)
        assert "/v1/overview/events" in requested
        await context.close()


async def test_gateway_restarted_while_watched(browser: Browser) -> None:
    async with System() as system:
        one = await Opened.at(browser, system.gateway_url())
        await expect(one.page.locator("#link")).to_have_text("live", timeout=_SHOW_MS)
        system.gateways[0].kill()
        await expect(one.page.locator("#link")).to_contain_text("lost", timeout=_SHOW_MS)
        await system.start_gateway(0)
        await expect(one.page.locator("#link")).to_have_text("live", timeout=_SHOW_MS)
        await one.page.close()


@pytest.mark.parametrize("path", ["/", "/chat"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_fits_a_phone_and_is_accessible(browser: Browser, path: str, scheme: str) -> None:
    async with System() as system:
        stream_id = await system.create(simulate=_LONG)
        place = f"{system.gateway_url()}{path}#{stream_id}"
        options = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
        async with opened(browser, place, **options) as page:
            where = "#streams a" if path == "/" else ".answer"
            await expect(page.locator(where).first).to_be_visible(timeout=_SHOW_MS)
            if path == "/":
                await expect(page.get_by_role("list", name="Timeline")).to_contain_text("Attempt 1", timeout=_SHOW_MS)
            assert await page.evaluate(_TOO_WIDE) == []
            assert await page.evaluate("document.documentElement.scrollWidth") <= 360
            assert await page.evaluate("document.documentElement.lang") == "en"
            assert await page.locator("h1").count() == 1
            assert await page.locator("main").count() == 1
            unnamed = "e => !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim())"
            assert (
                await page.locator("button, input, select, textarea, a").evaluate_all(
                    f"all => all.filter({unnamed}).length"
                )
                == 0
            )
            levels = await page.locator("h1, h2, h3").evaluate_all("all => all.map(e => +e.tagName[1])")
            assert all(after - before <= 1 for before, after in pairwise(levels)), levels
            assert await page.evaluate(_CONTRAST) == []
            await page.keyboard.press("Tab")
            assert await page.evaluate("document.activeElement.className") in ("skip", "") or path == "/chat"


_TOO_WIDE = """() => [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => `${e.tagName}.${e.className} ${e.getBoundingClientRect().right}`)"""

_CONTRAST = """() => {
    const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    const ground = node => { for (; node; node = node.parentElement) {
        const c = parts(getComputedStyle(node).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
    const poor = [];
    for (const node of document.querySelectorAll('body *')) {
        if (![...node.childNodes].some(c => c.nodeType === 3 && c.data.trim()) || !node.getClientRects().length) continue;
        const style = getComputedStyle(node), svg = node.closest('svg');
        const a = light(parts(svg ? style.fill : style.color)), b = light(ground(node));
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) poor.push(`${node.tagName}.${node.className}: ${ratio.toFixed(2)}`);
    }
    return poor;
}"""
"""Lists the texts whose contrast with their background is below 4.5 (WCAG 2.2, AA)."""


async def test_behind_a_proxy_that_strips_a_path(browser: Browser) -> None:
    async with System() as system:
        site = f"server {{ listen 127.0.0.1:{{port}}; location /broker/ {{ proxy_pass {system.gateway_url()}/; proxy_buffering off; }} }}"
        with Proxy("nginx", site) as proxy:
            stream_id = await system.create(simulate=_LONG)
            async with opened(browser, f"{proxy.url}/broker/") as page:
                await expect(page.locator("#streams")).to_contain_text(stream_id[:12], timeout=_SHOW_MS)
                await page.get_by_role("link", name="Try it").click()
                await expect(page).to_have_url(re.compile(r"/broker/chat$"))
                await expect(page.locator("#prompt")).to_be_visible()
