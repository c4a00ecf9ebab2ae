"""Tokens in whatever carries them: each is found by its stamp, at C speed, and nothing around it is parsed."""

from __future__ import annotations

import gc
import re
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Any

from bench.histogram import Histogram
from bench.processes.control import Orders, answer
from bench.scan import now_us

_TOKEN = re.compile(rb"~(\d{5}) (\d+) (\d+)\d{3}~")
"""Stream number, offset, and the stamp in microseconds (bench.scan has the whole of it)."""
STAMP_BYTES_MAX = 64
"""No stamp is longer: what may hold the beginning of one at the end of a read."""
_PENDING_MAX = 20_000


class Stamped(ABC):
    """A process that sees every token of many streams once, and takes its time. Subclasses say where tokens come from.

    The same orders as bench.processes.load: mark, cut, drain.
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
        """Wait so long at most for something to read, and read it; orders too."""

    def read_orders(self) -> None:
        self._due += self.orders.read()

    def take(self, data: bytes) -> int:
        """Account for the tokens of a read that begins with what the last one left; where the last of them ends."""
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
        """From here on events are counted and timed."""
        self._pending.clear()
        self._latencies = Histogram()
        self.events = self.reads = self.wire_bytes = 0
        self._marked_at, self._marked_cpu = time.monotonic(), time.process_time()
        return {"at": self._marked_at}

    def do_cut(self) -> dict[str, Any]:
        """How much came since the mark."""
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
        """Wait until every stream has been seen up to an offset; the whole account."""
        began = time.monotonic()
        while min(self._next) <= last and time.monotonic() < began + within_seconds:
            self.turn(0.02)
        self._latencies.take(self._pending)
        return {
            "behind": sum(one <= last for one in self._next),
            "lacking": sum(max(0, last + 1 - one) for one in self._next),
            "drain_seconds": time.monotonic() - began,
            "latency": self._latencies.stored(),
            "faults": {"missing": self.missing, "doubled": self.doubled},
        }


def run(kind: Callable[[dict[str, Any], Orders], Stamped]) -> None:
    """Be such a process: the first order is its plan."""
    orders = Orders()
    try:
        one = kind(orders.next(), orders)
        answer({"ready": True})
        gc.disable()
        one.serve()
    except (OSError, KeyError, ValueError, socket.gaierror) as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
