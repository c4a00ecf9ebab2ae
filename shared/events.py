"""The entries of a log, and how each is stored.

An entry is one field and its value: the field says what the value is. The kinds that come by the thousand have names of
one letter, because Redis stores a field's name again in every entry whose field differs from the first of its node.

| field | value |
|---|---|
| `accepted` | JSON: format, request, principal, policies, metadata, created_at, request_id; facade for an API other than the native one; traceparent if traces are on; beside if large fields of the request lie beside the log |
| `started`, `restarted` | JSON: attempt, model, worker, time; restarted also base, reason, perhaps last_heard_at |
| `t` | one token: its text, UTF-8 |
| `d` | one delta (an increment that is not plain text): the JSON object that readers get, with the provider's `delta` in it |
| `e` | one own event: the JSON object `{"event": name, "data": …}` (`shared.own_events`) |
| `b` | several of these in order: a JSON array, a token as a string, a delta or an own event as an object |
| `r` | one message of a written stream: its bytes (`shared.written_log`) |
| `j` | one or more messages of a written stream of JSON, each on a line |
| `done` | JSON: finish_reason, usage, time; provider, choice: other fields that the provider sent |
| `failed` | JSON: code, message, retryable, time; status, provider_error, retry_after if the provider sent them; perhaps last_heard_at |
| `cancelled` | JSON: by, time |
| `deleted` | a tombstone, which keeps a late write from bringing a deleted stream back. JSON: principal; or empty |

Every reader goes through `events_of` and `control_of`, which raise Unreadable for an entry of another format. The order of
the entries is checked by `shared.lifecycle`. An entry of an unknown kind counts as one increment with an empty delta.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from shared.deltas import EMPTY_DELTA, NESTED_MAX, checked_delta, delta_of, loaded, too_deep, writable
from shared.errors import Unreadable
from shared.ids import ID_PART_MAX, EventId
from shared.outcomes import FailureCode
from shared.own_events import OwnEvent, checked_own_event, is_own_event, loaded_own_event

ACCEPTED = b"accepted"
STARTED = b"started"
RESTARTED = b"restarted"
TOKEN = b"t"
DELTA = b"d"
OWN = b"e"
BATCH = b"b"
RAW = b"r"
JSON = b"j"
DONE = b"done"
FAILED = b"failed"
CANCELLED = b"cancelled"
DELETED = b"deleted"

TERMINAL = frozenset({DONE, FAILED, CANCELLED, DELETED})
COUNTED = frozenset({TOKEN, DELTA, OWN, BATCH, RAW, JSON})
MESSAGES = frozenset({RAW, JSON})
"""Messages of a written stream, of any content: faces of answers do not show them."""

FORMAT = 2
"""The newest format of a log that this version can continue: 1, or 2 with large fields of the request beside the log.

A log says which format a worker must know to continue it. Whoever only reads passes over what it does not know."""

UNREADABLE = b""
"""The field of an entry that does not have exactly one field and its value."""
TIME_MAX = 1e11
"""Unix seconds: the year 5138."""
_INTERRUPT_POLICIES = ("fail", "restart", "continue")

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, section 3.2."""

Item = str | bytes
"""One increment as a worker holds it: the text of a token, the JSON of a delta, or an `OwnEvent`."""


class Entry(NamedTuple):
    """One entry of the log, as stored."""

    id: EventId
    field: bytes
    value: bytes


class Event(NamedTuple):
    """One event as readers see it: an entry, or one item of a `b` entry under its own id."""

    id: EventId
    field: bytes
    value: bytes


def encode_items(items: list[Item]) -> tuple[bytes, bytes]:
    """Returns the field and the value of an entry that carries these items (one or more)."""
    if len(items) == 1:
        item = items[0]
        if isinstance(item, str):
            return TOKEN, item.encode()
        return (OWN, bytes(item)) if isinstance(item, OwnEvent) else (DELTA, item)
    return BATCH, orjson.dumps([item if isinstance(item, str) else orjson.Fragment(bytes(item)) for item in items])


def entry_of(event_id: bytes, fields: Sequence[bytes]) -> Entry:
    """Returns an entry from Redis's reply: its id, and its fields, each followed by its value. Nothing is checked."""
    field, value = fields if len(fields) == 2 else (UNREADABLE, b"")
    return Entry(EventId.of(event_id), field, value)


