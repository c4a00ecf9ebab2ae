"""Clients from npm, in the versions that tests/e2e/clients/package-lock.json names, and our scripts that use them."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.support.needs import needs

_SOURCES = Path(__file__).resolve().parents[1] / "e2e" / "clients"
_INSTALL_SECONDS_MAX = 120.0
_BUNDLE_SECONDS_MAX = 30.0


@functools.cache
def clients() -> Path:
    """A directory with the packages and the scripts, made once per version and machine, outside of the checkout."""
    needs("node and npm (Debian: apt install nodejs npm)", shutil.which("node") and shutil.which("npm"))
    digest = hashlib.sha256()
    for source in sorted(_SOURCES.iterdir()):
        if source.is_file():
            digest.update(source.read_bytes())
    place = Path(tempfile.gettempdir()) / f"midstream-clients-{digest.hexdigest()[:16]}"
    if not place.exists():
        made = Path(tempfile.mkdtemp(prefix="midstream-clients-"))
        shutil.copytree(_SOURCES, made, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=_INSTALL_SECONDS_MAX)
        if done.returncode:
            print(done.stderr)
            needs("what tests/e2e/clients/package.json names (npm ci failed; is its registry reachable?)", False)
        try:
            made.rename(place)
        except OSError:  # another run was faster
            shutil.rmtree(made, ignore_errors=True)
    return place


@functools.cache
def bundled(script: str) -> str:
    """One of the scripts with all that it imports, for a page."""
    place = clients()
    command = [str(place / "node_modules/.bin/esbuild"), script, "--bundle", "--log-level=error"]
    return subprocess.run(
        command, cwd=place, check=True, capture_output=True, text=True, timeout=_BUNDLE_SECONDS_MAX
    ).stdout


class Node:
    """One of the scripts, running; it says what it sees in lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.said: list[dict[str, Any]] = []
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def run(cls, script: str, *arguments: str) -> Node:
        return cls(
            await asyncio.create_subprocess_exec(
                "node", script, *arguments, cwd=clients(), stdout=asyncio.subprocess.PIPE
            )
        )

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.said.append(json.loads(line))

    async def until_end(self, *, within_seconds: float = 30.0) -> list[dict[str, Any]]:
        """All that it said; it ends by itself, without a complaint."""
        async with asyncio.timeout(within_seconds):
            await self._listening
            assert await self._process.wait() == 0, self.said[-3:]
        return self.said

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self._listening
