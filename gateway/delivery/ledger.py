"""Notes in Redis, for the receipts, what this gateway has delivered.

A connection is noted when it ends, and every `delivery_report_seconds` before that if it got anything: a gateway that is
killed loses no more. Nothing is done per event.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from gateway.delivery.reader import OpenConnection, Reader
from gateway.process_name import gateway_name
from shared.background import keep_running, pause
from shared.errors import MidstreamError, RedisRefused
from shared.receipt import DeliveryNote, DeliveryNotes
from shared.settings import Settings

logger = logging.getLogger(__name__)

_SLOTS = 50
"""The open connections are reported in so many parts, so that no report takes longer than a millisecond or two."""
_LOOK_SECONDS, _LAST_NOTES_LOOKS = 0.01, 30
_LOOKED_AT_MAX = 500
"""With more readers `tokens_now` does not look at each: half a millisecond."""
_UNDER_WAY_MAX = 10_000
"""Notes that Redis has not confirmed. While it is away no more are sent; the next report makes up for them."""


class Ledger:
    """Notes how far each connection has come: at its end, and before that from time to time."""

    def __init__(
        self,
        deliveries: DeliveryNotes,
        settings: Settings,
        on_read: Callable[[str], None] = lambda _: None,
        on_left: Callable[[Reader], None] = lambda _: None,
    ) -> None:
        self._deliveries = deliveries
        self._on_read = on_read
        """Called with a stream that has ended when its last connection here has: more may have been delivered since the end."""
        self._on_left = on_left
        """Called with each reader whose connection has ended, for its place among others."""
        self._pause_seconds = settings.delivery_report_seconds / _SLOTS
        self.gateway = gateway_name()
        self._slots: list[dict[Reader, OpenConnection]] = [{} for _ in range(_SLOTS)]
        self._opened = self._reported = 0
        self._under_way = 0
        self.tokens = 0
        """How many tokens have been sent, as far as that is noted."""
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reporter = keep_running("ledger", self._report)

    async def close(self) -> None:
        """Waits a moment for the last notes to reach Redis."""
        self._reporter.cancel()
        for _ in range(_LAST_NOTES_LOOKS):
            if not self._under_way and not self._tasks:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self._reporter, *self._tasks, return_exceptions=True)

    def tokens_now(self) -> int:
        """Returns `tokens` and what has been sent since. With many readers only `tokens`, which grows evenly then."""
        if sum(map(len, self._slots)) > _LOOKED_AT_MAX:
            return self.tokens
        return self.tokens + sum(
            reader.tail.tokens_between(note.noted, reader.reached())
            for slot in self._slots
            for reader, note in slot.items()
        )

    def opened(self, reader: Reader) -> None:
        self._opened += 1
        self._slots[self._opened % _SLOTS][reader] = reader.note = OpenConnection(
            self._opened % _SLOTS, secrets.token_hex(6), reader.had, time.time()
        )

    def closed(self, reader: Reader) -> None:
        note = reader.note
        del self._slots[note.slot][reader]
        self._send(reader, note, outcome=reader.outcome)
        tail = reader.tail
        self._on_left(reader)
        if tail.ended is not None and sum(len(ring.readers) for ring in tail.all_rings()) <= 1:
            self._on_read(tail.stream_id)

    async def _report(self) -> None:
        """Reports one slot after the other: all at once would hold up the readers."""
        while True:
            await pause(self._pause_seconds)
            self._reported = (self._reported + 1) % _SLOTS
            for reader, note in self._slots[self._reported].items():
                if reader.position < 0 or reader.position != note.position:  # an idle reader's id need not be found out
                    if reader.reached() != note.noted:
                        self._send(reader, note)
                    else:
                        note.position = reader.position

    def _send(self, reader: Reader, note: OpenConnection, outcome: str | None = None) -> None:
        if self._under_way >= _UNDER_WAY_MAX:
            return
        reached = reader.reached()
        self.tokens += reader.tail.tokens_between(note.noted, reached)
        note.noted, note.position = reached, reader.position
        now = time.time()
        closed_at = None if outcome is None else now
        delivered = DeliveryNote(
            note.connection, self.gateway, note.start, note.noted, note.opened_at, closed_at, outcome, now
        )
        self._under_way += 1
        stream_id = reader.tail.stream_id
        self._deliveries.send_note(stream_id, delivered, lambda reply: self._sent(stream_id, delivered, reply))

    def _sent(self, stream_id: str, delivered: DeliveryNote, reply: Any) -> None:
        self._under_way -= 1
        if isinstance(reply, RedisRefused) and reply.code == "NOSCRIPT" and len(self._tasks) < _UNDER_WAY_MAX:
            task = self._loop.create_task(self._note(stream_id, delivered))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(reply, Exception):
            logger.debug("stream %s: a delivery was not noted: %s", stream_id, reply)

    async def _note(self, stream_id: str, delivered: DeliveryNote) -> None:
        try:
            await self._deliveries.note(stream_id, delivered)
        except MidstreamError as error:
            logger.debug("stream %s: a delivery was not noted: %s", stream_id, error)
