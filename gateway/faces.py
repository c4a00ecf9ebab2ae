"""A face: how one event looks on the wire. Encoded once per tail and face, never once per reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import orjson

from shared import events, sse
from shared.events import Event
from shared.ids import EventId

GAP = b"gap"
"""A field that no log holds: the place where events are missing. Its id is the one before the first that is there."""


class Encoder(Protocol):
    """From an event to its bytes; empty where this face does not show it."""

    def token(self, event_id: bytes, value: bytes) -> bytes:
        """A token, the event that comes by the thousand: its id as the log has it, and its text in UTF-8.

        Raises UnicodeDecodeError, before anything is remembered, where it is not: a pushed token is not checked before.
        """

    def tokens(self, event_ids: Sequence[bytes], values: Sequence[bytes]) -> Iterable[bytes]:
        """Many tokens, in their order: the same pieces as one by one."""
        return map(self.token, event_ids, values)

    def other(self, event: Event) -> bytes:
        """Any other event. Its value is checked (`shared.events.events_of`)."""

    def give_up(self, failed: Event) -> bytes:
        """The end of the stream as this face tells it, `failed`, after an event at which `token` or `other` has raised."""
        return self.other(failed)


class Face(Protocol):
    """One object for all readers of a kind; compared with ==, kept in the tails of the streams that it shows."""

    media_type: bytes
    keep_alive: bytes
    """What a silent reader is sent so that no proxy takes its connection for dead; may be empty."""
    stateful: bool
    """An event's bytes depend on those before it: each encoder must be given the whole log from its beginning."""
    cut_unless_done: bool
    """A body that does not end in `done` is cut off without its last chunk, so that an HTTP client sees it."""
    resumable: bool
    """Its readers come back with their cursor: a response may end early. One of the others lasts as long as its stream,
    and is cut off when the gateway stops."""

    def encoder(self, stream_id: str) -> Encoder: ...

    def prelude(self, retry_milliseconds: int) -> bytes:
        """What stands before everything else in a body; may be empty."""

    def live(self, offset: int) -> bytes:
        """What tells a reader that the replay is over; may be empty."""

    def epilogue(self, retry_milliseconds: int) -> bytes:
        """What a reader is sent whose response ends before its stream: it is to come back; may be empty."""


class SseFace:
    """What every face over Server-Sent Events has in common."""

    media_type = b"text/event-stream; charset=utf-8"
    keep_alive = sse.KEEP_ALIVE
    stateful = False
    cut_unless_done = False
    resumable = True

    def prelude(self, retry_milliseconds: int) -> bytes:
        return self.keep_alive + self.epilogue(retry_milliseconds)  # at once: some proxies wait for the first byte

    def live(self, offset: int) -> bytes:
        return b""

    def epilogue(self, retry_milliseconds: int) -> bytes:
        return sse.retry(retry_milliseconds)


def encode(encoder: Encoder, event: Event) -> bytes:
    """Any event."""
    return encoder.token(b"%d-%d" % event.id, event.value) if event.field == events.TOKEN else encoder.other(event)


def json_strings(texts: Sequence[bytes]) -> list[bytes]:
    """Each text, in UTF-8, as JSON has it between the quotes. In one call: a tenth of what a call for each costs."""
    encoded = orjson.dumps(_BETWEEN.join(texts).decode())[1:-1].split(_BETWEEN_IN_JSON)
    if len(encoded) == len(texts):
        return encoded
    return [orjson.dumps(text.decode())[1:-1] for text in texts]  # one of them has what was to stand between them


_BETWEEN, _BETWEEN_IN_JSON = b"\x1f", b"\\u001f"


def gap_event(requested: EventId, first: EventId) -> Event:
    """The pseudo-event that stands for what is missing before `first`."""
    told = orjson.dumps({"requested": str(requested), "first_available": str(first)})
    return Event(EventId(first.attempt, first.offset - 1), GAP, told)


class NativeFace(SseFace, Encoder):
    """`GET /v1/streams/{id}/events` (api.md section 1): a token is an unnamed event, everything else is named."""

    def encoder(self, stream_id: str) -> Encoder:
        return self  # it needs to know no more than the event

    def live(self, offset: int) -> bytes:
        return b'event: live\ndata: {"offset":%d}\n\n' % offset

    def token(self, event_id: bytes, value: bytes) -> bytes:
        return b'id: %b\ndata: {"token":%b}\n\n' % (event_id, orjson.dumps(value.decode()))

    def tokens(self, event_ids: Sequence[bytes], values: Sequence[bytes]) -> list[bytes]:
        return [
            b'id: %b\ndata: {"token":"%b"}\n\n' % pair for pair in zip(event_ids, json_strings(values), strict=True)
        ]

    def other(self, event: Event) -> bytes:
        (attempt, offset), field, value = without_tombstone(event)
        if field == events.DELTA:
            return b"id: %d-%d\ndata: %b\n\n" % (attempt, offset, value)
        if field == GAP:
            return b"event: gap\ndata: %b\n\n" % value
        if field == events.ACCEPTED:
            return b""
        return b"id: %d-%d\nevent: %b\ndata: %b\n\n" % (attempt, offset, field, shown(field, value))