def events_of(entry: Entry) -> list[Event]:
    """Returns the events that an entry carries, in order; the entry's id is the id of the last. Optional fields that do not have
    their documented shape are left out of the values. Raises Unreadable."""
    event_id, field, value = entry
    if event_id[0] > ID_PART_MAX or event_id[1] > ID_PART_MAX:
        raise Unreadable("an id has more than 16 digits")
    if field == DELTA:
        return [Event(event_id, DELTA, checked_delta(value))]
    if field == TOKEN:
        check_text(value)
        return [Event(*entry)]
    if field == BATCH:
        return _events_of_batch(entry)
    if field == OWN:
        return [_own(event_id, loaded_own_event(value))]
    if field == JSON:
        return _messages(event_id, value.split(b"\n"))
    if field == RAW:
        return [Event(*entry)]
    if field in _CHECKS:
        stored = loaded(value)
        checked = _checked(field, stored)
        return [Event(event_id, field, value if checked == stored else orjson.dumps(checked))]
    if field in (ACCEPTED, DELETED):
        if field == ACCEPTED:
            Accepted.load(value)
        return [Event(*entry)]
    if field == UNREADABLE or not event_id.offset:
        raise Unreadable("an entry does not have exactly one known field")
    return [Event(event_id, DELTA, EMPTY_DELTA)]


def check_text(value: bytes) -> None:
    """Raises Unreadable if a token's text is not UTF-8."""
    try:
        value.decode()
    except UnicodeDecodeError:
        raise Unreadable("a text is not UTF-8") from None


def items_of(value: bytes) -> list[Any]:
    """Returns the items of a `b` entry: texts and objects. Raises Unreadable."""
    items = loaded(value)
    if type(items) is not list or not items:
        raise Unreadable("an entry of several increments is not a list of them")
    return items


def _events_of_batch(entry: Entry) -> list[Event]:
    items = items_of(entry.value)
    attempt, last = entry.id
    offset = last - len(items)
    if offset < 0:
        raise Unreadable("an entry has more increments than its offset allows")
    events = []
    for item in items:
        offset += 1
        if type(item) is str:
            events.append(Event(EventId(attempt, offset), TOKEN, item.encode()))
        elif type(item) is dict:
            event_id = EventId(attempt, offset)
            own = is_own_event(item)
            events.append(_own(event_id, checked_own_event(item)) if own else Event(event_id, DELTA, delta_of(item)))
        else:
            raise Unreadable("an increment is neither a text nor a JSON object")
    return events


def _messages(last: EventId, lines: list[bytes]) -> list[Event]:
    """Returns JSON messages, of which the last has this id. What is not JSON is not shown: it is an empty delta."""
    attempt, offset = last.attempt, last.offset - len(lines)
    if offset < 0:
        raise Unreadable("an entry has more messages than its offset allows")
    events = []
    for line in lines:
        offset += 1
        event_id = EventId(attempt, offset)
        events.append(Event(event_id, JSON, line) if is_json(line) else Event(event_id, DELTA, EMPTY_DELTA))
    return events


