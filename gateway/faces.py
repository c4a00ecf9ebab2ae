"""Faces: how an event looks on the wire. An event is encoded once per tail and face, never once per reader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import orjson

from shared import events, sse
from shared.events import Event
from shared.ids import EventId
from shared.own_events import name_and_data

GAP = b"gap"
"""The field of a pseudo-event, which no log holds: events are missing here. It has the id before the next event's."""


class Encoder(Protocol):
    """Encodes events; the bytes are empty where the face does not show an event."""

    def token(self, event_id: bytes, value: bytes) -> bytes:
        """Encodes a token, the event that comes by the thousand, from its id as the log has it and its text in UTF-8.

        Raises UnicodeDecodeError for other text, before the encoder's state has changed: pushed tokens are not checked before.
        """

    def tokens(self, event_ids: Sequence[bytes], values: Sequence[bytes]) -> Iterable[bytes]:
        """Encodes many tokens, in order, into the pieces that `token` would return."""
        return map(self.token, event_ids, values)

    def other(self, event: Event) -> bytes:
        """Encodes any other event. The event's value has been checked (`shared.events.events_of`)."""

    def give_up(self, failed: Event) -> bytes:
        """Encodes the `failed` with which the stream ends for this face, after `token` or `other` has raised."""
        return self.other(failed)


class Face(Protocol):
    """A wire form: one object for all readers that share it. Compared with ==; kept in the tails of the streams that it shows."""

    name: str
    """In metrics: one of `shared.metrics.FACES`."""
    media_type: bytes
    keep_alive: bytes
    """Sent on a silent connection, so that no proxy closes it for an idle timeout; may be empty."""
    stateful: bool
    """An event's bytes depend on those before it: each encoder must be given the whole log from its beginning."""
    cut_unless_done: bool
    """A body that does not end with `done` is cut off without its last chunk, so that an HTTP client sees an error."""
    resumable: bool
    """Clients reconnect with their cursor, so a response may end early. With any other face it lasts as long as its stream,
    and is cut off when the gateway stops."""

    def encoder(self, stream_id: str) -> Encoder: ...

    def prelude(self, retry_milliseconds: int) -> bytes:
        """Returns what stands before everything else in a body; may be empty."""

    def live(self, offset: int) -> bytes:
        """Returns what tells a reader that the replay is over; may be empty."""

    def epilogue(self, retry_milliseconds: int) -> bytes:
        """Returns what ends a response before its stream has ended, and asks the client to reconnect; may be empty."""


class SseFace:
    """The base of all faces over Server-Sent Events.

    `id:` is an event's last line: some clients remember the id as soon as its line has come, also if the connection is then
    lost before the event is complete (eventsource 2, fetch-event-source 2). So whoever has the id has the data.
    """

    name = "sse"
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


class FramingFace(SseFace, ABC):
    """A face that frames all that it sends at a time as one. Its encoder returns bare messages, and `End` for a terminal event."""

    media_type = b"text/event-stream"

    @abstractmethod
    def encoder(self, stream_id: str) -> Encoder: ...

    def prelude(self, retry_milliseconds: int) -> bytes:
        return b""

    def epilogue(self, retry_milliseconds: int) -> bytes:
        return b""

    @abstractmethod
    def frame(self, pieces: Sequence[bytes], reached: EventId, *, is_newest: bool) -> bytes:
        """Returns these pieces as they are sent. `reached`: the newest message that the reader then has. `is_newest`: the
        log has no newer one. Without pieces the place is all there is to say."""


class End(bytes):
    """The piece of a terminal event, for a face that frames: the message that shows it, which may be empty."""

    outcome: str
    """How the stream has ended: the name of the terminal event."""

    @classmethod
    def of(cls, event: Event, message: bytes = b"") -> End:
        end = cls(message)
        end.outcome = event.field.decode()
        return end


def encode(encoder: Encoder, event: Event) -> bytes:
    """Encodes any event."""
    return encoder.token(b"%d-%d" % event.id, event.value) if event.field == events.TOKEN else encoder.other(event)


def on_one_line(json: bytes) -> bytes:
    """Escapes U+0085, U+2028 and U+2029 in JSON: Python's `str.splitlines`, and so httpx and requests, take them for line ends."""
    if not json.isascii():
        for encoded, escaped in _LINE_ENDS:
            json = json.replace(encoded, escaped)
    return json