class NdjsonFace(Encoder):
    """The same events as lines of JSON: `id` (null where there is none), `event` ("message" for a token), `data`.

    A silent reader is sent a space. It becomes part of the next line, where JSON allows it; an empty line, the other
    custom, breaks readers that parse whatever stands between two line feeds (cradle#106, ndjson-cli#9).
    """

    media_type = b"application/x-ndjson"
    keep_alive = b" "
    stateful = False
    cut_unless_done = False
    resumable = True

    def encoder(self, stream_id: str) -> Encoder:
        return self

    def prelude(self, retry_milliseconds: int) -> bytes:
        return b""

    def live(self, offset: int) -> bytes:
        return live_object(offset) + b"\n"

    def epilogue(self, retry_milliseconds: int) -> bytes:
        return retry_object(retry_milliseconds) + b"\n"

    def token(self, event_id: bytes, value: bytes) -> bytes:
        line = b'{"id":"%b","event":"message","data":{"token":%b}}\n' % (event_id, orjson.dumps(value.decode()))
        # One byte is looked for much faster than three: most texts have none of the last ones of `_LINE_ENDS`.
        return _on_one_line(line) if 0xA8 in value or 0xA9 in value or 0x85 in value else line

    def other(self, event: Event) -> bytes:
        told = event_object(event)
        return _on_one_line(told) + b"\n" if told else b""


def _on_one_line(json: bytes) -> bytes:
    """The same without U+0085, U+2028 and U+2029, which Python's `str.splitlines`, and so httpx, takes for line ends."""
    for encoded, escaped in _LINE_ENDS:
        json = json.replace(encoded, escaped)
    return json


_LINE_ENDS = [(character.encode(), b"\\u%04x" % ord(character)) for character in "\u0085\u2028\u2029"]


def event_object(event: Event) -> bytes:
    """An event that is no token as a JSON object; empty where readers are not shown it."""
    (attempt, offset), field, value = without_tombstone(event)
    if field == events.DELTA:
        return b'{"id":"%d-%d","event":"message","data":%b}' % (attempt, offset, value)
    if field == GAP:
        return b'{"id":null,"event":"gap","data":%b}' % value
    if field == events.ACCEPTED:
        return b""
    return b'{"id":"%d-%d","event":"%b","data":%b}' % (attempt, offset, field, shown(field, value))


def live_object(offset: int) -> bytes:
    return b'{"id":null,"event":"live","data":{"offset":%d}}' % offset


def retry_object(retry_milliseconds: int) -> bytes:
    """The last object of a response that ends before its stream: what the line `retry:` is for SSE."""
    return b'{"id":null,"event":"retry","data":{"milliseconds":%d}}' % retry_milliseconds


class PromptFace(SseFace):
    """`GET /stream?prompt=` (api.md section 2): tokens, then `[DONE]`; ids name the stream, so that the URL need not.

    What is no token is a named event, which a page that has only `onmessage` does not see: `restarted`, `failed`,
    `cancelled`, and `done` where the answer was cut off.
    """

    def encoder(self, stream_id: str) -> Encoder:
        return _PromptEncoder(stream_id.encode())


class _PromptEncoder(Encoder):
    def __init__(self, name: bytes) -> None:
        self._name = name

    def token(self, event_id: bytes, value: bytes) -> bytes:
        return b'id: %b/%b\ndata: {"token":%b}\n\n' % (self._name, event_id, orjson.dumps(value.decode()))

    def other(self, event: Event) -> bytes:
        (attempt, offset), field, value = without_tombstone(event)
        event_id = b"id: %b/%d-%d\n" % (self._name, attempt, offset)
        if field == events.DELTA:
            return b"%bdata: %b\n\n" % (event_id, value)
        if field == GAP:
            return b"event: gap\ndata: %b\n\n" % value
        if field == events.RESTARTED:
            return b"%bevent: restarted\ndata: %b\n\n" % (event_id, shown(field, value))
        if field in events.TERMINAL:
            told = b""
            if field != events.DONE or orjson.loads(value)["finish_reason"] == "length":
                told = b"event: %b\ndata: %b\n\n" % (field, shown(field, value))
            return b"%b%bdata: [DONE]\n\n" % (told, event_id)
        return b""


_SHOWN: dict[bytes, tuple[str, ...]] = {
    events.STARTED: ("attempt", "model"),
    events.RESTARTED: ("attempt", "base", "reason"),
    events.FAILED: ("code", "message", "retryable"),
    events.CANCELLED: ("by",),
}


def shown(field: bytes, value: bytes) -> bytes:
    """The data of a named event: what readers are told of what is stored."""
    stored = orjson.loads(value)
    if field == events.DONE:
        return done_data(stored)
    return orjson.dumps({key: stored[key] for key in _SHOWN[field]})


def done_data(stored: dict[str, object]) -> bytes:
    """What a reader is told of a finished answer; `truncated` says that it was cut off."""
    reason = stored["finish_reason"]
    return orjson.dumps({"finish_reason": reason, "truncated": reason == "length", "usage": stored["usage"]})


def without_tombstone(event: Event) -> Event:
    """Who follows a stream while it is deleted is told that it was cancelled, also if the tombstone came first."""
    return Event(event.id, events.CANCELLED, b'{"by":"client"}') if event.field == events.DELETED else event


NATIVE: Face = NativeFace()
PROMPT: Face = PromptFace()
NDJSON: Face = NdjsonFace()
