"""Compares the worker's copy of a log with a plain list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from producer.log_copy import LogCopy
from shared.events import Entry
from shared.ids import EventId

_NUMBERS = st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1))
_IDS = st.builds(EventId, _NUMBERS, _NUMBERS)


@given(st.sets(_IDS, min_size=1, max_size=20), _IDS, st.binary(max_size=3))
def test_a_log_copy_agrees_with_a_plain_list(ids: set[EventId], other: EventId, value: bytes) -> None:
    entries = [Entry(entry_id, b"t%d" % index, value * index) for index, entry_id in enumerate(sorted(ids))]
    copy = LogCopy(entries[:1])
    for entry in entries[1:]:
        copy.append(*entry.id, entry.field, entry.value)
    assert [copy[index] for index in range(len(copy))] == entries
    assert copy.last == entries[-1].id
    assert copy.value_bytes == sum(len(entry.value) for entry in entries)
    for entry_id in (*ids, other):
        assert [copy[index] for index in copy.later_than(entry_id)] == [one for one in entries if one.id > entry_id]
    assert all(entry in copy for entry in entries)
    assert Entry(other, b"t", b"other value") not in copy
    assert entries[0]._replace(value=b"other value") not in copy
