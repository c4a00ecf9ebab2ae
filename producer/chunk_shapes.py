"""The shapes that the fields of a provider's chunk have, checked once: where the chunk is read.

Providers, proxies and local servers send values that no documentation mentions: a call that is null, arguments as an object, a
list as the log probabilities. Everything behind this module may rely on the shapes (docs/reference/log-format.md). A value of
another shape is made text if that keeps its meaning, else left out; `odd` is called for each. Null counts as absent. A field
without a shape here belongs to one provider and is kept as it is, if it can be stored.

A shape may change the object that it is given. The gateway's check of stored deltas is another: `shared.deltas` says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import orjson

from producer.tool_calls import CALLS_MAX

Odd = Callable[[], None]
Shape = Callable[[Any, Odd], Any]
"""Gives the value as it is kept, or LEFT_OUT."""

LEFT_OUT: Any = object()
CHOICES_MAX = 128
"""Of one answer: OpenAI's own bound of `n`."""
LEVELS_MAX = 32
"""How deep a stored value may be nested: three times as deep as any documented field, and far below the limits of JSON
libraries (orjson writes 254 levels)."""
FINISH_REASON_CHARACTERS_MAX = 64
ABOUT_BYTES_MAX = 16 << 10
"""Of the fields beside an answer's text, or of an error object, so much is kept."""
USAGE_BYTES_MAX = 4 << 10
"""Of a usage so much is kept: it stands in each receipt, and in that line of the process's log. Known ones have less than 1 KB."""
_ABOUT_FIELDS_MAX = 100
_PARTS_MAX = 1000
"""Of a content in parts, in one chunk."""
_CALL_INDEX_MAX = 1023
_NAME_CHARACTERS_MAX = 256
"""Of the name of a model, a fingerprint, a tier."""
_TOKENS_MAX = 1 << 53
"""The largest whole number that every JSON library reads exactly; counts go into metrics and traces, too."""


# --- what can be stored


def clean(text: str) -> str:
    """Returns text that can be encoded: half of a surrogate pair becomes the replacement character."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def storable(value: Any, odd: Odd, levels: int = LEVELS_MAX) -> Any:
    """Returns a copy that any JSON library can write and read: numbers beyond 64 bits, infinite ones and too deep values are null."""
    kind = type(value)
    if kind is str:
        return clean(value)
    if kind is dict and levels:
        return {clean(name): storable(it, odd, levels - 1) for name, it in value.items()}
    if kind is list and levels:
        return [storable(it, odd, levels - 1) for it in value]
    if value is None or kind is bool or (kind is int and -(1 << 63) <= value < 1 << 64):
        return value
    if kind is float and math.isfinite(value):
        return value
    odd()
    return None


def json_text(value: Any) -> str:
    """Returns a value's JSON as text; empty if it has none."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return ""


def fitting(
    fields: dict[str, Any], odd: Callable[[], None] = lambda: None, *, bytes_max: int = ABOUT_BYTES_MAX
) -> dict[str, Any]:
    """Returns the fields that can be stored, as many as fit into the limits."""
    room = bytes_max
    fitting: dict[str, Any] = {}
    for name, value in islice(fields.items(), _ABOUT_FIELDS_MAX):
        try:
            size = len(orjson.dumps({name: value}))
        except TypeError:  # half of a surrogate pair, or a number of more than 64 bits
            odd()
            continue
        if size > room:
            odd()
            continue
        room -= size
        fitting[name] = storable(value, odd)
    return fitting


# --- kinds of shapes


def text(value: Any, odd: Odd) -> Any:
    """A text; of a number its digits."""
    if type(value) is str:
        return value
    odd()
    return json_text(value) if type(value) in (int, float) else LEFT_OUT


def json_as_text(value: Any, odd: Odd) -> Any:
    """A text; whatever else there is, its JSON: some servers send a call's arguments as an object."""
    if type(value) is str:
        return value
    odd()
    return json_text(storable(value, odd))


def name(value: Any, odd: Odd) -> Any:
    """A short text."""
    if type(value) is str and len(value) <= _NAME_CHARACTERS_MAX:
        return value
    odd()
    return LEFT_OUT


def number(value: Any, odd: Odd) -> Any:
    if type(value) in (int, float):
        return value
    odd()
    return LEFT_OUT


def whole(most: int) -> Shape:
    """A whole number from 0 to `most`; also as decimal digits, as some servers send an index."""

    def shape(value: Any, odd: Odd) -> Any:
        if type(value) is int and 0 <= value <= most:
            return value
        odd()
        if type(value) is str and len(value) <= len(str(most)) and value.isascii() and value.isdecimal():
            return int(value) if int(value) <= most else LEFT_OUT
        return LEFT_OUT

    return shape


def object_of(fields: Mapping[str, Shape], *, keeps_null: bool = False) -> Shape:
    """An object with these fields, each of which may be absent, and any others."""

    def shape(value: Any, odd: Odd) -> Any:
        if type(value) is not dict:
            odd()
            return LEFT_OUT
        for field in fields.keys() & value.keys():
            part = value[field]
            if part is None:
                shaped = None if keeps_null else LEFT_OUT
            else:
                shaped = fields[field](part, odd)
            if shaped is LEFT_OUT:
                del value[field]
            else:
                value[field] = shaped
        return value

    return shape


