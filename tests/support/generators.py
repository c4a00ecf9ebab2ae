"""Generators for workers of tests, as `tests.support.generators:NAME`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from midstream.generator import Delta, Finish, SoFar


async def steps(request: dict[str, Any]) -> AsyncIterator[Any]:
    """Yields one of everything."""
    yield "one"
    yield {"event": "step", "data": {"number": 1, "of": "steps"}}
    yield " two"
    yield Delta({"reasoning_content": "Hm."})
    yield Finish("stop", {"total_tokens": 4})


async def raises(request: dict[str, Any]) -> AsyncIterator[str]:
    yield "one"
    raise KeyError(request["messages"][0]["content"])


async def deaf(request: dict[str, Any]) -> AsyncIterator[str]:
    """Ignores every cancellation."""
    yield "one"
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)


# --- for the stress runs: what happens is noted in a file, which outlives any worker


def note(*words: object) -> None:
    """Appends a line to the file that NOTES names; lines of several processes do not mix."""
    line = " ".join(map(str, words)) + "\n"
    descriptor = os.open(Path(os.environ["NOTES"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


async def endless(request: dict[str, Any], so_far: SoFar) -> AsyncIterator[str]:
    """Talks until it is stopped, and notes when it is."""
    try:
        while True:
            yield "word "
            await asyncio.sleep(request.get("pause_seconds", 0.05))
    except (asyncio.CancelledError, GeneratorExit):
        note("stopped", so_far.stream_id, time.monotonic())
        raise


def endless_threaded(request: dict[str, Any], so_far: SoFar) -> Any:
    try:
        while True:
            yield "word "
            time.sleep(request.get("pause_seconds", 0.05))
    except GeneratorExit:
        note("stopped", so_far.stream_id, time.monotonic())
        raise


_now: ContextVar[SoFar] = ContextVar("now")
"""Of the stream whose tool is called: many run in one worker."""


def _weather(city: str) -> str:
    note("ran", _now.get().stream_id, _now.get().attempt, city)
    return f"18 degrees and rain in {city}"


async def tool_loop(request: dict[str, Any], so_far: SoFar) -> AsyncIterator[Any]:
    """The tool loop of the example, whose tool notes each of its runs."""
    from examples import openai_tool_loop as example

    example.TOOLS["weather"] = _weather
    _now.set(so_far)
    answer: Any = example.answer
    async for yielded in answer(request, so_far):
        yield yielded
