"""An EventSource that follows a stream over as many connections as needed, cheap enough for hundreds of them.

It follows the WHATWG HTML standard: after a lost connection it waits for `retry:`, and reconnects with the last id. A status
other than 200 ends it for good: 204 as complete, any other as failed.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import httptools

from shared.sse import Decoder, Message
from tests.support.system import Answer, answer_of

_READ_BYTES = 65_536
_TERMINAL = ("done", "failed", "cancelled")


class EventSource:
    """Follows a stream from its creation on; `await source.run()` returns when the stream has ended."""

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        self._path = path
        self.connections: list[list[Message]] = []
        self.came: dict[str, float] = {}
        """The arrival of each event with an id (time.perf_counter)."""
        self.refused: list[int] = []
        """Statuses that would have ended an EventSource for good."""
        self.failures = 0
        """Connections that could not be opened, or ended before a response."""
        self._last_id = ""
        self._retry_seconds = 2.0
        self.ended = False

    @property
    def answer(self) -> Answer:
        """AssertionError for a gap or a repetition."""
        return answer_of(*self.connections)

    @property
    def events(self) -> int:
        return sum(map(len, self.connections))

    async def run(self) -> None:
        while not self.ended:
            with suppress(OSError):
                await self._connect()
            if self.refused:
                return
            if not self.ended:
                await asyncio.sleep(self._retry_seconds)

    async def _connect(self) -> None:
        connection = _Connection(self)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=_READ_BYTES)
        except OSError:
            self.failures += 1
            raise
        try:
            after = f"Last-Event-ID: {self._last_id}\r\n" if self._last_id else ""
            head = f"GET {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n{after}\r\n"
            writer.write(head.encode())
            while not connection.complete and (part := await reader.read(_READ_BYTES)):
                connection.feed(part)
            self.failures += not connection.status
        finally:
            writer.transport.abort()

    def take(self, messages: list[Message], message: Message) -> None:
        messages.append(message)
        if message.event not in ("live", "gap"):
            self.came[message.id] = time.perf_counter()
        self._last_id = message.id or self._last_id
        self.ended = self.ended or message.event in _TERMINAL

    def head(self, status: int) -> None:
        if status == 204:
            self.ended = True
        elif status != 200:
            self.refused.append(status)

    def wait(self, retry_milliseconds: int | None) -> None:
        if retry_milliseconds is not None:
            self._retry_seconds = retry_milliseconds / 1000


class _Connection:
    """One response, fed by httptools."""

    def __init__(self, source: EventSource) -> None:
        self._source = source
        self._parser = httptools.HttpResponseParser(self)
        self._decoder = Decoder()
        self._messages: list[Message] = []
        source.connections.append(self._messages)
        self.status = 0
        self.complete = False

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._source.head(self.status)

    def on_body(self, body: bytes) -> None:
        for message in self._decoder.feed(body):
            self._source.take(self._messages, message)
        self._source.wait(self._decoder.retry_milliseconds)

    def on_message_complete(self) -> None:
        self.complete = True
