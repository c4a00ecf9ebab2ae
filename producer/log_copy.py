"""A worker's copy of the log that it writes, from which entries that Redis has lost are appended again.

A thousand answers of a thousand tokens are a million entries. As tuples they would take 250 bytes each, and the garbage
collector would walk them again and again; packed into bytes a token takes 60, and there is nothing to walk.
"""

from __future__ import annotations

from collections.abc import Iterable

from shared.events import Entry
from shared.ids import EventId


class LogCopy:
    """Holds entries in the order of their ids. Never empty: a log begins with `accepted`."""

    __slots__ = ("_packed", "value_bytes")

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._packed: list[bytes] = []
        """Of each entry: `<attempt>-<offset> <length of the field> <field><value>`."""
        self.value_bytes = 0
        """Of all values but the first: the request has a bound of its own."""
        for entry in entries:
            self.append(*entry.id, entry.field, entry.value)
        self.value_bytes -= len(self[0].value)

    def append(self, attempt: int, offset: int, field: bytes, value: bytes) -> None:
        self._packed.append(b"%d-%d %d %b%b" % (attempt, offset, len(field), field, value))
        self.value_bytes += len(value)

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, index: int) -> Entry:
        entry_id, length, rest = self._packed[index].split(b" ", 2)
        return Entry(EventId.of(entry_id), rest[: int(length)], rest[int(length) :])

    def _id(self, index: int) -> EventId:
        return EventId.of(self._packed[index].partition(b" ")[0])

    @property
    def last(self) -> EventId:
        return self._id(-1)

    def later_than(self, entry_id: EventId) -> range:
        """Returns the indices of the entries after an id."""
        first = len(self)
        while first and self._id(first - 1) > entry_id:
            first -= 1
        return range(first, len(self))

    def __contains__(self, entry: Entry) -> bool:
        later = self.later_than(entry.id)
        return later.start > 0 and self[later.start - 1] == entry
