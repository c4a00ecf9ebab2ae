"""The AI SDK from its registry, in the versions of tests/e2e/ai_sdk/package-lock.json, and what is built with it."""

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

_SOURCES = Path(__file__).resolve().parents[1] / "e2e" / "ai_sdk"
_INSTALL_SECONDS_MAX = 150.0
_READ_SECONDS_MAX = 30.0


@functools.cache
def installed() -> Path:
    """A directory with the packages and our sources, made once per version and machine, outside of the checkout."""
    needs("node and npm (Debian: apt install nodejs npm)", shutil.which("node") and shutil.which("npm"))
    wanted = hashlib.sha256((_SOURCES / "package-lock.json").read_bytes()).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"midstream-ai-sdk-{wanted}"
    if not place.exists():
        made = Path(tempfile.mkdtemp(prefix="midstream-ai-sdk-"))
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_SOURCES / name, made)
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=_INSTALL_SECONDS_MAX)
        if done.returncode:
            print(done.stderr)
            needs("the AI SDK (npm ci failed; is its registry reachable?)", False)
        try:
            made.rename(place)
        except OSError:  # another run was faster
            shutil.rmtree(made, ignore_errors=True)
    return place


@functools.cache
def page() -> str:
    """The script of the test page, bundled."""
    place = installed()
    with tempfile.TemporaryDirectory(dir=place) as here:  # beside node_modules, where esbuild looks for them
        shutil.copy(_SOURCES / "page.jsx", here)
        bundle = Path(here) / "page.js"
        options = ["--bundle", "--jsx=automatic", '--define:process.env.NODE_ENV="production"', "--log-level=error"]
        command = [
            str(place / "node_modules/.bin/esbuild"),
            str(Path(here) / "page.jsx"),
            f"--outfile={bundle}",
            *options,
        ]
        subprocess.run(command, check=True, timeout=_READ_SECONDS_MAX)
        return bundle.read_text()


async def read(body: bytes, version: str = "ai") -> dict[str, Any]:
    """What the SDK's own parser, schema and reader make of a whole body: `chunks`, `wrong`, `errors`, `message`."""
    place = installed()
    script = place / f"read-{hashlib.sha256((_SOURCES / 'read.mjs').read_bytes()).hexdigest()[:16]}.mjs"
    if not script.exists():
        shutil.copy(_SOURCES / "read.mjs", script)
    process = await asyncio.create_subprocess_exec(
        "node", str(script), version, cwd=place, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(_READ_SECONDS_MAX):
        told, _ = await process.communicate(body)
    assert process.returncode == 0
    seen: dict[str, Any] = json.loads(told)
    return seen
