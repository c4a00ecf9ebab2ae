"""A WebSocket client that need not read, nor answer pings, as every library does."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Self

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class RawWebSocket:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, host: str, port: int, path: str, *, read_bytes_max: int = 1 << 16) -> Self:
        reader, writer = await asyncio.open_connection(host, port, limit=read_bytes_max)
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return cls(reader, writer)

    def send(self, opcode: int, payload: bytes) -> None:
        """Sends a masked frame, with the mask 0, which is valid."""
        assert len(payload) < 126
        self.writer.write(bytes((0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload)

    async def frames(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yields (opcode, payload) of each frame until the connection ends. Answers no ping."""
        try:
            while True:
                first, size = await self._reader.readexactly(2)
                assert first & 0x80, "no server of ours sends fragments"
                assert not size & 0x80, "a server must not mask"
                if size == 126:
                    (size,) = struct.unpack(">H", await self._reader.readexactly(2))
                elif size == 127:
                    (size,) = struct.unpack(">Q", await self._reader.readexactly(8))
                yield first & 0x0F, await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    def close(self) -> None:
        self.writer.close()
