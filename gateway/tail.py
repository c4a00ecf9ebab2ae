"""Following logs: one subscribed connection and one command connection, however many readers.

A tail is one followed stream, shared by its readers. Subscribe first, read the log second: nothing falls between. After
that a pushed entry that is the very next one goes to the rings; anything else (a hole, a new attempt, a reconnection) is
answered by reading the log. The push is a hint, the log decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

from gateway import metrics
from gateway.faces import Encoder, Face, gap_event
from gateway.ring import Ring
from shared import events
from shared.events import Entry, events_of
from shared.ids import ACCEPTED, BEGINNING, EventId
from shared.keys import live_channel
from shared.lifecycle import base_of
from shared.log import EventLog
from shared.patience import patiently
from shared.resp import RespConnection
from shared.settings import Settings

logger = logging.getLogger(__name__)

_READ_ENTRIES = 256
_SUBSCRIBE_AT_ONCE = 500
_NOTHING = b""
"""What `Tail.next_id` is while no pushed entry may be taken unseen."""


class Tail:
    """One followed stream, as far as this gateway has it."""

    __slots__ = (
        "again",
        "ahead",
        "attempt",
        "base",
        "channel",
        "checked_at",
        "dirty",
        "end_sent_at",
        "ended",
        "ended_as",
        "exists",
        "heard_at",
        "holders",
        "id_format",
        "kept",
        "missing",
        "next_id",
        "offset",
        "on_end",
        "overtaken",
        "reading",
        "ready",
        "rings",
        "stream_id",
        "unprimed",
    )

    def __init__(self, stream_id: str, now: float) -> None:
        self.stream_id = stream_id
        self.channel = live_channel(stream_id)
        self.rings: list[Ring] = []
        """One for each face that has readers."""
        self.unprimed: list[Ring] = []
        """The same of faces that remember, until somebody has brought an encoder that has seen the whole log."""
        self.attempt = self.offset = 0
        """The id of the newest entry that is in the rings: `last`."""
        self.kept = -1
        """How many deltas a new attempt keeps, until its first delta has come: it goes on at the offset after them."""
        self.next_id = _NOTHING
        """The id of the very next token as it would be pushed, while such a push may be taken without a further look."""
        self.id_format = b""
        self.ended: EventId | None = None
        """The id of the terminal event, once it is known."""
        self.ended_as = b""
        """Its field."""
        self.end_sent_at = 0.0
        """When its sender sent it (Unix seconds), if it was pushed; 0 once that has been measured."""
        self.overtaken: tuple[tuple[int, int, int], ...] = ()
        """Attempts before the newest that this gateway has seen: number, deltas kept at its beginning, last offset."""
        self.base = 0
        """How many deltas of earlier attempts the newest one kept, as far as this gateway has seen it begin."""
        self.exists = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the log has been read; then `exists` and `ended` can be trusted."""
        self.ahead: list[Any] = []
        """Readers that have more than this tail: their cursor is beyond `last`."""
        self.holders = 0
        self.on_end: list[Callable[[], None]] = []
        self.reading = self.again = self.dirty = False
        self.heard_at = self.checked_at = now
        self.missing = 0

    @property
    def last(self) -> EventId:
        """The id of the newest entry that is in the rings."""
        return EventId(self.attempt, self.offset)

    @property
    def next_after(self) -> EventId:
        """The same, but for a new attempt that keeps deltas: then the next offset follows on theirs."""
        return EventId(self.attempt, self.offset if self.kept < 0 else self.kept)

    @property
    def begun(self) -> bool:
        """There is more than a start: a delta, or the end."""
        return self.ended is not None or (self.attempt > 0 and self.offset > 0)

    def ring(self, face: Face) -> Ring | None:
        """The ring of a face, also one that is not primed yet."""
        for ring in (*self.rings, *self.unprimed):
            if ring.face == face:
                return ring
        return None

    def open_ring(self, face: Face) -> Ring:
        """The ring of a face, made if need be. One made now begins here: what is older is read from the log."""
        ring = self.ring(face)
        if ring is None:
            ring = Ring(face, face.encoder(self.stream_id), self.last)
            if face.remembers and self.ready.done():
                self.unprimed.append(ring)
            else:
                self.rings.append(ring)
        return ring

    def prime(self, ring: Ring, encoder: Encoder) -> None:
        """Begin to fill a ring with an encoder that has seen everything up to `last`."""
        self.unprimed.remove(ring)
        ring.begin_at(self.last, encoder)
        self.rings.append(ring)

    def begin_rings_at(self, base: EventId) -> None:
        """The log has more than its first read gave: the rings, still empty, begin after `base`."""
        for ring in list(self.rings):
            if ring.face.remembers:
                self.rings.remove(ring)
                self.unprimed.append(ring)
            else:
                ring.begin_at(base, ring.encoder)

    def close_ring(self, ring: Ring) -> None:
        """Forget a ring that has no readers any more."""
        (self.unprimed if ring in self.unprimed else self.rings).remove(ring)

    def arm(self) -> None:
        """From now on the very next token may be taken as it is pushed."""
        if self.ended is None and self.kept < 0 and self.attempt:
            self.id_format = b"%d-%%d" % self.attempt
            self.next_id = self.id_format % (self.offset + 1)


