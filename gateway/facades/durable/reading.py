"""Reads a stream's log for answers that are given whole: what stands behind a place, and where the newest message is."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

from gateway.facades.durable.face import face_of
from gateway.facades.durable.found import Found
from gateway.facades.durable.headers import Shape
from gateway.faces import End, encode
from gateway.streams.stream_logs import StreamLogs
from shared import events
from shared.errors import Unreadable
from shared.events import Entry, Event, events_of, unreadable_failure
from shared.ids import BEGINNING, EventId

CHUNK_BYTES_MAX = 1 << 20
"""A catch-up read gives so much at most, and its client asks for the rest: 4,000 of them may wait in 4 GB."""
_ENTRIES_LEAST, _ENTRIES_MOST = 64, 1000
"""Entries of one read of the log: few until it is known how large they are."""


@dataclass(slots=True)
class Chunk:
    """What stands behind a place."""

    reached: EventId
    """The newest message in it; the place itself if it is empty."""
    messages: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    is_newest: bool = False
    """There was nothing behind it when it was read."""
    outcome: str = ""
    """How the stream has ended, if it has, and `is_newest`."""


class Reading:
    """Reads streams."""

    def __init__(self, logs: StreamLogs) -> None:
        self._logs = logs

    async def tail(self, found: Found) -> Chunk | None:
        """Returns the place of the newest message, as an empty chunk; None if there is no such log. Raises Problem 503."""
        entries = await self._logs.newest(found.stream_id, 2)
        if not entries or entries[-1].field == events.DELETED:
            return None
        last = entries[-1]
        if last.field not in events.TERMINAL:
            return Chunk(last.id, is_newest=True)
        found.has_ended = True
        reached = entries[0].id if found.written is not None else last.id
        return Chunk(reached, is_newest=True, outcome=last.field.decode())

    async def after(self, found: Found, place: EventId, shape: Shape) -> Chunk | None:
        """Returns what stands behind a place, as much as one answer may have; None if there is no such log. Raises Problem 400, 503."""
        face = face_of(found.written, shape)
        encoder = face.encoder(found.stream_id)
        chunk, count = Chunk(place), _ENTRIES_LEAST
        read_entries, read_to = 0, place
        if face.stateful:
            newest = await self.tail(found)
            if newest is None or newest.reached <= place:
                return newest
            read_to = BEGINNING
        while True:
            entries = await self._logs.read(found.stream_id, read_to, count)
            if not read_entries and not entries:
                tail = await self.tail(found)
                if tail is not None and tail.reached > place:
                    continue  # it came between the two reads
                return tail  # the place is at the newest message, or ahead of it
            for entry in entries:
                if entry.field == events.DELETED:
                    return None
                for event in _events(entry):
                    if event.id <= place and not face.stateful:
                        continue
                    if chunk.messages and chunk.size_bytes >= CHUNK_BYTES_MAX:
                        return chunk
                    piece = encode(encoder, event)
                    if event.id <= place:
                        continue
                    if piece:
                        chunk.messages.append(piece)
                        chunk.size_bytes += len(piece)
                    if isinstance(piece, End):
                        chunk.is_newest, chunk.outcome = True, piece.outcome
                        found.has_ended = True
                    if piece or not isinstance(piece, End):
                        chunk.reached = event.id
                read_to = entry.id
                if chunk.outcome:
                    return chunk
            if len(entries) < count:
                chunk.is_newest = True
                return chunk
            read_entries += len(entries)
            mean_bytes = max(1, chunk.size_bytes // read_entries)
            room = (CHUNK_BYTES_MAX - chunk.size_bytes) // mean_bytes
            count = max(_ENTRIES_LEAST, min(_ENTRIES_MOST, room))


def _events(entry: Entry) -> list[Event]:
    """Returns the events of an entry; `failed` for one that cannot be read."""
    try:
        return events_of(entry)
    except Unreadable as error:
        return [Event(entry.id, events.FAILED, orjson.dumps(unreadable_failure(entry.id, error)))]
