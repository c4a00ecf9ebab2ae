"""One followed stream: what this gateway has of its log, and the rings that its readers share. No I/O."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import lru_cache

from gateway import metrics
from gateway.faces import Encoder, Face, FramingFace, gap_event
from gateway.following.ring import FramedRing, Ring
from gateway.following.token_runs import Carried, TokenRun, run_of_items, unreadable_from
from shared import events
from shared.errors import Unreadable
from shared.events import Event, items_of
from shared.ids import BEGINNING, FIRST_ID, EventId
from shared.keys import live_channel
from shared.lifecycle import Order, kept_tokens_of
from shared.token_counts import tokens_between

logger = logging.getLogger(__name__)

_NOTHING = b" "
"""`Tail.next_id` while the fast path is off: a space ends the id of a pushed message, so that none equals it."""


def _without(rings: tuple[Ring, ...], ring: Ring) -> tuple[Ring, ...]:
    return tuple(it for it in rings if it is not ring)


@lru_cache(maxsize=64)  # nearly all streams are in their first attempts, and share these bytes
def _id_format(attempt: int) -> bytes:
    """Returns a format that makes an id of an offset of this attempt."""
    return b"%d-%%d" % attempt


def _is_kept(tail: Tail) -> None:
    """A tail that is in no `Tails` has nobody to tell that it is not held any more."""


class Tail:
    """A stream as far as this gateway has followed it, shared by the stream's readers.

    The fields are written here, by the verbs below, with these exceptions. `gateway.following.tails` sets `exists`,
    `sought`, `reading`, `again` and `heard_at`, and moves `offset` and `next_id` on for each token that is pushed
    in order (a call for each would cost as much as all the rest). `gateway.delivery.delivery` sets `dirty`, and
    `gateway.following.silence_checks` `check_at`.
    """

    __slots__ = (
        "_end",
        "_end_sent_at",
        "_holders",
        "_on_unheld",
        "_overtaken",
        "_ready",
        "_restarted",
        "again",
        "attempt",
        "broken",
        "channel",
        "check_at",
        "dirty",
        "ended",
        "ended_as",
        "exists",
        "failed",
        "heard_at",
        "id_format",
        "kept_tokens",
        "next_id",
        "offset",
        "reading",
        "rings",
        "sought",
        "stream_id",
        "unprimed",
        "unreadable_from",
    )

    def __init__(self, stream_id: str, now: float, on_unheld: Callable[[Tail], None] = _is_kept) -> None:
        """`on_unheld` is called when nobody holds the tail any more."""
        self.stream_id = stream_id
        self.channel = live_channel(stream_id)
        self._on_unheld = on_unheld
        self._holders = 0
        # --- what the readers share
        self.rings: tuple[Ring, ...] = ()
        """One for each face that has readers."""
        self.unprimed: tuple[Ring, ...] = ()
        """Rings of stateful faces, until somebody has brought an encoder that has seen the whole log."""
        self.broken: tuple[Ring, ...] = ()
        """Rings whose encoder has failed. They stay, with the end that their face shows: a reader who comes later gets it too."""
        # --- how far the stream has come
        self.attempt = self.offset = 0
        """The id of the newest entry that is in the rings: `last`."""
        self.next_id = _NOTHING
        """The id of the very next token as it would be pushed, while such a push may be taken without a further look."""
        self.id_format = b""
        """A format that makes an id of an offset of this attempt."""
        self.kept_tokens = 0
        """How many increments of earlier attempts this one keeps, if this gateway has seen its beginning."""
        self._restarted = False
        """The newest entry is a `restarted`: the first increment after it has the offset `kept_tokens + 1`."""
        self._overtaken: tuple[tuple[int, int, int], ...] = ()
        """Attempts before the newest that this gateway has seen: number, increments kept at its beginning, last offset."""
        self.ended: EventId | None = None
        """The id of the terminal event, once it is known."""
        self.ended_as = b""
        """The terminal entry's field (done, failed, cancelled, deleted); empty while the stream runs."""
        self.failed: Event | None = None
        """The `failed` as which the log's first unreadable entry reads, once that has been reached."""
        self.unreadable_from: EventId | None = None
        """The id of the log's first unreadable entry, if one was found: a reader that has this id has the end."""
        self._end: asyncio.Future[None] | None = None
        """Done at the stream's end; made when somebody waits for that."""
        self._end_sent_at = 0.0
        # --- how it is read
        self._ready: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()
        """Done once the log has been read, and then dropped: a tail lives for long."""
        self.exists = False
        self.sought = BEGINNING
        """The earliest cursor of the first readers: the first read of the log begins there."""
        self.reading = self.again = False
        """The log is being read; it must be read once more after that."""
        self.heard_at = now
        """When the last message of this stream came (loop seconds)."""
        self.check_at = 0.0
        """When its silence is to be looked into (loop seconds)."""
        self.dirty = False
        """The stream has new events, and will be flushed."""

    # --- who needs it

    def hold(self) -> None:
        """Keeps the tail until as many `release` as `hold`."""
        self._holders += 1

    def release(self) -> None:
        """Gives the tail up; the last one to do so ends it."""
        self._holders -= 1
        if not self._holders:
            self._on_unheld(self)

    async def until_ended(self) -> None:
        """Returns when the stream has ended. The tail must be held."""
        if self.ended is None:
            if self._end is None:
                self._end = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._end)

    # --- where it is

    @property
    def is_ready(self) -> bool:
        """Tells whether the log has been read; then `exists` and `ended` can be trusted."""
        return self._ready is None

    async def until_ready(self) -> None:
        """Returns once the log has been read."""
        if self._ready is not None:
            await asyncio.shield(self._ready)

    def set_unread(self) -> None:
        """Notes that the log is to be read as if it had not been: it was gone, and is there again."""
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()

    def set_ready(self) -> None:
        """Notes that the log has been read."""
        ready, self._ready = self._ready, None
        if ready is not None and not ready.done():
            ready.set_result(None)

    @property
    def last(self) -> EventId:
        """The id of the newest entry that is in the rings."""
        return EventId(self.attempt, self.offset)

    @property
    def next_after(self) -> EventId:
        """The id on which the next increment follows: `last`, but in a new attempt that of the last increment it keeps."""
        return EventId(self.attempt, self.kept_tokens if self._restarted else self.offset)

    @property
    def begun(self) -> bool:
        """There is more than a start: an increment, or the end."""
        return self.ended is not None or (self.attempt > 0 and self.offset > 0)

    def end_for(self, face: Face) -> EventId | None:
        """Returns the id of the last event that a face's readers get, once it is known. Who has it has all there will be."""
        for ring in self.broken:
            if ring.face == face:
                return ring.broken
        return self.unreadable_from or self.ended

    def tokens_between(self, start: EventId, reached: EventId) -> int:
        """Counts the tokens of a connection that went from one id to another, in all attempts that this gateway has seen."""
        newest = self.offset
        if self.ended == self.last and newest:
            newest -= 1  # the terminal event is no token
        elif reached.attempt == self.attempt:
            newest = max(newest, reached.offset)  # pages of the log may be ahead of the tail
        return tokens_between(start, reached, (*self._overtaken, (self.attempt, self.kept_tokens, newest)))

    def take_end_sent_at(self) -> float:
        """Returns when the sender of the terminal event sent it (Unix seconds), if it was pushed; once, then 0."""
        sent_at, self._end_sent_at = self._end_sent_at, 0.0
        return sent_at

    # --- rings

    def ring(self, face: Face) -> Ring | None:
        """Returns the ring of a face, also one that is not primed yet, or broken."""
        for ring in self.all_rings():
            if ring.face == face:
                return ring
        return None

    def all_rings(self) -> Iterable[Ring]:
        """Returns the rings of all faces, in whatever state they are."""
        return *self.rings, *self.unprimed, *self.broken

    def open_ring(self, face: Face) -> Ring:
        """Returns the ring of a face, made if need be. One made now begins here: what is older is read from the log."""
        ring = self.ring(face)
        if ring is None:
            ring = self._new_ring(face)
            if self.failed is not None and not face.stateful:
                place = self.failed.id
                ring.begin_at(EventId(place.attempt, place.offset - 1), ring.encoder)
                ring.append(self.failed)
            if face.stateful and self.is_ready:
                self.unprimed += (ring,)
            else:
                self.rings += (ring,)
        return ring

    def _new_ring(self, face: Face) -> Ring:
        encoder = face.encoder(self.stream_id)
        if isinstance(face, FramingFace):
            return FramedRing(face, encoder, self.last, lambda: not self.reading)
        return Ring(face, encoder, self.last)

    def prime(self, ring: Ring, encoder: Encoder) -> None:
        """Begins to fill a ring with an encoder that has seen everything up to `last`."""
        self.unprimed = _without(self.unprimed, ring)
        ring.begin_at(self.last, encoder)
        self.rings += (ring,)

    def begin_rings_at(self, base: EventId) -> None:
        """Has the rings, still empty, begin after `base`: the log has more than its first read gave."""
        for ring in self.rings:
            if ring.face.stateful:
                self.rings = _without(self.rings, ring)
                self.unprimed += (ring,)
            else:
                ring.begin_at(base, ring.encoder)

    def close_ring(self, ring: Ring) -> None:
        """Forgets a ring that has no readers any more; of a broken one the end is kept."""
        if ring in self.broken:
            ring.trim(1)
            return
        self.unprimed, self.rings = _without(self.unprimed, ring), _without(self.rings, ring)

    def set_broken_aside(self) -> None:
        """Gives nothing more to rings whose encoder has failed."""
        self.broken += tuple(ring for ring in self.rings if ring.broken is not None)
        self.rings = tuple(ring for ring in self.rings if ring.broken is None)

    def remember_broken(self, rings: tuple[Ring, ...]) -> None:
        """Takes over the broken rings that an earlier tail of this stream left."""
        self.broken = rings

    # --- the log goes on

    def take_pushed(self, part: TokenRun | Carried) -> bool:
        """Puts a pushed entry into the rings if it is the very next, so that nothing can stand between. Raises Unreadable."""
        first, reached = part.first, self.next_after
        if first.attempt == reached.attempt:
            if first.offset != reached.offset + 1:
                return False
        elif first != (1, 0) or reached != FIRST_ID:
            return False
        if isinstance(part, Carried):
            if part.field not in events.COUNTED or not first.attempt:
                Order(reached).take(part.field, first, part.last)
            if part.field in events.TERMINAL:
                self._end_sent_at = metrics.sent_at(part.events[0])
        self.take(part)
        self.arm()
        return True

    def take_next_batch(self, event_id: bytes, value: bytes) -> bool:
        """Puts a pushed entry of several tokens into the rings if it is the very next: most of a stream with a pace are.

        As `take_pushed`, which takes all others, at two thirds of its cost. False: it has done nothing.
        """
        if self.next_id == _NOTHING:
            return False
        try:
            items = items_of(value)
        except Unreadable:
            return False
        last = EventId(self.attempt, self.offset + len(items))
        run = run_of_items(items, last) if self.id_format % last.offset == event_id else None
        if run is None:
            return False
        for ring in self.rings:
            ring.extend(run)
        self.reach(last)
        self.arm()
        return True

    def take(self, part: TokenRun | Carried) -> None:
        """Puts the next part of the log into the rings."""
        if isinstance(part, TokenRun):
            for ring in self.rings:
                ring.extend(part)
            self.reach(part.last)
            return
        for ring in self.rings:
            for event in part.events:
                ring.append(event)
        self.reach(part.last)
        if part.field in events.TERMINAL:
            self._take_end(part)
        elif part.field == events.RESTARTED:
            self._restarted, self.kept_tokens = True, kept_tokens_of(part.events[0].value)

    def _take_end(self, part: Carried) -> None:
        self.ended, self.ended_as = part.last, part.field
        if part.field == events.FAILED and self.unreadable_from is None:
            self.unreadable_from = unreadable_from(part.events[0])
        if part.unreadable:
            self.failed = part.events[0]
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    def reach(self, last: EventId) -> None:
        """Notes that this is the newest entry in the rings now."""
        for ring in self.rings:
            if ring.broken is not None:
                self.set_broken_aside()
                break
        if last.attempt != self.attempt:
            if self.attempt:  # before the first one there is no token
                self._overtaken = (*self._overtaken, (self.attempt, self.kept_tokens, self.offset))
            self.kept_tokens = 0
        self.attempt, self.offset = last
        self._restarted = False
        self.disarm()

    def take_back_one(self) -> None:
        """Steps back over a token that was counted and that no encoder took."""
        self.offset -= 1

    def mark_gap(self, first: EventId) -> None:
        """Shows the readers a gap, if something is missing between what the tail has and the event `first`."""
        reached = self.next_after
        if first.attempt == reached.attempt and first.offset > reached.offset + 1:
            wanted = EventId(reached.attempt, reached.offset + 1)
            logger.error("stream %s: %s to %s are missing in its log", self.stream_id, wanted, first)
            metrics.GAPS.inc()
            for ring in self.rings:
                ring.append(gap_event(wanted, first))

    def note_unreadable_from(self, place: EventId | None) -> None:
        """Notes that the log is unreadable from this id on; None where nothing is known of that."""
        self.unreadable_from = place

    def disarm(self) -> None:
        """Turns the fast path off: no pushed entry may be taken without a look at what stands before it."""
        self.next_id = _NOTHING

    def arm(self) -> None:
        """Turns the fast path on: the very next token may be taken as it is pushed."""
        if self.ended is None and not self._restarted and self.attempt:
            self.id_format = _id_format(self.attempt)
            self.next_id = self.id_format % (self.offset + 1)
