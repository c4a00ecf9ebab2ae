"""The bare text of an answer: `GET /v1/streams/{id}/text`, and `Accept: text/plain`.

Bare text has no place for ids, for comments that keep a silent connection alive, or for how the answer ended. So the end of
the body says it: complete after `done`, cut off without its last chunk after anything else. Text that was sent cannot be
taken back, so the body is also cut off where an attempt begins anew.
"""

from __future__ import annotations

import asyncio

import orjson

from gateway.delivery.reader import Reader
from gateway.faces import Encoder
from gateway.http.connection import Connection
from gateway.http.problems import Problem
from gateway.http.whole_bodies import UNCOUNTED_BYTES
from shared import events
from shared.events import Event, text_of
from shared.ids import EventId
from shared.lifecycle import History

_TAKEN_BACK = b"\xff"
"""Marks in an encoded body where it must end. The byte does not occur in UTF-8."""


class TextFace:
    """The text of the first choice."""

    name = "text"
    media_type = b"text/plain; charset=utf-8"
    keep_alive = b""
    stateful = True
    cut_unless_done = True
    resumable = False

    def encoder(self, stream_id: str) -> Encoder:
        return _TextEncoder()

    def prelude(self, retry_milliseconds: int) -> bytes:
        return b""

    def live(self, offset: int) -> bytes:
        return b""

    def epilogue(self, retry_milliseconds: int) -> bytes:
        return b""


class _TextEncoder(Encoder):
    def __init__(self) -> None:
        self._deltas = self._deltas_to_text = 0
        """The number of increments that stand, and the number up to the last one that has text."""

    def token(self, event_id: bytes, value: bytes) -> bytes:
        value.decode()  # raises for what is not UTF-8, as every face does
        self._deltas += 1
        self._deltas_to_text = self._deltas
        return value

    def other(self, event: Event) -> bytes:
        if event.field in (events.DELTA, events.OWN):
            self._deltas += 1
            text = text_of(event.field, event.value).encode()
            if text:
                self._deltas_to_text = self._deltas
            return text
        if event.field == events.RESTARTED:
            self._deltas = orjson.loads(event.value)["base"]
            if self._deltas_to_text > self._deltas:
                self._deltas_to_text = self._deltas
                return _TAKEN_BACK
        return b""


class TextSink:
    """A Sink over a connection that is cut off where text is taken back."""

    def __init__(self, connection: Connection, reader: Reader) -> None:
        self._connection = connection
        self._reader = reader

    def send(self, body: bytes, chunk: bytes) -> bool:
        if _TAKEN_BACK not in body:
            return self._connection.send(body, chunk)
        self.cut(body)
        asyncio.get_running_loop().call_soon(self._reader.lost)  # later: the caller is iterating over the readers
        return False

    def finish(self, body: bytes) -> None:
        if _TAKEN_BACK in body:
            self.cut(body)
        else:
            self._connection.finish(body)

    def cut(self, body: bytes) -> None:
        standing, taken_back, _ = body.partition(_TAKEN_BACK)
        if taken_back:
            self._reader.outcome = "error"
        self._connection.cut(standing)


def text_after(
    history: History, cursor: EventId | None, after_bytes: int, reached: EventId
) -> tuple[bytes, EventId, EventId]:
    """The text that stands after a cursor, or after so many bytes; the id up to which the client has the text already; and
    the id that it reaches with this text. `reached` is the history's end; a long text stops before it, the log has the rest.

    Raises Problem 400, 409.
    """
    items = history.items
    if cursor is None:
        index = 0  # of the item in which the returned text begins, `skipped` bytes into it
        skipped = after_bytes
        if after_bytes and history.took_back_text:
            raise Problem(409, "text was taken back when an attempt began anew: read it again from the beginning")
        while skipped and index < len(items) and (size := _size_of(items[index])) <= skipped:
            skipped -= size
            index += 1
        if skipped and index == len(items):
            size = after_bytes - skipped
            raise Problem(400, f"after_bytes is {after_bytes}, but there are only {size} bytes of text")
        had = EventId(history.attempt, index)
    else:
        index, skipped, had = cursor.offset or history.kept_tokens.get(cursor.attempt, 0), 0, cursor
        later = (tokens for attempt, tokens in history.kept_tokens.items() if attempt > cursor.attempt)
        if any(base < index for base in later):
            raise Problem(409, f"text before {cursor} was taken back since: read it again from the beginning")
    pieces, size = [], 0
    for count, item in enumerate(items[index:], index + 1):
        pieces.append(text_of(*item).encode())
        size += len(pieces[-1])
        if size >= UNCOUNTED_BYTES and count < len(items) and _is_in_the_log(history, count):
            reached = EventId(history.attempt, count)
            break
    return b"".join(pieces)[skipped:], had, reached


def _size_of(item: tuple[bytes, bytes]) -> int:
    field, value = item
    return len(value) if field == events.TOKEN else len(text_of(field, value).encode())


def _is_in_the_log(history: History, count: int) -> bool:
    """Whether the log can be read on after so many deltas: ids and deltas correspond, and none of those was taken back."""
    whole = history.last_item == EventId(history.attempt, len(history.items))
    return whole and count >= history.kept_tokens.get(history.attempt, 0)


TEXT = TextFace()
