"""History for readers that are further back than the ring: pages of the log, cut at fixed offsets, so that all who come
through them share one read and one encoding. Bounded in bytes; the least recently used page goes first.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from gateway import metrics
from gateway.faces import Encoder, Face, encode, gap_event
from gateway.runs import Run, runs
from shared import events
from shared.events import Entry, Event, events_of
from shared.ids import BEGINNING, EventId
from shared.lifecycle import base_of
from shared.log import EventLog, RawEntry

_EVENT_BYTES = 150
"""Of Python, for each event that a page keeps as such."""
_PIECE_BYTES = 40
"""Of Python, for each encoded event."""


class Page(Protocol):
    """Consecutive events of one attempt."""

    size_bytes: int


class EncodedPage:
    """A page as one face shows it."""

    __slots__ = ("_body", "_encoder", "_ids", "_pieces", "size_bytes")

    def __init__(self, encoder: Encoder, raw: list[RawEntry]) -> None:
        self._encoder = encoder
        self._pieces: list[bytes]
        self._ids: list[EventId] | tuple[int, int, int]
        parts = list(runs(raw))
        if len(parts) == 1 and isinstance(plain := parts[0], Run):  # as most pages are
            self._ids = plain.attempt, plain.first_offset, plain.last.offset
            self._pieces = encoder.tokens(plain.ids, plain.values)
            each_bytes = _PIECE_BYTES
        else:
            listed = _listed([Entry(EventId.of(event_id), *fields) for event_id, fields in raw])
            self._ids = [event.id for event in listed]
            self._pieces = [encode(encoder, event) for event in listed]
            each_bytes = _EVENT_BYTES
        self._body = b"".join(self._pieces)
        self.size_bytes = 2 * len(self._body) + len(self._pieces) * each_bytes

    def after(self, cursor: EventId) -> tuple[bytes, EventId] | None:
        """What a reader at `cursor` gets of this page, and the cursor that it then has; None for nothing."""
        count, ids = len(self._pieces), self._ids
        if isinstance(ids, tuple):
            attempt, first_offset, last_offset = ids
            index = 0 if cursor < (attempt, first_offset) else cursor.offset - first_offset + 1
            first, last = EventId(attempt, first_offset + index), EventId(attempt, last_offset)
            if cursor.attempt > attempt or index >= count:
                return None
        else:
            index = bisect_right(ids, cursor)
            if index == count:
                return None
            first, last = ids[index], ids[-1]
        body = self._body if index == 0 else b"".join(self._pieces[index:])
        wanted = EventId(cursor.attempt, cursor.offset + 1)
        after_restart = cursor.offset == 0 and cursor.attempt > 1  # may keep tokens: the next offset is not 1
        if first.attempt == wanted.attempt and first.offset > wanted.offset and not after_restart:
            metrics.GAPS.inc()
            body = self._encoder.other(gap_event(wanted, first)) + body
        return body, last


class EventsPage:
    """A page as it is, for faces that remember: each of their readers encodes it anew."""

    __slots__ = ("listed", "size_bytes")

    def __init__(self, raw: list[RawEntry]) -> None:
        self.listed = _listed([Entry(EventId.of(event_id), *fields) for event_id, fields in raw])
        self.size_bytes = sum(_EVENT_BYTES + len(event.value) for event in self.listed)


_Key = tuple[str, Face | None, int, int]


class Pages:
    """Reads and keeps pages. A page is kept only when nothing can be added to it."""

    def __init__(self, log: EventLog, *, page_events: int, cache_bytes_max: int) -> None:
        self._log = log
        self._page_events = page_events
        self._cache_bytes_max = cache_bytes_max
        self._kept: OrderedDict[_Key, Any] = OrderedDict()
        self.kept_bytes = 0
        self._under_way: dict[_Key, asyncio.Task[Any]] = {}
        self.reads = 0

    async def after(self, stream_id: str, face: Face, cursor: EventId) -> tuple[bytes, EventId] | None:
        """The next piece of history after `cursor`, and the cursor behind it; None when the log has nothing there.

        For faces that do not remember. Raises Disconnected.
        """
        if cursor == BEGINNING:
            cursor = EventId(1, -1)  # nothing that readers see stands before 1-0

        async def read(key: _Key, start: EventId) -> tuple[bytes, EventId] | None:
            page: EncodedPage = await self._page(key, lambda raw: EncodedPage(face.encoder(stream_id), raw))
            return page.after(start)

        found: tuple[bytes, EventId] | None = await self._next(stream_id, face, cursor, read)
        return found

    async def events_after(self, stream_id: str, cursor: EventId) -> list[Event]:
        """The next events after `cursor`, those of one page; empty when the log has nothing there. Raises Disconnected."""

        async def read(key: _Key, start: EventId) -> list[Event] | None:
            page: EventsPage = await self._page(key, EventsPage)
            return [event for event in page.listed if event.id > start] or None

        return await self._next(stream_id, None, cursor, read) or []

    async def _next(self, stream_id: str, face: Face | None, cursor: EventId, read: Callable[..., Any]) -> Any:
        """From the page that holds the next offset of this attempt, else from the one where the log goes on."""
        found = await read(self._key(stream_id, face, cursor.attempt, cursor.offset + 1), cursor)
        if found is not None:
            return found
        following = await self._log.read(stream_id, cursor, 1)
        if not following:
            return None
        attempt, offset = following[0].id
        if attempt > cursor.attempt:
            cursor, offset = EventId(attempt, -1), 0
        return await read(self._key(stream_id, face, attempt, offset), cursor)

    def _key(self, stream_id: str, face: Face | None, attempt: int, offset: int) -> _Key:
        return stream_id, face, attempt, offset - offset % self._page_events

    async def _page(self, key: _Key, make: Callable[[list[RawEntry]], Any]) -> Any:
        page = self._kept.get(key)
        if page is not None:
            self._kept.move_to_end(key)
            return page
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._read(key, make))
            task.add_done_callback(lambda task: self._read_has_ended(key, task))
        return await asyncio.shield(task)

    async def _read(self, key: _Key, make: Callable[[list[RawEntry]], Any]) -> Any:
        stream_id, _, attempt, first = key
        last = EventId(attempt, first + self._page_events - 1)
        # Complete is a page behind which the log goes on: asked at once, since Redis may have forgotten what a tail has seen.
        raw, goes_on = await self._log.read_page(stream_id, EventId(attempt, first), last)
        self.reads += 1
        page = make(raw)
        if goes_on:
            self._keep(key, page)
        return page

    def _read_has_ended(self, key: _Key, task: asyncio.Task[Any]) -> None:
        self._under_way.pop(key, None)
        if not task.cancelled():
            task.exception()  # who waits for it hears of it; all of them may have left meanwhile

    def _keep(self, key: _Key, page: Page) -> None:
        self._kept[key] = page
        self.kept_bytes += page.size_bytes
        while self.kept_bytes > self._cache_bytes_max:
            _, dropped = self._kept.popitem(last=False)
            self.kept_bytes -= dropped.size_bytes


def _listed(entries: list[Entry]) -> list[Event]:
    """The events of these entries, with a gap where offsets are missing between two of them."""
    listed: list[Event] = []
    reached: EventId | None = None
    for entry in entries:
        carried = events_of(entry)
        first = carried[0].id
        if reached is not None and first.attempt == reached.attempt and first.offset > reached.offset + 1:
            metrics.GAPS.inc()
            listed.append(gap_event(EventId(reached.attempt, reached.offset + 1), first))
        listed += carried
        reached = entry.id
        if entry.field == events.RESTARTED:
            reached = EventId(entry.id.attempt, base_of(entry.value))
    return listed
