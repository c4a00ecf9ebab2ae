"""A small HTTP/1.1 server for tests, in this process: it can break the protocol, and sees at once when a client leaves.

class Blank(HttpServer):
    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response(200, "text/html", b"<!doctype html>"))

async with Blank() as server: ... server.origin ...
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self

_BODY_BYTES_MAX = 64 << 20
_BACKLOG = 4096
"""Connections that may wait to be accepted: some tests open thousands at once."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, whole."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Header values by lower-case name."""
    body: bytes


class Closed(Exception):
    """Raised by `answer` to close the connection."""


class HttpServer(ABC):
    """A context: listens on a free port or the given one; on exit it cuts all connections."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._host, self._port = host, port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Writes the response. Raises Closed to close the connection. More bytes of the client are read from `reader`."""

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def origin(self) -> str:
        return f"http://{self._host}:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, self._host, self._port, backlog=_BACKLOG)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while True:
                await self.answer(await _request(reader), reader, writer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, Closed):
            pass  # the client left, or is sent away
        finally:
            self._connections.discard(task)
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()


async def _request(reader: asyncio.StreamReader) -> Request:
    request_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    method, path, _ = request_line.split(" ", 2)
    length = min(int(headers.get("content-length") or 0), _BODY_BYTES_MAX)
    return Request(method, path, headers, await reader.readexactly(length))


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """Returns the head of a response."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def response(status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """Returns a whole response."""
    return head(status, {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}) + body
