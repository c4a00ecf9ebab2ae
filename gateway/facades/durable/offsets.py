"""Offsets of the Durable Streams protocol: texts that sort as the places in a stream do; and its cursors, which only caches need.

An offset is an event's id with zeros in front: 1-57 is `0000000001_0000000000000057`. So it stays valid as long as the log.
"""

from __future__ import annotations

import random
import re
import time

from gateway.http.problems import Problem
from shared.ids import BEGINNING, EventId

_OFFSET = re.compile(r"([0-9]{10})_([0-9]{16})", re.ASCII)
_CURSOR_SECONDS = 20
_CURSOR_EPOCH_SECONDS = 1_728_432_000
"""2024-10-09T00:00:00Z, from which the protocol counts intervals."""
_CURSOR_STEPS_MAX = 180
_CURSOR_DIGITS_MAX = 12


def offset_of(event_id: EventId) -> str:
    """Returns the offset of what stands behind this event."""
    return f"{event_id.attempt:010d}_{event_id.offset:016d}"


def event_id_of(offset: str) -> EventId:
    """Returns the event behind which an offset is; BEGINNING for `-1`. Not for `now`. Raises Problem 400."""
    if offset == "-1":
        return BEGINNING
    match = _OFFSET.fullmatch(offset)
    if match is None:
        raise Problem(
            400, f"offset must be the Stream-Next-Offset of an earlier answer, -1 or now, not {offset[:64]!r}"
        )
    return EventId(int(match[1]), int(match[2]))


def cursor_floor(client_cursor: str) -> int:
    """Returns the least cursor for a client that has sent one: above its own, unless that is behind the time (section 8.1).

    0 if any will do. Random, so that clients which were answered together do not come back together.
    """
    if not (client_cursor.isascii() and client_cursor.isdigit()) or len(client_cursor) > _CURSOR_DIGITS_MAX:
        return 0
    cursor = int(client_cursor)
    return 0 if cursor < _interval() else cursor + random.randint(1, _CURSOR_STEPS_MAX)


def cursor_now(floor: int) -> str:
    """Returns the cursor of an answer that is sent now."""
    return str(max(_interval(), floor))


def _interval() -> int:
    return int(time.time() - _CURSOR_EPOCH_SECONDS) // _CURSOR_SECONDS
