from __future__ import annotations

import orjson
import pytest

from shared import events
from shared.errors import Unreadable
from shared.events import Accepted, Entry, Policies
from shared.ids import EventId
from shared.lifecycle import NEXT, fold, status_after
from shared.outcomes import Status

ACCEPTED = Entry(EventId(0, 1), events.ACCEPTED, Accepted({}, Policies(), 5.0, "p", {"k": "v"}).stored())
STARTED = Entry(EventId(1, 0), events.STARTED, orjson.dumps({"attempt": 1, "model": "m", "worker": "w", "time": 6.0}))


def token(attempt: int, offset: int, text: str) -> Entry:
    return Entry(EventId(attempt, offset), events.TOKEN, text.encode())


def batch(attempt: int, offset: int, *texts: str) -> Entry:
    return Entry(EventId(attempt, offset), events.BATCH, orjson.dumps(texts))


def restarted(attempt: int, base: int) -> Entry:
    about = {"attempt": attempt, "model": "n", "worker": "x", "time": 9.0, "base": base, "reason": "worker_lost"}
    return Entry(EventId(attempt, 0), events.RESTARTED, orjson.dumps(about))


def end(attempt: int, offset: int, field: bytes, **about: object) -> Entry:
    return Entry(EventId(attempt, offset), field, orjson.dumps({"time": 12.0, **about}))


DONE = end(1, 3, events.DONE, finish_reason="stop", usage={"total_tokens": 2})
FAILED = end(1, 3, events.FAILED, code="c", message="m", retryable=True)
CANCELLED = end(2, 0, events.CANCELLED, by="client")
DELETED = Entry(EventId(2, 0), events.DELETED, b"")


@pytest.mark.parametrize(
    ("entries", "status", "text", "attempt"),
    [
        ([], "unknown", "", 0),
        ([ACCEPTED], "queued", "", 0),
        ([ACCEPTED, STARTED], "running", "", 1),
        ([ACCEPTED, STARTED, token(1, 1, "a"), batch(1, 3, "b", "c")], "running", "abc", 1),
        ([ACCEPTED, STARTED, token(1, 1, "a"), restarted(2, 0)], "running", "", 2),
        ([ACCEPTED, STARTED, batch(1, 3, "a", "b", "c"), restarted(2, 2), token(2, 3, "x")], "running", "abx", 2),
        ([ACCEPTED, STARTED, batch(1, 2, "a", "b"), restarted(2, 2), restarted(3, 0)], "running", "", 3),
        ([ACCEPTED, STARTED, batch(1, 2, "a", "b"), DONE], "completed", "ab", 1),
        ([ACCEPTED, STARTED, batch(1, 2, "a", "b"), FAILED], "failed", "ab", 1),
        ([ACCEPTED, STARTED, batch(1, 2, "a", "b"), CANCELLED], "cancelled", "ab", 1),
        ([ACCEPTED, end(1, 0, events.CANCELLED, by="client")], "cancelled", "", 0),
        ([DELETED], "deleted", "", 0),
        ([ACCEPTED, STARTED, token(1, 1, "a"), DONE, CANCELLED], "completed", "a", 1),
        ([ACCEPTED, STARTED, token(1, 1, "a"), CANCELLED, restarted(3, 0), token(3, 1, "z")], "cancelled", "a", 1),
        ([DELETED, token(3, 1, "z")], "deleted", "", 0),
    ],
)
def test_the_state_of_a_log(entries: list[Entry], status: str, text: str, attempt: int) -> None:
    history = fold(entries)
    assert (history.status, history.text, history.attempt) == (status, text, attempt)
    assert history.ended == (status not in ("unknown", "queued", "running"))


def test_entries_behind_the_first_terminal_event_are_ignored() -> None:
    history = fold([ACCEPTED, STARTED, token(1, 1, "a"), DONE, CANCELLED])
    assert (history.last, history.entries) == (DONE.id, 4)


def test_the_state_of_an_answer_that_was_cut_off() -> None:
    done = end(1, 3, events.DONE, finish_reason="length", usage={"total_tokens": 2})
    state = fold([ACCEPTED, STARTED, batch(1, 2, "a", "b"), done]).state("id")
    expected = {"id": "id", "status": "completed", "text": "ab", "tokens": 2, "attempt": 1, "model": "m"}
    expected |= {"finish_reason": "length", "truncated": True, "usage": {"total_tokens": 2}, "error": None}
    expected |= {"created_at": 5.0, "started_at": 6.0, "ended_at": 12.0, "metadata": {"k": "v"}}
    assert {key: state[key] for key in expected} == expected


def test_the_state_of_an_answer_that_failed_keeps_its_text() -> None:
    state = fold([ACCEPTED, STARTED, token(1, 1, "a"), restarted(2, 1), token(2, 2, "b"), FAILED]).state("id")
    assert state["text"] == "ab"
    assert state["error"] == {"code": "c", "message": "m", "retryable": True}
    assert (state["truncated"], state["usage"], state["started_at"], state["model"]) == (False, None, 6.0, "n")


def test_an_empty_log_has_a_state() -> None:
    state = fold([]).state("id")
    assert (state["status"], state["text"], state["created_at"], state["metadata"]) == ("unknown", "", None, {})


EVENTS = [ACCEPTED, STARTED, restarted(1, 0), token(1, 1, "a"), batch(1, 2, "a", "b"), DONE, FAILED, CANCELLED, DELETED]
BEFORE = {
    Status.UNKNOWN: [],
    Status.QUEUED: [ACCEPTED],
    Status.RUNNING: [ACCEPTED, STARTED],
}


@pytest.mark.parametrize("entry", EVENTS, ids=lambda entry: entry.field.decode())
@pytest.mark.parametrize("status", BEFORE)
def test_transitions_are_those_of_the_table(status: Status, entry: Entry) -> None:
    history = fold(BEFORE[status])
    assert history.status == status
    if status == Status.RUNNING and entry.field in (events.STARTED, events.RESTARTED):
        entry = entry._replace(id=EventId(2, 0))
    after = NEXT[status].get(b"" if entry.field in events.COUNTED else entry.field)
    if after is None:
        with pytest.raises(Unreadable):
            history.apply(entry)
    else:
        history.apply(entry)
        assert history.status == after == status_after(entry.field)
