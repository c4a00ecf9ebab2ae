"""The newest events of a followed stream, encoded once for each face that has readers. No I/O."""

from __future__ import annotations

from bisect import bisect_right

from gateway.faces import Encoder, Face
from shared.events import Event
from shared.ids import BEGINNING, EventId


class Ring:
    """Positions count events from the moment the ring was made; `start` is the position of the oldest one kept.

    `base` is the id before it: every event of the log after `base`, up to the newest, is here.
    """

    __slots__ = ("_encoded", "_events", "_ids", "_stream_id", "base", "start")

    def __init__(self, stream_id: str) -> None:
        self._stream_id = stream_id
        self._ids: list[EventId] = []
        self._events: list[Event] = []
        self._encoded: dict[Face, tuple[Encoder, list[bytes]]] = {}
        self.base = BEGINNING
        self.start = 0

    @property
    def end(self) -> int:
        """The position after the newest event."""
        return self.start + len(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def append(self, event: Event) -> None:
        self._ids.append(event.id)
        self._events.append(event)
        for encode, encoded in self._encoded.values():
            encoded.append(encode(event))

    def show_to(self, face: Face) -> None:
        """Encode for a face from now on, and what is here already."""
        if face not in self._encoded:
            encode = face.encoder(self._stream_id)
            self._encoded[face] = (encode, [encode(event) for event in self._events])

    def position_after(self, cursor: EventId) -> int:
        """Where a reader that has everything up to `cursor` goes on; `cursor` is not before `base`."""
        return self.start + bisect_right(self._ids, cursor)

    def cursor_at(self, position: int) -> EventId:
        """The id that a reader at this position has reached."""
        index = position - self.start - 1
        return self._ids[index] if index >= 0 else self.base

    def body(self, face: Face, position: int) -> bytes:
        """Everything from a position to the end, in one piece."""
        encoded = self._encoded[face][1]
        index = position - self.start
        return encoded[index] if index == len(encoded) - 1 else b"".join(encoded[index:])

    def trim(self, keep: int) -> None:
        """Forget all but the newest `keep` events."""
        surplus = len(self._ids) - keep
        if surplus > 0:
            self.base = self._ids[surplus - 1]
            self.start += surplus
            del self._ids[:surplus], self._events[:surplus]
            for _, encoded in self._encoded.values():
                del encoded[:surplus]
