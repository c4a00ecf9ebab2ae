"""The way of one reader through history, until the ring has the rest.

A face whose events each stand for themselves is read in pages that all readers share. One that remembers is read from the
beginning of the log, with an encoder of the reader's own; whoever arrives first at the end primes the ring with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from gateway.delivery.reader import Reader
from gateway.faces import encode
from gateway.following.pages import Pages
from gateway.following.ring import broken_off
from gateway.following.tail import Tail
from gateway.following.token_runs import unreadable, unreadable_from
from shared.errors import Unreadable
from shared.events import ACCEPTED, DELETED, FAILED
from shared.ids import BEGINNING

NextNews = Callable[[Tail], Awaitable[None]]

_FIRST = (ACCEPTED, DELETED, FAILED)
"""With what a log may begin: the last where the first entry cannot be read."""
_NEWS_SECONDS = 0.5
"""How long a push may take that tells what a read has shown already; then the log is looked at once more."""


class CatchUp(Protocol):
    ended: bool
    """The last piece was the end for this reader: the log cannot be read on, or its face cannot show it."""

    def arrive(self) -> bool:
        """Whether the reader may go on from the ring."""

    async def next(self) -> bytes | None:
        """The next piece, maybe empty; None where the log has nothing. Moves the reader's cursor. Raises Disconnected."""


def catch_up_of(reader: Reader, pages: Pages, next_news: NextNews) -> CatchUp:
    if reader.ring.face.stateful:
        return _OwnEncoder(reader, pages, next_news)
    return _SharedPages(reader, pages)


class _SharedPages:
    def __init__(self, reader: Reader, pages: Pages) -> None:
        self._reader, self._pages = reader, pages
        self.ended = False

    def arrive(self) -> bool:
        return self._reader.cursor >= self._reader.ring.base

    async def next(self) -> bytes | None:
        reader = self._reader
        found = await self._pages.after(reader.tail.stream_id, reader.ring.face, reader.cursor)
        if found is None:
            return None
        self.ended = found.is_end
        reader.cursor = found.reached
        return found.body


class _OwnEncoder:
    def __init__(self, reader: Reader, pages: Pages, next_news: NextNews) -> None:
        self._reader, self._pages, self._next_news = reader, pages, next_news
        self._encoder = reader.ring.face.encoder(reader.tail.stream_id)
        self._seen = BEGINNING
        self.ended = False

    def arrive(self) -> bool:
        tail, ring = self._reader.tail, self._reader.ring
        if ring not in tail.unprimed:
            return self._reader.cursor >= ring.base
        if self._seen != tail.last:
            return False
        tail.prime(ring, self._encoder)
        return True

    async def next(self) -> bytes | None:
        reader = self._reader
        if self._seen > reader.tail.last:  # an encoder must not be given twice what is still to be pushed
            try:
                async with asyncio.timeout(_NEWS_SECONDS):
                    await self._next_news(reader.tail)
            except TimeoutError:
                pass
            if self._seen >= reader.tail.last:
                self.ended = (
                    reader.tail.ended is not None and self._seen > reader.tail.last
                )  # it will never come so far
                return b""
        listed = await self._pages.events_after(reader.tail.stream_id, self._seen)
        if not listed:
            return None
        if self._seen == BEGINNING and listed[0].field not in _FIRST:
            no_request = Unreadable("the log does not begin with `accepted`")
            listed = unreadable(listed[0].id, no_request).events
        body = []
        for event in listed:
            try:
                encoded = encode(self._encoder, event)
            except Exception:
                encoded, self.ended = broken_off(reader.ring.face, self._encoder, event), True
            if event.id > reader.cursor or self.ended:
                body.append(encoded)
            self._seen = event.id
            if self.ended:
                break
        newest = listed[-1]
        if newest.field == FAILED and unreadable_from(newest) == newest.id:
            self.ended = True
        reader.cursor = max(reader.cursor, self._seen)
        return b"".join(body)
