"""History for readers that are further back than the ring: pages of the log, cut at fixed offsets, so that all readers
who need a page share one read and one encoding. Bounded in bytes; the least recently used page goes first.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from gateway import metrics
from gateway.faces import End, Face, FramingFace, encode, gap_event
from gateway.following.ring import broken_off
from gateway.following.token_runs import Carried, TokenRun, parts
from shared import events
from shared.event_log import EventLog
from shared.events import TOKEN, Event
from shared.ids import BEGINNING, FIRST_ID, ID_PART_MAX, EventId
from shared.lifecycle import kept_tokens_of

logger = logging.getLogger(__name__)

_EVENT_BYTES = 150
"""Python's own memory for each event that a page keeps as an object."""
BEFORE_FIRST_SHOWN = EventId(1, -1)
"""Faces that are not stateful show nothing that stands before 1-0."""
_REDIS_OFFSET_MAX = (1 << 64) - 1
_PIECE_BYTES = 40
"""Python's own memory for each encoded event."""


class Page(Protocol):
    """Consecutive events of one attempt."""

    size_bytes: int


class Piece(NamedTuple):
    """The events of a page that a reader lacks."""

    body: bytes
    reached: EventId
    """The reader's cursor after them."""
    is_end: bool = False
    """Nothing comes after them: the log cannot be read on, or the face cannot show the rest."""


class EncodedPage:
    """A page, encoded for one face."""

    __slots__ = ("_body", "_encoder", "_framing", "_ids", "_pieces", "ends_at", "size_bytes")

    def __init__(self, face: Face, stream_id: str, content: list[TokenRun | Carried]) -> None:
        self._encoder = face.encoder(stream_id)
        self._framing = face if isinstance(face, FramingFace) else None
        self._pieces: list[bytes] = []
        self._ids: list[EventId] | tuple[int, int, int]
        self.ends_at: EventId | None = None
        """The event after which readers are sent away, because the rest cannot be read or shown."""
        each_bytes = _PIECE_BYTES
        if not (len(content) == 1 and isinstance(content[0], TokenRun) and self._take_run(content[0])):
            self._take_all(face, content)
            each_bytes = _EVENT_BYTES
        self._body = b"".join(self._pieces)
        self.size_bytes = 2 * len(self._body) + len(self._pieces) * each_bytes

    def _take_run(self, plain: TokenRun) -> bool:
        """Encodes a page that is nothing but tokens, as most pages are. False if its events must be encoded one by one."""
        try:
            self._pieces = list(self._encoder.tokens(plain.ids, plain.values))
        except Exception:
            logger.debug("a page cannot be encoded in one piece", exc_info=True)
            return False
        self._ids = (*plain.first, plain.last.offset)
        return True

    def _take_all(self, face: Face, content: list[TokenRun | Carried]) -> None:
        listed, self.ends_at = _listed(content)
        ids: list[EventId] = []
        for event in listed:
            try:
                piece = encode(self._encoder, event)
            except Exception:
                piece, self.ends_at = broken_off(face, self._encoder, event), event.id
            self._pieces.append(piece)
            ids.append(event.id)
            if event.id == self.ends_at:
                break
        self._ids = ids

    def after(self, cursor: EventId) -> Piece | None:
        """Returns the events of this page after `cursor`; None if there are none."""
        if self.ends_at is not None and cursor >= self.ends_at:
            return Piece(b"", cursor, is_end=True)
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
        if self._framing is not None:
            return self._framed(self._framing, index, cursor, last)
        body = self._body if index == 0 else b"".join(self._pieces[index:])
        wanted = EventId(cursor.attempt, cursor.offset + 1)
        after_restart = cursor.offset == 0 and cursor.attempt > 1  # may keep tokens: the next offset is not 1
        if first.attempt == wanted.attempt and first.offset > wanted.offset and not after_restart:
            metrics.GAPS.inc()
            body = self._encoder.other(gap_event(wanted, first)) + body
        return Piece(body, last, is_end=last == self.ends_at)

    def _framed(self, face: FramingFace, index: int, cursor: EventId, last: EventId) -> Piece:
        """Returns the events from an index on, framed as one."""
        pieces, reached = self._pieces[index:], last
        if isinstance(pieces[-1], End) and not pieces[-1]:  # it is not shown as a message
            ids = self._ids
            assert isinstance(ids, list)  # a terminal event is no token
            reached = ids[-2] if len(pieces) > 1 else cursor
        return Piece(face.frame(pieces, reached, is_newest=False), last, is_end=last == self.ends_at)


class EventsPage:
    """A page that is not encoded, for stateful faces: each of their readers encodes it with its own encoder."""

    __slots__ = ("listed", "size_bytes")

    def __init__(self, content: list[TokenRun | Carried]) -> None:
        self.listed, _ = _listed(content)
        self.size_bytes = sum(_EVENT_BYTES + len(event.value) for event in self.listed)


_Key = tuple[str, Face | None, int, int]


