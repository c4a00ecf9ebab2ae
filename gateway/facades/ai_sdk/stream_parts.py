"""The AI SDK's UI message stream: parts that are opened, extended and closed (`uiMessageChunkSchema` of the package `ai`).

    accepted   start
    started    start-step
    token      text-start once, text-delta
    delta      reasoning-start/-delta/-end, text-*, tool-input-start/-delta
    own event  data-<name>; the open text or reasoning ends before it, so that the message's parts keep their order
    restarted  reset-step: the client drops the step's parts; those that the new attempt keeps are sent again
    done       text-end, tool-input-available or -error, finish-step, finish, [DONE]
    failed     text-end, error, finish-step, finish, [DONE]
    cancelled  text-end, abort, [DONE]

An event's bytes depend on which parts are open, so the face is stateful. All ids come from the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from gateway.faces import GAP, Encoder, SseFace, encode, json_text, on_one_line, without_tombstone
from shared import events
from shared.deltas import NESTED_MAX, too_deep
from shared.events import Accepted, Event
from shared.ids import BEGINNING
from shared.lifecycle import kept_tokens_of
from shared.own_events import name_and_data

_FINISH_REASONS = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content-filter",
    "tool_calls": "tool-calls",
    "function_call": "tool-calls",
}
_USAGE = {"prompt_tokens": "inputTokens", "completion_tokens": "outputTokens", "total_tokens": "totalTokens"}
_ABORTED = {
    "client": "stopped by the user",
    "disconnect": "every reader had left",
    "operator": "stopped by an operator",
}


@dataclass(frozen=True, slots=True)
class PartFraming:
    """What stands around each part, and behind the last one."""

    before: bytes
    after: bytes
    done: bytes


SSE_PARTS = PartFraming(b"data: ", b"\n\n", b"data: [DONE]\n\n")
LISTED_PARTS = PartFraming(b"", b",", b"")
"""Elements of a JSON array, each with a comma behind it."""


@dataclass(frozen=True)
class AiSdkFace(SseFace):
    """`POST /api/chat`, and with `replay` `GET /api/chat/{chatId}/stream` (docs/reference/http.md).

    They differ where the answer continues a message that has earlier steps. The client of the POST has those steps; a
    client that resumes empties the message at the first `start`, so that the steps are sent again.
    """

    replay: bool = False

    name = "ai_sdk"
    media_type = b"text/event-stream"
    stateful = True
    resumable = False
    """useChat does not resume with a cursor, and takes a body that ends early for a whole answer: it is cut off instead."""

    def encoder(self, stream_id: str) -> PartEncoder:
        return PartEncoder(stream_id, SSE_PARTS, replay=self.replay)

    def prelude(self, retry_milliseconds: int) -> bytes:
        return b""

    def epilogue(self, retry_milliseconds: int) -> bytes:
        return b""  # useChat ignores it


AI_SDK, AI_SDK_REPLAY = AiSdkFace(), AiSdkFace(replay=True)


def message_id_of(stream_id: str) -> str:
    """Returns the id of the message that a stream's answer becomes, unless it continues one that the client has."""
    return f"msg_{stream_id}"


@dataclass(slots=True)
class _Call:
    """A tool call as far as it has come. Nothing of it is sent before its name is known."""

    id: str
    name: str = ""
    arguments: str = ""


