"""Which streams this gateway follows, and what it remembers of those that it does not follow any more. No I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from gateway.following.ring import Ring
from gateway.following.tail import Tail
from shared.events import Event
from shared.ids import EventId

_REMEMBERED_MAX = 1000
"""Streams of which it is remembered that a face cannot show them, or that their log cannot be read: 2 MB, and 0.2 MB."""


class FollowedStreams:
    """The tails of a gateway process, by their streams' ids and by the channels on which their entries are pushed.

    `on_unreadable` is called with a stream whose log cannot be read on and has no end yet, and with the `failed` as which
    it reads.
    """

    def __init__(self, on_unreadable: Callable[[str, Event], None]) -> None:
        self._on_unreadable = on_unreadable
        self.by_id: dict[str, Tail] = {}
        self.by_channel: dict[bytes, Tail] = {}
        self._broken: OrderedDict[str, tuple[Ring, ...]] = OrderedDict()
        """The broken rings of streams that have no reader now."""
        self._unreadable: OrderedDict[str, EventId] = OrderedDict()
        """The ids from which logs are unreadable: a reader that resumes with such an id has had the end."""

    def add(self, tail: Tail) -> None:
        """Adds a new tail, and tells it what is remembered of its stream."""
        tail.remember_broken(self._broken.pop(tail.stream_id, ()))
        tail.note_unreadable_from(self._unreadable.get(tail.stream_id))
        self.by_id[tail.stream_id] = self.by_channel[tail.channel] = tail

    def remove(self, tail: Tail) -> None:
        """Removes a tail that nobody holds any more."""
        del self.by_id[tail.stream_id], self.by_channel[tail.channel]
        if tail.broken:
            self._broken[tail.stream_id] = tail.broken
            if len(self._broken) > _REMEMBERED_MAX:
                self._broken.popitem(last=False)

    def found_unreadable(self, stream_id: str, failed: Event, *, ended: bool = False) -> None:
        """Notes that a log reads as failed from this event on, wherever that was found. `ended`: it has an end already."""
        # Who begins to read behind the place does not see it, and may find another one.
        place = self._unreadable[stream_id] = min(failed.id, self._unreadable.get(stream_id, failed.id))
        if len(self._unreadable) > _REMEMBERED_MAX:
            self._unreadable.popitem(last=False)
        tail = self.by_id.get(stream_id)
        if tail is not None:
            tail.note_unreadable_from(place)
        if not ended:
            self._on_unreadable(stream_id, failed)
