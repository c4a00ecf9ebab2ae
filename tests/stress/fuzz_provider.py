"""Hostile providers beside a correct one: `python -m tests.stress.fuzz_provider --seconds 120 --seed 7`. Exit code 1: a check failed.

A real Valkey, one worker, one gateway, and the hostile server in a separate process. Each answer is read through several
faces at once. The invariants:

- every stream ends in one terminal event, every response ends, none is a 5xx;
- the provider is not called more often than the settings allow;
- no process logs a traceback, or uses more than 256 MB (RLIMIT_AS also forbids it to ask for more);
- a stream of a correct provider beside it is exact. Its longest gap is reported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx2
import uvloop

from tests.support.memory import ONE_ARENA, limit_memory, resident_megabytes
from tests.support.system import System

_MEGABYTES_MAX = 256
_AT_ONCE = 8
_TRIES_MAX, _ATTEMPTS_MAX = 2, 2
_ANSWER_SECONDS_MAX = 90.0
_SETTINGS = {
    "first_token_seconds": 3,
    "between_tokens_seconds": 3,
    "attempt_seconds": 10,
    "attempts_max": _ATTEMPTS_MAX,
    "provider_tries_max": _TRIES_MAX,
    "provider_backoff_seconds": 0.02,
    "ended_ttl_seconds": 30,
}
_TERMINAL = ("done", "failed", "cancelled")


@asynccontextmanager
async def hostile_provider() -> AsyncIterator[str]:
    """Runs a hostile provider, and yields its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.hostile_provider", stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.terminate()
        await process.wait()


