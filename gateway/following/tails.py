"""Following logs: one subscribed connection and one command connection, however many readers.

    Redis pushes ──► _on_push ──► the tail's rings ──► on_new (gateway.delivery flushes them to the sockets)
                        │ not the very next entry
                        ▼
                      read ──► at most 16 logs at once ──► _begin, _read_on ──► the tail's rings ──► on_new

The gateway subscribes first and reads the log second, so that nothing falls between. After that a pushed entry that is the
very next one goes to the rings; after anything else (a hole, a new attempt, a reconnection) the log is read. The push is a
hint, the log decides. What is pushed and is no entry is passed over, and the log is read.

An entry reaches all rings or none: a ring whose encoder fails breaks alone (`gateway.following.ring`), and the tail goes on. A log
whose next entry cannot be read ends there, as failed, for all faces.

A log is read by callbacks. What came is encoded and forgotten before the next reply is looked at. With a task for each
log, a thousand readers who resumed at once had all their logs in memory as objects first, and the collector walked them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from gateway import metrics
from gateway.faces import Face
from gateway.following.followed_streams import FollowedStreams
from gateway.following.tail import Tail
from gateway.following.token_runs import carried_by, field_of, parts, run_of_batch, unreadable
from shared import events
from shared.connections import RedisSubscriber
from shared.errors import RedisRefused, Unreadable
from shared.event_log import EventLog, RawEntry
from shared.events import Entry, Event, entry_of, events_of
from shared.ids import BEGINNING, FIRST_ID, EventId
from shared.lifecycle import readable_id
from shared.settings import Settings

logger = logging.getLogger(__name__)

FIRST_READ_ENTRIES = 1024
"""If the readers are no further back than this, one read of the log serves all of them: about 100 KB and 1 ms of Redis."""
_READ_ENTRIES = 256
_READS_AT_ONCE = 16
"""The most reads that Redis has not answered yet: 1.6 MB in Redis, and a delay of 10 ms for other commands on this connection."""
_SUBSCRIBE_AT_ONCE = 500
_AGAIN_SECONDS = 0.25
"""How long after a read that failed the log is read once more."""


class Tails:
    """Moves the tails of a gateway process on. `on_new` is called with a tail that has something new and is not `dirty` yet."""

    def __init__(
        self,
        followed: FollowedStreams,
        log: EventLog,
        subscriber_for: Callable[[Callable[[list[Any]], None], Callable[[], None]], RedisSubscriber],
        settings: Settings,
        on_new: Callable[[Tail], None],
    ) -> None:
        self._log = log
        self._settings = settings
        self._on_new = on_new
        self.followed = followed
        self._by_id, self._by_channel = followed.by_id, followed.by_channel
        self.subscriber = subscriber_for(self._on_push, self._on_up)
        self.refusal: RedisRefused | None = None
        """Why Redis refused the last subscription; None when it did not."""
        self._on_unheld = self._unheld  # one bound method for all tails
        self._reads_under_way = 0
        self._waiting_to_read: deque[Tail] = deque()
        self._put_off: list[Tail] = []
        """Tails whose log could not be read, since Redis is away."""
        self._again: asyncio.TimerHandle | None = None
        self.pushed = 0  # this and the next are handed to Prometheus once a second
        self.reads = dict.fromkeys(("begin", "subscribed", "hole", "check"), 0)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Tail]:
        """Iterates over the tails that are there now; none may come or go meanwhile."""
        return iter(self._by_id.values())

    def __contains__(self, tail: Tail) -> bool:
        return self._by_id.get(tail.stream_id) is tail

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.subscriber.start()

    async def close(self) -> None:
        if self._again is not None:
            self._again.cancel()
        await self.subscriber.close()

    # --- coming and going

    def hold(self, stream_id: str, face: Face | None = None, after: EventId = BEGINNING) -> Tail:
        """Returns the stream's tail, made if need be, and held until its `release`. It may not be `ready` yet.

        With a face, the first read of the log is kept for that face's readers, who all have everything up to `after`.
        """
        if face is not None and face.stateful:
            after = BEGINNING
        tail = self._by_id.get(stream_id)
        if tail is None:
            tail = Tail(stream_id, self._loop.time(), self._on_unheld)
            tail.sought = after
            self.followed.add(tail)
            self.subscriber.push(b"SSUBSCRIBE", tail.channel)
        if face is not None and not tail.is_ready:
            tail.open_ring(face)
            tail.sought = min(tail.sought, after)
        tail.hold()
        return tail

    def _unheld(self, tail: Tail) -> None:
        self.followed.remove(tail)
        self.subscriber.push(b"SUNSUBSCRIBE", tail.channel)

    # --- what is pushed

    def _on_up(self) -> None:
        """Subscribes to all streams, after each connect. When Redis confirms one, its log is read from where the tail is."""
        channels = list(self._by_channel)
        for index in range(0, len(channels), _SUBSCRIBE_AT_ONCE):
            self.subscriber.push(b"SSUBSCRIBE", *channels[index : index + _SUBSCRIBE_AT_ONCE])

    def _on_push(self, pushed: list[Any]) -> None:
        """Takes the messages that came in one piece. Here a token's way through the gateway begins; on_new has it flushed."""
        self.pushed += len(pushed)
        by_channel, on_new, now = self._by_channel, self._on_new, self._loop.time()
        token, batch = events.TOKEN, events.BATCH
        for message in pushed:
            if type(message) is not list or message[0] != b"smessage":
                self._on_control(message)
                continue
            tail = by_channel.get(message[1])
            if tail is None:
                continue
            try:
                event_id, field, value = message[2].split(b" ", 2)
                if event_id == tail.next_id and field == token:
                    # As in `Tail.take` and `Tail.reach`, written out: tokens come by the thousand.
                    tail.offset += 1
                    tail.next_id = tail.id_format % (tail.offset + 1)
                    for ring in tail.rings:
                        ring.encoded.append(ring.encoder.token(event_id, value))
                    tail.heard_at = now
                    if not tail.dirty:
                        on_new(tail)
                    continue
                if field == batch and tail.take_next_batch(event_id, value):
                    tail.heard_at = now
                    self._tell_of(tail)
                    continue
            except Exception:
                self._on_odd_push(tail, message[2])
                continue
            try:
                place = EventId.of(event_id)
                if bytes(place) != event_id:  # `int` also takes signs, spaces, underscores and other digits
                    raise ValueError
                self._take(tail, Entry(place, field, value), now)
            except (Unreadable, ValueError):
                self._pass_over(tail, message[2])

    def _on_odd_push(self, tail: Tail, message: Any) -> None:
        """Takes a pushed message that is no entry of ours, or a token at which an encoder has failed."""
        words = message.split(b" ", 2) if type(message) is bytes else ()
        if len(words) != 3 or words[1] != events.TOKEN or words[0] != bytes(tail.last):
            self._pass_over(tail, message)  # it was not taken for the next one
            return
        value = words[2]
        try:
            events.check_text(value)
        except Unreadable:  # no encoder takes it: nothing has changed but the offset
            tail.take_back_one()
            self._pass_over(tail, message)
            return
        # The rings before the one whose encoder failed have the token. That one breaks, and those behind it still lack it.
        event = Event(tail.last, events.TOKEN, value)
        for ring in tail.rings:
            if ring.cursor_at(ring.end) != event.id:
                ring.append(event)
        tail.set_broken_aside()
        self._tell_of(tail)

    def _pass_over(self, tail: Tail, message: Any) -> None:
        """Reads the log instead of a pushed message that is no entry: there may be something new."""
        metrics.PUSHES_PASSED_OVER.inc()
        logger.debug("stream %s: a pushed message is no entry: %.100r", tail.stream_id, message)
        if tail.ended is None:
            self.read(tail, "hole")

    def _on_control(self, message: Any) -> None:
        """Takes what a subscriber is sent beside published messages."""
        if type(message) is not list:
            if message != b"PONG":  # a list where there are subscriptions, and this where there are none
                logger.warning("the subscription was refused: %s", message)
                self.refusal = RedisRefused(str(message))
            return
        kind = message[0]
        if kind == b"ssubscribe":
            self.refusal = None
            tail = self._by_channel.get(message[1])
            if tail is not None:
                self.read(tail, "subscribed")
        elif kind == b"sunsubscribe" and message[1] in self._by_channel:  # the slot moved, in a Cluster
            self.subscriber.push(b"SSUBSCRIBE", message[1])

    def _take(self, tail: Tail, entry: Entry, now: float) -> None:
        """Takes a pushed entry if it is the next one, passes over an old one, and reads the log for anything else."""
        if tail.reading or not tail.is_ready:
            tail.again = True
            return
        if entry.id <= tail.last or tail.ended is not None:
            return
        if not tail.take_pushed((run_of_batch(entry) if entry.field == events.BATCH else None) or carried_by(entry)):
            self.read(tail, "hole")
            return
        tail.heard_at = now
        self._tell_of(tail)

    def _tell_of(self, tail: Tail) -> None:
        if not tail.dirty:
            self._on_new(tail)

    # --- what is read

    async def read_anew(self, tail: Tail) -> None:
        """Reads a log that was not there before, unless somebody else's call has done so; returns when it has been read."""
        if tail.is_ready and tail.last == BEGINNING:
            tail.set_unread()
            self.read(tail, "begin")
        await tail.until_ready()

    def read(self, tail: Tail, reason: str) -> None:
        """Reads the log from where the tail is; a push that comes meanwhile has it read once more."""
        tail.disarm()
        if tail.reading:
            tail.again = True
        elif tail.ended is None:  # what stands behind the end must not be read
            tail.reading = True
            self.reads["begin" if tail.last == BEGINNING else reason] += 1
            self._ask(tail)

    def _ask(self, tail: Tail) -> None:
        if self._reads_under_way >= _READS_AT_ONCE:
            self._waiting_to_read.append(tail)
            return
        self._reads_under_way += 1
        tail.again = False
        if tail.last > BEGINNING:
            self._log.send_read(tail.stream_id, tail.last, _READ_ENTRIES, self._then(tail, self._read_on))
        elif tail.rings:
            # Inclusive, since the entry with this id may be the log's end.
            first = self._then(tail, partial(self._read_first, tail.sought))
            self._log.send_read(tail.stream_id, tail.sought, FIRST_READ_ENTRIES, first, inclusive=True)
        else:
            self._log.send_newest(tail.stream_id, 1, self._then(tail, self._read_newest))

    def _then(self, tail: Tail, take: Callable[[Tail, list[RawEntry]], None]) -> Callable[[Any], None]:
        return partial(self._answered, tail, take)

    def _answered(self, tail: Tail, take: Callable[[Tail, list[RawEntry]], None], reply: Any) -> None:
        self._reads_under_way -= 1
        if self._waiting_to_read:
            self._ask(self._waiting_to_read.popleft())
        if tail not in self:
            tail.reading = False
        elif isinstance(reply, Exception):
            logger.debug("stream %s: its log was not read: %s", tail.stream_id, reply)
            self._put_off.append(tail)
            if self._again is None:
                self._again = self._loop.call_later(_AGAIN_SECONDS, self._ask_again)
        else:
            try:
                take(tail, reply)
            except Exception:  # a bug; this is one stream of many on this connection
                logger.exception("stream %s: its log cannot be understood", tail.stream_id)
                self._give_up(tail)

    def _give_up(self, tail: Tail) -> None:
        """Ends a tail that cannot go on, for those who follow it here."""
        place = EventId(tail.attempt, tail.offset + 1)
        tail.take(unreadable(place, Unreadable("this gateway does not understand what stands there")))
        self._tell_of(tail)
        self._has_read(tail, more=False)

    def _ask_again(self) -> None:
        put_off, self._put_off, self._again = self._put_off, [], None
        for tail in put_off:
            self._ask(tail)

    def _read_first(self, sought: EventId, tail: Tail, raw: list[RawEntry]) -> None:
        """Takes the first read, from the first of the readers on. If they are far back only the newest entries are read
        instead, and readers get what is older in pages. `sought` is where the read began: a reader who has come meanwhile
        may be further back."""
        if len(raw) == FIRST_READ_ENTRIES:
            newest = self._settings.ring_events
        elif not raw and sought > BEGINNING:  # they have all that there is, or more
            newest = 1
        else:
            self._begin(tail, raw, BEGINNING if sought == BEGINNING else None)
            return
        self._reads_under_way += 1
        self._log.send_newest(tail.stream_id, newest, self._then(tail, self._read_newest))

    def _read_newest(self, tail: Tail, raw: list[RawEntry]) -> None:
        self._begin(tail, raw, None)

    def _begin(self, tail: Tail, raw: list[RawEntry], reached: EventId | None) -> None:
        """Takes the first entries of a tail; `reached` is None where it is not known what stands before them."""
        if raw and reached is None:
            first = _first_id(raw[0])
            if first > FIRST_ID:
                tail.begin_rings_at(EventId(first.attempt, first.offset - 1))
        self._take_read(tail, raw, reached)
        self._tell_of(tail)
        self._has_read(tail, more=False)

    def _read_on(self, tail: Tail, raw: list[RawEntry]) -> None:
        """Takes the entries after the tail's last one; there are more if there are as many as one read gives."""
        self._take_read(tail, raw, tail.next_after)
        if raw:
            tail.heard_at = self._loop.time()
            self._tell_of(tail)
        self._has_read(tail, more=len(raw) == _READ_ENTRIES and tail.ended is None)

    def _has_read(self, tail: Tail, *, more: bool) -> None:
        tail.exists = tail.last > BEGINNING and tail.ended_as != events.DELETED
        reads_on = more or (tail.again and tail.ended is None)
        if tail.exists or not reads_on:  # a log that was not there may have begun, or come back, since it was asked for
            tail.set_ready()
        if reads_on:
            self._ask(tail)
        else:
            tail.reading = False
            tail.arm()

    def _take_read(self, tail: Tail, raw: list[RawEntry], reached: EventId | None) -> None:
        """Takes entries that were read, up to the end of the stream. `reached` is the id before them."""
        if tail.ended is not None:
            return
        for part in parts(raw, reached):
            tail.mark_gap(part.first)
            tail.take(part)
        if tail.failed is not None:
            ended = any(field_of(entry) in events.TERMINAL for entry in raw)
            self.followed.found_unreadable(tail.stream_id, tail.failed, ended=ended)


def _first_id(raw: RawEntry) -> EventId:
    """Returns the id of an entry's first event."""
    entry = entry_of(*raw)
    try:
        return events_of(entry)[0].id
    except Unreadable:
        return readable_id(entry.id)
