"""Chromium for tests of pages: its complaints and its requests are recorded and checked; a tab can be frozen."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, CDPSession, Page, async_playwright, expect

from tests.support.needs import needs

_ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
_ANSWER_SECONDS_MAX = 10.0
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


class Tab:
    """A tab that can be frozen, as browsers freeze hidden ones. Playwright keeps its own pages visible, so this is none of them."""

    def __init__(self, devtools: CDPSession, target: str, session: str) -> None:
        self._devtools, self._target, self._session = devtools, target, session
        self._answers: dict[int, asyncio.Future[Any]] = {}
        devtools.on("Target.receivedMessageFromTarget", self._on_message)

    @classmethod
    async def at(cls, browser: Browser, url: str) -> Tab:
        devtools = await browser.new_browser_cdp_session()
        target = (await devtools.send("Target.createTarget", {"url": url}))["targetId"]
        attached = await devtools.send("Target.attachToTarget", {"targetId": target, "flatten": False})
        return cls(devtools, target, attached["sessionId"])

    async def evaluate(self, expression: str) -> Any:
        """Returns the value of an expression of JavaScript. AssertionError if it throws."""
        result = await self._send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def freeze(self) -> None:
        """Hides the tab and stops its scripts and timers."""
        await self._send("Page.setWebLifecycleState", state="frozen")

    async def thaw(self) -> None:
        await self._send("Page.setWebLifecycleState", state="active")

    async def close(self) -> None:
        await self._devtools.send("Target.closeTarget", {"targetId": self._target})
        await self._devtools.detach()

    async def _send(self, method: str, **parameters: Any) -> Any:
        number = len(self._answers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        message = json.dumps({"id": number, "method": method, "params": parameters})
        await self._devtools.send("Target.sendMessageToTarget", {"sessionId": self._session, "message": message})
        async with asyncio.timeout(_ANSWER_SECONDS_MAX):
            return await self._answers[number]

    def _on_message(self, event: dict[str, Any]) -> None:
        message = json.loads(event["message"])
        if "id" in message:
            self._answers[message["id"]].set_result(message.get("result", {}))
