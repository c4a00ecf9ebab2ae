"""Checks and times every event that a reader received, at C speed and without an object per event.

A token's text is `~<stream number> <offset> <CLOCK_MONOTONIC ns>~` and padding. It shows for each event whether it belongs
to the reader's stream, whether its id matches its offset, whether it is the next one, and how old it is.
"""

from __future__ import annotations

import re
import time
from collections import Counter

from bench.histogram import Histogram

TOKEN = re.compile(rb'(?:id: 1-(\d+)\n)?data: \{"token":"~(\d{5}) (\d+) (\d+)\d{3}~[^\n]*(?:\nid: 1-(\d+))?')
"""Groups: the id if it is the event's first line, as sse-starlette has it; stream number, offset, the stamp in microseconds
(without its last three digits); the id if it is the last line, as a gateway has it."""
_NAMED = re.compile(rb"^event: (\w+)", re.MULTILINE)
_HARMLESS = frozenset({b"started", b"live", b"done", b"accepted"})
_UNREAD_BYTES_MAX = 4 << 20
"""Bytes kept until an event is complete. An event has 100 bytes, a chunk at most one page of a log."""
_GAPS_KEPT_MAX = 100_000
_PENDING_MAX = 20_000


class Broken(Exception):
    """The bytes received are not HTTP, or not Server-Sent Events."""


def stamp_text(number: int, offset: int, stamp_ns: int, padding: bytes = b"") -> bytes:
    """Returns the text of a token, in the form that the scanner reads."""
    return b"~%05d %d %d~%b" % (number, offset, stamp_ns, padding)


class Unchunker:
    """Decodes HTTP/1.1 chunked coding (RFC 9112, section 7.1), however its bytes are split."""

    __slots__ = ("_left", "_rest", "chunks", "ended")

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        """Bytes of the current chunk, including its CRLF, that have not come yet."""
        self.chunks = 0
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if not self._left:  # the common case: one whole chunk
            head = data.find(b"\r\n", 0, 20)
            if head > 0 and (size := _size(data[:head])) and head + 4 + size == len(data):
                self.chunks += 1
                return data[head + 2 : -2]
        parts, position, end = [], 0, len(data)
        while position < end:
            if self._left:
                taken = min(self._left, end - position)
                parts.append(data[position : position + min(taken, max(0, self._left - 2))])
                self._left -= taken
                position += taken
                continue
            head = data.find(b"\r\n", position, position + 20)
            if head < 0:
                if end - position > 20:
                    raise Broken("a chunk has no size")
                self._rest = data[position:]
                break
            size = _size(data[position:head])
            position = head + 2
            if not size:
                self.ended = True
                break
            self.chunks += 1
            self._left = size + 2
        return b"".join(parts)


def _size(digits: bytes) -> int:
    try:
        return int(digits, 16)
    except ValueError:
        raise Broken(f"{digits[:20]!r} is not the size of a chunk") from None


class Tally:
    """Counts of what all readers of one process received."""

    def __init__(self) -> None:
        self.events = self.missing = self.doubled = self.out_of_order = self.strangers = 0
        """`strangers`: events of another stream, or whose id differs from their offset."""
        self.named: Counter[str] = Counter()
        """Named events that must not occur in a run: gap, failed, restarted, cancelled."""
        self.gaps: set[tuple[int, int]] = set()
        """(reader, offset) of missing tokens; they may still come, out of order."""
        self.latencies = Histogram()
        self.pending: Counter[int] = Counter()
        self.parsed: dict[bytes, _Parsed] | None = None
        """Cache of parsed chunks, since many readers get equal ones. None if every reader has a stream of its own."""

    def settle(self) -> None:
        """Moves the pending latencies into the histogram."""
        self.latencies.take(self.pending)

    def reset(self) -> None:
        """Forgets latencies and the number of events, but not faults."""
        self.pending.clear()
        self.latencies = Histogram()
        self.events = 0

    def faults(self) -> dict[str, int]:
        counts = {
            "missing": self.missing,
            "doubled": self.doubled,
            "out_of_order": self.out_of_order,
            "strangers": self.strangers,
        }
        return {**counts, **{f"event_{name}": count for name, count in self.named.items()}}


