"""The backends of log and queue: one test suite runs on each."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import fakeredis
import pytest

from shared.commands import Commands
from shared.event_log import EventLog
from shared.keys import live_channel
from shared.queue import RequestQueue
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from tests.support.ordinary_commands import OrdinaryCommands, ordinary_client
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

REAL_BACKENDS = ["valkey", "valkey through redis-py", "redis"]
LOG_TTL_SECONDS, ENDED_TTL_SECONDS, TOMBSTONE_TTL_SECONDS, QUEUE_TTL_SECONDS = 1000, 100, 30, 500


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
        pubsub = self.client.pubsub()
        try:
            await pubsub.ssubscribe(live_channel(stream_id))
            assert (await pubsub.get_message(timeout=5.0))["type"] == "ssubscribe"
            yield Listener(self.client, pubsub, live_channel(stream_id))
            await pubsub.sunsubscribe(live_channel(stream_id))  # fakeredis does not notice a lost connection
        finally:
            await pubsub.aclose()


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


class _FakeCommands(OrdinaryCommands):
    """Removes the line with a script's flags, which fakeredis does not accept."""

    async def execute(self, *arguments: bytes | str | int | float) -> Any:
        if arguments[0] == "EVAL":
            arguments = ("EVAL", re.sub(r"^#!lua.*\n", "", str(arguments[1])), *arguments[2:])
        return await super().execute(*arguments)


async def keys_that_never_expire(client: Any) -> list[bytes]:
    """Returns the keys that never expire; in time such keys would fill Redis."""
    return [key async for key in client.scan_iter() if await client.ttl(key) == -1]


@pytest.fixture(params=["fakeredis", *REAL_BACKENDS])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """Yields an empty backend. After the test every key must have an expiry."""
    if request.param == "fakeredis":
        fake = fakeredis.aioredis.FakeRedis(protocol=2)
        yield Backend(_FakeCommands(fake), fake)
        assert await keys_that_never_expire(fake) == []
        await fake.aclose()
        return
    server: RedisServer = request.getfixturevalue("redis_server" if request.param == "redis" else "valkey_server")
    client = ordinary_client(server.url, reply_seconds=5.0)
    await client.flushall()
    await client.script_flush()
    try:
        if request.param == "valkey through redis-py":
            yield Backend(OrdinaryCommands(client), client)
        else:
            scripts = (*EventLog.SCRIPTS, *RequestQueue.SCRIPTS)
            address = RedisAddress.parse(server.url)
            connection = RespConnection(address, name="test", reply_seconds=5.0, scripts=scripts)
            connection.start()
            await wait_until(lambda: connection.is_up, what="the connection is up")
            try:
                yield Backend(connection, client)
            finally:
                await connection.close()
        assert await keys_that_never_expire(client) == []
    finally:
        await client.aclose()
