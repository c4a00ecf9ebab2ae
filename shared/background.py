"""Tasks that run as long as their process: one that raises is logged, counted, and started again after a pause.

A task that nobody awaits ends silently when it raises: leases would no longer be renewed, or dead workers noticed.

Their pauses (`pause`) end at common moments, the long ones at the same fifth of each second: a process without work wakes up five times
a second, not so often for each task. A wake-up is dear, since nothing of it is in the processor's caches.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable

from prometheus_client import Counter

from shared import metrics

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
"""Before a task that broke is started again; doubled each time that it breaks soon after."""
_PAUSE_SECONDS_MAX = 5.0
"""Half a lease. A task that always breaks writes at most 12 traces a minute."""
_SETTLED_SECONDS = 60.0
"""A task that has run for so long begins again with the first pause."""
TICK_SECONDS, _LONG_TICK_SECONDS = 0.2, 1.0
"""The distance of the moments at which pauses end, and of those at which pauses of a second and longer end."""
_PHASE_SECONDS = random.uniform(0, _LONG_TICK_SECONDS)
"""How long after whole ticks of the machine's clock the moments of this process are, so that the processes of a machine wake up at different ones."""
_EARLY_SECONDS = 0.005
"""How much too early a timer may be without counting as before its tick: uvloop counts whole milliseconds."""


def keep_running(name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    """Runs `work` as a task until it returns or is cancelled; starts it again, after a pause, whenever it raises.

    `name` is one of `shared.metrics.BACKGROUND_TASKS`. State that must survive a new start cannot be in local variables of
    the work.
    """
    assert name in metrics.BACKGROUND_TASKS, name
    failures = metrics.BACKGROUND_FAILURES.counter().labels(name)
    return asyncio.get_running_loop().create_task(_kept_running(name, work, failures), name=name)


async def _kept_running(name: str, work: Callable[[], Awaitable[None]], failures: Counter) -> None:
    pause_seconds = FIRST_PAUSE_SECONDS
    while True:
        began_at = time.monotonic()
        try:
            await work()
            return
        except Exception:  # CancelledError is not one
            if time.monotonic() - began_at > _SETTLED_SECONDS:
                pause_seconds = FIRST_PAUSE_SECONDS
            logger.exception("the background task %s broke; starting it again in %g s", name, pause_seconds)
            failures.inc()
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * 2, _PAUSE_SECONDS_MAX)


async def pause(seconds: float) -> float:
    """Waits until the last tick that is not later than so many seconds from now; exactly so long if that is less than a tick.

    The ticks of a pause of a second and longer are whole seconds apart.

    Returns when the wait was due to end (loop seconds).
    """
    now = asyncio.get_running_loop().time()
    due_at = now + seconds
    if seconds >= TICK_SECONDS:
        tick_seconds = TICK_SECONDS if seconds < _LONG_TICK_SECONDS else _LONG_TICK_SECONDS
        ticks = math.floor((due_at - _PHASE_SECONDS + _EARLY_SECONDS) / tick_seconds)
        due_at = ticks * tick_seconds + _PHASE_SECONDS
    await asyncio.sleep(due_at - now)
    return due_at


class Complaints:
    """Limits a warning that would come several times a second: logged when it changes, and once a minute."""

    _AGAIN_SECONDS = 60.0

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._last, self._next_at = "", 0.0

    def say(self, complaint: str) -> None:
        now = time.monotonic()
        if complaint != self._last or now >= self._next_at:
            self._last, self._next_at = complaint, now + self._AGAIN_SECONDS
            self._warn(complaint)
