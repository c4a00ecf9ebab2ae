"""Delivery: what is in the rings goes to the sockets.

    on_new ──► _flush ──► each ring's readers ──► their sockets          (every event, for all readers at the newest one)
    attach ──► _place ──► _admit into the ring | ahead of it | _catch_up through pages of the log ──► _place
    a full socket ──► busy, passed over ──► go_on ──► _flush or _place

A reader is a cursor, not a queue. When its socket takes bytes it gets everything between its cursor and the end of the
ring as one body chunk; readers at the same cursor share those bytes. Backpressure: a reader whose socket is full is passed
over, falls out of the ring in time, and goes on from pages of the log when it reads again. It costs no memory and holds up
nobody.

There is no task, queue, future or coroutine per event, and none per reader either: a reader that waits is an object in
a few sets, and its connection calls it when the full socket takes bytes again, or when it is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Coroutine
from typing import Any

from gateway import metrics
from gateway.delivery.catch_up import catch_up_of, go_through
from gateway.delivery.connection_ages import ConnectionAges
from gateway.delivery.flush_pace import FlushPace
from gateway.delivery.ledger import Ledger
from gateway.delivery.reader import OUT_OF_RING, Reader
from gateway.delivery.revocations import Revocations
from gateway.faces import gap_event
from gateway.following.pages import Pages
from gateway.following.ring import Ring
from gateway.following.tail import Tail
from gateway.following.tails import FIRST_READ_ENTRIES
from gateway.http.connection import chunk_of
from shared.background import keep_running, pause
from shared.errors import Disconnected, RedisRefused
from shared.events import DONE
from shared.ids import BEGINNING, EventId
from shared.settings import Settings

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 1
"""The pause between two groups of readers that get a keep-alive."""
_KEEP_ALIVES_AT_ONCE = 25
"""Keep-alives that are sent in one turn of the loop, which takes 0.3 ms; then readers get what is new."""
_SLOW_SECONDS = 5.0
"""A connection that ends after its socket was full for so long counts as too slow, whoever ended it."""
AHEAD_SECONDS, _AHEAD_AGAIN_SECONDS = 5.0, 1.0
"""How long a log may take to come as far as a reader's cursor: a live worker rewrites within 1 s what Redis has lost. Then it
is looked at again and again, while Redis does not answer."""
_UNREAD_EVENTS_MAX = 2 * FIRST_READ_ENTRIES
"""A ring keeps what was read for its first readers until they are there, but no more than this."""


class Delivery:
    """Sends each tail's new events to its readers, keeps silent connections alive, sends old ones away."""

    def __init__(self, pages: Pages, ledger: Ledger, settings: Settings) -> None:
        self._pages = pages
        self.ledger = ledger
        self._settings = settings
        self._dirty_tails: list[Tail] = []
        self._scheduled = False
        self._next_flush = 0.0
        self._ring_events_most = settings.ring_events * 5 // 4  # a trim moves the whole ring: not at every event
        self._flush_pace = FlushPace()
        self.readers = 0
        self.flushes = self.fallen_out = self.pages_sent = 0  # handed to Prometheus once a second
        self._beat_slot = 0
        """The slot whose readers were sent a comment last."""
        self._beats: list[dict[Reader, None]] = [{} for _ in range(settings.keepalive_seconds // _BEAT_SECONDS)]
        self._ages = ConnectionAges(settings.connection_seconds, lambda reader: self.close_reader(reader, "rotated"))
        self._revocations = Revocations(settings, lambda reader: self.close_reader(reader, "revoked"))
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False
        self._ahead: dict[Tail, list[Reader]] = {}
        """Readers that have more than their tail: their cursor is beyond its `last`."""
        self._awaited: dict[Tail, list[asyncio.Future[None]]] = {}
        """Futures that are done at a tail's next flush."""

    @property
    def tick_seconds(self) -> float:
        """How long new events may be gathered at the moment, before they are flushed."""
        return self._flush_pace.tick_seconds

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ages.start()
        works = (
            ("beats", self._beat),
            ("ages", self._ages.run),
            ("flush_pace", self._flush_pace.run),
            ("revocations", self._revocations.run),
        )
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
        """Begins to deliver to a reader whose response has begun. Its tail must be ready and held; from here the reader holds it."""
        self.readers += 1
        metrics.opened(reader.ring.face.name)
        if reader.cursor > BEGINNING:
            self._count_resume(reader)
        self.ledger.opened(reader)
        reader.tail.hold()
        reader.ring.join(reader)
        reader.beat_slot = self.readers % len(self._beats)
        self._beats[reader.beat_slot][reader] = None
        if reader.ring.face.resumable:
            self._ages.add(reader)
        self._revocations.watch(reader)
        self._place(reader)

    @staticmethod
    def _count_resume(reader: Reader) -> None:
        last, cursor = reader.tail.last, reader.cursor
        place = "ahead" if cursor > last else "ring" if cursor >= reader.ring.base else "log"
        metrics.resumed(place, max(0, last.offset - (cursor.offset if cursor.attempt == last.attempt else 0)))

    def detach(self, reader: Reader) -> None:
        """Forgets a reader whose connection has ended, for whatever reason, and releases its tail."""
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
        ring.leave(reader)
        if not ring.readers:
            tail.close_ring(ring)
        self._leave_those_ahead(reader)
        self._beats[reader.beat_slot].pop(reader, None)
        self._ages.discard(reader)
        tail.release()

    def close_reader(self, reader: Reader, outcome: str) -> None:
        """Gives a reader all that is ready and ends its response: it comes back, to whichever gateway, with its cursor."""
        if reader.closed or reader.busy:
            return  # a full socket takes no bytes; it is closed at its next turn, or at the process's end
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
        """Sends a reader the end of its stream. `failed`: of what can be read of it, or be shown by this face."""
        reader.outcome = "completed"
        failed = failed or reader.ring.broken is not None or reader.tail.ended_as != DONE
        if reader.ring.face.cut_unless_done and failed:
            reader.sink.cut(body)
        else:
            reader.sink.finish(body)
        self.detach(reader)

    def drain(self) -> None:
        """Sends all readers away, since this process is about to stop."""
        self.draining = True
        for slot in self._beats:
            for reader in list(slot):
                self.close_reader(reader, "drained")

    def lose(self, tail: Tail) -> None:
        """Sends the readers of a tail away whose log is gone; they get 404 or 410 when they come back."""
        for ring in tail.all_rings():
            for reader in list(ring.readers):
                self.close_reader(reader, "error")

    # --- the hot path

    def on_new(self, tail: Tail) -> None:
        """Has a tail flushed that was not `dirty` and has something new: at the end of this turn of the loop, or of this tick."""
        tail.dirty = True
        self._dirty_tails.append(tail)
        if not self._scheduled:
            self._scheduled = True
            wait_seconds = self._next_flush - self._loop.time()
            if wait_seconds > 0.0005:
                self._loop.call_later(wait_seconds, self._flush)
            else:
                self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Sends the new events of all dirty tails. The inner loop is each event's last step: what it costs, each event costs."""
        self._scheduled = False
        self.flushes += 1
        dirty_tails, self._dirty_tails = self._dirty_tails, []
        self._next_flush = self._loop.time() + self._flush_pace.tick_seconds
        ring_events_most = self._ring_events_most
        for tail in dirty_tails:
            tail.dirty = False
            reader = None
            try:
                if self._awaited:
                    self._wake_the_waiting(tail)
                if self._ahead and tail in self._ahead:
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
            except Exception:  # a bug, or a broken socket; the other tails of this flush must not wait for ever
                logger.exception("stream %s: what is new could not be sent", tail.stream_id)
                if reader is not None:
                    self._give_up(reader)
                    if not tail.dirty:
                        self.on_new(tail)

    def _flush_end(self, tail: Tail) -> None:
        """Sends the rest of a stream that has ended to its readers, who leave."""
        self._send_to_end(tail.rings)
        sent_at = tail.take_end_sent_at()
        if sent_at:
            metrics.written(sent_at)

    def _send_to_end(self, rings: tuple[Ring, ...]) -> None:
        """Sends the rest of these rings, to which nothing is added any more, to their readers, who leave."""
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
        """Cuts off a reader to which nothing can be sent, and forgets it."""
        if reader.closed:
            return
        reader.outcome = "error"
        with contextlib.suppress(Exception):
            reader.sink.cut(b"")
        self.detach(reader)

    async def until_flushed(self, tail: Tail) -> None:
        """Returns at the next flush of a tail. Its log must have been read."""
        flushed = self._loop.create_future()
        self._awaited.setdefault(tail, []).append(flushed)
        try:
            await flushed
        finally:
            waiting = self._awaited.get(tail, [])
            if flushed in waiting:
                waiting.remove(flushed)
                if not waiting:
                    del self._awaited[tail]

    def _wake_the_waiting(self, tail: Tail) -> None:
        for flushed in self._awaited.pop(tail, ()):
            if not flushed.done():
                flushed.set_result(None)

    def _is_full(self, reader: Reader) -> None:
        reader.busy = True
        reader.blocked_at = self._loop.time()

    def go_on(self, reader: Reader) -> None:
        """Goes on after a full socket, with everything since, from the ring or from the log."""
        reader.blocked_at = 0.0
        if reader.drained is not None:
            if not reader.drained.done():
                reader.drained.set_result(None)
            return
        reader.busy = False
        if reader.position < 0:
            self._place(reader)
        elif (reader.position < reader.ring.end or reader.is_over()) and not reader.tail.dirty:
            self.on_new(reader.tail)

    def _trim(self, ring: Ring) -> None:
        keep = self._settings.ring_events
        start = ring.end - keep
        for reader in ring.readers:
            if 0 <= reader.position < start:  # the reader falls out: it keeps the id that it had reached
                reader.cursor = ring.cursor_at(reader.position)
                reader.position = OUT_OF_RING
                self.fallen_out += 1
        ring.trim(keep)

    # --- getting a reader into the ring

    def _place(self, reader: Reader) -> None:
        """Puts a reader where its cursor is: into the ring, ahead of it, or on the way through history."""
        tail, ring = reader.tail, reader.ring
        if reader.cursor > tail.last and not reader.is_over():
            self._ahead.setdefault(tail, []).append(reader)
            self._spawn(self._wait_ahead(reader))
        elif (reader.cursor >= ring.base or reader.lacks_nothing()) and ring not in tail.unprimed:
            self._admit(reader)
        else:
            reader.busy = True
            self._spawn(self._catch_up(reader))

    def _place_those_ahead(self, tail: Tail) -> None:
        for reader in self._ahead[tail].copy():
            if reader.cursor <= tail.last or reader.is_over():
                self._leave_those_ahead(reader)
                end = reader.ring.broken or tail.ended
                if end is not None and reader.had >= end:  # else this response has the end, from a page of the log
                    reader.cursor = EventId(end.attempt, end.offset - 1)  # it gets the terminal event in any case
                self._place(reader)

    async def _wait_ahead(self, reader: Reader) -> None:
        """Waits for a log to come as far as a reader's cursor, which Redis may have lost and its worker may write again.

        If the log has not, the reader is shown a gap, and goes on where the log is.
        """
        tail = reader.tail
        pause_seconds = AHEAD_SECONDS
        while True:
            await asyncio.sleep(pause_seconds)
            if reader not in self._ahead.get(tail, ()):
                return
            pause_seconds = _AHEAD_AGAIN_SECONDS
            try:
                newest = await self._pages.newest(tail.stream_id)
            except (Disconnected, RedisRefused):
                continue
            # Not the tail alone decides: while Redis is away, or a push was lost, it may be behind its log.
            if newest is not None and newest < reader.cursor and reader in self._ahead.get(tail, ()):
                self._leave_those_ahead(reader)
                self._go_on_behind(reader)
                return

    def _go_on_behind(self, reader: Reader) -> None:
        """Shows a reader that is ahead of its stream a gap, and places it at the newest event."""
        tail, ring = reader.tail, reader.ring
        wanted = EventId(reader.cursor.attempt, reader.cursor.offset + 1)
        first = EventId(tail.attempt, tail.next_after.offset + 1) if tail.attempt else EventId(1, 0)
        metrics.GAPS.inc()
        reader.cursor = reader.had = reader.note.start = reader.note.noted = tail.last
        # The encoder of a stateful face belongs to all readers of the ring: it is given the events of the log only.
        gap = b"" if ring.face.stateful else ring.encoder.other(gap_event(wanted, first))
        if gap and not reader.sink.send(gap, chunk_of(gap)):
            self._is_full(reader)  # it is placed when its socket takes bytes again
        else:
            self._place(reader)

    def _leave_those_ahead(self, reader: Reader) -> None:
        ahead = self._ahead.get(reader.tail, [])
        if reader in ahead:
            ahead.remove(reader)
            if not ahead:
                del self._ahead[reader.tail]

    def _admit(self, reader: Reader) -> None:
        """Lets a reader into the ring: sends what it lacks, and says that what follows is live."""
        tail, ring = reader.tail, reader.ring
        position = ring.position_after(reader.cursor)
        reader.position = ring.end
        body = ring.body(position) if position < ring.end else b""
        if reader.is_over():
            self._complete(reader, body)
            return
        if reader.replaying:
            body += ring.beginning(max(0, tail.next_after.offset) if tail.attempt else 0, body)
            reader.replaying = False
        if body and not reader.sink.send(body, chunk_of(body)):
            self._is_full(reader)

    async def _catch_up(self, reader: Reader) -> None:
        """Sends a reader pages of the log until the ring has the rest."""
        catch_up = catch_up_of(reader, self._pages, self.until_flushed)
        log_is_there = await go_through(reader, catch_up, self._send_page)
        reader.busy = False
        if reader.closed:
            return
        if not log_is_there:
            self.close_reader(reader, "error")
        elif catch_up.ended:
            self._complete(reader, b"", failed=True)
        else:
            self._place(reader)

    async def _send_page(self, reader: Reader, piece: bytes) -> None:
        """Sends a piece of history, and returns when the socket takes the next one."""
        self.pages_sent += 1
        if piece and not reader.closed and not reader.sink.send(piece, chunk_of(piece)):
            reader.blocked_at = self._loop.time()
            reader.drained = self._loop.create_future()
            await reader.drained
            reader.drained = None

    # --- the clock

    async def _beat(self) -> None:
        """Sends every reader a keep-alive, each at its own moment, so that no proxy closes the connection for an idle timeout."""
        while True:
            await pause(_BEAT_SECONDS)
            self._beat_slot = (self._beat_slot + 1) % len(self._beats)
            readers = list(self._beats[self._beat_slot])
            for first in range(0, len(readers), _KEEP_ALIVES_AT_ONCE):
                self._keep_alive(readers[first : first + _KEEP_ALIVES_AT_ONCE])
                await asyncio.sleep(0)

    def _keep_alive(self, readers: list[Reader]) -> None:
        """Sends these readers a comment, or what their face has for it."""
        comment = chunk = b""
        for reader in readers:
            ring = reader.ring
            if len(ring.encoded) > self._ring_events_most and not reader.tail.dirty:
                self._trim(ring)  # the stream has been silent since it was read: all readers have what there is
            if ring.face.keep_alive is not comment:
                comment = ring.face.keep_alive
                chunk = chunk_of(comment)
            if comment and not reader.busy and not reader.closed and not reader.sink.send(comment, chunk):
                self._is_full(reader)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
