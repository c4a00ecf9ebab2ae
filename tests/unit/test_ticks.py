"""Ticks: the moments that all streams with a pace share."""

from __future__ import annotations

import asyncio
import time

import pytest

from producer.ticks import TICK_SECONDS, Ticks, tick_from
from tests.support.waiting import wait_until


@pytest.mark.parametrize("number", [1, 7, 12_345, 987_654_321])
def test_a_tick_is_its_own_and_nothing_is_before_its_moment(number: int) -> None:
    tick = number * TICK_SECONDS
    assert tick_from(tick) == pytest.approx(tick)
    assert tick_from(tick_from(tick)) == tick_from(tick)
    assert tick_from(tick + 0.001) == pytest.approx(tick + TICK_SECONDS)


async def test_who_waits_for_one_tick_is_called_back_together_and_once() -> None:
    ticks, called = Ticks(), list[tuple[str, float]]()
    first = tick_from(time.monotonic() + 0.05)
    moments = {"a": first - 0.01, "b": first - 0.001, "c": first, "d": first + 0.001}
    for name, moment in moments.items():
        ticks.call_at(moment, lambda name=name: called.append((name, time.monotonic())))  # type: ignore[misc]
    await wait_until(lambda: len(called) == len(moments), what="all are called")
    await asyncio.sleep(2 * TICK_SECONDS)  # nobody is called again
    assert [name for name, _ in called] == ["a", "b", "c", "d"]
    assert called[0][1] >= first - 0.001  # a timer may be early by a millisecond
    assert called[3][1] - called[2][1] > TICK_SECONDS / 2
    assert not ticks._waiting
