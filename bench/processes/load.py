"""`python -m bench.processes.load`: many readers of Server-Sent Events in one process, cheap enough not to limit the measurement.

It has one epoll, large reads, and no task or object per event. bench.workloads.follow orders: connect, mark, cut, drain, storm.
"""

from __future__ import annotations

import errno
import gc
import select
import socket
import time
from typing import Any

from bench.histogram import Histogram
from bench.processes import procs
from bench.processes.control import Orders, answer, errors_answered
from bench.scan import Broken, Scanner, Tally, Unchunker, now_us

_READ_BYTES = 65_536
_STORM_READ_BYTES = 262_144
_HEAD_BYTES_MAX = 16_384
_STORM_BYTES_MAX = 1 << 30
"""The bodies of a storm are kept, at most a gigabyte in all, and checked when the clock has stopped."""
_AT_ONCE = 1024


class Reader:
    __slots__ = ("body", "chunked", "done_at", "head", "opened_at", "scanner", "sock", "stream", "tail", "unchunker")

    def __init__(self, stream: str, scanner: Scanner) -> None:
        self.stream = stream
        self.scanner = scanner
        self.unchunker = Unchunker()
        self.chunked = True
        self.head: bytes | None = None
        """The received part of the response's head; None until connected, b"-" once it is complete."""
        self.sock: socket.socket
        self.opened_at = self.done_at = 0.0
        self.body: list[bytes] = []
        self.tail = b""


