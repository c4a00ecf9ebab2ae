"""The number of tokens that a connection was sent, which receipts, metrics and spans count in the same way."""

from __future__ import annotations

import asyncio
import random

from gateway.following.tail import Tail
from gateway.following.token_runs import Carried, TokenRun
from shared import events
from shared.events import Event
from shared.ids import EventId, new_stream_id
from shared.token_counts import tokens_between


def test_tokens_between_two_ids_are_counted_in_each_attempt() -> None:
    """Compares the count with a plain list of ids, for attempts of random length that keep a part of the one before."""
    for seed in range(200):
        choose = random.Random(seed)
        attempts: list[tuple[int, int, int]] = []
        ids: list[EventId] = []
        kept = 0
        for number in range(1, choose.randint(2, 5)):
            last = kept + choose.randint(0, 8)
            attempts.append((number, kept, last))
            ids += [EventId(number, offset) for offset in range(kept + 1, last + 1)]
            kept = choose.randint(0, last)
        places = [EventId(0, 0), *(EventId(number, -1) for number, _, _ in attempts), *ids]
        places += [EventId(number, 0) for number, _, _ in attempts]
        start, reached = sorted(choose.choices(places, k=2))
        expected = sum(start < event_id <= reached for event_id in ids)
        assert tokens_between(start, reached, attempts) == expected, f"seed {seed}: {start} to {reached} of {attempts}"


async def test_a_tail_does_not_count_a_terminal_event() -> None:
    tail = Tail(new_stream_id(), asyncio.get_running_loop().time())
    tail.reach(EventId(1, 0))
    tail.take(TokenRun(EventId(1, 1), EventId(1, 3), (b"1-1", b"1-2", b"1-3"), (b"a", b"b", b"c")))
    assert tail.tokens_between(EventId(0, 0), EventId(1, 3)) == 3
    assert tail.tokens_between(EventId(1, 1), EventId(1, 5)) == 4, "pages of the log may be ahead of the tail"
    cancelled = Event(EventId(2, 0), events.CANCELLED, b'{"by":"client"}')
    tail.take(Carried(events.CANCELLED, [cancelled], cancelled.id, cancelled.id))
    assert tail.tokens_between(EventId(0, 0), EventId(2, 0)) == 3
    assert tail.tokens_between(EventId(2, -1), EventId(2, 0)) == 0, "whoever came just before the end got no token"


async def test_a_tail_does_not_count_the_terminal_entry_of_the_attempt_s_worker() -> None:
    tail = Tail(new_stream_id(), asyncio.get_running_loop().time())
    tail.reach(EventId(1, 0))
    tail.take(TokenRun(EventId(1, 1), EventId(1, 2), (b"1-1", b"1-2"), (b"a", b"b")))
    done = Event(EventId(1, 3), events.DONE, b'{"finish_reason":"stop","usage":null}')
    tail.take(Carried(events.DONE, [done], done.id, done.id))
    assert tail.tokens_between(EventId(0, 0), EventId(1, 3)) == 2
    assert tail.tokens_between(EventId(1, 2), EventId(1, 3)) == 0
