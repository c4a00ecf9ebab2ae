"""A stream's states, and how its log is folded into the one that it is in.

    queued ──started──► running ──done──► completed
      │                 │ ▲ │
      │        restarted└─┘ ├──failed──► failed
      │                     │
      └────────────────────►└──cancelled─► cancelled

The table below is the whole machine. The first terminal event wins; whatever stands behind it is not read.

A log can be damaged, or be none of ours. The first entry that cannot be read, or that cannot stand where it stands, reads as
`failed` with the code `unreadable`, under its own id, to whoever reads it, at any time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import orjson

from shared import events
from shared.errors import Unreadable
from shared.events import Accepted, Entry, check_text, control_of, events_of, text_of, unreadable_failure
from shared.ids import BEGINNING, ID_PART_MAX, EventId

_NEXT = {
    events.ACCEPTED: "queued",
    events.STARTED: "running",
    events.RESTARTED: "running",
    events.DONE: "completed",
    events.FAILED: "failed",
    events.CANCELLED: "cancelled",
    events.DELETED: "deleted",
}


class Order:
    """What may follow in a log on what was read of it. `reached` is the last id read (BEGINNING: nothing stands before), or
    None where it is not known what stands before."""

    __slots__ = ("reached",)

    def __init__(self, reached: EventId | None) -> None:
        self.reached = reached

    def take(self, field: bytes, first: EventId, last: EventId, base: int = 0) -> None:
        """The next entry, or several of the same kind whose offsets have no hole. Raises Unreadable.

        `base`: of `restarted`, how many deltas stand.
        """
        before, self.reached = self.reached, last
        if field in _ATTEMPTS:
            self.reached = EventId(last.attempt, base)
        if before is None or field == events.DELETED or (field in events.TERMINAL and before != BEGINNING):
            return
        if field == events.ACCEPTED:
            if before != BEGINNING:
                raise Unreadable("`accepted` stands there a second time")
        elif before == BEGINNING:
            raise Unreadable("the log does not begin with `accepted`")
        elif field in _ATTEMPTS:
            if first.offset or first.attempt <= before.attempt:
                raise Unreadable("an attempt begins where none can")
        elif not first.attempt or first.attempt != before.attempt:
            raise Unreadable("a delta stands before its attempt begins")
        elif first.offset <= before.offset:
            raise Unreadable("deltas stand there a second time")


_ATTEMPTS = frozenset({events.STARTED, events.RESTARTED})
_ITEM_BYTES = 100
"""Of Python, for each delta beside its value."""


class History:
    """A log, folded: what was asked, what stands as the answer, how it ended."""

    def __init__(self) -> None:
        self._order = Order(BEGINNING)
        self.unreadable = False
        """It ends at an entry that cannot be read, and counts as failed."""
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
        """Take the next entry of the log. Entries behind a terminal event are passed over. Raises Unreadable."""
        if self.ended:
            return
        field, order = entry.field, self._order
        if field == events.TOKEN and entry.id.attempt == self.attempt > 0 and (order.reached or BEGINNING) < entry.id:
            check_text(entry.value)  # what `events_of` does, for what comes by the thousand
            order.reached = self.last_item = entry.id
            self.value_bytes += len(entry.value)
            self.items.append((field, entry.value))
        elif field in _NEXT:
            self._apply_control(entry)
        else:
            carried = events_of(entry)
            order.take(field, carried[0].id, entry.id)
            self.last_item = entry.id
            self.value_bytes += len(entry.value)
            self.items.extend((event.field, event.value) for event in carried)
        self.entries += 1
        self.last = entry.id

    def _apply_control(self, entry: Entry) -> None:
        (event_id, field, value) = events_of(entry)[0]
        about = {} if field == events.ACCEPTED else control_of(field, value)
        base = about.get("base") or 0
        self._order.take(field, event_id, event_id, base)
        self.status = _NEXT[field]
        if field == events.ACCEPTED:
            self.accepted = Accepted.load(value)
            return
        if field in events.TERMINAL:
            self.terminal = about
            self.ended_at = about.get("time")
            return
        self.attempt = event_id.attempt
        self.bases[self.attempt] = base
        self.took_back_text |= any(text_of(*item) for item in self.items[base:])
        del self.items[base:]
        self.model = about["model"]
        if self.started_at is None:
            self.started_at = about["time"]

    def break_off(self, event_id: EventId, error: Unreadable) -> None:
        """The entry with this id cannot be read: the stream has failed."""
        self.unreadable = True
        self.status, self.terminal = _NEXT[events.FAILED], unreadable_failure(event_id, error)
        self.last = readable_id(event_id)

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


class Folding(Protocol):
    """What takes a log entry by entry."""

    def apply(self, entry: Entry) -> None:
        """Take the next entry. Raises Unreadable."""

    def break_off(self, event_id: EventId, error: Unreadable) -> None:
        """The entry with this id cannot be read: the stream has failed."""


def fold(entries: Iterable[Entry]) -> History:
    """The history that a log tells, from its first entry on. Raises Unreadable."""
    history = History()
    for entry in entries:
        history.apply(entry)
    return history


def fold_readable(entries: Iterable[Entry]) -> History:
    """The history that a log tells as far as it can be read; what cannot be read has failed."""
    history = History()
    fold_into(history, entries)
    return history


def fold_into(folding: Folding, entries: Iterable[Entry]) -> None:
    """Give entries to what folds them, up to the first that cannot be read."""
    for entry in entries:
        try:
            folding.apply(entry)
        except Unreadable as error:
            folding.break_off(entry.id, error)
            return


def readable_id(event_id: EventId) -> EventId:
    """An id as clients are told it, who may send it back: of at most 16 digits each."""
    return EventId(min(event_id.attempt, ID_PART_MAX), min(event_id.offset, ID_PART_MAX))


def base_of(restarted: bytes) -> int:
    """How many deltas stand when an attempt begins, as the value of its `restarted` (or `started`) says. It must have been
    read by `events_of`."""
    return int(orjson.loads(restarted).get("base") or 0)
