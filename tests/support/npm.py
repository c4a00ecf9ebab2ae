"""Clients from npm, in the versions of tests/e2e/clients/package-lock.json, and our scripts that use them."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support.packages import packages
from tests.support.waiting import wait_until

_BUNDLE_SECONDS_MAX = 30.0


def clients() -> Path:
    """Returns the folder with the packages and the scripts."""
    return packages("clients")


@functools.cache
def bundled(script: str) -> str:
    """Returns one of the scripts bundled with its imports, for a page."""
    place = clients()
    command = [str(place / "node_modules/.bin/esbuild"), script, "--bundle", "--log-level=error"]
    return subprocess.run(
        command, cwd=place, check=True, capture_output=True, text=True, timeout=_BUNDLE_SECONDS_MAX
    ).stdout


class Node:
    """A context: one of the scripts, running. It prints what it receives as lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[dict[str, Any]] = []
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def run(cls, script: str, *arguments: str) -> Node:
        return cls(
            await asyncio.create_subprocess_exec(
                *("node", script, *arguments),
                cwd=clients(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        )

    async def until_ready(self) -> None:
        """Waits for the script's first line: it has started."""
        await wait_until(lambda: self.lines or self._listening.done(), what="Node.js has started")
        assert self.lines, "it has ended"

    def write(self, line: str) -> None:
        """Writes a line to the script's standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.lines.append(json.loads(line))

    async def until_end(self, *, within_seconds: float = 30.0) -> list[dict[str, Any]]:
        """Waits for the script's successful end, and returns all its lines."""
        async with asyncio.timeout(within_seconds):
            await self._listening
            assert await self._process.wait() == 0, self.lines[-3:]
        return self.lines

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self._listening
