"""How many tokens lie between two places of a log."""

from __future__ import annotations

from collections.abc import Iterable

from shared.ids import EventId


def tokens_between(start: EventId, reached: EventId, attempts: Iterable[tuple[int, int, int]]) -> int:
    """Counts the tokens that were sent to a connection that went from one id to another, across attempts.

    Each attempt is told by its number, how many increments of earlier attempts it keeps, and the offset of its last
    increment. Number 0 is what stands before the first attempt: there are no tokens in it.
    """
    tokens = 0
    for number, kept_tokens, last in attempts:
        if number and start.attempt <= number <= reached.attempt:
            first = max(kept_tokens, start.offset) if number == start.attempt else kept_tokens
            tokens += max(0, (min(last, reached.offset) if number == reached.attempt else last) - first)
    return tokens