class Fuzz:
    def __init__(self, seed: int, seconds: float) -> None:
        self._dice = random.Random(seed)
        self._seconds = seconds
        self.problems: list[str] = []
        self.ends: Counter[str] = Counter()
        self.peaks: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.longest_gap = 0.0

    async def run(self, only: int | None = None) -> bool:
        """Runs; returns whether all checks held."""
        try:
            await self._run(only)
        except AssertionError as error:  # what is checked when all have left
            self.problems.append(str(error))
        return not self.problems

    async def _run(self, only: int | None) -> None:
        os.environ.update(ONE_ARENA)  # for the processes that it starts
        async with hostile_provider() as url, System(settings={**_SETTINGS, "openai_base_url": url}) as system:
            for process in (*system.gateways, *system.workers):
                limit_memory(process.pid, _MEGABYTES_MAX)
            watch = asyncio.create_task(self._watch(system))
            plain = asyncio.create_task(self._plain(system))
            deadline = time.monotonic() + self._seconds
            seeds = iter([only]) if only is not None else iter(lambda: self._dice.randrange(1 << 32), None)

            async def follow_some() -> None:
                for seed in seeds:
                    await self._answer(system, url, seed)
                    if time.monotonic() > deadline:
                        return

            await asyncio.gather(*(follow_some() for _ in range(_AT_ONCE if only is None else 1)))
            for task in (watch, plain):
                task.cancel()
            for done in await asyncio.gather(watch, plain, return_exceptions=True):
                if not isinstance(done, asyncio.CancelledError):
                    self.problems.append(repr(done))
            for process in (*system.gateways, *system.workers):
                for line in process.logged().splitlines():
                    if "the attempt broke" in line or "could not be read:" in line or len(line) > 10_000:
                        self.problems.append(line[:500])

    async def _answer(self, system: System, url: str, seed: int) -> None:
        dice = random.Random(seed)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                stream_id = await system.create(
                    model=f"fuzz-{seed}",
                    midstream={
                        "on_interrupt": dice.choice(["restart", "continue", "fail"]),
                        "on_disconnect": "continue",
                    },
                )
                faces = [
                    ("events", f"/v1/streams/{stream_id}/events", "text/event-stream"),
                    ("lines", f"/v1/streams/{stream_id}/events", "application/x-ndjson"),
                    ("text", f"/v1/streams/{stream_id}/text", "*/*"),
                    ("chat", f"/v1/chat/completions/{stream_id}/events", "*/*"),
                    ("responses", f"/v1/responses/resp_{stream_id}?stream=true", "*/*"),
                    ("state", f"/v1/streams/{stream_id}?wait=60", "*/*"),
                ]
                await asyncio.gather(*(self._read(system, seed, *face) for face in faces))
                for name, path in (
                    ("receipt", f"/v1/streams/{stream_id}/receipt"),
                    ("response", f"/v1/responses/resp_{stream_id}"),
                ):
                    await self._read(system, seed, name, path, "*/*")
                requests = (await system.http.get(url.removesuffix("/v1") + "/stats")).json().get(f"fuzz-{seed}", 0)
                redirects = 4  # each of which makes another call
                if requests > _TRIES_MAX * _ATTEMPTS_MAX * redirects:
                    self._tell(seed, f"the provider was asked {requests} times")
        except TimeoutError:
            self._tell(seed, "not ended in time")
        except (AssertionError, httpx2.HTTPError, ValueError, KeyError) as error:
            self._tell(seed, repr(error)[:500])

    async def _read(self, system: System, seed: int, name: str, path: str, accept: str) -> None:
        cut_off = False
        body = bytearray()
        async with system.http.stream("GET", system.gateway_url() + path, headers={"accept": accept}) as response:
            try:
                async for part in response.aiter_bytes():
                    body += part
            except httpx2.RemoteProtocolError:
                cut_off = True
        if response.status_code >= 500:
            self._tell(seed, f"{name}: {response.status_code} {bytes(body[:300])!r}")
            return
        if cut_off and name != "text":
            self._tell(seed, f"{name}: cut off")
        if response.status_code != 200:
            return
        ends = _ends_of(name, bytes(body))
        if ends is None:
            return
        if len(ends) != 1:
            self._tell(seed, f"{name}: its ends are {ends}")
        elif name == "events":
            self.ends[ends[0]] += 1

    def _tell(self, seed: int, problem: str) -> None:
        self.problems.append(f"answer {seed}: {problem}")

    async def _plain(self, system: System) -> None:
        """Checks a stream of the correct provider, which must be exact. AssertionError if it is not."""
        while True:
            stream_id = await system.create(model="plain", midstream={"on_interrupt": "fail"})
            reader, began = system.follow(stream_id), time.monotonic()
            try:
                seen, heard_at = 0, 0.0
                while not reader.ended:
                    await asyncio.sleep(0.005)
                    if len(reader.tokens) > seen:
                        now = time.monotonic()
                        if seen:
                            self.longest_gap = max(self.longest_gap, now - heard_at)
                        seen, heard_at = len(reader.tokens), now
                    assert time.monotonic() - began < 60, "an answer of 10 s had no end after 60"
            finally:
                with suppress(Exception):
                    await reader.leave()
            assert reader.tokens == [f" {number}" for number in range(len(reader.tokens))]
            [failed] = reader.named("failed")
            assert failed["code"] == "provider_timeout", failed  # it goes on until its attempt's time is over

    async def _watch(self, system: System) -> None:
        """Returns the memory of the processes. AssertionError if one uses too much."""
        while True:
            for process in (*system.gateways, *system.workers):
                taken = resident_megabytes(process.pid)
                self.first.setdefault(process.module, taken)
                self.peaks[process.module] = max(taken, self.peaks.get(process.module, 0.0))
                self.last[process.module] = taken
                assert taken < _MEGABYTES_MAX, f"{process.module} takes {taken:.0f} MB"
            await asyncio.sleep(0.1)

    @property
    def report(self) -> str:
        memory = (
            f"{name} {self.first[name]:.0f} → {self.last[name]:.0f} MB, at most {peak:.0f}"
            for name, peak in self.peaks.items()
        )
        found = "".join(f"\n  {problem}" for problem in self.problems[:40])
        return f"{sum(self.ends.values())} answers {dict(self.ends)}; {'; '.join(memory)}; longest gap {self.longest_gap:.3f} s; {len(self.problems)} problems{found}"


def _ends_of(name: str, body: bytes) -> list[str] | None:
    """Returns the terminal events in a face's body; None for a face without any."""
    if name == "events":
        return [
            event
            for event in (line[7:].decode() for line in body.split(b"\n") if line.startswith(b"event: "))
            if event in _TERMINAL
        ]
    if name == "lines":
        return [
            event
            for event in (json.loads(line)["event"] for line in body.splitlines() if line.strip())
            if event in _TERMINAL
        ]
    if name == "chat":
        data = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
        return [value[:20].decode() for value in data if value == b"[DONE]" or value.startswith(b'{"error":')]
    if name == "responses":
        names = [line[7:].decode() for line in body.split(b"\n") if line.startswith(b"event: ")]
        return [event for event in names if event in ("response.completed", "response.failed", "response.incomplete")]
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.fuzz_provider")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", type=int, metavar="ANSWER", help="one answer, by the seed that a report names")
    wanted = parser.parse_args()
    fuzz = Fuzz(wanted.seed, wanted.seconds)
    held = uvloop.run(fuzz.run(wanted.only))
    print(fuzz.report)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
