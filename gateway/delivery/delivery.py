"""Delivery: what is in the rings goes to the sockets.

A reader is a cursor, not a queue. When its socket takes bytes it gets everything between its cursor and the end of the
ring as one body chunk; readers at the same cursor share those bytes. One that does not take them is passed over, falls
out of the ring in time, and goes on from pages of the log when it reads again: it costs no memory and holds up nobody.

There is no task, queue, future or coroutine per event, and none per reader either: a reader that waits is an object in
a few sets, and its connection calls it when the full socket takes bytes again, or when it is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any

from gateway import metrics
from gateway.delivery.catch_up import catch_up_of
from gateway.delivery.flush_pace import FlushPace
from gateway.delivery.ledger import Ledger
from gateway.delivery.reader import OUT_OF_RING, Reader
from gateway.following.pages import BEFORE_FIRST_SHOWN, Pages
from gateway.following.ring import Ring, broken_off
from gateway.following.tail import Tail
from gateway.following.tails import FIRST_READ_ENTRIES
from gateway.http.connection import chunk_of
from shared.background import keep_running
from shared.errors import Disconnected, RedisRefused
from shared.events import DONE, TOKEN, Event
from shared.ids import BEGINNING, EventId
from shared.settings import Settings

logger = logging.getLogger(__name__)

_BEATS_PER_SECOND = 10
"""How finely keep-alives are spread: 20,000 readers in 15 s are 133 comments, a millisecond's work, at each."""
_AGE_SLOTS_PER_SECOND = 4
_SLOW_SECONDS = 5.0
"""A connection that ends after its socket was full for so long was too slow, whoever ended it."""
_BUSY_GRACE_SECONDS = 5
_UNREAD_EVENTS_MAX = 2 * FIRST_READ_ENTRIES
"""A ring keeps what was read for its first readers until one is there, but no more than this."""
_MISS_SECONDS, _MISSES_MAX = 0.1, 50
"""A worker that lives writes again what Redis forgot within a second; after five its log will not come back."""