class Pages:
    """Reads and keeps pages. A page is kept only when nothing can be added to it.

    `on_unreadable` is called with a stream whose log cannot be read on, and with the `failed` as which it reads.
    """

    def __init__(
        self,
        log: EventLog,
        on_unreadable: Callable[[str, Event], None],
        *,
        page_events: int,
        cache_bytes_max: int,
    ) -> None:
        self._log = log
        self._on_unreadable = on_unreadable
        self._page_events = page_events
        self._cache_bytes_max = cache_bytes_max
        self._kept: OrderedDict[_Key, Any] = OrderedDict()
        self.kept_bytes = 0
        self._under_way: dict[_Key, asyncio.Task[Any]] = {}
        self.reads = 0

    async def after(self, stream_id: str, face: Face, cursor: EventId) -> Piece | None:
        """Returns the next piece of history after `cursor`; None if the log has nothing there. Not for stateful faces.

        Raises Disconnected.
        """
        if cursor == BEGINNING:
            cursor = BEFORE_FIRST_SHOWN

        async def read(key: _Key, start: EventId) -> Piece | None:
            page: EncodedPage = await self._page(key, lambda content: EncodedPage(face, stream_id, content))
            return page.after(start)

        found: Piece | None = await self._next(stream_id, face, cursor, read)
        return found

    async def events_after(self, stream_id: str, cursor: EventId) -> list[Event]:
        """Returns the events of one page after `cursor`, up to the stream's end; empty if the log has nothing there.

        Raises Disconnected.
        """

        async def read(key: _Key, start: EventId) -> list[Event] | None:
            page: EventsPage = await self._page(key, EventsPage)
            return [event for event in page.listed if event.id > start] or None

        return await self._next(stream_id, None, cursor, read) or []

    async def newest(self, stream_id: str) -> EventId | None:
        """Returns the id of the log's newest entry; None if there is no log. Raises Disconnected, RedisRefused."""
        entries = await self._log.newest(stream_id)
        return entries[-1].id if entries else None

    async def _next(self, stream_id: str, face: Face | None, cursor: EventId, read: Callable[..., Any]) -> Any:
        """Reads the page that holds the next offset of this attempt; if it has nothing, the one where the log goes on."""
        found = await read(self._key(stream_id, face, cursor.attempt, cursor.offset + 1), cursor)
        if found is not None:
            return found
        # With an offset below 0 the cursor is before `k-0`, so after all of the attempt before: Redis has no such id.
        after = cursor if cursor.offset >= 0 else EventId(cursor.attempt - 1, _REDIS_OFFSET_MAX)
        following = await self._log.read(stream_id, after, 1)
        if not following:
            return None
        attempt, offset = following[0].id
        if attempt > cursor.attempt:
            cursor, offset = EventId(min(attempt, ID_PART_MAX), -1), 0
        return await read(self._key(stream_id, face, attempt, offset), cursor)

    def _key(self, stream_id: str, face: Face | None, attempt: int, offset: int) -> _Key:
        return stream_id, face, attempt, offset - offset % self._page_events

    async def _page(self, key: _Key, make: Callable[[list[TokenRun | Carried]], Any]) -> Any:
        page = self._kept.get(key)
        if page is not None:
            self._kept.move_to_end(key)
            return page
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._read(key, make))
            task.add_done_callback(lambda task: self._read_has_ended(key, task))
        return await asyncio.shield(task)

    async def _read(self, key: _Key, make: Callable[[list[TokenRun | Carried]], Any]) -> Any:
        stream_id, _, attempt, first = key
        last = EventId(attempt, min(first + self._page_events - 1, _REDIS_OFFSET_MAX))
        # A page is complete if the log goes on behind it. Only the log can tell: Redis may have lost what a tail has seen.
        raw, goes_on = await self._log.read_page(stream_id, EventId(attempt, first), last)
        self.reads += 1
        # Nothing of an attempt stands before its offset 0. Before any other offset it is not known what does.
        content = list(parts(raw, None if first else FIRST_ID if attempt else BEGINNING))
        if content and isinstance(newest := content[-1], Carried) and newest.unreadable:
            self._on_unreadable(stream_id, newest.events[0])
        page = make(content)
        if goes_on:
            self._keep(key, page)
        return page

    def _read_has_ended(self, key: _Key, task: asyncio.Task[Any]) -> None:
        self._under_way.pop(key, None)
        if not task.cancelled():
            task.exception()  # raised to those who wait for it, who may all have left meanwhile

    def _keep(self, key: _Key, page: Page) -> None:
        self._kept[key] = page
        self.kept_bytes += page.size_bytes
        while self.kept_bytes > self._cache_bytes_max:
            _, dropped = self._kept.popitem(last=False)
            self.kept_bytes -= dropped.size_bytes


def _listed(content: list[TokenRun | Carried]) -> tuple[list[Event], EventId | None]:
    """Returns the events, with a gap where offsets are missing between two of them; and the last one's id if the log cannot
    be read on from there."""
    listed: list[Event] = []
    reached: EventId | None = None
    for part in content:
        first = part.first
        if reached is not None and first.attempt == reached.attempt and first.offset > reached.offset + 1:
            metrics.GAPS.inc()
            listed.append(gap_event(EventId(reached.attempt, reached.offset + 1), first))
        reached = part.last
        if isinstance(part, TokenRun):
            ids = (EventId(first.attempt, offset) for offset in range(first.offset, reached.offset + 1))
            listed += [Event(event_id, TOKEN, value) for event_id, value in zip(ids, part.values, strict=True)]
            continue
        listed += part.events
        if part.unreadable:
            return listed, part.last
        if part.field == events.RESTARTED:
            reached = EventId(part.last.attempt, kept_tokens_of(part.events[0].value))
    return listed, None
