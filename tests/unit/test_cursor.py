"""Cursors: from a request's header and query to the id after which the reader continues."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.http.cursor import BEGINNING_PLACE, Place, after_bytes_of, place_of, stream_and_place_of
from gateway.http.problems import Problem
from shared.ids import BEGINNING, EventId, new_stream_id


def request(query: str = "", header: str | None = None) -> dict[str, Any]:
    headers = [] if header is None else [(b"last-event-id", header.encode())]
    return {"query_string": query.encode(), "headers": headers}


@pytest.mark.parametrize(
    ("query", "header", "place"),
    [
        ("", None, BEGINNING_PLACE),
        ("last_event_id=", "", BEGINNING_PLACE),
        ("", "1-57", Place(EventId(1, 57))),
        ("last_event_id=1-57", None, Place(EventId(1, 57))),
        ("last_event_id=1-5&last_event_id=1-6", None, Place(EventId(1, 6))),
        *(
            (f"{name}=1-57", None, Place(EventId(1, 57)))
            for name in ("lastEventId", "lastEventID", "lasteventid", "Last-Event-ID", "Last-Event-Id", "LAST_EVENT_ID")
        ),
        ("last_event_id=1-5&a=b&lastEventId=1-6", None, Place(EventId(1, 6))),
        ("lastEventId=1-6&last_event_id=1-5&Last-Event-Id=1-6", None, Place(EventId(1, 6))),
        ("lastEventId=&last_event_id=1-5", None, Place(EventId(1, 5))),
        ("last_event_id=1-5&lastEventId=", None, Place(EventId(1, 5))),
        ("lastEventId=1-9", "1-5", Place(EventId(1, 5))),
        ("last_event=1-9&event_id=1-9", None, BEGINNING_PLACE),
        ("last_event_id=1-5", " 2-0 ", Place(EventId(2, 0))),
        ("from=now", None, Place(from_now=True)),
        ("from=now", "1-1", Place(EventId(1, 1))),
        ("from=now&last_event_id=1-1", None, Place(EventId(1, 1))),
        ("", "0-0", Place(BEGINNING)),
    ],
)
def test_the_place_of_a_request(query: str, header: str | None, place: Place) -> None:
    assert place_of(request(query, header)) == place


@pytest.mark.parametrize(
    ("query", "header"), [("from=then", None), ("", "x"), ("last_event_id=1", None), ("a=%ff", None)]
)
def test_malformed_cursors_are_refused(query: str, header: str | None) -> None:
    with pytest.raises(Problem) as caught:
        place_of(request(query, header))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("place", "end", "cursor"),
    [
        (BEGINNING_PLACE, None, BEGINNING),
        (BEGINNING_PLACE, EventId(1, 9), BEGINNING),
        (Place(EventId(1, 4)), None, EventId(1, 4)),
        (Place(from_now=True), None, EventId(1, 8)),
        (Place(from_now=True), EventId(1, 9), EventId(1, 8)),
        (Place(from_now=True), EventId(2, 0), EventId(2, -1)),
        (Place(EventId(1, 99)), EventId(1, 9), EventId(1, 8)),
        (Place(EventId(3, 0)), EventId(2, 0), EventId(2, -1)),
        (Place(EventId(1, 99)), None, EventId(1, 99)),
    ],
)
def test_the_id_that_a_reader_counts_as_having(place: Place, end: EventId | None, cursor: EventId) -> None:
    assert place.first_cursor(end or EventId(1, 8), end) == cursor


def test_only_a_cursor_at_the_end_has_everything() -> None:
    end = EventId(1, 9)
    assert Place(end).is_at(end)
    assert Place(end).is_at(None, end)
    assert not Place(EventId(1, 8)).is_at(end)
    assert not Place(EventId(1, 10)).is_at(end), "a cursor ahead of the end gets the terminal event"
    assert not Place(end).is_at(None)
    assert not BEGINNING_PLACE.is_at(end)
    assert not Place(from_now=True).is_at(end)


def test_an_id_with_its_stream_s_id() -> None:
    stream_id = new_stream_id()
    assert stream_and_place_of(f"{stream_id}/1-3") == (stream_id, Place(EventId(1, 3)))
    for wrong in ("1-3", "x/1-3", f"{stream_id}/x", "/"):
        with pytest.raises(Problem):
            stream_and_place_of(wrong)


def test_after_bytes_of_a_query() -> None:
    assert after_bytes_of({}) == after_bytes_of({"after_bytes": ""}) == 0
    assert after_bytes_of({"after_bytes": "12"}) == 12
    for wrong in ("-1", "x", "1" * 13, "١"):
        with pytest.raises(Problem, match="after_bytes must be"):
            after_bytes_of({"after_bytes": wrong})
