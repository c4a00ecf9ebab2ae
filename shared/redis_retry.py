"""Waiting for a Redis that is away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.errors import Disconnected, RedisRefused

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.02
_PAUSE_SECONDS_MAX = 0.5
"""So late, at most, does a caller notice that Redis is back."""


async def until_redis_answers(call: Callable[[], Awaitable[T]]) -> T:
    """Call until Redis answers, however long it is away; the caller sets a bound, by cancelling, where there is one.

    Only for calls that may be repeated. Raises whatever is not passing: RedisRefused, LogFull.
    """
    pause_seconds = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await call()
        except Disconnected:
            pass
        except RedisRefused as error:
            if not error.passing:
                raise
        await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.0))
        pause_seconds = min(pause_seconds * 2, _PAUSE_SECONDS_MAX)
