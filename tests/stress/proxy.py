"""A TCP proxy between two parts that causes faults: delays, slow data, refusals, cuts, half-closes, silence."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import suppress
from typing import Literal, Self

Hurt = Literal["cuts", "aborts", "half-closes", "silences"]

_READ_BYTES = 16_384
_CONNECT_SECONDS = 5.0
_TRICKLE_BYTES = 40
_TRICKLE_PAUSE_SECONDS = 0.005


class _Connection:
    """One proxied connection: two directions, and its faults."""

    def __init__(self, proxy: Proxy, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._near, self._far = near, far
        self._cut_in: int | None = None
        """The connection is cut after so many more bytes, also within a command or an event."""
        self._silent = False

    async def carry(self, near: asyncio.StreamReader, far: asyncio.StreamReader) -> None:
        """Runs until both directions have ended."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pipe(near, self._far))
                group.create_task(self._pipe(far, self._near))
        except* (OSError, RuntimeError):
            pass  # uvloop raises the second where a connection was aborted under a write
        finally:
            self.abort()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_READ_BYTES):
            await self._proxy.delay()
            if self._silent:
                continue  # bytes are read and dropped, until one side gives up
            if self._cut_in is not None:
                writer.write(data[: self._cut_in])
                self._cut_in -= len(data)
                if self._cut_in <= 0:
                    with suppress(OSError, TimeoutError):
                        async with asyncio.timeout(0.2):
                            await writer.drain()
                    raise ConnectionAbortedError
            else:
                await self._proxy.write(writer, data)
            self._proxy.bytes += len(data)
        if self._silent:
            raise ConnectionAbortedError  # one side has given up: close the other, too
        if writer.can_write_eof():
            writer.write_eof()

    def abort(self) -> None:
        self._near.transport.abort()
        self._far.transport.abort()

    def cut_in(self, count: int) -> None:
        self._cut_in = count

    def half_close(self, dice: random.Random) -> None:
        """Passes on that the other side has closed its direction (FIN)."""
        writer = dice.choice((self._near, self._far))
        with suppress(OSError, RuntimeError):
            if not writer.transport.is_closing():
                writer.write_eof()

    def fall_silent(self) -> None:
        self._silent = True


class Proxy:
    """Listens on a port of 127.0.0.1 and forwards to another. With small `buffer_bytes` the far end notices a slow reader."""

    def __init__(self, target_port: int, *, buffer_bytes: int = 0) -> None:
        self._target_port = target_port
        self._buffer_bytes = buffer_bytes
        self._server: asyncio.Server | None = None
        self._connections: dict[_Connection, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay_seconds = 0.0
        self.trickles = self.refuses = False
        self.bytes = self.connections = 0

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._buffer_bytes:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer_bytes)
        listening.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._accepted, sock=listening, backlog=4096)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- the weather

    def calm(self) -> None:
        """Causes no faults to new connections; a silenced connection stays silent, as with a lost NAT entry."""
        self.delay_seconds = 0.0
        self.trickles = self.refuses = False

    def hurt(self, how: Hurt, dice: random.Random, share: float) -> int:
        """Does this to that share of the open connections; returns their number."""
        struck = [one for one in self._connections if dice.random() < share]
        for one in struck:
            if how == "cuts":
                one.cut_in(dice.randrange(1, 400))
            elif how == "aborts":
                one.abort()
            elif how == "half-closes":
                one.half_close(dice)
            else:
                one.fall_silent()
        return len(struck)

    # --- carrying

    async def delay(self) -> None:
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)

    async def write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if not self.trickles:
            writer.write(data)
            await writer.drain()
            return
        for start in range(0, len(data), _TRICKLE_BYTES):
            writer.write(data[start : start + _TRICKLE_BYTES])
            await writer.drain()
            if self.trickles:
                await asyncio.sleep(_TRICKLE_PAUSE_SECONDS)

    async def _accepted(self, near: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        if self._buffer_bytes:
            near_writer.transport.set_write_buffer_limits(self._buffer_bytes)
        try:
            if self.refuses:
                return
            async with asyncio.timeout(_CONNECT_SECONDS):
                far, far_writer = await self._reach()
            connection = _Connection(self, near_writer, far_writer)
            self._connections[connection] = task
            try:
                await connection.carry(near, far)
            finally:
                del self._connections[connection]
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the far side cannot be reached, or this proxy stops
        finally:
            near_writer.transport.abort()
            self._tasks.discard(task)

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reaching = socket.socket()
        reaching.setblocking(False)
        if self._buffer_bytes:
            reaching.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(reaching, ("127.0.0.1", self._target_port))
            return await asyncio.open_connection(sock=reaching, limit=self._buffer_bytes or _READ_BYTES)
        except BaseException:
            reaching.close()
            raise
