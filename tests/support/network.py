"""A network between servers, their replicas and their clients that can be cut, without privileges.

Each server is reached at a port of this network, which forwards to its own. Servers connect from addresses of their own
(`bind-source-addr 127.0.1.<n>`), so that the network knows who comes. While two are cut off from each other their connections
stay open and silent, and new ones wait; when that is over, what was sent meanwhile arrives, as TCP sends it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from functools import partial
from typing import Any

import uvloop

_START_SECONDS = 5.0


class _End(asyncio.Protocol):
    """One of the two ends of a forwarded connection."""

    def __init__(self, other: _End | None = None) -> None:
        self.other = other
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        """What came before there was another end; then no more is read."""
        self._is_cut = self._other_is_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early.append(data)
            self._read_or_not()
        elif self.other.transport is not None:
            self.other.transport.write(data)

    def join(self, other: _End) -> None:
        """Forwards to another end from now on."""
        self.other = other
        early, self._early = self._early, []
        for data in early:
            self.data_received(data)
        self._read_or_not()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.set_full(is_full=True)

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.set_full(is_full=False)

    def set_full(self, *, is_full: bool) -> None:
        self._other_is_full = is_full
        self._read_or_not()

    def set_cut(self, *, is_cut: bool) -> None:
        self._is_cut = is_cut
        self._read_or_not()

    def _read_or_not(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if self._is_cut or self._other_is_full or self.other is None:
            if self.transport.is_reading():
                self.transport.pause_reading()
        elif not self.transport.is_reading():
            self.transport.resume_reading()


class _Forwarded:
    """One forwarded connection, from `source` to the server at `target`."""

    def __init__(self, source: str, target: str, near: _End) -> None:
        self.source, self.target = source, target
        self.near, self.far = near, _End()

    async def connect(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self.far, "127.0.0.1", port)
        except OSError:
            if self.near.transport is not None:
                self.near.transport.abort()
            return
        self.near.join(self.far)
        self.far.join(self.near)

    def set_cut(self, *, is_cut: bool) -> None:
        for end in (self.near, self.far):
            end.set_cut(is_cut=is_cut)


class Network:
    """Runs in a thread of its own, once it is started."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._servers: list[asyncio.AbstractServer] = []
        self._forwarded: list[_Forwarded] = []
        self._waiting: list[tuple[_Forwarded, int]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._isolated, self._from_clients = "", False

    def add(self, address: str, port: int, own_port: int) -> None:
        """Has a port of 127.0.0.1 forwarded to the own port of the server that connects to others from `address`."""
        self._run(self._listen(address, port, own_port))

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._run(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_START_SECONDS)
        self._loop.close()

    def isolate(self, address: str, *, from_clients: bool) -> None:
        """Cuts a server off from all other servers, and from clients if that is wished."""
        self._run(self._set(address, from_clients=from_clients))

    def heal(self) -> None:
        self._run(self._set("", from_clients=False))

    # --- in the thread

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_SECONDS)

    async def _listen(self, address: str, port: int, own_port: int) -> None:
        accepted = partial(self._accepted, address, own_port)
        self._servers.append(await self._loop.create_server(accepted, "127.0.0.1", port))

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        for forwarded in self._forwarded:
            for end in (forwarded.near, forwarded.far):
                if end.transport is not None:
                    end.transport.abort()
        await asyncio.sleep(0)

    def _accepted(self, target: str, own_port: int) -> _End:
        network = self

        class Near(_End):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                source = transport.get_extra_info("peername")[0]
                network._forward(_Forwarded(source, target, self), own_port)

        return Near()

    def _forward(self, forwarded: _Forwarded, own_port: int) -> None:
        self._forwarded = [one for one in self._forwarded if one.near.transport is not None]
        self._forwarded.append(forwarded)
        if self._is_cut(forwarded):
            self._waiting.append((forwarded, own_port))
        else:
            self._connect(forwarded, own_port)

    def _connect(self, forwarded: _Forwarded, own_port: int) -> None:
        task = self._loop.create_task(forwarded.connect(own_port))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _is_cut(self, forwarded: _Forwarded) -> bool:
        if not self._isolated:
            return False
        if forwarded.source.startswith("127.0.1."):
            return self._isolated in (forwarded.source, forwarded.target)
        return self._from_clients and forwarded.target == self._isolated

    async def _set(self, address: str, *, from_clients: bool) -> None:
        self._isolated, self._from_clients = address, from_clients
        waiting, self._waiting = self._waiting, []
        for forwarded, own_port in waiting:
            if self._is_cut(forwarded):
                self._waiting.append((forwarded, own_port))
            elif forwarded.near.transport is not None:
                self._connect(forwarded, own_port)
        held = {id(forwarded) for forwarded, _ in self._waiting}
        for forwarded in self._forwarded:
            if forwarded.far.transport is not None and id(forwarded) not in held:
                with contextlib.suppress(RuntimeError):  # it is closing
                    forwarded.set_cut(is_cut=self._is_cut(forwarded))
