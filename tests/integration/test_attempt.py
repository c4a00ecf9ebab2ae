"""One claimed request, with a real Valkey and a scripted provider."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from producer.provider import Finish, Hearer, Unavailable
from producer.run import HandedBack, Run
from shared import events
from shared.errors import RedisRefused
from shared.event_log import EventLog
from shared.events import Accepted, Entry, Policies
from shared.ids import FIRST_ID, EventId, new_stream_id
from shared.keys import log_key
from shared.lifecycle import fold
from shared.outcomes import FailureCode
from shared.queue import Claim
from shared.receipt import DeliveryNotes
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from shared.settings import Settings
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

WORDS = [f"word{number} " for number in range(20)]


class ScriptedProvider:
    """Sends the first word, waits for `cue`, and then sends the rest and the end in one turn of the event loop."""

    name = "scripted"
    base_url = ""

    def __init__(self) -> None:
        self.cue = asyncio.Event()
        self.calls = 0

    def model_of(self, request: dict[str, Any]) -> str:
        return str(request.get("model") or "scripted")

    async def generate(self, request: dict[str, Any], partial: str, hearer: Hearer) -> Finish:
        self.calls += 1
        hearer.accept([WORDS[0]])
        await self.cue.wait()
        for word in WORDS[1:]:
            hearer.accept([word])
        return Finish("stop", None)

    async def close(self) -> None:
        """Does nothing: there is no connection."""


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
    request = Accepted({"model": "m", "messages": []}, Policies(None, on_interrupt), time.time(), "anonymous", {})
    await log.append(stream_id, 0, Entry(FIRST_ID, events.ACCEPTED, request.stored()), 100)
    return stream_id


@pytest.mark.parametrize("on_interrupt", ["restart", "continue", "fail"])
async def test_a_provider_that_ends_while_it_is_stopped_leaves_no_hole(log: EventLog, on_interrupt: str) -> None:
    """Tokens after the stop were ignored: the end that came with them must not count as the end of the answer."""
    stream_id = await accepted(log, on_interrupt)
    provider = ScriptedProvider()
    run = Run(
        Claim(b"1-1", stream_id),
        log=log,
        deliveries=DeliveryNotes(log._commands),
        provider=provider,
        settings=Settings(provider_backoff_seconds=0.01),
        worker="test",
    )
    running = asyncio.create_task(run.run())

    async def has_begun() -> bool:
        return len(fold(await log.read_all(stream_id)).items) == 1

    await wait_until(has_begun)
    run.stop(Unavailable("it fell silent", code=FailureCode.PROVIDER_STALLED))
    provider.cue.set()  # in the same turn of the loop
    assert await running
    history = fold(await log.read_all(stream_id))
    if on_interrupt == "fail":
        assert (history.status, history.text) == ("failed", WORDS[0])
        return
    assert (history.status, history.attempt, provider.calls) == ("completed", 2, 2)
    kept = [WORDS[0]] if on_interrupt == "continue" else []
    assert history.text == "".join([*kept, *WORDS])


_ACCEPTED = Accepted({"model": "m", "messages": []}, Policies(None, "restart"), 0.0, "anonymous", {}).stored()
_STARTED = b'{"attempt":1,"model":"m","worker":"w","time":1.0}'
UNREADABLE_LOGS: dict[str, list[tuple[str, bytes, bytes]]] = {
    "no JSON": [("0-1", b"accepted", b"{")],
    "no UTF-8 where JSON is": [("0-1", b"accepted", b"\xff\xfe")],
    "a list where an object is": [("0-1", b"accepted", b"[]")],
    "without what must be there": [("0-1", b"accepted", b"{}")],
    "a request that is a text": [("0-1", b"accepted", _ACCEPTED.replace(b'{"model":"m","messages":[]}', b'"hello"'))],
    "no request at all": [("1-1", b"t", b"hello")],
    "a field that there is not": [("0-1", b"accepted", _ACCEPTED), ("1-0", b"stranger", b"")],
    "an attempt that nobody began": [("0-1", b"accepted", _ACCEPTED), ("7-5", b"t", b"hello")],
    "an attempt that began with nothing": [("0-1", b"accepted", _ACCEPTED), ("1-0", b"started", b"")],
    "a batch that is none": [("0-1", b"accepted", _ACCEPTED), ("1-0", b"started", _STARTED), ("1-2", b"b", b'"ab"x')],
    "a text that is none": [("0-1", b"accepted", _ACCEPTED), ("1-0", b"started", _STARTED), ("1-1", b"t", b"\xff")],
    "ids at their end": [
        ("0-1", b"accepted", _ACCEPTED),
        ("18446744073709551615-18446744073709551615", b"started", _STARTED),
    ],
    "ids beyond what a script can count": [
        ("0-1", b"accepted", _ACCEPTED),
        ("9007199254740993-0", b"started", _STARTED),
    ],
}


@pytest.mark.parametrize("garbage", UNREADABLE_LOGS)
async def test_a_log_that_cannot_be_read_ends_as_failed_once(
    log: EventLog, garbage: str, caplog: pytest.LogCaptureFixture
) -> None:
    stream_id = new_stream_id()
    commands = log._commands
    for entry_id, field, value in UNREADABLE_LOGS[garbage]:
        await commands.execute("XADD", log_key(stream_id), entry_id, field, value)
    await commands.execute("EXPIRE", log_key(stream_id), 60)
    provider = ScriptedProvider()
    runs = [run_of(log, stream_id, provider) for _ in range(2)]
    for run in runs:  # a second worker, should the first die before it acknowledges
        assert await run.run(), "the request is done with"
    assert provider.calls == 0
    newest = await commands.execute("XREVRANGE", log_key(stream_id), "+", "-", "COUNT", 2)
    if not garbage.startswith("ids"):  # nothing can be written behind these
        assert newest[0][1][0] == b"failed"
        assert b'"code":"unreadable"' in newest[0][1][1]
        assert newest[1][1][0] != b"failed", "once"
        assert [run.failure and run.failure["code"] for run in runs] == ["unreadable", None], "for the console"
    assert not any(record.exc_info for record in caplog.records), "said in a line, without a trace"


@pytest.mark.parametrize("worker", [b'"w"', b"7", b'{"a":[]}', b"null"])
async def test_the_last_heartbeat_of_a_lost_worker_is_recorded_if_known(log: EventLog, worker: bytes) -> None:
    stream_id = new_stream_id()
    entries = [("0-1", b"accepted", _ACCEPTED), ("1-0", b"started", _STARTED.replace(b'"w"', worker))]
    for entry_id, field, value in entries:
        await log._commands.execute("XADD", log_key(stream_id), entry_id, field, value)
    await log._commands.execute("EXPIRE", log_key(stream_id), 60)

    async def last_heard_at(name: str) -> float:
        assert name == "w"
        return 5.0

    run = run_of(log, stream_id, ScriptedProvider(), last_heard_at=last_heard_at)
    running = asyncio.create_task(run.run())

    async def began() -> bool:
        return (await log.newest(stream_id))[-1].id >= EventId(2, 0)

    await wait_until(began)
    run.stop(HandedBack())
    assert not await running
    (restarted,) = await log.read_between(stream_id, EventId(2, 0), EventId(2, 0))
    assert orjson.loads(restarted.value).get("last_heard_at") == (5.0 if worker == b'"w"' else None)


async def test_a_worker_without_a_heartbeat_is_taken_over_all_the_same(log: EventLog) -> None:
    stream_id = new_stream_id()
    for entry_id, field, value in (("0-1", b"accepted", _ACCEPTED), ("1-0", b"started", _STARTED)):
        await log._commands.execute("XADD", log_key(stream_id), entry_id, field, value)
    await log._commands.execute("EXPIRE", log_key(stream_id), 60)

    async def last_heard_at(name: str) -> float:
        raise RedisRefused("NOPERM this user may not")

    run = run_of(log, stream_id, ScriptedProvider(), last_heard_at=last_heard_at)
    running = asyncio.create_task(run.run())

    async def began() -> bool:
        return (await log.newest(stream_id))[-1].id >= EventId(2, 0)

    await wait_until(began)
    run.stop(HandedBack())
    assert not await running


@pytest.mark.parametrize("when", ["before", "in mid-answer"])
async def test_a_key_of_the_wrong_type_fails_the_stream_once(
    log: EventLog, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    commands, provider = log._commands, ScriptedProvider()
    stream_id = await accepted(log, "restart")
    if when == "before":
        await commands.execute("SET", log_key(stream_id), "something else", "EX", 60)
        assert await run_of(log, stream_id, provider).run()
    else:
        running = asyncio.create_task(run_of(log, stream_id, provider).run())
        await wait_until(lambda: provider.calls == 1)
        await commands.execute("SET", log_key(stream_id), "something else", "EX", 60)
        provider.cue.set()
        assert await running
    assert await commands.execute("GET", log_key(stream_id)) == b"something else", "it is not ours"
    (line,) = [record.getMessage() for record in caplog.records if "unreadable" in record.getMessage()]
    assert "end cannot be written" in line
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("other", ["ends it", "falls silent"])
async def test_a_request_that_was_given_out_twice_is_left_to_the_worker_that_writes_it(
    log: EventLog, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a fail-over to a replica that lacks the claim: the log's writer lives, but the queue gives the request out again."""
    monkeypatch.setattr("producer.run.patience_of", lambda settings: 0.3)
    stream_id = await accepted(log, "restart")
    first, second = ScriptedProvider(), ScriptedProvider()
    second.cue.set()
    settings = Settings(lease_seconds=0.4)
    running = asyncio.create_task(run_of(log, stream_id, first).run())
    await wait_until(lambda: first.calls == 1)
    standing_by = asyncio.create_task(run_of(log, stream_id, second, is_doubtful=True, settings=settings).run())
    if other == "ends it":
        first.cue.set()
        assert await running
        assert await standing_by, "it has ended"
        assert (second.calls, fold(await log.read_all(stream_id)).attempt) == (0, 1)
        return
    assert await standing_by
    first.cue.set()
    assert await running, "fenced off: the other has ended it"
    history = fold(await log.read_all(stream_id))
    assert (history.status, history.attempt, history.text) == ("completed", 2, "".join(WORDS))


async def test_a_worker_that_stands_by_hands_the_request_back(log: EventLog) -> None:
    stream_id = await accepted(log, "restart")
    first, second = ScriptedProvider(), ScriptedProvider()
    running = asyncio.create_task(run_of(log, stream_id, first).run())
    await wait_until(lambda: first.calls == 1)
    run = run_of(log, stream_id, second, is_doubtful=True, settings=Settings(lease_seconds=0.3))
    standing_by = asyncio.create_task(run.run())
    await asyncio.sleep(0)
    run.stop(HandedBack())
    assert not await standing_by
    first.cue.set()
    assert await running
    assert second.calls == 0


def run_of(log: EventLog, stream_id: str, provider: ScriptedProvider, **more: Any) -> Run:
    return Run(
        Claim(b"1-1", stream_id),
        log=log,
        deliveries=DeliveryNotes(log._commands),
        provider=provider,
        worker="test",
        **{"settings": Settings(provider_backoff_seconds=0.01), **more},
    )
