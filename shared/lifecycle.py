"""The states of a stream, and the folding of its log into the state that it is in.

    unknown ──accepted──► queued ──started──► running ──done──► completed
                            │                 │ ▲ │
                            │        restarted└─┘ ├──failed──► failed
                            │                     │
                            └────────────────────►└──cancelled─► cancelled

`NEXT` is the whole state machine. `Order` runs it over the entries of a log; where the table has no row, or an entry's id
does not fit, it raises Unreadable. The first terminal event wins: entries behind it are not read. `scripts/end.lua` knows
the same four terminal events, and appends one only where none stands.

A log can be damaged, or be written by somebody else. The first entry that cannot be read, or cannot stand where it stands,
reads as `failed` with the code `unreadable`, under its own id, for every reader and at any time.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any, Protocol

import orjson

from shared import events
from shared.errors import Unreadable
from shared.events import Accepted, Entry, check_text, control_of, events_of, text_of, unreadable_failure
from shared.ids import BEGINNING, FIRST_ID, ID_PART_MAX, EventId
from shared.outcomes import Status

_INCREMENT = b""
"""In the table: any entry that is none of the others (`events.COUNTED`, and kinds of a later version)."""
_ATTEMPTS = frozenset({events.STARTED, events.RESTARTED})
_ENDS = {
    events.DONE: Status.COMPLETED,
    events.FAILED: Status.FAILED,
    events.CANCELLED: Status.CANCELLED,
    events.DELETED: Status.DELETED,
}

NEXT: dict[Status, dict[bytes, Status]] = {
    Status.UNKNOWN: {events.ACCEPTED: Status.QUEUED, events.DELETED: Status.DELETED},
    Status.QUEUED: {events.STARTED: Status.RUNNING, events.RESTARTED: Status.RUNNING, **_ENDS},
    Status.RUNNING: {
        events.STARTED: Status.RUNNING,
        events.RESTARTED: Status.RUNNING,
        _INCREMENT: Status.RUNNING,
        **_ENDS,
    },
    Status.COMPLETED: {},
    Status.FAILED: {},
    Status.CANCELLED: {},
    Status.DELETED: {},
}
"""State → event → state."""

STATUS_AFTER: dict[bytes, Status] = {event: status for row in NEXT.values() for event, status in row.items()}
"""The state after an event, for whoever sees only a log's newest entry: each event leads to one state."""


def status_after(field: bytes) -> Status:
    """Returns the state of a stream whose newest entry has this field."""
    return STATUS_AFTER.get(field, Status.RUNNING)


class Order:
    """Checks that the entries of a log can stand one behind the other. `reached` is the id of the last one (BEGINNING: none
    stands before), or None where it is not known what stands before: then any may follow."""

    __slots__ = ("reached",)

    def __init__(self, reached: EventId | None) -> None:
        self.reached = reached

    def take(self, field: bytes, first: EventId, last: EventId, kept_tokens: int = 0) -> Status:
        """Takes the next entry, or several of one kind without a hole in their offsets; returns the state after it.

        `kept_tokens`: how many increments of earlier attempts a `restarted` keeps. Raises Unreadable.
        """
        before, self.reached = self.reached, last
        if field in _ATTEMPTS:
            self.reached = EventId(last.attempt, kept_tokens)
        event = field if field in STATUS_AFTER else _INCREMENT
        after = STATUS_AFTER[event]
        if before is not None and event not in NEXT[_status_at(before)]:
            raise Unreadable(_why_not(before, event))
        if event == events.ACCEPTED and first != FIRST_ID:
            raise Unreadable(f"`accepted` stands elsewhere than at {FIRST_ID}")
        if before is None:
            return after
        if event in _ATTEMPTS:
            if first.offset or first.attempt <= before.attempt:
                raise Unreadable("an attempt begins where none can")
        elif event == _INCREMENT:
            if first.attempt != before.attempt:
                raise Unreadable("an increment stands before its attempt begins")
            if first.offset <= before.offset:
                raise Unreadable("an increment stands there a second time")
        return after


def _status_at(reached: EventId) -> Status:
    """Returns the state of a stream that has not ended, from the id of the last entry read."""
    if reached == BEGINNING:
        return Status.UNKNOWN
    return Status.RUNNING if reached.attempt else Status.QUEUED


def _why_not(reached: EventId, event: bytes) -> str:
    """Returns why the table has no row for this event behind the entry with this id."""
    if reached == BEGINNING:
        return "the log does not begin with `accepted`"
    if event == events.ACCEPTED:
        return "`accepted` stands there a second time"
    return "an increment stands before its attempt begins"


_ITEM_BYTES = 100
"""Memory of Python's objects for each increment, beside its value."""


