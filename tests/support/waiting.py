"""Waits for a condition. This is the only module of the tests that sleeps."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

_POLL_SECONDS = 0.005
_POLL_SECONDS_MAX = 0.1
_POLL_SHARE = 0.05
"""Of the time waited so far passes until the next look: what takes long is known a little later, at far less CPU."""
GO_SECONDS_MAX = 15.0
"""For processes and connections that have been asked to end, or have lost their parent."""

T = TypeVar("T")


async def wait_until(
    predicate: Callable[[], object | Awaitable[object]], *, within_seconds: float = 15.0, what: str = ""
) -> None:
    """Returns as soon as the predicate, plain or async, holds. AssertionError that names `what` if it does not in time."""
    began = time.monotonic()
    while True:
        held = predicate()
        if inspect.isawaitable(held):
            held = await held
        if held:
            return
        waited = time.monotonic() - began
        if waited > within_seconds:
            raise AssertionError(f"not within {within_seconds:g} s: {what or inspect.getsource(predicate).strip()}")
        await asyncio.sleep(min(max(waited * _POLL_SHARE, _POLL_SECONDS), _POLL_SECONDS_MAX))


def what_stays(look: Callable[[], list[T]]) -> list[T]:
    """Returns what `look` still finds after the time that things get to go away; returns early if it finds nothing."""
    deadline = time.monotonic() + GO_SECONDS_MAX
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return found
