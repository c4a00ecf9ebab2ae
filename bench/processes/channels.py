"""`python -m bench.processes.channels`: subscribes to streams' channels as a gateway does, and times each token."""

from __future__ import annotations

import select
from typing import Any

from bench.processes.control import Orders
from bench.processes.publish import connect, pack
from bench.stamped import Stamped, run
from shared.keys import live_channel
from shared.redis_server import RedisAddress

_CONFIRMED = b"ssubscribe\r\n"


class Channels(Stamped):
    def __init__(self, plan: dict[str, Any], orders: Orders) -> None:
        streams: list[str] = plan["streams"]
        super().__init__(orders, len(streams))
        self._sock = connect(RedisAddress.parse(plan["redis"]))
        self._rest = b""
        self._sock.sendall(b"".join(pack(("SSUBSCRIBE", live_channel(stream))) for stream in streams))
        confirmed, received = 0, b""
        while confirmed < len(streams):  # nothing is published yet, so only these replies come
            received += self._sock.recv(65_536)
            confirmed = received.count(_CONFIRMED)
        self._sock.setblocking(False)

    def turn(self, seconds: float) -> None:
        for source in select.select([self._sock, self.orders.fd], [], [], seconds)[0]:
            if source is self._sock:
                self._read()
            else:
                self.read_orders()

    def _read(self) -> None:
        data = self._sock.recv(262_144)
        if not data:
            raise OSError("Redis closed the connection")
        self.wire_bytes += len(data)
        data = self._rest + data
        cut = data.rfind(b"\r\n") + 2
        self._rest = data[cut:] if cut > 1 else data
        if cut > 1:
            self.take(data[:cut])


if __name__ == "__main__":
    run(Channels)
