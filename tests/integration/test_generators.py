"""Generators of a user's own, each as a run's provider, against a real Valkey."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import orjson
import pytest

from midstream.generator import Delta, Finish, Never, Progress, SoFar, TryLater, stop_requested
from producer import run as run_module
from producer.generator_provider import GeneratorProvider, OwnProvider
from producer.provider import Hearer, Provider
from producer.run import HandedBack, LastReaderGone, Run, unstopped
from shared import events
from shared.errors import MidstreamError
from shared.event_log import EventLog
from shared.events import Accepted, Entry, Policies, events_of
from shared.ids import FIRST_ID, new_stream_id
from shared.lifecycle import History, fold
from shared.queue import Claim
from shared.receipt import DeliveryNotes
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from shared.settings import Settings
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

PROMPT = "hello, nobody else"
REQUEST = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]}
STEP = {"event": "step", "data": {"number": 1}}


@pytest.fixture
async def log(valkey_server: RedisServer) -> AsyncIterator[EventLog]:
    address = RedisAddress.parse(valkey_server.url)
    scripts = (*EventLog.SCRIPTS, *DeliveryNotes.SCRIPTS)
    connection = RespConnection(address, name="test", reply_seconds=5.0, scripts=scripts)
    connection.start()
    await wait_until(lambda: connection.is_up)
    yield EventLog(connection, log_ttl_seconds=100, ended_ttl_seconds=100, tombstone_ttl_seconds=100)
    await connection.close()


def provider_of(function: Callable[..., Any], *, texts: bool = False, threads_max: int = 4) -> Provider:
    return GeneratorProvider(
        "test",
        function,
        is_async=inspect.isasyncgenfunction(function),
        takes_so_far=len(inspect.signature(function).parameters) == 2,
        threads_max=threads_max,
        texts=texts,
    )


async def accepted(log: EventLog, on_interrupt: str = "restart") -> str:
    stream_id = new_stream_id()
    request = Accepted(REQUEST, Policies(None, on_interrupt), time.time(), "anonymous", {})
    await log.append(stream_id, 0, Entry(FIRST_ID, events.ACCEPTED, request.stored()), 100)
    return stream_id


def run_of(log: EventLog, stream_id: str, provider: Provider, **settings: Any) -> Run:
    return Run(
        Claim(b"1-1", stream_id),
        log=log,
        deliveries=DeliveryNotes(log._commands),
        provider=provider,
        settings=Settings(provider_backoff_seconds=0.01, **settings),
        worker="test",
    )


async def answered(log: EventLog, provider: Provider, on_interrupt: str = "restart", **settings: Any) -> History:
    """Returns the history of a stream that this provider has answered."""
    stream_id = await accepted(log, on_interrupt)
    assert await run_of(log, stream_id, provider, **settings).run()
    return await history_of(log, stream_id)


async def history_of(log: EventLog, stream_id: str) -> History:
    return fold(await log.read_all(stream_id))


# --- what is yielded


async def asynchronous(request: dict[str, Any]) -> AsyncIterator[Any]:
    yield request["messages"][0]["content"]
    yield STEP
    yield Delta({"reasoning_content": "Hm."})
    yield Progress()
    yield Finish("length", {"total_tokens": 3})
    yield " world"


def threaded(request: dict[str, Any]) -> Iterator[Any]:
    yield request["messages"][0]["content"]
    yield STEP
    yield Delta({"reasoning_content": "Hm."})
    yield Progress()
    yield Finish("length", {"total_tokens": 3})
    yield " world"


@pytest.mark.parametrize("function", [asynchronous, threaded])
async def test_an_answer(log: EventLog, function: Callable[..., Any]) -> None:
    history = await answered(log, provider_of(function))
    assert (history.status, history.model) == ("completed", "m")
    assert history.yielded() == [PROMPT, STEP, {"delta": {"reasoning_content": "Hm."}}, " world"]
    assert history.terminal is not None
    assert (history.terminal["finish_reason"], history.terminal["usage"]) == ("length", {"total_tokens": 3})


async def test_a_provider_object(log: EventLog) -> None:
    class Full:
        name = "full"

        def model_of(self, request: dict[str, Any]) -> str:
            return "full-1"

        async def generate(self, request: dict[str, Any], partial: str, hearer: Hearer) -> Finish:
            hearer.accept(["hello", " world"])
            return Finish("stop", {"total_tokens": 2})

        async def close(self) -> None:
            """Nothing is held open."""

    history = await answered(log, OwnProvider("full", Full(), texts=False))
    assert (history.status, history.model, history.text) == ("completed", "full-1", "hello world")


def many_threaded(request: dict[str, Any]) -> Iterator[str]:
    for number in range(5000):
        yield f"{number} "


async def many(request: dict[str, Any]) -> AsyncIterator[str]:
    for number in range(5000):
        yield f"{number} "


@pytest.mark.parametrize("function", [many, many_threaded])
async def test_neither_the_loop_nor_an_order_is_lost_when_it_never_waits(
    log: EventLog, function: Callable[..., Any]
) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    beside = asyncio.create_task(other())
    history = await answered(log, provider_of(function))
    beside.cancel()
    assert history.text == "".join(f"{number} " for number in range(5000))
    assert turns > 50


async def test_a_generator_may_change_its_request(log: EventLog) -> None:
    calls = 0

    async def changing(request: dict[str, Any]) -> AsyncIterator[str]:
        nonlocal calls
        calls += 1
        request["messages"].append({"role": "assistant", "content": "more"})
        if calls == 1:
            raise TryLater("not yet", after_seconds=0.0)
        yield str(len(request["messages"]))

    provider = GeneratorProvider("x", changing, is_async=True, takes_so_far=False, threads_max=1, texts=False)
    history = await answered(log, provider)
    assert (history.text, history.attempt, calls) == ("2", 1, 2)


# --- an event is in the log when its generator goes on


async def noting(request: dict[str, Any]) -> AsyncIterator[Any]:
    yield STEP
    seen.append(await watched.pop()())
    yield " world"


def noting_threaded(request: dict[str, Any]) -> Iterator[Any]:
    yield STEP
    seen.append(asyncio.run_coroutine_threadsafe(watched.pop()(), loops[0]).result(5))
    yield " world"


watched: list[Callable[[], Any]] = []
seen: list[Any] = []
loops: list[asyncio.AbstractEventLoop] = []


@pytest.mark.parametrize("function", [noting, noting_threaded])
async def test_an_event_is_in_the_log_when_its_generator_goes_on(log: EventLog, function: Callable[..., Any]) -> None:
    stream_id = await accepted(log)

    async def yielded() -> Any:
        return (await history_of(log, stream_id)).yielded()

    watched[:], seen[:], loops[:] = [yielded], [], [asyncio.get_running_loop()]
    assert await run_of(log, stream_id, provider_of(function)).run()
    assert seen == [[STEP]]


async def acting(request: dict[str, Any]) -> AsyncIterator[Any]:
    yield "one"
    await watched.pop()()
    yield STEP
    seen.append("went on")


def acting_threaded(request: dict[str, Any]) -> Iterator[Any]:
    yield "one"
    asyncio.run_coroutine_threadsafe(watched.pop()(), loops[0]).result(5)
    yield STEP
    seen.append("went on")


@pytest.mark.parametrize("function", [acting, acting_threaded])
async def test_one_that_was_fenced_off_does_not_go_on_behind_its_event(
    log: EventLog, function: Callable[..., Any]
) -> None:
    stream_id = await accepted(log)

    async def cancel() -> None:
        await log.end(stream_id, events.CANCELLED, orjson.dumps({"by": "client", "time": time.time()}))

    watched[:], seen[:], loops[:] = [cancel], [], [asyncio.get_running_loop()]
    assert await run_of(log, stream_id, provider_of(function)).run()
    assert (await history_of(log, stream_id)).yielded() == ["one"]
    assert not seen


# --- errors


async def raising(request: dict[str, Any]) -> AsyncIterator[str]:
    yield "one"
    raise KeyError(request["messages"][0]["content"])


def raising_threaded(request: dict[str, Any]) -> Iterator[str]:
    yield "one"
    raise KeyError(request["messages"][0]["content"])


async def leaving(request: dict[str, Any]) -> AsyncIterator[str]:
    yield "one"
    raise SystemExit(3)


async def cancelling_itself(request: dict[str, Any]) -> AsyncIterator[str]:
    yield "one"
    raise asyncio.CancelledError


@pytest.mark.parametrize("texts", [False, True])
@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (raising, "KeyError"),
        (raising_threaded, "KeyError"),
        (leaving, "SystemExit"),
        (cancelling_itself, "CancelledError"),
    ],
)
@pytest.mark.parametrize("on_interrupt", ["restart", "continue"])
async def test_an_exception_ends_the_stream_and_names_its_type(
    log: EventLog,
    function: Callable[..., Any],
    kind: str,
    texts: bool,
    on_interrupt: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    history = await answered(log, provider_of(function, texts=texts), on_interrupt)
    assert (history.status, history.attempt, history.text) == ("failed", 1, "one")
    assert history.terminal is not None
    assert (history.terminal["code"], history.terminal["retryable"]) == ("generator_error", False)
    assert history.terminal["message"].startswith(f"the generator raised {kind}")
    for text in (history.terminal["message"], caplog.text):
        assert (PROMPT in text) == (texts and kind == "KeyError")
    assert f"in {function.__name__}" in caplog.text, "the traceback"


async def wrong_name(request: dict[str, Any]) -> AsyncIterator[Any]:
    yield {"event": "done", "data": 1}


def wrong_type(request: dict[str, Any]) -> Iterator[Any]:
    yield 7


@pytest.mark.parametrize(
    ("function", "words"),
    [(wrong_name, "the event's name 'done' is reserved"), (wrong_type, "yielded a int, which is neither")],
)
async def test_what_cannot_be_yielded_ends_the_stream_in_words(
    log: EventLog, function: Callable[..., Any], words: str
) -> None:
    history = await answered(log, provider_of(function))
    assert history.terminal is not None
    assert history.terminal["code"] == "generator_error"
    assert words in history.terminal["message"]


async def refusing(request: dict[str, Any]) -> AsyncIterator[str]:
    if "content" in request["messages"][0]:
        raise Never("no questions about that")
    yield ""


async def overloaded(request: dict[str, Any]) -> AsyncIterator[str]:
    yield "half an answer"
    raise TryLater("overloaded", after_seconds=0.0)


async def test_never_and_try_later(log: EventLog) -> None:
    history = await answered(log, provider_of(refusing))
    assert history.terminal is not None
    assert (history.terminal["code"], history.terminal["message"]) == ("provider_refused", "no questions about that")
    history = await answered(log, provider_of(overloaded), attempts_max=2)
    assert history.terminal is not None
    assert (history.terminal["code"], history.terminal["retryable"]) == ("provider_unavailable", True)
    assert history.attempt == 2, "in mid-answer as the policy says"


# --- going on after an attempt that broke off


async def continuing(request: dict[str, Any], so_far: SoFar) -> AsyncIterator[Any]:
    assert so_far.attempt == 1 or so_far
    yield f"[{so_far.attempt}: {so_far.text!r}, {len(so_far.events)}]"
    if so_far.attempt < 3:
        yield STEP
        raise TryLater("again", after_seconds=0.0)


async def forgetful(request: dict[str, Any]) -> AsyncIterator[Any]:
    yield "anew"
    yield STEP
    if not tries.pop():
        raise TryLater("again", after_seconds=0.0)


tries: list[bool] = []


async def test_with_a_second_argument_an_attempt_goes_on_where_the_log_ends(log: EventLog) -> None:
    history = await answered(log, provider_of(continuing), "continue")
    first = "[1: '', 0]"
    second = f"[2: {first!r}, 1]"
    assert history.yielded() == [first, STEP, second, STEP, f"[3: {first + second!r}, 2]"]
    assert history.kept_tokens == {1: 0, 2: 2, 3: 4}


async def test_without_it_an_attempt_begins_anew(log: EventLog) -> None:
    tries[:] = [True, False]
    history = await answered(log, provider_of(forgetful), "continue")
    assert history.yielded() == ["anew", STEP]
    assert history.kept_tokens == {1: 0, 2: 0}


async def test_only_continue_shows_what_the_log_has(log: EventLog) -> None:
    history = await answered(log, provider_of(restarted), "restart")
    assert history.yielded() == ["nothing of 2"]


async def restarted(request: dict[str, Any], so_far: SoFar) -> AsyncIterator[Any]:
    yield f"{'something' if so_far else 'nothing'} of {so_far.attempt}"
    if so_far.attempt == 1:
        raise TryLater("again", after_seconds=0.0)


# --- a stop

stopped: list[str] = []


async def waiting(request: dict[str, Any]) -> AsyncIterator[str]:
    yield "one"
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        stopped.append("CancelledError")
        raise


async def yielding(request: dict[str, Any]) -> AsyncIterator[str]:
    try:
        while True:
            yield "one"
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                stopped.append("CancelledError")  # and goes on
    except GeneratorExit:
        stopped.append("GeneratorExit")
        raise


def yielding_threaded(request: dict[str, Any]) -> Iterator[str]:
    try:
        while True:
            yield "one"
            time.sleep(0.01)
    except GeneratorExit:
        stopped.append("GeneratorExit")
        raise


def computing_threaded(request: dict[str, Any]) -> Iterator[str]:
    yield "one"
    while not stop_requested():
        time.sleep(0.01)
    stopped.append("stop_requested")


@pytest.mark.parametrize(
    ("function", "seen"),
    [
        (waiting, ["CancelledError"]),
        (yielding, ["CancelledError", "GeneratorExit"]),
        (yielding_threaded, ["GeneratorExit"]),
        (computing_threaded, ["stop_requested"]),
    ],
)
@pytest.mark.parametrize("why", [HandedBack(), LastReaderGone()])
async def test_a_stop_reaches_the_generator(
    log: EventLog, function: Callable[..., Any], seen: list[str], why: MidstreamError
) -> None:
    stopped.clear()
    stream_id = await accepted(log)
    run = run_of(log, stream_id, provider_of(function), provider_on_cancel="drain")
    running = asyncio.create_task(run.run())

    async def has_begun() -> bool:
        return bool((await history_of(log, stream_id)).items)

    await wait_until(has_begun)
    run.stop(type(why)())
    async with asyncio.timeout(10):
        assert await running is isinstance(why, LastReaderGone)
    assert stopped == seen
    assert not unstopped()


hanging = True


async def stubborn(request: dict[str, Any]) -> AsyncIterator[str]:
    yield "one"
    while hanging:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            stopped.append("CancelledError")
    yield "two"


def stubborn_threaded(request: dict[str, Any]) -> Iterator[str]:
    yield "one"
    while hanging:
        time.sleep(0.01)
    yield "two"


@pytest.mark.parametrize("function", [stubborn, stubborn_threaded])
async def test_one_that_does_not_stop_is_fenced_and_named_on_the_log(
    log: EventLog, function: Callable[..., Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    global hanging
    monkeypatch.setattr(run_module, "_STOP_SECONDS", 0.1)
    hanging = True
    provider = provider_of(function, threads_max=1)
    stream_id = await accepted(log)
    run = run_of(log, stream_id, provider)
    running = asyncio.create_task(run.run())

    async def has_begun() -> bool:
        return bool((await history_of(log, stream_id)).items)

    await wait_until(has_begun)
    await log.end(stream_id, events.CANCELLED, orjson.dumps({"by": "client", "time": time.time()}))
    watching = asyncio.create_task(watch(run))
    assert await running
    watching.cancel()
    assert f"stream {stream_id}: what generates it has not stopped within 0.1 s" in caplog.text
    assert unstopped() == 1
    if function is stubborn_threaded:
        history = await answered(log, provider, provider_tries_max=1)
        assert history.terminal is not None
        assert history.terminal["message"] == "1 generators hold all threads of this worker"
    hanging = False
    await wait_until(lambda: not unstopped())
    entries = await log.read_all(stream_id)
    assert [event.value for entry in entries for event in events_of(entry) if event.field == events.TOKEN] == [b"one"]


@pytest.mark.parametrize("function", [stubborn, stubborn_threaded])
async def test_one_that_does_not_stop_is_not_called_a_second_time(
    log: EventLog, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it still yields would stand in the second attempt."""
    global hanging
    monkeypatch.setattr(run_module, "_STOP_SECONDS", 0.1)
    hanging = True
    stream_id = await accepted(log)
    run = run_of(log, stream_id, provider_of(function), between_tokens_seconds=0.2)
    watching = asyncio.create_task(watch(run))
    assert await run.run()
    watching.cancel()
    hanging = False
    await wait_until(lambda: not unstopped())
    history = await history_of(log, stream_id)
    assert (history.status, history.attempt, history.text) == ("failed", 1, "one")
    assert history.terminal is not None
    assert history.terminal["code"] == "provider_stalled"


async def watch(run: Run) -> None:
    """Does what a worker does a few times a second."""
    while True:
        await asyncio.sleep(0.05)
        run.watch(time.monotonic())


async def working(request: dict[str, Any]) -> AsyncIterator[Any]:
    yield "one"
    for _ in range(8):
        await asyncio.sleep(0.1)
        yield Progress()
    yield "two"


async def silent(request: dict[str, Any]) -> AsyncIterator[Any]:
    yield "one"
    await asyncio.sleep(0.8)
    yield "two"


@pytest.mark.parametrize(("function", "status"), [(working, "completed"), (silent, "failed")])
async def test_progress_keeps_a_silent_generator_from_counting_as_stalled(
    log: EventLog, function: Callable[..., Any], status: str
) -> None:
    stream_id = await accepted(log, "fail")
    run = run_of(log, stream_id, provider_of(function), between_tokens_seconds=0.5)
    watching = asyncio.create_task(watch(run))
    assert await run.run()
    watching.cancel()
    assert (await history_of(log, stream_id)).status == status
