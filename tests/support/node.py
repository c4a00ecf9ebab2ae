"""Scripts that use clients from npm, in the versions that the package-lock.json beside the script names."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.support.packages import packages

_RUN_SECONDS_MAX = 60.0


async def run(name: str, argument: Any, folder: str = "node") -> Any:
    """Runs a script of a folder of tests/e2e with a JSON argument, and returns the JSON that it prints."""
    script = await asyncio.to_thread(packages, folder) / name
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
