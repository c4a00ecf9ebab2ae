"""When a worker takes an expired lease for a sign that another worker is dead."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from producer import worker as workers
from producer.run import patience_of
from producer.worker import Worker
from shared.ids import new_stream_id
from shared.queue import Claim
from shared.settings import Settings
from tests.support.waiting import wait_until

_SETTINGS = Settings(lease_seconds=2.0, reconnect_seconds_max=1.0)


class Clock:
    """Stands in for `time`: it is what the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class LaneOfOne:
    """A lane with one request, whose lease has always expired."""

    key = b"lane"

    def __init__(self, clock: Clock) -> None:
        self.server: object = "first"
        self.reply_seconds = 0.0
        self.moves_to: object = None
        """The server that carries out the next command, instead of the one that was to."""
        self._clock = clock
        self._claim = Claim(b"1-1", new_stream_id(), self.key)

    async def ping(self) -> None:
        """Answers at once."""

    async def claim_expired(self, count: int, lease_milliseconds: int) -> list[Claim]:
        self._clock.now += self.reply_seconds
        self.server = self.moves_to or self.server
        return [self._claim]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(workers, "time", clock)
    return clock


class Started(Worker):
    """Notes what it starts instead of running it."""

    def __init__(self, lane: LaneOfOne) -> None:
        parts: Any = dict.fromkeys(("log", "deliveries", "usage", "provider"))
        super().__init__(name="worker", lanes=[(lane, None)], settings=_SETTINGS, **parts)  # type: ignore[list-item]
        self.started: list[bool] = []

    def _start(self, claim: Claim, *, is_doubtful: bool) -> None:
        self.started.append(is_doubtful)

    async def look(self) -> list[bool]:
        """Returns whether each claim of one look is doubtful."""
        self.started = []
        (lane,) = self._lanes
        await self._take_over(lane)
        return self.started


async def test_after_a_silence_or_a_change_of_server_all_workers_have_a_lease_anew(clock: Clock) -> None:
    lane = LaneOfOne(clock)
    worker = Started(lane)
    assert await worker.look() == [False]
    for change in ("silence", "server"):
        if change == "silence":
            clock.now += 1.1  # more than half a lease
        else:
            lane.server = "second"
        patience_seconds = patience_of(_SETTINGS)
        assert patience_seconds >= _SETTINGS.reconnect_seconds_max + _SETTINGS.lease_seconds
        for _ in range(int(patience_seconds / 0.2)):
            assert await worker.look() == [], change
            clock.now += 0.2
        clock.now += 0.2
        assert await worker.look() == [False], change


@pytest.mark.parametrize(("reply_seconds", "moves_to"), [(1.1, None), (0.0, "second")])
async def test_what_was_claimed_over_a_silence_or_from_another_server_is_doubtful(
    clock: Clock, reply_seconds: float, moves_to: str | None
) -> None:
    """The ping was answered before; then the server stood still, or sent the command on to its successor."""
    lane = LaneOfOne(clock)
    worker = Started(lane)
    lane.reply_seconds, lane.moves_to = reply_seconds, moves_to
    assert await worker.look() == [True]


async def test_a_claim_that_this_worker_has_already_is_not_begun_again(clock: Clock) -> None:
    lane = LaneOfOne(clock)
    worker = Started(lane)
    (claim,) = await lane.claim_expired(1, 0)
    worker._runs[claim] = None  # type: ignore[assignment]
    given_out = asyncio.Event()

    async def claim_again(*_: Any) -> list[Claim]:
        worker.drain()
        given_out.set()
        return [claim]

    async def open_it() -> None:
        """The queue is there."""

    lane.claim, lane.open = claim_again, open_it  # type: ignore[attr-defined]
    await worker._claim_until_drained(worker._lanes[0])
    assert given_out.is_set()
    assert worker.started == []


class IdleLane:
    """A lane without requests, which notes when its leases are looked at."""

    server: object = "first"

    def __init__(self, number: int, looked_at: list[float]) -> None:
        self.key = b"lane %d" % number
        self._looked_at = looked_at

    async def open(self) -> None:
        """The queue is there."""

    async def claim(self, blocking: Any, count: int, block_milliseconds: int) -> list[Claim]:
        await asyncio.sleep(block_milliseconds / 1000)
        return []

    async def ping(self) -> None:
        self._looked_at.append(asyncio.get_running_loop().time())

    async def claim_expired(self, count: int, lease_milliseconds: int) -> list[Claim]:
        return []


async def test_all_lanes_are_looked_at_in_the_same_moments() -> None:
    """So one wake-up and one write serve them all: sixteen lanes cost little more than one."""
    looked_at: list[float] = []
    lanes: Any = [(IdleLane(number, looked_at), None) for number in range(16)]
    parts: Any = dict.fromkeys(("log", "deliveries", "usage", "provider"))
    worker = Worker(name="worker", lanes=lanes, settings=Settings(lease_seconds=1.0), **parts)
    working = asyncio.create_task(worker.run())
    await wait_until(lambda: len(looked_at) >= 10 * len(lanes), what="ten looks at each lane")
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    moments = 1 + sum(later - earlier > 0.005 for earlier, later in pairwise(looked_at))
    assert moments < 30, f"{len(looked_at)} looks, in {moments} moments"
