"""The backends of log and queue: one test suite runs on each."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import fakeredis
import pytest

from shared.cluster import SLOTS, slot_of
from shared.commands import Commands
from shared.connections import connection_to
from shared.event_log import EventLog
from shared.keys import live_channel
from shared.queue import RequestQueue
from shared.settings import Settings
from tests.support.needs import needs
from tests.support.ordinary_commands import OrdinaryCommands
from tests.support.redis_cluster import RedisCluster, RedisWithSentinels
from tests.support.redis_server import KINDS, RedisServer, binary_of

FORMS = ("", " cluster", " sentinel")
"""One server, a cluster, and a primary that a Sentinel names."""
_OF_EACH_RUN = ("valkey through redis-py", "valkey", "redis")
"""What `make test` runs; `make test-long` runs the others."""
REAL_BACKENDS = [
    pytest.param(name, marks=() if name in _OF_EACH_RUN else pytest.mark.long)
    for name in ("valkey through redis-py", *(f"{kind}{form}" for kind in KINDS for form in FORMS))
]
LOG_TTL_SECONDS, ENDED_TTL_SECONDS, TOMBSTONE_TTL_SECONDS, QUEUE_TTL_SECONDS = 1000, 100, 30, 500

Several = RedisCluster | RedisWithSentinels


@dataclass
class Backend:
    """One backend: the commands under test, and a separate ordinary client that checks their effect."""

    commands: Commands
    client: Any

    def log(self) -> EventLog:
        return EventLog(
            self.commands,
            log_ttl_seconds=LOG_TTL_SECONDS,
            ended_ttl_seconds=ENDED_TTL_SECONDS,
            tombstone_ttl_seconds=TOMBSTONE_TTL_SECONDS,
        )

    def queue(self, consumer: str, requests_max: int = 100) -> RequestQueue:
        return RequestQueue(self.commands, ttl_seconds=QUEUE_TTL_SECONDS, requests_max=requests_max, consumer=consumer)

    @asynccontextmanager
    async def listening(self, stream_id: str) -> AsyncIterator[Listener]:
        channel = live_channel(stream_id)
        client = self.client_of(channel)
        pubsub = client.pubsub()
        try:
            await pubsub.ssubscribe(channel)
            assert (await pubsub.get_message(timeout=5.0))["type"] == "ssubscribe"
            yield Listener(client, pubsub, channel)
            await pubsub.sunsubscribe(channel)  # fakeredis does not notice a lost connection
        finally:
            await pubsub.aclose()

    def client_of(self, key: bytes) -> Any:
        """Returns the ordinary client of the server that has a key or a shard channel."""
        return self.client.client_of(key) if isinstance(self.client, ClusterClient) else self.client


@dataclass
class Listener:
    client: Any
    pubsub: Any
    channel: bytes

    async def received(self) -> list[bytes]:
        """Returns all messages on the channel until now: up to a marker that this method publishes."""
        await self.client.execute_command("SPUBLISH", self.channel, b"marker")
        messages: list[bytes] = []
        while True:
            message = await self.pubsub.get_message(timeout=5.0)
            assert message is not None, "the marker did not come"
            if message["data"] == b"marker":
                return messages
            messages.append(message["data"])


class ClusterClient:
    """redis-py's methods: those with a key go to the master that has it, others to all masters."""

    _OF_ALL = frozenset({"aclose", "config_set", "dbsize", "flushall", "script_flush"})

    def __init__(self, clients: list[Any], owners: list[int]) -> None:
        """`owners`: for each slot the index of its master's client."""
        self._clients = clients
        self._owners = owners

    def client_of(self, key: bytes) -> Any:
        return self._clients[self._owners[slot_of(key)]]

    def __getattr__(self, name: str) -> Any:
        if name in self._OF_ALL:
            return partial(self._at_all, name)
        return lambda key, *more, **options: getattr(self.client_of(key), name)(key, *more, **options)

    async def _at_all(self, name: str, *arguments: Any) -> int:
        """Returns the sum of what the masters reply."""
        return sum([int(await getattr(client, name)(*arguments) or 0) for client in self._clients])

    async def scan_iter(self) -> AsyncIterator[bytes]:
        for client in self._clients:
            async for key in client.scan_iter():
                yield key


def _client_of(server: RedisServer | Several) -> Any:
    """Returns an ordinary client for all keys of a server, or of several."""
    clients = server.clients()
    if not isinstance(server, RedisCluster):
        return clients[0]
    ranges = [(slots[0], index) for index, slots in enumerate(map(server.slots_of, server.primaries()))]
    owners = [max(one for one in ranges if one[0] <= slot)[1] for slot in range(SLOTS)]
    return ClusterClient(clients, owners)


class _FakeCommands(OrdinaryCommands):
    """Removes the line with a script's flags, which fakeredis does not accept."""

    async def execute(self, *arguments: bytes | str | int | float) -> Any:
        if arguments[0] == "EVAL":
            arguments = ("EVAL", re.sub(r"^#!lua.*\n", "", str(arguments[1])), *arguments[2:])
        return await super().execute(*arguments)


async def keys_that_never_expire(client: Any) -> list[bytes]:
    """Returns the keys that never expire; in time such keys would fill Redis."""
    return [key async for key in client.scan_iter() if await client.ttl(key) == -1]


@pytest.fixture(scope="session")
def several_servers() -> Iterator[dict[str, Several]]:
    """Yields for each kind of server a cluster of three masters, and a primary that a Sentinel names. All start at once."""
    kinds = [kind for kind in KINDS if binary_of(kind)]
    several: dict[str, Several] = {f"{kind} cluster": RedisCluster(kind=kind, replicas=False) for kind in kinds}
    several |= {f"{kind} sentinel": RedisWithSentinels(kind=kind, replicas=0, sentinels=1) for kind in kinds}
    try:
        with ThreadPoolExecutor(len(several)) as threads:
            list(threads.map(lambda one: one.start(), several.values()))
        yield several
    finally:
        for one in several.values():
            one.close()


@pytest.fixture(params=["fakeredis", *REAL_BACKENDS])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Yields an empty backend. After the test every key must have an expiry."""
    name: str = request.param
    if name == "fakeredis":
        fake = fakeredis.aioredis.FakeRedis(protocol=2)
        yield Backend(_FakeCommands(fake), fake)
        assert await keys_that_never_expire(fake) == []
        await fake.aclose()
        return
    kind = next(kind for kind in sorted(KINDS, key=len, reverse=True) if name.startswith(kind))
    needs(KINDS[kind], binary_of(kind))
    server: RedisServer | Several
    if name.endswith(("cluster", "sentinel")):
        server = request.getfixturevalue("several_servers")[name]
    else:
        server = request.getfixturevalue(f"{kind.replace(' ', '_')}_server")
    client = _client_of(server)
    await client.flushall()
    await client.script_flush()
    try:
        if name == "valkey through redis-py":
            yield Backend(OrdinaryCommands(client), client)
        else:
            scripts = (*EventLog.SCRIPTS, *RequestQueue.SCRIPTS)
            connection = connection_to(Settings(redis_url=server.url), name="test", scripts=scripts)
            connection.start()
            await connection.wait_until_up()
            try:
                yield Backend(connection, client)
            finally:
                await connection.close()
        assert await keys_that_never_expire(client) == []
    finally:
        await client.aclose()
