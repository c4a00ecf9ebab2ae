"""The pauses of background tasks: they end at common ticks, so that an idle process wakes up seldom."""

from __future__ import annotations

import asyncio

import pytest

from shared import background
from shared.background import TICK_SECONDS, pause


@pytest.mark.parametrize("phase_seconds", [0.0, 0.04])
@pytest.mark.parametrize(
    ("now", "seconds", "due_at"),
    [
        (50.0, 0.2, 50.2),  # from one tick to the next
        (50.03, 0.2, 50.2),  # woken late: the next tick all the same, so that five a second stay five
        (50.199, 0.2, 50.4),  # woken by a timer that was early: not once more at the tick that has just been
        (50.03, 0.45, 50.4),  # the last tick that is not later
        (50.43, 1.0, 51.0),  # of a second and longer: at whole seconds
        (50.43, 1.5, 51.0),
        (50.03, 10.0, 60.0),
        (50.03, 0.02, 50.05),  # shorter than a tick: exactly as long
        (50.03, 0.0, 50.03),
    ],
)
async def test_a_pause_ends_at_a_tick_that_is_not_later(
    monkeypatch: pytest.MonkeyPatch, now: float, seconds: float, due_at: float, phase_seconds: float
) -> None:
    now, due_at = now + phase_seconds, due_at + phase_seconds
    monkeypatch.setattr(background, "_PHASE_SECONDS", phase_seconds)
    slept: list[float] = []

    async def sleep(delay: float) -> None:
        slept.append(delay)

    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert await pause(seconds) == pytest.approx(due_at)
    assert slept == [pytest.approx(due_at - now)]


async def test_pauses_that_began_apart_end_together() -> None:
    loop = asyncio.get_running_loop()

    async def ended_at(delay_seconds: float) -> float:
        await asyncio.sleep(delay_seconds)
        await pause(TICK_SECONDS)
        return loop.time()

    spreads = []
    for _ in range(3):  # on a busy machine one may begin in the next fifth of a second
        await pause(TICK_SECONDS)  # to a tick, so that all three begin within the same fifth of a second
        moments = await asyncio.gather(*(ended_at(delay_seconds) for delay_seconds in (0.0, 0.01, 0.02)))
        spreads.append(max(moments) - min(moments))
    assert min(spreads) < 0.01, "and not 20 ms apart, as they began"
