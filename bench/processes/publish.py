"""`python -m bench.processes.publish`: appends tokens to logs at an exact rate, as a worker does, but far cheaper.

It sends the command of `EventLog.send_append`, packed once per stream; only the stream's number is filled in each time.
The loop is open: tokens are sent when due, however slow the readers are. It reports how late they were.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from typing import Any, cast

import hiredis
import orjson

from bench.histogram import Histogram
from bench.processes.control import Orders, answer, errors_answered
from bench.scan import stamp_text
from shared.event_log import EventLog
from shared.events import BATCH, TOKEN
from shared.keys import live_channel, log_key
from shared.redis_server import RedisAddress

_SLICE = 128
"""Commands per write. They share a stamp, taken before the first is built (0.05 ms)."""
_UNANSWERED_MAX = 20_000
_TICK_SECONDS = 0.0003
_REPLY_SECONDS = 10.0
_MARKED, _NUMBER = b"~##### ", b"#####"
"""The placeholder for the stream's number in the bytes that all streams of a round share."""


def connect(address: RedisAddress) -> socket.socket:
    """Opens a blocking connection and logs in. Raises OSError."""
    if address.tls:
        raise OSError("the bench publishes without TLS: give it a redis:// or unix:// address")
    if address.path:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address.path)
    else:
        sock = socket.create_connection((address.host, address.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reader = hiredis.Reader()
    for command in address.login_commands():
        sock.sendall(pack(command))
        while (reply := reader.gets()) is False:
            reader.feed(sock.recv(4096))
        if isinstance(reply, Exception):
            raise OSError(str(reply))
    return sock


def pack(arguments: tuple[Any, ...]) -> bytes:
    return cast(bytes, hiredis.pack_command(arguments))


class Publisher:
    def __init__(self, plan: dict[str, Any]) -> None:
        self._sock = connect(RedisAddress.parse(plan["redis"]))
        self._sock.sendall(pack(("SCRIPT", "LOAD", EventLog.APPEND.source)))
        self._sock.recv(4096)
        self._heads = []
        self._numbers = [b"%05d" % number for number in range(len(plan["streams"]))]
        for stream_id in plan["streams"]:
            keys = (log_key(stream_id), live_channel(stream_id))
            head = pack(("EVALSHA", EventLog.APPEND.digest, 1, *keys))
            self._heads.append(head.replace(b"*5\r\n", b"*9\r\n", 1))
        self._tokens_per_entry: int = plan["tokens_per_entry"]
        self._padding = b"x" * plan["padding"]
        self._plain: bytes | None = plan["plain"].encode() if plan.get("plain") else None
        """A text to append without a stamp, to measure Redis's memory."""
        self._held: int = plan["held"]
        """The number of entries in each log, at first `accepted` and `started`."""
        self._offset = 0
        self._at = 0
        """Streams that have got their entry in the current round."""
        self.sent = self.answered = 0
        self._refused = ""
        self._lag = Histogram()

    def run(self, rate: float, seconds: float, rounds: int) -> dict[str, Any]:
        """Appends for `seconds`, to the end of a round, or for `rounds` if that is not 0; `rate` in tokens/s, 0: flat out."""
        streams, unit = len(self._heads), self._tokens_per_entry
        per_second = rate / unit
        total = rounds * streams if rounds else max(streams, -(-int(per_second * seconds) // streams) * streams)
        answer({"began": time.monotonic()})
        began, cpu = time.monotonic(), time.process_time()
        self._lag = Histogram()
        sent = 0
        while sent < total and not self._refused:
            now = time.monotonic()
            due = total if not rate else min(total, int((now - began) * per_second) + 1)
            if due <= sent:
                self._hear(block=False)
                time.sleep(_TICK_SECONDS)
                continue
            if rate:
                self._lag.record(int((now - began - sent / per_second) * 1e6))
            count = min(due - sent, _SLICE, streams - self._at)
            self._send(count)
            sent += count
            self._hear(block=self.sent - self.answered > _UNANSWERED_MAX)
        while self.answered < self.sent and not self._refused:
            self._hear(block=True)
        wall = time.monotonic() - began
        if self._refused:
            return {"error": f"Redis refused an append: {self._refused}"}
        return {
            "tokens": sent * unit,
            "entries": sent,
            "seconds": wall,
            "last": self._offset,
            "lag_us": self._lag.stored(),
            "utilisation": (time.process_time() - cpu) / wall,
        }

    def _send(self, count: int) -> None:
        """Sends one entry to each of the next `count` streams of this round."""
        first, last = self._at, self._at + count
        tail = self._tail()
        replace = tail.replace
        self._sock.sendall(
            b"".join(
                [
                    head + replace(_NUMBER, number)
                    for head, number in zip(self._heads[first:last], self._numbers[first:last], strict=True)
                ]
            )
        )
        self.sent += count
        self._at = last
        if last == len(self._heads):
            self._at = 0
            self._held += 1
            self._offset += self._tokens_per_entry

    def _tail(self) -> bytes:
        """Packs length, id, field and value: equal for all streams of a round except for the placeholder."""
        now, unit = time.monotonic_ns(), self._tokens_per_entry
        offsets = range(self._offset + 1, self._offset + unit + 1)
        if self._plain is not None:
            texts = [self._plain] * unit
        else:
            texts = [stamp_text(0, offset, now, self._padding) for offset in offsets]
        field, value = (TOKEN, texts[0]) if unit == 1 else (BATCH, orjson.dumps([text.decode() for text in texts]))
        return (
            pack((self._held, b"1-%d" % offsets[-1], field, value)).partition(b"\r\n")[2].replace(b"~00000 ", _MARKED)
        )

    def _hear(self, *, block: bool) -> None:
        """Counts replies; a reply that is no integer is a refusal."""
        if block and not select.select([self._sock], [], [], _REPLY_SECONDS)[0]:
            self._refused = f"no reply within {_REPLY_SECONDS:g} s"
            return
        try:
            data = self._sock.recv(262_144, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            self._refused = "the connection was closed"
        self.answered += data.count(b"\n")
        if data.translate(None, b":0123456789\r\n"):
            self._refused = data[:300].decode(errors="replace")


def main() -> None:
    orders = Orders()
    with errors_answered():
        publisher = Publisher(orders.next())
        answer({"ready": True})
        gc.disable()
        while True:
            order = orders.next()
            answer(publisher.run(order["rate"], order["seconds"], order["rounds"]))


if __name__ == "__main__":
    main()