def is_json(text: bytes) -> bool:
    """Returns whether a text is JSON in UTF-8."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _own(event_id: EventId, checked: bytes) -> Event:
    """Returns the event of an own event that has been checked; an empty delta where it cannot be shown."""
    return Event(event_id, DELTA if checked == EMPTY_DELTA else OWN, checked)


def control_of(field: bytes, value: bytes) -> dict[str, Any]:
    """Returns the fields in the value of `started`, `restarted` or a terminal event. Raises Unreadable."""
    return {} if field == DELETED else _checked(field, loaded(value))


def _checked(field: bytes, stored: Any) -> dict[str, Any]:
    """Returns the value without optional fields of another shape. Raises Unreadable if a required one is missing or wrong."""
    name = field.decode()
    if not isinstance(stored, dict):
        raise Unreadable(f"the value of `{name}` is not a JSON object")
    for key, fits in _CHECKS[field].items():
        if key not in stored or not fits(stored[key]):
            raise Unreadable(f"`{key}` of `{name}` is missing or of the wrong type")
    checked = {
        key: value for key, value in stored.items() if key not in _OPTIONAL or value is None or _OPTIONAL[key](value)
    }
    if field == DONE:
        checked = {"finish_reason": None, "usage": None, **checked}
    return checked


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= ID_PART_MAX


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= TIME_MAX


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_shallow_object(value: Any) -> bool:
    return isinstance(value, dict) and not too_deep(value)


def _is_anything(value: Any) -> bool:
    return True


_ATTEMPT = {"attempt": _is_count, "model": _is_text_or_null, "time": _is_number}
_CHECKS: dict[bytes, dict[str, Any]] = {
    STARTED: _ATTEMPT,
    RESTARTED: {**_ATTEMPT, "base": _is_count, "reason": _is_text},
    DONE: {"finish_reason": _is_anything, "usage": _is_anything},
    FAILED: {"code": _is_text, "message": _is_text, "retryable": lambda value: isinstance(value, bool)},
    CANCELLED: {"by": _is_text},
}
"""The required fields of the entries whose value is a JSON object."""
_OPTIONAL: dict[str, Any] = {
    "base": _is_count,
    "worker": _is_text,
    "time": _is_number,
    "finish_reason": _is_text,
    "usage": _is_shallow_object,
    "provider": _is_shallow_object,
    "choice": _is_shallow_object,
    "status": lambda value: type(value) is int,
    "provider_error": _is_shallow_object,
    "retry_after": _is_number,
    "last_heard_at": _is_number,
    "first_token_at": _is_number,
}
"""The optional fields, which are left out if they have another shape; most of them come from a provider."""


def native_finish_reason(done: dict[str, Any]) -> dict[str, str]:
    """Returns, of the value of a `done` event, the field with the provider's own finish_reason, where that is another word."""
    choice = done.get("choice")
    word = choice.get("native_finish_reason") if isinstance(choice, dict) else None
    return {"native_finish_reason": word} if isinstance(word, str) and word != done.get("finish_reason") else {}


def unreadable_failure(event_id: EventId, error: Unreadable) -> dict[str, Any]:
    """Returns the value of the `failed` event that stands for the entry with this id, the same for every reader."""
    at = f"{min(event_id.attempt, ID_PART_MAX)}-{min(event_id.offset, ID_PART_MAX)}"
    message = f"the stream's log cannot be read from {at} on: {error}"
    return {"code": FailureCode.UNREADABLE, "message": message, "retryable": False, "at": at}


def text_of(field: bytes, value: bytes) -> str:
    """Returns the text that an event adds to the answer's first choice: the token itself, or the content of a delta."""
    if field == TOKEN:
        return value.decode()
    if field == DELTA:
        delta = orjson.loads(value)
        content = (delta.get("delta") or {}).get("content")
        return content if isinstance(content, str) and not delta.get("index") else ""
    return ""


