"""Hands plain numbers over to metrics, once a second, so that counting what happens by the thousand costs only an addition."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import Counter, Gauge

from shared import metrics
from shared.background import keep_running, pause
from shared.connections import RedisConnection, RedisSubscriber

_LOOKS_PER_SECOND = 5
"""How often the lag of the event loop is measured: a thousand samples in three minutes."""
_STATM = "/proc/self/statm"


class Handover:
    """Plain numbers that grow (counters) and values of the moment (gauges), each with its metric."""

    def __init__(self) -> None:
        self._counts: list[tuple[Any, Callable[[], float], list[float]]] = []
        self._shown: list[tuple[Any, Callable[[], float]]] = []

    def count(self, counter: Counter, total: Callable[[], float]) -> None:
        """Has a counter follow `total`, which only grows."""
        self._counts.append((counter, total, [0.0]))

    def show(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Has a gauge follow `value`."""
        self._shown.append((gauge, value))

    def hand_over(self) -> None:
        """Hands over what has changed: 20 to 60 µs."""
        for counter, total, handed_over in self._counts:
            reached = total()
            if reached > handed_over[0]:
                counter.inc(reached - handed_over[0])
                handed_over[0] = reached
        for gauge, value in self._shown:
            gauge.set(value())


class Measuring:
    """Measures what gateways and workers have in common: event loop lag, Redis round trips, CPU, memory."""

    def __init__(
        self, handover: Handover, commands: RedisConnection, subscriber: RedisSubscriber | None = None
    ) -> None:
        self._handover = handover
        self._commands = commands
        self._loop_lag = metrics.LOOP_LAG.histogram()
        self._round_trip = metrics.REDIS_ROUND_TRIP.histogram()
        self._task: asyncio.Task[None] | None = None
        for name, connection in (("commands", commands), ("subscriber", subscriber)):
            if connection is not None:
                reconnects = metrics.REDIS_RECONNECTS.counter().labels(name)
                handover.count(reconnects, lambda connection=connection: connection.reconnects)  # type: ignore[misc]
                failed = metrics.REDIS_CALLBACKS_FAILED.counter().labels(name)
                handover.count(failed, lambda connection=connection: connection.failed_callbacks)  # type: ignore[misc]
                writes = metrics.REDIS_WRITES.counter().labels(name)
                handover.count(writes, lambda connection=connection: connection.writes)  # type: ignore[misc]
        up = metrics.REDIS_UP.gauge()
        handover.show(up, lambda: commands.is_whole and (subscriber is None or subscriber.is_up))
        handover.count(metrics.CPU_SECONDS.counter(), time.process_time)
        handover.show(metrics.RESIDENT_BYTES.gauge(), resident_bytes)

    def start(self) -> None:
        self._task = keep_running("measure", self._measure)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._handover.hand_over()

    async def _measure(self) -> None:
        while True:
            for _ in range(_LOOKS_PER_SECOND):
                due_at = await pause(1 / _LOOKS_PER_SECOND)
                self._loop_lag.observe(max(0.0, time.monotonic() - due_at))
            self._handover.hand_over()
            if self._commands.is_up:
                self._commands.send(("PING",), self._timed(time.monotonic()))

    def _timed(self, sent_at: float) -> Callable[[Any], None]:
        def on_reply(reply: Any) -> None:
            if not isinstance(reply, Exception):
                self._round_trip.observe(time.monotonic() - sent_at)

        return on_reply


def resident_bytes() -> float:
    """Returns this process's resident memory; 0 on systems without /proc."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(_STATM, "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0.0
