"""A run that has ended is freed by its last reference, after any end: the worker's garbage collector rarely runs."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from producer import takeover
from producer.log_copy import LogCopy
from producer.openai_provider import OpenAIProvider
from producer.provider import Finish, Hearer, Provider, Refused, Unavailable
from producer.run import HandedBack, LastReaderGone, Run
from producer.writer import Writer
from shared import events
from shared.event_log import EventLog
from shared.events import Accepted, Entry, Policies
from shared.ids import FIRST_ID, EventId, new_stream_id
from shared.lifecycle import fold
from shared.outcomes import FailureCode
from shared.queue import Claim
from shared.receipt import DeliveryNotes
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from shared.settings import Settings
from tests.support.openai_server import OpenAIServer
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


class Scripted:
    """Sends two tokens, and then calls the test's function."""

    name = "scripted"
    base_url = ""

    def __init__(self, then: Callable[[Hearer, int], Awaitable[Finish]]) -> None:
        self._then = then
        self.calls = 0

    def model_of(self, request: dict[str, Any]) -> str:
        return "scripted"

    async def generate(self, request: dict[str, Any], partial: str, hearer: Hearer) -> Finish:
        self.calls += 1
        hearer.accept(["one "])
        hearer.accept(["two"])
        return await self._then(hearer, self.calls)

    async def close(self) -> None:
        """Does nothing: there is no connection."""


async def done(hearer: Hearer, calls: int) -> Finish:
    return Finish("stop", {"total_tokens": 2})


async def unstorable(hearer: Hearer, calls: int) -> Finish:
    return Finish("stop", {"total_tokens": 2**70, "half": "\ud83d"})


async def an_item_that_cannot_be_stored(hearer: Hearer, calls: int) -> Finish:
    hearer.accept(["half \ud83d"])
    await asyncio.Event().wait()
    raise AssertionError("it was stopped")


async def stalled(hearer: Hearer, calls: int) -> Finish:
    await asyncio.Event().wait()
    raise AssertionError("it was stopped")


async def refused(hearer: Hearer, calls: int) -> Finish:
    raise Refused("no", status=400, error={"code": 2**70, "message": "\ud83d"})


async def broken_once(hearer: Hearer, calls: int) -> Finish:
    if calls == 1:
        raise Unavailable("it broke off")
    return Finish("stop", None)


async def a_bug_after_the_end(hearer: Hearer, calls: int) -> Finish:
    return Finish("stop", None, {1: {}})  # type: ignore[dict-item]


async def buggy(hearer: Hearer, calls: int) -> Finish:
    raise KeyError("a text that nobody should see")


@pytest.fixture
async def connection(valkey_server: RedisServer) -> AsyncIterator[RespConnection]:
    address = RedisAddress.parse(valkey_server.url)
    scripts = (*EventLog.SCRIPTS, *DeliveryNotes.SCRIPTS)
    connection = RespConnection(address, name="test", reply_seconds=5.0, scripts=scripts)
    connection.start()
    await wait_until(lambda: connection.is_up)
    yield connection
    await connection.close()


