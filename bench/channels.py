"""`python -m bench.channels`: a subscriber of streams' channels, that takes the time of each token as a gateway gets it.

It reads the replies as they stand: the stamps are found at C speed, no reply is parsed. The same orders as bench.load.
"""

from __future__ import annotations

import gc
import re
import select
import socket
import sys
import time
from collections import Counter
from typing import Any

from bench.control import Orders, answer
from bench.histogram import Histogram
from bench.publish import connect, pack
from bench.scan import now_us
from shared.keys import live_channel
from shared.redis import RedisAddress

_TOKEN = re.compile(rb"~(\d{5}) (\d+) (\d+)\d{3}~")
_CONFIRMED = b"ssubscribe\r\n"


class Channels:
    def __init__(self, plan: dict[str, Any], orders: Orders) -> None:
        self._orders = orders
        self._sock = connect(RedisAddress.parse(plan["redis"]))
        streams: list[str] = plan["streams"]
        self._next = [1] * len(streams)
        self._rest = b""
        self._due: list[dict[str, Any]] = []
        self._pending: Counter[int] = Counter()
        self._latencies = Histogram()
        self.events = self.missing = self.doubled = self.reads = self.wire_bytes = 0
        self._marked_at = self._marked_cpu = 0.0
        self._sock.sendall(b"".join(pack(("SSUBSCRIBE", live_channel(one))) for one in streams))
        confirmed, received = 0, b""
        while confirmed < len(streams):  # before anything is published: these replies stand alone
            received += self._sock.recv(65_536)
            confirmed = received.count(_CONFIRMED)
        self._sock.setblocking(False)

    def serve(self) -> None:
        while True:
            self._turn(1.0)
            while self._due:
                order = self._due.pop(0)
                op = order.pop("op")
                answer(getattr(self, f"do_{op}")(**order))

    def do_mark(self) -> dict[str, Any]:
        self._pending.clear()
        self._latencies = Histogram()
        self.events = self.reads = self.wire_bytes = 0
        self._marked_at, self._marked_cpu = time.monotonic(), time.process_time()
        return {"at": self._marked_at}

    def do_cut(self) -> dict[str, Any]:
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
        began = time.monotonic()
        while min(self._next) <= last and time.monotonic() < began + within_seconds:
            self._turn(0.02)
        self._latencies.take(self._pending)
        return {
            "behind": sum(one <= last for one in self._next),
            "lacking": sum(max(0, last + 1 - one) for one in self._next),
            "drain_seconds": time.monotonic() - began,
            "latency": self._latencies.stored(),
            "faults": {"missing": self.missing, "doubled": self.doubled},
        }

    def _turn(self, seconds: float) -> None:
        for source in select.select([self._sock, self._orders.fd], [], [], seconds)[0]:
            if source is self._sock:
                self._read()
            else:
                self._due += self._orders.read()

    def _read(self) -> None:
        data = self._sock.recv(262_144)
        if not data:
            raise OSError("Redis closed the connection")
        now = now_us()
        self.reads += 1
        self.wire_bytes += len(data)
        data = self._rest + data
        cut = data.rfind(b"\r\n") + 2
        self._rest = data[cut:] if cut > 1 else data
        found = _TOKEN.findall(data, 0, cut if cut > 1 else 0)
        following = self._next
        for number, offset, stamp in found:
            stream, at = int(number), int(offset)
            expected = following[stream]
            if at == expected:
                following[stream] = at + 1
            elif at > expected:
                self.missing += at - expected
                following[stream] = at + 1
            else:
                self.doubled += 1
            self._pending[now - int(stamp)] += 1
        self.events += len(found)
        if len(self._pending) > 20_000:
            self._latencies.take(self._pending)


def main() -> None:
    orders = Orders()
    try:
        channels = Channels(orders.next(), orders)
        answer({"ready": True})
        gc.disable()
        channels.serve()
    except (OSError, KeyError, ValueError, socket.gaierror) as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