class _Parsed:
    """The tokens of one piece of a body, in order. Stamps are in microseconds."""

    __slots__ = ("alike", "contiguous", "count", "first", "named", "number", "numbers", "offsets", "stamps")

    def __init__(self, body: bytes) -> None:
        found = TOKEN.findall(body)
        self.count = len(found)
        self.first = 0
        self.number = b""
        """The number of the stream, if all tokens are of one stream and have matching ids; else empty."""
        self.numbers: tuple[bytes, ...] = ()
        self.alike: list[bool] = []
        """For each token whether its id matches its offset; empty if all do."""
        self.contiguous = False
        self.offsets: list[int] = []
        self.stamps: list[int] = []
        self.named: list[bytes] = _NAMED.findall(body) if body.count(b"\n\n") != self.count else []
        if found:
            first_ids, numbers, offsets, stamps, last_ids = zip(*found, strict=True)
            ids = first_ids if first_ids[0] else last_ids
            self.offsets = list(map(int, offsets))
            self.stamps = list(map(int, stamps))
            self.first = self.offsets[0]
            self.numbers = numbers
            self.alike = (
                [event_id == offset for event_id, offset in zip(ids, offsets, strict=True)] if ids != offsets else []
            )
            if not self.alike and numbers.count(numbers[0]) == self.count:
                self.number = numbers[0]
                self.contiguous = self.offsets == list(range(self.first, self.first + self.count))


class Scanner:
    """Checks the body of one reader."""

    __slots__ = ("_number", "_own", "_rest", "next", "reader", "tally")

    def __init__(self, tally: Tally, reader: int, number: int, *, first: int = 1) -> None:
        self.tally = tally
        self.reader = reader
        self.next = first
        """The offset that must come next."""
        self._number = number
        self._own = b"%05d" % number
        self._rest = b""

    def feed(self, body: bytes, now_us: int) -> None:
        """Checks the next bytes of the body, received at `now_us`. Raises Broken."""
        if self._rest:
            body = self._rest + body
            self._rest = b""
        if not body.endswith(b"\n\n"):
            cut = body.rfind(b"\n\n") + 2
            self._rest = body[cut:] if cut > 1 else body
            if len(self._rest) > _UNREAD_BYTES_MAX:
                raise Broken(f"an event of more than {_UNREAD_BYTES_MAX} bytes")
            if cut < 2:
                return
            body = body[:cut]
        tally = self.tally
        known = tally.parsed
        if known is None:
            if body.count(b"\n\n") == 1:  # the common case of a reader with a stream of its own
                token = TOKEN.match(body)
                if token is not None:
                    first_id, number, offset, stamp, last_id = token.groups()
                    if (first_id or last_id) == offset and number == self._own and int(offset) == self.next:
                        self.next += 1
                        tally.events += 1
                        tally.pending[now_us - int(stamp)] += 1
                        return
            parsed = _Parsed(body)
        else:
            found = known.get(body)
            if found is None:
                if len(known) > 256:
                    known.clear()
                found = known[body] = _Parsed(body)
            parsed = found
        if parsed.named:
            for name in parsed.named:
                if name not in _HARMLESS:
                    tally.named[name.decode()] += 1
        count = parsed.count
        if not count:
            return
        tally.events += count
        if parsed.contiguous and parsed.first == self.next and parsed.number == self._own:
            self.next += count
        else:
            self._examine(parsed)
        if count == 1:
            tally.pending[now_us - parsed.stamps[0]] += 1
        else:
            tally.pending.update(map(now_us.__sub__, parsed.stamps))
        if len(tally.pending) > _PENDING_MAX:
            tally.settle()

    def _examine(self, parsed: _Parsed) -> None:
        """Counts the faults of each event, when at least one is not the expected one."""
        tally = self.tally
        for index, offset in enumerate(parsed.offsets):
            if parsed.numbers[index] != self._own or (parsed.alike and not parsed.alike[index]):
                tally.strangers += 1
            elif offset == self.next:
                self.next += 1
            elif offset > self.next:
                tally.missing += offset - self.next
                room = _GAPS_KEPT_MAX - len(tally.gaps)
                tally.gaps.update((self.reader, missing) for missing in range(self.next, min(offset, self.next + room)))
                self.next = offset + 1
            elif (self.reader, offset) in tally.gaps:
                tally.gaps.discard((self.reader, offset))
                tally.missing -= 1
                tally.out_of_order += 1
            else:
                tally.doubled += 1


def now_us() -> int:
    return time.monotonic_ns() // 1000
