"""History for readers that are further back than the ring: pages of the log, cut at fixed offsets, so that all who come
through them share one read and one encoding. Bounded in bytes; the least recently used page goes first.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import OrderedDict

from gateway.faces import Face, gap_event
from shared import events
from shared.events import Entry, Event, events_of
from shared.ids import BEGINNING, EventId
from shared.lifecycle import base_of
from shared.log import EventLog

_PAGE_OVERHEAD_BYTES = 150
"""Of Python, for each event of a page."""


class Page:
    """Consecutive events of one attempt, encoded for one face."""

    __slots__ = ("_body", "_encode", "_encoded", "_ids", "size_bytes")

    def __init__(self, face: Face, stream_id: str, listed: list[Event]) -> None:
        self._encode = encode = face.encoder(stream_id)
        self._ids = [event.id for event in listed]
        self._encoded = [encode(event) for event in listed]
        self._body = b"".join(self._encoded)
        self.size_bytes = 2 * len(self._body) + _PAGE_OVERHEAD_BYTES * len(listed)

    def after(self, cursor: EventId) -> tuple[bytes, EventId] | None:
        """What a reader at `cursor` gets of this page, and the cursor that it then has; None for nothing."""
        index = bisect_right(self._ids, cursor)
        if index == len(self._ids):
            return None
        body = self._body if index == 0 else b"".join(self._encoded[index:])
        first, wanted = self._ids[index], EventId(cursor.attempt, cursor.offset + 1)
        after_restart = cursor.offset == 0 and cursor.attempt > 1  # may keep tokens: the next offset is not 1
        if first.attempt == wanted.attempt and first.offset > wanted.offset and not after_restart:
            body = self._encode(gap_event(wanted, first)) + body
        return body, self._ids[-1]


class Pages:
    """Reads and keeps pages. A page is kept only when nothing can be added to it."""

    def __init__(self, log: EventLog, *, page_events: int, cache_bytes_max: int) -> None:
        self._log = log
        self._page_events = page_events
        self._cache_bytes_max = cache_bytes_max
        self._kept: OrderedDict[tuple[str, Face, int, int], Page] = OrderedDict()
        self._kept_bytes = 0
        self._under_way: dict[tuple[str, Face, int, int], asyncio.Task[Page]] = {}
        self.reads = 0

    async def after(self, stream_id: str, face: Face, cursor: EventId) -> tuple[bytes, EventId] | None:
        """The next piece of history after `cursor`, and the cursor behind it; None when the log has nothing there.

        Raises Disconnected.
        """
        if cursor == BEGINNING:
            cursor = EventId(1, -1)  # nothing that readers see stands before 1-0
        found = (await self._page(stream_id, face, cursor.attempt, cursor.offset + 1)).after(cursor)
        if found is not None:
            return found
        following = await self._log.read(stream_id, cursor, 1)
        if not following:
            return None
        attempt, offset = following[0].id
        if attempt > cursor.attempt:
            cursor = EventId(attempt, -1)
            offset = 0
        return (await self._page(stream_id, face, attempt, offset)).after(cursor)

    async def _page(self, stream_id: str, face: Face, attempt: int, offset: int) -> Page:
        first = offset - offset % self._page_events
        key = (stream_id, face, attempt, first)
        page = self._kept.get(key)
        if page is not None:
            self._kept.move_to_end(key)
            return page
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._read(key))
            task.add_done_callback(lambda task: self._read_has_ended(key, task))
        return await asyncio.shield(task)

    async def _read(self, key: tuple[str, Face, int, int]) -> Page:
        stream_id, face, attempt, first = key
        last = EventId(attempt, first + self._page_events - 1)
        # Complete is a page behind which the log goes on: asked at once, since Redis may have forgotten what a tail has seen.
        newest, entries = await asyncio.gather(
            self._log.newest(stream_id), self._log.read_between(stream_id, EventId(attempt, first), last)
        )
        self.reads += 1
        page = Page(face, stream_id, _listed(entries))
        if newest and newest[0].id > last:
            self._keep(key, page)
        return page

    def _read_has_ended(self, key: tuple[str, Face, int, int], task: asyncio.Task[Page]) -> None:
        self._under_way.pop(key, None)
        if not task.cancelled():
            task.exception()  # who waits for it hears of it; all of them may have left meanwhile

    def _keep(self, key: tuple[str, Face, int, int], page: Page) -> None:
        self._kept[key] = page
        self._kept_bytes += page.size_bytes
        while self._kept_bytes > self._cache_bytes_max:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= dropped.size_bytes


def _listed(entries: list[Entry]) -> list[Event]:
    """The events of these entries, with a gap where offsets are missing between two of them."""
    listed: list[Event] = []
    reached: EventId | None = None
    for entry in entries:
        carried = events_of(entry)
        first = carried[0].id
        if reached is not None and first.attempt == reached.attempt and first.offset > reached.offset + 1:
            listed.append(gap_event(EventId(reached.attempt, reached.offset + 1), first))
        listed += carried
        reached = entry.id
        if entry.field == events.RESTARTED:
            reached = EventId(entry.id.attempt, base_of(entry.value))
    return listed
