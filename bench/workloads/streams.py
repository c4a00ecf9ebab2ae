"""Makes logs to measure with, as a gateway and a worker would begin them, and removes them afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import redis

from shared.event_log import EventLog
from shared.events import ACCEPTED, STARTED, Accepted, Policies
from shared.ids import new_stream_id
from shared.keys import REQUESTS, deliveries_key, live_channel, log_key
from shared.queue import RequestQueue

HELD = 2
"""The number of entries of a log that has begun: `accepted` and `started`."""
_LOG_SECONDS = 1800
"""Expiry of the bench's logs, in case they are not removed: longer than any run."""
_PIPELINE = 500


@contextmanager
def begun(client: redis.Redis, count: int) -> Iterator[list[str]]:
    """Makes `count` streams whose first attempt has started; removes their logs at the end."""
    streams = [new_stream_id() for _ in range(count)]
    client.script_load(EventLog.APPEND.source)
    started = orjson.dumps({"attempt": 1, "model": "bench", "worker": "bench", "time": time.time()})
    try:
        for batch in _batches(streams):
            pipeline = client.pipeline(transaction=False)
            for stream_id in batch:
                _append(pipeline, stream_id, 0, b"0-1", ACCEPTED, _request({}), _LOG_SECONDS)
                _append(pipeline, stream_id, 1, b"1-0", STARTED, started)
            pipeline.execute()
        yield streams
    finally:
        forget(client, streams)


@contextmanager
def queued(client: redis.Redis, requests: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Makes streams of these requests, as `POST /v1/streams` does, but not yet in the queue; removes them at the end."""
    streams = [new_stream_id() for _ in requests]
    for script in (EventLog.APPEND, RequestQueue.ENQUEUE):
        client.script_load(script.source)
    try:
        for batch in _batches(list(zip(streams, requests, strict=True))):
            pipeline = client.pipeline(transaction=False)
            for stream_id, request in batch:
                _append(pipeline, stream_id, 0, b"0-1", ACCEPTED, _request(request), _LOG_SECONDS)
            pipeline.execute()
        yield streams
    finally:
        forget(client, streams)


def enqueue(client: redis.Redis, streams: list[str]) -> None:
    """Puts streams into the queue."""
    for batch in _batches(streams):
        pipeline: Any = client.pipeline(transaction=False)
        for stream_id in batch:
            pipeline.execute_command(
                *("EVALSHA", RequestQueue.ENQUEUE.digest, 1, REQUESTS, stream_id, 1_000_000, _LOG_SECONDS)
            )
        pipeline.execute()


def forget(client: redis.Redis, streams: list[str]) -> None:
    for batch in _batches(streams):
        try:
            client.unlink(*[key(stream_id) for stream_id in batch for key in (log_key, deliveries_key)])
        except redis.RedisError:
            return  # the keys expire


def _request(request: dict[str, Any]) -> bytes:
    whole = {"model": "bench", "messages": [{"role": "user", "content": "bench"}], **request}
    return Accepted(whole, Policies(cancel_after_seconds=None), time.time(), "anonymous", {}).stored()


def _append(
    pipeline: Any, stream_id: str, held: int, entry_id: bytes, field: bytes, value: bytes, *expiry: int
) -> None:
    keys = (log_key(stream_id), live_channel(stream_id))
    pipeline.execute_command("EVALSHA", EventLog.APPEND.digest, 1, *keys, held, entry_id, field, value, *expiry)


def _batches(items: list[Any]) -> Iterable[list[Any]]:
    return (items[first : first + _PIPELINE] for first in range(0, len(items), _PIPELINE))


class RedisCounts:
    """Counts Redis's CPU time and calls of each command, from the creation of this object on."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._began = self._read()

    def _read(self) -> tuple[float, dict[str, int]]:
        cpu: Any = self._client.info("cpu")
        calls: Any = self._client.info("commandstats")
        seconds = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
        return seconds, {name.removeprefix("cmdstat_"): int(stats["calls"]) for name, stats in calls.items()}

    def since(self) -> tuple[float, dict[str, int]]:
        """Returns CPU seconds, and calls by command, including those of scripts, since the beginning."""
        seconds, calls = self._read()
        before = self._began[1]
        grown = {name: count - before.get(name, 0) for name, count in calls.items()}
        return seconds - self._began[0], {name: count for name, count in grown.items() if count}
