"""A worker's copy of the log that it writes, from which entries that Redis has lost are appended again.

A thousand answers of a thousand tokens are a million entries. As tuples they would take 250 bytes each, and the garbage
collector would walk them again and again; laid out in columns a token takes 80, and there is nothing to walk.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from shared.events import Entry
from shared.ids import EventId


class LogCopy:
    """Holds entries in the order of their ids. Never empty: a log begins with `accepted`."""

    __slots__ = ("_attempts", "_fields", "_offsets", "_values", "value_bytes")

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._attempts, self._offsets = array("Q"), array("Q")  # Redis's own 64 bits
        self._fields: list[bytes] = []
        self._values: list[bytes] = []
        self.value_bytes = 0
        """Of all values but the first: the request has a bound of its own."""
        for entry in entries:
            self.append(entry)
        self.value_bytes -= len(self._values[0])

    def append(self, entry: Entry) -> None:
        (attempt, offset), field, value = entry
        self._attempts.append(attempt)
        self._offsets.append(offset)
        self._fields.append(field)
        self._values.append(value)
        self.value_bytes += len(value)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> Entry:
        entry_id = EventId(self._attempts[index], self._offsets[index])
        return Entry(entry_id, self._fields[index], self._values[index])

    @property
    def last(self) -> EventId:
        return EventId(self._attempts[-1], self._offsets[-1])

    def later_than(self, entry_id: EventId) -> range:
        """Returns the indices of the entries after an id."""
        first = len(self)
        while first and (self._attempts[first - 1], self._offsets[first - 1]) > entry_id:
            first -= 1
        return range(first, len(self))

    def __contains__(self, entry: Entry) -> bool:
        later = self.later_than(entry.id)
        return later.start > 0 and self[later.start - 1] == entry
