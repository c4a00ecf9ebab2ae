"""Takes the console's pictures: `python docs/images/console_png.py`, with Chromium and this project installed.

Midstream runs for half a minute with simulated answers; then the worker of the stream in the timeline is killed.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image
from playwright.async_api import Browser, Page, async_playwright

_HERE = Path(__file__).resolve().parent
_WIDE, _PHONE = {"width": 1180, "height": 900}, {"width": 390, "height": 844}
_READERS_PER_STREAM = 3
_CUSTOMERS = ("Acme", "Globex", "Initech")


def start(*, lease_seconds: int = 3, data: str = "") -> tuple[subprocess.Popen[str], str]:
    """Starts `midstream up` on a free port, with an archive if there is a folder for it; returns the process and its URL."""
    command = [sys.executable, "-m", "midstream.cli", "up", "--port", "0", "--workers", "2", "--provider", "simulated"]
    command += ["--data-dir", data] if data else []
    environment = {**os.environ, "MIDSTREAM_LEASE_SECONDS": str(lease_seconds)}
    process = subprocess.Popen(  # noqa: S603
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=_HERE.parents[1]
    )
    assert process.stdout is not None
    url = re.search(r"http://\S+", process.stdout.readline())
    assert url, "midstream up did not start"
    return process, url[0]


class Load:
    """Creates answers of several lengths and paces, each with a few readers, until it is closed."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.AsyncClient(base_url=url, timeout=60.0, limits=httpx2.Limits(max_connections=None))
        self._tasks: set[asyncio.Task[None]] = set()

    async def create(self, tokens: int, pace: float, *, fail_after: int | None = None, **midstream: Any) -> str:
        body = {
            "messages": [{"role": "user", "content": f"{tokens} at {pace}"}],
            "simulate": {"tokens": tokens, "tokens_per_second": pace, "fail_after": fail_after},
            "midstream": midstream,
        }
        return str((await self._http.post("/v1/streams", json=body)).json()["id"])

    async def overview(self) -> dict[str, Any]:
        snapshot: dict[str, Any] = (await self._http.get("/v1/overview")).json()
        return snapshot

    def follow(self, stream_id: str) -> None:
        self._tasks.add(asyncio.create_task(self._read(stream_id)))

    def keep_up(self) -> None:
        self._tasks.add(asyncio.create_task(self._again_and_again()))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    async def _again_and_again(self) -> None:
        number = 0
        while True:
            number += 1
            metadata = {"metadata": {"customer": _CUSTOMERS[number % 3]}} if number % 4 else {}
            stream_id = await self.create(120 + 97 * number % 400, 15 + 13 * number % 60, **metadata)
            for _ in range(_READERS_PER_STREAM):
                self.follow(stream_id)
            await asyncio.sleep(0.8 + 0.7 * (number % 3))

    async def _read(self, stream_id: str) -> None:
        with suppress(httpx2.HTTPError):
            async with self._http.stream("GET", f"/v1/streams/{stream_id}/events") as response:
                async for _ in response.aiter_bytes():
                    pass


async def open_page(browser: Browser, url: str, *, dark: bool = False, size: dict[str, int] | None = None) -> Page:
    page = await browser.new_page(
        viewport=size or _WIDE,
        color_scheme="dark" if dark else "light",
        device_scale_factor=1.5,  # type: ignore[arg-type]
    )
    await page.goto(url)
    return page


async def take(page: Page, name: str, *, whole: bool = False) -> None:
    keep(await page.screenshot(full_page=whole), name)
    await page.close()


def keep(picture: bytes, name: str) -> None:
    """Stores a picture with 256 colours: it looks alike, in a third of the bytes."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256).save(_HERE / f"console-{name}.png", optimize=True)


async def pictures(browser: Browser, url: str) -> None:
    load = Load(url)
    try:
        chat = await open_page(browser, f"{url}/chat")
        await chat.get_by_text("Options").click()
        await chat.fill("#tokens", "150")
        await chat.get_by_text("Options").click()
        await chat.fill("#prompt", "Tell me how a river finds its way to the sea.")
        await chat.press("#prompt", "Enter")
        await asyncio.sleep(2)
        await chat.click("#cut")
        await asyncio.sleep(3)
        await chat.reload()
        watched = await load.create(900, 20)
        load.follow(watched)
        load.keep_up()
        light, dark = await open_page(browser, url), await open_page(browser, url, dark=True)
        phone = await open_page(browser, url, size=_PHONE)
        timeline = await open_page(browser, f"{url}/#{watched}", dark=True)
        await asyncio.sleep(4)
        rows = {row["id"]: row for row in (await load.overview())["streams"]["newest"]}
        pids = {row["name"]: row["pid"] for row in (await load.overview())["processes"]}
        os.kill(pids[rows[watched]["worker"]], signal.SIGKILL)
        await asyncio.sleep(15)
        await load.create(40, 40, on_interrupt="fail", fail_after=12)
        await asyncio.sleep(3)
        keep(await timeline.locator("#stream").screenshot(), "timeline")
        await phone.locator("#streams-title").evaluate("title => title.scrollIntoView()")
        await asyncio.gather(take(light, "light", whole=True), take(dark, "dark", whole=True), take(phone, "phone"))
        await list_picture(await open_page(browser, url), load)
        await chat.locator(".story .good").wait_for(timeout=60_000)
        await take(chat, "chat")
        small = await open_page(browser, f"{url}/chat", dark=True, size=_PHONE)
        await small.fill("#prompt", "What is a stream?")
        await small.press("#prompt", "Enter")
        await asyncio.sleep(3)
        await take(small, "chat-phone")
    finally:
        await load.close()


async def list_picture(page: Page, load: Load) -> None:
    for number in range(6):
        await load.create(40 + 9 * number, 200, metadata={"customer": "Acme", "chat": str(40 + number)})
    await load.create(40, 200, on_interrupt="fail", fail_after=12, metadata={"customer": "Acme", "chat": "46"})
    await asyncio.sleep(6)  # they are archived
    await page.fill("#kept-metadata", "customer=Acme")
    await page.click("#kept-find button")
    await page.locator("#kept-rows tr").nth(6).wait_for()
    await page.locator("#kept-rows").evaluate("rows => [...rows.children].slice(8).forEach((row) => row.remove())")
    keep(await page.locator("#kept").screenshot(), "list")
    await page.close()


async def main() -> None:
    folder = tempfile.TemporaryDirectory()
    process, url = start(data=folder.name)
    try:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            await pictures(browser, url)
            await browser.close()
    finally:
        process.terminate()
        process.wait(20)
        folder.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
