"""OpenAI's chat completion chunks: each event of the log becomes one chunk, `done` becomes two or three pieces.

| event | what a client gets |
|---|---|
| `started` | a chunk with the role, for all choices |
| token, delta | a chunk with that delta, as the provider sent it |
| `done` | the first choice's `finish_reason`; the usage, if it was requested; `[DONE]` |
| `failed`, `cancelled` | an `error` object, at which the SDKs raise an exception; then the body ends, without `[DONE]` |
| `restarted`, a gap | a chunk with an empty delta and the object `midstream` |

A chunk's id is the event's. The pieces of `done` have a third number, as in `1-58.1`, so that a client that was cut off
between them can resume there; `[DONE]` has the event's id alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.api.requests import CHAT_CHOICES_MAX
from gateway.facades.openai.errors import cancelled, failure
from gateway.faces import GAP, Encoder, SseFace, json_strings, json_text, on_one_line, shown, without_tombstone
from gateway.http.cursor import cursor_of
from gateway.http.problems import Problem
from shared import events
from shared.events import Accepted, Event, Policies
from shared.ids import EventId, created_at

_PREFIX = "chatcmpl-"
_DONE = b"[DONE]"
_PIECE = re.compile(r"(.*)\.([1-9])", re.ASCII)


@dataclass(frozen=True)
class ChatFace(SseFace):
    """The chunks of a `POST`: they are for an SDK, which does not resume by itself."""

    model: str
    choices: int = 1
    include_usage: bool = False
    tells_restarts: bool = False
    """False: a restart can only come before the first delta, so that the client has nothing to take back."""

    name = "chat"
    resumable = False

    def encoder(self, stream_id: str) -> ChatEncoder:
        return ChatEncoder(self, stream_id)


class ResumedChatFace(ChatFace):
    """The chunks of a `GET`: they are for a client that resumes with `Last-Event-ID`."""

    resumable = True


def chat_face(request: dict[str, Any], policies: Policies, include_usage: bool) -> ChatFace:
    """Returns the face for the client that sent this request."""
    return ChatFace(
        model=str(request.get("model") or ""),
        choices=choices_of(request),
        include_usage=include_usage,
        tells_restarts=policies.on_interrupt != "fail",
    )


def choices_of(request: dict[str, Any]) -> int:
    """Returns how many choices a Chat Completions request wants."""
    choices = request.get("n")
    return min(choices, CHAT_CHOICES_MAX) if type(choices) is int and choices > 0 else 1


def resumed_chat_face(accepted: Accepted | None) -> ChatFace:
    """Returns the face for a client that resumes, whichever API created the stream.

    The usage is left out only where a Chat Completions request did not ask for it. None: the log cannot be read.
    """
    if accepted is None:
        return ResumedChatFace("")
    include_usage = accepted.facade.get("include_usage", True) if accepted.facade.get("api") == "chat" else True
    first = chat_face(accepted.request, accepted.policies, bool(include_usage))
    return ResumedChatFace(first.model, first.choices, first.include_usage, first.tells_restarts)


def completion_id(stream_id: str) -> str:
    return _PREFIX + stream_id


def stream_id_of(name: str) -> str:
    """Returns a completion's or a stream's id without the prefix. It may not be a well-formed id."""
    return name.removeprefix(_PREFIX)


def chat_cursor(last_event_id: str) -> tuple[EventId | None, int]:
    """Returns the last event a client has, and how many pieces of it (0: all). Raises Problem 400."""
    piece = _PIECE.fullmatch(last_event_id)
    if piece is None:
        return cursor_of(last_event_id), 0
    cursor = cursor_of(piece[1])
    if cursor is None:
        raise Problem(
            400, f"{last_event_id[:64]!r} is not an event id: <attempt>-<offset>, as in 1-57", param="last_event_id"
        )
    return cursor, int(piece[2])


class ChatEncoder(Encoder):
    def __init__(self, face: ChatFace, stream_id: str) -> None:
        self._face = face
        self._common = {
            "id": completion_id(stream_id),
            "object": "chat.completion.chunk",
            "created": int(created_at(stream_id)),
            "model": face.model,
        }
        self._ours = {*self._common, "choices", "usage"}
        head = b"data: " + on_one_line(orjson.dumps(self._common))[:-1] + b',"choices":[{'
        self._text = head + b'"index":0,"delta":{"content":'
        self._text_end = b'},"logprobs":null,"finish_reason":null}]%b}\nid: ' % self._no_usage
        self._choice = head
        self._first = head + b'"index":0,"logprobs":null,"finish_reason":null,'
        self._choice_end = b"]%b}\nid: " % self._no_usage

    @property
    def _no_usage(self) -> bytes:
        return b',"usage":null' if self._face.include_usage else b""

    def token(self, event_id: bytes, value: bytes) -> bytes:
        return b"%b%b%b%b\n\n" % (self._text, json_text(value), self._text_end, event_id)

    def tokens(self, event_ids: Sequence[bytes], values: Sequence[bytes]) -> list[bytes]:
        piece = b'%b"%%b"%b%%b\n\n' % (self._text.replace(b"%", b"%%"), self._text_end.replace(b"%", b"%%"))
        return [piece % pair for pair in zip(json_strings(values), event_ids, strict=True)]

    def other(self, event: Event) -> bytes:
        (attempt, offset), field, value = event
        if field == events.DELTA:
            # A bare `{"delta":{…}}` of the first choice is copied unparsed: reasoning and calls come by the thousand, too.
            # Bare means that no field follows the object: `},"` does not occur (inside a text it would be `},\"`).
            if value.startswith(b'{"delta":{') and value.find(b'},"') < 0:  # `find` is twice as fast as `in`
                return b"%b%b%b%d-%d\n\n" % (self._first, on_one_line(value[1:]), self._choice_end, attempt, offset)
            return self._delta(event.id, value)
        event_id, field, value = without_tombstone(event)
        if field == events.DONE:
            return b"".join(self.end(event_id, orjson.loads(value)))
        if field == events.STARTED:
            role = {"role": "assistant", "content": ""}
            return self._chunk(b"%d-%d" % event_id, [_choice(index, role) for index in range(self._face.choices)])
        if field == events.FAILED:
            return _sse(b"%d-%d" % event_id, orjson.dumps({"error": failure(orjson.loads(value))}))
        if field == events.CANCELLED:
            return _sse(b"%d-%d" % event_id, orjson.dumps({"error": cancelled(orjson.loads(value)["by"])}))
        if field == GAP or (field == events.RESTARTED and self._face.tells_restarts):
            notice = orjson.loads(value if field == GAP else shown(field, value))
            # With an empty choice, since many clients read `choices[0]` of every chunk.
            return self._chunk(
                b"" if field == GAP else b"%d-%d" % event_id, [_choice(0, {})], {"midstream": {field.decode(): notice}}
            )
        return b""

    def end(self, event_id: EventId, done: dict[str, Any]) -> list[bytes]:
        """Returns the pieces of `done`, the last of them `[DONE]`."""
        provider = {name: field for name, field in (done.get("provider") or {}).items() if name not in self._ours}
        choice = {**(done.get("choice") or {}), **_choice(0, {}, done.get("finish_reason"))}
        pieces = [self._chunk(b"%d-%d.1" % event_id, [choice], provider)]
        if self._face.include_usage:
            pieces.append(self._chunk(b"%d-%d.2" % event_id, [], {**provider, "usage": done.get("usage")}))
        return [*pieces, _sse(b"%d-%d" % event_id, _DONE)]

    def _delta(self, event_id: EventId, value: bytes) -> bytes:
        stored = orjson.loads(value)
        choice = on_one_line(orjson.dumps({"index": 0, "delta": {}, "logprobs": None, "finish_reason": None} | stored))
        return b"%b%b%b%d-%d\n\n" % (self._choice, choice[1:], self._choice_end, *event_id)

    def _chunk(self, event_id: bytes, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
        usage = {"usage": None} if self._face.include_usage else {}
        return _sse(event_id, orjson.dumps({**self._common, "choices": choices, **usage, **(more or {})}))


def _choice(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _sse(event_id: bytes, data: bytes) -> bytes:
    data = on_one_line(data)
    return b"data: %b\nid: %b\n\n" % (data, event_id) if event_id else b"data: %b\n\n" % data
