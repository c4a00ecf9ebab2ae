"""Clients from npm, in the versions of tests/e2e/node/package-lock.json."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.support.packages import packages

_RUN_SECONDS_MAX = 60.0


async def run(name: str, argument: Any) -> Any:
    """Runs a script of tests/e2e/node with a JSON argument, and returns the JSON that it prints."""
    script = await asyncio.to_thread(packages, "node") / name
    process = await asyncio.create_subprocess_exec(
        *("node", str(script), json.dumps(argument)), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_RUN_SECONDS_MAX):
            printed, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, complaint.decode()
    return json.loads(printed)
