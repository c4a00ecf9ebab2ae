"""`python -m bench.processes.provider`: an OpenAI-compatible server, cheap enough to measure a worker with.

It speaks HTTP itself, over one epoll. Flat out, it sends prepared bytes as fast as the worker reads them. Paced, it sends
tokens to all answers at one rate, each stamped when sent. Orders: status, go.
"""

from __future__ import annotations

import errno
import gc
import re
import select
import socket
import time
from typing import Any

from bench.histogram import Histogram
from bench.processes.control import Orders, answer, errors_answered
from bench.scan import stamp_text

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_CHUNK = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"bench","choices":[%b]}\n\n'
)
_CHOICE = b'{"index":0,"delta":{"content":"%b"},"finish_reason":null}'
_LAST = b'{"index":0,"delta":{},"finish_reason":"stop"}'
_USAGE = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"bench","choices":[],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":%d,"total_tokens":%d}}\n\n'
)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_NUMBER = re.compile(rb"bench (\d+)")
_REQUEST_BYTES_MAX = 1 << 20
_WRITE_BYTES = 32_768
"""Bytes per write when flat out; then the next answer has its turn."""
_TICK_SECONDS = 0.0003


class Connection:
    __slots__ = ("number", "received", "sock", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.number = -1
        """The stream's number, from the prompt; -1 between two requests."""
        self.unsent: memoryview | None = None


class Provider:
    def __init__(self, plan: dict[str, Any], orders: Orders) -> None:
        self._orders = orders
        self._tokens: int = plan["tokens"]
        self._paced: bool = plan["paced"]
        self._whole = memoryview(_HEAD + b"".join(self._texts()) + self._end()) if not self._paced else memoryview(b"")
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self._epoll = select.epoll()
        self._epoll.register(self._listening.fileno(), select.EPOLLIN)
        self._epoll.register(orders.fd, select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self._due: list[dict[str, Any]] = []
        self.requests = self.blocked = 0

    def serve(self) -> None:
        while True:
            self._turn(1.0)
            while self._due:
                order = self._due.pop(0)
                answer(self._go(order["rate"]) if order["op"] == "go" else self._status())

    def _status(self) -> dict[str, Any]:
        waiting = sum(connection.number >= 0 for connection in self._connections.values())
        return {"requests": self.requests, "waiting": waiting, "cpu_seconds": time.process_time()}

    def _go(self, rate: float) -> dict[str, Any]:
        """Sends the waiting answers their tokens in turn, `rate` a second over all of them, then ends them.

        `send_us_per_token` is the CPU time of making and writing a chunk, without that of waiting.
        """
        waiting = [connection for connection in self._connections.values() if connection.number >= 0]
        answer({"began": time.monotonic(), "answers": len(waiting)})
        began, cpu, lag = time.monotonic(), time.process_time(), Histogram()
        send_seconds = 0.0
        sent, total = 0, len(waiting) * self._tokens
        while sent < total:
            now = time.monotonic()
            due = min(total, int((now - began) * rate) + 1)
            if due <= sent:
                self._turn(0.0)
                time.sleep(_TICK_SECONDS)
                continue
            lag.record(int((now - began - sent / rate) * 1e6))
            sending = time.thread_time()
            while sent < due:
                connection = waiting[sent % len(waiting)]
                offset = sent // len(waiting) + 1
                text = stamp_text(connection.number, offset, time.monotonic_ns())
                self._send(connection, _chunked(_CHUNK % (_CHOICE % text)))
                sent += 1
            send_seconds += time.thread_time() - sending
        for connection in waiting:
            self._send(connection, self._end())
            connection.number = -1
        wall = time.monotonic() - began
        return {
            "tokens": sent,
            "seconds": wall,
            "send_us_per_token": 1e6 * send_seconds / sent,
            "last": self._tokens,
            "lag_us": lag.stored(),
            "blocked": self.blocked,
            "utilisation": (time.process_time() - cpu) / wall,
        }

    # --- HTTP

    def _turn(self, seconds: float) -> None:
        for fd, events in self._epoll.poll(seconds, 1024):
            connection = self._connections.get(fd)
            if connection is not None:
                try:
                    self._serve(connection, events)
                except OSError as error:
                    if error.errno != errno.EAGAIN:
                        self._drop(connection)
            elif fd == self._orders.fd:
                self._due += self._orders.read()
            else:
                self._accept()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[sock.fileno()] = Connection(sock)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _serve(self, connection: Connection, events: int) -> None:
        if events & select.EPOLLOUT:
            self._send_on(connection)
        if not events & select.EPOLLIN:
            return
        data = connection.sock.recv(65_536)
        connection.received += data
        head, blank, body = connection.received.partition(b"\r\n\r\n")
        if not data or len(connection.received) > _REQUEST_BYTES_MAX:
            self._drop(connection)
            return
        length = _LENGTH.search(head)
        if not blank or (length is not None and len(body) < int(length[1])):
            return
        number = _NUMBER.search(body)
        connection.received = b""
        connection.number = int(number[1]) if number else 0
        self.requests += 1
        if self._paced:
            self._send(connection, _HEAD)
        else:
            connection.unsent = self._whole
            self._send_on(connection)

    def _send_on(self, connection: Connection) -> None:
        if connection.unsent is not None:
            sent = connection.sock.send(connection.unsent[:_WRITE_BYTES])
            connection.unsent = connection.unsent[sent:]
        ended = not connection.unsent
        if ended:
            connection.unsent = None
            connection.number = connection.number if self._paced else -1
        self._epoll.modify(connection.sock.fileno(), select.EPOLLIN | (0 if ended else select.EPOLLOUT))

    def _send(self, connection: Connection, data: bytes) -> None:
        if connection.unsent is not None:
            connection.unsent = memoryview(bytes(connection.unsent) + data)
            return
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return
        if sent < len(data):
            self.blocked += 1
            connection.unsent = memoryview(data)[sent:]
            self._epoll.modify(connection.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _drop(self, connection: Connection) -> None:
        fd = connection.sock.fileno()
        self._connections.pop(fd, None)
        if fd >= 0:
            self._epoll.unregister(fd)
        connection.sock.close()

    def _texts(self) -> list[bytes]:
        return [_chunked(_CHUNK % (_CHOICE % (b" word%d" % (offset % 10)))) for offset in range(self._tokens)]

    def _end(self) -> bytes:
        usage = _USAGE % (self._tokens, self._tokens + 1)
        return _chunked(_CHUNK % _LAST) + _chunked(usage) + _chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def main() -> None:
    orders = Orders()
    with errors_answered():
        provider = Provider(orders.next(), orders)
        gc.disable()
        answer({"port": provider.port})
        provider.serve()


if __name__ == "__main__":
    main()