class PartEncoder(Encoder):
    """Encodes events as UI message parts. `replay`: with the steps that a continued message had before (`AiSdkFace`)."""

    def __init__(self, stream_id: str, framing: PartFraming, *, replay: bool) -> None:
        self._stream_id = stream_id
        self._framing = framing
        self._replay = replay
        self._in_step = False
        self._step_is_empty = True
        """Whether the client has nothing of this step: then no reset-step is sent, which is new in version 7."""
        self._kind = ""
        """The open part's kind: text, reasoning or none."""
        self._part = b""
        """The open part's id."""
        self._parts = self._calls_begun = 0
        self._text_delta = b""
        """The format of a token's part while a text part is open; else empty."""
        self._calls: dict[int, _Call] = {}
        self._increments: list[Event] | None = None
        """The increments so far, if a next attempt may keep some of them. Bounded as the log is."""

    def token(self, event_id: bytes, value: bytes) -> bytes:
        text = json_text(value)
        if self._increments is not None:
            self._increments.append(Event(BEGINNING, events.TOKEN, value))  # the id is not needed any more
        if self._text_delta:
            return self._text_delta % text
        opening = self._open("text")  # sets `_text_delta`
        return opening + self._text_delta % text

    def other(self, event: Event) -> bytes:
        _, field, value = without_tombstone(event)
        if field == events.DELTA:
            if self._increments is not None:
                self._increments.append(event)
            return self._delta(orjson.loads(value))
        if field == events.OWN:
            if self._increments is not None:
                self._increments.append(event)
            closing, self._step_is_empty = self._close(), False
            name, data = name_and_data(value)
            return closing + self._framed(b'{"type":"data-%b","data":%b}' % (name, on_one_line(data)))
        if field == events.ACCEPTED:
            return self._accepted(Accepted.load(value))
        if field == events.STARTED:
            self._in_step = True
            return self._chunk({"type": "start-step"})
        if field == events.RESTARTED:
            return self._restarted(kept_tokens_of(value))
        if field == GAP:
            return self._chunk({"type": "data-gap", "data": orjson.loads(value), "transient": True})
        if field in events.TERMINAL:
            return self._ended(field, orjson.loads(value))
        return b""

    def give_up(self, failed: Event) -> bytes:
        try:
            return self.other(failed)
        except Exception:  # the open parts cannot be encoded: the end without them
            payload = orjson.loads(failed.value)
            return b"".join(
                (
                    self._chunk({"type": "error", "errorText": payload["message"]}),
                    self._chunk({"type": "finish", "finishReason": "error"}),
                    self._framing.done,
                )
            )

    # --- the attempts

    def _accepted(self, accepted: Accepted) -> bytes:
        if accepted.policies.on_interrupt == "continue":
            self._increments = []
        message_id = accepted.facade.get("message") or message_id_of(self._stream_id)
        start = {"type": "start", "messageId": message_id, "messageMetadata": {"streamId": self._stream_id}}
        before = accepted.facade.get("before") if self._replay else None
        return b"".join(self._chunk(part) for part in (start, *(before if isinstance(before, list) else ())))

    def _restarted(self, base: int) -> bytes:
        increments = self._increments or []
        if base and base >= len(increments):
            return b""  # nothing is taken back: the open part continues
        again = b"" if self._in_step else self._chunk({"type": "start-step"})
        if not self._step_is_empty:
            again += self._chunk({"type": "reset-step"})
        self._in_step = self._step_is_empty = True
        self._kind, self._text_delta = "", b""
        self._calls = {}
        if self._increments is not None:
            self._increments = []
            again += b"".join(encode(self, event) for event in increments[:base])
        return again

    def _ended(self, field: bytes, payload: dict[str, Any]) -> bytes:
        pieces = [self._close()]
        if field == events.CANCELLED:
            return b"".join(
                (
                    *pieces,
                    self._chunk({"type": "abort", "reason": _ABORTED.get(payload["by"], payload["by"])}),
                    self._framing.done,
                )
            )
        finish: dict[str, Any] = {"type": "finish", "finishReason": "error"}
        if field == events.DONE:
            pieces += [self._complete(call) for call in self._calls.values()]
            finish["finishReason"] = _FINISH_REASONS.get(payload.get("finish_reason") or "", "other")
            usage = _usage(payload.get("usage"))
            if usage:
                finish["messageMetadata"] = {"usage": usage}
        else:
            pieces.append(self._chunk({"type": "error", "errorText": payload["message"]}))
        if self._in_step:
            pieces.append(self._chunk({"type": "finish-step"}))
        return b"".join((*pieces, self._chunk(finish), self._framing.done))

    # --- the parts

    def _open(self, kind: str) -> bytes:
        """Opens a part, unless one of this kind is open; returns the bytes for it."""
        if self._kind == kind:
            return b""
        closing = self._close()
        self._step_is_empty = False
        self._parts += 1
        self._kind, self._part = kind, f"{kind}-{self._parts}".encode()
        if kind == "text":
            self._text_delta = self._framed(b'{"type":"text-delta","id":"%b","delta":%%b}' % self._part)
        return closing + self._framed(b'{"type":"%b-start","id":"%b"}' % (kind.encode(), self._part))

    def _close(self) -> bytes:
        """Closes the open part, if there is one; returns the bytes for it."""
        kind, self._kind, self._text_delta = self._kind, "", b""
        return self._framed(b'{"type":"%b-end","id":"%b"}' % (kind.encode(), self._part)) if kind else b""

    def _delta(self, payload: dict[str, Any]) -> bytes:
        """Encodes a delta that is more than text. A message is one answer: other choices than the first are left out."""
        delta = payload.get("delta")
        if payload.get("index") or not isinstance(delta, dict):
            return b""
        pieces = []
        for kind, names in (
            ("reasoning", ("reasoning_content", "reasoning")),
            ("text", ("content",)),
            ("text", ("refusal",)),
        ):
            text = next((delta[name] for name in names if isinstance(delta.get(name), str)), "")
            if text:
                pieces.append(self._open(kind))
                pieces.append(self._chunk({"type": f"{kind}-delta", "id": self._part.decode(), "delta": text}))
        calls = delta.get("tool_calls")
        for position, piece in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(piece, dict) and isinstance(piece.get("function"), dict):
                pieces.append(self._call_piece(piece, piece["function"], position))
        return b"".join(pieces)

    def _chunk(self, part: dict[str, Any]) -> bytes:
        return self._framed(on_one_line(orjson.dumps(part)))

    def _framed(self, part: bytes) -> bytes:
        return b"%b%b%b" % (self._framing.before, part, self._framing.after)

    # --- tool calls

    def _call_piece(self, piece: dict[str, Any], function: dict[str, Any], position: int) -> bytes:
        """Encodes a piece of a call. Pieces of one call have one index (docs/reference/log-format.md)."""
        index = piece["index"] if isinstance(piece.get("index"), int) else position
        call, out = self._calls.get(index), b""
        if call is None:
            self._calls_begun += 1
            call = self._calls[index] = _Call(str(piece.get("id") or f"call_{self._stream_id}_{self._calls_begun}"))
        arguments = str(function.get("arguments") or "")
        call.arguments += arguments
        if not call.name:
            if not function.get("name"):
                return out
            call.name, arguments = str(function["name"]), call.arguments
            self._step_is_empty = False
            out += self._close()
            out += self._chunk({"type": "tool-input-start", "toolCallId": call.id, "toolName": call.name})
        if arguments:
            out += self._chunk({"type": "tool-input-delta", "toolCallId": call.id, "inputTextDelta": arguments})
        return out

    def _complete(self, call: _Call) -> bytes:
        """Encodes the whole input of a call; if it is cut off or not JSON, an error with the reason."""
        if not call.name:
            return b""
        call_fields = {"toolCallId": call.id, "toolName": call.name}
        try:
            arguments = orjson.loads(call.arguments) if call.arguments.strip() else {}
        except orjson.JSONDecodeError as error:
            wrong = f"the model's input for {call.name} is not complete JSON: {error}"
            return self._chunk({"type": "tool-input-error", **call_fields, "input": call.arguments, "errorText": wrong})
        if too_deep(arguments):
            wrong = f"the model's input for {call.name} is nested too deeply: {NESTED_MAX} levels are the most"
            return self._chunk({"type": "tool-input-error", **call_fields, "input": call.arguments, "errorText": wrong})
        return self._chunk({"type": "tool-input-available", **call_fields, "input": arguments})


def _usage(usage: Any) -> dict[str, int]:
    """Returns the provider's usage under the AI SDK's names."""
    if not isinstance(usage, dict):
        return {}
    return {name: usage[theirs] for theirs, name in _USAGE.items() if type(usage.get(theirs)) is int}
