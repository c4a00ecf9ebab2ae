"""How long a stop takes to reach the generator: `python -m tests.stress.stop_generators --seed 1 --times 200`.

Two gateways, two workers, generators of both kinds. Each stream is cancelled through a gateway chosen at random, or its last
reader leaves; the generator notes when it was stopped. All processes share one clock (CLOCK_MONOTONIC). Exit code 0 if the
99th percentile is at most a second.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

from tests.support.system import System
from tests.support.waiting import wait_until

SECONDS_MAX = 1.0
_AT_ONCE = 20
_PAUSES_SECONDS = (0.01, 0.05, 600.0)
"""Between two tokens: also so long that only a cancellation ends it."""
_THREADED_PAUSES_SECONDS = (0.01, 0.05)
"""Of generators in threads, which are stopped where they yield."""


class Stops:
    """Stops streams. `seconds` has how long each stop took, by what stopped it."""

    def __init__(self, seed: int, times: int, say: Callable[[str], None] = lambda line: None) -> None:
        self._dice = random.Random(seed)
        self._times = times
        self._say = say
        self.seconds: dict[str, list[float]] = {"cancel": [], "last reader": []}

    @property
    def p99_seconds(self) -> float:
        everything = sorted(taken for listed in self.seconds.values() for taken in listed)
        return everything[math.ceil(len(everything) * 0.99) - 1]

    async def run(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            notes = Path(directory) / "notes"
            notes.touch()
            providers = ",".join(f"{name}=tests.support.generators:{name}" for name in ("endless", "endless_threaded"))
            system = System(gateways=2, workers=2, settings={"providers": providers}, environment={"NOTES": str(notes)})
            async with system:
                done = 0
                while done < self._times:
                    count = min(_AT_ONCE, self._times - done)
                    await asyncio.gather(*(self._one(system, notes) for _ in range(count)))
                    done += count
                    self._say(f"{done} stops, p99 {self.p99_seconds:.3f} s")

    async def _one(self, system: System, notes: Path) -> None:
        dice = self._dice
        threaded, leaves = dice.random() < 0.3, dice.random() < 0.5
        pause_seconds = dice.choice(_THREADED_PAUSES_SECONDS if threaded else _PAUSES_SECONDS)
        read_at, cancelled_at, waits = dice.randrange(2), dice.randrange(2), dice.uniform(0, 0.6)
        stream_id = await system.create(
            gateway=dice.randrange(2),
            model="endless_threaded" if threaded else "endless",
            pause_seconds=pause_seconds,
            midstream={"on_disconnect": {"cancel_after": 0} if leaves else "continue"},
        )
        reader = system.follow(stream_id, gateway=read_at)
        await reader.until_tokens(1)
        await asyncio.sleep(waits)
        stopped_at = time.monotonic()
        if leaves:
            await reader.leave()
        else:
            url = f"{system.gateway_url(cancelled_at)}/v1/streams/{stream_id}/cancel"
            assert (await system.http.post(url)).status_code == 200
        line = f"stopped {stream_id} "
        await wait_until(lambda: line in notes.read_text(), what=f"{stream_id} has stopped")
        noted = next(it for it in _lines(notes) if it.startswith(line))
        self.seconds["last reader" if leaves else "cancel"].append(float(noted.split()[2]) - stopped_at)


def _lines(notes: Path) -> list[str]:
    return notes.read_text().splitlines()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress.stop_generators", description=(__doc__ or "").split(":")[0]
    )
    parser.add_argument("--seed", type=int, default=1, help="what is stopped, how, and when (1)")
    parser.add_argument("--times", type=int, default=200, metavar="N", help="how many stops (200)")
    options = parser.parse_args()
    stops = Stops(options.seed, options.times, lambda line: print(line, flush=True))
    uvloop.run(stops.run())
    for name, listed in stops.seconds.items():
        print(f"{name}: {len(listed)}, median {sorted(listed)[len(listed) // 2]:.3f} s, most {max(listed):.3f} s")
    print(f"all: p99 {stops.p99_seconds:.3f} s, at most {SECONDS_MAX:g} s wanted")
    return int(stops.p99_seconds > SECONDS_MAX)


if __name__ == "__main__":
    sys.exit(main())
