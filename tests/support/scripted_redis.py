"""A server that speaks Redis' protocol and answers what a test says: replies in an order that no real cluster gives on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

import hiredis

Answer = Any
"""bytes, int, None, a list of these, or an Exception, which is sent as an error."""


def encoded(answer: Answer) -> bytes:
    if isinstance(answer, Exception):
        return b"-%b\r\n" % str(answer).encode()
    if answer is None:
        return b"$-1\r\n"
    if isinstance(answer, int):
        return b":%d\r\n" % answer
    if isinstance(answer, list):
        return b"*%d\r\n" % len(answer) + b"".join(map(encoded, answer))
    return b"$%d\r\n%b\r\n" % (len(answer), answer)


class ScriptedRedis:
    """Answers each command with what `answer(command)` returns; what it returns None for as any server would."""

    def __init__(self, answer: Callable[[list[bytes]], Answer] = lambda command: None) -> None:
        self.answer = answer
        self.commands: list[list[bytes]] = []
        """All commands but those with which a connection begins, and those that ask for the map."""
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def place(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    def push(self, *parts: Answer) -> None:
        """Sends a message to all connections, as to subscribers."""
        for writer in self._writers:
            writer.write(encoded(list(parts)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    writer.write(encoded(self._answer_to(command)))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    def _answer_to(self, command: list[bytes]) -> Answer:
        if command[0] not in (b"PING", b"CLIENT", b"CLUSTER", b"SCRIPT"):
            self.commands.append(command)
        answer = self.answer(command)
        return b"PONG" if answer is None and command[0] == b"PING" else b"OK" if answer is None else answer


class ScriptedCluster:
    """Some scripted servers that all give one map: `owners` has the index of the master for each part of the slots."""

    def __init__(self, nodes: int) -> None:
        self.nodes = [ScriptedRedis() for _ in range(nodes)]
        self.owners: list[int] = list(range(nodes))
        self.maps = 0

    async def __aenter__(self) -> Self:
        for node in self.nodes:
            await node.__aenter__()
            node.answer = self.about
        return self

    async def __aexit__(self, *_: object) -> None:
        for node in self.nodes:
            await node.__aexit__()

    def about(self, command: list[bytes]) -> Answer:
        """Returns the answer to a question about the map; None for any other command."""
        if command[:2] == [b"CLUSTER", b"INFO"]:
            return b"cluster_state:ok\r\ncluster_current_epoch:1\r\n"
        if command[:2] == [b"CLUSTER", b"SLOTS"]:
            self.maps += 1
            bounds = [16384 * part // len(self.owners) for part in range(len(self.owners) + 1)]
            return [
                [bounds[part], bounds[part + 1] - 1, [b"127.0.0.1", self.nodes[owner].port, b"id"]]
                for part, owner in enumerate(self.owners)
            ]
        return None

    def script(self, index: int, answer: Callable[[list[bytes]], Answer]) -> None:
        """Has one node answer so, except to questions about the map."""
        self.nodes[index].answer = lambda command: self.about(command) if command[0] == b"CLUSTER" else answer(command)
