"""The way of one reader through history, until the ring has the rest.

A face whose events each stand for themselves is read in pages that all readers share. A stateful face is read from the
beginning of the log, with an encoder of the reader's own; the first reader that arrives at the end primes the ring with it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from gateway.delivery.reader import Reader
from gateway.faces import FramingFace, encode
from gateway.following.pages import Pages
from gateway.following.ring import broken_off
from gateway.following.tail import Tail
from gateway.following.token_runs import unreadable, unreadable_from
from shared.errors import Disconnected, RedisRefused, Unreadable
from shared.events import ACCEPTED, DELETED, FAILED, TOKEN, Event
from shared.ids import BEGINNING, EventId

UntilFlushed = Callable[[Tail], Awaitable[None]]

_FIRST_FIELDS = (ACCEPTED, DELETED, FAILED)
"""The fields with which a log may begin: `failed` where the first entry cannot be read."""
_PUSH_SECONDS = 0.5
"""How long a push may take after a read has already shown its entry; then the log is read once more."""
_MISS_SECONDS, _MISSES_MAX = 0.1, 50
"""A live worker rewrites within 1 s what Redis lost. After 5 s (50 x 0.1) the log is given up."""
_FIRST_PAUSE_SECONDS, _PAUSE_SECONDS_MAX = 0.02, 0.5
"""Between two tries while Redis is away."""


class CatchUp(Protocol):
    ended: bool
    """The last piece was the end for this reader: the log cannot be read on, or its face cannot show it."""

    def arrive(self) -> bool:
        """Tells whether the reader may go on from the ring; primes the ring if the reader has the encoder that it needs."""

    async def next(self) -> bytes | None:
        """Returns the next piece, maybe empty; None if the log has nothing. Moves the reader's cursor. Raises Disconnected."""


def catch_up_of(reader: Reader, pages: Pages, until_flushed: UntilFlushed) -> CatchUp:
    if reader.ring.face.stateful:
        return _OwnEncoder(reader, pages, until_flushed)
    return _SharedPages(reader, pages)


async def go_through(reader: Reader, catch_up: CatchUp, send: Callable[[Reader, bytes], Awaitable[None]]) -> bool:
    """Sends a reader through history, piece by piece, until the ring has the rest, or `catch_up` or the reader has ended.

    Returns False if the log lacks what was there: deleted, expired, or lost by Redis and not written again.
    """
    tail, face = reader.tail, reader.ring.face
    pause_seconds, misses = _FIRST_PAUSE_SECONDS, 0
    while not reader.closed and not catch_up.ended and not catch_up.arrive():
        try:
            piece = await catch_up.next()
        except (Disconnected, RedisRefused):
            await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.0))
            pause_seconds = min(pause_seconds * 2, _PAUSE_SECONDS_MAX)
            continue
        except Exception:  # a bug: this reader must not wait for ever
            place = EventId(reader.cursor.attempt, reader.cursor.offset + 1)
            piece = broken_off(face, face.encoder(tail.stream_id), Event(place, TOKEN, b""))
            catch_up.ended = True
        if piece is not None:
            await send(reader, piece)
            continue
        misses += 1
        if reader.closed or tail.ended is not None or misses > _MISSES_MAX:
            return False
        await asyncio.sleep(_MISS_SECONDS)
    return True


class _SharedPages:
    """The way of a reader whose face is not stateful."""

    def __init__(self, reader: Reader, pages: Pages) -> None:
        self._reader, self._pages = reader, pages
        self.ended = False

    def arrive(self) -> bool:
        return self._reader.cursor >= self._reader.ring.base

    async def next(self) -> bytes | None:
        reader = self._reader
        piece = await self._pages.after(reader.tail.stream_id, reader.ring.face, reader.cursor)
        if piece is None:
            return None
        self.ended = piece.is_end
        reader.cursor = piece.reached
        return piece.body


class _OwnEncoder:
    """The way of a reader whose face is stateful: its encoder is given the whole log, also what the client has already."""

    def __init__(self, reader: Reader, pages: Pages, until_flushed: UntilFlushed) -> None:
        self._reader, self._pages, self._until_flushed = reader, pages, until_flushed
        self._encoder = reader.ring.face.encoder(reader.tail.stream_id)
        self._encoded = BEGINNING
        """The last event that the encoder has been given."""
        self.ended = False

    def arrive(self) -> bool:
        tail, ring = self._reader.tail, self._reader.ring
        if ring not in tail.unprimed:
            return self._reader.cursor >= ring.base
        if self._encoded != tail.last:
            return False
        tail.prime(ring, self._encoder)
        return True

    async def next(self) -> bytes | None:
        reader, tail = self._reader, self._reader.tail
        if self._encoded > tail.last:
            await self._wait_for_the_tail()
            if self._encoded >= tail.last:
                self.ended = tail.ended is not None and self._encoded > tail.last  # the tail will never come so far
                return b""
        events = await self._pages.events_after(tail.stream_id, self._encoded)
        if not events:
            return None
        if self._encoded == BEGINNING and events[0].field not in _FIRST_FIELDS:
            no_request = Unreadable("the log does not begin with `accepted`")
            events = unreadable(events[0].id, no_request).events
        pieces = self._encode(events)
        if events[-1].field == FAILED and unreadable_from(events[-1]) == events[-1].id:
            self.ended = True
        reader.cursor = max(reader.cursor, self._encoded)
        face = reader.ring.face
        if isinstance(face, FramingFace):
            return face.frame(pieces, reader.cursor, is_newest=False) if any(pieces) else b""
        return b"".join(pieces)

    async def _wait_for_the_tail(self) -> None:
        """Waits until a push has told the tail what this reader has read: no encoder may be given an event twice."""
        try:
            async with asyncio.timeout(_PUSH_SECONDS):
                await self._until_flushed(self._reader.tail)
        except TimeoutError:
            pass

    def _encode(self, events: list[Event]) -> list[bytes]:
        """Encodes events up to the first that the face cannot show; returns what the client does not have yet."""
        pieces = []
        for event in events:
            try:
                piece = encode(self._encoder, event)
            except Exception:
                piece, self.ended = broken_off(self._reader.ring.face, self._encoder, event), True
            if event.id > self._reader.cursor or self.ended:
                pieces.append(piece)
            self._encoded = event.id
            if self.ended:
                break
        return pieces