PACE_MS_MAX = 5_000
"""The longest pause between two entries that a request may ask for: a longer one looks as if the answer were broken off."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Who is told when a stream has ended."""

    url: str = dataclasses.field(repr=False)
    """Empty: nobody, also where there is a default. It may have a secret in its path or its query."""
    with_text: bool = False
    """Whether the answer's text is sent along."""
    signer: str = ""
    """The principal whose secret signs; empty for the secrets of the settings themselves."""

    def stored(self) -> dict[str, Any]:
        return {"url": self.url, "text": self.with_text, "signer": self.signer}

    @classmethod
    def load(cls, stored: Any) -> Webhook | None:
        """Returns what `stored` has made; None for anything else."""
        if not isinstance(stored, dict) or not isinstance(stored.get("url"), str) or not stored["url"]:
            return None
        signer = stored.get("signer", "")
        return cls(stored["url"], stored.get("text") is True, signer if isinstance(signer, str) else "")


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies of a stream; docs/reference/http.md has their meaning and defaults."""

    cancel_after_seconds: float | None = 60.0
    """How long the generation goes on after the last reader has left; None: to its end."""
    on_interrupt: str = "restart"
    pace_ms: int | None = None
    """The least time between two entries with tokens; None: the worker's setting."""
    lease_seconds: float | None = None
    """How long an external writer may be silent; None: no external writer fills the stream, but a worker."""
    webhook: Webhook | None = None
    """Who is told of the end; None: who is by default, and in a log nobody."""

    def stored(self) -> dict[str, Any]:
        stored: dict[str, Any] = {"cancel_after": self.cancel_after_seconds, "on_interrupt": self.on_interrupt}
        webhook = None if self.webhook is None else self.webhook.stored()
        optional = {"pace_ms": self.pace_ms, "lease": self.lease_seconds, "webhook": webhook}
        return stored | {name: value for name, value in optional.items() if value is not None}

    @classmethod
    def load(cls, stored: dict[str, Any]) -> Policies:
        return cls(
            stored.get("cancel_after"),
            stored["on_interrupt"],
            stored.get("pace_ms"),
            stored.get("lease"),
            Webhook.load(stored.get("webhook")),
        )


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request as it was accepted, with all that a worker needs to answer it."""

    request: dict[str, Any]
    policies: Policies
    created_at: float
    principal: str
    metadata: dict[str, str]
    facade: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Data that the API of the request needs for answers in its own format; empty for the native API."""
    request_id: str = ""
    """The id of the HTTP request that created the stream, for the logs."""
    traceparent: str = ""
    """The span of that request, the parent of the stream's other spans; empty if traces were off."""
    beside: str = ""
    """Where large fields of the request lie that `request` has not (`shared.large_fields`); empty if it has all."""
    format: int = dataclasses.field(default=0, compare=False)
    """The format that a worker must know to continue the log; 0: what `stored` decides."""

    def stored(self) -> bytes:
        """Returns the JSON. `metadata` comes before `request`, so that the console need read only the beginning."""
        return orjson.dumps(
            {
                "format": self.format or (2 if self.beside else 1),
                "policies": self.policies.stored(),
                "created_at": self.created_at,
                "principal": self.principal,
                "metadata": self.metadata,
                "request": self.request,
                **({"facade": self.facade} if self.facade else {}),
                **({"request_id": self.request_id} if self.request_id else {}),
                **({"traceparent": self.traceparent} if self.traceparent else {}),
                **({"beside": self.beside} if self.beside else {}),
            }
        )

    @classmethod
    def load(cls, value: bytes) -> Accepted:
        """Returns the request from the value of an `accepted` entry. Raises Unreadable."""
        stored = loaded(value)
        wrong = _wrong_of_accepted(stored)
        if not wrong and value.count(b"{") + value.count(b"[") > NESTED_MAX and not writable(stored):
            wrong = "request"
        if wrong:
            raise Unreadable(f"`{wrong}` of `accepted` is missing or of the wrong type")
        request_id, traceparent = stored.get("request_id", ""), stored.get("traceparent", "")
        beside, version = stored.get("beside", ""), stored.get("format", 1)
        return cls(
            stored["request"],
            Policies.load(stored["policies"]),
            stored["created_at"],
            stored["principal"],
            stored["metadata"],
            stored.get("facade", {}),
            request_id if isinstance(request_id, str) else "",
            traceparent if isinstance(traceparent, str) and _TRACEPARENT.fullmatch(traceparent) else "",
            beside if isinstance(beside, str) else "",
            version if type(version) is int else 1,
        )


def owner_of(accepted: bytes) -> str | None:
    """Returns the principal in the value of an `accepted` or `deleted`, without parsing the request, which may be large; None without one."""
    before, found, _ = accepted.partition(_METADATA)
    try:
        stored = orjson.loads(before + b"}" if found else accepted)
    except orjson.JSONDecodeError:
        return None
    owner = stored.get("principal") if isinstance(stored, dict) else None
    return owner if isinstance(owner, str) else None


_METADATA = b',"metadata":'
"""The bytes behind the principal. They cannot be inside a JSON text, whose quotes have backslashes."""


def _wrong_of_accepted(stored: Any) -> str:
    """Returns the name of the first field that `Accepted.stored` would have written otherwise; empty if there is none."""
    if not isinstance(stored, dict):
        return "value"
    for name in ("request", "policies", "metadata"):
        if not isinstance(stored.get(name), dict):
            return name
    policies, metadata = stored["policies"], stored["metadata"]
    cancel_after, pace_ms, lease = (policies.get(name) for name in ("cancel_after", "pace_ms", "lease"))
    if policies.get("on_interrupt") not in _INTERRUPT_POLICIES or not (
        (cancel_after is None or _is_number(cancel_after))
        and (pace_ms is None or (type(pace_ms) is int and 0 <= pace_ms <= PACE_MS_MAX))
        and (lease is None or _is_number(lease))
    ):
        return "policies"
    if not all(isinstance(text, str) for text in metadata.values()):
        return "metadata"
    if not _is_number(stored.get("created_at")):
        return "created_at"
    if not isinstance(stored.get("principal"), str):
        return "principal"
    return "" if isinstance(stored.get("facade", {}), dict) else "facade"
