"""Repeats a call until Redis answers it, with pauses in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from shared.errors import Disconnected, RedisRefused

P = ParamSpec("P")
T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.02
_PAUSE_SECONDS_MAX = 0.5
"""The longest time that a caller takes to notice that Redis is back."""


async def until_redis_answers(call: Callable[P, Awaitable[T]], *arguments: P.args, **options: P.kwargs) -> T:
    """Returns what the call returns, however long Redis is away. A caller that wants a time limit cancels.

    Only for calls that may be repeated. Raises what waiting does not mend: LogFull, and RedisRefused unless it is `passing`.
    """
    pause_seconds = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await call(*arguments, **options)
        except (Disconnected, RedisRefused) as error:
            if not _may_pass(error):
                raise
        await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.0))
        pause_seconds = min(pause_seconds * 2, _PAUSE_SECONDS_MAX)


async def answered_within(
    seconds: float, call: Callable[P, Awaitable[T]], *arguments: P.args, **options: P.kwargs
) -> T:
    """Returns what the call returns, if Redis answers it within `seconds`; it is repeated until then.

    Only for calls that may be repeated. Raises what waiting does not mend, as `until_redis_answers` does; when the time is up,
    the newest error that Redis or its connection gave, or Disconnected if there was none.
    """
    newest: Disconnected | RedisRefused | None = None

    async def attempt() -> T:
        nonlocal newest
        try:
            return await call(*arguments, **options)
        except (Disconnected, RedisRefused) as error:
            newest = error.with_traceback(None)
            raise

    try:
        async with asyncio.timeout(seconds):
            return await until_redis_answers(attempt)
    except TimeoutError:
        raise newest or Disconnected(f"Redis has not answered within {seconds:g} s") from None
    finally:
        newest = None  # an error in it leads, by its traceback, to this frame, which must not lead back


def _may_pass(error: Disconnected | RedisRefused) -> bool:
    return isinstance(error, Disconnected) or error.passing
