"""Event ids: `<attempt>-<offset>`, the ids of the Redis Stream that is the log.

They are tuples, so that Python compares them as Redis does: first the attempt, then the offset.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import NamedTuple

from shared.errors import MalformedId

ID_PART_MAX = (1 << 53) - 1
"""The largest attempt, and the largest offset: scripts count in doubles. Redis itself takes 64 bits."""
_EVENT_ID = re.compile(r"(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})", re.ASCII)
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_STREAM_ID = re.compile(rf"[{_ALPHABET}]{{36}}", re.ASCII)
_TIME_DIGITS = 10
_SECRET_DIGITS = 26  # 130 bits: whoever knows a name may read the stream, so nobody may guess one


class EventId(NamedTuple):
    """The place of one event in a log. Its parts have at most 16 digits, which Lua's doubles and Redis's 64 bits can hold."""

    attempt: int
    offset: int

    def __str__(self) -> str:
        return f"{self.attempt}-{self.offset}"

    def __bytes__(self) -> bytes:
        return b"%d-%d" % self

    @classmethod
    def parse(cls, text: str) -> EventId:
        """Returns the id that a client sent. Raises MalformedId."""
        match = _EVENT_ID.fullmatch(text)
        if match is None:
            raise MalformedId(f"{text[:64]!r} is not an event id: `<attempt>-<offset>`, two whole numbers, as in 1-57")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of(cls, raw: bytes) -> EventId:
        """Returns the id that Redis sent, which is trusted to be well formed."""
        attempt, _, offset = raw.partition(b"-")
        return tuple.__new__(cls, (int(attempt), int(offset)))  # half the time of cls(...): once per entry read


BEGINNING = EventId(0, 0)
FIRST_ID = EventId(0, 1)


def new_stream_id(now: float | None = None) -> str:
    """Returns a name for a stream that cannot be guessed and contains the time (milliseconds), which shows whether the stream
    has expired."""
    number = int((time.time() if now is None else now) * 1000)
    digits = [_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_TIME_DIGITS))]
    return "".join(digits) + "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_DIGITS))


def is_stream_id(text: str) -> bool:
    return _STREAM_ID.fullmatch(text) is not None


def created_at(stream_id: str) -> float:
    """Returns when a stream was created (Unix seconds), from its name, which must be a stream id."""
    number = 0
    for digit in stream_id[:_TIME_DIGITS]:
        number = number << 5 | _ALPHABET.index(digit)
    return number / 1000
