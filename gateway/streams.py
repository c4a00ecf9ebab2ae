"""What clients do with streams, whichever API they use: create, state, receipt, cancel, delete."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import orjson

from gateway import metrics
from gateway.access.limits import Limits
from gateway.access.owners import Owners
from gateway.access.webhooks import StreamWebhooks
from gateway.following.tails import Tails
from gateway.http.audit import audit
from gateway.http.principal import principal
from gateway.http.problems import Problem, archive_in_time, away, expired, full, no_log, not_found
from gateway.http.whole_bodies import Held, made
from gateway.process_name import gateway_name
from shared import events
from shared.archive.record import tombstone_of
from shared.commands import Commands, Executes
from shared.errors import Disconnected, LogFull, MidstreamError, QueueFull, RedisRefused, Unreadable
from shared.event_log import READ_ENTRIES_MAX, EventLog
from shared.events import Accepted, Entry, Event, Policies, Webhook, owner_of
from shared.external_writes import Lease, WriterLeases
from shared.ids import BEGINNING, FIRST_ID, EventId, created_at, is_stream_id, new_stream_id
from shared.keys import idempotency_key
from shared.lanes import Lanes
from shared.large_fields import KEPT, UNTIL_THE_END, Beside, split
from shared.lifecycle import Folding, History
from shared.logs import outcome, request_id
from shared.outcomes import CancelReason, ReaderOutcome, Status
from shared.receipt import (
    RECEIPT_LINE_SECONDS,
    DeliveryNote,
    DeliveryNotes,
    EndedLog,
    Generated,
    read_ended,
    receipt,
    write_line,
)
from shared.redis_retry import answered_within
from shared.settings import Settings
from shared.tracing import traceparent
from shared.unkept import Unkept
from shared.usage import Usage

if TYPE_CHECKING:
    from gateway.restoring import Restoring

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_IDEMPOTENCY_VALUE = re.compile(rb"([0-9a-z]{36}) ([0-9a-f]{64})")
"""The value of an idempotency key in Redis: a stream's id, and the hash of the request."""
_FIRST_CREATE_LOOKS, _FIRST_CREATE_PAUSE_SECONDS = 25, 0.02
"""A create waits half a second for the log of another create with the same Idempotency-Key, which may be under way."""
_CREATING_BYTES_MAX = 128 << 20
"""Of the requests that are being stored, in all. While Redis is away they wait for it, and nothing else bounds their number."""
_QUEUED_LOOK_SECONDS, _QUEUED_LOOK_SECONDS_MAX = 0.02, 0.5
"""The first and the longest pause between two looks for a request that another create with the same Idempotency-Key may queue."""
_ENTRIES_AT_ONCE = 50
"""Entries that are folded in one turn of the event loop: 3,200 tokens at most, 3 ms."""
_LONG_READS_MAX = 4
"""Logs that take more than one read, and are read at once."""


