"""Snapshots of all streams and processes, for the console and `midstream top`: one a second, made only while somebody watches.

The processes are read from their heartbeats in Redis (`shared.presence`); the live streams are the newest of the request queue,
and those of external writers, each with the newest entry of its log. Three round trips, a hundred short reads; no prompt and no text of an answer is read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import orjson
from prometheus_client import Gauge

from gateway.console.listed import UNKNOWN, Listed, ListedStreams, failure_of, failures_of
from gateway.console.samples import Samples
from gateway.http.problems import no_log
from gateway.process_name import gateway_name
from shared import events, metrics
from shared.commands import Commands
from shared.deltas import too_deep
from shared.errors import MidstreamError, RedisRefused, Unreadable
from shared.events import Entry, entry_of
from shared.ids import BEGINNING, EventId, created_at, is_stream_id
from shared.keys import PROCESSES_ABOUT, PROCESSES_UNTIL, WRITERS, log_key
from shared.lanes import Lanes
from shared.lifecycle import status_after
from shared.outcomes import ENDED, Status
from shared.presence import PROCESSES_MAX, THERE_SECONDS
from shared.queue import Claim
from shared.version import VERSION

logger = logging.getLogger(__name__)

STREAMS_MAX = 100
"""The most live streams in the list; the newest are listed. Each costs a read of its log."""
ENDED_MAX = 20
"""The most ended streams in the list."""
_UNLISTED_SECONDS = 600.0
"""How long a running stream stays listed after Redis has lost it from the queue."""
_FORGOTTEN_SECONDS = 10.0
"""How long a stream whose log is missing stays listed: if Redis lost the log, its worker writes it again with the next token."""
_FRESH_SECONDS = 0.9
_SAMPLE_SECONDS, _SAMPLE_SECONDS_MAX = 2.0, 8.0
_PROCESSES_PER_SECOND = 25
_WAITING = "waiting"
"""The console's word for the status `queued`."""
_LIVE = (_WAITING, Status.RUNNING)
_EXTERNAL = b"external"
"""In place of the id of a queue entry: the stream is filled by an external writer."""
_WAIT_SECONDS = 2.0
"""If Redis takes longer, the snapshot says that Redis does not answer."""
_BEGINNINGS = (events.STARTED, events.RESTARTED)

Row = dict[str, Any]


