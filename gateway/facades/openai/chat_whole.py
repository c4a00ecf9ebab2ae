"""Merges a stream's deltas into a whole chat completion, as OpenAI's own SDKs do."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.facades.openai.chat_chunks import choices_of, completion_id
from shared import events
from shared.ids import created_at
from shared.lifecycle import History

_NOT_IN_PIECES = frozenset({"id", "type", "role", "format", "expires_at", "index"})
"""Fields that do not arrive in pieces: a later value replaces the earlier one."""
_ENTRY_FIELDS = frozenset({"index", "delta", "logprobs", "finish_reason"})


def completion(stream_id: str, history: History) -> dict[str, Any]:
    """Returns the `chat.completion` object of a stream that is completed."""
    assert history.accepted is not None
    assert history.terminal is not None
    done, request = history.terminal, history.accepted.request
    provider = done.get("provider") or {}
    choices = {index: _Choice(index) for index in range(choices_of(request))}
    first = choices[0]
    for field, value in history.items:
        if field == events.TOKEN:
            first.texts.append(value.decode())
        elif field == events.DELTA:
            entry = orjson.loads(value)
            index = entry.get("index") or 0
            choices.setdefault(index, _Choice(index)).add(entry)
    first.finish_reason = done.get("finish_reason")
    first.more = done.get("choice") or {}
    return {
        **provider,
        "id": completion_id(stream_id),
        "object": "chat.completion",
        "created": int(created_at(stream_id)),
        "model": provider.get("model") or request.get("model") or "",
        "choices": [choices[index].whole() for index in sorted(choices)],
        "usage": done.get("usage"),
    }


class _Choice:
    def __init__(self, index: int) -> None:
        self.index = index
        self.texts: list[str] = []
        self.finish_reason: str | None = None
        self.more: dict[str, Any] = {}
        self._message: dict[str, Any] = {}
        self._logprobs: dict[str, Any] = {}

    def add(self, entry: dict[str, Any]) -> None:
        """Merges an entry with the field `d`."""
        delta = dict(entry.get("delta") or {})
        if isinstance(delta.get("content"), str):
            self.texts.append(delta.pop("content"))
        _merge(self._message, delta)
        _merge(self._logprobs, entry.get("logprobs") or {})
        if entry.get("finish_reason"):
            self.finish_reason = entry["finish_reason"]
            self.more |= {name: value for name, value in entry.items() if name not in _ENTRY_FIELDS}

    def whole(self) -> dict[str, Any]:
        text, merged = "".join(self.texts), _joined(self._message)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, **merged}
        # Without text `content` is null if there is anything else (calls, a refusal, audio), and "" if there is nothing.
        message["content"] = text or (merged.get("content") if merged else "")
        if isinstance(message.get("tool_calls"), list):
            message["tool_calls"] = [_without_index(call) for call in message["tool_calls"]]
        logprobs = {"content": None, "refusal": None, **_joined(self._logprobs)} if self._logprobs else None
        return {
            **self.more,
            "index": self.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }


class _Text:
    """A text that arrives in pieces. It is joined once: appending each piece to the text would cost quadratic time."""

    __slots__ = ("pieces",)

    def __init__(self, first: str) -> None:
        self.pieces = [first]


def _joined(merged: Any) -> Any:
    """Returns a merged value with each text joined."""
    if isinstance(merged, _Text):
        return "".join(merged.pieces)
    if isinstance(merged, dict):
        return {name: _joined(value) for name, value in merged.items()}
    return [_joined(element) for element in merged] if isinstance(merged, list) else merged


def _merge(into: dict[str, Any], delta: dict[str, Any]) -> None:
    """Merges a delta's fields into `into`: texts and lists are extended, elements of lists are matched by `index`."""
    for name, value in delta.items():
        known = into.get(name)
        if known is None:
            into[name] = [] if isinstance(value, list) else {} if isinstance(value, dict) else value
            known = into[name]
            if not isinstance(value, list | dict):
                continue
        if isinstance(known, str | _Text) and isinstance(value, str):
            # Some providers repeat a function's name with each piece of its arguments.
            if name in _NOT_IN_PIECES or (name == "name" and _joined(known) == value):
                into[name] = value
                continue
            if isinstance(known, str):
                known = into[name] = _Text(known)
            known.pieces.append(value)
        elif isinstance(known, dict) and isinstance(value, dict):
            _merge(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            _extend(known, value)
        elif value is not None:
            into[name] = value


def _extend(known: list[Any], pieces: list[Any]) -> None:
    for piece in pieces:
        index = piece.get("index") if isinstance(piece, dict) else None
        same = None if index is None else next((element for element in known if _index_of(element) == index), None)
        if same is not None:
            _merge(same, piece)
        elif index is not None:
            fresh: dict[str, Any] = {}
            _merge(fresh, piece)
            known.append(fresh)
        else:
            known.append(piece)


def _index_of(piece: Any) -> Any:
    return piece.get("index") if isinstance(piece, dict) else None


def _without_index(call: Any) -> Any:
    return {name: value for name, value in call.items() if name != "index"} if isinstance(call, dict) else call
