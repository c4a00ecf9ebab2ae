"""Entries of a log as Redis sent them, many at a time. No I/O.

Nearly all of a log is plain tokens without a hole. Making objects of each and encoding one by one costs 2.6 µs an event; a
run of them taken together costs 0.4, which is what readers who all come back at once feel.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from shared.events import TOKEN, Entry
from shared.ids import EventId
from shared.log import RawEntry


class Run(NamedTuple):
    """One or more tokens of one attempt, an entry each, whose offsets have no hole."""

    attempt: int
    first_offset: int
    ids: tuple[bytes, ...]
    """As the log has them."""
    values: tuple[bytes, ...]
    """Texts, in UTF-8."""

    @property
    def last_offset(self) -> int:
        return self.first_offset + len(self.ids) - 1


def runs(raw: list[RawEntry]) -> Iterator[Run | Entry]:
    """The same entries in the same order: tokens as runs, as far as they are some, everything else as it is."""
    whole = _run(raw)
    if whole is not None:
        yield whole
        return
    for are_tokens, group in groupby(raw, _is_token):
        entries = list(group)
        run = _run(entries) if are_tokens else None
        if run is not None:
            yield run
        else:
            for event_id, (field, value) in entries:
                yield Entry(EventId.of(event_id), field, value)


def _is_token(entry: RawEntry) -> bool:
    return entry[1][0] == TOKEN


def _run(raw: list[RawEntry]) -> Run | None:
    if not raw:
        return None
    attempt, first_offset = EventId.of(raw[0][0])
    # Ids only grow: as many of one attempt as there is room for are all of them.
    if EventId.of(raw[-1][0]) != (attempt, first_offset + len(raw) - 1):
        return None
    event_ids, pairs = zip(*raw, strict=True)
    fields, values = zip(*pairs, strict=True)
    return Run(attempt, first_offset, event_ids, values) if fields.count(TOKEN) == len(fields) else None
