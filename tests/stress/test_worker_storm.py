"""100 streams at once while a worker is killed every 2 s: each stream ends by its policy, in time, and every reader is exact."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from contextlib import suppress

import httpx2
import pytest
from redis.asyncio import Redis

from tests.stress.fleet import read_log
from tests.stress.history import answer_of, check_answer, check_reader, history_of
from tests.stress.plan import ReaderOrder
from tests.stress.readers import Reading
from tests.support.system import System

pytestmark = pytest.mark.long

_SEED = 1
_SECONDS = float(os.environ.get("STRESS_STORM_SECONDS", "20"))
_STREAMS = 100
_KILL_EVERY_SECONDS = 2.0
_LEASE_SECONDS = 1.5
_TAKEN_OVER_WITHIN_SECONDS = _LEASE_SECONDS + 2.0
_SETTLE_SECONDS = 30.0


class _Storm:
    def __init__(self, system: System) -> None:
        self._system = system
        self._ports = system.gateway_ports
        self._began_at = time.monotonic()
        self.deaths: dict[int, float] = {}
        """The Unix time of each worker's death, by pid."""
        self.counts: Counter[str] = Counter()
        self.readings: list[Reading] = []

    @property
    def rages(self) -> bool:
        return time.monotonic() - self._began_at < _SECONDS

    async def kill_workers(self) -> None:
        dice = random.Random(_SEED)
        while self.rages:
            index = dice.randrange(len(self._system.workers))
            worker = self._system.workers[index]
            pid = worker.pid
            worker.kill()
            self.deaths[pid] = time.time()
            restarted = asyncio.create_task(self._system.start_worker(index))
            await asyncio.sleep(_KILL_EVERY_SECONDS)
            await restarted

    async def ask_and_read(self, slot: int) -> None:
        """One of the 100 clients: it creates the next stream as soon as its stream has ended."""
        number = slot
        while self.rages:
            dice = random.Random(f"{_SEED}/{number}")
            tokens = dice.randrange(60, 240)
            stream_id = await self._create(number, tokens, dice.choice(("fail", "restart", "continue")))
            reading = Reading(stream_id, ReaderOrder(), lambda: self._ports, dice, self.counts)
            self.readings.append(reading)
            await reading.read()
            number += _STREAMS

    async def _create(self, number: int, tokens: int, on_interrupt: str) -> str:
        while True:
            with suppress(httpx2.TransportError):  # the server may close an idle connection that is just being used
                return await self._system.create(
                    f"order {number}",
                    gateway=number % len(self._ports),
                    headers={"Idempotency-Key": str(number)},
                    simulate={"tokens": tokens, "tokens_per_second": 30},
                    midstream={"on_interrupt": on_interrupt, "on_disconnect": "continue"},
                )


@pytest.mark.timeout(_SECONDS + 120)
async def test_every_stream_survives_or_ends_by_its_policy_within_a_lease_of_its_workers_death() -> None:
    settings = {"lease_seconds": _LEASE_SECONDS, "provider": "simulated", "keepalive_seconds": 1}
    async with System(gateways=2, workers=3, settings=settings) as system:
        storm = _Storm(system)
        killing = asyncio.create_task(storm.kill_workers())
        reading = [asyncio.create_task(storm.ask_and_read(slot)) for slot in range(_STREAMS)]
        try:
            async with asyncio.timeout(_SECONDS + _SETTLE_SECONDS):
                await asyncio.gather(killing, *reading)
        finally:
            for task in (killing, *reading):
                task.cancel()
            await asyncio.gather(killing, *reading, return_exceptions=True)
        ends: Counter[str] = Counter()
        takeovers: list[float] = []
        for one in storm.readings:
            ends[await _check(system.commands, one, storm.deaths, takeovers)] += 1
        print(f"seed {_SEED}: {len(storm.deaths)} workers killed, {len(storm.readings)} streams, {dict(ends)}")
        print(f"{len(takeovers)} takeovers, the slowest {max(takeovers):.2f} s after the worker's death")
        assert len(storm.readings) >= _STREAMS
        assert takeovers


async def _check(commands: Redis, reading: Reading, deaths: dict[int, float], takeovers: list[float]) -> str:
    """Compares a stream with its policy, its worker's death and its reader; returns how it ended."""
    entries = await read_log(commands, reading.stream_id)
    history = history_of(entries)
    broken = [*history.broken, *check_reader(history.shown, reading.seen, from_now=False, complete=True)]
    broken += check_answer(history.items, answer_of(reading.seen), whole=True)
    assert not broken, f"seed {_SEED}, {reading.stream_id}: {broken}\n{entries}\n{reading.notes}"
    assert reading.outcome == "complete"
    worker_died_at = None
    for _, fields in entries:
        ((name, value),) = fields.items()
        if name in (b"t", b"d", b"b", b"accepted"):
            continue
        terminal = json.loads(value)
        if worker_died_at is not None and terminal["time"] > worker_died_at:
            takeovers.append(terminal["time"] - worker_died_at)
            assert takeovers[-1] <= _TAKEN_OVER_WITHIN_SECONDS, f"seed {_SEED}, {reading.stream_id}: {name!r}"
        if "worker" in terminal:
            worker_died_at = deaths.get(int(terminal["worker"].split("-")[-2]))
    policy = history.accepted["policies"]["on_interrupt"]
    code = history.end_data.get("code", "")
    assert history.end in ("done", "failed"), history.end
    assert code in ("", "attempts_exhausted", "worker_lost"), code
    assert (code == "worker_lost") <= (policy == "fail")
    return f"{history.end} {code}".strip()
