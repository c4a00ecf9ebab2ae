"""Where a reader goes on: the way of a `Last-Event-ID` from the request to a place in the stream, in the order of that way.

Last-Event-ID: 1-57   or   ?last_event_id=1-57 (lastEventId, …)   or   ?from=now   or nothing
      │  last_event_id: the header, else the query
      ▼
"1-57"
      │  cursor_of: text to id
      ▼
EventId(1, 57)
      │  place_of: with what `from` says
      ▼
Place(after=EventId(1, 57))
      │  first_cursor: what a reader counts as having
      ▼
Reader.cursor, from which `Ring.position_after` finds the index of the first event that is to be sent
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.http.connection import Scope
from gateway.http.exchange import query_of
from gateway.http.problems import Problem
from shared.errors import MalformedId
from shared.ids import BEGINNING, EventId, is_stream_id

_AFTER_BYTES_DIGITS_MAX = 12


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reader goes on: behind an event, at the stream's beginning (`after` is None), or with what is new."""

    after: EventId | None = None
    from_now: bool = False

    def first_cursor(self, newest: EventId, end: EventId | None) -> EventId:
        """The id up to which the reader counts as having the stream, whose newest event and end (None: it runs) are these.

        `from=now` skips what is there, but not the end of a stream that has ended. Nor does an id that the stream never had.
        """
        if end is not None and (self.from_now or (self.after or BEGINNING) >= end):
            return EventId(end.attempt, end.offset - 1)
        return newest if self.from_now else self.after or BEGINNING

    def is_at(self, *ends: EventId | None) -> bool:
        """Whether the reader has the terminal event, which has one of these ids: nothing more will ever come."""
        return self.after is not None and self.after in ends


BEGINNING_PLACE = Place()


def place_of(scope: Scope) -> Place:
    """The place that a request names. `from=now` counts only without an event id. Raises Problem 400."""
    query = query_of(scope)
    after = cursor_of(last_event_id(scope, query))
    start = query.get("from")
    if start not in (None, "now"):
        raise Problem(400, f"from must be now, not {start[:64]!r}; leave it out to begin at the beginning")
    return Place(after, from_now=start == "now" and after is None)


def last_event_id(scope: Scope, query: dict[str, str]) -> str:
    """The newest event id that the client has: the header `Last-Event-ID`, else the parameter of the query; may be empty.

    Clients that cannot set the header write the parameter in their own ways: `last_event_id`, `lastEventId` (the polyfills
    of EventSource), `Last-Event-ID`. Of several the last one counts: clients append theirs to the URL that they were given.
    """
    for name, value in scope["headers"]:
        if name == b"last-event-id" and value:
            return str(value.decode("latin-1")).strip()
    given = [value.strip() for name, value in query.items() if _is_last_event_id(name)]
    return next((value for value in reversed(given) if value), "")


def _is_last_event_id(name: str) -> bool:
    return name.lower().replace("_", "").replace("-", "") == "lasteventid"


def cursor_of(text: str) -> EventId | None:
    """The event id that this text is; None for an empty one. Raises Problem 400."""
    if not text:
        return None
    try:
        return EventId.parse(text)
    except MalformedId as error:
        raise Problem(400, str(error)) from None


def stream_and_place_of(event_id: str) -> tuple[str, Place]:
    """The stream and the place that an id of `GET /stream` names: `<stream id>/<attempt>-<offset>`. Raises Problem 400."""
    stream_id, _, cursor = event_id.rpartition("/")
    place = Place(cursor_of(cursor))
    if not is_stream_id(stream_id):
        raise Problem(400, f"{event_id[:80]!r} is not an event id of this endpoint: <stream id>/<attempt>-<offset>")
    return stream_id, place


def after_bytes_of(query: dict[str, str]) -> int:
    """How many bytes of the text the client has: `after_bytes` of the query, else 0. Raises Problem 400."""
    text = query.get("after_bytes", "")
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()) or len(text) > _AFTER_BYTES_DIGITS_MAX:
        raise Problem(400, f"after_bytes must be how many bytes of the text you have, not {text[:64]!r}")
    return int(text)