class Overview:
    """Makes snapshots, at most one a second for any number of requests."""

    def __init__(self, commands: Commands, queue: Lanes, *, has_archive: bool = False) -> None:
        self._commands = commands
        self._queue = queue
        self._has_archive = has_archive
        self._lock = asyncio.Lock()
        self._made_at = float("-inf")
        self._made = b""
        self._seen: dict[str, tuple[EventId, float, float]] = {}
        """For each listed stream: the newest id, the time when it was read, and the tokens per second at that time."""
        self._ended: OrderedDict[str, Row] = OrderedDict()
        self._unlisted: dict[str, float] = {}
        """Running streams that are not in the queue any more (Redis was restarted empty), and since when."""
        self._listed = ListedStreams(commands)
        self._processes: list[Row] = []
        self._streams: Row = {"running": 0, "waiting": 0, "oldest_waiting_seconds": 0.0, "newest": [], "ended": []}
        """The result of the last successful read; shown while Redis does not answer."""
        self._read_at: float | None = None
        self.samples = Samples()

    async def current(self) -> bytes:
        """Returns a snapshot as JSON: the last one if it is less than a second old."""
        async with self._lock:
            if time.monotonic() - self._made_at > _FRESH_SECONDS:
                self._made = orjson.dumps(await self._make())
                self._made_at = time.monotonic()
            return self._made

    async def sample(self) -> float:
        """Records the numbers, without the streams, for the charts of a later watcher. Returns the seconds until the next sample is due.

        A sample reads half a kilobyte per process, so with many processes samples are rarer.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(_WAIT_SECONDS):
                    self._processes, counts = await asyncio.gather(self._read_processes(), self._queue.counts())
            except (MidstreamError, TimeoutError) as error:
                logger.debug("no sample: %s", error)
            else:
                streams = {"running": counts.claimed, "waiting": counts.waiting}
                self.samples.add({"time": time.time(), "streams": streams, **self._numbers()})
            return min(_SAMPLE_SECONDS_MAX, max(_SAMPLE_SECONDS, len(self._processes) / _PROCESSES_PER_SECOND))

    async def _make(self) -> Row:
        redis: Row = {
            "up": True,
            "memory_bytes": _reached(metrics.REDIS_MEMORY_BYTES.gauge()),
            "headroom_bytes": _reached(metrics.REDIS_HEADROOM_BYTES.gauge()),
            "commands_per_second": _reached(metrics.REDIS_COMMANDS_PER_SECOND.gauge()),
        }
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                self._processes, (self._streams, redis["time"]) = await asyncio.gather(
                    self._read_processes(), self._read()
                )
            self._read_at = time.time()
            self._streams["ended"] = self._ended_rows(redis["time"])
        except (MidstreamError, TimeoutError) as error:
            logger.debug("no overview: %s", error)
            redis["up"] = False
            if isinstance(error, RedisRefused) and not error.passing:
                redis["refusal"] = no_log(error).detail
        snapshot = {
            "time": time.time(),
            "read_at": self._read_at,
            "version": VERSION,
            "has_archive": self._has_archive,
            "gateway": gateway_name(),
            "streams": self._streams,
            **self._numbers(),
            "processes": self._processes,
            "redis": redis,
        }
        if redis["up"]:
            self.samples.add(snapshot)
        return snapshot

    def _numbers(self) -> Row:
        there = [process for process in self._processes if not process["silent"]]
        return {
            "readers": sum(process.get("readers", 0) for process in there),
            "totals": _summed(there, "totals"),
            "per_second": _summed(there, "per_second"),
            "lag": _worst(there),
        }

    # --- processes

    async def _read_processes(self) -> list[Row]:
        execute = self._commands.execute
        time_now, until, heartbeats = await asyncio.gather(
            execute("TIME"),
            self._unless_refused("ZRANGE", PROCESSES_UNTIL, 0, PROCESSES_MAX - 1, "WITHSCORES"),
            self._unless_refused("HGETALL", PROCESSES_ABOUT),
        )
        now_ms = int(time_now[0]) * 1000 + int(time_now[1]) / 1000
        states = dict(zip(heartbeats[::2], heartbeats[1::2], strict=True))
        processes = []
        for name, until_ms in zip(until[::2], until[1::2], strict=True):
            state = _state_of(states.get(name, b""))
            if state is not None:
                heard_seconds = (now_ms - float(until_ms)) / 1000 + THERE_SECONDS
                silent = heard_seconds > THERE_SECONDS
                processes.append({**state, "heard_seconds": round(max(0.0, heard_seconds), 1), "silent": silent})
        return sorted(processes, key=lambda row: (row["kind"], row["started_at"]))

    # --- streams

    async def _read(self) -> tuple[Row, float]:
        """Returns the queue's numbers with its newest streams, and Redis' own time."""
        counts = await self._queue.counts()
        rows, now = await self._read_newest(whole=counts.requests < STREAMS_MAX)
        waiting_since = counts.oldest_waiting_at
        external = [row["status"] for entry_id, row in rows if entry_id == _EXTERNAL]
        streams = {
            "running": counts.claimed + sum(not entry_id for entry_id, _ in rows) + external.count(Status.RUNNING),
            "waiting": counts.waiting + external.count(_WAITING),
            "oldest_waiting_seconds": 0.0 if waiting_since is None else round(max(0.0, now - waiting_since), 1),
            "newest": [row for _, row in rows if row["status"] in _LIVE],
            "ended": [],
        }
        return streams, now

    def _ended_rows(self, now: float) -> list[Row]:
        """Returns the streams that ended while watched, and those that workers report as failed; the newest first."""
        rows = {**self._ended}
        for failure in (failure for process in self._processes for failure in failures_of(process)):
            if failure["id"] not in rows:
                rows[failure["id"]] = {
                    **failure,
                    "status": Status.FAILED,
                    "created_at": created_at(failure["id"]),
                    "age_seconds": round(max(0.0, now - created_at(failure["id"])), 1),
                    "tokens_per_second": 0.0,
                    "worker": None,
                    "lease_age_seconds": None,
                    "metadata": {},
                }
        newest_first = sorted(rows.values(), key=lambda row: float(row["ended_at"]), reverse=True)
        return newest_first[:ENDED_MAX]

    async def _read_newest(self, *, whole: bool) -> tuple[list[tuple[bytes, Row]], float]:
        """Returns the queue's newest streams, each as (id of its queue entry, row with its worker), and Redis' own time."""
        time_now, newest, writers = await asyncio.gather(
            self._commands.execute("TIME"),
            self._queue.newest(STREAMS_MAX),
            self._unless_refused("ZRANGE", WRITERS, 0, STREAMS_MAX - 1),
        )
        now = int(time_now[0]) + int(time_now[1]) / 1e6
        external = [
            Claim(_EXTERNAL, name) for name in (part.decode(errors="replace") for part in writers) if is_stream_id(name)
        ]
        listed = sorted((*newest, *external), key=lambda claim: claim.stream_id, reverse=True)  # the newest first
        whole = whole and len(listed) <= STREAMS_MAX
        leases, rows = await asyncio.gather(
            self._queue.leases(newest, STREAMS_MAX), self._read_streams(listed[:STREAMS_MAX], now, whole=whole)
        )
        for entry_id, row in rows:
            without = ("external", None) if entry_id == _EXTERNAL else (None, None)
            row["worker"], row["lease_age_seconds"] = leases.get(row["id"] if entry_id else "", without)
        return rows, now

    async def _read_streams(self, listed: Sequence[Claim], now: float, *, whole: bool) -> list[tuple[bytes, Row]]:
        """Returns rows of the listed streams, and of those that Redis has lost from the queue although they still run.

        Also reads the streams that have left the list since the last call, since they may have ended. `whole`: `listed` is the whole
        queue. Rows of streams that the queue has lost have an empty entry id.
        """
        ids = [stream_id for _, stream_id, _ in listed]
        left = [stream_id for stream_id in self._seen if stream_id not in set(ids)]
        replies = await asyncio.gather(
            *(
                self._unless_refused("XREVRANGE", log_key(stream_id), "+", "-", "COUNT", 2)
                for stream_id in (*ids, *left)
            )
        )
        rows = {
            stream_id: self._row(stream_id, reply, now) for stream_id, reply in zip((*ids, *left), replies, strict=True)
        }
        # A stream that has left a list of only the newest may still be in the queue.
        unlisted = self._still_unlisted([(stream_id, rows[stream_id]) for stream_id in left] if whole else [])
        self._seen = {stream_id: self._seen[stream_id] for stream_id in (*ids, *self._unlisted)}
        known = await self._listed.read({stream_id: row["attempt"] for stream_id, row in rows.items()})
        for stream_id, row in rows.items():
            row |= _listed_fields(known.get(stream_id, UNKNOWN))
        for stream_id, row in rows.items():
            if row["status"] in ENDED and stream_id not in self._ended:
                self._ended[stream_id] = {**row, "ended_at": now}
                if len(self._ended) > ENDED_MAX:
                    self._ended.popitem(last=False)
        return [
            *((b"", rows[stream_id]) for stream_id in unlisted),
            *((entry_id, rows[stream_id]) for entry_id, stream_id, _ in listed if stream_id in rows),
        ]

    def _still_unlisted(self, left: list[tuple[str, Row]]) -> list[str]:
        """Returns the ids of those streams that have left the queue but still run, for a limited time."""
        now, before = time.monotonic(), self._unlisted
        self._unlisted = {}
        for stream_id, row in left:
            since = before.get(stream_id, now)
            limit_seconds = {"running": _UNLISTED_SECONDS, "deleted": _FORGOTTEN_SECONDS}.get(row["status"], 0.0)
            if now - since < limit_seconds and len(self._unlisted) < STREAMS_MAX:
                self._unlisted[stream_id] = since
        return [stream_id for stream_id, row in left if stream_id in self._unlisted and row["status"] == "running"]

    def _row(self, stream_id: str, reply: Any, now: float) -> Row:
        newest, field, value = entry_of(*reply[0]) if reply else Entry(BEGINNING, events.DELETED, b"")
        # At its first read a stream's rate is the mean since its creation.
        mean = newest.offset / max(0.1, now - created_at(stream_id))
        before, seen_at, rate = self._seen.get(stream_id, (newest, now, mean))
        tokens = newest.offset
        status = status_after(field)
        if field in events.TERMINAL:
            # A cancel has the id (k+1)-0: the entry before it tells the number of tokens.
            tokens_before = _tokens_after(entry_of(*reply[1])) if len(reply) > 1 else before.offset
            tokens = newest.offset - 1 if newest.offset else tokens_before
        elif status == Status.QUEUED:
            tokens = 0
        elif field in _BEGINNINGS:
            tokens = _kept_tokens_of(field, value)
        if now > seen_at:
            rate = (newest.offset - before.offset) / (now - seen_at) if newest.attempt == before.attempt else 0.0
        if status in (Status.QUEUED, Status.RUNNING):
            self._seen[stream_id] = (newest, now, rate)
        else:
            self._seen[stream_id] = (before, seen_at, 0.0)
        return {
            "id": stream_id,
            "status": _WAITING if status == Status.QUEUED else status,
            "created_at": created_at(stream_id),
            "age_seconds": round(max(0.0, now - created_at(stream_id)), 1),
            "attempt": newest.attempt if status == Status.RUNNING else max(newest.attempt - (not newest.offset), 0),
            "tokens": max(0, tokens),
            "tokens_per_second": round(max(0.0, rate), 1) if status == Status.RUNNING else 0.0,
            "error": failure_of(value) if field == events.FAILED else None,
        }

    async def _unless_refused(self, *command: bytes | str | int) -> list[Any]:
        """Executes a command; returns an empty list if Redis refuses it: the queue may not exist yet, or a key may be another program's."""
        try:
            reply = await self._commands.execute(*command)
        except RedisRefused as error:
            if error.forbids:
                raise
            logger.debug("%s was refused: %s", command[0], error)
            return []
        return reply if isinstance(reply, list) else []


