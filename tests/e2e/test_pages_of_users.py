"""The two everyday set-ups, in Chromium: a page with a backend of its own, and a page with an identity provider's JWT."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, Request, expect

from shared.api_keys import new_key
from tests.support.redis_server import free_port
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {"page_with_own_backend": "backend", "page_with_jwt": "identity_provider"}
KEY, PORTS = new_key(), {name: free_port() for name in EXAMPLES}
ORIGINS = {name: f"http://127.0.0.1:{port}" for name, port in PORTS.items()}
ISSUER = ORIGINS["page_with_jwt"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    gateway_settings = {
        "auth": "required",
        "token_keys": "0123456789abcdef0123456789abcdef",
        "api_keys": f"backend create,read,cancel,act {KEY}",
        "jwt_keys": f"{ISSUER}/keys",
        "jwt_issuer": ISSUER,
        "jwt_audience": "midstream",
        "jwt_algorithms": "ES256",
        "cors_origins": ",".join(ORIGINS.values()),
        "retry_milliseconds": 100,
    }
    port = free_port()
    environment = {"MIDSTREAM_URL": f"http://127.0.0.1:{port}", "MIDSTREAM_API_KEY": KEY, "ISSUER": ISSUER}
    async with contextlib.AsyncExitStack() as running:
        http = await running.enter_async_context(httpx2.AsyncClient(trust_env=False))
        for example in EXAMPLES:
            running.enter_context(started(example, **environment, USERS="ada:secret,bob:geheim"))
        for example in EXAMPLES:
            await until_up(http, ORIGINS[example])  # the identity provider before the gateway, which reads its keys
        yield await running.enter_async_context(System(gateway_settings={**gateway_settings, "port": port}))


@contextlib.contextmanager
def started(name: str, **variables: str) -> Iterator[None]:
    command = [sys.executable, "-m", "uvicorn", f"examples.{name}.{EXAMPLES[name]}:app", "--port", str(PORTS[name])]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


async def until_up(http: httpx2.AsyncClient, origin: str) -> None:
    async def answers() -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return (await http.get(origin)).status_code == 200
        return False

    await wait_until(answers, within_seconds=30, what=f"{origin} answers")


class User:
    """Somebody with a browser of their own, at the page of an example."""

    def __init__(self, context: BrowserContext, page: Page, example: str) -> None:
        self.context, self.page, self.example = context, page, example
        self.sent: list[str] = []
        """What the browser has sent to anybody: addresses and headers."""
        page.on("request", self._note)

    def _note(self, request: Request) -> None:
        self.sent.append(f"{request.url} {request.headers}")

    @classmethod
    async def at(cls, browser: Browser, example: str, answer: str = "") -> User:
        context = await browser.new_context()
        user = cls(context, await context.new_page(), example)
        await user.page.goto(f"{ORIGINS[example]}/#{answer}")
        return user

    async def log_in(self, name: str, password: str) -> None:
        await self.page.fill("[name=name]", name)
        if self.example == "page_with_own_backend":
            await self.page.fill("[name=password]", password)
        await self.page.click("text=Log in")

    async def shows(self, status: str) -> None:
        await expect(self.page.locator("#status")).to_have_text(status)


@pytest.mark.parametrize("example", EXAMPLES)
async def test_each_user_has_their_own_answers_and_a_page_that_is_reloaded_goes_on(
    browser: Browser, system: System, example: str
) -> None:
    ada = await User.at(browser, example)
    await ada.page.click("text=Ask")
    await ada.shows("log in")
    await ada.log_in("ada", "secret")
    await ada.shows("logged in")
    await ada.page.click("text=Ask")
    await ada.page.wait_for_function("location.hash.length === 37")
    stream_id = (await ada.page.evaluate("location.hash"))[1:]
    await expect(ada.page.locator("#text")).not_to_be_empty()
    system.gateways[0].kill()
    await system.start_gateway(0)
    await ada.page.reload()
    if example == "page_with_jwt":  # its login is the identity provider's, which a real page asks again
        await ada.log_in("ada", "secret")
    await ada.shows("done")
    operator = {"authorization": f"Bearer {KEY}"}
    url = f"{system.gateway_url()}/v1/streams/{stream_id}"
    state = await system.http.get(url, headers={**operator, "x-midstream-owner": "ada"})
    assert await ada.page.inner_text("#text") == state.json()["text"].strip()

    bob = await User.at(browser, example, stream_id)
    await bob.log_in("bob", "geheim")
    await bob.shows(f"{'the backend' if example == 'page_with_own_backend' else 'Midstream'} answers 404")
    assert await bob.page.inner_text("#text") == ""
    await bob.page.click("text=Ask")
    await expect(bob.page.locator("#text")).not_to_be_empty()
    await bob.page.click("text=Stop")
    await bob.shows("cancelled")
    assert KEY not in "".join(ada.sent + bob.sent), "the key is the backend's alone"
    for user in (ada, bob):
        await user.context.close()


async def test_a_wrong_password_and_a_strange_site_get_nothing(system: System) -> None:
    async with httpx2.AsyncClient(base_url=ORIGINS["page_with_own_backend"], trust_env=False) as browser:
        assert (await browser.post("/login", json={"name": "ada", "password": "geheim"})).status_code == 401
        assert (await browser.post("/login", json={"name": "eve", "password": ""})).status_code == 401
        assert (await browser.post("/answers", json={"question": "?"})).status_code == 401
        logged_in = await browser.post("/login", json={"name": "ada", "password": "secret"})
        cookie = logged_in.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie  # no other site's form asks in ada's name
        given = await browser.post("/answers", json={"question": "?"})
        assert given.json().keys() == {"midstream", "id", "token"}
