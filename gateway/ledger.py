"""What this gateway has delivered, noted in Redis for the receipts.

A connection is noted when it ends, and while it lives every `delivery_report_seconds` if it got anything: that is what
a gateway that is killed can lose. Nothing is done per event.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from typing import TYPE_CHECKING

from shared.errors import MidstreamError
from shared.ids import EventId
from shared.receipt import Delivered, Deliveries
from shared.settings import Settings

if TYPE_CHECKING:
    from gateway.readers import Reader

logger = logging.getLogger(__name__)

_UNDER_WAY_MAX = 10_000
"""Notes that Redis has not confirmed: while it is away more are not sent, and the next report tells as much."""


class Ledger:
    def __init__(self, deliveries: Deliveries, settings: Settings) -> None:
        self._deliveries = deliveries
        self._report_seconds = settings.delivery_report_seconds
        self.gateway = f"{socket.gethostname()}-{os.getpid()}"
        self._open: dict[Reader, Note] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._reporter = asyncio.get_running_loop().create_task(self._report())

    async def close(self) -> None:
        """Let the last notes reach Redis."""
        self._reporter.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=0.3)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self._reporter, *self._tasks, return_exceptions=True)

    def opened(self, reader: Reader) -> None:
        self._open[reader] = Note(secrets.token_hex(6), reader.cursor, time.time())

    def closed(self, reader: Reader) -> None:
        note = self._open.pop(reader)
        self._send(reader, note, outcome=reader.outcome)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._report_seconds)
            for reader, note in list(self._open.items()):
                if reader.reached() != note.noted:
                    self._send(reader, note)

    def _send(self, reader: Reader, note: Note, outcome: str | None = None) -> None:
        if len(self._tasks) >= _UNDER_WAY_MAX:
            return
        note.noted = reader.reached()
        closed_at = None if outcome is None else time.time()
        delivered = Delivered(note.connection, self.gateway, note.start, note.noted, note.opened_at, closed_at, outcome)
        task = asyncio.get_running_loop().create_task(self._note(reader.tail.stream_id, delivered))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _note(self, stream_id: str, delivered: Delivered) -> None:
        try:
            await self._deliveries.note(stream_id, delivered)
        except MidstreamError as error:
            logger.debug("stream %s: a delivery was not noted: %s", stream_id, error)


class Note:
    """What is kept of an open connection between two reports."""

    __slots__ = ("connection", "noted", "opened_at", "start")

    def __init__(self, connection: str, start: EventId, opened_at: float) -> None:
        self.connection = connection
        self.start = self.noted = start
        self.opened_at = opened_at
