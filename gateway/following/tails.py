"""Following logs: one subscribed connection and one command connection, however many readers.

Subscribe first, read the log second: nothing falls between. After that a pushed entry that is the very next one goes to
the rings; anything else (a hole, a new attempt, a reconnection) is answered by reading the log. The push is a hint, the
log decides. What is pushed and is no entry is passed over, and the log is read.

An entry reaches all rings or none: a ring whose encoder fails breaks alone (`gateway.following.ring`), and the tail goes on. A log
whose next entry cannot be read ends there, as failed, for all faces; `on_unreadable` is told, who writes that down.

A log is read by callbacks. What came is encoded and forgotten before the next reply is looked at: as tasks a thousand
readers who come back at once had all their logs in memory as objects first, and the collector walked them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from gateway import metrics
from gateway.faces import Face, gap_event
from gateway.following.ring import Ring
from gateway.following.tail import Tail
from gateway.following.token_runs import (
    Carried,
    TokenRun,
    carried_by,
    field_of,
    parts,
    run_of_batch,
    unreadable,
    unreadable_from,
)
from shared import events
from shared.errors import RedisRefused, Unreadable
from shared.event_log import EventLog, RawEntry
from shared.events import Entry, Event, entry_of, events_of
from shared.ids import BEGINNING, FIRST_ID, EventId
from shared.lifecycle import Order, kept_tokens_of, readable_id
from shared.resp import RespConnection
from shared.settings import Settings

logger = logging.getLogger(__name__)

FIRST_READ_ENTRIES = 1024
"""Where readers are no further back than this, the log is read once for all of it: about 100 KB and 1 ms of Redis."""
_READ_ENTRIES = 256
_READS_AT_ONCE = 16
"""Logs asked for and not yet answered: 1.6 MB in Redis, and 10 ms for whoever else waits on this connection."""
_SUBSCRIBE_AT_ONCE = 500
_BROKEN_MAX = 1000
"""Streams of which it is remembered that a face cannot show them, or that their log cannot be read: 2 MB, and 0.2 MB."""
_AGAIN_SECONDS = 0.25
"""After so long is a log asked for once more that Redis did not give."""


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
        self.refusal: RedisRefused | None = None
        """Why Redis did not take the last subscription; None when it did."""
        self._asked = 0
        self._to_ask: deque[Tail] = deque()
        self._put_off: list[Tail] = []
        """Whose log could not be read: Redis is away."""
        self._again: asyncio.TimerHandle | None = None
        self._broken: OrderedDict[str, list[Ring]] = OrderedDict()
        """Of streams that nobody follows now, the rings that are broken."""
        self._unreadable: OrderedDict[str, EventId] = OrderedDict()
        """Of streams whose log was found unreadable, from where on: a reader who comes back with that id has had the end."""
        self.on_unreadable: Callable[[str, Event], None] = lambda stream_id, failed: None
        """Told of a stream whose log cannot be read on, and of the `failed` as which it reads."""
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
        if self._again is not None:
            self._again.cancel()
        await self.subscriber.close()

    # --- coming and going

    def hold(self, stream_id: str, face: Face | None = None, after: EventId = BEGINNING) -> Tail:
        """The stream's tail, made if need be, and kept until `release`. It may not be `ready` yet.

        With a face, what is read first of all is kept for its readers; of these the first have everything up to `after`.
        """
        if face is not None and face.stateful:
            after = BEGINNING
        tail = self._by_id.get(stream_id)
        if tail is None:
            tail = Tail(stream_id, self._loop.time())
            tail.sought = after
            tail.broken = self._broken.pop(stream_id, [])
            tail.unreadable_from = self._unreadable.get(stream_id)
            self._by_id[stream_id] = self._by_channel[tail.channel] = tail
            self.subscriber.push(b"SSUBSCRIBE", tail.channel)
        if face is not None and not tail.ready.done():
            tail.open_ring(face)
            tail.sought = min(tail.sought, after)
        tail.holders += 1
        return tail

    def release(self, tail: Tail) -> None:
        """Give up a tail that was held; the last one to do so ends it."""
        tail.holders -= 1
        if not tail.holders:
            del self._by_id[tail.stream_id], self._by_channel[tail.channel]
            self.subscriber.push(b"SUNSUBSCRIBE", tail.channel)
            if tail.broken:
                self._broken[tail.stream_id] = tail.broken
                if len(self._broken) > _BROKEN_MAX:
                    self._broken.popitem(last=False)

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
            try:
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
                    continue
            except Exception:
                self._on_odd_push(tail, message[2])
                continue
            try:
                self._take(tail, Entry(EventId.of(event_id), field, value), now)
            except (Unreadable, ValueError):
                self._pass_over(tail, message[2])

    def _on_odd_push(self, tail: Tail, message: Any) -> None:
        """A pushed message that is no entry of ours, or a token at which an encoder has failed."""
        parts = message.split(b" ", 2) if type(message) is bytes else ()
        if len(parts) != 3 or parts[1] != events.TOKEN or parts[0] != bytes(tail.last):
            self._pass_over(tail, message)  # it never was the next one
            return
        value = parts[2]
        try:
            events.check_text(value)
        except Unreadable:  # no encoder takes it: nothing has changed but this
            tail.offset -= 1
            self._pass_over(tail, message)
            return
        # Rings before the one whose encoder failed have it. That one breaks, and those behind it still lack it.
        event = Event(tail.last, events.TOKEN, value)
        for ring in tail.rings:
            if ring.cursor_at(ring.end) != event.id:
                ring.append(event)
        tail.set_broken_aside()
        self._tell(tail)

    def _pass_over(self, tail: Tail, message: Any) -> None:
        """What is pushed and cannot be read says no more than that there may be something new."""
        metrics.PUSHES_PASSED_OVER.inc()
        logger.debug("stream %s: a pushed message is no entry: %.100r", tail.stream_id, message)
        if tail.ended is None:
            self.read(tail, "hole")

    def _on_control(self, message: Any) -> None:
        """Whatever a subscriber hears that is no entry."""
        if type(message) is not list:
            if message != b"PONG":  # a list, too, except while nothing is subscribed to
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
        """A pushed entry: the next one is taken, an old one passed over, for anything else the log is read."""
        if tail.reading or not tail.ready.done():
            tail.again = True
            return
        if entry.id <= tail.last or tail.ended is not None:
            return
        part = (run_of_batch(entry) if entry.field == events.BATCH else None) or carried_by(entry)
        if not self._apply_next(tail, part):
            self.read(tail, "hole")
            return
        if tail.ended is not None and isinstance(part, Carried):
            tail.end_sent_at = metrics.sent_at(part.events[0])
        tail.heard_at = now
        self._tell(tail)

    def _apply_next(self, tail: Tail, part: TokenRun | Carried) -> bool:
        """Put a pushed entry into the rings if it is the very next, so that nothing can stand between. Raises Unreadable."""
        first, reached = part.first, tail.next_after
        if first.attempt == reached.attempt:
            if first.offset != reached.offset + 1:
                return False
        elif first != (1, 0) or reached != FIRST_ID:
            return False
        if isinstance(part, TokenRun):
            self._apply_run(tail, part)
        else:
            if part.field not in events.COUNTED or not first.attempt:
                Order(reached).take(part.field, first, part.last)
            self._apply(tail, part)
        tail.arm()
        return True

    def _apply_run(self, tail: Tail, run: TokenRun) -> None:
        for ring in tail.rings:
            ring.extend(run)
        tail.reach(run.last)

    def _apply(self, tail: Tail, part: Carried) -> None:
        for ring in tail.rings:
            for event in part.events:
                ring.append(event)
        tail.reach(part.last)
        if part.field in events.TERMINAL:
            tail.ended, tail.ended_as = part.last, part.field
            if part.field == events.FAILED:
                tail.unreadable_from = tail.unreadable_from or unreadable_from(part.events[0])
        elif part.field == events.RESTARTED:
            tail.kept = tail.base = kept_tokens_of(part.events[0].value)

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
        tail.disarm()
        if tail.reading:
            tail.again = True
        elif tail.ended is None:  # what stands behind the end must not be read
            tail.reading = True
            self.reads["begin" if tail.last == BEGINNING else reason] += 1
            self._ask(tail)

    def _ask(self, tail: Tail) -> None:
        if self._asked >= _READS_AT_ONCE:
            self._to_ask.append(tail)
            return
        self._asked += 1
        tail.again = False
        if tail.last > BEGINNING:
            self._log.send_read(tail.stream_id, tail.last, _READ_ENTRIES, self._then(tail, self._read_on))
        elif tail.rings:
            # The entry with this id, too: it may be the log's end.
            first = self._then(tail, partial(self._read_first, tail.sought))
            self._log.send_read(tail.stream_id, tail.sought, FIRST_READ_ENTRIES, first, inclusive=True)
        else:
            self._log.send_newest_raw(tail.stream_id, 1, self._then(tail, self._read_newest))

    def _then(self, tail: Tail, take: Callable[[Tail, list[RawEntry]], None]) -> Callable[[Any], None]:
        return partial(self._answered, tail, take)

    def _answered(self, tail: Tail, take: Callable[[Tail, list[RawEntry]], None], reply: Any) -> None:
        self._asked -= 1
        if self._to_ask:
            self._ask(self._to_ask.popleft())
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
        """A tail that cannot go on ends for those who follow it here."""
        place = EventId(tail.attempt, tail.offset + 1)
        part = unreadable(place, Unreadable("this gateway does not understand what stands there"))
        self._apply(tail, part)
        tail.failed = part.events[0]
        self._tell(tail)
        self._has_read(tail, more=False)

    def _ask_again(self) -> None:
        put_off, self._put_off, self._again = self._put_off, [], None
        for tail in put_off:
            self._ask(tail)

    def _read_first(self, sought: EventId, tail: Tail, raw: list[RawEntry]) -> None:
        """From the first of the readers on, if that is not far back; what is older than the ring is read in pages. A reader
        may have come meanwhile who is further back than what was `sought`."""
        if len(raw) == FIRST_READ_ENTRIES:
            newest = self._settings.ring_events
        elif not raw and sought > BEGINNING:  # they have all that there is, or more
            newest = 1
        else:
            self._begin(tail, raw, BEGINNING if sought == BEGINNING else None)
            return
        self._asked += 1
        self._log.send_newest_raw(tail.stream_id, newest, self._then(tail, self._read_newest))

    def _read_newest(self, tail: Tail, raw: list[RawEntry]) -> None:
        self._begin(tail, raw, None)

    def _begin(self, tail: Tail, raw: list[RawEntry], reached: EventId | None) -> None:
        """The first that is read; `reached` is None where it is not known what stands before it."""
        if raw and reached is None:
            first = _first_id(raw[0])
            if first > FIRST_ID:
                tail.begin_rings_at(EventId(first.attempt, first.offset - 1))
        self._apply_raw(tail, raw, reached)
        self._tell(tail)
        self._has_read(tail, more=False)

    def _read_on(self, tail: Tail, raw: list[RawEntry]) -> None:
        """Everything after the tail's last entry, at most so many at once."""
        self._apply_raw(tail, raw, tail.next_after)
        if raw:
            tail.heard_at = self._loop.time()
            self._tell(tail)
        self._has_read(tail, more=len(raw) == _READ_ENTRIES and tail.ended is None)

    def _has_read(self, tail: Tail, *, more: bool) -> None:
        tail.exists = tail.last > BEGINNING and tail.ended_as != events.DELETED
        if not tail.ready.done():
            tail.ready.set_result(None)
        if more or (tail.again and tail.ended is None):
            self._ask(tail)
        else:
            tail.reading = False
            tail.arm()

    def _apply_raw(self, tail: Tail, raw: list[RawEntry], reached: EventId | None) -> None:
        """What was read, up to the end of the stream."""
        if tail.ended is not None:
            return
        for part in parts(raw, reached):
            self._mark_gap(tail, part.first)
            if isinstance(part, TokenRun):
                self._apply_run(tail, part)
                continue
            self._apply(tail, part)
            if part.unreadable:
                tail.failed = part.events[0]
                ended = any(field_of(one) in events.TERMINAL for one in raw)
                self.found_unreadable(tail.stream_id, part.events[0], ended=ended)

    def found_unreadable(self, stream_id: str, failed: Event, *, ended: bool = False) -> None:
        """A log reads as failed from this event on, wherever that was found. `ended`: it is known to have an end already."""
        # Who begins to read behind the place does not see it, and may find another one.
        place = self._unreadable[stream_id] = min(failed.id, self._unreadable.get(stream_id, failed.id))
        if len(self._unreadable) > _BROKEN_MAX:
            self._unreadable.popitem(last=False)
        tail = self._by_id.get(stream_id)
        if tail is not None:
            tail.unreadable_from = place
        if not ended:
            self.on_unreadable(stream_id, failed)

    @staticmethod
    def _mark_gap(tail: Tail, first: EventId) -> None:
        """If something is missing between what the tail has and what follows, its readers are told so."""
        reached = tail.next_after
        if first.attempt == reached.attempt and first.offset > reached.offset + 1:
            wanted = EventId(reached.attempt, reached.offset + 1)
            logger.error("stream %s: %s to %s are missing in its log", tail.stream_id, wanted, first)
            metrics.GAPS.inc()
            for ring in tail.rings:
                ring.append(gap_event(wanted, first))


def _first_id(raw: RawEntry) -> EventId:
    """The id of an entry's first event."""
    entry = entry_of(*raw)
    try:
        return events_of(entry)[0].id
    except Unreadable:
        return readable_id(entry.id)
