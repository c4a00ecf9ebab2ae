"""Films the chat page in two tabs: `python docs/images/two_tabs_webp.py`, with Chromium and this project installed.

Midstream runs with simulated answers. One answer is read in two tabs; a connection is cut, the worker is killed, and the
other tab stops the answer. Each picture of the film is a screenshot of both tabs; only the line above them is drawn.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import httpx2
from console_png import start
from PIL import Image, ImageDraw, ImageFont
from playwright.async_api import Browser, Page, async_playwright

_FILM = Path(__file__).resolve().parent / "two-tabs.webp"
_BYTES_MAX = 1_500_000
_TAB = {"width": 480, "height": 500}
_GAP, _LINE, _BAR = 12, 40, 66
_INK, _GREY, _PAPER = "#e6edf3", "#8b949e", "#0d1117"
_TABS = ("tab 1", "tab 2")
_FRAME_SECONDS_MIN = 0.2
_COLOURS = 96
_LAST_MILLISECONDS = 5_000


class Film:
    """Pictures of both tabs, each with the time for which it is shown."""

    def __init__(self, tabs: list[Page]) -> None:
        self._tabs = tabs
        self._frames: list[Image.Image] = []
        self._taken_at: list[float] = []
        self.caption = ""

    async def take(self) -> None:
        """Takes a picture of the tabs as they are now."""
        began = time.monotonic()
        shots = await asyncio.gather(*(tab.screenshot() for tab in self._tabs))
        width, height = 2 * _TAB["width"] + 3 * _GAP, _TAB["height"] + _BAR + _GAP
        frame = Image.new("RGB", (width, height), _PAPER)
        draw = ImageDraw.Draw(frame)
        draw.text((_GAP, _LINE / 2 + 4), self.caption, fill=_INK, font=ImageFont.load_default(21), anchor="lm")
        for index, (shot, name) in enumerate(zip(shots, _TABS, strict=True)):
            left = _GAP + index * (_TAB["width"] + _GAP)
            frame.paste(Image.open(io.BytesIO(shot)), (left, _BAR))
            draw.text((left, (_LINE + _BAR) / 2), name, fill=_GREY, font=ImageFont.load_default(15), anchor="lm")
        self._frames.append(frame.quantize(_COLOURS, dither=Image.Dither.NONE).convert("RGB"))
        self._taken_at.append(began)
        await asyncio.sleep(max(0.0, _FRAME_SECONDS_MIN - (time.monotonic() - began)))

    async def roll(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await self.take()

    def save(self) -> int:
        """Writes the film, and returns its size in bytes."""
        shown = [round(1000 * (after - at)) for at, after in zip(self._taken_at, self._taken_at[1:], strict=False)]
        first, *others = self._frames
        first.save(
            _FILM,
            save_all=True,
            append_images=others,
            duration=[*shown, _LAST_MILLISECONDS],
            loop=0,
            lossless=True,
            minimize_size=True,
            method=4,
        )
        return _FILM.stat().st_size


async def worker_pid(http: httpx2.AsyncClient, stream_id: str) -> int:
    overview: dict[str, Any] = (await http.get("/v1/overview")).json()
    (worker,) = [row["worker"] for row in overview["streams"]["newest"] if row["id"] == stream_id]
    (pid,) = [process["pid"] for process in overview["processes"] if process["name"] == worker]
    return int(pid)


async def play(browser: Browser, url: str) -> int:
    async with httpx2.AsyncClient(base_url=url) as http:
        tabs = [await browser.new_page(viewport=_TAB) for _ in range(2)]  # type: ignore[arg-type]
        for tab in tabs:
            await tab.goto(f"{url}/chat")
        film = Film(tabs)
        film.caption = "A question is asked in tab 1."
        await tabs[0].get_by_text("Options").click()
        await tabs[0].fill("#tokens", "900")
        await tabs[0].fill("#pace", "14")
        await tabs[0].select_option("#on-interrupt", "continue")
        await tabs[0].get_by_text("Options").click()
        await tabs[0].fill("#prompt", "Tell me how a river finds its way to the sea.")
        await film.roll(0.8)
        await tabs[0].press("#prompt", "Enter")
        await film.roll(2.4)

        stream_id = (await tabs[0].evaluate("location.hash"))[1:]
        film.caption = "The same answer in tab 2: from its beginning, then live."
        await tabs[1].goto("about:blank")
        await tabs[1].goto(f"{url}/chat#{stream_id}")
        await film.roll(2.6)

        film.caption = "The connection of tab 1 is cut ..."
        await tabs[0].click("#cut")
        await film.roll(1.6)
        film.caption = "... and goes on at the exact token."
        await film.roll(3.0)

        film.caption = "kill -9: the worker that generates the answer dies ..."
        os.kill(await worker_pid(http, stream_id), signal.SIGKILL)
        await film.roll(2.0)
        film.caption = "... and another one continues it, behind the last token."
        await film.roll(2.6)

        film.caption = "Stop, pressed in tab 2, reaches whoever generates, and every reader."
        await tabs[1].click("#stop")
        await film.roll(2.6)
        receipt = (await http.get(f"/v1/streams/{stream_id}/receipt")).json()
        generated, delivered = receipt["generated"], receipt["delivered"]
        film.caption = (
            f"The receipt: {generated['tokens']} tokens generated in {len(generated['attempts'])} attempts, "
            f"{delivered['tokens']} delivered over {len(delivered['connections'])} connections."
        )
        await film.roll(0.6)
        return film.save()


async def main() -> None:
    process, url = start(lease_seconds=1)
    try:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            size = await play(browser, url)
            await browser.close()
    finally:
        process.terminate()
        process.wait(20)
    print(f"{_FILM.name}: {size:,} bytes")
    assert size < _BYTES_MAX


if __name__ == "__main__":
    asyncio.run(main())
