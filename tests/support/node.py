"""Clients from npm, in the versions of tests/e2e/node/package-lock.json."""

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

_SOURCES = Path(__file__).resolve().parents[1] / "e2e" / "node"
_INSTALL_SECONDS_MAX = 150.0
_RUN_SECONDS_MAX = 60.0


@functools.cache
def installed() -> Path:
    """A directory with the packages, made once per lock file and machine, outside of the checkout."""
    needs("node and npm (Debian: apt install nodejs npm)", shutil.which("node") and shutil.which("npm"))
    wanted = hashlib.sha256((_SOURCES / "package-lock.json").read_bytes()).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"midstream-node-{wanted}"
    if not place.exists():
        made = Path(tempfile.mkdtemp(prefix="midstream-node-"))
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_SOURCES / name, made)
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=_INSTALL_SECONDS_MAX)
        if done.returncode:
            print(done.stderr)
            needs("the packages from npm (npm ci failed; is the registry reachable?)", False)
        try:
            made.rename(place)
        except OSError:  # another run was faster
            shutil.rmtree(made, ignore_errors=True)
    return place


async def run(name: str, argument: Any) -> Any:
    """What a script of tests/e2e/node prints as JSON, for an argument that it gets as JSON."""
    place = await asyncio.to_thread(installed)
    source = _SOURCES / name
    script = place / f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.mjs"  # beside node_modules
    if not script.exists():
        shutil.copy(source, script)
    process = await asyncio.create_subprocess_exec(
        *("node", str(script), json.dumps(argument)), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_RUN_SECONDS_MAX):
            told, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, complaint.decode()
    return json.loads(told)
