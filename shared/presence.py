"""Heartbeats: every two seconds each gateway process and each worker writes to Redis that it runs, with its state and counters.

A heartbeat is one script call: 50 µs of a busy Redis, 200 µs of an idle one. Its numbers come from counters that exist anyway,
so nothing is done per event. A process that stops in order deletes its entry; the entry of one that falls silent is kept for a
minute, so that the console can show that the process is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import orjson
from prometheus_client import Counter

from shared import metrics
from shared.background import keep_running, pause
from shared.commands import Commands, Script
from shared.errors import MidstreamError
from shared.events import TIME_MAX
from shared.keys import PROCESSES_ABOUT, PROCESSES_UNTIL
from shared.odd_replies import odd_reply, reading
from shared.recent_quantiles import RecentQuantiles
from shared.self_measuring import resident_bytes
from shared.version import VERSION

logger = logging.getLogger(__name__)

BEAT_SECONDS = 2.0
THERE_SECONDS = 7.0
"""A process counts as silent when it has missed three heartbeats."""
REMEMBERED_SECONDS = 60.0
PROCESSES_MAX = 256
"""Further processes are not listed: each entry has half a kilobyte, and all are read at once."""
_DELETE_SECONDS_MAX = 0.3
"""How long a process that stops waits for Redis to delete its entry."""

Facts = dict[str, Any]


class Presence:
    """The heartbeats of one process. `facts` is called for each; its `totals` only grow, and are also sent as rates per second."""

    BEAT = Script("presence", when_full=True)

    def __init__(
        self, commands: Commands, kind: str, name: str, facts: Callable[[], Facts], lags: dict[str, RecentQuantiles]
    ) -> None:
        self._commands = commands
        self._name = name
        self._facts = facts
        self._lags = {
            **lags,
            "event_loop": RecentQuantiles(metrics.LOOP_LAG.histogram()),
            "redis": RecentQuantiles(metrics.REDIS_ROUND_TRIP.histogram()),
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
        """Stops the heartbeats and deletes this process's entry, if Redis answers in time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(_DELETE_SECONDS_MAX):
                await self._write(b"")
        except (MidstreamError, TimeoutError) as error:
            logger.debug("this process's entry was not deleted: %s", error)

    async def _beat(self) -> None:
        while True:
            try:
                await self._write(orjson.dumps(self._state()))
            except MidstreamError as error:
                logger.debug("no heartbeat: %s", error)
            await pause(BEAT_SECONDS)

    async def _write(self, state: bytes) -> None:
        """Writes this process's entry; an empty state deletes it."""
        keys = [PROCESSES_UNTIL, PROCESSES_ABOUT]
        there_ms, remembered_ms = int(THERE_SECONDS * 1000), int(REMEMBERED_SECONDS * 1000)
        await self.BEAT.run(self._commands, keys, self._name, state, there_ms, remembered_ms, PROCESSES_MAX)

    def _state(self) -> Facts:
        now, cpu_seconds = time.monotonic(), time.process_time()
        passed_seconds = max(0.001, now - self._looked_at)
        facts = self._facts()
        totals: dict[str, float] = facts["totals"]
        before, first = self._totals, not self._totals
        state = {
            **self._about,
            **facts,
            "cpu": round((cpu_seconds - self._cpu_seconds) / passed_seconds, 3),
            "memory_bytes": int(resident_bytes()),
            "per_second": {
                name: 0.0 if first else round(max(0.0, total - before.get(name, 0.0)) / passed_seconds, 1)
                for name, total in totals.items()
            },
            "lag": {name: lag for name, recent in self._lags.items() if (lag := recent.current(now)) is not None},
        }
        self._looked_at, self._cpu_seconds, self._totals = now, cpu_seconds, totals
        return state


async def last_heard_at(commands: Commands, name: str) -> float | None:
    """Returns the Unix time of a process's last heartbeat; None if Redis no longer has it.

    Raises Disconnected, RedisRefused.
    """
    until_ms = await commands.execute("ZSCORE", PROCESSES_UNTIL, name)
    if until_ms is None:
        return None
    if not isinstance(until_ms, bytes):
        raise odd_reply("ZSCORE", until_ms)
    with reading("ZSCORE", until_ms):
        seconds = float(until_ms) / 1000 - THERE_SECONDS
    return seconds if 0 < seconds < TIME_MAX else None  # else another program has written that score


def total(counter: Counter) -> int:
    """Returns a counter's value, summed over all labels. About 5 µs per label."""
    samples = (sample for metric in counter.collect() for sample in metric.samples)
    return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))
