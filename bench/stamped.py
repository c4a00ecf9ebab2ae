"""Finds tokens by their stamps, at C speed, without parsing the protocol around them."""

from __future__ import annotations

import gc
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Any

from bench.histogram import Histogram
from bench.processes.control import Orders, answer, errors_answered
from bench.scan import now_us

_TOKEN = re.compile(rb"~(\d{5}) (\d+) (\d+)\d{3}~")
"""Groups: stream number, offset, and the stamp in microseconds (`bench.scan` describes the text)."""
STAMP_BYTES_MAX = 64
"""The longest stamp: so many bytes at the end of a read may be the beginning of one."""
_PENDING_MAX = 20_000


class Stamped(ABC):
    """A process that receives every token of many streams once, and measures latencies. Subclasses read the tokens.

    Orders, as in bench.processes.load: mark, cut, drain.
    """

    def __init__(self, orders: Orders, streams: int) -> None:
        self.orders = orders
        self._next = [1] * streams
        self._due: list[dict[str, Any]] = []
        self._pending: Counter[int] = Counter()
        self._latencies = Histogram()
        self.events = self.missing = self.doubled = self.reads = self.wire_bytes = 0
        self._marked_at = self._marked_cpu = 0.0

    def serve(self) -> None:
        while True:
            self.turn(1.0)
            while self._due:
                order = self._due.pop(0)
                op = order.pop("op")
                answer(getattr(self, f"do_{op}")(**order))

    @abstractmethod
    def turn(self, seconds: float) -> None:
        """Waits for tokens or orders for at most `seconds`, and reads them."""

    def read_orders(self) -> None:
        self._due += self.orders.read()

    def take(self, data: bytes) -> int:
        """Counts the tokens in `data`, which begins with the unused end of the last read; returns where the last token ends."""
        now = now_us()
        self.reads += 1
        following, pending, end, found = self._next, self._pending, 0, 0
        for token in _TOKEN.finditer(data):
            number, offset, stamp = token.groups()
            stream, at = int(number), int(offset)
            expected = following[stream]
            if at == expected:
                following[stream] = at + 1
            elif at > expected:
                self.missing += at - expected
                following[stream] = at + 1
            else:
                self.doubled += 1
            pending[now - int(stamp)] += 1
            found += 1
            end = token.end()
        self.events += found
        if len(pending) > _PENDING_MAX:
            self._latencies.take(pending)
        return end

    # --- orders

    def do_mark(self) -> dict[str, Any]:
        """Begins to count and time events."""
        self._pending.clear()
        self._latencies = Histogram()
        self.events = self.reads = self.wire_bytes = 0
        self._marked_at, self._marked_cpu = time.monotonic(), time.process_time()
        return {"at": self._marked_at}

    def do_cut(self) -> dict[str, Any]:
        """Returns the counts since the mark."""
        seconds = time.monotonic() - self._marked_at
        utilisation = (time.process_time() - self._marked_cpu) / seconds
        return {
            "events": self.events,
            "reads": self.reads,
            "wire_bytes": self.wire_bytes,
            "seconds": seconds,
            "utilisation": utilisation,
        }

    def do_drain(self, last: int, within_seconds: float) -> dict[str, Any]:
        """Waits until every stream has reached offset `last`; returns latencies and faults."""
        began = time.monotonic()
        while min(self._next) <= last and time.monotonic() < began + within_seconds:
            self.turn(0.02)
        self._latencies.take(self._pending)
        return {
            "behind": sum(offset <= last for offset in self._next),
            "lacking": sum(max(0, last + 1 - offset) for offset in self._next),
            "drain_seconds": time.monotonic() - began,
            "latency": self._latencies.stored(),
            "faults": {"missing": self.missing, "doubled": self.doubled},
        }


def run(kind: Callable[[dict[str, Any], Orders], Stamped]) -> None:
    """Runs a process of this kind; the first order is its plan."""
    orders = Orders()
    with errors_answered():
        process = kind(orders.next(), orders)
        answer({"ready": True})
        gc.disable()
        process.serve()
