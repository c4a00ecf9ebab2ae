from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import MalformedId
from shared.ids import BEGINNING, EventId, created_at, is_stream_id, new_stream_id

numbers = st.integers(0, 10**16 - 1)


@given(numbers, numbers)
def test_an_id_is_read_as_it_is_written(attempt: int, offset: int) -> None:
    event_id = EventId(attempt, offset)
    assert EventId.parse(str(event_id)) == event_id
    assert EventId.of(bytes(event_id)) == event_id
    assert str(event_id).encode() == bytes(event_id)


@given(st.lists(st.tuples(numbers, numbers)))
def test_ids_are_ordered_by_attempt_and_then_by_offset(pairs: list[tuple[int, int]]) -> None:
    assert sorted(EventId(*pair) for pair in pairs) == [EventId(*pair) for pair in sorted(pairs)]
    assert all(EventId(*pair) >= BEGINNING for pair in pairs)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "1",
        "1-",
        "-1",
        "1-2-3",
        " 1-2",
        "1-2 ",
        "1-2\n",
        "+1-2",
        "1--2",
        "01-2",
        "1-02",
        "1.0-2",
        "a-b",
        "１-２",
        "1-²",
        "1_0-2",
        "0x1-2",
        "1-2\0",
        "10000000000000000-1",
        "1-10000000000000000",
        "$",
        "*",
        "9" * 10_000,
    ],
)
def test_the_error_for_a_malformed_id_describes_a_valid_one(text: str) -> None:
    with pytest.raises(MalformedId, match="1-57") as error:
        EventId.parse(text)
    assert len(str(error.value)) < 400


@given(st.text())
def test_any_text_is_an_id_or_malformed(text: str) -> None:
    with suppress(MalformedId):
        assert str(EventId.parse(text)) == text


@given(st.floats(0, 2**49 / 1000))
def test_a_stream_id_has_its_creation_time(now: float) -> None:
    stream_id = new_stream_id(now)
    assert is_stream_id(stream_id)
    assert abs(created_at(stream_id) - now) <= 0.001


def test_stream_ids_differ() -> None:
    made = {new_stream_id(1000.0) for _ in range(1000)}
    assert len(made) == 1000
    assert len({stream_id[:10] for stream_id in made}) == 1, "the part that tells the time"


@pytest.mark.parametrize(
    "text", ["", "x", "A" * 36, "i" * 36, "0" * 35, "0" * 37, "0" * 35 + "\n", "０" * 36, "0" * 34 + "}:"]
)
def test_malformed_stream_ids(text: str) -> None:
    assert not is_stream_id(text)