@pytest.fixture
def log(connection: RespConnection) -> EventLog:
    return EventLog(connection, log_ttl_seconds=100, ended_ttl_seconds=100, tombstone_ttl_seconds=100)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Watched:
    """Weak references to a run, its writer and its writer's copy of the log."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.references: list[weakref.ref[Any]] = [weakref.ref(run)]

        class WatchedCopy(LogCopy):  # LogCopy has no slot for a weak reference
            pass

        def watched_writer(*arguments: Any) -> Writer:
            writer = Writer(*arguments)
            copy = WatchedCopy(writer._copy[index] for index in range(len(writer._copy)))
            writer._copy = copy
            self.references += [weakref.ref(writer), weakref.ref(copy)]
            return writer

        monkeypatch.setattr(takeover, "Writer", watched_writer)

    def are_freed(self) -> bool:
        return len(self.references) >= 3 and all(reference() is None for reference in self.references)


async def accepted(log: EventLog, request: dict[str, Any] | None = None) -> str:
    stream_id = new_stream_id()
    about = Accepted(request or {"model": "m", "messages": []}, Policies(None, "restart"), time.time(), "anonymous", {})
    await log.append(stream_id, 0, Entry(FIRST_ID, events.ACCEPTED, about.stored()), 100)
    return stream_id


def run_of(stream_id: str, log: EventLog, connection: RespConnection, provider: Provider, **settings: Any) -> Run:
    return Run(
        Claim(b"1-1", stream_id),
        log=log,
        deliveries=DeliveryNotes(connection),
        provider=provider,
        settings=Settings(provider_backoff_seconds=0.01, **settings),
        worker="test",
    )


async def has_begun(log: EventLog, stream_id: str) -> bool:
    return len(fold(await log.read_all(stream_id)).items) == 2


@pytest.mark.parametrize(
    ("then", "status", "calls"),
    [
        (done, "completed", 1),
        (unstorable, "completed", 1),
        (refused, "failed", 1),
        (broken_once, "completed", 2),
        (buggy, "failed", 1),
        (a_bug_after_the_end, "failed", 1),
        (an_item_that_cannot_be_stored, "failed", 1),
    ],
)
async def test_an_answer_ends_in_one_terminal_event_and_its_run_is_freed(
    log: EventLog,
    connection: RespConnection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    then: Callable[[Hearer, int], Awaitable[Finish]],
    status: str,
    calls: int,
) -> None:
    stream_id = await accepted(log)
    provider = Scripted(then)
    run = run_of(stream_id, log, connection, provider)
    watched = Watched(run, monkeypatch)
    assert await run.run()
    del run
    await wait_until(watched.are_freed)
    history = fold(await log.read_all(stream_id))
    assert (history.status, provider.calls) == (status, calls)
    assert history.text.startswith("one ")
    assert "nobody should see" not in caplog.text


@pytest.mark.parametrize(
    ("why", "status"),
    [
        (HandedBack(), "running"),
        (LastReaderGone(), "cancelled"),
        (Unavailable("it fell silent", code=FailureCode.PROVIDER_STALLED), "failed"),
    ],
)
@pytest.mark.parametrize("on_cancel", ["close", "drain"])
async def test_a_run_that_is_stopped_is_freed(
    log: EventLog,
    connection: RespConnection,
    monkeypatch: pytest.MonkeyPatch,
    why: Exception,
    status: str,
    on_cancel: str,
) -> None:
    stream_id = await accepted(log)
    run = run_of(
        stream_id,
        log,
        connection,
        Scripted(stalled),
        attempts_max=1,
        provider_on_cancel=on_cancel,
        attempt_seconds=0.3,
    )
    watched = Watched(run, monkeypatch)
    running = asyncio.create_task(run.run())
    await wait_until(lambda: has_begun(log, stream_id))
    run.watch(time.monotonic())  # a probe is under way as it ends
    run.stop(type(why)(*why.args))  # type: ignore[arg-type]
    await running
    run.stop(HandedBack())  # the worker may stop as well before it has forgotten the run
    run.watch(time.monotonic())
    del run, running
    await wait_until(watched.are_freed)
    assert fold(await log.read_all(stream_id)).status == status


@pytest.mark.parametrize("on_cancel", ["close", "drain"])
@pytest.mark.parametrize("ended", [True, False])
async def test_a_run_that_is_fenced_off_is_freed(
    log: EventLog, connection: RespConnection, monkeypatch: pytest.MonkeyPatch, ended: bool, on_cancel: str
) -> None:
    stream_id = await accepted(log)
    cue = asyncio.Event()

    async def more(hearer: Hearer, calls: int) -> Finish:
        await cue.wait()
        hearer.accept(["three"])
        await asyncio.sleep(0.02)
        if on_cancel == "drain" and not ended:
            raise Unavailable("it broke off behind the fence")
        return Finish("stop", {"total_tokens": 3})

    run = run_of(stream_id, log, connection, Scripted(more), provider_on_cancel=on_cancel)
    watched = Watched(run, monkeypatch)
    running = asyncio.create_task(run.run())
    await wait_until(lambda: has_begun(log, stream_id))
    if ended:
        await log.end(stream_id, events.CANCELLED, b'{"by":"client","time":1}')
    else:
        held = len(await log.read_all(stream_id))
        restarted = b'{"attempt":2,"model":"m","time":1,"base":0}'
        await log.append(stream_id, held, Entry(EventId(2, 0), events.RESTARTED, restarted))
    cue.set()
    assert await running is ended
    del run, running
    await wait_until(watched.are_freed)


async def test_a_run_that_lost_redis_is_freed(
    log: EventLog, connection: RespConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Appends that failed are repeated: their errors must not refer to the writer."""
    stream_id = await accepted(log)
    cue = asyncio.Event()

    async def more(hearer: Hearer, calls: int) -> Finish:
        await cue.wait()
        for number in range(20):
            hearer.accept([str(number)])
        return Finish("stop", None)

    run = run_of(stream_id, log, connection, Scripted(more))
    watched = Watched(run, monkeypatch)
    running = asyncio.create_task(run.run())
    await wait_until(lambda: has_begun(log, stream_id))
    assert connection._transport is not None
    connection._transport.abort()
    run.watch(time.monotonic() + 1)
    cue.set()
    assert await running
    del run, running
    await wait_until(watched.are_freed)
    assert fold(await log.read_all(stream_id)).status == "completed"


