"""A whole chat completion, put together from a stream's deltas as OpenAI's own SDKs do it."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.facades.openai.chat_chunks import choices_of, completion_id
from shared import events
from shared.ids import created_at
from shared.lifecycle import History

_SAID_ONCE = frozenset({"id", "type", "role", "format", "expires_at", "index"})
"""Of what comes in pieces, these fields are not: the newest stands, it is not added."""
_OF_AN_ENTRY = frozenset({"index", "delta", "logprobs", "finish_reason"})


def completion(stream_id: str, history: History) -> dict[str, Any]:
    """The `chat.completion` object of a stream that is done."""
    assert history.accepted is not None
    assert history.terminal is not None
    done, request = history.terminal, history.accepted.request
    provider = done.get("provider") or {}
    choices = {index: _Choice(index) for index in range(choices_of(request))}
    first = choices[0]
    for field, value in history.items:
        if field == events.TOKEN:
            first.texts.append(value.decode())
        else:
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
        self._said: dict[str, Any] = {}
        self._logprobs: dict[str, Any] = {}

    def add(self, entry: dict[str, Any]) -> None:
        """Take one `d` entry."""
        delta = dict(entry.get("delta") or {})
        if isinstance(delta.get("content"), str):
            self.texts.append(delta.pop("content"))
        _merge(self._said, delta)
        _merge(self._logprobs, entry.get("logprobs") or {})
        if entry.get("finish_reason"):
            self.finish_reason = entry["finish_reason"]
            self.more |= {name: value for name, value in entry.items() if name not in _OF_AN_ENTRY}

    def whole(self) -> dict[str, Any]:
        text, said = "".join(self.texts), _joined(self._said)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, **said}
        # Without a text its place is empty where it did something else: it called, refused, or spoke.
        message["content"] = text or (said.get("content") if said else "")
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
    """A text that comes in pieces: joined once, since adding each to all before it would take the square of their number."""

    __slots__ = ("pieces",)

    def __init__(self, first: str) -> None:
        self.pieces = [first]


def _joined(said: Any) -> Any:
    """The same with its texts in one piece."""
    if isinstance(said, _Text):
        return "".join(said.pieces)
    if isinstance(said, dict):
        return {name: _joined(value) for name, value in said.items()}
    return [_joined(one) for one in said] if isinstance(said, list) else said


def _merge(into: dict[str, Any], delta: dict[str, Any]) -> None:
    """Add a delta's fields to what was said before: texts and lists go on, pieces of a list find theirs by `index`."""
    for name, value in delta.items():
        known = into.get(name)
        if known is None:
            into[name] = [] if isinstance(value, list) else {} if isinstance(value, dict) else value
            known = into[name]
            if not isinstance(value, list | dict):
                continue
        if isinstance(known, str | _Text) and isinstance(value, str):
            # Some providers repeat a function's name with each piece of its arguments.
            if name in _SAID_ONCE or (name == "name" and _joined(known) == value):
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
        same = None if index is None else next((one for one in known if _index_of(one) == index), None)
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
