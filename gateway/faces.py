"""A face: how one event looks on the wire. Encoded once per tail and face, never once per reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import orjson

from shared import events
from shared.events import Event
from shared.ids import EventId

GAP = b"gap"
"""A field that no log holds: the place where events are missing. Its id is the one before the first that is there."""

Encoder = Callable[[Event], bytes]


class Face(Protocol):
    """Faces are stateless and compared by identity: one object each, shared by all readers."""

    def encoder(self, stream_id: str) -> Encoder:
        """A function from an event to its bytes; empty where this face does not show it."""

    def live(self, offset: int) -> bytes:
        """What tells a reader that the replay is over; may be empty."""


def gap_event(requested: EventId, first: EventId) -> Event:
    """The pseudo-event that stands for what is missing before `first`."""
    told = orjson.dumps({"requested": str(requested), "first_available": str(first)})
    return Event(EventId(first.attempt, first.offset - 1), GAP, told)


class NativeFace:
    """`GET /v1/streams/{id}/events` (api.md section 1): a token is an unnamed event, everything else is named."""

    _SHOWN: ClassVar = {
        events.STARTED: ("attempt", "model"),
        events.RESTARTED: ("attempt", "base", "reason"),
        events.FAILED: ("code", "message", "retryable"),
        events.CANCELLED: ("by",),
    }

    def encoder(self, stream_id: str) -> Encoder:
        return self._encode

    def live(self, offset: int) -> bytes:
        return b'event: live\ndata: {"offset":%d}\n\n' % offset

    def _encode(self, event: Event) -> bytes:
        (attempt, offset), field, value = event
        if field == events.TOKEN:
            return b'id: %d-%d\ndata: {"token":%b}\n\n' % (attempt, offset, orjson.dumps(value.decode()))
        if field == events.DELTA:
            return b"id: %d-%d\ndata: %b\n\n" % (attempt, offset, value)
        (attempt, offset), field, value = _without_tombstone(event)
        if field == GAP:
            return b"event: gap\ndata: %b\n\n" % value
        if field == events.ACCEPTED:
            return b""
        return b"id: %d-%d\nevent: %b\ndata: %b\n\n" % (attempt, offset, field, self._shown(field, value))

    def _shown(self, field: bytes, value: bytes) -> bytes:
        stored = orjson.loads(value)
        if field == events.DONE:
            return done_data(stored)
        return orjson.dumps({key: stored[key] for key in self._SHOWN[field]})


class PromptFace:
    """`GET /stream?prompt=` (api.md section 2): tokens, then `[DONE]`; ids name the stream, so that the URL need not.

    What is no token is a named event, which a page that has only `onmessage` does not see: `restarted`, `failed`,
    `cancelled`, and `done` where the answer was cut off.
    """

    def encoder(self, stream_id: str) -> Encoder:
        name = stream_id.encode()

        def encode(event: Event) -> bytes:
            (attempt, offset), field, value = _without_tombstone(event)
            event_id = b"id: %b/%d-%d\n" % (name, attempt, offset)
            if field == events.TOKEN:
                return b'%bdata: {"token":%b}\n\n' % (event_id, orjson.dumps(value.decode()))
            if field == events.DELTA:
                return b"%bdata: %b\n\n" % (event_id, value)
            if field == GAP:
                return b"event: gap\ndata: %b\n\n" % value
            if field == events.RESTARTED:
                return b"%bevent: restarted\ndata: %b\n\n" % (event_id, NATIVE._shown(field, value))
            if field in events.TERMINAL:
                told = b""
                if field != events.DONE or orjson.loads(value)["finish_reason"] == "length":
                    told = b"event: %b\ndata: %b\n\n" % (field, NATIVE._shown(field, value))
                return b"%b%bdata: [DONE]\n\n" % (told, event_id)
            return b""

        return encode

    def live(self, offset: int) -> bytes:
        return b""


def _without_tombstone(event: Event) -> Event:
    """Who follows a stream while it is deleted is told that it was cancelled, also if the tombstone came first."""
    return Event(event.id, events.CANCELLED, b'{"by":"client"}') if event.field == events.DELETED else event


def done_data(stored: dict[str, object]) -> bytes:
    """What a reader is told of a finished answer; `truncated` says that it was cut off."""
    reason = stored["finish_reason"]
    return orjson.dumps({"finish_reason": reason, "truncated": reason == "length", "usage": stored["usage"]})


NATIVE = NativeFace()
PROMPT = PromptFace()
