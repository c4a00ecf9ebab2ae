"""Chromium for tests of pages: its complaints and its requests are recorded and checked."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, Page, async_playwright, expect

from tests.support.needs import needs

_ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
_EXPECT_MILLISECONDS = 20_000
"""How long a page may take to show something: Playwright's own 5 s are little where a page first waits for a dead worker."""


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    needs("chromium (Debian: apt install chromium)", program)
    expect.set_options(timeout=_EXPECT_MILLISECONDS)
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        yield started
        await started.close()


class Opened:
    """One page, with its complaints and the hosts of its requests."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None,
        )
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    @classmethod
    async def at(cls, browser: Browser, url: str, **options: Any) -> Opened:
        opened = cls(await browser.new_page(**options))
        await opened.page.goto(url)
        return opened

    async def close(self, *, host: str) -> None:
        """AssertionError if the page complained, or sent a request to another host than its own."""
        await self.page.close()
        assert not self.complaints, self.complaints
        assert self.hosts <= {host}, self.hosts
