"""The AI SDK from npm, in the versions of tests/e2e/ai_sdk/package-lock.json, and test pages built with it."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
from typing import Any

from tests.support.packages import packages

_READ_SECONDS_MAX = 30.0


@functools.cache
def page(folder: str = "ai_sdk") -> str:
    """Returns the bundled script of the test page in a folder of tests/e2e."""
    place = packages(folder)
    command = [str(place / "node_modules/.bin/esbuild"), "page.jsx", "--bundle", "--jsx=automatic", "--log-level=error"]
    command.append('--define:process.env.NODE_ENV="production"')
    return subprocess.run(
        command, cwd=place, check=True, capture_output=True, text=True, timeout=_READ_SECONDS_MAX
    ).stdout


async def read(body: bytes, version: str = "ai") -> dict[str, Any]:
    """Returns what the SDK's own parser, schema and reader make of a body: `chunks`, `wrong`, `errors`, `message`."""
    process = await asyncio.create_subprocess_exec(
        "node",
        "read.mjs",
        version,
        cwd=packages("ai_sdk"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_READ_SECONDS_MAX):
        printed, _ = await process.communicate(body)
    assert process.returncode == 0
    seen: dict[str, Any] = json.loads(printed)
    return seen


async def chat(base_url: str, simulate: dict[str, Any]) -> dict[str, Any]:
    """Returns what the SDK's `openai` provider got over three turns (`texts`, `errors`), and what it sent (`inputs`)."""
    process = await asyncio.create_subprocess_exec(
        "node",
        "provider.mjs",
        json.dumps({"baseURL": base_url, "simulate": simulate}),
        cwd=await asyncio.to_thread(packages, "ai_sdk"),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_READ_SECONDS_MAX):
        printed, _ = await process.communicate()
    assert process.returncode == 0
    seen: dict[str, Any] = json.loads(printed)
    return seen
