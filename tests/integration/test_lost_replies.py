"""What clients write is carried out once, also where replies of Redis are lost and the gateway asks again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest

from gateway import metrics
from gateway.access.limits import Limits, OwnLimits
from gateway.access.owners import Owners
from gateway.http.problems import Problem
from gateway.streams.creation import NewStream
from gateway.streams.streams import Streams
from shared.accounts import Accounts
from shared.commands import Commands
from shared.errors import Disconnected
from shared.event_log import EventLog
from shared.events import Policies
from shared.keys import REQUESTS
from shared.lanes import Lanes, lanes_of
from shared.outcomes import CancelReason, Status
from shared.queue import RequestQueue
from shared.receipt import DeliveryNotes
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from shared.settings import Settings
from shared.usage import Usage
from tests.support.lossy import LossyCommands
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


@pytest.mark.parametrize("seed", range(3))
async def test_each_create_and_each_cancel_is_carried_out_once(valkey_server: RedisServer, seed: int) -> None:
    connection = RespConnection(RedisAddress.parse(valkey_server.url), name="test", reply_seconds=5.0)
    connection.start()
    try:
        await wait_until(lambda: connection.is_up)
        await connection.execute("FLUSHALL")
        lossy = LossyCommands(connection, seed=seed, share=0.4)
        streams = streams_over(lossy, Settings())

        async def create(number: int) -> str:
            key = f"key {number}" if number % 2 else None
            created = await streams.create(NewStream({"model": "m", "messages": []}, Policies(), {}, key))
            return str(created["id"])

        ids = await asyncio.gather(*map(create, range(60)))
        assert lossy.lost > 60
        queued = Counter(
            claim.stream_id for claim in await RequestQueue(connection, ttl_seconds=500, requests_max=1000).newest(1000)
        )
        assert queued == Counter(ids)
        assert await create(1) == ids[1], "its key is known"

        before = _cancels()
        histories = await asyncio.gather(*(streams.cancel(stream_id, CancelReason.CLIENT) for stream_id in ids))
        assert {history.status for history in histories} == {Status.CANCELLED}
        assert _cancels() - before == len(ids), "each was counted, and gets its receipt, once"
        await streams.close()
    finally:
        await connection.close()


def _cancels() -> float:
    return sum(
        sample.value
        for metric in metrics._CANCELS.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


class Away(Commands):
    """A Redis that is away."""

    async def execute(self, *arguments: bytes | str | int | float) -> Any:
        raise Disconnected

    def send(self, arguments: tuple[bytes | str | int | float, ...], on_reply: Callable[[Any], None]) -> None:
        on_reply(Disconnected())

    def send_packed(self, command: bytes, key: bytes, on_reply: Callable[[Any], None]) -> None:
        on_reply(Disconnected())


def streams_over(commands: Commands, settings: Settings) -> Streams:
    log = EventLog(commands, log_ttl_seconds=1000, ended_ttl_seconds=100, tombstone_ttl_seconds=30)
    queue = Lanes(commands, lanes_of(commands, settings))
    accounts, deliveries = Accounts(commands, settings), DeliveryNotes(commands)
    limits, usage = (
        Limits(accounts, log, OwnLimits(settings, lambda name: {}), settings),
        Usage(accounts, log, deliveries, settings),
    )
    parts = (cast(Any, commands), log, queue, cast(Any, None), deliveries, settings)
    return Streams(*parts, Owners(checked=False), limits, usage)


class QueueAway(LossyCommands):
    """A Redis of which the queue's part is away."""

    async def execute(self, *arguments: bytes | str | int | float) -> Any:
        if REQUESTS in arguments:
            raise Disconnected
        return await super().execute(*arguments)


async def test_a_request_whose_create_could_not_queue_it_is_queued_by_the_next_one(valkey_server: RedisServer) -> None:
    connection = RespConnection(RedisAddress.parse(valkey_server.url), name="test", reply_seconds=5.0)
    connection.start()
    try:
        await connection.wait_until_up()
        await connection.execute("FLUSHALL")
        settings = Settings(redis_wait_seconds=0.3)
        request: dict[str, Any] = {"messages": []}
        away = streams_over(QueueAway(connection, seed=1, share=0.0), settings)
        with pytest.raises(Problem) as raised:
            await away.create(NewStream(request, Policies(), {}, "key"))
        assert raised.value.status == 503
        streams = streams_over(connection, settings)
        ids = [(await streams.create(NewStream(request, Policies(), {}, "key")))["id"] for _ in range(3)]
        queue = RequestQueue(connection, ttl_seconds=500, requests_max=1000)
        assert [claim.stream_id for claim in await queue.newest(10)] == [ids[0]], "once"
        assert len(set(ids)) == 1
    finally:
        await connection.close()


async def test_after_a_full_queue_a_create_may_be_repeated(valkey_server: RedisServer) -> None:
    connection = RespConnection(RedisAddress.parse(valkey_server.url), name="test", reply_seconds=5.0)
    connection.start()
    try:
        await connection.wait_until_up()
        await connection.execute("FLUSHALL")
        streams = streams_over(connection, Settings(queue_requests_max=1))
        request: dict[str, Any] = {"messages": []}
        await streams.create(NewStream(request, Policies(), {}))
        with pytest.raises(Problem) as raised:
            await streams.create(NewStream(request, Policies(), {}, "key"))
        assert raised.value.status == 503
        await connection.execute("DEL", REQUESTS)
        created = await streams.create(NewStream(request, Policies(), {}, "key"))
        assert (await streams.history(created["id"])).status == Status.QUEUED, "it is no deleted one"
    finally:
        await connection.close()


@pytest.mark.parametrize("idempotency", [None, "key"])
async def test_a_create_waits_for_redis_for_so_long_and_no_longer(idempotency: str | None) -> None:
    streams, began = streams_over(Away(), Settings(redis_wait_seconds=0.2)), time.monotonic()
    with pytest.raises(Problem) as raised:
        await streams.create(NewStream({"messages": []}, Policies(), {}, idempotency))
    assert (raised.value.status, raised.value.retry_after_seconds) == (503, 1)
    assert 0.2 <= time.monotonic() - began < 10


async def test_requests_that_wait_for_redis_are_bounded_in_bytes() -> None:
    streams = streams_over(Away(), Settings(redis_wait_seconds=0.2))
    request = {"messages": [], "prompt": "x" * 1_000_000}
    creates = [asyncio.create_task(streams.create(NewStream(request, Policies(), {}))) for _ in range(150)]
    await asyncio.sleep(0)
    assert sum(create.done() for create in creates) == 150 - (128 << 20) // 1_000_000
    for result in await asyncio.gather(*creates, return_exceptions=True):
        assert isinstance(result, Problem)
        assert result.status == 503
    with pytest.raises(Problem):  # all have given their room back
        await streams.create(NewStream(request, Policies(), {}))
    assert streams._creation._creating_bytes == 0
