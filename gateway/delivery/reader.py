"""A reader: one connection that follows one stream. A cursor, not a queue."""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway.following.pages import BEFORE_FIRST_SHOWN
from gateway.following.ring import Ring
from gateway.following.tail import Tail
from gateway.http.addresses import Place
from gateway.http.connection import Sink
from shared.ids import BEGINNING, EventId

OUT_OF_RING = -1
"""The position of a reader that gets pages of the log, or is ahead of the ring."""


class Deliverer(Protocol):
    """Whom a reader's connection calls: `Delivery`, as far as a reader knows it."""

    def go_on(self, reader: Reader) -> None:
        """The reader's socket, which was full, takes bytes again."""

    def detach(self, reader: Reader) -> None:
        """The reader's connection has ended."""


class OpenConnection:
    """What the ledger keeps of an open connection between two reports."""

    __slots__ = ("connection", "noted", "opened_at", "slot", "start")

    def __init__(self, slot: int, connection: str, start: EventId, opened_at: float) -> None:
        self.slot = slot
        self.connection = connection
        self.start = self.noted = start
        """Where the reader began, and how far it had come at the last report."""
        self.opened_at = opened_at


class Reader:
    """One connection that follows one stream."""

    __slots__ = (
        "age_slot",
        "beat_slot",
        "blocked_at",
        "busy",
        "closed",
        "cursor",
        "delivery",
        "drained",
        "had",
        "has_place",
        "note",
        "noted_position",
        "outcome",
        "place",
        "position",
        "replaying",
        "ring",
        "sink",
        "tail",
    )

    def __init__(self, delivery: Deliverer, tail: Tail, ring: Ring, sink: Sink, cursor: EventId) -> None:
        self.delivery = delivery
        self.tail = tail
        self.ring = ring
        self.sink = sink
        self.cursor = cursor
        """The last event that the reader had when it came, or when it fell out of the ring; in the ring, `position` is newer."""
        self.had = cursor
        """The last event that the client had before this response: for the receipt. The first piece of a response may go beyond."""
        self.has_place = False
        """It counts towards the limit on the readers of its stream."""
        self.place: Place | None = None
        """Its place among the requests of its address, where those are limited."""
        self.position = OUT_OF_RING
        self.busy = False
        """The socket is full, or the reader is getting pages of the log: flushes skip it."""
        self.drained: asyncio.Future[None] | None = None
        """While the reader gets pages of the log: done when its full socket takes bytes again."""
        self.blocked_at = 0.0
        """Since when the socket has been full (loop seconds); 0 while it takes bytes."""
        self.replaying = True
        """The `live` event has not been sent yet."""
        self.note: OpenConnection
        """The connection's progress; only the ledger writes it."""
        self.noted_position = OUT_OF_RING
        """The position at the ledger's last report."""
        self.closed = False
        self.outcome = "disconnected"
        """How the connection ends, for the receipt and the metrics."""
        self.age_slot = self.beat_slot = 0

    def reached(self) -> EventId:
        """Returns the id of the last event that it was sent."""
        return self.cursor if self.position < 0 else self.ring.cursor_at(self.position)

    def lacks_nothing(self) -> bool:
        """Tells whether it begins at the beginning and the ring has all that its face shows from there."""
        return self.cursor == BEGINNING and self.ring.base <= BEFORE_FIRST_SHOWN

    def is_over(self) -> bool:
        """Tells whether nothing will be added to what this reader can get."""
        return self.tail.ended is not None or self.ring.broken is not None

    # --- Follower

    def writable(self) -> None:
        self.delivery.go_on(self)

    def lost(self) -> None:
        self.delivery.detach(self)
