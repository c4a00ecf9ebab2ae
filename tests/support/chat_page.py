"""A page with `useChat` in Chromium, on the gateway's origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from playwright.async_api import Browser, Page, Request, Route

from tests.support import ai_sdk
from tests.support.system import System
from tests.support.waiting import wait_until

_HTML = '<!doctype html><meta charset="utf-8"><div id="root"></div><script src="/test-page.js"></script>'
_STATE = """() => ({
    status: chat.status, error: chat.error?.message ?? null, messages: chat.messages, finished, seen,
    text: document.querySelector('pre').textContent,
})"""


class Chat:
    """A page with one chat. Playwright serves the page itself; every other request goes to the gateway."""

    def __init__(self, page: Page, url: str, resumes_at: str) -> None:
        """`resumes_at`: a part of the URL at which the page asks for an answer to resume when it is loaded."""
        self.page = page
        self._url = url
        self._resumes_at = resumes_at
        self.requests: list[Request] = []
        page.on(
            "request",
            lambda request: (
                self.requests.append(request) if urlsplit(request.url).path.startswith(("/api/", "/v1/")) else None
            ),
        )

    @classmethod
    async def open(
        cls,
        browser: Browser,
        system: System,
        chat_id: str,
        *,
        folder: str = "ai_sdk",
        gateway: int = 0,
        cookies: Mapping[str, str] | None = None,
        **query: str,
    ) -> Chat:
        """Opens the page with a gateway as its origin; `cookies` are those that the gateway's origin has set before."""
        page, origin = await browser.new_page(), system.gateway_url(gateway)
        await page.context.add_cookies(
            [{"name": name, "value": value, "url": origin} for name, value in (cookies or {}).items()]
        )

        async def html(route: Route) -> None:
            await route.fulfill(body=_HTML, content_type="text/html")

        async def script(route: Route) -> None:
            await route.fulfill(body=ai_sdk.page(folder), content_type="text/javascript")

        await page.route("**/test-page?*", html)
        await page.route("**/test-page.js", script)
        url = f"{origin}/test-page?{urlencode({'chat': chat_id, **query})}"
        chat = cls(page, url, "/api/chat/" if folder == "ai_sdk" else "/test-page")
        await chat.load()
        return chat

    async def load(self) -> None:
        async with self.page.expect_response(lambda response: self._resumes_at in response.url):
            await self.page.goto(self._url)
        await self.page.wait_for_function("() => window.chat")

    async def ask(self, text: str, **body: Any) -> None:
        await self.page.evaluate("([text, body]) => ask(text, body)", [text, body])

    async def state(self) -> Any:
        return await self.page.evaluate(_STATE)

    async def until(self, status: str, *, words: int = 0, within_seconds: float = 20.0) -> Any:
        """Returns the page's state, once it has this status and so many words of an answer."""
        state: Any = None

        async def reached() -> bool:
            nonlocal state
            state = await self.state()
            return state["status"] == status and len(state["text"].split()) >= words

        try:
            await wait_until(reached, within_seconds=within_seconds)
        except AssertionError:
            raise AssertionError(
                f"not {status} with {words} words, but {state | {'seen': len(state['seen'])}}"
            ) from None
        return state

    async def stream_id(self) -> str:
        stream_id: str = await self.page.evaluate("() => chat.messages.at(-1).metadata.streamId")
        return stream_id


async def answered(system: System, stream_id: str) -> str:
    text: str = (await system.until_status(stream_id, "completed"))["text"]
    return text
