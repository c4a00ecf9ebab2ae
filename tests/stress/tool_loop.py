"""Tool loops whose workers are killed and whose readers are cut, at random: `python -m tests.stress.tool_loop --seed 1 --times 200`.

Each stream is an agent of three model calls and two tools (`examples/openai_tool_loop.py`) with `on_interrupt: continue`. Checked
for each: its reader has every event once, over all of its connections; the text, the calls and the results are those of an
undisturbed run; no tool ran in a later attempt than the one in whose log its result is noted. Exit code 0 if all held.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import orjson
import uvloop

from shared.events import entry_of, events_of
from shared.keys import log_key
from shared.own_events import name_and_data
from shared.sse import Message
from tests.support.system import Reader, System, answer_of
from tests.support.tool_model import CITIES, LAST_WORDS, ToolModel
from tests.support.waiting import wait_until

LEASE_SECONDS = 0.5
_AT_ONCE = 20
"""Streams that run while the workers are killed."""
_WORKERS = 3
_TOKENS_PER_SECOND = 40.0
_ANSWER_SECONDS = 1.5
"""About as long as an undisturbed answer takes: faults strike within this time."""
_STREAM_SECONDS_MAX = 60.0


class ToolLoops:
    """Runs the loops. `counts` has what happened."""

    def __init__(self, seed: int, times: int, say: Callable[[str], None] = lambda line: None) -> None:
        self._dice = random.Random(seed)
        self._times = times
        self._say = say
        self.counts = dict.fromkeys(("streams", "kills", "cuts", "restarts", "tool_runs"), 0)

    async def run(self) -> None:
        """AssertionError where something did not hold."""
        with tempfile.TemporaryDirectory() as directory:
            notes = Path(directory) / "notes"
            notes.touch()
            async with ToolModel(tokens_per_second=_TOKENS_PER_SECOND) as model:
                settings = {
                    "provider": "tests.support.generators:tool_loop",
                    "lease_seconds": LEASE_SECONDS,
                    "attempts_max": 50,
                    "openai_base_url": model.url,
                    "openai_api_key": "any",
                    "retry_milliseconds": 50,
                }
                environment = {"NOTES": str(notes)}
                system = System(gateways=2, workers=_WORKERS, settings=settings, environment=environment)
                async with system:
                    while self.counts["streams"] < self._times:
                        await self._round(system, notes, min(_AT_ONCE, self._times - self.counts["streams"]))
                        self._say(", ".join(f"{count} {name}" for name, count in self.counts.items()))

    async def _round(self, system: System, notes: Path, streams: int) -> None:
        """Runs some streams at once, kills a worker or two meanwhile, and checks each stream."""
        plans = [
            [self._dice.uniform(0, _ANSWER_SECONDS) for _ in range(self._dice.randrange(3))] for _ in range(streams)
        ]
        kills = [self._dice.uniform(0.1, _ANSWER_SECONDS) for _ in range(self._dice.randint(1, 2))]
        killing = [asyncio.create_task(self._kill(system, after, self._dice.randrange(_WORKERS))) for after in kills]
        streamed = await asyncio.gather(*(self._stream(system, sorted(plan)) for plan in plans))
        await asyncio.gather(*killing)
        ran = [line.split() for line in _lines(notes)]
        for stream_id, messages in streamed:
            runs = [(int(attempt), city) for _, ran_for, attempt, city in ran if ran_for == stream_id]
            self.counts["tool_runs"] += len(runs)
            await self._check(system, stream_id, messages, runs)

    async def _kill(self, system: System, after_seconds: float, index: int) -> None:
        await asyncio.sleep(after_seconds)
        worker = system.workers[index]
        if worker.runs:
            worker.kill()
            self.counts["kills"] += 1
            await system.start_worker(index)

    async def _stream(self, system: System, cuts: list[float]) -> tuple[str, list[list[Message]]]:
        """Returns a stream's id, and what its reader got over each connection."""
        stream_id = await system.create("rain?", midstream={"on_interrupt": "continue"})
        self.counts["streams"] += 1
        connections: list[list[Message]] = []
        last_id, began = "", asyncio.get_running_loop().time()
        while True:
            reader = system.follow(stream_id, gateway=len(connections) % 2, after=last_id)
            if cuts:
                await self._until(reader, began + cuts.pop(0))
                await reader.leave()
                self.counts["cuts"] += 1
            else:
                await reader.until_end(within_seconds=_STREAM_SECONDS_MAX)
            connections.append(reader.messages)
            last_id = reader.last_id
            if reader.messages and reader.messages[-1].event in ("done", "failed", "cancelled"):
                return stream_id, connections

    @staticmethod
    async def _until(reader: Reader, when: float) -> None:
        loop = asyncio.get_running_loop()
        await wait_until(lambda: reader.ended or loop.time() >= when, within_seconds=_STREAM_SECONDS_MAX)

    async def _check(
        self, system: System, stream_id: str, connections: list[list[Message]], runs: list[tuple[int, str]]
    ) -> None:
        answer = answer_of(*connections)  # fails where an event is missing or came twice
        assert answer.end == "done", f"{stream_id}: {answer}"
        self.counts["restarts"] += len(answer.restarted)
        assert answer.text == "Let me look." * 2 + "".join(LAST_WORDS), f"{stream_id}: {answer}"
        assert [name for name, _ in answer.items if name != "token"] == ["calls", "result"] * 2, (
            f"{stream_id}: {answer}"
        )
        noted = await self._noted(system, stream_id)
        assert list(noted) == list(CITIES), f"{stream_id}: {noted}"
        for attempt, city in runs:
            assert attempt <= noted[city], (
                f"{stream_id}: {city} ran in attempt {attempt}, and was noted in {noted[city]}"
            )

    @staticmethod
    async def _noted(system: System, stream_id: str) -> dict[str, int]:
        """Returns the attempts in which the results of the cities were noted, in the order of the log."""
        noted = {}
        for entry_id, fields in await system.commands.xrange(log_key(stream_id)):
            for event in events_of(entry_of(entry_id, [part for pair in fields.items() for part in pair])):
                if event.field == b"e" and b'"event":"result"' in event.value:
                    content = orjson.loads(name_and_data(event.value)[1])["content"]
                    noted[str(content).rpartition(" ")[2]] = event.id.attempt
        return noted


def _lines(notes: Path) -> list[str]:
    return notes.read_text().splitlines()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.tool_loop", description=(__doc__ or "").split(":")[0])
    parser.add_argument("--seed", type=int, default=1, help="what is killed and cut, and when (1)")
    parser.add_argument("--times", type=int, default=200, metavar="N", help="how many tool loops (200)")
    options = parser.parse_args()
    loops = ToolLoops(options.seed, options.times, lambda line: print(line, flush=True))
    try:
        uvloop.run(loops.run())
    except AssertionError as error:
        print(f"seed {options.seed}: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