class Tails:
    """All tails of a gateway process. `on_new` is told of a tail that has something for its readers."""

    def __init__(
        self,
        log: EventLog,
        subscriber_for: Callable[[Callable[[list[Any]], None], Callable[[], None]], RespConnection],
        settings: Settings,
        on_new: Callable[[Tail], None],
    ) -> None:
        self._log = log
        self._settings = settings
        self._on_new = on_new
        self._by_id: dict[str, Tail] = {}
        self._by_channel: dict[bytes, Tail] = {}
        self.subscriber = subscriber_for(self._on_push, self._on_up)
        self._tasks: set[asyncio.Task[None]] = set()
        self.pushed = 0  # these and the next are handed to Prometheus once a second
        self.reads = dict.fromkeys(("begin", "subscribed", "hole", "check"), 0)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Tail]:
        """Those that are there now; none may come or go meanwhile."""
        return iter(self._by_id.values())

    def __contains__(self, tail: Tail) -> bool:
        return self._by_id.get(tail.stream_id) is tail

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.subscriber.start()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.subscriber.close()

    # --- coming and going

    def hold(self, stream_id: str, face: Face | None = None) -> Tail:
        """The stream's tail, made if need be, and kept until `release`. It may not be `ready` yet.

        With a face, what is read first of all is kept for its readers.
        """
        tail = self._by_id.get(stream_id)
        if tail is None:
            tail = Tail(stream_id, self._loop.time())
            self._by_id[stream_id] = self._by_channel[tail.channel] = tail
            self.subscriber.push(b"SSUBSCRIBE", tail.channel)
        if face is not None and not tail.ready.done():
            tail.open_ring(face)
        tail.holders += 1
        return tail

    def release(self, tail: Tail) -> None:
        """Give up a tail that was held; the last one to do so ends it."""
        tail.holders -= 1
        if not tail.holders:
            del self._by_id[tail.stream_id], self._by_channel[tail.channel]
            self.subscriber.push(b"SUNSUBSCRIBE", tail.channel)

    # --- what is pushed

    def _on_up(self) -> None:
        """(Re)connected: subscribe again to everything. Each confirmation has its log read from where the tail is."""
        channels = list(self._by_channel)
        for index in range(0, len(channels), _SUBSCRIBE_AT_ONCE):
            self.subscriber.push(b"SSUBSCRIBE", *channels[index : index + _SUBSCRIBE_AT_ONCE])

    def _on_push(self, pushed: list[Any]) -> None:
        self.pushed += len(pushed)
        by_channel, on_new, now, token = self._by_channel, self._on_new, self._loop.time(), events.TOKEN
        for message in pushed:
            if type(message) is not list or message[0] != b"smessage":
                self._on_control(message)
                continue
            tail = by_channel.get(message[1])
            if tail is None:
                continue
            event_id, field, value = message[2].split(b" ", 2)
            if event_id == tail.next_id and field == token:
                # What `_take` would do, for what comes by the thousand.
                tail.offset += 1
                tail.next_id = tail.id_format % (tail.offset + 1)
                for ring in tail.rings:
                    ring.encoded.append(ring.encoder.token(event_id, value))
                tail.heard_at = now
                if not tail.dirty:
                    on_new(tail)
            else:
                self._take(tail, Entry(EventId.of(event_id), field, value), now)

    def _on_control(self, message: Any) -> None:
        """Whatever a subscriber hears that is no entry."""
        if type(message) is not list:
            if message != b"PONG":  # a list, too, except while nothing is subscribed to
                logger.warning("the subscription was refused: %s", message)
            return
        kind = message[0]
        if kind == b"ssubscribe":
            tail = self._by_channel.get(message[1])
            if tail is not None:
                self.read(tail, "subscribed")
        elif kind == b"sunsubscribe" and message[1] in self._by_channel:  # the slot moved, in a Cluster
            self.subscriber.push(b"SSUBSCRIBE", message[1])

    def _take(self, tail: Tail, entry: Entry, now: float) -> None:
        """A pushed entry: the next one is taken, an old one passed over, for anything else the log is read."""
        if tail.reading or not tail.ready.done():
            tail.again = True
            return
        if entry.id <= tail.last or tail.ended is not None:
            return
        if not self._apply_next(tail, entry):
            self.read(tail, "hole")
            return
        if tail.ended is not None:
            tail.end_sent_at = metrics.sent_at(entry)
        tail.heard_at = now
        self._tell(tail)

    def _apply_next(self, tail: Tail, entry: Entry) -> bool:
        """Put an entry into the rings if it is the very next, so that nothing can stand between."""
        carried = events_of(entry) if entry.field == events.BATCH else None
        (attempt, offset), reached = entry.id, tail.next_after
        if attempt == reached.attempt:
            if offset - (1 if carried is None else len(carried)) != reached.offset:
                return False
        elif entry.id != (1, 0) or reached != ACCEPTED:
            return False
        self._apply(tail, entry, carried)
        tail.arm()
        return True

    def _apply(self, tail: Tail, entry: Entry, carried: list[Any] | None = None) -> None:
        rings = tail.rings
        if rings:
            for event in carried or events_of(entry):
                for ring in rings:
                    ring.append(event)
        if entry.id.attempt != tail.attempt:
            tail.overtaken = (*tail.overtaken, (tail.attempt, tail.base, tail.offset))
            tail.base = 0
        tail.attempt, tail.offset = entry.id
        tail.kept, tail.next_id = -1, _NOTHING
        if entry.field in events.TERMINAL:
            tail.ended, tail.ended_as = entry.id, entry.field
        elif entry.field == events.RESTARTED:
            tail.kept = tail.base = base_of(entry.value)

    def _tell(self, tail: Tail) -> None:
        if not tail.dirty:
            self._on_new(tail)
        if tail.ended is not None:
            waiting, tail.on_end = tail.on_end, []
            for call in waiting:
                call()

    # --- what is read

    def read(self, tail: Tail, reason: str) -> None:
        """Read the log from where the tail is; a push that comes meanwhile has it read once more."""
        tail.next_id = _NOTHING
        if tail.reading:
            tail.again = True
        else:
            tail.reading = True
            self.reads["begin" if tail.last == BEGINNING else reason] += 1
            self._spawn(self._read_until_level(tail))

    async def _read_until_level(self, tail: Tail) -> None:
        try:
            while self._by_id.get(tail.stream_id) is tail:
                tail.again = False
                if tail.last == BEGINNING:
                    more = await self._read_newest(tail)
                else:
                    more = await self._read_on(tail)
                tail.exists = tail.last > BEGINNING and tail.ended_as != events.DELETED
                if not tail.ready.done():
                    tail.ready.set_result(None)
                if not more and not tail.again:
                    tail.arm()
                    break
        finally:
            tail.reading = False

    async def _read_newest(self, tail: Tail) -> bool:
        """The first read: the newest entries, as many as a ring holds. What is older is read in pages."""
        most = self._settings.ring_events if tail.rings else 1
        entries = await patiently(lambda: self._log.newest(tail.stream_id, most))
        if entries and entries[0].id > ACCEPTED:
            first = events_of(entries[0])[0].id
            tail.begin_rings_at(EventId(first.attempt, first.offset - 1))
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
            reached = tail.next_after
            wanted = EventId(reached.attempt, reached.offset + 1)
            if first.attempt == wanted.attempt and first.offset > wanted.offset:
                logger.error("stream %s: %s to %s are missing in its log", tail.stream_id, wanted, first)
                metrics.GAPS.inc()
                for ring in tail.rings:
                    ring.append(gap_event(wanted, first))
            self._apply(tail, entry)
        if entries:
            tail.heard_at = self._loop.time()
            self._tell(tail)
        return len(entries) == _READ_ENTRIES

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
