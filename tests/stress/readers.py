"""A reader that resumes as EventSource does, over plain sockets: it can be slow, leave, and reconnect to another gateway."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from shared.sse import Decoder
from tests.stress.history import ENDS, Id, Shown, id_of
from tests.stress.plan import ReaderOrder

_SILENT_SECONDS_MAX = 4.0
"""Keep-alives come every second: a connection that is silent for so long is dead."""
_CONNECT_SECONDS_MAX = 12.0
"""The time to the response's head: a gateway may wait for its Redis meanwhile."""
_PAUSE_SECONDS = 0.1
_RECEIVE_BYTES = 8_192


class Refused(Exception):
    """A status that ends the reading: 204, 404, 410, or an unexpected one."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


class Left(Exception):
    """The reader closed its connection of its own accord."""


class Reading:
    """One reader of one stream, over any number of connections. `outcome` is how it ended, `seen` has its events."""

    def __init__(
        self,
        stream_id: str,
        plan: ReaderOrder,
        ports: Callable[[], list[int]],
        dice: random.Random,
        counts: Counter[str],
    ) -> None:
        self.stream_id = stream_id
        self.plan = plan
        self.seen: list[Shown] = []
        self.outcome = ""
        """`complete`, `abandoned`, `204`, `404`, `410`; empty while it reads."""
        self.notes: list[str] = []
        """The end of each connection, to explain a failure."""
        self._ports = ports
        self._dice = dice
        self._counts = counts
        self._reached: Id | None = None
        self._leaves = list(plan.leaves_after)

    async def read(self) -> None:
        """Reads until the terminal event, or a status that says that none will come."""
        await asyncio.sleep(self.plan.starts_after_seconds)
        before = -1
        while not self.outcome:
            ports = self._ports()
            port = self._dice.choice([one for one in ports if one != before] or ports)
            before, began, pause_seconds = port, len(self.seen), _PAUSE_SECONDS
            self._counts["connections"] += 1
            try:
                await self._connect(port)
                note = "ended"
            except Left:
                note, pause_seconds = "left", self.plan.away_seconds
            except Refused as refused:
                note = str(refused)
                # The response was cut off behind the terminal event: an EventSource reconnects once more, and gets a 204.
                had_it_all = refused.status == 204 and bool(self.seen) and self.seen[-1].name in ENDS
                if refused.status != 503:
                    self.outcome = "complete" if had_it_all else note
            except (OSError, TimeoutError, EOFError, ValueError) as error:
                note = f"{type(error).__name__}: {error}"
            self.notes.append(f"port {port}: {len(self.seen) - began} events, {note}")
            if not self.outcome:
                await asyncio.sleep(pause_seconds)

    async def _connect(self, port: int) -> None:
        connecting = socket.socket()
        connecting.setblocking(False)
        connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        try:
            await asyncio.get_running_loop().sock_connect(connecting, ("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=connecting, limit=_RECEIVE_BYTES)
        except BaseException:
            connecting.close()
            raise
        try:
            writer.write(self._request())
            async with asyncio.timeout(_CONNECT_SECONDS_MAX):
                status = 100
                while (
                    status < 200
                ):  # interim responses (RFC 9110, section 15.2): a gateway probes a half-closed connection with 100
                    status = int((await _line(reader)).split(b" ")[1])
                    while await _line(reader) != b"\r\n":
                        pass
            if status != 200:
                raise Refused(status)
            await self._follow(_chunks(reader))
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    def _request(self) -> bytes:
        path = f"/v1/streams/{self.stream_id}/events"
        if self.plan.from_now and self._reached is None:
            path += "?from=now"
        after = "" if self._reached is None else f"Last-Event-ID: {self._reached[0]}-{self._reached[1]}\r\n"
        return f"GET {path} HTTP/1.1\r\nHost: stress\r\n{after}\r\n".encode()

    async def _follow(self, chunks: AsyncIterator[bytes]) -> None:
        decoder, events = Decoder(), 0
        leaves_after = self._leaves.pop(0) if self._leaves else None
        if self.plan.abandons_after == 0:
            self.outcome = "abandoned"
            raise Left
        ended = False
        async for chunk in chunks:
            for message in decoder.feed(chunk):
                assert not ended, f"{message} came behind the end"
                if message.event == "live":
                    continue
                at = id_of(message.id) if message.event != "gap" else (0, 0)
                self._reached = at
                self.seen.append(Shown(at, message.event, json.loads(message.data)))
                events += 1
                ended = message.event in ENDS
                if len(self.seen) == self.plan.abandons_after and not ended:
                    self.outcome = "abandoned"
                    raise Left
                if events == leaves_after and not ended:
                    raise Left
            if self.plan.bytes_per_second:
                await asyncio.sleep(len(chunk) / self.plan.bytes_per_second)
        if ended:
            self.outcome = "complete"


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Reads one line. EOFError if the connection ends before."""
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the connection ended in mid-response")
    return line


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yields a chunked body. EOFError if it breaks off, TimeoutError if it falls silent."""
    while True:
        async with asyncio.timeout(_SILENT_SECONDS_MAX):
            size = int(await _line(reader), 16)
        left = size
        while left:  # the received part of a chunk is read at once, as in browsers
            async with asyncio.timeout(_SILENT_SECONDS_MAX):
                part = await reader.read(min(left, 2048))
            if not part:
                raise EOFError("the connection ended in mid-chunk")
            left -= len(part)
            yield part
        async with asyncio.timeout(_SILENT_SECONDS_MAX):
            await _line(reader)
        if not size:
            return
