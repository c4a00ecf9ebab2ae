"""Compares the ring with a plain list of ids: in any log, a position and an id mean the same event."""

from __future__ import annotations

import random
from bisect import bisect_right

import pytest

from gateway.faces import NATIVE, encode
from gateway.following.ring import Ring
from shared import events
from shared.events import Event
from shared.ids import BEGINNING, EventId


def _log(seed: int) -> list[Event]:
    """Returns attempts of random length. Some keep a part of the one before; there are a few holes."""
    choose = random.Random(seed)
    listed = [Event(EventId(0, 1), events.ACCEPTED, b"{}")]
    base = 0
    for attempt in range(1, choose.randint(2, 5)):
        field = events.STARTED if attempt == 1 else events.RESTARTED
        listed.append(Event(EventId(attempt, 0), field, b'{"attempt":1,"model":"m","base":0,"reason":"r"}'))
        offset = base
        for _ in range(choose.randint(0, 40)):
            offset += 1 if choose.random() < 0.95 else 3
            listed.append(Event(EventId(attempt, offset), events.TOKEN, b"x%d" % offset))
        base = choose.randint(0, offset)
    return listed


@pytest.mark.parametrize("seed", range(60))
def test_positions_and_ids_agree(seed: int) -> None:
    choose = random.Random(seed)
    listed = _log(seed)
    first = choose.randint(0, len(listed) // 2)
    ring = Ring(NATIVE, NATIVE.encoder("s"), listed[first - 1].id if first else BEGINNING)
    kept: list[Event] = []
    for event in listed[first:]:
        ring.append(event)
        kept.append(event)
        if choose.random() < 0.1:
            keep = choose.randint(1, 20)
            ring.trim(keep)
            kept = kept[-keep:]
        ids = [one.id for one in kept]
        assert (len(ring), ring.end - ring.start) == (len(kept), len(kept))
        assert ring.cursor_at(ring.start) == ring.base
        for index, one in enumerate(kept):
            assert ring.cursor_at(ring.start + index + 1) == one.id
        for cursor in [ring.base, *ids, EventId(ids[-1].attempt, ids[-1].offset + 5), EventId(9, 0)]:
            assert ring.position_after(cursor) == ring.start + bisect_right(ids, cursor)
    for index in range(len(kept)):
        assert ring.body(ring.start + index) == b"".join(encode(NATIVE.encoder("s"), one) for one in kept[index:])


def test_a_cursor_in_a_hole_continues_behind_the_hole() -> None:
    ring = Ring(NATIVE, NATIVE.encoder("s"), EventId(1, 3))
    for offset in (4, 5, 9):
        ring.append(Event(EventId(1, offset), events.TOKEN, b"x"))
    assert [ring.position_after(EventId(1, offset)) for offset in (3, 4, 5, 6, 8, 9)] == [0, 1, 2, 2, 2, 3]
