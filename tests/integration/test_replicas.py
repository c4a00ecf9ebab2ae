"""What is waited for with MIDSTREAM_MIN_REPLICAS, at a server that has no replica: nothing of it counts as done, or is shown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from shared.accounts import Accounts
from shared.errors import RedisRefused
from shared.event_log import EventLog, entries_of
from shared.events import ACCEPTED, CANCELLED, Entry
from shared.ids import BEGINNING, FIRST_ID, EventId, new_stream_id
from shared.redis_server import RedisAddress
from shared.replicas import ReplicatedCommands
from shared.resp import RespConnection
from shared.settings import Settings
from shared.unkept import Unkept
from shared.webhooks import Pending, WebhookStore
from tests.support.redis_server import RedisServer

SETTINGS = Settings()
BEHIND_ALL = EventId(9, 0)


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


def cancelled(seconds_ago: float = 0.0) -> bytes:
    return b'{"by":"client","time":%f}' % (time.time() - seconds_ago)


def log_with(commands: RespConnection, replicated: ReplicatedCommands | None = None) -> EventLog:
    return EventLog(
        commands, log_ttl_seconds=100, ended_ttl_seconds=100, tombstone_ttl_seconds=30, replicated=replicated
    )


async def read_by_callback(log: EventLog, stream_id: str, *, newest: bool) -> list[Entry]:
    read: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    if newest:
        log.send_newest(stream_id, 1, read.set_result)
    else:
        log.send_read(stream_id, BEGINNING, 10, read.set_result)
    entries = await read
    if isinstance(entries, Exception):
        raise entries
    return entries_of(entries)


READS: dict[str, Callable[[EventLog, str], Awaitable[Any]]] = {
    "read": lambda log, stream_id: log.read(stream_id),
    "read_all": lambda log, stream_id: log.read_all(stream_id),
    "newest": lambda log, stream_id: log.newest(stream_id),
    "read_page": lambda log, stream_id: log.read_page(stream_id, BEGINNING, BEHIND_ALL),
    "send_read": lambda log, stream_id: read_by_callback(log, stream_id, newest=False),
    "send_newest": lambda log, stream_id: read_by_callback(log, stream_id, newest=True),
}


@pytest.mark.parametrize("how", READS)
async def test_no_read_shows_a_new_end_that_replicas_lack(
    connections: tuple[RespConnection, RespConnection], how: str
) -> None:
    """The end was written by a process that has died before replicas had it."""
    commands, durable = connections
    read, other = READS[how], log_with(commands)
    careful, satisfied = (log_with(commands, ReplicatedCommands(durable, replicas)) for replicas in (1, 0))
    accepted = Entry(FIRST_ID, ACCEPTED, b'{"time":1}')
    fresh, old = new_stream_id(), new_stream_id()
    for stream_id in (fresh, old):
        assert (await other.append(stream_id, 0, accepted, 100)).status == "applied"
        assert len(await read(careful, stream_id)) > 0, "a stream that has not ended is read as ever"
    await other.end(fresh, CANCELLED, cancelled())
    await other.end(old, CANCELLED, cancelled(seconds_ago=3600))
    with pytest.raises(RedisRefused, match="NOREPLICAS"):
        await read(careful, fresh)
    await read(careful, old)
    await read(satisfied, fresh)
    await other.delete(fresh)
    with pytest.raises(RedisRefused, match="NOREPLICAS"):
        await read(careful, fresh)


async def test_replicas_are_asked_once_for_each_end(connections: tuple[RespConnection, RespConnection]) -> None:
    commands, durable = connections
    log, stream_id = log_with(commands, ReplicatedCommands(durable, 0)), new_stream_id()
    await log_with(commands).append(stream_id, 0, Entry(FIRST_ID, ACCEPTED, b'{"time":1}'), 100)
    await log_with(commands).end(stream_id, CANCELLED, cancelled())
    before = durable.writes
    for _ in range(3):
        assert [entry.field for entry in await log.newest(stream_id)] == [CANCELLED]
    assert durable.writes - before == 1


async def test_what_is_asked_for_together_waits_once_and_fails_alone(
    connections: tuple[RespConnection, RespConnection],
) -> None:
    commands, durable = connections
    replicated, keys = ReplicatedCommands(durable, 0), [b"midstream:{%d}:test" % number for number in range(50)]
    await commands.execute("SET", keys[7], "a text")
    before = durable.writes
    replies = await asyncio.gather(*(replicated.execute("LPUSH", key, "x") for key in keys), return_exceptions=True)
    assert durable.writes - before == 1
    refused = replies.pop(7)
    assert isinstance(refused, RedisRefused)
    assert refused.code == "WRONGTYPE"
    assert replies == [1] * 49
    for key in keys:
        await commands.execute("EXPIRE", key, 1)


async def test_who_gives_up_holds_nobody_up(connections: tuple[RespConnection, RespConnection]) -> None:
    replicated = ReplicatedCommands(connections[1], 1)
    first, second = (asyncio.create_task(replicated.execute("EXPIRE", b"midstream:none", 1)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(RedisRefused, match="NOREPLICAS"):
        await second
    with pytest.raises(RedisRefused, match="NOREPLICAS"):
        await replicated.execute("EXPIRE", b"midstream:none", 1)
