"""Measures the memory that a worker keeps of ended answers: `python -m tests.stress.worker_memory`. Exit code 1: too much.

A real Valkey and one worker process; the provider is the scripted server, in this process. First many small answers,
then fewer large ones. After each kind the worker's memory must be near its idle size again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from shared import events
from shared.event_log import EventLog
from shared.events import Accepted, Entry, Policies
from shared.ids import FIRST_ID, new_stream_id
from shared.queue import RequestQueue
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from tests.support.memory import resident_megabytes
from tests.support.openai_server import OpenAIServer
from tests.support.redis_server import RedisServer
from tests.support.system import Process
from tests.support.waiting import wait_until

_UNDER_WAY_MAX = 16
_UNDER_WAY_BYTES_MAX = 8 << 20
"""Few and small answers at a time: running answers are not what is measured."""
_ANSWER_SECONDS_MAX = 120.0
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Has glibc return at once what is freed. By default it keeps more the larger the blocks were that came: 7 to 16 MB after these
answers, as it happened; so set, at most 2 MB (mallopt(3))."""


class WorkerMemory:
    """One worker with its Redis and its provider."""

    def __init__(self, server: RedisServer, provider_url: str, directory: Path) -> None:
        self._address = RedisAddress.parse(server.url)
        settings: dict[str, object] = {
            "redis_url": server.url,
            "openai_base_url": provider_url,
            "ended_ttl_seconds": 5,
            "worker_concurrency": _UNDER_WAY_MAX,
        }
        self.worker = Process("producer", settings, directory / "worker.log", environment=_ALLOCATOR, anew=True)
        self._asked = 0

    async def start(self) -> None:
        scripts = (*EventLog.SCRIPTS, *RequestQueue.SCRIPTS)
        self._connection = RespConnection(self._address, name="test", reply_seconds=10.0, scripts=scripts)
        self._connection.start()
        await self._connection.wait_until_up()
        self._log = EventLog(self._connection, log_ttl_seconds=600, ended_ttl_seconds=5, tombstone_ttl_seconds=2)
        self._queue = RequestQueue(self._connection, ttl_seconds=600, requests_max=100_000, consumer="test")
        self.worker.start()
        await wait_until(lambda: " is up: " in self.worker.logged(), within_seconds=30.0)

    async def close(self) -> None:
        if self.worker.runs:
            self.worker.kill()
        await self._connection.close()

    async def answer(self, script: dict[str, Any]) -> None:
        """Creates one answer and waits for its end. AssertionError if it fails."""
        request = {"model": "m", "messages": [{"role": "user", "content": "a"}], "script": script}
        accepted = Accepted(request, Policies(None, "restart"), time.time(), "anonymous", {})
        stream_id = new_stream_id()
        await self._log.append(stream_id, 0, Entry(FIRST_ID, events.ACCEPTED, accepted.stored()), 600)
        await self._queue.enqueue(stream_id)

        async def has_ended() -> bool:
            newest = await self._log.newest(stream_id)
            assert not newest or newest[-1].field != events.FAILED, newest
            return not newest or newest[-1].field == events.DONE

        await wait_until(has_ended, within_seconds=_ANSWER_SECONDS_MAX, what=f"the end of {stream_id}")

    async def answers(self, count: int, script: dict[str, Any]) -> None:
        """Creates so many answers, some at a time, and waits until the worker is idle and has written its receipts."""
        answer_bytes = script["tokens"] * max(8, script.get("token_characters", 0))
        slots = asyncio.Semaphore(max(1, min(_UNDER_WAY_MAX, _UNDER_WAY_BYTES_MAX // answer_bytes)))

        async def answer() -> None:
            async with slots:
                await self.answer(script)

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(answer())
        self._asked += count
        await wait_until(lambda: self.worker.logged().count('"event":"receipt"') >= self._asked, within_seconds=30.0)

    def megabytes(self) -> float:
        """Returns the worker's resident memory."""
        return resident_megabytes(self.worker.pid)


async def measure(kinds: list[tuple[int, dict[str, Any]]]) -> list[float]:
    """Returns the worker's memory in MB: idle, after some first answers, and after each kind of answers."""
    with RedisServer() as server, tempfile.TemporaryDirectory() as directory:
        async with OpenAIServer() as provider:
            memory = WorkerMemory(server, provider.url, Path(directory))
            await memory.start()
            try:
                measured = [memory.megabytes()]
                for count, script in kinds:
                    await memory.answers(count, script)
                    measured.append(memory.megabytes())
                memory.worker.assert_no_complaints()
            finally:
                await memory.close()
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.worker_memory")
    parser.add_argument("--small", type=int, default=10_000, help="answers of 1,000 tokens (default 10,000)")
    parser.add_argument("--large", type=int, default=500, help="answers of 2 MB (default 500)")
    parser.add_argument("--megabytes-max", type=float, default=100.0, help="what the worker may take (default 100)")
    wanted = parser.parse_args()
    small = {"tokens": 1000}
    large = {"tokens": 128, "token_characters": 16_384}
    began = time.monotonic()
    measured = uvloop.run(measure([(64, small), (wanted.small, small), (wanted.large, large)]))
    names = ("idle", "after 64 small ones", f"after {wanted.small} of 1,000 tokens", f"after {wanted.large} of 2 MB")
    for name, megabytes in zip(names, measured, strict=True):
        print(f"{megabytes:7.1f} MB  {name}")
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if max(measured) < wanted.megabytes_max else 1


if __name__ == "__main__":
    sys.exit(main())
