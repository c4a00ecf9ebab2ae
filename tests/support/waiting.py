"""Waits for a condition. This is the only module of the tests that sleeps."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

_POLL_SECONDS = 0.005
GO_SECONDS_MAX = 5.0
"""For processes and connections that have been asked to end, or have lost their parent."""

T = TypeVar("T")


async def wait_until(
    predicate: Callable[[], object | Awaitable[object]], *, within_seconds: float = 5.0, what: str = ""
) -> None:
    """Returns as soon as the predicate, plain or async, holds. AssertionError that names `what` if it does not in time."""
    deadline = time.monotonic() + within_seconds
    while True:
        held = predicate()
        if inspect.isawaitable(held):
            held = await held
        if held:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_seconds:g} s: {what or inspect.getsource(predicate).strip()}")
        await asyncio.sleep(_POLL_SECONDS)


def what_stays(look: Callable[[], list[T]]) -> list[T]:
    """Returns what `look` still finds after the time that things get to go away; returns early if it finds nothing."""
    deadline = time.monotonic() + GO_SECONDS_MAX
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return found
