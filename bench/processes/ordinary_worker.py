"""`python -m bench.processes.ordinary_worker --ready-fd N`: the worker to compare with, whose logs bench.processes.naive serves.

It has one asyncio task per answer, which iterates the typed chunks of OpenAI's SDK and appends each token by redis-py's XADD.
It is well tuned: uvloop, hiredis, a connection to Redis for each answer (a third cheaper than one from the pool for each XADD),
connections to the provider for as many answers as run at once, and the garbage collector's thresholds of Midstream's worker.
Any error ends the process: readers then lack tokens, and the run is void.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
from typing import Any

import httpx2
import openai
import orjson
import redis.asyncio
import uvloop

from bench.processes import procs
from shared.events import ACCEPTED, DONE, TOKEN
from shared.keys import REQUESTS, log_key
from shared.settings import Settings

_READ_REQUESTS = 100
_BLOCK_MILLISECONDS = 15_000
_CONNECT_SECONDS = 10.0


class OrdinaryWorker:
    """Answers the requests of the queue, `worker_concurrency` at once, and deletes each from the queue when it has ended."""

    def __init__(self, settings: Settings) -> None:
        answers_max = settings.worker_concurrency
        self._room = asyncio.Semaphore(answers_max)
        connections_max = answers_max + 1  # one waits for requests
        self._redis = redis.asyncio.Redis.from_url(
            settings.redis_url, socket_timeout=None, max_connections=connections_max, protocol=2
        )
        self._provider = openai.AsyncOpenAI(
            api_key=settings.openai_api_key,
            base_url=settings.openai_base_url,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS, pool=_CONNECT_SECONDS),
                limits=httpx2.Limits(max_connections=answers_max, max_keepalive_connections=answers_max),
            ),
        )

    async def run(self, ready_fd: int) -> None:
        """Answers requests until the process is killed."""
        await self._redis.ping()
        os.write(ready_fd, b"1")
        last: bytes = b"0-0"
        async with asyncio.TaskGroup() as answers:
            while True:
                reply: Any = await self._redis.xread({REQUESTS: last}, count=_READ_REQUESTS, block=_BLOCK_MILLISECONDS)
                for entry_id, fields in reply[0][1] if reply else ():
                    last = entry_id
                    await self._room.acquire()
                    answers.create_task(self._answer(entry_id, fields[b"id"].decode()))

    async def _answer(self, queue_id: bytes, stream_id: str) -> None:
        key = log_key(stream_id)
        try:
            async with self._redis.client() as connection:
                entries: Any = await connection.xrange(key, count=1)
                if entries:  # else the stream was removed meanwhile
                    request = orjson.loads(entries[0][1][ACCEPTED])["request"]
                    await self._generate(key, request, connection)
                await connection.xdel(REQUESTS, queue_id)
        finally:
            self._room.release()

    async def _generate(self, key: bytes, request: dict[str, Any], connection: redis.asyncio.Redis) -> None:
        """Appends the tokens of one answer, with the ids 1-1 to 1-n, and its end."""
        offset = 0
        chunks = await self._provider.chat.completions.create(
            model=request["model"], messages=request["messages"], stream=True, stream_options={"include_usage": True}
        )
        async for chunk in chunks:
            if chunk.choices and chunk.choices[0].delta.content:
                offset += 1
                await connection.xadd(key, {TOKEN: chunk.choices[0].delta.content}, id=f"1-{offset}")
        await connection.xadd(key, {DONE: b"{}"}, id=f"1-{offset + 1}")


async def work(settings: Settings, ready_fd: int) -> None:
    worker = OrdinaryWorker(settings)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    await worker.run(ready_fd)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-fd", type=int, required=True)
    options = parser.parse_args()
    procs.raise_open_files_limit()
    uvloop.run(work(Settings.from_environment(os.environ), options.ready_fd))


if __name__ == "__main__":
    main()
