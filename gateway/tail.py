"""Following logs: one subscribed connection and one command connection, however many readers.

A tail is one followed stream, shared by its readers. Subscribe first, read the log second: nothing falls between. After
that a pushed entry that is the very next one goes to the ring; anything else (a hole, a new attempt, a reconnection) is
answered by reading the log. The push is a hint, the log decides.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson

from gateway.faces import gap_event
from gateway.ring import Ring
from shared import events
from shared.errors import Disconnected, LogFull, RedisRefused
from shared.events import Entry, Event, events_of
from shared.ids import ACCEPTED, BEGINNING, EventId, created_at
from shared.keys import live_channel
from shared.lifecycle import base_of
from shared.log import EventLog
from shared.patience import patiently
from shared.resp import RespConnection
from shared.settings import Settings

if TYPE_CHECKING:
    from gateway.readers import Reader

logger = logging.getLogger(__name__)

_READ_ENTRIES = 256
_SUBSCRIBE_AT_ONCE = 500
_MISSING_MAX = 3
"""A log that is missing at so many sweeps in a row is gone. A worker that lives writes it anew within one."""


class Tail:
    """One followed stream, as far as this gateway has it."""

    __slots__ = (
        "again",
        "ahead",
        "channel",
        "checked_at",
        "deleted",
        "dirty",
        "ended",
        "exists",
        "holders",
        "last",
        "missing",
        "next_after",
        "on_end",
        "readers",
        "reading",
        "ready",
        "ring",
        "silent_since",
        "stream_id",
    )

    def __init__(self, stream_id: str, ring: Ring, now: float) -> None:
        self.stream_id = stream_id
        self.channel = live_channel(stream_id)
        self.ring = ring
        self.last = BEGINNING
        """The id of the newest entry that is in the ring."""
        self.next_after = BEGINNING
        """The same, but for a new attempt that keeps tokens: then the next offset follows on theirs."""
        self.ended: EventId | None = None
        """The id of the terminal event, once it is known."""
        self.exists = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the log has been read; then `exists` and `ended` can be trusted."""
        self.readers: set[Reader] = set()
        self.ahead: set[Reader] = set()
        """Readers that have more than this tail: their cursor is beyond `last`."""
        self.holders = 0
        self.on_end: list[Callable[[], None]] = []
        self.reading = self.again = self.dirty = self.deleted = False
        self.silent_since = self.checked_at = now
        self.missing = 0