_LINE_ENDS = [(character.encode(), b"\\u%04x" % ord(character)) for character in "\u0085\u2028\u2029"]


def json_text(text: bytes) -> bytes:
    """Returns a text, given in UTF-8, as JSON on one line. Raises UnicodeDecodeError."""
    decoded = text.decode()
    json = orjson.dumps(decoded)
    if decoded.isascii() or not ("\u2028" in decoded or "\u2029" in decoded or "\u0085" in decoded):
        return json  # three searches cost a tenth of three replacements
    return on_one_line(json)


def json_strings(texts: Sequence[bytes]) -> list[bytes]:
    """Returns each text, given in UTF-8, as JSON on one line has it between the quotes.

    A call for each would cost ten times as much.
    """
    encoded = json_text(_BETWEEN.join(texts))[1:-1].split(_BETWEEN_IN_JSON)
    if len(encoded) == len(texts):
        return encoded
    return [json_text(text)[1:-1] for text in texts]  # one of them contains the separator


_BETWEEN, _BETWEEN_IN_JSON = b"\x1f", b"\\u001f"


def gap_event(requested: EventId, first: EventId) -> Event:
    """Returns the pseudo-event that stands for what is missing before `first`."""
    missing = orjson.dumps({"requested": str(requested), "first_available": str(first)})
    return Event(EventId(first.attempt, first.offset - 1), GAP, missing)


class NativeFace(SseFace, Encoder):
    """`GET /v1/streams/{id}/events` (docs/reference/http.md): a token is an unnamed event; a control event and an own
    event are named."""

    def encoder(self, stream_id: str) -> Encoder:
        return self  # it needs to know no more than the event

    def live(self, offset: int) -> bytes:
        return b'event: live\ndata: {"offset":%d}\n\n' % offset

    def token(self, event_id: bytes, value: bytes) -> bytes:
        text = value.decode()  # plain text does without the call of `json_text`: there is one of these for each token
        return b'data: {"token":%b}\nid: %b\n\n' % (
            orjson.dumps(text) if text.isascii() else json_text(value),
            event_id,
        )

    def tokens(self, event_ids: Sequence[bytes], values: Sequence[bytes]) -> list[bytes]:
        return [
            b'data: {"token":"%b"}\nid: %b\n\n' % pair for pair in zip(json_strings(values), event_ids, strict=True)
        ]

    def other(self, event: Event) -> bytes:
        (attempt, offset), field, value = without_tombstone(event)
        if field == events.DELTA:
            return b"data: %b\nid: %d-%d\n\n" % (on_one_line(value), attempt, offset)
        if field == events.OWN:
            name, data = name_and_data(value)
            return b"event: %b\ndata: %b\nid: %d-%d\n\n" % (name, on_one_line(data), attempt, offset)
        if field in events.MESSAGES:
            name, data = message_shown(field, value)
            return b"%bdata: %b\nid: %d-%d\n\n" % (b"event: %b\n" % name if name else b"", data, attempt, offset)
        if field == GAP:
            return b"event: gap\ndata: %b\n\n" % value
        if field == events.ACCEPTED:
            return b""
        return b"event: %b\ndata: %b\nid: %d-%d\n\n" % (field, shown(field, value), attempt, offset)


