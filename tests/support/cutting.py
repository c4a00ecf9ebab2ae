"""A proxy that loses its connections in the middle of an event, as networks do."""

from __future__ import annotations

import asyncio
import random
import re
from types import TracebackType
from typing import Self

_PART_BYTES = 4096
_ID_LINE_AT_THE_END = re.compile(rb"(\A|\n)id: [^\n]*\n\Z")


class CuttingProxy:
    """A context: passes each connection on to a port, and resets it after some hundred bytes of its response, all at random places.

    Never between the two line feeds that end an event: after the first of them some clients have the id and not the event.
    """

    def __init__(self, port: int, *, seed: int, bytes_least: int = 300, bytes_most: int = 900) -> None:
        self._port = port
        self._dice = random.Random(seed)
        self._bounds = bytes_least, bytes_most
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self._dice.randint(*self._bounds)
        to_gateway: asyncio.StreamWriter | None = None
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            from_gateway, to_gateway = await asyncio.open_connection("127.0.0.1", self._port)
            to_gateway.write(re.sub(rb"(?i)\r\nconnection: [^\r]*", b"", request[:-2]) + b"Connection: close\r\n\r\n")
            writer.write(await from_gateway.readuntil(b"\r\n\r\n"))
            while part := await from_gateway.read(_PART_BYTES):
                if len(part) < left:
                    left -= len(part)
                    writer.write(part)
                    continue
                while _ID_LINE_AT_THE_END.search(part[:left]):
                    left -= 1
                writer.write(part[:left])
                await writer.drain()
                self.cuts += 1
                return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            for side in (writer, to_gateway):
                if side is not None:
                    side.close()
