"""How a stream looks to a reader of the Durable Streams protocol: bare messages, joined as its content type wants it.

A written stream's messages are the application's own bytes. A generated answer is read as a stream of JSON: each event is
the object that readers of lines get (`gateway.faces.NdjsonFace`), the last of them its end. With `?as=ui` each message is a
part of the AI SDK's UI message stream instead.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import orjson

from gateway.facades.ai_sdk.stream_parts import LISTED_PARTS, PartEncoder
from gateway.facades.durable.headers import Shape
from gateway.facades.durable.offsets import cursor_now, offset_of
from gateway.faces import NDJSON, Encoder, End, FramingFace, event_object
from gateway.http.problems import Problem
from shared import events
from shared.events import Event
from shared.ids import EventId
from shared.written_log import WrittenStream

_LINE_END = re.compile(rb"\r\n|\r|\n")


class Form(Enum):
    """How messages are joined, and shown in Server-Sent Events."""

    JSON = "json"
    TEXT = "text"
    BYTES = "bytes"
    GENERATED = "generated"


def form_of(stream: WrittenStream | None) -> Form:
    """Returns the form of a written stream; None: of an answer that a worker writes."""
    if stream is None:
        return Form.GENERATED
    if stream.is_json:
        return Form.JSON
    return Form.TEXT if stream.media_type.startswith("text/") else Form.BYTES


def face_of(stream: WrittenStream | None, shape: Shape, cursor_floor: int = 0) -> DurableFace:
    """Returns the face of a written stream (None: of a generated answer), whose messages have this shape. Raises Problem 400."""
    if not shape:
        return DurableFace(form_of(stream), cursor_floor)
    if stream is not None:
        raise Problem(400, "as=ui is for generated answers: a written stream has the messages that its writer gave it")
    return UiFace(Form.GENERATED, cursor_floor, replay=shape == "ui-replay")


def joined(form: Form, messages: Sequence[bytes]) -> bytes:
    """Returns messages as one body: a JSON array, or one behind the other."""
    if form in (Form.JSON, Form.GENERATED):
        return b"[%b]" % b",".join(messages)
    return b"".join(messages)


@dataclass(frozen=True, slots=True)
class DurableFace(FramingFace):
    """A stream as Server-Sent Events (section 5.7): each time one `data` event with all that is new, and one `control` event.

    Only one of them in each pair tells that the reader is up to date, and only where that is so: clients stop there.
    """

    form: Form
    cursor_floor: int = 0
    """The least cursor that may be sent."""

    name = "durable"

    def encoder(self, stream_id: str) -> Encoder:
        return EventEncoder() if self.form is Form.GENERATED else MessageEncoder()

    def frame(self, pieces: Sequence[bytes], reached: EventId, *, is_newest: bool) -> bytes:
        messages = [piece for piece in pieces if piece]
        control: dict[str, str | bool] = {"streamNextOffset": offset_of(reached)}
        if pieces and isinstance(pieces[-1], End):
            control |= {"streamClosed": True, "streamOutcome": pieces[-1].outcome}
        else:
            control["streamCursor"] = cursor_now(self.cursor_floor)
            if is_newest:
                control["upToDate"] = True
        data = b"event: data\n%b\n" % self._data(messages) if messages else b""
        return b"%bevent: control\ndata:%b\n\n" % (data, orjson.dumps(control))

    def _data(self, messages: list[bytes]) -> bytes:
        """Returns the lines with the data of one event."""
        if self.form is Form.BYTES:
            return b"data:%b\n" % b64encode(b"".join(messages))
        if self.form is not Form.TEXT:
            return b"data:%b\n" % joined(self.form, messages)  # no message of JSON has a line end
        # Half a character at the end of an append cannot be shown: events are text in UTF-8.
        text = b"".join(messages).decode(errors="replace").encode()
        # A space at a line's beginning would be taken for the one that may follow the colon.
        return b"".join(
            b"data:%b%b\n" % (b" " if line.startswith(b" ") else b"", line) for line in _LINE_END.split(text)
        )


@dataclass(frozen=True, slots=True)
class UiFace(DurableFace):
    """A generated answer as UI message parts. `replay`: with the steps that a continued message had before (`AiSdkFace`)."""

    replay: bool = False

    stateful = True

    def encoder(self, stream_id: str) -> Encoder:
        return UiEncoder(stream_id, replay=self.replay)


class MessageEncoder(Encoder):
    """The bare messages of a written stream."""

    def token(self, event_id: bytes, value: bytes) -> bytes:
        return b""  # a worker's: no written stream has one

    def other(self, event: Event) -> bytes:
        if event.field in events.MESSAGES:
            return event.value
        return End.of(event) if event.field in events.TERMINAL else b""


class EventEncoder(Encoder):
    """The events of a generated answer, each a JSON object."""

    def token(self, event_id: bytes, value: bytes) -> bytes:
        return NDJSON.encoder("").token(event_id, value)[:-1]

    def other(self, event: Event) -> bytes:
        message = event_object(event)
        return End.of(event, message) if event.field in events.TERMINAL else message


class UiEncoder(Encoder):
    """The parts of a UI message: those of one event are several messages with commas in between."""

    def __init__(self, stream_id: str, *, replay: bool) -> None:
        self._parts = PartEncoder(stream_id, LISTED_PARTS, replay=replay)

    def token(self, event_id: bytes, value: bytes) -> bytes:
        return self._parts.token(event_id, value)[:-1]

    def other(self, event: Event) -> bytes:
        messages = self._parts.other(event)[:-1]
        return End.of(event, messages) if event.field in events.TERMINAL else messages

    def give_up(self, failed: Event) -> bytes:
        return End.of(failed, self._parts.give_up(failed)[:-1])
