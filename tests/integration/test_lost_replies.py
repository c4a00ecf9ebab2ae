"""What clients write is carried out once, also where replies of Redis are lost and the gateway asks again."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, cast

import pytest

from gateway import metrics
from gateway.http.problems import Problem
from gateway.streams import Streams
from shared.event_log import EventLog
from shared.events import Policies
from shared.outcomes import CancelReason, Status
from shared.queue import RequestQueue
from shared.receipt import DeliveryNotes
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from shared.settings import Settings
from tests.support.lossy import LossyCommands
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

SETTINGS = Settings()


@pytest.mark.parametrize("seed", range(3))
async def test_each_create_and_each_cancel_is_carried_out_once(valkey_server: RedisServer, seed: int) -> None:
    connection = RespConnection(RedisAddress.parse(valkey_server.url), name="test", reply_seconds=5.0)
    connection.start()
    try:
        await wait_until(lambda: connection.is_up)
        await connection.execute("FLUSHALL")
        lossy = LossyCommands(connection, seed=seed, share=0.4)
        log = EventLog(lossy, log_ttl_seconds=1000, ended_ttl_seconds=100, tombstone_ttl_seconds=30)
        queue = RequestQueue(lossy, ttl_seconds=500, requests_max=1000)
        streams = Streams(cast(Any, lossy), log, queue, cast(Any, None), DeliveryNotes(lossy), SETTINGS)

        async def create(number: int) -> str:
            key = f"key {number}" if number % 2 else None
            created = await streams.create({"model": "m", "messages": []}, Policies(), {}, idempotency=key)
            return str(created["id"])

        ids = await asyncio.gather(*map(create, range(60)))
        assert lossy.lost > 60
        queued = Counter(claim.stream_id for claim in await RequestQueue(
            connection, ttl_seconds=500, requests_max=1000
        ).newest(1000))
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
    return sum(sample.value for metric in metrics._CANCELS.collect() for sample in metric.samples if sample.name.endswith("_total"))


async def test_a_create_that_no_reply_reaches_is_told_so_in_time(valkey_server: RedisServer) -> None:
    connection = RespConnection(RedisAddress.parse(valkey_server.url), name="test", reply_seconds=5.0)
    lossy = LossyCommands(connection, seed=1, share=1.0)
    log = EventLog(lossy, log_ttl_seconds=1000, ended_ttl_seconds=100, tombstone_ttl_seconds=30)
    queue = RequestQueue(lossy, ttl_seconds=500, requests_max=1000)
    settings = Settings(redis_wait_seconds=0.2)
    connection.start()
    try:
        streams = Streams(cast(Any, lossy), log, queue, cast(Any, None), DeliveryNotes(lossy), settings)
        for idempotency in (None, "key"):
            with pytest.raises(Problem) as raised:
                async with asyncio.timeout(2):
                    await streams.create({"messages": []}, Policies(), {}, idempotency=idempotency)
            assert (raised.value.status, raised.value.retry_after_seconds) == (503, 1)
    finally:
        await connection.close()
