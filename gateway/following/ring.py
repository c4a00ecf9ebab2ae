"""The newest events of a followed stream, encoded for one face, and the readers that share them. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from gateway import metrics
from gateway.faces import Encoder, End, Face, FramingFace, encode
from gateway.following.token_runs import TokenRun, unreadable
from shared import events
from shared.errors import Unreadable
from shared.events import Event
from shared.ids import EventId

logger = logging.getLogger(__name__)


def broken_off(face: Face, encoder: Encoder, event: Event) -> bytes:
    """Returns the end, as `failed`, that a face's readers get in place of an event at which the face's encoder has raised.

    Must be called while the exception is handled, which it logs. Other faces and other streams do not notice.
    """
    logger.exception(
        "%s cannot show the event %s of a stream: its readers are told that the stream failed", face, event.id
    )
    metrics.FACE_FAILURES.inc()
    failed = unreadable(event.id, Unreadable("this event cannot be shown")).events[0]
    return encoder.give_up(failed)


class Mark(NamedTuple):
    """From this position on, until the next mark, ids grow by one, beginning with this attempt and offset."""

    position: int
    attempt: int
    offset: int


class Ring:
    """Positions count events from the moment the ring was made; `start` is the position of the oldest event kept.

    `base` is the id before that: every event of the log after `base`, up to the newest, is here. No id is stored. Offsets
    have no holes, so an id follows from a position, but for the few places that `_marks` lists.
    """

    __slots__ = ("_marks", "base", "broken", "encoded", "encoder", "face", "readers", "start")

    def __init__(self, face: Face, encoder: Encoder, base: EventId) -> None:
        self.face = face
        self.start = 0
        self.encoded: list[bytes] = []
        """The events as bytes. A token with the very next id may be appended here directly; everything else goes through `append`."""
        self.readers: tuple[()] | tuple[Any] | set[Any] = ()
        """Who reads it: a set only if there are several, since most streams have one reader, and a set takes 200 bytes more."""
        self.broken: EventId | None = None
        """The event at which the encoder failed. In its place stands the end as this face shows it; nothing comes after."""
        self.begin_at(base, encoder)

    def begin_at(self, base: EventId, encoder: Encoder) -> None:
        """Has a ring that is still empty begin with the event after `base`."""
        self.encoder = encoder
        self.base = base
        self._marks: tuple[Mark, ...] = (Mark(0, base.attempt, base.offset + 1),)

    def join(self, reader: Any) -> None:
        """Adds a reader."""
        if isinstance(self.readers, set):
            self.readers.add(reader)
        else:
            self.readers = {*self.readers, reader} if self.readers else (reader,)

    def leave(self, reader: Any) -> None:
        """Removes a reader, if it is here."""
        if isinstance(self.readers, set):
            self.readers.discard(reader)
        elif reader in self.readers:
            self.readers = ()

    @property
    def end(self) -> int:
        """The position after the newest event."""
        return self.start + len(self.encoded)

    def __len__(self) -> int:
        return len(self.encoded)

    def append(self, event: Event) -> None:
        """Appends the next event; the ring ends at one that the face cannot show."""
        if self.broken is not None:
            return
        self._mark(event.id)
        try:
            piece = encode(self.encoder, event)
        except Exception:
            piece, self.broken = broken_off(self.face, self.encoder, event), event.id
        self.encoded.append(piece)

    def extend(self, run: TokenRun) -> None:
        """Appends the tokens of a run."""
        if self.broken is not None:
            return
        self._mark(run.first)
        before = len(self.encoded)
        try:
            self.encoded += self.encoder.tokens(run.ids, run.values)
        except Exception:
            # The tokens before the one that failed may be here already; the others are appended one by one, to find it.
            done = len(self.encoded) - before
            for offset, value in enumerate(islice(run.values, done, None), run.first.offset + done):
                self.append(Event(EventId(run.first.attempt, offset), events.TOKEN, value))

    def _mark(self, first: EventId) -> None:
        """Notes the id with which the next events begin."""
        end = self.start + len(self.encoded)
        position, attempt, offset = self._marks[-1]
        if first != (attempt, offset + end - position):
            before = self._marks[:-1] if position == end else self._marks
            self._marks = (*before, Mark(end, *first))

    def position_after(self, cursor: EventId) -> int:
        """Returns the position at which a reader goes on that has everything up to `cursor`, which is not before `base`."""
        until = self.start + len(self.encoded)
        for position, attempt, offset in reversed(self._marks):
            if (attempt, offset) <= cursor:
                if attempt == cursor.attempt:
                    until = min(until, position + cursor.offset - offset + 1)
                return max(self.start, until)
            until = min(until, position)
        return self.start

    def cursor_at(self, position: int) -> EventId:
        """Returns the id that a reader at this position has reached."""
        if position > self.start:
            for first, attempt, offset in reversed(self._marks):
                if first < position:
                    return EventId(attempt, offset + position - first - 1)
        return self.base

    def body(self, position: int) -> bytes:
        """Returns everything from a position to the end, in one piece."""
        encoded = self.encoded
        index = position - self.start
        return encoded[index] if index == len(encoded) - 1 else b"".join(encoded[index:])

    def beginning(self, offset: int, sent: bytes) -> bytes:
        """Returns what tells a reader who has just been sent the rest of this ring, perhaps nothing, that what follows is live."""
        return self.face.live(offset)

    def trim(self, keep: int) -> None:
        """Forgets all but the newest `keep` events."""
        surplus = len(self.encoded) - keep
        if surplus > 0:
            self.base = self.cursor_at(self.start + surplus)
            self.start += surplus
            del self.encoded[:surplus]
            while len(self._marks) > 1 and self._marks[1].position <= self.start:
                self._marks = self._marks[1:]


class FramedRing(Ring):
    """A ring of a face that frames all that it sends at a time as one.

    `is_newest` tells whether nothing is known to stand in the log behind this ring's newest event.
    """

    __slots__ = ("_framing", "_is_newest")

    def __init__(self, face: FramingFace, encoder: Encoder, base: EventId, is_newest: Callable[[], bool]) -> None:
        super().__init__(face, encoder, base)
        self._framing = face
        self._is_newest = is_newest

    def body(self, position: int) -> bytes:
        return self._frame(self.encoded[position - self.start :])

    def beginning(self, offset: int, sent: bytes) -> bytes:
        return b"" if sent else self._frame(())

    def _frame(self, pieces: Sequence[bytes]) -> bytes:
        ends_unseen = bool(self.encoded) and isinstance(self.encoded[-1], End) and not self.encoded[-1]
        reached = self.cursor_at(self.end - ends_unseen)
        return self._framing.frame(pieces, reached, is_newest=self._is_newest())
