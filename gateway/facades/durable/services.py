"""What the operations of this API share, among it the bounds of what one principal may have."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from gateway.access.append_rates import AppendRates
from gateway.access.given_tokens import GivenTokens
from gateway.api.follow import Subscribe
from gateway.delivery.delivery import Delivery
from gateway.facades.durable.found import Finder
from gateway.facades.durable.reading import Reading
from gateway.http.problems import Problem
from gateway.streams.streams import Streams
from shared.errors import MidstreamError
from shared.event_log import EventLog
from shared.settings import Settings
from shared.written_log import Bounds, Holdings, Names, WrittenLog, WrittenStream

logger = logging.getLogger(__name__)

NOTED_BYTES = 64 << 10
"""A stream's size is counted among its owner's each time it has grown by so much: with 1,000 streams that are written at a time
an owner may have 64 MB more than is counted."""
_TOO_MUCH_SECONDS = 5.0
"""For so long after its last count an owner that has too much is refused without another count."""
_OWNERS_MAX = 10_000
_NOTES_MAX = 1000
"""Counts under way. Beyond that, while Redis is away, they are left out: the next append counts again."""


class Quotas:
    """How much each principal's written streams may be, in number and bytes."""

    def __init__(self, streams: Streams, holdings: Holdings, *, bytes_max: int) -> None:
        self._streams = streams
        self._holdings = holdings
        self._bytes_max = bytes_max
        self._too_much: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """When an owner was found to have too much (monotonic seconds), and how many bytes."""
        self._notes: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Gives up the counts under way."""
        for task in self._notes:
            task.cancel()
        await asyncio.gather(*self._notes, return_exceptions=True)

    async def admit(self, stream: WrittenStream, life_ms: int, size_bytes: int) -> None:
        """Counts a new stream. Raises Problem 429 if its owner has too many, or too many bytes."""
        note = self._holdings.note
        held = await self._streams.answered(
            note, stream.owner, stream.stream_id, life_ms=life_ms, size_bytes=size_bytes
        )
        if not held.has_room:
            detail = f"you have {held.streams} streams, which is the limit: delete some, or let them expire"
            raise Problem(429, detail, retry_after_seconds=60)
        self._found(stream.owner, held.bytes)
        try:
            self.check(stream.owner)
        except Problem:
            await self.forget(stream)
            raise

    def check(self, owner: str) -> None:
        """Raises Problem 429 if an owner was found to have too many bytes a moment ago."""
        if not self._too_much:
            return
        found_at, size_bytes = self._too_much.get(owner, (0.0, 0))
        if size_bytes and time.monotonic() - found_at < _TOO_MUCH_SECONDS:
            detail = f"your streams have {size_bytes} bytes, and {self._bytes_max} are the limit: delete some"
            raise Problem(429, detail, retry_after_seconds=int(_TOO_MUCH_SECONDS))

    def note(self, stream: WrittenStream, size_bytes: int) -> None:
        """Begins to count how large a stream is now."""
        if len(self._notes) < _NOTES_MAX:
            self._begin(self._note(stream, size_bytes))

    async def _note(self, stream: WrittenStream, size_bytes: int) -> None:
        try:
            held = await self._holdings.note(
                stream.owner, stream.stream_id, life_ms=stream.life_ms or 1, size_bytes=size_bytes
            )
            self._found(stream.owner, held.bytes)
        except MidstreamError as error:
            logger.debug("stream %s: its size was not noted: %s", stream.stream_id, error)

    async def forget(self, stream: WrittenStream) -> None:
        """Counts a stream no more."""
        held = await self._streams.answered(
            self._holdings.note, stream.owner, stream.stream_id, life_ms=0, size_bytes=0
        )
        self._found(stream.owner, held.bytes)

    def _found(self, owner: str, size_bytes: int) -> None:
        if size_bytes <= self._bytes_max:
            self._too_much.pop(owner, None)
            return
        self._too_much[owner] = (time.monotonic(), size_bytes)
        if len(self._too_much) > _OWNERS_MAX:
            self._too_much.popitem(last=False)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)


@dataclass(frozen=True, slots=True)
class DurableServices:
    """What the operations work with."""

    streams: Streams
    subscribe: Subscribe
    delivery: Delivery
    event_log: EventLog
    log: WrittenLog
    names: Names
    finder: Finder
    reading: Reading
    quotas: Quotas
    bounds: Bounds
    settings: Settings
    given_tokens: GivenTokens
    rates: AppendRates