class Delivery:
    """Brings every tail's news to its readers, keeps silent connections alive, sends old ones away."""

    def __init__(self, pages: Pages, ledger: Ledger, settings: Settings) -> None:
        self._pages = pages
        self.ledger = ledger
        self._settings = settings
        self._news: list[Tail] = []
        self._scheduled = False
        self._next_flush = 0.0
        self._ring_events_most = settings.ring_events * 5 // 4  # a trim moves the whole ring: not at every event
        self._flush_pace = FlushPace()
        self.readers = 0
        self.flushes = self.fallen_out = self.pages_sent = 0  # handed to Prometheus once a second
        self._beat_slot = self._aged = 0
        """The parts of the readers that were last sent a comment, and last looked at for their age."""
        self._beats: list[set[Reader]] = [set() for _ in range(settings.keepalive_seconds * _BEATS_PER_SECOND)]
        self._ages: defaultdict[int, set[Reader]] = defaultdict(set)
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False
        self._awaited: dict[Tail, list[asyncio.Future[None]]] = {}
        self.release: Callable[[Tail], None] = lambda tail: None
        """What gives up a tail that a reader held."""

    @property
    def tick_seconds(self) -> float:
        """How long what is new may be gathered at the moment."""
        return self._flush_pace.tick_seconds

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._aged = int(self._loop.time() * _AGE_SLOTS_PER_SECOND)
        works = (("beats", self._beat), ("ages", self._send_the_old_away), ("flush_pace", self._flush_pace.run))
        self._tasks.update(keep_running(name, work) for name, work in works)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for slot in self._beats:
            for reader in list(slot):  # their sockets were full to the end
                reader.sink.cut(b"")
                self.detach(reader)

    # --- coming and going

    def attach(self, reader: Reader) -> None:
        """Begin to deliver to a reader whose tail is ready and held for it. Its response has begun."""
        self.readers += 1
        if reader.cursor > BEGINNING:
            metrics.came_back(reader)
        self.ledger.opened(reader)
        reader.ring.readers.add(reader)
        reader.beat_slot = self.readers % len(self._beats)
        self._beats[reader.beat_slot].add(reader)
        if reader.ring.face.resumable:
            age_seconds = self._settings.connection_seconds * random.uniform(0.8, 1.0)
            now = self._loop.time()
            # The slot that is under way may have been emptied already.
            under_way = int(now * _AGE_SLOTS_PER_SECOND)
            reader.age_slot = max(under_way + 1, int((now + age_seconds) * _AGE_SLOTS_PER_SECOND))
            self._ages[reader.age_slot].add(reader)
        self._place(reader)

    def detach(self, reader: Reader) -> None:
        """Forget a reader whose connection has ended, for whatever reason, and give up its tail."""
        reader.closed = True
        reader.cursor = reader.reached()
        reader.position = OUT_OF_RING
        if reader.blocked_at and self._loop.time() - reader.blocked_at > _SLOW_SECONDS:
            reader.outcome = "slow"
        elif self.draining and reader.outcome == "disconnected":
            reader.outcome = "drained"
        if reader.drained is not None and not reader.drained.done():
            reader.drained.set_result(None)
        self.ledger.closed(reader)
        self.readers -= 1
        metrics.closed(reader.outcome)
        tail, ring = reader.tail, reader.ring
        ring.readers.discard(reader)
        if not ring.readers:
            tail.close_ring(ring)
        if reader in tail.ahead:
            tail.ahead.remove(reader)
        self._beats[reader.beat_slot].discard(reader)
        slot = self._ages.get(reader.age_slot)
        if slot is not None:
            slot.discard(reader)
            if not slot:
                del self._ages[reader.age_slot]
        self.release(tail)

    def close_reader(self, reader: Reader, outcome: str) -> None:
        """Give a reader all that is ready and end its response: it comes back, to whichever gateway, with its cursor."""
        if reader.closed or reader.busy:
            return  # a full socket cannot be told anything; the process's end, or its next turn, will do
        ring, body = reader.ring, b""
        if 0 <= reader.position < ring.end:
            body = ring.body(reader.position)
            reader.position = ring.end
        if (reader.tail.ended is None and ring.broken is None) or reader.position < 0:
            body += ring.face.epilogue(int(self._settings.retry_milliseconds * random.uniform(0.25, 1.0)))
            reader.outcome = outcome
            if ring.face.cut_unless_done or not ring.face.resumable:
                reader.sink.cut(body)
            else:
                reader.sink.finish(body)
            self.detach(reader)
        else:
            self._complete(reader, body)

    def _complete(self, reader: Reader, body: bytes, *, failed: bool = False) -> None:
        """Send a reader the end of its stream. `failed`: of what it can read of it, or be shown."""
        reader.outcome = "completed"
        failed = failed or reader.ring.broken is not None or reader.tail.ended_as != DONE
        if reader.ring.face.cut_unless_done and failed:
            reader.sink.cut(body)
        else:
            reader.sink.finish(body)
        self.detach(reader)

    def drain(self) -> None:
        """Send everybody away: this process is about to stop."""
        self.draining = True
        for slot in self._beats:
            for reader in list(slot):
                self.close_reader(reader, "drained")

    def lose(self, tail: Tail) -> None:
        """The tail's log is gone: its readers are sent away, and told 404 or 410 when they come back."""
        for ring in (*tail.rings, *tail.unprimed, *tail.broken):
            for reader in list(ring.readers):
                self.close_reader(reader, "error")

    # --- the hot path

    def on_new(self, tail: Tail) -> None:
        """A tail that was not `dirty` has something new. It is sent at the end of this turn of the loop, or of this tick."""
        tail.dirty = True
        self._news.append(tail)
        if not self._scheduled:
            self._scheduled = True
            wait_seconds = self._next_flush - self._loop.time()
            if wait_seconds > 0.0005:
                self._loop.call_later(wait_seconds, self._flush)
            else:
                self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        self.flushes += 1
        news, self._news = self._news, []
        self._next_flush = self._loop.time() + self._flush_pace.tick_seconds
        ring_events_most = self._ring_events_most
        for tail in news:
            tail.dirty = False
            reader = None
            try:
                if self._awaited:
                    self._tell_waiting(tail)
                if tail.ahead:
                    self._place_those_ahead(tail)
                if tail.broken:
                    self._send_to_end(tail.broken)
                if tail.ended is not None:
                    self._flush_end(tail)
                    continue
                for ring in tail.rings:
                    end = ring.start + len(ring.encoded)
                    shared, body, chunk = -1, b"", b""
                    for reader in ring.readers:
                        position = reader.position
                        if position == end or position < 0 or reader.busy:
                            continue
                        if position != shared:
                            shared = position
                            body = ring.body(position)
                            chunk = chunk_of(body)
                        reader.position = end
                        if body and not reader.sink.send(body, chunk):
                            self._is_full(reader)
                    if len(ring.encoded) > ring_events_most and (
                        ring.readers or len(ring.encoded) > _UNREAD_EVENTS_MAX
                    ):
                        self._trim(ring)
            except Exception:  # a bug, or a socket that is none; the others of this turn must not wait for ever
                logger.exception("stream %s: what is new could not be sent", tail.stream_id)
                if reader is not None:
                    self._give_up(reader)
                    if not tail.dirty:
                        self.on_new(tail)

    def _flush_end(self, tail: Tail) -> None:
        """The same for a stream that has ended: its readers leave."""
        self._send_to_end(list(tail.rings))
        if tail.end_sent_at:
            metrics.written(tail.end_sent_at)
            tail.end_sent_at = 0.0

    def _send_to_end(self, rings: list[Ring]) -> None:
        """To these rings nothing is added any more: their readers get the rest, and leave."""
        for ring in rings:
            for reader in list(ring.readers):
                if reader.position >= 0 and not reader.busy and not reader.closed:
                    body = ring.body(reader.position) if reader.position < ring.end else b""
                    reader.position = ring.end
                    try:
                        self._complete(reader, body)
                    except Exception:
                        logger.exception("stream %s: an end could not be sent", reader.tail.stream_id)
                        self._give_up(reader)

    def _give_up(self, reader: Reader) -> None:
        """Cut off a reader that nothing can be sent to, and forget it."""
        if reader.closed:
            return
        reader.outcome = "error"
        with contextlib.suppress(Exception):
            reader.sink.cut(b"")
        self.detach(reader)

    async def next_news(self, tail: Tail) -> None:
        """Wait for the next time that a tail has something new. Its log must have been read."""
        news = self._loop.create_future()
        self._awaited.setdefault(tail, []).append(news)
        try:
            await news
        finally:
            waiting = self._awaited.get(tail, [])
            if news in waiting:
                waiting.remove(news)
                if not waiting:
                    del self._awaited[tail]

    def _tell_waiting(self, tail: Tail) -> None:
        for news in self._awaited.pop(tail, ()):
            if not news.done():
                news.set_result(None)

    def _is_full(self, reader: Reader) -> None:
        reader.busy = True
        reader.blocked_at = self._loop.time()

    def go_on(self, reader: Reader) -> None:
        """After a full socket: everything since, from the ring or from the log."""
        reader.blocked_at = 0.0
        if reader.drained is not None:
            if not reader.drained.done():
                reader.drained.set_result(None)
            return
        reader.busy = False
        if reader.position < 0:
            self._place(reader)
        elif (reader.position < reader.ring.end or _is_over(reader)) and not reader.tail.dirty:
            self.on_new(reader.tail)

    def _trim(self, ring: Ring) -> None:
        keep = self._settings.ring_events
        start = ring.end - keep
        for reader in ring.readers:
            if 0 <= reader.position < start:  # a reader falls out: it remembers the id that it had reached
                reader.cursor = ring.cursor_at(reader.position)
                reader.position = OUT_OF_RING
                self.fallen_out += 1
        ring.trim(keep)

    # --- getting a reader into the ring

    def _place(self, reader: Reader) -> None:
        """Put a reader where its cursor is: into the ring, ahead of it, or on the way through history."""
        tail, ring = reader.tail, reader.ring
        if reader.cursor > tail.last and not _is_over(reader):
            tail.ahead.append(reader)
        elif (reader.cursor >= ring.base or _lacks_nothing(reader)) and ring not in tail.unprimed:
            self._admit(reader)
        else:
            reader.busy = True
            self._spawn(self._catch_up(reader))

    def _place_those_ahead(self, tail: Tail) -> None:
        for reader in tail.ahead.copy():
            if reader.cursor <= tail.last or _is_over(reader):
                tail.ahead.remove(reader)
                self._place(reader)

    def _admit(self, reader: Reader) -> None:
        """From the ring from here on: all that it lacks at once, and word that what follows is live."""
        tail, ring = reader.tail, reader.ring
        position = ring.position_after(reader.cursor)
        reader.position = ring.end
        body = ring.body(position) if position < ring.end else b""
        if _is_over(reader):
            self._complete(reader, body)
            return
        if reader.replaying:
            body += ring.face.live(max(0, tail.next_after.offset) if tail.attempt else 0)
            reader.replaying = False
        if body and not reader.sink.send(body, chunk_of(body)):
            self._is_full(reader)

    async def _catch_up(self, reader: Reader) -> None:
        """Through pages of the log until the ring has the rest."""
        tail = reader.tail
        history = catch_up_of(reader, self._pages, self.next_news)
        pause_seconds, misses = 0.02, 0
        while not reader.closed and not history.ended and not history.arrive():
            try:
                body = await history.next()
            except (Disconnected, RedisRefused):
                await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.0))
                pause_seconds = min(pause_seconds * 2, 0.5)
                continue
            except Exception:  # a bug: this reader must not wait for ever
                face, place = reader.ring.face, EventId(reader.cursor.attempt, reader.cursor.offset + 1)
                body = broken_off(face, face.encoder(tail.stream_id), Event(place, TOKEN, b""))
                history.ended = True
            if body is None:
                # The log lacks what was there: deleted, expired, or forgotten until its worker repairs it.
                misses += 1
                if reader.closed or tail.ended is not None or misses > _MISSES_MAX:
                    reader.busy = False
                    self.close_reader(reader, "error")
                    return
                await asyncio.sleep(_MISS_SECONDS)
                continue
            self.pages_sent += 1
            if body and not reader.closed and not reader.sink.send(body, chunk_of(body)):
                reader.blocked_at = self._loop.time()
                reader.drained = self._loop.create_future()
                await reader.drained
                reader.drained = None
        reader.busy = False
        if history.ended and not reader.closed:
            self._complete(reader, b"", failed=True)
        elif not reader.closed:
            self._place(reader)

    # --- the clock

    async def _beat(self) -> None:
        """A comment to every reader, each at its own moment, so that no proxy takes it for dead."""
        while True:
            await asyncio.sleep(1 / _BEATS_PER_SECOND)
            self._beat_slot = (self._beat_slot + 1) % len(self._beats)
            for reader in self._beats[self._beat_slot]:
                ring = reader.ring
                if len(ring.encoded) > self._ring_events_most and not reader.tail.dirty:
                    self._trim(ring)  # of a stream that has been silent since it was read: all have what there is
                comment = ring.face.keep_alive
                if comment and not reader.busy and not reader.sink.send(comment, chunk_of(comment)):
                    self._is_full(reader)

    async def _send_the_old_away(self) -> None:
        while True:
            await asyncio.sleep(1 / _AGE_SLOTS_PER_SECOND)
            now = int(self._loop.time() * _AGE_SLOTS_PER_SECOND)
            while self._aged < now:
                slot = self._ages.get(self._aged + 1)
                while slot:  # one by one: whom this breaks over has left the slot, and the others are still in it
                    reader = slot.pop()
                    self.close_reader(reader, "rotated")
                    if not reader.closed:  # its socket is full, or it is in mid-history: once more, later
                        reader.age_slot = now + _BUSY_GRACE_SECONDS * _AGE_SLOTS_PER_SECOND
                        self._ages[reader.age_slot].add(reader)
                self._aged += 1
                self._ages.pop(self._aged, None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _lacks_nothing(reader: Reader) -> bool:
    """The ring has all that is shown to a reader who begins at the beginning."""
    return reader.cursor == BEGINNING and reader.ring.base <= BEFORE_FIRST_SHOWN


def _is_over(reader: Reader) -> bool:
    """Nothing will be added to what this reader can get."""
    return reader.tail.ended is not None or reader.ring.broken is not None