class Tails:
    """All tails of a gateway process. `on_new` is told of a tail that has something for its readers."""

    def __init__(
        self,
        log: EventLog,
        subscriber_for: Callable[[Callable[[list[Any]], None], Callable[[], None]], RespConnection],
        settings: Settings,
        on_new: Callable[[Tail], None],
        on_lost: Callable[[Tail], None],
    ) -> None:
        self._log = log
        self._settings = settings
        self._on_new = on_new
        self._on_lost = on_lost
        self._by_id: dict[str, Tail] = {}
        self._by_channel: dict[bytes, Tail] = {}
        self._subscriber = subscriber_for(self._on_push, self._on_up)
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Tail]:
        return iter(list(self._by_id.values()))

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._subscriber.start()
        self._spawn(self._sweep())

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._subscriber.close()

    # --- coming and going

    @contextmanager
    def hold(self, stream_id: str) -> Iterator[Tail]:
        """The stream's tail, made if need be, and kept at least as long as this context. It may not be `ready` yet."""
        tail = self._by_id.get(stream_id)
        if tail is None:
            tail = Tail(stream_id, Ring(stream_id), self._loop.time())
            self._by_id[stream_id] = self._by_channel[tail.channel] = tail
            self._subscriber.push(b"SSUBSCRIBE", tail.channel)
        tail.holders += 1
        try:
            yield tail
        finally:
            tail.holders -= 1
            if not tail.holders:
                self._drop(tail)

    def _drop(self, tail: Tail) -> None:
        del self._by_id[tail.stream_id], self._by_channel[tail.channel]
        self._subscriber.push(b"SUNSUBSCRIBE", tail.channel)

    # --- what is pushed

    def _on_up(self) -> None:
        """(Re)connected: subscribe again to everything. Each confirmation has its log read from where the tail is."""
        channels = list(self._by_channel)
        for index in range(0, len(channels), _SUBSCRIBE_AT_ONCE):
            self._subscriber.push(b"SSUBSCRIBE", *channels[index : index + _SUBSCRIBE_AT_ONCE])

    def _on_push(self, pushed: list[Any]) -> None:
        by_channel = self._by_channel
        for message in pushed:
            if type(message) is not list:
                if message != b"PONG":  # a list, too, except while nothing is subscribed to
                    logger.warning("the subscription was refused: %s", message)
                continue
            kind = message[0]
            if kind == b"smessage":
                tail = by_channel.get(message[1])
                if tail is not None:
                    self._take(tail, message[2])
            elif kind == b"ssubscribe":
                tail = by_channel.get(message[1])
                if tail is not None:
                    self._read(tail)
            elif kind == b"sunsubscribe" and message[1] in by_channel:  # the slot moved, in a Cluster
                self._subscriber.push(b"SSUBSCRIBE", message[1])

    def _take(self, tail: Tail, data: bytes) -> None:
        """A pushed entry: the next one is taken, an old one passed over, for anything else the log is read."""
        if tail.reading or not tail.ready.done():
            tail.again = True
            return
        raw_id, field, value = data.split(b" ", 2)
        event_id, reached = EventId.of(raw_id), tail.next_after
        if field == events.TOKEN and event_id[1] == reached[1] + 1 and event_id[0] == reached[0]:
            # What `_apply_next` would do, for what comes by the thousand.
            tail.ring.append(Event(event_id, field, value))
            tail.last = tail.next_after = event_id
            tail.silent_since = tail.checked_at = self._loop.time()
            self._on_new(tail)
            return
        entry = Entry(event_id, field, value)
        if entry.id <= tail.last or tail.ended is not None:
            return
        if not self._apply_next(tail, entry):
            self._read(tail)
            return
        tail.silent_since = tail.checked_at = self._loop.time()
        self._tell(tail)

    def _apply_next(self, tail: Tail, entry: Entry) -> bool:
        """Put an entry into the ring if it is the very next, so that nothing can stand between."""
        carried = events_of(entry) if entry.field == events.BATCH else None
        (attempt, offset), reached = entry.id, tail.next_after
        if attempt == reached.attempt:
            if offset - (1 if carried is None else len(carried)) != reached.offset:
                return False
        elif entry.id != (1, 0) or reached != ACCEPTED:
            return False
        self._apply(tail, entry, carried)
        return True

    def _apply(self, tail: Tail, entry: Entry, carried: list[Any] | None = None) -> None:
        append = tail.ring.append
        for event in carried or events_of(entry):
            append(event)
        tail.last = tail.next_after = entry.id
        if entry.field in events.TERMINAL:
            tail.ended = entry.id
            tail.deleted = entry.field == events.DELETED
        elif entry.field == events.RESTARTED:
            tail.next_after = EventId(entry.id.attempt, base_of(entry.value))

    def _tell(self, tail: Tail) -> None:
        self._on_new(tail)
        if tail.ended is not None:
            waiting, tail.on_end = tail.on_end, []
            for call in waiting:
                call()

    # --- what is read

    def _read(self, tail: Tail) -> None:
        """Read the log from where the tail is; a push that comes meanwhile has it read once more."""
        if tail.reading:
            tail.again = True
        else:
            tail.reading = True
            self._spawn(self._read_until_level(tail))

    async def _read_until_level(self, tail: Tail) -> None:
        try:
            while self._by_id.get(tail.stream_id) is tail:
                tail.again = False
                if tail.last == BEGINNING:
                    more = await self._read_newest(tail)
                else:
                    more = await self._read_on(tail)
                tail.exists = tail.last > BEGINNING and not tail.deleted
                if not tail.ready.done():
                    tail.ready.set_result(None)
                if not more and not tail.again:
                    break
        finally:
            tail.reading = False

    async def _read_newest(self, tail: Tail) -> bool:
        """The first read: the newest entries, as many as the ring holds. What is older is read in pages."""
        most = self._settings.ring_events
        entries = await patiently(lambda: self._log.newest(tail.stream_id, most))
        if entries and entries[0].id > ACCEPTED:
            first = entries[0]
            tail.ring.base = EventId(first.id.attempt, events_of(first)[0].id.offset - 1)
        for entry in entries:
            if tail.ended is None:
                self._apply(tail, entry)
        self._tell(tail)
        return False

    async def _read_on(self, tail: Tail) -> bool:
        """Everything after the tail's last entry, at most so many at once; whether there may be more."""
        entries = await patiently(lambda: self._log.read(tail.stream_id, tail.last, _READ_ENTRIES))
        for entry in entries:
            if tail.ended is not None:
                break
            first = events_of(entry)[0].id
            wanted = EventId(tail.next_after.attempt, tail.next_after.offset + 1)
            if first.attempt == wanted.attempt and first.offset > wanted.offset:
                logger.error("stream %s: %s to %s are missing in its log", tail.stream_id, wanted, first)
                tail.ring.append(gap_event(wanted, first))
            self._apply(tail, entry)
        if entries:
            tail.silent_since = tail.checked_at = self._loop.time()
            self._tell(tail)
        return len(entries) == _READ_ENTRIES

    # --- what is not said

    async def _sweep(self) -> None:
        """Compare silent tails with their logs, and end the streams that have nobody left to speak for them."""
        while True:
            await asyncio.sleep(self._settings.sweep_seconds / 5)
            if not self._subscriber.is_up:
                continue
            now = self._loop.time()
            for tail in self:
                silent = now - tail.checked_at > self._settings.sweep_seconds
                if silent and tail.ended is None and tail.ready.done() and not tail.reading:
                    tail.checked_at = now + random.uniform(0, self._settings.sweep_seconds / 5)
                    self._spawn(self._check(tail, now))

    async def _check(self, tail: Tail, now: float) -> None:
        try:
            newest = await self._log.newest(tail.stream_id)
            if not newest:
                tail.missing += 1
                if tail.missing >= _MISSING_MAX:
                    self._on_lost(tail)
                return
            tail.missing = 0
            if newest[0].id > tail.last:
                self._read(tail)
            elif newest[0].id == tail.last:
                await self._end_if_orphaned(tail, now - tail.silent_since)
        except (Disconnected, RedisRefused, LogFull) as error:
            logger.debug("stream %s: not checked: %s", tail.stream_id, error)

    async def _end_if_orphaned(self, tail: Tail, silent_seconds: float) -> None:
        settings = self._settings
        if tail.last.attempt == 0:
            if time.time() - created_at(tail.stream_id) <= settings.queue_seconds:
                return
            code, message = "queue_timeout", f"no worker was free within {settings.queue_seconds:g} s"
        elif silent_seconds > settings.orphan_seconds:
            code, message = "worker_lost", f"nothing was heard of the worker for {settings.orphan_seconds:g} s"
        else:
            return
        logger.warning("stream %s: failed: %s: %s", tail.stream_id, code, message)
        told = {"code": code, "message": message, "retryable": True, "time": time.time()}
        await self._log.end(tail.stream_id, events.FAILED, orjson.dumps(told), only_after=tail.last)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
