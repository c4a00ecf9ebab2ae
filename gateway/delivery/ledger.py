"""Notes in Redis, for the receipts, what this gateway has delivered.

A connection is noted when it ends, and every `delivery_report_seconds` before that if it got anything of the answer: a gateway that is
killed loses no more. Nothing is done per event.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from gateway.delivery.reader import OpenConnection, Reader
from gateway.process_name import gateway_name
from shared.background import keep_running, pause
from shared.ids import EventId
from shared.receipt import DeliveryNote, DeliveryNotes
from shared.settings import Settings

logger = logging.getLogger(__name__)

_SLOTS, _SLOTS_PER_ROUND = 50, 10
"""The open connections are reported in so many parts, so that no part takes longer than a millisecond or two; so many of them are looked
at when the process wakes up for it."""
_SPREAD_OVER = 0.9
"""Over so much of the time until the next round the parts are spread that have something to report: Redis runs a script for each note."""
_LOOK_SECONDS, _LAST_NOTES_LOOKS = 0.01, 30
_LOOKED_AT_MAX = 500
"""With more readers `tokens_now` does not look at each: half a millisecond."""
_STARTED = EventId(1, 0)
"""The id of `started`. A connection that has come no further is not noted: it has got nothing of the answer, and many wait there for long."""
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
        self._round_seconds = settings.delivery_report_seconds / _SLOTS * _SLOTS_PER_ROUND
        self.gateway = gateway_name()
        self._slots: list[dict[Reader, None]] = [{} for _ in range(_SLOTS)]
        self._opened = self._reported = 0
        self._under_way = 0
        self.tokens = 0
        """How many tokens have been sent, as far as that is noted."""

    def start(self) -> None:
        self._reporter = keep_running("ledger", self._report)

    async def close(self) -> None:
        """Waits a moment for the last notes to reach Redis."""
        self._reporter.cancel()
        for _ in range(_LAST_NOTES_LOOKS):
            if not self._under_way:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        await asyncio.gather(self._reporter, return_exceptions=True)

    def tokens_now(self) -> int:
        """Returns `tokens` and what has been sent since. With many readers only `tokens`, which grows evenly then."""
        if sum(map(len, self._slots)) > _LOOKED_AT_MAX:
            return self.tokens
        return self.tokens + sum(
            reader.tail.tokens_between(reader.note.noted, reader.reached()) for slot in self._slots for reader in slot
        )

    def opened(self, reader: Reader) -> None:
        self._opened += 1
        reader.note = OpenConnection(self._opened % _SLOTS, secrets.token_hex(6), reader.had, time.time())
        self._slots[reader.note.slot][reader] = None

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
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        while True:
            await pause(began_at + self._round_seconds - loop.time())
            began_at = loop.time()
            for _ in range(_SLOTS_PER_ROUND):
                self._reported = (self._reported + 1) % _SLOTS
                if self._report_slot(self._slots[self._reported]):
                    await asyncio.sleep(_SPREAD_OVER * self._round_seconds / _SLOTS_PER_ROUND)

    def _report_slot(self, readers: Iterable[Reader]) -> bool:
        """Reports how far these connections have come; returns whether any has."""
        moved = False
        for reader in readers:
            if reader.position == reader.noted_position and reader.position >= 0:
                continue  # an idle reader, of which nothing else need be looked at
            note, reached = reader.note, reader.reached()
            if reached != note.noted and reached > _STARTED:
                self._send(reader, note)
                moved = True
            else:
                reader.noted_position = reader.position
        return moved

    def _send(self, reader: Reader, note: OpenConnection, outcome: str | None = None) -> None:
        if self._under_way >= _UNDER_WAY_MAX:
            return
        reached = reader.reached()
        self.tokens += reader.tail.tokens_between(note.noted, reached)
        note.noted, reader.noted_position = reached, reader.position
        now = time.time()
        closed_at = None if outcome is None else now
        delivered = DeliveryNote(
            note.connection, self.gateway, note.start, note.noted, note.opened_at, closed_at, outcome, now
        )
        self._under_way += 1
        stream_id = reader.tail.stream_id
        self._deliveries.send_note(stream_id, delivered, partial(self._sent, stream_id))

    def _sent(self, stream_id: str, reply: Any) -> None:
        self._under_way -= 1
        if isinstance(reply, Exception):
            logger.debug("stream %s: a delivery was not noted: %s", stream_id, reply)