class History:
    """A log folded into one state: the request, the answer that stands, how it ended."""

    def __init__(self) -> None:
        self._order = Order(BEGINNING)
        self.unreadable = False
        """The log ends at an entry that cannot be read: the stream counts as failed."""
        self.status = Status.UNKNOWN
        self.last = BEGINNING
        self.entries = 0
        self.accepted: Accepted | None = None
        self.attempt = 0
        self.items: list[tuple[bytes, bytes]] = []
        """The increments that stand, as (field, value): those kept of earlier attempts, then those of this one."""
        self.last_item = BEGINNING
        """The id of the newest increment."""
        self.value_bytes = 0
        """Size of all increments, also of those that were taken back."""
        self.kept_tokens: dict[int, int] = {}
        """For each attempt, how many increments of earlier ones it keeps."""
        self.took_back_text = False
        """Whether an attempt took back text that earlier ones had written."""
        self.terminal: dict[str, Any] | None = None
        self.model: str | None = None
        self.started_at: float | None = None
        self.ended_at: float | None = None

    def apply(self, entry: Entry) -> None:
        """Takes the next entry of the log; ignores those behind a terminal event. Raises Unreadable."""
        if self.ended:
            return
        field, order = entry.field, self._order
        if field == events.TOKEN and entry.id.attempt == self.attempt > 0 and (order.reached or BEGINNING) < entry.id:
            check_text(entry.value)  # as `events_of` does, without making objects: tokens come by the thousand
            order.reached = self.last_item = entry.id
            self.value_bytes += len(entry.value)
            self.items.append((field, entry.value))
        elif field in STATUS_AFTER:
            self._apply_control(entry)
        else:
            carried = events_of(entry)
            self.status = order.take(field, carried[0].id, entry.id)
            self.last_item = entry.id
            self.value_bytes += len(entry.value)
            self.items.extend((event.field, event.value) for event in carried)
        self.entries += 1
        self.last = entry.id

    def _apply_control(self, entry: Entry) -> None:
        (event_id, field, value) = events_of(entry)[0]
        fields = {} if field == events.ACCEPTED else control_of(field, value)
        kept_tokens = fields.get("base") or 0
        self.status = self._order.take(field, event_id, event_id, kept_tokens)
        if field == events.ACCEPTED:
            self.accepted = Accepted.load(value)
            return
        if field in events.TERMINAL:
            self.terminal = fields
            self.ended_at = fields.get("time")
            return
        self.attempt = event_id.attempt
        self.kept_tokens[self.attempt] = kept_tokens
        self.took_back_text |= any(text_of(*item) for item in self.items[kept_tokens:])
        del self.items[kept_tokens:]
        self.model = fields["model"]
        if self.started_at is None:
            self.started_at = fields["time"]

    def break_off(self, event_id: EventId, error: Unreadable) -> None:
        """Ends the stream as failed: the entry with this id cannot be read."""
        self.unreadable = True
        self.status, self.terminal = Status.FAILED, unreadable_failure(event_id, error)
        self.last = readable_id(event_id)

    @property
    def size_bytes(self) -> int:
        """The memory that the increments take, roughly."""
        return self.value_bytes + _ITEM_BYTES * len(self.items)

    @property
    def ended(self) -> bool:
        return self.terminal is not None

    @property
    def text(self) -> str:
        return "".join(text_of(field, value) for field, value in self.items)

    def yielded(self) -> list[str | dict[str, Any]]:
        """Returns the increments that stand, in order: texts, those that follow one another joined, and JSON objects."""
        listed: list[str | dict[str, Any]] = []
        for plain, group in groupby(self.items, lambda item: item[0] == events.TOKEN):
            values = [value for _, value in group]
            listed += [b"".join(values).decode()] if plain else map(orjson.loads, values)
        return listed

    def state(self, stream_id: str) -> dict[str, Any]:
        """Returns the body of `GET /v1/streams/{id}` (docs/reference/http.md). Times are Unix seconds."""
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
            **events.native_finish_reason(terminal),
            "error": {key: terminal[key] for key in ("code", "message", "retryable")}
            if self.status == Status.FAILED
            else None,
            "cancelled_by": terminal.get("by"),
            "created_at": self.accepted.created_at if self.accepted else None,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "metadata": self.accepted.metadata if self.accepted else {},
        }


class Folding(Protocol):
    """Takes a log entry by entry."""

    def apply(self, entry: Entry) -> None:
        """Takes the next entry. Raises Unreadable."""

    def break_off(self, event_id: EventId, error: Unreadable) -> None:
        """Ends the stream as failed: the entry with this id cannot be read."""


def fold(entries: Iterable[Entry]) -> History:
    """Returns the history of a log, given from its first entry on. Raises Unreadable."""
    history = History()
    for entry in entries:
        history.apply(entry)
    return history


def fold_into(folding: Folding, entries: Iterable[Entry]) -> None:
    """Gives entries to a folding, up to the first that cannot be read."""
    for entry in entries:
        try:
            folding.apply(entry)
        except Unreadable as error:
            folding.break_off(entry.id, error)
            return


def readable_id(event_id: EventId) -> EventId:
    """Returns an id that clients can send back: each part limited to 16 digits."""
    return EventId(min(event_id.attempt, ID_PART_MAX), min(event_id.offset, ID_PART_MAX))


def kept_tokens_of(restarted: bytes) -> int:
    """Returns how many increments stand when an attempt begins, from the value of its `restarted` or `started` entry, which
    `events_of` must have checked."""
    return int(orjson.loads(restarted).get("base") or 0)
