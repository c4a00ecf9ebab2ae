"""Waiting for something to come true, the only place where a test sleeps."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

_POLL_SECONDS = 0.005
GO_SECONDS_MAX = 5.0
"""For what has been told to end, or has lost its parent, and is about to go."""

T = TypeVar("T")


async def wait_until(
    predicate: Callable[[], object | Awaitable[object]], *, within_seconds: float = 5.0, what: str = ""
) -> None:
    """Return as soon as the predicate, plain or async, holds. AssertionError that names `what` if it does not in time."""
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
    """What is still there when whatever is about to go has had the time to."""
    deadline = time.monotonic() + GO_SECONDS_MAX
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return found
