"""Commands that count as carried out when replicas have them, too: MIDSTREAM_MIN_REPLICAS.

Each is followed, on the same connection, by a write of its own and by WAIT, which waits for this write and all that came before it,
whoever sent that. Without it WAIT would not wait at all for a command that only reads, or was repeated and found its work done. WAIT
holds up all that comes behind it on its connection, so these commands have one of their own.
(https://redis.io/docs/latest/commands/wait/)
"""

from __future__ import annotations

from typing import Any

from shared.cluster import key_of, tag_of
from shared.connections import RedisConnection
from shared.errors import RedisRefused
from shared.keys import replicated_key

_WAIT_MILLISECONDS = 250
"""How long one command waits for the replicas. Its sender repeats it, as when Redis is away: so commands for others get a turn."""
_MARK_SECONDS = 5


class ReplicatedCommands:
    """Executes commands with a key over a connection of their own, and returns when so many `replicas` have what they wrote.

    In a cluster each master has its own. Raises Disconnected, and RedisRefused with the code NOREPLICAS when they have not in time: then it may be repeated.
    """

    def __init__(self, connection: RedisConnection, replicas: int) -> None:
        self._connection = connection
        self._replicas = replicas
        self.is_one_server = connection.is_one_server

    def can_reach(self, key: bytes) -> bool:
        return self._connection.can_reach(key)

    async def execute(self, *arguments: bytes | str | int | float) -> Any:
        key = key_of(arguments)
        assert key is not None, arguments
        mark = ("SET", replicated_key(tag_of(key)), b"", "EX", _MARK_SECONDS)
        wait = ("WAIT", self._replicas, _WAIT_MILLISECONDS)
        reply, _, replicas = await self._connection.execute_together(key, arguments, mark, wait)
        if replicas < self._replicas:
            raise RedisRefused(f"NOREPLICAS {replicas} of {self._replicas} replicas have it yet")
        return reply
