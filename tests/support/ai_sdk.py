"""The AI SDK from its registry, in the versions of tests/e2e/ai_sdk/package-lock.json, and what is built with it."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
from typing import Any

from tests.support.packages import packages

_READ_SECONDS_MAX = 30.0


@functools.cache
def page() -> str:
    """The script of the test page, bundled."""
    place = packages("ai_sdk")
    command = [str(place / "node_modules/.bin/esbuild"), "page.jsx", "--bundle", "--jsx=automatic", "--log-level=error"]
    command.append('--define:process.env.NODE_ENV="production"')
    return subprocess.run(
        command, cwd=place, check=True, capture_output=True, text=True, timeout=_READ_SECONDS_MAX
    ).stdout


async def read(body: bytes, version: str = "ai") -> dict[str, Any]:
    """What the SDK's own parser, schema and reader make of a whole body: `chunks`, `wrong`, `errors`, `message`."""
    process = await asyncio.create_subprocess_exec(
        "node",
        "read.mjs",
        version,
        cwd=packages("ai_sdk"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(_READ_SECONDS_MAX):
        told, _ = await process.communicate(body)
    assert process.returncode == 0
    seen: dict[str, Any] = json.loads(told)
    return seen