def message_shown(field: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Returns a message of a written stream as an event: its name (empty: unnamed), and its data on one line.

    JSON is unnamed, and stands as it is. A text is `text`, a JSON string; other bytes are `bytes`, base64 in a JSON string.
    """
    if field == events.JSON:
        return b"", on_one_line(value)
    try:
        return b"text", json_text(value)
    except UnicodeDecodeError:
        return b"bytes", b'"%b"' % b64encode(value)


class NdjsonFace(Encoder):
    """Events as lines of JSON: `id` (null where there is none), `event` ("message" for a token), `data`.

    The keep-alive is a space. It becomes part of the next line, where JSON allows it. An empty line, the other custom,
    breaks readers that parse whatever stands between two line feeds (cradle#106, ndjson-cli#9).
    """

    name = "ndjson"
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
        return b'{"id":"%b","event":"message","data":{"token":%b}}\n' % (event_id, json_text(value))

    def other(self, event: Event) -> bytes:
        line = event_object(event)
        return line + b"\n" if line else b""


def event_object(event: Event) -> bytes:
    """Returns an event that is no token as a JSON object; empty for an event that readers do not get."""
    (attempt, offset), field, value = without_tombstone(event)
    if field == events.DELTA:
        return b'{"id":"%d-%d","event":"message","data":%b}' % (attempt, offset, on_one_line(value))
    if field == events.OWN:
        name, data = name_and_data(value)
        return b'{"id":"%d-%d","event":"%b","data":%b}' % (attempt, offset, name, on_one_line(data))
    if field in events.MESSAGES:
        name, data = message_shown(field, value)
        return b'{"id":"%d-%d","event":"%b","data":%b}' % (attempt, offset, name or b"message", data)
    if field == GAP:
        return b'{"id":null,"event":"gap","data":%b}' % value
    if field == events.ACCEPTED:
        return b""
    return b'{"id":"%d-%d","event":"%b","data":%b}' % (attempt, offset, field, shown(field, value))


def live_object(offset: int) -> bytes:
    """Returns the object that tells a reader that the replay is over."""
    return b'{"id":null,"event":"live","data":{"offset":%d}}' % offset


def retry_object(retry_milliseconds: int) -> bytes:
    """Returns the last object of a response that ends before its stream: what the line `retry:` is for SSE."""
    return b'{"id":null,"event":"retry","data":{"milliseconds":%d}}' % retry_milliseconds


class PromptFace(SseFace):
    """`GET /stream?prompt=` (docs/reference/http.md): tokens, then `[DONE]`. Ids name the stream, since the URL does not.

    Control events are named, so a page that has only `onmessage` does not see them: `restarted`, `failed`, `cancelled`, and
    `done` where the answer was cut off.
    """

    name = "prompt"

    def encoder(self, stream_id: str) -> Encoder:
        return _PromptEncoder(stream_id.encode())


class _PromptEncoder(Encoder):
    def __init__(self, name: bytes) -> None:
        self._name = name

    def token(self, event_id: bytes, value: bytes) -> bytes:
        return b'data: {"token":%b}\nid: %b/%b\n\n' % (json_text(value), self._name, event_id)

    def other(self, event: Event) -> bytes:
        (attempt, offset), field, value = without_tombstone(event)
        event_id = b"id: %b/%d-%d\n\n" % (self._name, attempt, offset)
        if field == events.DELTA:
            return b"data: %b\n%b" % (on_one_line(value), event_id)
        if field == events.OWN:
            name, data = name_and_data(value)
            return b"event: %b\ndata: %b\n%b" % (name, on_one_line(data), event_id)
        if field == GAP:
            return b"event: gap\ndata: %b\n\n" % value
        if field == events.RESTARTED:
            return b"event: restarted\ndata: %b\n%b" % (shown(field, value), event_id)
        if field in events.TERMINAL:
            named = b""
            if field != events.DONE or orjson.loads(value)["finish_reason"] == "length":
                named = b"event: %b\ndata: %b\n\n" % (field, shown(field, value))
            return b"%bdata: [DONE]\n%b" % (named, event_id)
        return b""


_SHOWN: dict[bytes, tuple[str, ...]] = {
    events.STARTED: ("attempt", "model"),
    events.RESTARTED: ("attempt", "base", "reason"),
    events.FAILED: ("code", "message", "retryable"),
    events.CANCELLED: ("by",),
}


def shown(field: bytes, value: bytes) -> bytes:
    """Returns the data of a named event, on one line: the part of the stored value that readers get."""
    stored = orjson.loads(value)
    if field == events.DONE:
        return done_data(stored)
    return on_one_line(orjson.dumps({key: stored[key] for key in _SHOWN[field]}))


def done_data(stored: dict[str, Any]) -> bytes:
    """Returns the data of `done`; `truncated` says that the answer was cut off at its maximum length."""
    reason = stored["finish_reason"]
    done = {"finish_reason": reason, "truncated": reason == "length", "usage": stored["usage"]}
    return on_one_line(orjson.dumps({**done, **events.native_finish_reason(stored)}))


def without_tombstone(event: Event) -> Event:
    """Returns `cancelled` for a tombstone, any other event as it is: readers see a deletion as a cancel."""
    return Event(event.id, events.CANCELLED, b'{"by":"client"}') if event.field == events.DELETED else event


NATIVE: Face = NativeFace()
PROMPT: Face = PromptFace()
NDJSON: Face = NdjsonFace()
