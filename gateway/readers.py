"""Delivery: what is in the rings goes to the sockets.

A reader is a cursor, not a queue. When its socket takes bytes it gets everything between its cursor and the end of the
ring as one body chunk; readers at the same cursor share those bytes. One that does not take them is passed over, falls
out of the ring in time, and goes on from pages of the log when it reads again: it costs no memory and holds up nobody.

There is no task, queue or future per event. `send()` is stepped by hand: it mostly runs to its end at once; when it does
not, the socket is full, and a task waits for it in the reader's place.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import types
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from gateway import metrics
from gateway.faces import Face
from gateway.ledger import Ledger
from gateway.pages import Pages
from gateway.tail import Tail
from shared import sse
from shared.errors import Disconnected, RedisRefused
from shared.ids import EventId
from shared.settings import Settings

logger = logging.getLogger(__name__)

Send = Callable[[dict[str, Any]], Awaitable[None]]

_OUT_OF_RING = -1
_TICK_SECONDS_LEAST, _TICK_SECONDS_MOST = 0.004, 0.05
"""What the governor moves between: 4 ms merges something, 50 ms is not yet seen by a person who reads."""
_BUSY, _CALM = 0.85, 0.60
"""The shares of a core above which it flushes less often, and below which more often."""
_GOVERN_SECONDS = 0.1
_AGE_SLOTS_PER_SECOND = 4
_SLOW_SECONDS = 5.0
"""A connection that ends after its socket was full for so long was too slow, whoever ended it."""
_BUSY_GRACE_SECONDS = 5
_MISS_SECONDS, _MISSES_MAX = 0.1, 50
"""A worker that lives writes again what Redis forgot within a second; after five its log will not come back."""


class Reader:
    """One connection that follows one stream."""

    __slots__ = (
        "age_slot",
        "beat_slot",
        "blocked_at",
        "busy",
        "closed",
        "cursor",
        "face",
        "outcome",
        "position",
        "replaying",
        "send",
        "tail",
    )

    def __init__(self, tail: Tail, face: Face, send: Send, cursor: EventId) -> None:
        self.tail = tail
        self.face = face
        self.send = send
        self.cursor = cursor
        """What it had when it came, or when it fell out of the ring; in the ring, `position` says more."""
        self.position = _OUT_OF_RING
        self.busy = False
        """Its socket is full, or a page is being read for it: somebody else looks after it."""
        self.blocked_at = 0.0
        """Since when its socket has been full (loop seconds); 0 while it takes what comes."""
        self.replaying = True
        self.closed = False
        self.outcome = "disconnected"
        self.age_slot = self.beat_slot = 0

    def reached(self) -> EventId:
        """The id of the last event that it was sent."""
        return self.cursor if self.position < 0 else self.tail.ring.cursor_at(self.position)


class Delivery:
    """Brings every tail's news to its readers, keeps silent connections alive, sends old ones away."""

    def __init__(self, pages: Pages, ledger: Ledger, settings: Settings) -> None:
        self._pages = pages
        self._ledger = ledger
        self._settings = settings
        self._news: list[Tail] = []
        self._scheduled = False
        self._next_flush = 0.0
        self.tick_seconds = 0.0
        self.readers = 0
        self._beats: list[set[Reader]] = [set() for _ in range(settings.keepalive_seconds)]
        self._ages: defaultdict[int, set[Reader]] = defaultdict(set)
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._spawn(self._beat())
        self._spawn(self._send_the_old_away())
        self._spawn(self._govern())

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- coming and going

    def attach(self, reader: Reader) -> None:
        """Begin to deliver to a reader whose tail is ready. Its response has begun."""
        self.readers += 1
        metrics.READERS.inc()
        self._ledger.opened(reader)
        reader.tail.ring.show_to(reader.face)
        reader.tail.readers.add(reader)
        reader.beat_slot = self.readers % len(self._beats)
        self._beats[reader.beat_slot].add(reader)
        age_seconds = self._settings.connection_seconds * random.uniform(0.8, 1.0)
        reader.age_slot = int((self._loop.time() + age_seconds) * _AGE_SLOTS_PER_SECOND)
        self._ages[reader.age_slot].add(reader)
        self._place(reader)

    def detach(self, reader: Reader) -> None:
        """Forget a reader whose connection has ended, for whatever reason."""
        reader.closed = True
        reader.cursor = reader.reached()
        reader.position = _OUT_OF_RING
        if reader.blocked_at and self._loop.time() - reader.blocked_at > _SLOW_SECONDS:
            reader.outcome = "slow"
        self._ledger.closed(reader)
        self.readers -= 1
        metrics.READERS.dec()
        metrics.CLOSED.labels(reader.outcome).inc()
        reader.tail.readers.discard(reader)
        reader.tail.ahead.discard(reader)
        self._beats[reader.beat_slot].discard(reader)
        slot = self._ages.get(reader.age_slot)
        if slot is not None:
            slot.discard(reader)
            if not slot:
                del self._ages[reader.age_slot]

    def close_reader(self, reader: Reader, outcome: str) -> None:
        """Give a reader all that is ready and end its response: it comes back, to whichever gateway, with its cursor."""
        if reader.closed or reader.busy:
            return  # a full socket cannot be told anything; the process's end, or its next turn, will do
        ring, body = reader.tail.ring, b""
        if reader.position >= 0 and reader.position < ring.end:
            body = ring.body(reader.face, reader.position)
            reader.position = ring.end
        if reader.tail.ended is None or reader.position < 0:
            body += sse.retry(int(self._settings.retry_milliseconds * random.uniform(0.25, 1.0)))
            reader.outcome = outcome
        else:
            reader.outcome = "completed"
        reader.closed = True
        self._push(reader, {"type": "http.response.body", "body": body, "more_body": False})

    def drain(self) -> None:
        """Send everybody away: this process is about to stop."""
        self.draining = True
        for slot in self._beats:
            for reader in list(slot):
                self.close_reader(reader, "drained")

    def lose(self, tail: Tail) -> None:
        """The tail's log is gone: its readers are sent away, and told 404 or 410 when they come back."""
        for reader in list(tail.readers):
            self.close_reader(reader, "error")

    # --- the hot path

    def on_new(self, tail: Tail) -> None:
        """A tail has something new. It is sent at the end of this turn of the loop, or of this tick."""
        if not tail.dirty:
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
        news, self._news = self._news, []
        self._next_flush = self._loop.time() + self.tick_seconds
        ring_events = self._settings.ring_events
        for tail in news:
            tail.dirty = False
            if tail.ahead:
                self._place_those_ahead(tail)
            ring = tail.ring
            end, more = ring.end, tail.ended is None
            last_position, last_face, message = -1, None, {}
            for reader in list(tail.readers) if not more else tail.readers:
                position = reader.position
                if reader.busy or position < 0 or position == end or reader.closed:
                    continue
                if position != last_position or reader.face is not last_face:
                    last_position, last_face = position, reader.face
                    body = ring.body(reader.face, position)
                    message = {"type": "http.response.body", "body": body, "more_body": more}
                reader.position = end
                if not more:
                    reader.outcome, reader.closed = "completed", True
                self._push(reader, message)
            if len(ring) > ring_events + ring_events // 4:  # not at every event: a trim moves the whole ring
                self._trim(tail)

    def _push(self, reader: Reader, message: dict[str, Any]) -> None:
        """Send one message without a task, unless the socket is full."""
        sending = reader.send(message)
        try:
            waits_for = sending.send(None)  # type: ignore[attr-defined]
        except StopIteration:
            return
        except Exception as error:
            logger.debug("a reader has gone: %s", error)
            return
        reader.busy = True
        reader.blocked_at = self._loop.time()
        self._spawn(self._send_on(reader, _the_rest_of(sending, waits_for)))  # type: ignore[arg-type]

    async def _send_on(self, reader: Reader, sending: Awaitable[None]) -> None:
        try:
            await sending
        except Exception as error:
            logger.debug("a reader has gone: %s", error)
            return
        reader.busy = False
        reader.blocked_at = 0.0
        if not reader.closed:
            self._go_on(reader)

    def _go_on(self, reader: Reader) -> None:
        """After a full socket: everything since, from the ring or from the log."""
        if reader.position < 0:
            self._place(reader)
        elif reader.position < reader.tail.ring.end:
            self.on_new(reader.tail)

    def _trim(self, tail: Tail) -> None:
        ring = tail.ring
        keep = self._settings.ring_events
        start = ring.end - keep
        for reader in tail.readers:
            if 0 <= reader.position < start:  # a reader falls out: it remembers the id that it had reached
                reader.cursor = ring.cursor_at(reader.position)
                reader.position = _OUT_OF_RING
                metrics.FALLEN_OUT.inc()
        ring.trim(keep)

    # --- getting a reader into the ring

    def _place(self, reader: Reader) -> None:
        """Put a reader where its cursor is: into the ring, ahead of it, or on the way through history."""
        tail = reader.tail
        if reader.cursor > tail.last and tail.ended is None:
            tail.ahead.add(reader)
        elif reader.cursor >= tail.ring.base:
            self._admit(reader)
        else:
            reader.busy = True
            self._spawn(self._catch_up(reader))

    def _place_those_ahead(self, tail: Tail) -> None:
        for reader in list(tail.ahead):
            if reader.cursor <= tail.last or tail.ended is not None:
                tail.ahead.discard(reader)
                self._place(reader)

    def _admit(self, reader: Reader) -> None:
        """From the ring from here on: all that it lacks at once, and word that what follows is live."""
        tail = reader.tail
        ring = tail.ring
        position = ring.position_after(reader.cursor)
        reader.position = ring.end
        more = tail.ended is None
        body = ring.body(reader.face, position) if position < ring.end else b""
        if more and reader.replaying:
            body += reader.face.live(max(0, tail.next_after.offset) if tail.last.attempt else 0)
        reader.replaying = False
        if not more:
            reader.outcome, reader.closed = "completed", True
        if body or not more:
            self._push(reader, {"type": "http.response.body", "body": body, "more_body": more})

    async def _catch_up(self, reader: Reader) -> None:
        """Through pages of the log until the ring has the rest."""
        tail = reader.tail
        pause_seconds, misses = 0.02, 0
        try:
            while reader.cursor < tail.ring.base and not reader.closed:
                try:
                    found = await self._pages.after(tail.stream_id, reader.face, reader.cursor)
                except (Disconnected, RedisRefused):
                    await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.0))
                    pause_seconds = min(pause_seconds * 2, 0.5)
                    continue
                if found is None:
                    # The log lacks what was there: deleted, expired, or forgotten until its worker repairs it.
                    misses += 1
                    if tail.ended is not None or misses > _MISSES_MAX:
                        reader.busy = False
                        self.close_reader(reader, "error")
                        return
                    await asyncio.sleep(_MISS_SECONDS)
                    continue
                body, reader.cursor = found
                metrics.PAGES_SENT.inc()
                await reader.send({"type": "http.response.body", "body": body, "more_body": True})
        except Exception as error:
            logger.debug("a reader has gone: %s", error)
            return
        reader.busy = False
        if not reader.closed:
            self._place(reader)

    # --- the clock

    async def _beat(self) -> None:
        """A comment to every reader, each in its own second, so that no proxy takes it for dead."""
        message = {"type": "http.response.body", "body": sse.KEEP_ALIVE, "more_body": True}
        slot = 0
        while True:
            await asyncio.sleep(1.0)
            slot = (slot + 1) % len(self._beats)
            for reader in list(self._beats[slot]):
                if not reader.busy and not reader.closed:
                    self._push(reader, message)

    async def _send_the_old_away(self) -> None:
        done = int(self._loop.time() * _AGE_SLOTS_PER_SECOND)
        while True:
            await asyncio.sleep(1 / _AGE_SLOTS_PER_SECOND)
            now = int(self._loop.time() * _AGE_SLOTS_PER_SECOND)
            for slot in range(done + 1, now + 1):
                for reader in self._ages.pop(slot, set()):
                    self.close_reader(reader, "rotated")
                    if not reader.closed:  # its socket is full, or it is in mid-history: once more, later
                        reader.age_slot = now + _BUSY_GRACE_SECONDS * _AGE_SLOTS_PER_SECOND
                        self._ages[reader.age_slot].add(reader)
            done = now

    async def _govern(self) -> None:
        """Flush less often while the processor is short: merged writes cost less per event, and 50 ms are not seen."""
        cpu, wall = time.process_time(), time.monotonic()
        while True:
            await asyncio.sleep(_GOVERN_SECONDS)
            cpu_now, wall_now = time.process_time(), time.monotonic()
            share = (cpu_now - cpu) / (wall_now - wall)
            cpu, wall = cpu_now, wall_now
            if share > _BUSY:
                self.tick_seconds = min(_TICK_SECONDS_MOST, max(_TICK_SECONDS_LEAST, self.tick_seconds * 1.5))
            else:
                shrink = 0.75 if share < _CALM else 0.97  # in between slowly: a burst's tick must not stay for good
                self.tick_seconds = self.tick_seconds * shrink if self.tick_seconds > _TICK_SECONDS_LEAST else 0.0

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@types.coroutine
def _the_rest_of(sending: Generator[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Finish, inside a task, a coroutine whose first step was made outside."""
    while True:
        try:
            result = yield waits_for
        except BaseException as error:
            try:
                waits_for = sending.throw(error)
            except StopIteration:
                return
            continue
        try:
            waits_for = sending.send(result)
        except StopIteration:
            return