# --- with the real provider


SCRIPTS: list[tuple[dict[str, Any], str]] = [
    ({"tokens": 5}, "completed"),
    ({"fail_status": 400}, "failed"),
    ({"fail_status": 503}, "failed"),
    ({"break_after": 3, "tokens": 6}, "failed"),
    ({"error_chunk_after": 3}, "failed"),
    ({"no_finish": True}, "failed"),
]


@pytest.mark.parametrize(("script", "status"), SCRIPTS)
async def test_a_run_is_freed_after_any_end_of_the_provider(
    log: EventLog, connection: RespConnection, monkeypatch: pytest.MonkeyPatch, script: dict[str, Any], status: str
) -> None:
    async with OpenAIServer() as server:
        provider = OpenAIProvider(api_key="", base_url=server.url, default_model="m", connections_max=4)
        stream_id = await accepted(log, {"messages": [{"role": "user", "content": "a"}], "script": script})
        run = run_of(stream_id, log, connection, provider, attempts_max=2, provider_tries_max=2)
        watched = Watched(run, monkeypatch)
        assert await run.run()
        del run
        await wait_until(watched.are_freed)
        await provider.close()
    assert fold(await log.read_all(stream_id)).status == status


async def test_a_run_is_freed_after_an_unreachable_provider(
    log: EventLog, connection: RespConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with OpenAIServer() as server:
        url = server.url
    provider = OpenAIProvider(api_key="", base_url=url, default_model="m", connections_max=4)
    stream_id = await accepted(log)
    run = run_of(stream_id, log, connection, provider, provider_tries_max=2)
    watched = Watched(run, monkeypatch)
    assert await run.run()
    del run
    await wait_until(watched.are_freed)
    with suppress(RuntimeError):
        await provider.close()


@pytest.mark.parametrize(("script", "status"), SCRIPTS)
async def test_runs_leave_no_garbage_for_the_collector(
    log: EventLog, connection: RespConnection, script: dict[str, Any], status: str
) -> None:
    """Also not of connections, requests and responses."""
    answers = 10
    async with OpenAIServer() as server:
        provider = OpenAIProvider(api_key="", base_url=server.url, default_model="m", connections_max=4)

        async def answer() -> None:
            stream_id = await accepted(log, {"messages": [{"role": "user", "content": "a"}], "script": script})
            run = run_of(stream_id, log, connection, provider, attempts_max=1, provider_tries_max=1)
            assert await run.run()

        await answer()
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(answers):
                await answer()
            gc.collect()
            kinds = Counter(f"{type(garbage).__module__}.{type(garbage).__qualname__}" for garbage in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
        await provider.close()
    assert not [kind for kind in kinds if kind.startswith(("producer", "shared", "httptools"))], kinds
    assert sum(kinds.values()) <= 100 * answers, kinds
