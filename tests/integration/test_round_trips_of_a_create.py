"""A create takes one round trip to Redis, and one more where a limit may refuse it: then nothing is written before."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gateway.access.limits import Limits, OwnLimits
from gateway.access.owners import Owners
from gateway.http.problems import Problem
from gateway.streams.creation import NewStream
from gateway.streams.streams import Streams
from shared.accounts import Accounts
from shared.event_log import EventLog
from shared.events import Policies
from shared.keys import REQUESTS
from shared.lanes import Lanes, lanes_of
from shared.queue import RequestQueue
from shared.receipt import DeliveryNotes
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from shared.settings import Settings
from shared.usage import Usage
from tests.support.redis_server import RedisServer


@pytest.mark.parametrize(("limit", "round_trips"), [(0, 1), (2, 2)])
async def test_round_trips_of_a_create(valkey_server: RedisServer, limit: int, round_trips: int) -> None:
    settings = Settings(limit_streams=limit)
    scripts = (*EventLog.SCRIPTS, *RequestQueue.SCRIPTS, *Accounts.SCRIPTS)
    connection = RespConnection(RedisAddress.parse(valkey_server.url), name="test", reply_seconds=5.0, scripts=scripts)
    connection.start()
    await connection.wait_until_up()
    try:
        log = EventLog(connection, log_ttl_seconds=100, ended_ttl_seconds=100, tombstone_ttl_seconds=30)
        queue = Lanes(connection, lanes_of(connection, settings))
        accounts, deliveries = Accounts(connection, settings), DeliveryNotes(connection)
        limits = Limits(accounts, log, OwnLimits(settings, lambda name: {}), settings)
        usage = Usage(accounts, log, deliveries, settings)
        parts = (connection, log, queue, cast(Any, None), deliveries, settings)
        streams = Streams(*parts, Owners(checked=False), limits, usage)
        for _ in range(2):
            before = connection.writes
            created = await streams.create(NewStream({"messages": []}, Policies(), {}))
            assert connection.writes - before == round_trips
            assert [entry.field for entry in await log.read_all(created["id"])] == [b"accepted"]
        if limit:
            with pytest.raises(Problem) as raised:
                await streams.create(NewStream({"messages": []}, Policies(), {}))
            assert raised.value.status == 429
            assert await connection.execute("XLEN", REQUESTS) == 2, "nothing was written for what was refused"
    finally:
        await connection.close()