class Streams:
    """Methods return the body of the answer, or what it is made of, and raise Problem for any other status."""

    def __init__(
        self,
        commands: Commands,
        log: EventLog,
        queue: Lanes,
        tails: Tails,
        deliveries: DeliveryNotes,
        settings: Settings,
        owners: Owners,
        limits: Limits,
        usage: Usage,
        unkept: Unkept | None = None,
        restoring: Restoring | None = None,
        webhooks: StreamWebhooks | None = None,
        replicated: Executes | None = None,
    ) -> None:
        """With an archive there are both `unkept`, where each stream is entered, and `restoring`. `replicated` executes what is to
        count only when replicas have it, too."""
        self._remembering = replicated or commands
        self._commands = commands
        self._log = log
        self._queue = queue
        self._tails = tails
        self._deliveries = deliveries
        self._receipts: set[asyncio.Task[Any]] = set()
        self._settings = settings
        self._owners = owners
        self._limits = limits
        self._usage = usage
        self._leases = WriterLeases(commands, ttl_seconds=settings.log_ttl_seconds)
        self._webhooks = webhooks
        self._unkept = unkept
        self._restoring = restoring
        self._long_reads = asyncio.Semaphore(_LONG_READS_MAX)
        self._creating_bytes = 0

    async def create(
        self,
        request: dict[str, Any],
        policies: Policies,
        metadata: dict[str, str],
        *,
        idempotency: str | None = None,
        facade: dict[str, Any] | None = None,
        keep_request: bool = False,
        shown_messages: int = 0,
    ) -> dict[str, Any]:
        """Begins the log of a request and puts the request before the workers, unless an external writer is to answer it.
        Returns the body of the 201.

        `facade` is stored with the request, for the API through which it came. Large fields of the request are stored until
        the stream ends; with `keep_request` as long as its log. Of the messages the first `shown_messages` are in the log
        in any case. Raises Problem 422, 429, 503.
        """
        requested_policies = policies
        if self._webhooks is not None:
            policies = self._webhooks.applied(policies)
        is_told = policies.webhook is not None
        owner = principal.get().name
        origin = request_id.get(), traceparent.get()
        small, large = split(request)
        if "messages" in large:
            small["messages"] = request["messages"][:shown_messages]
        beside = Beside(KEPT if keep_request else UNTIL_THE_END, large) if large else None
        place = "" if beside is None else beside.place

        def entry_of(stream_id: str) -> Entry:
            accepted = Accepted(small, policies, created_at(stream_id), owner, metadata, facade or {}, *origin, place)
            return Entry(FIRST_ID, events.ACCEPTED, accepted.stored())

        stream_id = new_id = new_stream_id()
        entry = entry_of(new_id)
        try:
            large_bytes = sum(map(len, large.values()))
            with self._room_for(len(entry.value) + large_bytes):
                if idempotency is not None:
                    content = orjson.dumps([request, requested_policies.stored(), metadata])
                    stream_id, known = await self.answered(self._remember, new_id, f"{owner}\0{idempotency}", content)
                    if known:
                        await self.answered(self._until_put_before_writers, stream_id, policies)
                        self._owners.remember(stream_id, owner)
                        return self._created(stream_id)
                    entry = entry if stream_id == new_id else entry_of(stream_id)
                bytes_until_end = 0 if keep_request else large_bytes
                size = len(entry.value) + large_bytes - bytes_until_end, bytes_until_end
                admit = partial(self._limits.admit, stream_id, owner, *size)
                if self._limits.apply_to(owner):
                    key = f"{owner}\0{idempotency}" if idempotency is not None else ""
                    await self._admitted(partial(admit, for_good=False), key)
                admit = partial(admit, for_good=True)
                if policies.lease_seconds is None:
                    await self._begin(stream_id, entry, beside, admit, is_told=is_told, alone=stream_id == new_id)
                else:
                    lease = Lease(policies.lease_seconds, policies.cancel_after_seconds)
                    await self.answered(admit)
                    await self.answered(self._begin_external, stream_id, entry, beside, lease, is_told=is_told)
                self._owners.remember(stream_id, owner)
        except QueueFull as error:
            with contextlib.suppress(Disconnected, RedisRefused):  # then it ends as an orphan
                if idempotency is not None:  # a repetition makes another stream
                    await self._commands.execute("DEL", _idempotency_key(f"{owner}\0{idempotency}"))
                await self._log.delete(stream_id)
            raise Problem(503, f"{error}; try again later", retry_after_seconds=5) from None
        except LogFull:
            raise full() from None
        api = (facade or {}).get("api", "native")
        metrics.created(api)
        model = request.get("model")
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

    async def _admitted(self, admit: Callable[[], Awaitable[None]], idempotency: str) -> None:
        """Admits a create before anything is written for it. Raises Problem 429, after which its Idempotency-Key is unused."""
        try:
            await self.answered(admit)
        except Problem:
            if idempotency:
                with contextlib.suppress(
                    Disconnected, RedisRefused
                ):  # then the next create waits for a log for half a second
                    await self._commands.execute("DEL", _idempotency_key(idempotency))
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

        await self.answered(begin)

    async def _until_put_before_writers(self, stream_id: str, policies: Policies) -> None:
        """Returns when the request of a log that is there already is in the queue, or its writer has begun.

        The create that began the log may have ended before it had queued the request: its process was killed, or the queue's
        Redis was away for too long. While that create may still be at work it is waited for, since a request that is queued twice
        may be answered twice. May be repeated.
        """
        pause_seconds = _QUEUED_LOOK_SECONDS
        while [entry.id for entry in await self._log.newest(stream_id)] == [FIRST_ID]:
            if policies.lease_seconds is not None:
                await self._leases.begin(stream_id, Lease(policies.lease_seconds, policies.cancel_after_seconds))
                return
            if await self._queue.holds(stream_id):
                return
            if time.time() - created_at(stream_id) > self._settings.redis_wait_seconds:
                logger.warning("stream %s: its request was not in the queue; queueing it again", stream_id)
                await self._queue.enqueue(stream_id)
                return
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, _QUEUED_LOOK_SECONDS_MAX)

    def _entering(self, stream_id: str, *, is_told: bool = False) -> list[Awaitable[None]]:
        """Returns what enters a stream among those that are to be archived and told of, before its log begins: then no end can be lost."""
        entering: list[Awaitable[None]] = [] if self._unkept is None else [self._unkept.enter(stream_id)]
        if is_told and self._webhooks is not None:
            entering.append(self._webhooks.enter(stream_id))
        return entering

    async def _enter(self, stream_id: str) -> None:
        await _all_of(*self._entering(stream_id))

    async def enter(self, stream_id: str) -> None:
        """Enters a written stream among those that are to be archived: before its log begins, or, if it may expire
        without an end, before its end. Raises Problem 503."""
        await self.answered(self._enter, stream_id)

    async def archived_as(self, name_digest: str) -> str:
        """Returns the id of the archived stream with this name (`shared.keys.name_digest`); empty if there is none.

        Raises Problem 503.
        """
        if self._restoring is None:
            return ""
        with archive_in_time():
            return await self._restoring.archive.named(name_digest) or ""

    async def _begin_external(
        self, stream_id: str, entry: Entry, beside: Beside | None, lease: Lease, *, is_told: bool
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

    async def state(self, stream_id: str, wait_seconds: float = 0.0) -> History:
        """Returns the state now, or when the stream has ended or the time is up. A waiting request holds the stream's tail."""
        history = await self.history(stream_id)
        if wait_seconds and not history.ended:
            del history  # it may be large, and the wait long
            await self.until_ended(stream_id, wait_seconds)
            history = await self.history(stream_id)
        return history

    async def until_ended(self, stream_id: str, wait_seconds: float) -> None:
        """Returns when the stream has ended or the time is up. A waiting request holds the stream's tail."""
        tail = self._tails.hold(stream_id)
        try:
            async with asyncio.timeout(wait_seconds):
                await tail.until_ready()
                await tail.until_ended()
        except TimeoutError:
            pass
        finally:
            tail.release()

    async def cancel(self, stream_id: str, by: CancelReason = CancelReason.CLIENT) -> History:
        """Ends a stream that has not ended; returns its state. The worker is fenced, and closes the provider's connection."""
        history, ended_here = await self._cancel(stream_id, by)
        if ended_here:
            audit("cancelled", stream_id)
        return history

    async def _cancel(self, stream_id: str, by: CancelReason) -> tuple[History, bool]:
        """Returns the state, and whether this call has ended the stream."""
        value = orjson.dumps({"by": by, "time": time.time()})
        await self.check_owner(stream_id)
        await self.enter(stream_id)  # a written stream may not be there yet
        try:
            ended_here = await self.answered(self._end, stream_id, value)
        except LogFull:
            raise full() from None
        if ended_here:
            metrics.cancelled(by)
            self.write_receipt(stream_id)
        history = await self.history(stream_id)
        if ended_here:
            if history.accepted is not None:
                self._usage.accounts.send_ended(history.accepted.principal, stream_id)
            self.cancelled_here(stream_id, history, by)
        return history, ended_here

    def write_receipt(self, stream_id: str) -> None:
        """Has the receipt of a stream that was ended here written to this process's log, a moment later."""
        line = write_line(
            self._log,
            self._deliveries,
            stream_id,
            after_seconds=RECEIPT_LINE_SECONDS,
            count=self._usage.count,
            on_receipt=metrics.receipt_written,
            with_texts=bool(self._settings.log_texts),
        )
        task = asyncio.get_running_loop().create_task(line)
        self._receipts.add(task)
        task.add_done_callback(self._receipts.discard)

    def ended_by_writer(self, stream_id: str) -> None:
        """Accounts for a stream whose end came with an append of its external writer: its receipt, the archive, its webhook."""
        self.write_receipt(stream_id)
        self.look_soon(stream_id)

    def look_soon(self, stream_id: str) -> None:
        """Has a stream, which has ended here, looked at in some seconds: for the archive, and for its webhook if it has one."""
        self._log.on_ended(stream_id)

    def webhook_of(self, url: str | None) -> Webhook | None:
        """Returns the webhook of a stream that the principal makes, from its header, or by default. Raises Problem 400."""
        return None if self._webhooks is None else self._webhooks.of(None if url is None else Webhook(url))

    async def enter_webhook(self, stream_id: str) -> None:
        """Enters a stream that has a webhook, before its log begins. Raises Problem 503."""
        if self._webhooks is not None:
            await self.answered(self._webhooks.enter, stream_id)

    async def _end(self, stream_id: str, cancelled: bytes) -> bool:
        """Ends a stream as cancelled. True if it ends with this entry: also one whose reply was lost before."""
        if await self._log.end(stream_id, events.CANCELLED, cancelled):
            return True
        newest = await self._log.newest(stream_id)
        return bool(newest) and newest[-1].value == cancelled

    def cancelled_here(self, stream_id: str, history: History, by: str) -> None:
        """Called when a cancel has ended a stream here, before any other end. For tracing, which overrides it."""

    async def receipt(self, stream_id: str) -> dict[str, Any]:
        """Returns what was generated, and what was delivered."""
        self._check_id(stream_id)

        async def read() -> Generated:
            generated = Generated()
            await self._read_all(stream_id, generated, generated.history)
            self._check_history(stream_id, generated.history)
            return generated

        generated = await self._also_archived(stream_id, read)
        notes = await self.answered(self._deliveries.read, stream_id)
        return receipt(stream_id, generated, notes)

    async def delete(self, stream_id: str) -> None:
        """Cancels a stream if it runs, and deletes it, also from the archive. May be repeated as long as its tombstone is there.

        Raises Problem 404, 410, 503.
        """
        try:
            history, _ = await self._cancel(stream_id, CancelReason.CLIENT)
        except Problem as problem:
            if problem.status in (404, 410) and await self._is_deleted(stream_id):
                return
            raise

        async def read() -> EndedLog:
            ended = await self.answered(read_ended, self._log, self._deliveries, stream_id)
            self._check_history(stream_id, ended.generated.history)
            return ended

        ended = await self._also_archived(stream_id, read)  # once more: it may have expired since
        if self._restoring is not None:
            with archive_in_time():
                await self._restoring.archive.erase(tombstone_of(ended))
        # For the last time, since what is deleted cannot be counted later: what the archive counts, and not before it has answered,
        # since a delete that is repeated for its sake counts what was read since.
        await self.answered(partial(self._usage.count, ended.generated, ended.receipt, closed=True))
        owner = history.accepted.principal if history.accepted else None
        await self.answered(self._log.delete, stream_id, owner)
        audit("deleted", stream_id, owner=owner)

    async def _is_deleted(self, stream_id: str) -> bool:
        """Whether there is the tombstone of a stream that is the principal's. Raises Problem 404, 503."""
        self._check_id(stream_id)
        newest = await self.answered(self._log.newest, stream_id)
        is_deleted = bool(newest) and newest[-1].field == events.DELETED
        return is_deleted and self._owners.allows_owner(stream_id, owner_of(newest[-1].value))

    async def note_delivered(self, stream_id: str, reached: EventId, began_at: float) -> None:
        """Notes, for the receipt, that a client that waited was given the whole answer in one response."""
        connection, now = secrets.token_hex(6), time.time()
        note = DeliveryNote(connection, gateway_name(), BEGINNING, reached, began_at, now, ReaderOutcome.COMPLETED)
        try:
            await self._deliveries.note(stream_id, note)
            self._usage.read_after_its_end(stream_id)
        except MidstreamError as error:
            logger.debug("stream %s: a delivery was not noted: %s", stream_id, error)

    async def close(self) -> None:
        """Gives up the receipts that are still to be logged."""
        for task in self._receipts:
            task.cancel()
        await asyncio.gather(*self._receipts, return_exceptions=True)

    # --- helpers

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

    async def history(self, stream_id: str) -> History:
        """Reads and folds the whole log. Raises Problem 404, 410, 503."""
        self._check_id(stream_id)

        async def read() -> History:
            history = History()
            await self._read_all(stream_id, history, history)
            self._check_history(stream_id, history)
            return history

        return await self._also_archived(stream_id, read)

    @property
    def archive_state(self) -> str | None:
        """Returns `up`, `read-only` or `away`; None if there is no archive.

        While it is `read-only`, as with a full disk, ended streams wait in Redis; while it is `away`, what has left Redis cannot
        be read either.
        """
        if self._restoring is None:
            return None
        return "away" if not self._restoring.is_up else "up" if self._restoring.can_write else "read-only"

    async def brought_back(self, stream_id: str) -> bool:
        """Brings the log of an archived stream back into Redis. True if it is there now, and the principal's. Raises Problem 503."""
        if self._restoring is None or not self._may_be_archived(stream_id):
            return False
        with archive_in_time():
            owner = await self.answered(self._restoring.restore, stream_id)
        return owner is not None and self._owners.allows_owner(stream_id, owner)

    async def _also_archived(self, stream_id: str, read: Callable[[], Awaitable[T]]) -> T:
        """Returns what `read` returns; if it finds no log, once more after an archived one was brought back."""
        try:
            return await read()
        except Problem as problem:
            if problem.status not in (404, 410) or not await self.brought_back(stream_id):
                raise
        return await read()

    def _may_be_archived(self, stream_id: str) -> bool:
        """Whether a stream is old enough to have left Redis: so ids that are made up do not trouble the database, mostly."""
        return time.time() - created_at(stream_id) >= self._settings.ended_ttl_seconds

    def _check_history(self, stream_id: str, history: History) -> None:
        """Raises Problem 404, 410 for a stream without a log, or with somebody else's."""
        if history.accepted is None and not history.unreadable:
            raise self.missing(stream_id)
        owner = None if history.accepted is None else history.accepted.principal
        if not self._owners.allows_owner(stream_id, owner):
            raise self.missing(stream_id)

    async def check_owner(self, stream_id: str) -> None:
        """Raises Problem 404, 410 for a stream that is not there, or not the principal's; 503 if Redis is away.

        Both take one look at the log, so that the time does not tell them apart. A stream whose owner is remembered takes none.
        """
        self._check_id(stream_id)
        if not self._owners.allows(stream_id):
            first = await self.answered(self._log.read, stream_id, BEGINNING, 1)
            owner = owner_of(first[0].value) if first and first[0].field == events.ACCEPTED else None
            if not self._owners.allows_owner(stream_id, owner) and (first or not await self.brought_back(stream_id)):
                raise self.missing(stream_id)

    async def _read_all(self, stream_id: str, folding: Folding, history: History) -> None:
        """Gives the whole log to `folding`, which makes `history`, without holding up the event loop.

        A log that cannot be read on has failed. Raises Problem 503.
        """
        held, after = Held(history), BEGINNING
        async with contextlib.AsyncExitStack() as long:
            while True:
                entries = await self.answered(self._log.read, stream_id, after)
                for index, entry in enumerate(entries, 1):
                    try:
                        folding.apply(entry)
                    except Unreadable as error:
                        folding.break_off(entry.id, error)
                        if not any(later.field in events.TERMINAL for later in entries[index - 1 :]):
                            failed = Event(history.last, events.FAILED, orjson.dumps(history.terminal))
                            self._tails.followed.found_unreadable(stream_id, failed)
                        return
                    if index % _ENTRIES_AT_ONCE == 0:
                        await asyncio.sleep(0)
                held.grow_to(history.size_bytes)
                if len(entries) < READ_ENTRIES_MAX:
                    return
                if after == BEGINNING:
                    await long.enter_async_context(self._turn())
                after = entries[-1].id

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Waits for a place among the few long logs that are read at once, so that the memory for their entries is bounded."""
        try:
            async with asyncio.timeout(self._settings.redis_wait_seconds):
                await self._long_reads.acquire()
        except TimeoutError:
            raise Problem(503, "too many long answers are being read; try again", retry_after_seconds=5) from None
        try:
            yield
        finally:
            self._long_reads.release()

    async def read(self, stream_id: str, after: EventId = BEGINNING, count: int = READ_ENTRIES_MAX) -> list[Entry]:
        """Reads the next entries of the log after an id; fewer than `count` are all. Raises Problem 404, 503."""
        await self.check_owner(stream_id)
        entries = await self.answered(self._log.read, stream_id, after, count)
        if not entries and after == BEGINNING and await self.brought_back(stream_id):
            entries = await self.answered(self._log.read, stream_id, after, count)
        return entries

    async def newest(self, stream_id: str, count: int) -> list[Entry]:
        """Reads the newest entries of the log, at most `count`, oldest first. Raises Problem 404, 503."""
        await self.check_owner(stream_id)
        return await self.answered(self._log.newest, stream_id, count)

    async def accepted(self, stream_id: str, *, large_fields: bool = False) -> Accepted:
        """Returns the request as it was accepted, without large fields that lie beside the log unless they are asked for.

        Raises Problem 404, 410, 503, and Unreadable.
        """
        self._check_id(stream_id)
        first = await self.answered(self._log.read, stream_id, BEGINNING, 1)
        if not first and await self.brought_back(stream_id):
            first = await self.answered(self._log.read, stream_id, BEGINNING, 1)
        if not first or first[0].field == events.DELETED:
            raise self.missing(stream_id)
        entry = first[0]
        owner = owner_of(entry.value) if entry.field == events.ACCEPTED else None
        if not self._owners.allows_owner(stream_id, owner):
            raise self.missing(stream_id)
        if large_fields:
            entry = await self.answered(self._log.with_large_fields, stream_id, entry)
        if entry.field != events.ACCEPTED:
            raise Unreadable
        return Accepted.load(entry.value)

    def missing(self, stream_id: str) -> Problem:
        """Returns why a stream with a well-formed id cannot be asked for: the id says when the stream was made.

        The same whether the stream is not there or is somebody else's.
        """
        lived_seconds = time.time() - created_at(stream_id)
        shortest_seconds = min(self._settings.ended_ttl_seconds, self._settings.log_ttl_seconds)
        return expired() if lived_seconds >= shortest_seconds else not_found()

    @staticmethod
    def _check_id(stream_id: str) -> None:
        """Raises Problem 404 for what cannot be a stream's id."""
        if not is_stream_id(stream_id):
            raise not_found()

    def _created(self, stream_id: str) -> dict[str, Any]:
        """Returns the body of a 201."""
        return {
            "id": stream_id,
            "status": Status.QUEUED,
            "created_at": created_at(stream_id),
            "events_url": f"{self._settings.path_prefix}/v1/streams/{stream_id}/events",
        }

    async def answered(self, call: Callable[P, Awaitable[T]], *arguments: P.args, **options: P.kwargs) -> T:
        """Returns what Redis answers within MIDSTREAM_REDIS_WAIT_SECONDS; a call that may be repeated is, until then.

        Raises Problem 503.
        """
        try:
            return await answered_within(self._settings.redis_wait_seconds, call, *arguments, **options)
        except (Disconnected, RedisRefused) as error:
            raise no_log(error) from None

    @contextlib.asynccontextmanager
    async def log_read_in_time(self, stream_id: str) -> AsyncIterator[None]:
        """A context in which a log is read. Raises Problem 503 if that takes longer than MIDSTREAM_REDIS_WAIT_SECONDS."""
        try:
            async with asyncio.timeout(self._settings.redis_wait_seconds):
                yield
        except TimeoutError:
            raise await self.why_not_read(stream_id) from None

    async def why_not_read(self, stream_id: str) -> Problem:
        """Returns why the log of a stream has not been read in time."""
        if self._tails.refusal is not None:
            return no_log(self._tails.refusal)
        try:
            async with asyncio.timeout(self._settings.redis_wait_seconds):
                await self._log.newest(stream_id)
        except (TimeoutError, Disconnected, RedisRefused) as error:
            return no_log(error)
        return away()


def _idempotency_key(key: str) -> bytes:
    return idempotency_key(hashlib.sha256(key.encode()).hexdigest())


async def _all_of(*calls: Awaitable[Any]) -> list[Any]:
    """Returns the results of all calls, when each has ended. Raises the error of the first that has failed."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
