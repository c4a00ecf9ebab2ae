"""One followed stream: what this gateway has of it, and where its readers are. No I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from gateway.faces import Encoder, Face
from gateway.following.ring import Ring
from shared.events import Event
from shared.ids import BEGINNING, EventId
from shared.keys import live_channel

_NOTHING = b""
"""What `Tail.next_id` is while no pushed entry may be taken unseen."""


class Tail:
    """Shared by the stream's readers. `gateway.following.tails` moves it on."""

    __slots__ = (
        "again",
        "ahead",
        "attempt",
        "base",
        "broken",
        "channel",
        "check_at",
        "dirty",
        "end_sent_at",
        "ended",
        "ended_as",
        "exists",
        "failed",
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
        "sought",
        "stream_id",
        "unprimed",
        "unreadable_from",
    )

    def __init__(self, stream_id: str, now: float) -> None:
        self.stream_id = stream_id
        self.channel = live_channel(stream_id)
        self.rings: list[Ring] = []
        """One for each face that has readers."""
        self.unprimed: list[Ring] = []
        """The same of faces that remember, until somebody has brought an encoder that has seen the whole log."""
        self.broken: list[Ring] = []
        """Those whose encoder has failed. They stay, with the end that their face tells: a reader who comes later gets it, too."""
        self.sought = BEGINNING
        """What is first read of the log need not go back behind this: where the first of its readers are."""
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
        self.unreadable_from: EventId | None = None
        """The id of the entry as which its log has failed, if it was found unreadable: who has that event has the end."""
        self.failed: Event | None = None
        """As what its log reads from there on."""
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
        self.heard_at = self.check_at = now
        """When something came last, and from when on its silence is to be looked into (loop seconds)."""
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
        """The ring of a face, also one that is not primed yet, or broken."""
        for ring in (*self.rings, *self.unprimed, *self.broken):
            if ring.face == face:
                return ring
        return None

    def open_ring(self, face: Face) -> Ring:
        """The ring of a face, made if need be. One made now begins here: what is older is read from the log."""
        ring = self.ring(face)
        if ring is None:
            ring = Ring(face, face.encoder(self.stream_id), self.last)
            if self.failed is not None and not face.stateful:
                place = self.failed.id
                ring.begin_at(EventId(place.attempt, place.offset - 1), ring.encoder)
                ring.append(self.failed)
            if face.stateful and self.ready.done():
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
            if ring.face.stateful:
                self.rings.remove(ring)
                self.unprimed.append(ring)
            else:
                ring.begin_at(base, ring.encoder)

    def close_ring(self, ring: Ring) -> None:
        """Forget a ring that has no readers any more; of a broken one the end is kept."""
        if ring in self.broken:
            ring.trim(1)
            return
        (self.unprimed if ring in self.unprimed else self.rings).remove(ring)

    def end_for(self, face: Face) -> EventId | None:
        """The id of the last event that readers of a face get, once it is known. Who has it has all there will be."""
        for ring in self.broken:
            if ring.face == face:
                return ring.broken
        return self.unreadable_from or self.ended

    def set_broken_aside(self) -> None:
        """Rings whose encoder has failed get nothing more."""
        for ring in [ring for ring in self.rings if ring.broken is not None]:
            self.rings.remove(ring)
            self.broken.append(ring)

    def reach(self, last: EventId) -> None:
        """This is the newest entry in the rings now."""
        for ring in self.rings:
            if ring.broken is not None:
                self.set_broken_aside()
                break
        if last.attempt != self.attempt:
            self.overtaken = (*self.overtaken, (self.attempt, self.base, self.offset))
            self.base = 0
        self.attempt, self.offset = last
        self.kept = -1
        self.disarm()

    def disarm(self) -> None:
        """No pushed entry may be taken unseen."""
        self.next_id = _NOTHING

    def arm(self) -> None:
        """From now on the very next token may be taken as it is pushed."""
        if self.ended is None and self.kept < 0 and self.attempt:
            self.id_format = b"%d-%%d" % self.attempt
            self.next_id = self.id_format % (self.offset + 1)
