"""One claimed request against a real Valkey and a provider that follows a script."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from producer.attempt import Run
from producer.provider import Finish, Hearer, Unavailable
from shared import events
from shared.events import Accepted, Entry, Policies
from shared.ids import ACCEPTED, new_stream_id
from shared.lifecycle import fold
from shared.log import EventLog
from shared.queue import Claim
from shared.receipt import Deliveries
from shared.redis import RedisAddress
from shared.resp import RespConnection
from shared.settings import Settings
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

WORDS = [f"word{number} " for number in range(20)]


class ScriptedProvider:
    """Says the first word, waits for its cue, and then all the rest and its end in one turn of the loop."""

    name = "scripted"

    def __init__(self) -> None:
        self.cue = asyncio.Event()
        self.calls = 0

    def model_of(self, request: dict[str, Any]) -> str:
        return "scripted"

    async def generate(self, request: dict[str, Any], partial: str, hearer: Hearer) -> Finish:
        self.calls += 1
        hearer.take([WORDS[0]])
        await self.cue.wait()
        for word in WORDS[1:]:
            hearer.take([word])
        return Finish("stop", None)

    async def close(self) -> None:
        """Nothing is held open."""


@pytest.fixture
async def log(valkey_server: RedisServer) -> AsyncIterator[EventLog]:
    address = RedisAddress.parse(valkey_server.url)
    connection = RespConnection(address, name="test", reply_seconds=5.0, scripts=EventLog.SCRIPTS)
    connection.start()
    await wait_until(lambda: connection.is_up)
    yield EventLog(connection, log_ttl_seconds=100, ended_ttl_seconds=100, tombstone_ttl_seconds=100)
    await connection.close()


async def accepted(log: EventLog, on_interrupt: str) -> str:
    stream_id = new_stream_id()
    asked = Accepted({"model": "m", "messages": []}, Policies(None, on_interrupt), time.time(), "anonymous", {})
    await log.append(stream_id, 0, Entry(ACCEPTED, events.ACCEPTED, asked.stored()), 100)
    return stream_id


@pytest.mark.parametrize("on_interrupt", ["restart", "continue", "fail"])
async def test_a_provider_that_ends_as_it_is_stopped_leaves_no_hole(log: EventLog, on_interrupt: str) -> None:
    """What came after the stop was passed over: the end that came with it must not count as the end of the answer."""
    stream_id = await accepted(log, on_interrupt)
    provider = ScriptedProvider()
    run = Run(
        Claim(b"1-1", stream_id),
        log=log,
        deliveries=Deliveries(log._commands),
        provider=provider,
        settings=Settings(provider_backoff_seconds=0.01),
        worker="test",
    )
    running = asyncio.create_task(run.run())

    async def has_begun() -> bool:
        return len(fold(await log.read_all(stream_id)).items) == 1

    await wait_until(has_begun)
    run.stop(Unavailable("it fell silent", code="provider_stalled"))
    provider.cue.set()  # in the same turn of the loop
    assert await running
    history = fold(await log.read_all(stream_id))
    if on_interrupt == "fail":
        assert (history.status, history.text) == ("failed", WORDS[0])
        return
    assert (history.status, history.attempt, provider.calls) == ("completed", 2, 2)
    kept = [WORDS[0]] if on_interrupt == "continue" else []
    assert history.text == "".join([*kept, *WORDS])
