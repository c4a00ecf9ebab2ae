"""Moments that all streams with a pace share: they wait for one timer, and what they send leaves in one write."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

TICK_SECONDS = 0.02
"""The distance of two ticks: short beside a pace that a person does not notice (100 ms), long beside the work of a wake-up (50 µs)."""


def tick_from(seconds: float) -> float:
    """Returns the first tick that is not before a moment (monotonic seconds). All processes of a machine have the same ticks."""
    return math.ceil(seconds / TICK_SECONDS - 1e-6) * TICK_SECONDS  # a tick, which is a rounded product, is its own


class Ticks:
    """Calls many back at a tick, by one timer."""

    def __init__(self) -> None:
        self._waiting: dict[float, list[Callable[[], None]]] = {}
        """Who waits for a tick, by its time."""

    def call_at(self, seconds: float, callback: Callable[[], None]) -> None:
        """Has `callback`, which must not raise, called at the first tick that is not before a moment (monotonic seconds)."""
        tick = tick_from(seconds)
        waiting = self._waiting.get(tick)
        if waiting is None:
            waiting = self._waiting[tick] = []
            asyncio.get_running_loop().call_at(tick, self._tick, tick)
        waiting.append(callback)

    def _tick(self, tick: float) -> None:
        for callback in self._waiting.pop(tick):
            callback()
