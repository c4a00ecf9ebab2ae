"""Commands that count as carried out when replicas have them, too: MIDSTREAM_MIN_REPLICAS.

All that are asked for while one WAIT is under way make the next round: they are sent together, and followed, on the same connection,
by a write of their own and by WAIT, which waits for this write and all that came before it, whoever sent that. Without the write
WAIT would not wait at all for commands that only read, or were repeated and found their work done. WAIT holds up all that comes
behind it on its connection, so these commands have one of their own.
(https://redis.io/docs/latest/commands/wait/)
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from shared.cluster import key_of, tag_of
from shared.connections import RedisConnection
from shared.errors import Disconnected, OddReply, RedisRefused
from shared.keys import replicated_key
from shared.resp import settle

_WAIT_MILLISECONDS = 250
"""How long one round waits for the replicas. Whoever sent its commands repeats them, as when Redis is away."""
_MARK_SECONDS = 5
"""How long the key of the write before WAIT lives: nobody reads it."""

Argument = bytes | str | int | float


class _Command(NamedTuple):
    """A command that waits for a round, or is in one, and the future of its reply."""

    key: bytes
    arguments: tuple[Argument, ...]
    replied: asyncio.Future[Any]


class ReplicatedCommands:
    """Executes commands with a key over a connection of their own, and returns when so many `replicas` have what they wrote.

    In a cluster each master has its own rounds. Raises Disconnected, and RedisRefused with the code NOREPLICAS when replicas have not in time: then it may be repeated.
    """

    def __init__(self, connection: RedisConnection, replicas: int) -> None:
        self._connection = connection
        self._replicas = replicas
        self.is_one_server = connection.is_one_server
        self._waiting: dict[object, list[_Command]] = {}
        """The commands of the next round, by the server that has their keys. Each caller waits for its own: so callers bound them."""
        self._rounds: dict[object, asyncio.Task[None]] = {}

    def can_reach(self, key: bytes) -> bool:
        return self._connection.can_reach(key)

    async def execute(self, *arguments: Argument) -> Any:
        """Returns the reply to a command with a key, when replicas have what it wrote."""
        key = key_of(arguments)
        assert key is not None, arguments
        loop, server = asyncio.get_running_loop(), self._connection.server_of(key)
        replied: asyncio.Future[Any] = loop.create_future()
        self._waiting.setdefault(server, []).append(_Command(key, arguments, replied))
        if server not in self._rounds:
            self._rounds[server] = loop.create_task(self._work_off(server))
        try:
            return await replied
        finally:
            del replied  # an error in it leads, by its traceback, to this frame, which must not lead back

    async def _work_off(self, server: object) -> None:
        """Makes one round after the other, until no command waits."""
        try:
            while commands := self._waiting.pop(server, []):
                replies: list[Any] = [Disconnected() for _ in commands]  # if this is cancelled
                try:
                    replies = await self._round(commands)
                finally:
                    for command, reply in zip(commands, replies, strict=True):
                        settle(command.replied, reply)
        finally:
            del self._rounds[server]

    async def _round(self, commands: list[_Command]) -> list[Any]:
        """Makes a round of these commands; returns the reply of each, or its error."""
        key = commands[0].key
        mark = ("SET", replicated_key(tag_of(key)), b"", "EX", _MARK_SECONDS)
        wait = ("WAIT", self._replicas, _WAIT_MILLISECONDS)
        try:
            *replies, marked, replicas = await self._connection.execute_together(
                key, *(command.arguments for command in commands), mark, wait
            )
            for result in (marked, replicas):
                if isinstance(result, BaseException):
                    raise result
            if not isinstance(replicas, int):
                raise OddReply(f"ODDREPLY WAIT was answered by a {type(replicas).__name__}")
            if replicas < self._replicas:
                raise RedisRefused(f"NOREPLICAS {replicas} of {self._replicas} replicas have it yet")
        except (Disconnected, RedisRefused) as error:
            return [type(error)(*error.args) for _ in commands]  # one each: whoever catches it adds a traceback
        return replies
