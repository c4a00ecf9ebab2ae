"""The events that an external writer sends, checked: each becomes an increment of the log, or the stream's end.

| JSON object | becomes |
|---|---|
| `{"token": text}` | a token |
| `{"delta": {…}}`, perhaps with `index`, `logprobs`, `finish_reason` | a delta, as the Chat Completions API has it |
| `{"event": name, "data": …}` | an own event |
| `{"end": "done"}`, perhaps with `finish_reason`, `usage` | the end |
| `{"end": "failed"}`, perhaps with `code`, `message`, `retryable` | the end |
| `{"end": "cancelled"}` | the end |

What a worker repairs because a provider sent it, a writer is told: a field of another shape is refused.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import orjson

from shared import events
from shared.deltas import delta_of, too_deep
from shared.events import Item
from shared.outcomes import CancelReason
from shared.own_events import own_event

EVENT_BYTES_MAX = 64 << 10
"""Of one event's JSON, as of a generator's: 64 of them may share an entry, which Redis sends to each gateway at once."""
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter")
_FAILURE_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_MESSAGE_CHARACTERS_MAX = 500
_TOKENS_MAX = 1 << 53
_SHOWN_CHARACTERS = 80
_FIELDS = {
    "token": {"token"},
    "delta": {"delta", "index", "logprobs", "finish_reason"},
    "event": {"event", "data"},
    "end": {"end", "finish_reason", "usage", "code", "message", "retryable"},
}
_ENDS = {"done": {"finish_reason", "usage"}, "failed": {"code", "message", "retryable"}, "cancelled": set[str]()}


class End(NamedTuple):
    """The end of a stream: the terminal entry's field, and its value without the time."""

    field: bytes
    value: dict[str, Any]


class WrongLine(ValueError):
    """An event is not one of those that a writer may send; the message says what is wrong."""


def event_of(line: Any) -> Item | End:
    """Returns the increment or the end that a parsed event stands for. Raises WrongLine."""
    if type(line) is not dict:
        raise WrongLine(f"an event must be a JSON object, not {_abridged(line)}")
    if len(line) == 1 and type(token := line.get("token")) is str:  # as nearly all
        if len(token) > EVENT_BYTES_MAX // 4 and len(token.encode()) > EVENT_BYTES_MAX:
            raise WrongLine(f"a token has more than {EVENT_BYTES_MAX} bytes")
        return token
    kinds = [kind for kind in _FIELDS if kind in line]
    if len(kinds) != 1:
        raise WrongLine(f"an event must have one of {', '.join(_FIELDS)}, not {_abridged(line)}")
    kind = kinds[0]
    unknown = sorted(set(line) - _FIELDS[kind])
    if unknown:
        raise WrongLine(
            f"{unknown[0][:64]!r} is not known in an event with {kind!r}; there are {_listed(_FIELDS[kind])}"
        )
    if kind == "token":
        raise WrongLine(f"token must be a text, not {_abridged(line['token'])}")
    if kind == "event":
        try:
            return own_event(line["event"], line.get("data"))
        except ValueError as error:
            raise WrongLine(str(error)) from None
    return _delta(line) if kind == "delta" else _end(line)


def _delta(line: dict[str, Any]) -> bytes:
    if type(line["delta"]) is not dict:
        raise WrongLine(f"delta must be an object, not {_abridged(line['delta'])}")
    value = delta_of(line)
    if orjson.loads(value) != line:
        raise WrongLine(
            f"the delta has a field of another shape than in Chat Completions, or too many levels: {_abridged(line)}"
        )
    if len(value) > EVENT_BYTES_MAX:
        raise WrongLine(f"a delta has {len(value)} bytes as JSON; {EVENT_BYTES_MAX} are the most")
    return value


def _end(line: dict[str, Any]) -> End:
    kind = line["end"]
    if kind not in _ENDS:
        raise WrongLine(f"end must be one of {', '.join(_ENDS)}, not {_abridged(kind)}")
    unknown = sorted(set(line) - _ENDS[kind] - {"end"})
    if unknown:
        raise WrongLine(f"{unknown[0]!r} does not belong to the end {kind!r}")
    if kind == "cancelled":
        return End(events.CANCELLED, {"by": CancelReason.WRITER})
    if kind == "failed":
        return End(events.FAILED, _failure(line))
    finish_reason, usage = line.get("finish_reason", "stop"), line.get("usage")
    if finish_reason not in FINISH_REASONS:
        raise WrongLine(f"finish_reason must be one of {', '.join(FINISH_REASONS)}, not {_abridged(finish_reason)}")
    if usage is not None and not _is_usage(usage):
        raise WrongLine(f"usage must be an object with whole numbers for its …_tokens, not {_abridged(usage)}")
    return End(events.DONE, {"finish_reason": finish_reason, "usage": usage})


def _failure(line: dict[str, Any]) -> dict[str, Any]:
    code, retryable = line.get("code", "writer_failed"), line.get("retryable", False)
    message = line.get("message", "the program that writes the answer has failed")
    if not isinstance(code, str) or not _FAILURE_CODE.fullmatch(code):
        raise WrongLine(f"code must be up to 64 small letters, digits and '_', not {_abridged(code)}")
    if not isinstance(message, str) or len(message) > _MESSAGE_CHARACTERS_MAX:
        raise WrongLine(f"message must be a text of at most {_MESSAGE_CHARACTERS_MAX} characters")
    if not isinstance(retryable, bool):
        raise WrongLine(f"retryable must be true or false, not {_abridged(retryable)}")
    return {"code": code, "message": message, "retryable": retryable}


def _is_usage(usage: Any) -> bool:
    if type(usage) is not dict or too_deep(usage) or len(orjson.dumps(usage)) > EVENT_BYTES_MAX:
        return False
    counts = [value for name, value in usage.items() if name.endswith("_tokens")]
    details = [value for name, value in usage.items() if name.endswith("_tokens_details")]
    return all(value is None or (type(value) is int and 0 <= value <= _TOKENS_MAX) for value in counts) and all(
        value is None or type(value) is dict for value in details
    )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _abridged(value: Any) -> str:
    try:
        shown = orjson.dumps(value).decode()
    except TypeError:
        return "a value that is nested too deeply"
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[: _SHOWN_CHARACTERS - 3] + "..."
