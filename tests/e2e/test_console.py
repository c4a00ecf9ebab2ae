"""The console, in Chromium: what it shows is what runs, whatever is done to what runs."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, expect

from tests.support.browser import Opened
from tests.support.proxies import Proxy
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
_HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><b>bold</b>"
_LONG = {"tokens": 2000, "tokens_per_second": 40}
_SHOW_MS = 15_000


@asynccontextmanager
async def opened(browser: Browser, url: str, **options: object) -> AsyncIterator[Page]:
    """A page that must not have complained, nor have asked another host, when it is left."""
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
        first = int((await row.locator("td").nth(3).text_content() or "0").replace(",", ""))

        async def grows() -> bool:
            return int((await row.locator("td").nth(3).text_content() or "0").replace(",", "")) > first

        await wait_until(grows, within_seconds=10.0, what="its tokens grow")
        await expect(page.locator("#processes")).to_contain_text("gateway")
        await expect(page.locator("#processes tr")).to_have_count(2)
        charts = page.locator("figure svg[role=img]")
        assert await charts.count() == 3
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
            told = (await system.http.get(f"{system.gateway_url()}/v1/overview")).json()
            return all(one["running"] == 0 for one in told["processes"] if one["kind"] == "worker")

        await wait_until(worker_is_idle, within_seconds=10.0, what="the worker has stopped")


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
            await expect(timeline).to_contain_text("its worker was lost")
            await expect(page.locator("#processes")).to_contain_text("silent for", timeout=_SHOW_MS)
            await reader.until_end()
            await expect(timeline).to_contain_text("150 tokens, completed", timeout=_SHOW_MS)
            await expect(timeline).to_contain_text("to the end", timeout=_SHOW_MS)
            assert await timeline.locator("i.bad").count() == 1
            assert await timeline.locator("i.good").count() == 1


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
            said = page.get_by_role("region", name="The answer")
            await expect(said).to_have_text((await system.state(stream_id))["text"])


async def test_what_strangers_wrote_stays_text(browser: Browser) -> None:
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
"""The texts whose contrast with their ground is below 4.5 (WCAG 2.2, AA)."""


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
