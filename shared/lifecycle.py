"""A stream's states, and how its log is folded into the one that it is in.

    queued ──started──► running ──done──► completed
      │                 │ ▲ │
      │        restarted└─┘ ├──failed──► failed
      │                     │
      └────────────────────►└──cancelled─► cancelled

The table below is the whole machine. The first terminal event wins; whatever stands behind it is not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from shared import events
from shared.events import Accepted, Entry, events_of, text_of
from shared.ids import BEGINNING

_NEXT = {
    events.ACCEPTED: "queued",
    events.STARTED: "running",
    events.RESTARTED: "running",
    events.DONE: "completed",
    events.FAILED: "failed",
    events.CANCELLED: "cancelled",
    events.DELETED: "deleted",
}


_ITEM_BYTES = 100
"""Of Python, for each delta beside its value."""


class History:
    """A log, folded: what was asked, what stands as the answer, how it ended."""

    def __init__(self) -> None:
        self.status = "unknown"
        self.last = BEGINNING
        self.entries = 0
        self.accepted: Accepted | None = None
        self.attempt = 0
        self.items: list[tuple[bytes, bytes]] = []
        """The deltas that stand, as (field, value): the first `base` of earlier attempts and those of this one."""
        self.last_item = BEGINNING
        """The id of the newest delta."""
        self.value_bytes = 0
        """Of all deltas that were ever there."""
        self.bases: dict[int, int] = {}
        """For each attempt, how many deltas of those before it stand."""
        self.took_back_text = False
        """An attempt began anew after text had been shown."""
        self.terminal: dict[str, Any] | None = None
        self.model: str | None = None
        self.started_at: float | None = None
        self.ended_at: float | None = None

    def apply(self, entry: Entry) -> None:
        """Take the next entry of the log. Entries behind a terminal event are passed over."""
        if self.ended:
            return
        self.entries += 1
        self.last = entry.id
        if entry.field in events.COUNTED:
            self.value_bytes += len(entry.value)
            self.last_item = entry.id
            self.items.extend((event.field, event.value) for event in events_of(entry))
            return
        self.status = _NEXT[entry.field]
        if entry.field == events.ACCEPTED:
            self.accepted = Accepted.load(entry.value)
            return
        value = orjson.loads(entry.value) if entry.value else {}
        if entry.field in events.TERMINAL:
            self.terminal = value
            self.ended_at = value.get("time")
            return
        self.attempt = entry.id.attempt
        base = self.bases[self.attempt] = value.get("base", 0)
        self.took_back_text |= any(text_of(*item) for item in self.items[base:])
        del self.items[base:]
        self.model = value["model"]
        if self.started_at is None:
            self.started_at = value["time"]

    @property
    def size_bytes(self) -> int:
        """About how much memory the deltas take."""
        return self.value_bytes + _ITEM_BYTES * len(self.items)

    @property
    def ended(self) -> bool:
        return self.terminal is not None

    @property
    def text(self) -> str:
        return "".join(text_of(field, value) for field, value in self.items)

    def state(self, stream_id: str) -> dict[str, Any]:
        """The body of `GET /v1/streams/{id}` (api.md section 1). Times are Unix seconds."""
        terminal = self.terminal or {}
        finish_reason = terminal.get("finish_reason")
        return {
            "id": stream_id,
            "status": self.status,
            "text": self.text,
            "tokens": len(self.items),
            "attempt": self.attempt,
            "model": self.model,
            "finish_reason": finish_reason,
            "truncated": finish_reason == "length",
            "usage": terminal.get("usage"),
            "error": {key: terminal[key] for key in ("code", "message", "retryable")}
            if self.status == "failed"
            else None,
            "cancelled_by": terminal.get("by"),
            "created_at": self.accepted.created_at if self.accepted else None,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "metadata": self.accepted.metadata if self.accepted else {},
        }


def fold(entries: Iterable[Entry]) -> History:
    """The history that a log tells, from its first entry on."""
    history = History()
    for entry in entries:
        history.apply(entry)
    return history


def base_of(restarted: bytes) -> int:
    """How many deltas stand when an attempt begins, as the value of its `restarted` (or `started`) says."""
    return int(orjson.loads(restarted).get("base", 0))