class Load:
    def __init__(self, plan: dict[str, Any], orders: Orders) -> None:
        self._orders = orders
        found = socket.getaddrinfo(plan["host"], plan["port"], type=socket.SOCK_STREAM)[0]
        family, kind, protocol = found[:3]
        self._address: Any = found[4]
        self._socket_kind = (family, kind, protocol)
        self._host_header = f"{plan['host']}:{plan['port']}"
        self._path: str = plan["path"]
        self._tokens: dict[str, str] = dict(zip(plan["streams"], plan.get("tokens", ()), strict=False))
        self._epoll = select.epoll()
        self._epoll.register(orders.fd, select.EPOLLIN)
        self._tally = Tally()
        streams: list[str] = plan["streams"]
        first, count = plan["first_reader"], plan["readers"]
        if count > len(streams):
            self._tally.parsed = {}
        self._readers = [
            Reader(streams[i % len(streams)], Scanner(self._tally, i, i % len(streams), first=plan["first_offset"]))
            for i in range(first, first + count)
        ]
        self._open: dict[int, Reader] = {}
        self._connecting: set[int] = set()
        self.refused = self.closed = self.broken = self.reads = self.wire_bytes = 0
        self._why = ""
        self._marked_at = self._marked_cpu = 0.0
        self._due: list[dict[str, Any]] = []

    def serve(self) -> None:
        while True:
            self._turn(1.0)
            while self._due:
                order = self._due.pop(0)
                op = order.pop("op")
                answer(getattr(self, f"do_{op}")(**order))

    # --- orders

    def do_connect(self, after: str, at_once: int, within_seconds: float) -> dict[str, Any]:
        """Opens all readers, at most `at_once` at a time, each up to the head of its response."""
        deadline = time.monotonic() + within_seconds
        waiting = list(reversed(self._readers))
        while (waiting or self._connecting) and time.monotonic() < deadline:
            while waiting and len(self._connecting) < at_once:
                self._connect(waiting.pop(), after)
            self._turn(0.05)
        self._stop_garbage_collection()
        return {"connected": len(self._open) - len(self._connecting), "refused": self.refused, "why": self._why}

    def do_mark(self) -> dict[str, Any]:
        """Begins to count and time events."""
        self._tally.reset()
        self.reads = self.wire_bytes = 0
        self._marked_at, self._marked_cpu = time.monotonic(), time.process_time()
        return {"at": self._marked_at}

    def do_cut(self) -> dict[str, Any]:
        """Returns the counts since the mark. Latencies are taken until the drain has ended."""
        seconds = time.monotonic() - self._marked_at
        cpu = time.process_time() - self._marked_cpu
        return {
            "events": self._tally.events,
            "reads": self.reads,
            "wire_bytes": self.wire_bytes,
            "seconds": seconds,
            "utilisation": cpu / seconds,
        }

    def do_drain(self, last: int, within_seconds: float) -> dict[str, Any]:
        """Waits until every reader has every event up to offset `last`; returns latencies and faults."""
        began = time.monotonic()
        looked_at = 0.0
        behind = 1
        while behind and (now := time.monotonic()) < began + within_seconds:
            self._turn(0.02)
            if now - looked_at > 0.02:
                looked_at = now
                behind = self._behind(last)
        tally = self._tally
        tally.settle()
        return {
            "behind": behind,
            "lacking": self._lacking(last),
            "drain_seconds": time.monotonic() - began,
            "latency": tally.latencies.stored(),
            "faults": {**tally.faults(), "closed": self.closed, "refused": self.refused, "broken": self.broken},
            "why": self._why,
        }

    def do_storm(self, after: str, last: int, within_seconds: float) -> dict[str, Any]:
        """Connects all readers at once, and waits until they have caught up to offset `last`; checks the bodies afterwards."""
        marker = b"id: 1-%d\n" % last
        gc.disable()
        began, cpu = time.monotonic(), time.process_time()
        deadline = began + within_seconds
        for reader in self._readers:
            self._connect(reader, after)
        done = kept = 0
        while done < len(self._readers) and time.monotonic() < deadline and kept < _STORM_BYTES_MAX:
            for fd, events in self._epoll.poll(0.05, _AT_ONCE):
                reader = self._open.get(fd)  # type: ignore[assignment]
                if reader is None:
                    self._take_orders()
                elif reader.head is None:
                    self._connected(reader, events)
                else:
                    try:
                        data = reader.sock.recv(_STORM_READ_BYTES)
                    except OSError as error:
                        if error.errno not in (errno.EAGAIN, errno.EINTR):
                            self._lose(reader, str(error))
                        continue
                    if not data:
                        self._lose(reader, "closed by the server")
                        continue
                    kept += len(data)
                    reader.body.append(data)
                    tail = reader.tail + data[-1024:]
                    found = tail.find(marker)
                    if found >= 0 and not reader.done_at and tail.find(b"\n\n", found) >= 0:
                        reader.done_at = time.monotonic()
                        done += 1
                    reader.tail = tail[-256:]
        seconds = max((reader.done_at for reader in self._readers), default=0.0) - began if done else 0.0
        times = Histogram()
        for reader in self._readers:
            if reader.done_at:
                times.record(int((reader.done_at - reader.opened_at) * 1e6))
        utilisation = (time.process_time() - cpu) / max(0.001, time.monotonic() - began)
        self._check_bodies()
        tally = self._tally
        return {
            "seconds": seconds,
            "caught_up": done,
            "behind": self._behind(last),
            "lacking": self._lacking(last),
            "events": tally.events,
            "wire_bytes": kept,
            "utilisation": utilisation,
            "latency": times.stored(),
            "faults": {**tally.faults(), "closed": self.closed, "refused": self.refused, "broken": self.broken},
            "why": self._why,
        }

    def do_close(self) -> dict[str, Any]:
        for reader in list(self._open.values()):
            self._drop(reader)
        return {}

    # --- connections

    def _connect(self, reader: Reader, after: str) -> None:
        reader.sock = socket.socket(*self._socket_kind)
        reader.sock.setblocking(False)
        reader.opened_at = time.monotonic()
        failed = reader.sock.connect_ex(self._address)
        fd = reader.sock.fileno()
        self._open[fd] = reader
        self._connecting.add(fd)
        self._epoll.register(fd, select.EPOLLOUT)
        last = f"Last-Event-ID: {after}\r\n" if after else ""
        if reader.stream in self._tokens:
            last += f"Authorization: Bearer {self._tokens[reader.stream]}\r\n"
        reader.body = [
            f"GET {self._path % reader.stream} HTTP/1.1\r\nHost: {self._host_header}\r\n"
            f"Accept: text/event-stream\r\n{last}\r\n".encode()
        ]
        if failed not in (0, errno.EINPROGRESS):
            self._lose(reader, errno.errorcode.get(failed, str(failed)))

    def _connected(self, reader: Reader, events: int) -> None:
        failed = reader.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failed or not events & select.EPOLLOUT:
            self._lose(reader, errno.errorcode.get(failed, "not connected"))
            return
        reader.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader.sock.send(reader.body.pop())  # fits into the buffer of a new socket
        reader.head = b""
        self._epoll.modify(reader.sock.fileno(), select.EPOLLIN)

    def _head(self, reader: Reader, data: bytes) -> bytes:
        """Reads the response's head; returns the part of the body that came with it. Raises Broken."""
        assert reader.head is not None
        reader.head += data
        head, blank, body = reader.head.partition(b"\r\n\r\n")
        if not blank:
            if len(head) > _HEAD_BYTES_MAX:
                raise Broken(f"the head of a response has more than {_HEAD_BYTES_MAX} bytes")
            return b""
        status = head.split(b" ", 2)[1] if head.startswith(b"HTTP/1.") else b"?"
        if status != b"200":
            self.refused += 1
            raise Broken(f"answered {status.decode(errors='replace')}: {body[:200]!r}")
        reader.chunked = b"chunked" in head.lower()
        reader.head = b"-"
        self._connecting.discard(reader.sock.fileno())
        return body

    def _turn(self, seconds: float) -> None:
        """Reads every socket that is ready, and orders."""
        is_open, connecting = self._open, self._connecting
        for fd, events in self._epoll.poll(seconds, _AT_ONCE):
            reader = is_open.get(fd)
            if reader is None:
                self._take_orders()
                continue
            if reader.head is None:
                self._connected(reader, events)
                continue
            try:
                data = reader.sock.recv(_READ_BYTES)
                if not data:
                    self._lose(reader, "closed by the server")
                    continue
                now = now_us()
                self.reads += 1
                self.wire_bytes += len(data)
                if fd in connecting:
                    data = self._head(reader, data)
                body = reader.unchunker.feed(data) if reader.chunked else data
                if body:
                    reader.scanner.feed(body, now)
            except BlockingIOError:
                continue
            except (OSError, Broken) as error:
                self.broken += isinstance(error, Broken)
                self._lose(reader, str(error))

    def _take_orders(self) -> None:
        self._due += self._orders.read()

    def _lose(self, reader: Reader, why: str) -> None:
        self.closed += 1
        self._why = self._why or why
        self._drop(reader)

    def _drop(self, reader: Reader) -> None:
        fd = reader.sock.fileno()
        self._open.pop(fd, None)
        self._connecting.discard(fd)
        if fd >= 0:
            self._epoll.unregister(fd)
        reader.sock.close()

    def _check_bodies(self) -> None:
        """Checks the bodies that a storm has kept."""
        for reader in self._readers:
            body, reader.body = b"".join(reader.body), []
            head, _, body = body.partition(b"\r\n\r\n")
            try:
                if not head.startswith(b"HTTP/1.1 200"):
                    self.refused += 1
                    self._why = self._why or f"answered {head[:40]!r} {body[:200]!r}"
                    continue
                chunked = b"chunked" in head.lower()
                reader.scanner.feed(reader.unchunker.feed(body) if chunked else body, now_us())
            except Broken as error:
                self.broken += 1
                self._why = self._why or str(error)

    def _behind(self, last: int) -> int:
        return sum(reader.scanner.next <= last for reader in self._readers)

    def _lacking(self, last: int) -> int:
        return sum(max(0, last + 1 - reader.scanner.next) for reader in self._readers)

    @staticmethod
    def _stop_garbage_collection() -> None:
        """Turns the collector off: nothing here makes cycles, and its time would be measured."""
        gc.collect()
        gc.freeze()
        gc.disable()


def main() -> None:
    procs.raise_open_files_limit()
    orders = Orders()
    with errors_answered():
        load = Load(orders.next(), orders)
        answer({"ready": True})
        load.serve()


if __name__ == "__main__":
    main()
