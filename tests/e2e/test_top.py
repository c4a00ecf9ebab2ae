"""`midstream top` in a pseudo-terminal, and its output for scripts."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import pytest

from tests.support.system import System
from tests.support.waiting import wait_until

_ROOT = Path(__file__).resolve().parents[2]
_COMMAND = [sys.executable, "-m", "midstream.cli", "top"]
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
_ENTERED, _LEFT = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


class Terminal:
    """`midstream top` in a terminal of so many lines and columns."""

    def __init__(self, url: str, lines: int, columns: int) -> None:
        self._main, side = pty.openpty()
        self.resize(lines, columns, tell=False)
        self.attributes = termios.tcgetattr(side)
        self.process = subprocess.Popen([*_COMMAND, "--server", url], cwd=_ROOT, stdin=side, stdout=side, stderr=side)
        self._side = side
        os.set_blocking(self._main, False)
        self._said = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)
        os.close(self._side)

    def resize(self, lines: int, columns: int, *, tell: bool = True) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        if tell:
            self.process.send_signal(signal.SIGWINCH)

    def output(self) -> str:
        try:
            while more := os.read(self._main, 65536):
                self._said += more
        except OSError:  # nothing there at the moment
            pass
        return self._said.decode(errors="replace")

    def picture(self) -> list[str]:
        """Returns the newest complete frame, without colours."""
        frames = [one for one in self.output().split("\x1b[H")[1:] if one.endswith("\x1b[J") or _LEFT in one]
        return _ESCAPE.sub("", frames[-1].removesuffix(_LEFT)).split("\r\n") if frames else []

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._side)[3] & termios.ECHO)


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with System() as running:
        yield running


async def run(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *_COMMAND, *arguments, cwd=_ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_live_display_resizing_and_quitting(system: System) -> None:
    streams = [await system.create(simulate={"tokens": 3000, "tokens_per_second": 30}) for _ in range(20)]
    with Terminal(system.gateway_url(), 24, 80) as terminal:

        def shows(pattern: str) -> bool:
            return re.search(pattern, "\n".join(terminal.picture())) is not None

        await wait_until(lambda: shows(r"20 running"), within_seconds=20.0, what="the streams")
        await wait_until(lambda: shows(r"tokens/s [1-9]"), what="a rate")
        assert len(terminal.picture()) <= 24
        assert max(map(len, terminal.picture())) <= 80
        assert shows(r"gateway .*readers")
        assert shows(r"worker .*20/1000")
        assert shows(r"and \d+ more"), "twenty streams do not fit"
        terminal.resize(40, 120)
        await wait_until(lambda: all(shows(one[:12]) for one in streams), what="room for all")
        terminal.resize(10, 60)
        await wait_until(lambda: 0 < len(terminal.picture()) <= 10, what="a small one")
        assert max(map(len, terminal.picture())) <= 60
        assert not terminal.echoes()

        system.gateways[0].kill()
        terminal.resize(24, 80)
        await wait_until(lambda: shows("no news"), what="it says that the gateway is away")
        await system.start_gateway(0)
        await wait_until(lambda: not shows("no news"), within_seconds=15.0, what="and is back")

        terminal.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(terminal.process.wait, 10) == 130
        assert terminal.output().startswith(_ENTERED)
        assert terminal.output().endswith(_LEFT)
        assert "Traceback" not in terminal.output()
        assert terminal.echoes()


async def test_output_for_scripts(system: System) -> None:
    stream_id = await system.create(simulate={"tokens": 3000, "tokens_per_second": 30})
    url = system.gateway_url()
    code, out, _ = await run("--server", url, "--once")
    assert code == 0
    assert stream_id[:12] in out
    assert "\x1b" not in out
    code, out, _ = await run("--server", url, "--once", "--json")
    assert (code, json.loads(out)["streams"]["newest"][0]["id"]) == (0, stream_id)
    process = await asyncio.create_subprocess_exec(
        *_COMMAND, "--server", url, "--json", cwd=_ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        times = [json.loads(await process.stdout.readline())["time"] for _ in range(4)]
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()
    # One a second. The snapshot that is there when it comes may be followed by itself.
    assert times == sorted(times)
    assert times[-1] - times[0] > 1.0


async def test_errors_are_printed(system: System) -> None:
    code, _, err = await run("--server", system.gateway_url())
    assert (code, "no terminal" in err) == (1, True)
    code, _, err = await run("--once", "--server", "http://127.0.0.1:9")
    assert (code, "cannot be reached" in err, "Traceback" in err) == (1, True, False)
    code, _, err = await run("--once", "--server", f"{system.gateway_url()}/nowhere")
    assert (code, "MIDSTREAM_CONSOLE" in err) == (1, True)
