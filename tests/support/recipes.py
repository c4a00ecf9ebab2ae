"""What a guide has its reader do, done: its code blocks, and a Midstream that `midstream up` starts in an empty folder.

(program,) = blocks(page, "python", under="## Ask")
async with midstream_up(tmp_path) as url:
    printed = await run_python(program, tmp_path, url)
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_GATEWAY = "http://127.0.0.1:8000"
"""Where the guides have it."""
_START_SECONDS_MAX = 30.0
_RUN_SECONDS_MAX = 180.0
_END_SECONDS_MAX = 20.0


def blocks(page: Path, language: str, *, under: str = "") -> list[str]:
    """Returns the code blocks of a page in this language, all or those of one section."""
    text = page.read_text()
    if under:
        assert f"\n{under}\n" in text, f"{page.name} has no heading {under!r}"
        level = under.split()[0]
        text = re.split(rf"^#{{1,{len(level)}}} ", text.partition(f"\n{under}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def environment(**variables: str) -> dict[str, str]:
    """Returns the environment of a reader who has activated `.venv`, and has set nothing but these variables."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MIDSTREAM_", "OPENAI_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**ours, "PATH": path, "NO_PROXY": "127.0.0.1,localhost", **variables}


@asynccontextmanager
async def midstream_up(
    folder: Path, command: str = "midstream up", variables: Mapping[str, str] | None = None
) -> AsyncIterator[str]:
    """Runs a guide's `midstream up …` in this folder, on a free port; gives its URL."""
    process = await asyncio.create_subprocess_exec(
        *shlex.split(command),
        *("--port", "0"),
        cwd=folder,
        env=environment(**(variables or {})),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_SECONDS_MAX):
            printed = ""
            while not (up := re.search(r"midstream is up: (http://\S+)", printed)):
                line = (await process.stdout.readline()).decode()
                assert line, f"{command} ended: {printed}"
                printed += line
        draining = asyncio.create_task(process.stdout.read())
        yield up[1]
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_END_SECONDS_MAX):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()  # midstream's guard then ends its children
                await process.wait()
    await draining


async def run(command: list[str], folder: Path, **variables: str) -> str:
    """Runs a program in this folder, and returns all that it prints. AssertionError with that if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=environment(**variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_RUN_SECONDS_MAX):
            printed = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, printed
    return printed


def at(url: str, text: str) -> str:
    """Returns a guide's code for the gateway that runs at this URL."""
    assert _GATEWAY in text
    return text.replace(_GATEWAY, url)


async def run_python(program: str, folder: Path, url: str, **variables: str) -> str:
    """Runs a program of a guide with Python, as its reader would: in this folder, from a file."""
    (folder / "program.py").write_text(at(url, program))
    return await run(["python", "program.py"], folder, **variables)


async def run_shell(commands: str, folder: Path, url: str, **variables: str) -> str:
    """Runs commands of a guide with bash, which ends at the first that fails."""
    return await run(["bash", "-euc", at(url, commands)], folder, **variables)
