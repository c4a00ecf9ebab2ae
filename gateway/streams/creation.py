"""Creates streams: the first entry of a log, and the request's way to a worker or an external writer.

A create may be repeated by its client (`Idempotency-Key`) and by the gateway itself, whose reply from Redis may be lost: each step
looks up what an earlier try has done.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from gateway import metrics
from gateway.access.limits import Limits
from gateway.access.owners import Owners
from gateway.access.webhooks import StreamWebhooks
from gateway.http.principal import principal
from gateway.http.problems import Problem, away, full
from gateway.http.whole_bodies import made
from gateway.streams.stream_logs import StreamLogs
from shared import events
from shared.commands import Commands, Executes
from shared.errors import Disconnected, LogFull, QueueFull, RedisRefused
from shared.event_log import EventLog
from shared.events import Accepted, Entry, Policies
from shared.external_writes import WriterLease, WriterLeases
from shared.ids import FIRST_ID, created_at, new_stream_id
from shared.keys import idempotency_key
from shared.lanes import Lanes
from shared.large_fields import KEPT, UNTIL_THE_END, Beside, split
from shared.logs import outcome, request_id
from shared.outcomes import Status
from shared.settings import Settings
from shared.tracing import traceparent
from shared.unkept import Unkept

logger = logging.getLogger(__name__)

_IDEMPOTENCY_VALUE = re.compile(rb"([0-9a-z]{36}) ([0-9a-f]{64})")
"""The value of an idempotency key in Redis: a stream's id, and the hash of the request."""
_FIRST_CREATE_LOOKS, _FIRST_CREATE_PAUSE_SECONDS = 25, 0.02
"""A create waits half a second for the log of another create with the same Idempotency-Key, which may be under way."""
_CREATING_BYTES_MAX = 128 << 20
"""The memory, in bytes, of all requests that are being stored. While Redis is away they wait for it, and nothing else bounds their number."""
_QUEUED_LOOK_SECONDS, _QUEUED_LOOK_SECONDS_MAX = 0.02, 0.5
"""The first and the longest pause between two looks for a request that another create with the same Idempotency-Key may queue."""


@dataclass(frozen=True, slots=True)
class NewStream:
    """A stream that a client wants."""

    request: dict[str, Any]
    policies: Policies
    metadata: dict[str, str]
    idempotency: str | None = None
    """The client's Idempotency-Key."""
    facade: dict[str, Any] | None = None
    """What the API through which the request came stores with it."""
    keep_request: bool = False
    """Whether large fields of the request are stored as long as the log; otherwise until the stream ends."""
    shown_messages: int = 0
    """How many of the first messages are in the log itself, however large they are."""


