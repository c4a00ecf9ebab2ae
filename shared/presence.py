"""Who is there: every gateway process and every worker says so each two seconds, in Redis, with what it does and counts.

One script call per process and beat: 50 µs of a busy Redis, 200 of an idle one. What is told is read from counters that exist anyway, so that
nothing is done per event. A process that leaves in order takes its name away; one that falls silent is remembered for
a minute, so that whoever looks can see that it is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import orjson
from prometheus_client import Counter

from shared import metrics
from shared.background import keep_running
from shared.commands import Commands, Script
from shared.errors import MidstreamError, OddReply
from shared.event_log import shown
from shared.events import TIME_MAX
from shared.keys import PROCESSES_ABOUT, PROCESSES_UNTIL
from shared.recent_quantiles import Lately
from shared.self_measuring import resident_bytes
from shared.version import VERSION

logger = logging.getLogger(__name__)

BEAT_SECONDS = 2.0
THERE_SECONDS = 7.0
"""Three beats missed, and a process counts as silent."""
REMEMBERED_SECONDS = 60.0
PROCESSES_MAX = 256
"""More are not listed: what is said of each is half a kilobyte, and all of it is read at once."""
_GOODBYE_SECONDS = 0.3

Facts = dict[str, Any]


class Presence:
    """One process's word of itself. `facts` is asked at each beat; its `totals` only grow, and are also told per second."""

    BEAT = Script("presence", when_full=True)

    def __init__(
        self, commands: Commands, kind: str, name: str, facts: Callable[[], Facts], lags: dict[str, Lately]
    ) -> None:
        self._commands = commands
        self._name = name
        self._facts = facts
        self._lags = {
            **lags,
            "event_loop": Lately(metrics.LOOP_LAG.histogram()),
            "redis": Lately(metrics.REDIS_ROUND_TRIP.histogram()),
        }
        self._about = {
            "kind": kind,
            "name": name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": VERSION,
            "started_at": time.time(),
        }
        self._task: asyncio.Task[None] | None = None
        self._looked_at, self._cpu_seconds = time.monotonic(), time.process_time()
        self._totals: dict[str, float] = {}

    def start(self) -> None:
        self._task = keep_running("presence", self._beat)

    async def close(self) -> None:
        """Say goodbye, if Redis is there to hear it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await self._say(b"")
        except (MidstreamError, TimeoutError) as error:
            logger.debug("no goodbye: %s", error)

    async def _beat(self) -> None:
        while True:
            try:
                await self._say(orjson.dumps(self._word()))
            except MidstreamError as error:
                logger.debug("this process could not say that it is there: %s", error)
            await asyncio.sleep(BEAT_SECONDS * random.uniform(0.9, 1.0))

    async def _say(self, word: bytes) -> None:
        keys = [PROCESSES_UNTIL, PROCESSES_ABOUT]
        there, remembered = int(THERE_SECONDS * 1000), int(REMEMBERED_SECONDS * 1000)
        await self.BEAT.run(self._commands, keys, self._name, word, there, remembered, PROCESSES_MAX)

    def _word(self) -> Facts:
        now, cpu_seconds = time.monotonic(), time.process_time()
        passed_seconds = max(0.001, now - self._looked_at)
        facts = self._facts()
        totals: dict[str, float] = facts["totals"]
        before, first = self._totals, not self._totals
        word = {
            **self._about,
            **facts,
            "cpu": round((cpu_seconds - self._cpu_seconds) / passed_seconds, 3),
            "memory_bytes": int(resident_bytes()),
            "per_second": {
                name: 0.0 if first else round(max(0.0, total - before.get(name, 0.0)) / passed_seconds, 1)
                for name, total in totals.items()
            },
            "lag": {name: told for name, lately in self._lags.items() if (told := lately.told(now)) is not None},
        }
        self._looked_at, self._cpu_seconds, self._totals = now, cpu_seconds, totals
        return word


async def last_heard_at(commands: Commands, name: str) -> float | None:
    """When the process of this name last said that it was there, in Unix seconds; None where that is not remembered.

    Raises Disconnected, RedisRefused.
    """
    until_ms = await commands.execute("ZSCORE", PROCESSES_UNTIL, name)
    if until_ms is None:
        return None
    if not isinstance(until_ms, bytes):
        raise OddReply(f"ODDREPLY ZSCORE was answered by {shown(until_ms)}")
    try:
        seconds = float(until_ms) / 1000 - THERE_SECONDS
    except ValueError:
        raise OddReply(f"ODDREPLY ZSCORE was answered by {shown(until_ms)}") from None
    return seconds if 0 < seconds < TIME_MAX else None  # a score that none of us has written is none


def total(counter: Counter) -> int:
    """What a counter has reached, all labels together. About 5 µs per label."""
    return int(sum(one.value for metric in counter.collect() for one in metric.samples if one.name.endswith("_total")))
