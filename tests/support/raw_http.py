"""A TCP connection to a gateway that sends any bytes, in pieces, and reads only when a test calls it."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import suppress
from types import TracebackType
from typing import Self

_SECONDS = 20.0


class RawHttp:
    """One connection. A reset while it writes is ignored: what was received before can still be read."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self._socket = socket.socket()
        self._socket.setblocking(False)
        await asyncio.get_running_loop().sock_connect(self._socket, ("127.0.0.1", self._port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port of this end."""
        return int(self._socket.getsockname()[1])

    async def send(self, *parts: bytes) -> None:
        """Sends each part in a packet of its own, as long as the gateway takes it."""
        with suppress(ConnectionError):
            async with asyncio.timeout(_SECONDS):
                for part in parts:
                    await asyncio.get_running_loop().sock_sendall(self._socket, part)
                    await asyncio.sleep(0)

    def close_half(self) -> None:
        """Closes this half of the connection (FIN)."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        """Closes the connection with an RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._socket.close()

    async def read_until(self, end: bytes) -> bytes:
        """Reads until the bytes occur, and returns everything read."""
        received = b""
        async with asyncio.timeout(_SECONDS):
            while end not in received:
                part = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
                assert part, f"it ended after {received!r}"
                received += part
        return received

    async def read_to_end(self) -> bytes:
        """Reads up to the end of the connection. TimeoutError if it is not closed."""
        received = bytearray()
        async with asyncio.timeout(_SECONDS):
            await self.read_into(received)
        return bytes(received)

    async def read_into(self, received: bytearray) -> None:
        """Collects received bytes up to the end of the connection."""
        with suppress(ConnectionError):
            while part := await asyncio.get_running_loop().sock_recv(self._socket, 65536):
                received += part


async def exchange(port: int, *parts: bytes, close_half: bool = False) -> bytes:
    """Sends bytes, and returns all that the gateway answers until it closes the connection."""
    async with RawHttp(port) as raw:
        await raw.send(*parts)
        if close_half:
            raw.close_half()
        return await raw.read_to_end()


def statuses(answers: bytes) -> list[int]:
    """Returns the statuses of the responses in these bytes, without 1xx."""
    found = [int(status) for status in re.findall(rb"(?:\A|(?<=[}\n]))HTTP/1\.1 (\d{3}) ", answers)]
    return [status for status in found if status >= 200]
