"""`python -m bench.processes.any_face`: one reader per stream, through any face: SSE, NDJSON, text, WebSocket.

Readers find tokens by their stamps, so that one reader measures all faces, at equal cost of its own.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Any

from bench.processes.control import Orders
from bench.stamped import STAMP_BYTES_MAX, Stamped, run

_READ_BYTES = 65_536
_HEAD_BYTES_MAX = 16_384
_SUCCESS = (b"HTTP/1.1 200", b"HTTP/1.1 101")


class AnyFace(Stamped):
    def __init__(self, plan: dict[str, Any], orders: Orders) -> None:
        super().__init__(orders, len(plan["requests"]))
        self._address = (plan["host"], plan["port"])
        self._requests: list[str] = plan["requests"]
        self._epoll = select.epoll()
        self._epoll.register(orders.fd, select.EPOLLIN)
        self._open: dict[int, tuple[socket.socket, bytes]] = {}
        """By file descriptor: the connection, and the unused end of its last read."""
        self.closed = 0

    def do_connect(self, within_seconds: float) -> dict[str, Any]:
        """Opens all readers one after the other, each up to the head of its response."""
        deadline = time.monotonic() + within_seconds
        for request in self._requests:
            sock = socket.create_connection(self._address, timeout=max(0.01, deadline - time.monotonic()))
            sock.sendall(request.encode())
            received = b""
            while b"\r\n\r\n" not in received:
                data = sock.recv(_READ_BYTES)
                received += data
                if not data or len(received) > _HEAD_BYTES_MAX:
                    break
            if not received.startswith(_SUCCESS):
                return {"connected": len(self._open), "why": received[:200].decode(errors="replace")}
            sock.setblocking(False)
            self._open[sock.fileno()] = sock, b""
            self._epoll.register(sock.fileno(), select.EPOLLIN)
        return {"connected": len(self._open), "why": ""}

    def do_drain(self, last: int, within_seconds: float) -> dict[str, Any]:
        account = super().do_drain(last, within_seconds)
        return {**account, "faults": {**account["faults"], "closed": self.closed}}

    def turn(self, seconds: float) -> None:
        for fd, _ in self._epoll.poll(seconds):
            if fd == self.orders.fd:
                self.read_orders()
                continue
            sock, rest = self._open[fd]
            data = sock.recv(_READ_BYTES)
            if not data:
                self.closed += 1
                self._epoll.unregister(fd)
                continue
            self.wire_bytes += len(data)
            if rest:
                data = rest + data
            self._open[fd] = sock, data[self.take(data) :][-STAMP_BYTES_MAX:]


if __name__ == "__main__":
    run(AnyFace)
