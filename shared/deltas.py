"""The shape of a delta: what readers of a `d` entry, and of an object in a `b` entry, may rely on.

Workers of other versions, other writers and damaged logs can leave other values there. Fields that do not have the documented
shape are left out here, so that no API of the gateway has to expect them.

`producer.chunk_shapes` checks more, for another purpose: it repairs what a provider sends before it is stored (texts become
numbers, objects are changed in place), and reports each repair. Here nearly every entry must pass unchanged, as the bytes that
it is, at the price of one JSON parse; so the two share no code.

| field | shape |
|---|---|
| `delta` | an object; `tool_calls` in it a list of objects, each with `index` (0 or more), `id`, `function` (`name`, `arguments`: texts) or without |
| `index` | which choice: 0 or more |
| `logprobs` | an object; `content` and `refusal` in it lists of objects |
| `finish_reason` | a text |
| anything else | as it is |
"""

from __future__ import annotations

from typing import Any

import orjson

from shared.errors import Unreadable

EMPTY_DELTA = b'{"delta":{}}'
"""An empty delta: it counts as an increment, in place of one that cannot be shown."""
NESTED_MAX = 200
"""Levels of objects and lists: orjson reads 1024 but writes only 254, and APIs put a delta into objects of their own."""
_INDEX_MAX = 1_000_000
"""Far more choices, and more tool calls, than any answer has."""
_MARGIN_LEVELS = 54
"""What orjson writes above NESTED_MAX: levels for the objects of an API around a delta."""


def checked_delta(value: bytes) -> bytes:
    """Returns the value of a `d` entry as readers get it: one line of JSON. Raises Unreadable if it is no JSON object."""
    stored = loaded(value)
    if type(stored) is not dict:
        raise Unreadable("a delta is not a JSON object")
    if b"\n" in value or b"\r" in value or not _is_documented(stored):
        return delta_of(stored)
    if len(value) > NESTED_MAX and value.count(b"{") + value.count(b"[") > NESTED_MAX and too_deep(stored):
        return delta_of(stored)
    return value


def delta_of(stored: dict[str, Any]) -> bytes:
    """Returns a delta as readers get it, from the JSON object in the log."""
    tidy = stored if _is_documented(stored) else _tidied(stored)
    if not too_deep(tidy):
        return orjson.dumps(tidy)
    delta: dict[str, Any] = tidy["delta"]
    texts = {name: value for name, value in delta.items() if isinstance(value, str)}
    index = {"index": tidy["index"]} if "index" in tidy else {}
    return orjson.dumps({"delta": texts, **index})


def loaded(value: bytes) -> Any:
    """Returns the value of this JSON. Raises Unreadable."""
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise Unreadable("a value is not JSON") from None


def too_deep(value: Any) -> bool:
    """Returns whether a value that was read is nested too deeply to be written within other objects."""
    for _ in range(_MARGIN_LEVELS):
        value = [value]
    return not writable(value)


def writable(value: Any) -> bool:
    """Returns whether a value that was read can be written again: whether it has not too many levels."""
    try:
        orjson.dumps(value)
    except TypeError:  # JSONEncodeError is one
        return False
    return True


def _is_documented(stored: dict[str, Any]) -> bool:
    delta = stored.get("delta")
    if type(delta) is not dict:
        return False
    if len(stored) == 1 and "tool_calls" not in delta:  # as nearly all
        return True
    return _tidied(stored) == stored


def _tidied(stored: dict[str, Any]) -> dict[str, Any]:
    """Returns a delta's object without the fields that do not have their documented shape."""
    tidy = dict(stored)
    delta = stored.get("delta")
    tidy["delta"] = _tidied_delta(delta) if isinstance(delta, dict) else {}
    _keep_if(tidy, "index", _is_index)
    _keep_if(tidy, "finish_reason", _is_text)
    _keep_if(tidy, "logprobs", _is_object)
    if tidy.get("logprobs"):
        logprobs = tidy["logprobs"] = dict(tidy["logprobs"])
        for name in ("content", "refusal"):
            _keep_if(logprobs, name, _is_list)
            if logprobs.get(name):
                logprobs[name] = [token for token in logprobs[name] if isinstance(token, dict)]
    return tidy


def _tidied_delta(delta: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in delta:
        return delta
    tidy = dict(delta)
    _keep_if(tidy, "tool_calls", _is_list)
    if tidy.get("tool_calls"):
        tidy["tool_calls"] = [_tidied_call(call) for call in tidy["tool_calls"] if isinstance(call, dict)]
    return tidy


def _tidied_call(call: dict[str, Any]) -> dict[str, Any]:
    tidy = dict(call)
    _keep_if(tidy, "index", _is_index)
    _keep_if(tidy, "id", _is_text)
    _keep_if(tidy, "function", _is_object)
    if tidy.get("function"):
        function = tidy["function"] = dict(tidy["function"])
        _keep_if(function, "name", _is_text)
        if isinstance(function.get("arguments"), dict | list) and not too_deep(function["arguments"]):
            function["arguments"] = orjson.dumps(function["arguments"]).decode()
        _keep_if(function, "arguments", _is_text)
    return tidy


def _keep_if(fields: dict[str, Any], name: str, fits: Any) -> None:
    if fields.get(name) is not None and not fits(fields[name]):
        del fields[name]


def _is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _INDEX_MAX


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)
