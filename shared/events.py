"""What a log can hold, and how each is stored.

An entry is one field and its value: the field says what the value is. The three that come by the thousand have
names of one letter, because Redis keeps a field's name in every entry that differs from the first of its node.

| field | value |
|---|---|
| `accepted` | JSON: request, principal, policies, metadata, created_at, request_id; facade for an API other than the native one; traceparent where traces are on |
| `started`, `restarted` | JSON: attempt, model, worker, time; restarted also base, reason |
| `t` | one token: its text, UTF-8 |
| `d` | one delta that is not plain text: the JSON object that readers get, with the provider's `delta` in it |
| `b` | several of both in order: a JSON array, a token as a string, a delta as an object |
| `done` | JSON: finish_reason, usage, time; provider, choice for what else the provider said of them |
| `failed` | JSON: code, message, retryable, time; status, provider_error, retry_after where the provider said so |
| `cancelled` | JSON: by, time |
| `deleted` | empty: a tombstone, so that no late write brings a deleted stream back |
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from shared.ids import EventId

ACCEPTED = b"accepted"
STARTED = b"started"
RESTARTED = b"restarted"
TOKEN = b"t"
DELTA = b"d"
BATCH = b"b"
DONE = b"done"
FAILED = b"failed"
CANCELLED = b"cancelled"
DELETED = b"deleted"

TERMINAL = frozenset({DONE, FAILED, CANCELLED, DELETED})
COUNTED = frozenset({TOKEN, DELTA, BATCH})

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, section 3.2."""

Item = str | bytes
"""One provider delta as a worker holds it: a token's text, or the JSON of what is not plain text."""


class Entry(NamedTuple):
    """One entry of the log, as stored."""

    id: EventId
    field: bytes
    value: bytes


class Event(NamedTuple):
    """One event as readers see it: an entry, or one item of a batch under its own id."""

    id: EventId
    field: bytes
    value: bytes


def encode_items(items: list[Item]) -> tuple[bytes, bytes]:
    """The field and the value of an entry that carries these one or more items."""
    if len(items) == 1:
        item = items[0]
        return (TOKEN, item.encode()) if isinstance(item, str) else (DELTA, item)
    return BATCH, orjson.dumps([item if isinstance(item, str) else orjson.Fragment(item) for item in items])


def events_of(entry: Entry) -> list[Event]:
    """The events that an entry carries, in order; the entry's id is the id of the last."""
    if entry.field != BATCH:
        return [Event(*entry)]
    items: list[Any] = orjson.loads(entry.value)
    attempt, last = entry.id
    offset = last - len(items)
    events = []
    for item in items:
        offset += 1
        if type(item) is str:
            events.append(Event(EventId(attempt, offset), TOKEN, item.encode()))
        else:
            events.append(Event(EventId(attempt, offset), DELTA, orjson.dumps(item)))
    return events


def text_of(field: bytes, value: bytes) -> str:
    """The text that an event adds to the answer's first choice: a token's own, or the content of a delta."""
    if field == TOKEN:
        return value.decode()
    if field == DELTA:
        delta = orjson.loads(value)
        content = (delta.get("delta") or {}).get("content")
        return content if isinstance(content, str) and not delta.get("index") else ""
    return ""


@dataclass(frozen=True, slots=True)
class Policies:
    """What a stream's owner asked for; api.md section 1 has their meaning and defaults."""

    cancel_after_seconds: float | None = 60.0
    """How long the generation goes on when the last reader has gone; None: to its end."""
    on_interrupt: str = "restart"

    def stored(self) -> dict[str, Any]:
        return {"cancel_after": self.cancel_after_seconds, "on_interrupt": self.on_interrupt}

    @classmethod
    def load(cls, stored: dict[str, Any]) -> Policies:
        return cls(stored.get("cancel_after"), stored["on_interrupt"])


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request as it was accepted: what a worker needs to answer it."""

    request: dict[str, Any]
    policies: Policies
    created_at: float
    principal: str
    metadata: dict[str, str]
    facade: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the API through which it came must remember to answer in its own shape; empty for the native one."""
    request_id: str = ""
    """Of the HTTP request that asked for it, for the logs."""
    traceparent: str = ""
    """The span of that request, whose children the stream's other spans are; empty where traces were off."""

    def stored(self) -> bytes:
        """Its JSON. `metadata` stands before `request`: whoever lists streams reads the beginning only."""
        return orjson.dumps(
            {
                "policies": self.policies.stored(),
                "created_at": self.created_at,
                "principal": self.principal,
                "metadata": self.metadata,
                "request": self.request,
                **({"facade": self.facade} if self.facade else {}),
                **({"request_id": self.request_id} if self.request_id else {}),
                **({"traceparent": self.traceparent} if self.traceparent else {}),
            }
        )

    @classmethod
    def load(cls, value: bytes) -> Accepted:
        stored = orjson.loads(value)
        traceparent = stored.get("traceparent", "")
        return cls(
            stored["request"],
            Policies.load(stored["policies"]),
            stored["created_at"],
            stored["principal"],
            stored["metadata"],
            stored.get("facade", {}),
            stored.get("request_id", ""),
            traceparent if isinstance(traceparent, str) and _TRACEPARENT.fullmatch(traceparent) else "",
        )
