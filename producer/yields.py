"""What a generator of the user's own may yield and raise beside texts and own events. Users import it as `midstream.generator`.

| yield | |
|---|---|
| a `str` | a token |
| `{"event": name, "data": …}` | an own event |
| `Delta({…})` | a delta as the Chat Completions API has it: a tool call, reasoning, a refusal |
| `Progress()` | nothing for readers: the generator works, and is not to be taken for stalled |
| `Finish(reason, usage)` | how the answer ends, once the generator has; without it: `stop`, and no usage |

| raise | |
|---|---|
| `TryLater(message)` | an error that passes: called again before the first token, later as `on_interrupt` says |
| `Never(message)` | an error that stays: the stream fails with this message |
"""

from __future__ import annotations

import math
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import orjson

from producer import chunk_shapes as shapes
from producer.chunk_shapes import clean, fitting
from producer.finish import FinishReason, finish_reason_of
from producer.provider import Finish, Refused, SoFar, Unavailable
from shared.events import Item
from shared.own_events import own_event

__all__ = ("Delta", "Finish", "Never", "Progress", "SoFar", "TryLater", "stop_requested")

_TEXT_CHARACTERS_MAX = 1 << 20
"""Of one yielded text or delta: a token is a few characters, and an entry of a log goes to all readers at once."""
_MESSAGE_CHARACTERS_MAX = 500
"""Of an error: it is stored with the stream, and shown to its readers."""

stop_flag: ContextVar[threading.Event | None] = ContextVar("stop_flag", default=None)
"""Set in the thread of a generator that is not async, when it is to stop."""


def stop_requested() -> bool:
    """Returns whether a generator that is not async should stop: its stream was cancelled, or its last reader has gone.

    Such a generator is only stopped where it yields. One that computes for long between two yields should call this.
    """
    flag = stop_flag.get()
    return flag is not None and flag.is_set()


@dataclass(frozen=True, slots=True)
class Delta:
    """An increment that is more than text, in the form of the Chat Completions API: `Delta({"reasoning_content": "Hm."})`,
    `Delta({"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "look", "arguments": "{}"}}]})`."""

    delta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """A sign of life: it keeps a generator that is silent for long from counting as stalled."""


class TryLater(Unavailable):
    """An error that may pass, such as an overload. `after_seconds`: when to try again; without it after a growing pause."""

    def __init__(self, message: str, after_seconds: float | None = None) -> None:
        if after_seconds is not None and not 0 <= after_seconds < math.inf:
            raise ValueError(f"after_seconds must be a time in seconds, not {after_seconds}")
        super().__init__(str(message)[:_MESSAGE_CHARACTERS_MAX], retry_after_seconds=after_seconds)


class Never(Refused):
    """An error that stays: trying again is of no use."""

    def __init__(self, message: str) -> None:
        super().__init__(str(message)[:_MESSAGE_CHARACTERS_MAX])


class NotYieldable(Exception):
    """What a generator has yielded cannot stand in a log; the message says why."""


def item_of(yielded: Any) -> Item | Progress | Finish | None:
    """Returns what a generator has yielded as an item of the log, unless it is none; None for an empty text.

    Raises NotYieldable.
    """
    if isinstance(yielded, str):
        if len(yielded) > _TEXT_CHARACTERS_MAX:
            raise NotYieldable(f"a text of {len(yielded)} characters; {_TEXT_CHARACTERS_MAX} are the most")
        return yielded if type(yielded) is str and yielded.isascii() and yielded else clean(str(yielded)) or None
    if isinstance(yielded, dict) and "event" in yielded:
        if yielded.keys() - {"event", "data"}:
            raise NotYieldable(f"an event may have `event` and `data` only, and not {sorted(map(str, yielded))}")
        try:
            return own_event(yielded["event"], yielded.get("data"))
        except ValueError as error:
            raise NotYieldable(str(error)) from None
    if isinstance(yielded, Delta):
        return _encoded(yielded)
    if isinstance(yielded, Progress):
        return yielded
    if isinstance(yielded, Finish):
        return _shaped(yielded)
    raise NotYieldable(
        f"a {type(yielded).__name__}, which is neither a text nor {{'event': name, 'data': …}}, nor of midstream.generator"
    )


def _encoded(delta: Delta) -> bytes:
    try:
        fields = orjson.loads(orjson.dumps(delta.delta))
    except TypeError as error:
        raise NotYieldable(f"a delta that cannot be written as JSON: {error}") from None
    if not isinstance(fields, dict) or not fields:
        raise NotYieldable("a delta that is no object, or an empty one")
    for name, value in fields.items():
        odd: list[str] = []
        shape = shapes.DELTA.get(name)
        if shape is not None and (shape(value, lambda: odd.append("")) is shapes.LEFT_OUT or odd):  # noqa: B023
            raise NotYieldable(f"a delta whose {name!r} has not the shape that the Chat Completions API gives it")
    encoded = orjson.dumps({"delta": shapes.storable(fields, lambda: None)})
    if len(encoded) > _TEXT_CHARACTERS_MAX:
        raise NotYieldable(f"a delta of {len(encoded)} bytes; {_TEXT_CHARACTERS_MAX} are the most")
    return encoded


def _shaped(finish: Finish) -> Finish:
    reason = (finish_reason_of(finish.reason) if isinstance(finish.reason, str) else None) or FinishReason.STOP
    if reason == FinishReason.ERROR:
        raise NotYieldable(f"a finish_reason of {finish.reason!r}: an answer that fails raises an exception")
    usage = finish.usage
    if usage is not None:
        shaped = shapes.usage(dict(usage) if isinstance(usage, dict) else usage, lambda: None)
        usage = None if shaped is shapes.LEFT_OUT else fitting(shaped, bytes_max=shapes.USAGE_BYTES_MAX)
    return Finish(reason, usage)
