"""External writers that are killed, frozen and doubled, and how soon a stop reaches one.

`python -m tests.stress.external_writers --seed 1 --times 100 --stops 200`. Two gateways and two workers; each writer is a process of its own,
half of them without any code of ours. Exactly: every event that a writer was told is stored is in the log, none is there twice, and
every reader has what the log has. Bounds: a stream whose writer is killed or frozen ends as failed half a second after its
lease at the latest; the 99th percentile of the stops is at most a second. Exit code 0 if all of that holds.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import uvloop

from midstream.client import AsyncClient, Client, Stopped
from tests.support.external_writer import STOPPED
from tests.support.system import Reader, System, answer_of

LEASE_SECONDS = 1.0
LOST_SECONDS_MAX = LEASE_SECONDS + 0.5
"""A lease, the quarter of a second between two looks, and as much again for this machine, on which all processes share two cores."""
STOP_SECONDS_MAX = 1.0
_ROOT = Path(__file__).resolve().parents[2]
_AT_ONCE = 8
_START_SECONDS = 20.0
"""The lease of a stream until its writer, which may take long to start, makes it shorter."""
_TOKEN = re.compile(r"([\w/-]+):(\d+) ")
_TOKENS = 400
"""More than any writer gets to, unless it is to end its stream."""


class Program:
    """One writer process."""

    def __init__(self, kind: str, url: str, stream_id: str, name: str, pause_seconds: float, count: int) -> None:
        arguments = ("-m", "tests.support.external_writer", kind, url, stream_id, name, str(pause_seconds), str(count))
        self.popen = subprocess.Popen([sys.executable, *arguments], cwd=_ROOT, stdout=subprocess.PIPE, text=True)

    async def end(self) -> tuple[int, int, str]:
        """Waits for the end of the process. Returns its exit code, how many tokens it was told are stored, and why it stopped."""
        output, _ = await asyncio.to_thread(self.popen.communicate, timeout=60)
        lines = output.splitlines()
        numbers = [int(line) for line in lines if line.isdecimal()]
        reasons = [line.partition(" ")[2] for line in lines if line.startswith("stopped ")]
        return self.popen.returncode, max(numbers, default=0), reasons[-1] if reasons else ""


class ExternalWriters:
    """Runs the cases. `lost_seconds`: from a writer's last breath to its stream's end; `stop_seconds`: from a cancel to its writer."""

    def __init__(self, seed: int, times: int, stops: int, say: Callable[[str], None] = lambda line: None) -> None:
        self._dice = random.Random(seed)
        self._times = times
        self._stops = stops
        self._say = say
        self.counts: Counter[str] = Counter()
        self.lost_seconds: list[float] = []
        self.stop_seconds: list[float] = []

    async def run(self) -> None:
        cases = {"killed": self._killed, "frozen": self._frozen, "double": self._double}
        async with System(gateways=2, workers=2) as system:
            for name, case in cases.items():
                for first in range(0, self._times, _AT_ONCE):
                    count = min(_AT_ONCE, self._times - first)
                    await asyncio.gather(*(case(system) for _ in range(count)))
                self._say(f"{name}: {self.counts[name]} of {self._times}")
            for first in range(0, self._stops, _AT_ONCE):
                await asyncio.gather(*(self._stop(system) for _ in range(min(_AT_ONCE, self._stops - first))))
            if self.stop_seconds:
                self._say(f"{len(self.stop_seconds)} stops, p99 {p99(self.stop_seconds):.3f} s")

    async def _begun(self, system: System, *, count: int = _TOKENS) -> tuple[str, Program, Reader]:
        """Creates a stream; returns it, the program that writes it, and a reader of it that has some tokens."""
        dice = self._dice
        kind, pause_seconds, tokens = (
            dice.choice(("plain", "client")),
            dice.choice((0.0, 0.01, 0.05)),
            dice.randint(1, 20),
        )
        stream_id = await create(system, dice.randrange(2))
        reader = system.follow(stream_id, gateway=dice.randrange(2))
        url = system.gateway_url(dice.randrange(2))
        program = Program(kind, url, stream_id, "a", max(pause_seconds, 0.01), count)
        await reader.until_tokens(tokens, within_seconds=30)
        return stream_id, program, reader

    async def _killed(self, system: System) -> None:
        _, program, reader = await self._begun(system)
        program.popen.send_signal(signal.SIGKILL)
        died_at = time.monotonic()
        await self._lost(reader, died_at)
        _, stored, _ = await program.end()
        assert stored <= len(check(reader)["a"]), "what the writer was told is stored is there"
        self.counts["killed"] += 1

    async def _frozen(self, system: System) -> None:
        stream_id, program, reader = await self._begun(system)
        program.popen.send_signal(signal.SIGSTOP)
        await self._lost(reader, time.monotonic())
        before = (await system.state(stream_id))["tokens"]
        program.popen.send_signal(signal.SIGCONT)
        code, stored, reason = await program.end()
        assert (code, reason) == (STOPPED, "failed"), (code, reason)
        assert stored <= len(check(reader)["a"]) == before == (await system.state(stream_id))["tokens"]
        self.counts["frozen"] += 1

    async def _double(self, system: System) -> None:
        """Two programs with one stream. With different names the later wins; with the same name one of both."""
        dice = self._dice
        same_name = dice.random() < 0.5
        stream_id = await create(system, dice.randrange(2))
        reader = system.follow(stream_id, gateway=dice.randrange(2))
        kinds = ("plain", "plain") if same_name else dice.choices(("plain", "client"), k=2)
        names = ("same/a", "same/b") if same_name else ("a", "b")
        counts = (60, 60) if same_name else (_TOKENS, 30)
        programs = [Program(kinds[0], system.gateway_url(0), stream_id, names[0], 0.02, counts[0])]
        await reader.until_tokens(dice.randint(1, 15), within_seconds=30)
        programs.append(Program(kinds[1], system.gateway_url(1), stream_id, names[1], 0.02, counts[1]))
        ends = await asyncio.gather(*(program.end() for program in programs))
        await reader.until_end()
        written = check(reader)
        codes = [code for code, _, _ in ends]
        assert sorted(codes) == [0, STOPPED], ends
        winner = codes.index(0)
        assert winner == 1 or same_name, ends
        assert len(written[names[winner]]) == counts[winner], "all of the one that ended the stream is there"
        for name, (_, stored, _) in zip(names, ends, strict=True):
            assert stored <= len(written[name]), (name, ends)
        assert ends[1 - winner][2] in ("fenced", "completed"), ends
        self.counts["double"] += 1

    async def _lost(self, reader: Reader, since: float) -> None:
        failed = await reader.until_event("failed", within_seconds=10)
        self.lost_seconds.append(time.monotonic() - since)
        assert failed["code"] == "writer_lost", failed
        await reader.until_end()

    async def _stop(self, system: System) -> None:
        """Cancels a stream whose writer is silent, writes, or waits for a tool; measures until the writer is stopped."""
        dice = self._dice
        waits, written_at, cancelled_at = dice.uniform(0, 0.6), dice.randrange(2), dice.randrange(2)
        pause_seconds, threaded = dice.choice((0.01, 0.1, 600.0)), dice.random() < 0.3
        stream_id = await create(system, dice.randrange(2))
        url, at = system.gateway_url(written_at), [0.0]

        async def write() -> None:
            try:
                async with AsyncClient(url) as client, client.write(stream_id, lease_seconds=10) as writer:
                    while True:
                        await writer.token("a")
                        await asyncio.sleep(pause_seconds)
            except Stopped:
                at[0] = time.monotonic()

        def write_in_a_thread() -> None:
            try:
                with Client(url) as client, client.write(stream_id, lease_seconds=10) as writer:
                    writer.token("a")
                    while not writer.stopped:
                        time.sleep(0.01)
            except Stopped:
                at[0] = time.monotonic()

        writing = asyncio.create_task(asyncio.to_thread(write_in_a_thread) if threaded else write())
        await system.until_status(stream_id, "running")
        await asyncio.sleep(waits)
        stopped_at = time.monotonic()
        response = await system.http.post(f"{system.gateway_url(cancelled_at)}/v1/streams/{stream_id}/cancel")
        assert response.status_code == 200, response.text
        await asyncio.wait_for(writing, 10)
        self.stop_seconds.append(at[0] - stopped_at)


async def create(system: System, gateway: int) -> str:
    async with AsyncClient(system.gateway_url(gateway)) as client:
        options = {"midstream": {"on_disconnect": "continue"}}
        return (await client.create_external(options, lease_seconds=_START_SECONDS)).id


def check(reader: Reader) -> dict[str, list[int]]:
    """Returns the numbers of each writer's tokens, as the reader has them. Each begins at 0, without a hole or a repetition."""
    written: dict[str, list[int]] = {}
    for token in answer_of(reader.messages).tokens:
        found = _TOKEN.fullmatch(token)
        assert found is not None, token
        written.setdefault(found[1], []).append(int(found[2]))
    for name, numbers in written.items():
        assert numbers == list(range(len(numbers))), (name, numbers)
    return {"a": [], "b": [], "same/a": [], "same/b": [], **written}


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[math.ceil(len(seconds) * 0.99) - 1]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress.external_writers", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--seed", type=int, default=1, help="what happens to which writer, and when (1)")
    parser.add_argument("--times", type=int, default=100, metavar="N", help="how many writers of each kind (100)")
    parser.add_argument("--stops", type=int, default=200, metavar="N", help="how many stops (200)")
    options = parser.parse_args()
    writers = ExternalWriters(options.seed, options.times, options.stops, lambda line: print(line, flush=True))
    uvloop.run(writers.run())
    print(
        f"lost: p99 {p99(writers.lost_seconds):.3f} s, most {max(writers.lost_seconds):.3f} s; lease {LEASE_SECONDS:g} s"
    )
    print(f"stops: p99 {p99(writers.stop_seconds):.3f} s, most {max(writers.stop_seconds):.3f} s")
    return int(p99(writers.stop_seconds) > STOP_SECONDS_MAX or max(writers.lost_seconds) > LOST_SECONDS_MAX)


if __name__ == "__main__":
    sys.exit(main())
