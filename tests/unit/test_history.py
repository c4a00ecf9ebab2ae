"""A reader of a stateful face that reads entries from the log before they are pushed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from gateway.delivery.catch_up import catch_up_of
from gateway.delivery.reader import Reader
from gateway.faces import Encoder, SseFace
from gateway.following.pages import Pages
from gateway.following.tail import Tail
from shared import events
from shared.events import Event
from shared.ids import BEGINNING, EventId, new_stream_id


class Counting(Encoder):
    """Records the ids of the events that it encodes."""

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def token(self, event_id: bytes, value: bytes) -> bytes:
        self.given.append(event_id)
        return event_id

    def other(self, event: Event) -> bytes:
        self.given.append(bytes(event.id))
        return bytes(event.id)


class Remembers(SseFace):
    stateful = True

    def __init__(self) -> None:
        self.made: list[Counting] = []

    def encoder(self, stream_id: str) -> Encoder:
        self.made.append(Counting())
        return self.made[-1]


class Log:
    """Replaces the pages of a log; it may be ahead of the tail."""

    def __init__(self) -> None:
        self.listed: list[Event] = []
        self.reads = 0

    async def events_after(self, stream_id: str, cursor: EventId) -> list[Event]:
        self.reads += 1
        return [event for event in self.listed if event.id > cursor]


_ACCEPTED = Event(EventId(0, 1), events.ACCEPTED, b"{}")


def _token(offset: int) -> Event:
    return Event(EventId(1, offset), events.TOKEN, b"x")


async def test_events_read_before_they_are_pushed_are_encoded_once() -> None:
    face, log = Remembers(), Log()
    tail = Tail(new_stream_id(), 0.0)
    tail.set_ready()
    tail.reach(EventId(1, 2))
    ring = tail.open_ring(face)
    assert ring in tail.unprimed
    log.listed = [
        _ACCEPTED,
        *(_token(offset) for offset in range(1, 5)),
    ]  # 1-3 and 1-4 are in the log, their pushes are on the way
    reader = cast(Reader, SimpleNamespace(tail=tail, ring=ring, cursor=BEGINNING))
    pushed = asyncio.Event()

    async def until_flushed(_: Tail) -> None:
        pushed.set()
        await asyncio.sleep(0)
        tail.reach(EventId(1, 4))  # what a push does with a ring that is not primed

    history = catch_up_of(reader, cast(Any, log), until_flushed)
    encoder = face.made[-1]
    assert await history.next() == b"0-11-11-21-31-4"
    assert not history.arrive()  # the ring would be given 1-3 and 1-4 once more
    assert await history.next() == b""
    assert (pushed.is_set(), log.reads) == (True, 1)
    assert history.arrive()
    assert (ring.encoder, ring.base, ring in tail.rings) == (encoder, EventId(1, 4), True)
    ring.append(_token(5))
    assert encoder.given == [b"0-1", b"1-1", b"1-2", b"1-3", b"1-4", b"1-5"]


async def test_a_missing_push_is_read_from_the_log() -> None:
    face, log = Remembers(), Log()
    tail = Tail(new_stream_id(), 0.0)
    tail.set_ready()
    tail.reach(EventId(1, 1))
    ring = tail.open_ring(face)
    log.listed = [_ACCEPTED, _token(1), _token(2)]
    reader = cast(Reader, SimpleNamespace(tail=tail, ring=ring, cursor=BEGINNING))

    async def silence(_: Tail) -> None:
        await asyncio.Event().wait()

    history = catch_up_of(reader, cast(Pages, log), silence)
    assert await history.next() == b"0-11-11-2"
    async with asyncio.timeout(5):
        assert await history.next() == b""
    assert not history.arrive()
    tail.reach(EventId(1, 2))  # the silence check found it
    assert history.arrive()
    assert face.made[-1].given == [b"0-1", b"1-1", b"1-2"]