def _state_of(heartbeat: bytes) -> Row | None:
    """Parses the state of a process from its heartbeat (`shared.presence`); None for another shape."""
    try:
        state = orjson.loads(heartbeat)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(state, dict) or too_deep(state):
        return None
    if not all(isinstance(state.get(name), str) for name in ("kind", "name", "host", "version")):
        return None
    if not all(_is_number(state.get(name)) for name in ("pid", "started_at", "cpu", "memory_bytes")):
        return None
    if not all(_is_number(state.get(name, 0)) for name in _MAY_HAVE_NUMBERS):
        return None
    lags = state.get("lag", {})
    rows = [
        state.get("totals", {}),
        state.get("per_second", {}),
        *(lags.values() if isinstance(lags, dict) else [lags]),
    ]
    if not all(isinstance(row, dict) and all(map(_is_number, row.values())) for row in rows):
        return None
    return state if all("p99_ms" in lag for lag in lags.values()) else None


_MAY_HAVE_NUMBERS = ("readers", "readers_max", "followed", "tick_ms", "running", "capacity")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _kept_tokens_of(field: bytes, value: bytes) -> int:
    """Returns the number of increments with which an attempt begins; 0 if it cannot be read."""
    try:
        return int(events.control_of(field, value).get("base") or 0)
    except Unreadable:
        return 0


def _tokens_after(entry: Entry) -> int:
    """Returns how many tokens the answer has after an entry."""
    if entry.field == events.ACCEPTED:
        return 0
    return _kept_tokens_of(entry.field, entry.value) if entry.field in _BEGINNINGS else entry.id.offset


def _listed_fields(listed: Listed) -> Row:
    return {"model": listed.model, "metadata": listed.metadata}


def _reached(gauge: Gauge) -> float:
    """Returns a gauge's value; the highest, if it has several."""
    return max((sample.value for metric in gauge.collect() for sample in metric.samples), default=0.0)


def _summed(processes: list[Row], of: str) -> dict[str, float]:
    summed: dict[str, float] = {}
    for process in processes:
        for name, value in process.get(of, {}).items():
            summed[name] = round(summed.get(name, 0) + value, 1)
    return summed


def _worst(processes: list[Row]) -> dict[str, Row]:
    """Returns each kind of lag, of the process where it is longest."""
    worst: dict[str, Row] = {}
    for process in processes:
        for name, lag in process.get("lag", {}).items():
            if name not in worst or lag["p99_ms"] > worst[name]["p99_ms"]:
                worst[name] = {**lag, "process": process["name"]}
    return worst
