"""What is waited for with MIDSTREAM_MIN_REPLICAS, at a server that has no replica: nothing of it counts as done."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from shared.accounts import Accounts
from shared.errors import RedisRefused
from shared.ids import new_stream_id
from shared.redis_server import RedisAddress
from shared.replicas import ReplicatedCommands
from shared.resp import RespConnection
from shared.settings import Settings
from shared.unkept import Unkept
from shared.webhooks import Pending, WebhookStore
from tests.support.redis_server import RedisServer

SETTINGS = Settings()


@pytest.fixture
async def connections(valkey_server: RedisServer) -> AsyncIterator[tuple[RespConnection, RespConnection]]:
    """Two connections: one for all commands, and one for those that wait."""
    address = RedisAddress.parse(valkey_server.url)
    commands, durable = (RespConnection(address, name=name, reply_seconds=5.0) for name in ("commands", "durable"))
    for connection in (commands, durable):
        connection.start()
        await connection.wait_until_up()
    yield commands, durable
    await commands.close()
    await durable.close()


class Lists:
    """The lists of streams that are to be archived, told of and counted."""

    def __init__(self, commands: RespConnection, durable: RespConnection, replicas: int) -> None:
        replicated = ReplicatedCommands(durable, replicas)
        self.unkept = Unkept(commands, log_ttl_seconds=100, ended_ttl_seconds=100, replicated=replicated)
        self.webhooks = WebhookStore(commands, log_ttl_seconds=100, replicated=replicated)
        self.accounts = Accounts(commands, SETTINGS, replicated=replicated)

    async def settle(self, stream_id: str, *, closed: bool) -> None:
        about = {"ended_at": time.time(), **({"closed": True} if closed else {})}
        await self.accounts.settle(stream_id, "ann", "model", {"streams": 1}, about, 10.0)


WAITED_FOR: dict[str, Callable[[Lists, str], Awaitable[object]]] = {
    "entered to be archived": lambda lists, stream_id: lists.unkept.enter(stream_id),
    "entered to be told of": lambda lists, stream_id: lists.webhooks.enter(stream_id),
    "entered to be counted": lambda lists, stream_id: lists.accounts.admit(stream_id, "ann", 1, 0, for_good=True),
    "a webhook has failed": lambda lists, stream_id: lists.webhooks.again(pending(stream_id), 1.0),
    "a webhook is given up": lambda lists, stream_id: lists.webhooks.dead(pending(stream_id)),
    "counted for the last time": lambda lists, stream_id: lists.settle(stream_id, closed=True),
}
NOT_WAITED_FOR: dict[str, Callable[[Lists, str], Awaitable[object]]] = {
    "whether a limit forbids it": lambda lists, stream_id: lists.accounts.admit(stream_id, "ann", 1, 0),
    "counted": lambda lists, stream_id: lists.settle(stream_id, closed=False),
    "a look": lambda lists, stream_id: lists.unkept.take(10),
    "archived": lambda lists, stream_id: lists.unkept.kept({stream_id: []}, []),
}


def pending(stream_id: str) -> Pending:
    return Pending(stream_id, "https://example.com/", "", b"{}", 1, time.time(), dead_at=time.time())


@pytest.mark.parametrize("what", [*WAITED_FOR, *NOT_WAITED_FOR])
async def test_the_lists_count_as_written_when_replicas_have_them(
    connections: tuple[RespConnection, RespConnection], what: str
) -> None:
    stream_id, write = new_stream_id(), (WAITED_FOR | NOT_WAITED_FOR)[what]
    if what in WAITED_FOR:
        with pytest.raises(RedisRefused, match="NOREPLICAS 0 of 1 replicas have it yet") as refused:
            await write(Lists(*connections, replicas=1), stream_id)
        assert refused.value.passing, "it is repeated"
    else:
        await write(Lists(*connections, replicas=1), stream_id)
    await write(Lists(*connections, replicas=0), stream_id)
