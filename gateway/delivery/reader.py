"""A reader: one connection that follows one stream. A cursor, not a queue."""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway.following.ring import Ring
from gateway.following.tail import Tail
from gateway.http.connection import Sink
from shared.ids import EventId

OUT_OF_RING = -1


class Deliverer(Protocol):
    """What a reader reports to: the `Delivery` that serves it."""

    def go_on(self, reader: Reader) -> None:
        """The reader's socket, which was full, takes bytes again."""

    def detach(self, reader: Reader) -> None:
        """The reader's connection has ended."""


class OpenConnection:
    """What is kept of an open connection between two reports."""

    __slots__ = ("connection", "noted", "opened_at", "slot", "start")

    def __init__(self, slot: int, connection: str, start: EventId, opened_at: float) -> None:
        self.slot = slot
        self.connection = connection
        self.start = self.noted = start
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
        "note",
        "outcome",
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
        """What it had when it came, or when it fell out of the ring; in the ring, `position` says more."""
        self.had = cursor
        """For the receipt: what it had when it came, also where the first of the rest stood in the response's head."""
        self.position = OUT_OF_RING
        self.busy = False
        """Its socket is full, or pages are being read for it: it is passed over until that is over."""
        self.drained: asyncio.Future[None] | None = None
        """Of a reader whose pages are being read: done when its full socket takes bytes again."""
        self.blocked_at = 0.0
        """Since when its socket has been full (loop seconds); 0 while it takes what comes."""
        self.replaying = True
        self.note: OpenConnection
        """What the ledger keeps of it."""
        self.closed = False
        self.outcome = "disconnected"
        self.age_slot = self.beat_slot = 0

    def reached(self) -> EventId:
        """The id of the last event that it was sent."""
        return self.cursor if self.position < 0 else self.ring.cursor_at(self.position)

    # --- Follower

    def writable(self) -> None:
        self.delivery.go_on(self)

    def lost(self) -> None:
        self.delivery.detach(self)
