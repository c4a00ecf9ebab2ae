"""Delivery to sinks that only record what they are sent."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from gateway.delivery.delivery import Delivery
from gateway.delivery.ledger import Ledger
from gateway.delivery.reader import Reader
from gateway.faces import NATIVE
from gateway.following.pages import Pages
from gateway.following.tail import Tail
from shared import events, sse
from shared.events import Event
from shared.ids import EventId, new_stream_id
from shared.settings import Settings
from tests.support.waiting import wait_until


class Noted:
    """A sink and a ledger that record the bytes sent."""

    def __init__(self) -> None:
        self.body = b""

    def send(self, body: bytes, chunk: bytes) -> bool:
        self.body += body
        return True

    finish = cut = opened = closed = lambda self, *_: None


async def test_a_keep_alive_does_not_delay_a_reader_s_new_events() -> None:
    settings = replace(Settings(), keepalive_seconds=1)
    delivery = Delivery(cast(Pages, None), cast(Ledger, cast(Any, Noted())), settings)
    delivery.start()
    try:
        tail = Tail(new_stream_id(), 0.0)
        ring = tail.open_ring(NATIVE)
        tail.set_ready()
        sink = Noted()
        reader = Reader(delivery, tail, ring, sink, EventId(0, 0))
        delivery.attach(reader)
        delivery._next_flush = asyncio.get_running_loop().time() + 1.5  # as at the end of a tick, but for longer
        count = settings.ring_events * 2
        for offset in range(1, count + 1):
            ring.append(Event(EventId(1, offset), events.TOKEN, b"x"))
        tail.reach(EventId(1, count))
        delivery.on_new(tail)
        await wait_until(lambda: sse.KEEP_ALIVE in sink.body, what="it was its turn meanwhile")
        assert b"id: 1-1\n" not in sink.body
        ends = [f"id: 1-{offset}\n".encode() for offset in (1, count)]
        await wait_until(lambda: all(end in sink.body for end in ends), what="what had come is sent")
        assert (reader.reached(), len(ring)) == ((1, count), settings.ring_events)
    finally:
        await delivery.close()


class Broken(Noted):
    """A sink that takes the first piece, and raises an exception at the next."""

    def send(self, body: bytes, chunk: bytes) -> bool:
        if self.body:
            raise LookupError("as it should")
        return super().send(body, chunk)

    def finish(self, body: bytes) -> None:
        raise LookupError("as it should")


@pytest.mark.parametrize("ended", [True, False])
async def test_a_failing_socket_affects_only_its_reader(ended: bool) -> None:
    delivery = Delivery(cast(Pages, None), cast(Ledger, cast(Any, Noted())), Settings())
    delivery.start()
    try:
        given: list[Reader] = []
        sinks: list[Noted] = []
        for kind in (Noted, Broken, Noted, Broken, Noted):
            tail = Tail(new_stream_id(), 0.0)
            tail.set_ready()
            ring = tail.open_ring(NATIVE)
            for one in (kind(), Noted(), kind()):
                reader = Reader(delivery, tail, ring, one, EventId(0, 0))
                delivery.attach(reader)
                given.append(reader)
                sinks.append(one)
            ring.append(Event(EventId(1, 1), events.TOKEN, b"x"))
            tail.reach(EventId(1, 1))
            if ended:
                tail.ended, tail.ended_as = EventId(1, 1), events.DONE
            delivery.on_new(tail)
        await wait_until(lambda: all(not reader.tail.dirty for reader in given), what="all have been looked at")
        for reader, sink in zip(given, sinks, strict=True):
            if isinstance(sink, Broken):
                assert (reader.closed, reader.outcome) == (True, "error")
            else:
                assert reader.closed == ended
                assert reader.reached() == (1, 1)
        assert delivery.readers == (0 if ended else 11)
    finally:
        await delivery.close()


class Finished(Noted):
    """A sink that also records the end."""

    def finish(self, body: bytes) -> None:
        self.body += body


@pytest.mark.parametrize(("had", "ends"), [(EventId(1, 1), 0), (EventId(1, 2), 1)])
async def test_a_response_that_got_the_end_from_a_page_of_the_log_does_not_get_it_again(
    had: EventId, ends: int
) -> None:
    """The log has the end before the tail is told of it. Only who comes with the end behind him is sent it once more."""
    delivery = Delivery(cast(Pages, None), cast(Ledger, cast(Any, Noted())), Settings())
    delivery.start()
    try:
        tail = Tail(new_stream_id(), 0.0)
        ring = tail.open_ring(NATIVE)
        tail.set_ready()
        ring.append(Event(EventId(1, 1), events.TOKEN, b"x"))
        tail.reach(EventId(1, 1))
        sink = Finished()
        reader = Reader(delivery, tail, ring, sink, EventId(1, 2))
        reader.had = had
        delivery.attach(reader)
        ring.append(Event(EventId(1, 2), events.DONE, b'{"finish_reason":"stop","usage":null}'))
        tail.reach(EventId(1, 2))
        tail.ended, tail.ended_as = EventId(1, 2), events.DONE
        delivery.on_new(tail)
        await wait_until(lambda: reader.closed, what="it has ended")
        assert sink.body.count(b"event: done") == ends
    finally:
        await delivery.close()