def list_of(element: Shape) -> Shape:
    def shape(value: Any, odd: Odd) -> Any:
        if type(value) is not list:
            odd()
            return LEFT_OUT
        return [shaped for item in value if (shaped := element(item, odd)) is not LEFT_OUT]

    return shape


_any_object = object_of({})


# --- what has a shape of its own


def calls(value: Any, odd: Odd) -> Any:
    """Pieces of tool calls."""
    if type(value) is dict:
        odd()
        value = [value]
    if type(value) is list and len(value) > CALLS_MAX:
        odd()
        value = value[:CALLS_MAX]
    return list_of(_CALL)(value, odd)


def function(value: Any, odd: Odd) -> Any:
    """A function's name and arguments; of a text, the name."""
    if type(value) is str and value:
        odd()
        return {"name": value}
    return _FUNCTION(value, odd)


def texts_of_parts(value: Any, odd: Odd) -> dict[str, Any]:
    """Returns the fields of a delta that a content in parts stands for: `content`, `reasoning_content`, `refusal`, and the other
    parts as `content_parts`. Mistral, Anthropic and the Responses API have such parts."""
    fields: dict[str, Any] = {}
    for part in value[:_PARTS_MAX] if type(value) is list else [value]:
        if type(part) is str:
            part = {"type": "text", "text": part}
        if type(part) is not dict:
            odd()
            continue
        kind = part.get("type", "text")
        field = _PART_FIELDS.get(kind) if type(kind) is str else None
        content = None if field is None else _text_of_part(part, kind)
        if field is None:
            fields.setdefault("content_parts", []).append(part)
        elif content is None:
            odd()
        else:
            fields[field] = fields.get(field, "") + content
    return fields


def _text_of_part(part: dict[str, Any], kind: str, levels: int = 3) -> str | None:
    """Returns the text of a part: it stands under the part's own type, or as `text`, perhaps in parts of its own; None: it has none."""
    for name in (kind, "text", "summary", "content"):
        value = part.get(name)
        if type(value) is str:
            return value
        if type(value) is list and levels:
            below = [
                it if type(it) is str else _text_of_part(it, "text", levels - 1) if type(it) is dict else None
                for it in value[:_PARTS_MAX]
            ]
            return "".join(text for text in below if text is not None)
    return None


def usage(value: Any, odd: Odd) -> Any:
    """An object. What is named `..._tokens` is a count, what is named `..._tokens_details` an object of such."""
    counts = _counts(value, odd)
    for field in () if counts is LEFT_OUT else tuple(counts):
        if field.endswith("_tokens_details") and counts[field] is not None:
            details = _counts(counts[field], odd)
            if details is LEFT_OUT:
                del counts[field]
    return counts


def _counts(value: Any, odd: Odd) -> Any:
    if type(value) is not dict:
        odd()
        return LEFT_OUT
    for field, given in tuple(value.items()):
        if field.endswith("_tokens") and given is not None:
            count = _COUNT(given, odd)
            if count is LEFT_OUT:
                del value[field]
            else:
                value[field] = count
    return value


def word(value: Any, odd: Odd) -> str:
    """Returns a finish_reason as a short text, whatever the type of the value: what matters is that there is one. Empty: there is none."""
    if not value:
        return ""
    if type(value) is not str:
        odd()
        value = json_text(value) or "unknown"
    if len(value) > FINISH_REASON_CHARACTERS_MAX:
        odd()
        value = value[:FINISH_REASON_CHARACTERS_MAX]
    return clean(value)


# --- the table

_COUNT = whole(_TOKENS_MAX)
_FUNCTION = object_of({"name": text, "arguments": json_as_text})
_CALL = object_of(
    {
        "index": whole(_CALL_INDEX_MAX),
        "id": text,
        "type": text,
        "function": function,
        "custom": object_of({"name": text, "input": json_as_text}),
    }
)
_PART_FIELDS = {
    "text": "content",
    "output_text": "content",
    "thinking": "reasoning_content",
    "reasoning": "reasoning_content",
    "reasoning_text": "reasoning_content",
    "summary_text": "reasoning_content",
    "refusal": "refusal",
}
"""The field of a delta that the text of a content's part belongs to, by the part's type."""
_TOP = {"token": text, "logprob": number, "bytes": list_of(whole(255))}
_LOGPROB = object_of({**_TOP, "top_logprobs": list_of(object_of(_TOP, keeps_null=True))}, keeps_null=True)

DELTA: dict[str, Shape] = {
    "content": text,
    "refusal": text,
    "reasoning_content": text,
    "reasoning": text,
    "reasoning_details": list_of(_any_object),
    "tool_calls": calls,
    "function_call": function,
    "annotations": list_of(_any_object),
    "images": list_of(_any_object),
    "audio": object_of({"id": text, "data": text, "transcript": text, "expires_at": number}),
}
LOGPROBS = object_of({"content": list_of(_LOGPROB), "refusal": list_of(_LOGPROB)}, keeps_null=True)
INDEX = whole(CHOICES_MAX - 1)
CHUNK: dict[str, Shape] = {"model": name, "system_fingerprint": name, "service_tier": name}
"""Of a chunk's fields those that are kept beside the answer."""
