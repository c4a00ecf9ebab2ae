from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import events
from shared.events import Accepted, Entry, Item, Policies, encode_items, events_of, text_of
from shared.ids import EventId

encodable = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | encodable,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(encodable, inner, max_size=3),
    max_leaves=8,
)
deltas = st.dictionaries(encodable, json_values).map(lambda delta: orjson.dumps({"delta": delta}))


@given(st.lists(encodable | deltas, min_size=1, max_size=20), st.integers(1, 9), st.integers(0, 10**9))
def test_encoded_items_are_decoded_one_by_one(items: list[Item], attempt: int, base: int) -> None:
    entry = Entry(EventId(attempt, base + len(items)), *encode_items(items))
    decoded = events_of(entry)
    assert [event.id for event in decoded] == [EventId(attempt, base + 1 + index) for index in range(len(items))]
    for event, item in zip(decoded, items, strict=True):
        if isinstance(item, str):
            assert (event.field, event.value) == (events.TOKEN, item.encode())
        else:
            assert (event.field, orjson.loads(event.value)) == (events.DELTA, orjson.loads(item))


def test_a_single_item_is_stored_without_a_batch() -> None:
    assert encode_items(["a"]) == (b"t", b"a")
    assert encode_items([b'{"delta":{}}']) == (b"d", b'{"delta":{}}')
    assert encode_items(["a", b'{"delta":{}}', ""]) == (b"b", b'["a",{"delta":{}},""]')


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (events.ACCEPTED, Accepted({}, Policies(), 1.0, "p", {}).stored()),
        (events.STARTED, b'{"attempt":1,"model":"m","worker":"w","time":2.0}'),
        (events.DONE, b'{"finish_reason":"stop","usage":null,"time":3.0}'),
        (events.DELETED, b""),
    ],
)
def test_an_entry_that_is_not_a_batch_is_one_event(field: bytes, value: bytes) -> None:
    assert events_of(Entry(EventId(1, 2), field, value)) == [(EventId(1, 2), field, value)]


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        (events.TOKEN, "wörd".encode(), "wörd"),
        (events.DELTA, b'{"delta":{"content":"a"},"logprobs":{}}', "a"),
        (events.DELTA, b'{"delta":{"content":"a"},"index":1}', ""),
        (events.DELTA, b'{"delta":{"content":null,"tool_calls":[]}}', ""),
        (events.DELTA, b'{"delta":{"content":[{"type":"text"}]}}', ""),
        (events.DELTA, b'{"delta":null}', ""),
        (events.DONE, b"{}", ""),
    ],
)
def test_an_event_s_text_is_the_first_choice_s(field: bytes, value: bytes, text: str) -> None:
    assert text_of(field, value) == text


@pytest.mark.parametrize("seconds", [None, 0.0, 12.5])
@pytest.mark.parametrize("pace_ms", [None, 0, 100])
def test_a_request_is_loaded_as_it_was_stored(seconds: float | None, pace_ms: int | None) -> None:
    request: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "ü"}], "unknown": None}
    accepted = Accepted(request, Policies(seconds, "fail", pace_ms), 12.5, "someone", {"a": "b"})
    assert Accepted.load(accepted.stored()) == accepted