class StreamCreation:
    """Creates streams for the principal of the current request."""

    def __init__(
        self,
        logs: StreamLogs,
        commands: Commands,
        log: EventLog,
        queue: Lanes,
        settings: Settings,
        owners: Owners,
        limits: Limits,
        unkept: Unkept | None,
        webhooks: StreamWebhooks | None,
        replicated: Executes | None,
    ) -> None:
        self._answered = logs.answered
        self._commands = commands
        self._remembering = replicated or commands
        self._log = log
        self._queue = queue
        self._settings = settings
        self._owners = owners
        self._limits = limits
        self._leases = WriterLeases(commands, ttl_seconds=settings.log_ttl_seconds)
        self._unkept = unkept
        self._webhooks = webhooks
        self._creating_bytes = 0

    async def create(self, new: NewStream) -> dict[str, Any]:
        """Begins the log of a request and puts the request before the workers, unless an external writer is to answer it.

        Returns the body of the 201. Raises Problem 422, 429, 503.
        """
        policies = new.policies if self._webhooks is None else self._webhooks.applied(new.policies)
        owner = principal.get().name
        key = None if new.idempotency is None else f"{owner}\0{new.idempotency}"
        origin = request_id.get(), traceparent.get()
        facade = new.facade or {}
        small, large = split(new.request)
        if "messages" in large:
            small["messages"] = new.request["messages"][: new.shown_messages]
        beside = Beside(KEPT if new.keep_request else UNTIL_THE_END, large) if large else None
        place = "" if beside is None else beside.place

        def entry_of(stream_id: str) -> Entry:
            accepted = Accepted(small, policies, created_at(stream_id), owner, new.metadata, facade, *origin, place)
            return Entry(FIRST_ID, events.ACCEPTED, accepted.stored())

        stream_id = new_id = new_stream_id()
        entry = entry_of(new_id)
        try:
            large_bytes = sum(map(len, large.values()))
            with self._room_for(len(entry.value) + large_bytes):
                if key is not None:
                    content = orjson.dumps([new.request, new.policies.stored(), new.metadata])
                    stream_id, known = await self._answered(self._remember, new_id, key, content)
                    if known:
                        await self._answered(self._until_put_before_writers, stream_id, policies)
                        self._owners.remember(stream_id, owner)
                        return self._created(stream_id)
                    entry = entry if stream_id == new_id else entry_of(stream_id)
                bytes_until_end = 0 if new.keep_request else large_bytes
                size = len(entry.value) + large_bytes - bytes_until_end, bytes_until_end
                admit = partial(self._limits.admit, stream_id, owner, *size)
                if self._limits.apply_to(owner):
                    await self._admitted(partial(admit, for_good=False), key)
                admit = partial(admit, for_good=True)
                is_told = policies.webhook is not None
                if policies.lease_seconds is None:
                    await self._begin(stream_id, entry, beside, admit, is_told=is_told, alone=stream_id == new_id)
                else:
                    lease = WriterLease(policies.lease_seconds, policies.cancel_after_seconds)
                    await self._answered(admit)
                    await self._answered(self._begin_external, stream_id, entry, beside, lease, is_told=is_told)
                self._owners.remember(stream_id, owner)
        except QueueFull as error:
            with contextlib.suppress(Disconnected, RedisRefused):  # then it ends as an orphan
                if key is not None:  # a repetition makes another stream
                    await self._commands.execute("DEL", _idempotency_key(key))
                await self._log.delete(stream_id)
            raise Problem(503, f"{error}; try again later", retry_after_seconds=5) from None
        except LogFull:
            raise full() from None
        api, model = facade.get("api", "native"), new.request.get("model")
        metrics.created(api)
        logger.info("stream %s: created", stream_id, extra=outcome("created", stream_id, api=api, model=model))
        return self._created(stream_id)

    @contextlib.contextmanager
    def _room_for(self, size_bytes: int) -> Iterator[None]:
        """Counts a request that is being stored. Raises Problem 503 if too many are: Redis is away, or much too slow."""
        if self._creating_bytes + size_bytes > _CREATING_BYTES_MAX:
            raise away()
        self._creating_bytes += size_bytes
        try:
            yield
        finally:
            self._creating_bytes -= size_bytes

    async def _remember(self, stream_id: str, key: str, request: bytes) -> tuple[str, bool]:
        """Returns the stream that this idempotency key stands for, and whether it did before this call. Raises Problem 422."""
        name = _idempotency_key(key)
        digest = await made(len(request), lambda: hashlib.sha256(request).hexdigest())
        command = "SET", name, f"{stream_id} {digest}".encode(), "NX", "GET", "EX", self._settings.log_ttl_seconds
        for _ in range(2):
            try:
                previous = await self._remembering.execute(*command)
            except RedisRefused as error:
                if error.code != "WRONGTYPE":
                    raise
                previous = b""
            if previous is None:
                return stream_id, False
            known = _IDEMPOTENCY_VALUE.fullmatch(previous)
            if known is not None:
                break
            await self._commands.execute("DEL", name)  # somebody else's value: as if there were none
        else:
            return stream_id, False
        first_id, first_request = known[1].decode(), known[2].decode()
        if first_id == stream_id:
            return stream_id, False  # written by this create: the reply was lost
        if first_request != digest:
            raise Problem(422, "this Idempotency-Key was used for another request; use a new key for a new request")
        for _ in range(_FIRST_CREATE_LOOKS):
            if await self._log.has_begun(first_id):
                return first_id, True
            await asyncio.sleep(_FIRST_CREATE_PAUSE_SECONDS)
        return first_id, False  # the first create has failed: the stream is made now, under that id

    async def _admitted(self, admit: Callable[[], Awaitable[None]], key: str | None) -> None:
        """Admits a create before anything is written for it. Raises Problem 429, after which its Idempotency-Key is unused."""
        try:
            await self._answered(admit)
        except Problem:
            if key is not None:
                with contextlib.suppress(Disconnected, RedisRefused):  # then the next one waits half a second for a log
                    await self._commands.execute("DEL", _idempotency_key(key))
            raise

    async def _begin(
        self,
        stream_id: str,
        entry: Entry,
        beside: Beside | None,
        admit: Callable[[], Awaitable[None]],
        *,
        is_told: bool,
        alone: bool,
    ) -> None:
        """Writes a log's first entry and queues its request. `is_told`: a webhook tells of its end.

        Not `alone`: other creates may write this log too, and one queues. It is repeated while Redis is away. Then what was carried
        out before, and only its reply was lost, is looked up.
        """
        append = partial(self._log.append, stream_id, 0, entry, self._settings.log_ttl_seconds, beside)
        repeated, may_be_queued = False, not alone

        async def begin() -> None:
            nonlocal repeated, may_be_queued
            is_repeated, repeated = repeated, True
            if alone and not is_repeated and self._commands.is_one_server:
                may_be_queued = True
                # All take one round trip: they leave on one connection, in this order.
                entering = self._entering(stream_id, is_told=is_told)
                await _all_of(admit(), *entering, append(), self._queue.enqueue(stream_id))
                return
            await _all_of(admit(), *self._entering(stream_id, is_told=is_told))
            appended = await append()
            is_to_queue = appended.status == "applied"
            if is_repeated and (
                is_to_queue or appended.last == FIRST_ID
            ):  # else a worker has begun, or it was cancelled
                is_to_queue = True
                if may_be_queued:
                    is_to_queue = not await self._queue.holds(stream_id)
            if is_to_queue:
                may_be_queued = True
                await self._queue.enqueue(stream_id)

        await self._answered(begin)

    async def _begin_external(
        self, stream_id: str, entry: Entry, beside: Beside | None, lease: WriterLease, *, is_told: bool
    ) -> None:
        """Writes the first entry of a log that an external writer fills, and begins its lease. May be repeated.

        Raises Problem 503 if there are as many such streams as there may be.
        """
        if await self._leases.count() >= self._settings.external_streams_max:
            detail = (
                f"there are {self._settings.external_streams_max} streams of external writers, and no more are taken"
            )
            raise Problem(503, detail, retry_after_seconds=5)
        await _all_of(*self._entering(stream_id, is_told=is_told))
        appended = await self._log.append(stream_id, 0, entry, self._settings.log_ttl_seconds, beside)
        if appended.status == "applied" or appended.last == FIRST_ID:
            await self._leases.begin(stream_id, lease)

    async def _until_put_before_writers(self, stream_id: str, policies: Policies) -> None:
        """Returns when the request of a log that is there already is in the queue, or its writer has begun.

        The create that began the log may have ended before it had queued the request: its process was killed, or the queue's
        Redis was away for too long. While that create may still be at work it is waited for, since a request that is queued twice
        may be answered twice. May be repeated.
        """
        pause_seconds = _QUEUED_LOOK_SECONDS
        while [entry.id for entry in await self._log.newest(stream_id)] == [FIRST_ID]:
            if policies.lease_seconds is not None:
                await self._leases.begin(stream_id, WriterLease(policies.lease_seconds, policies.cancel_after_seconds))
                return
            if await self._queue.holds(stream_id):
                return
            if time.time() - created_at(stream_id) > self._settings.redis_wait_seconds:
                logger.warning("stream %s: its request was not in the queue; queueing it again", stream_id)
                await self._queue.enqueue(stream_id)
                return
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, _QUEUED_LOOK_SECONDS_MAX)

    async def enter(self, stream_id: str) -> None:
        """Enters a stream among those that are to be archived. May be repeated. Raises Disconnected, RedisRefused."""
        await _all_of(*self._entering(stream_id))

    def _entering(self, stream_id: str, *, is_told: bool = False) -> list[Awaitable[None]]:
        """Returns what enters a stream among those that are to be archived and told of, before its log begins: then no end can be lost."""
        entering: list[Awaitable[None]] = [] if self._unkept is None else [self._unkept.enter(stream_id)]
        if is_told and self._webhooks is not None:
            entering.append(self._webhooks.enter(stream_id))
        return entering

    def _created(self, stream_id: str) -> dict[str, Any]:
        """Returns the body of a 201."""
        return {
            "id": stream_id,
            "status": Status.QUEUED,
            "created_at": created_at(stream_id),
            "events_url": f"{self._settings.path_prefix}/v1/streams/{stream_id}/events",
        }


def _idempotency_key(key: str) -> bytes:
    return idempotency_key(hashlib.sha256(key.encode()).hexdigest())


async def _all_of(*calls: Awaitable[Any]) -> list[Any]:
    """Returns the results of all calls, when each has ended. Raises the error of the first that has failed."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
