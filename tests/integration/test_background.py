"""Tasks that run as long as their process, each in its real object: each raises an exception once, and is restarted."""

from __future__ import annotations

import ast
import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

import gateway.access.api_keys
import gateway.access.stream_readers
import gateway.access.user_tokens
import gateway.console.overview
import gateway.console.watchers
import gateway.delivery.flush_pace
import gateway.measuring
import gateway.metrics
import gateway.restoring
import gateway.writing.lost_writers
import producer.archiving
import producer.webhooks
import producer.worker
import shared.presence
import shared.usage
from gateway.access.api_keys import ApiKeys
from gateway.access.authenticators import Proof, proof
from gateway.access.limits import OwnLimits
from gateway.access.stream_readers import StreamReaders
from gateway.access.user_tokens import UserTokens
from gateway.console.overview import Overview
from gateway.console.watchers import Watcher, Watchers
from gateway.delivery.delivery import Delivery
from gateway.delivery.ledger import Ledger
from gateway.delivery.reader import Reader
from gateway.faces import NATIVE
from gateway.following.endings import Endings
from gateway.following.followed_streams import FollowedStreams
from gateway.following.pages import Pages
from gateway.following.silence_checks import SilenceChecks
from gateway.following.tail import Tail
from gateway.following.tails import Tails
from gateway.http.connection import Connection
from gateway.http.principal import Principal
from gateway.http.request_timeouts import RequestTimeouts
from gateway.measuring import GatewayMeasuring
from gateway.restoring import Restoring
from gateway.writing.lost_writers import LostWriters
from producer.archiving import Archiving
from producer.simulated_provider import SimulatedProvider
from producer.webhook_post import Poster
from producer.webhooks import Webhooks
from producer.worker import Worker
from shared import background, metrics
from shared.accounts import Accounts
from shared.background import keep_running
from shared.cluster import ClusterConnection
from shared.event_log import EventLog
from shared.events import Event
from shared.external_writes import WriterLeases
from shared.ids import BEGINNING, new_stream_id
from shared.lanes import Lanes
from shared.presence import Presence
from shared.queue import RequestQueue
from shared.receipt import DeliveryNotes
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from shared.self_measuring import Handover, Measuring
from shared.settings import Settings
from shared.usage import Usage
from shared.webhooks import Secrets
from tests.support.ordinary_commands import OrdinaryCommands, ordinary_client
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.support.webhook_receiver import SECRET

_ROOT = Path(__file__).resolve().parents[2]


class Once:
    """A function that raises an exception at the first call, and works afterwards."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.__name__ = getattr(function, "__name__", "once")
        self.calls = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            raise RuntimeError("broken, as a bug would break it")
        return self._function(*arguments, **named)

    def __get__(self, instance: object, owner: type | None = None) -> Callable[..., Any]:
        return self if instance is None else lambda *arguments: self(instance, *arguments)


class Sink:
    """A sink that records all bytes."""

    def __init__(self) -> None:
        self.sent = 0
        self.ended = False

    def send(self, body: bytes, chunk: bytes) -> bool:
        self.sent += 1
        return True

    def finish(self, body: bytes) -> None:
        self.ended = True

    cut = finish


def _not_ended(stream_id: str, failed: Event) -> None:
    """A beginning of a log that can be read."""


class Parts:
    """Makes the objects of the cases, with real connections to a real Valkey."""

    def __init__(self, url: str, patch: pytest.MonkeyPatch) -> None:
        self.url = url
        self.patch = patch
        self.settings = Settings(
            redis_url=url, lease_seconds=0.3, keepalive_seconds=1, sweep_seconds=0.2, delivery_report_seconds=0.2
        )

    def connection(self, **more: Any) -> RespConnection:
        return RespConnection(
            RedisAddress.parse(self.url), name="test", reply_seconds=5.0, reconnect_seconds_max=0.05, **more
        )

    @asynccontextmanager
    async def commands(self) -> AsyncIterator[RespConnection]:
        connection = self.connection()
        connection.start()
        await connection.wait_until_up()
        try:
            yield connection
        finally:
            await connection.close()

    def log(self, commands: RespConnection) -> EventLog:
        return EventLog(commands, log_ttl_seconds=60, ended_ttl_seconds=60, tombstone_ttl_seconds=60)

    def queue(self, commands: RespConnection) -> RequestQueue:
        return RequestQueue(commands, ttl_seconds=60, requests_max=10, consumer="ann")

    def tails(self, commands: RespConnection) -> Tails:
        return Tails(
            FollowedStreams(_not_ended),
            self.log(commands),
            lambda on_push, on_up: self.connection(on_push=on_push, on_up=on_up),
            self.settings,
            on_new=lambda tail: None,
        )

    @asynccontextmanager
    async def delivery(self, connection_seconds: float = 900.0) -> AsyncIterator[tuple[Delivery, list[Sink]]]:
        """Returns a delivery with readers, and their sinks."""
        settings = Settings(keepalive_seconds=1, connection_seconds=connection_seconds)
        async with self.commands() as commands:
            pages = Pages(self.log(commands), _not_ended, page_events=256, cache_bytes_max=1 << 20)
            delivery = Delivery(pages, Ledger(DeliveryNotes(commands), settings), settings)
            delivery.start()
            sinks = [Sink() for _ in range(20)]
            for sink in sinks:
                tail = Tail(new_stream_id(), 0.0)
                tail.set_ready()
                delivery.attach(Reader(delivery, tail, tail.open_ring(NATIVE), sink, BEGINNING))
            try:
                yield delivery, sinks
            finally:
                await delivery.close()


Case = Callable[[Parts], AbstractAsyncContextManager[Callable[[], bool]]]
"""A context in which the task raises an exception once. It yields a function that returns whether the task has run since."""
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Any], Any]:
    def keep(function: Any) -> Any:
        CASES[name] = asynccontextmanager(function)
        return function

    return keep


@case("ages")
async def _ages(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    async with parts.delivery(connection_seconds=0.5) as (delivery, sinks):
        once = Once(delivery.close_reader)
        parts.patch.setattr(delivery, "close_reader", once)
        yield lambda: once.calls >= len(sinks) and sum(sink.ended for sink in sinks) == len(sinks) - 1


@case("beats")
async def _beats(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    async with parts.delivery() as (_, sinks):
        once = Once(sinks[0].send)
        parts.patch.setattr(sinks[0], "send", once)
        yield lambda: once.calls > 1 and all(sink.sent for sink in sinks)


@case("revocations")
async def _revocations(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    over = Principal("stream:x", frozenset({"read"}), "x", expires_at=1.0)
    shown = proof.set(Proof("token", over, ()))
    async with parts.delivery(connection_seconds=0.5) as (delivery, sinks):
        proof.reset(shown)
        delivery._ages.discard = lambda reader: None  # type: ignore[method-assign]
        delivery._ages._slots.clear()  # nobody is sent away for the age of a connection
        once = Once(delivery.close_reader)
        parts.patch.setattr(delivery, "close_reader", once)
        yield lambda: once.calls > len(sinks) and all(sink.ended for sink in sinks)


@case("flush_pace")
async def _flush_pace(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    once = Once(time.process_time)
    clock = SimpleNamespace(process_time=once, monotonic=time.monotonic)
    parts.patch.setattr(gateway.delivery.flush_pace, "time", clock)
    async with parts.delivery():
        yield lambda: once.calls > 3


@case("connection")
async def _connection(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    once = Once(lambda: None)
    connection = parts.connection(on_up=once)
    connection.start()
    try:
        yield lambda: once.calls == 2 and connection.is_up
    finally:
        await connection.close()


@case("cluster_map")
async def _cluster_map(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    cluster = ClusterConnection((RedisAddress.parse("redis://127.0.0.1:1"),), name="test", reply_seconds=5.0)
    once = Once(cluster._read_map)
    parts.patch.setattr(cluster, "_read_map", once)
    parts.patch.setattr(cluster, "_seed_nodes", AsyncMock(return_value=[]))
    cluster.start()
    try:
        yield lambda: once.calls >= 2
    finally:
        await cluster.close()


@case("subscriptions")
async def _subscriptions(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    cluster = ClusterConnection((RedisAddress.parse("redis://127.0.0.1:1"),), name="test", reply_seconds=5.0)
    subscriber = cluster.subscriber(name="test", on_push=lambda pushed: None)
    once = Once(subscriber._send_again)
    parts.patch.setattr(subscriber, "_send_again", once)
    subscriber.start()
    try:
        yield lambda: once.calls >= 2
    finally:
        await subscriber.close()


async def _worker(parts: Parts, method: str) -> AsyncIterator[Callable[[], bool]]:
    client = ordinary_client(parts.url, reply_seconds=5.0)
    async with parts.commands() as commands:
        queue = parts.queue(commands)
        log, deliveries = parts.log(commands), DeliveryNotes(commands)
        worker = Worker(
            name="ann",
            log=log,
            lanes=[(queue, OrdinaryCommands(client))],
            deliveries=deliveries,
            usage=Usage(Accounts(commands, parts.settings), log, deliveries, parts.settings),
            provider=SimulatedProvider(),
            settings=parts.settings,
        )
        once = Once(getattr(worker, method))
        if method != "_watch":
            parts.patch.setattr(worker, method, once)
        else:
            once = Once(time.monotonic)
            parts.patch.setattr(producer.worker, "time", SimpleNamespace(monotonic=once))
        running = asyncio.create_task(worker.run())
        try:
            yield lambda: once.calls > 2
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await client.aclose()


@case("forget")
async def _forget(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    parts.patch.setattr(producer.worker, "_FORGET_SECONDS", 0.02)
    async for went_on in _worker(parts, "_forget"):
        yield went_on


@case("renew")
async def _renew(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    async for went_on in _worker(parts, "_renew"):
        yield went_on


@case("take_over")
async def _take_over(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    async for went_on in _worker(parts, "_take_over"):
        yield went_on


@case("watch")
async def _watch(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    async for went_on in _worker(parts, "_watch"):
        yield went_on


@case("ledger")
async def _ledger(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    async with parts.commands() as commands:
        ledger = Ledger(DeliveryNotes(commands), parts.settings)
        tail = Tail(new_stream_id(), 0.0)
        reader = Reader(cast(Delivery, None), tail, tail.open_ring(NATIVE), Sink(), BEGINNING)
        ledger.opened(reader)
        once = Once(Reader.reached)
        parts.patch.setattr(Reader, "reached", once)
        ledger.start()
        try:
            yield lambda: once.calls > 2
        finally:
            await ledger.close()


@case("usage")
async def _usage(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    parts.patch.setattr(shared.usage, "_PAUSE_SECONDS", 0.02)
    async with parts.commands() as commands:
        accounts = Accounts(commands, parts.settings)
        usage = Usage(accounts, parts.log(commands), DeliveryNotes(commands), parts.settings)
        once = Once(accounts.looks)
        parts.patch.setattr(accounts, "looks", once)
        usage.start()
        try:
            yield lambda: once.calls > 2
        finally:
            await usage.close()


@case("stream_readers")
async def _stream_readers(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    parts.patch.setattr(gateway.access.stream_readers, "_HOLDS_SECONDS", 0.06)
    async with parts.commands() as commands:
        readers = StreamReaders(commands, OwnLimits(Settings(limit_readers=1), lambda name: {}))
        once = Once(readers._send)
        parts.patch.setattr(readers, "_send", once)
        assert await readers.enter(new_stream_id())
        readers.start()
        try:
            yield lambda: once.calls > 2
        finally:
            await readers.close()


@case("look")
async def _look(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    parts.patch.setattr(gateway.measuring, "_LOOK_SECONDS", 0.02)
    async with parts.commands() as commands, parts.delivery() as (delivery, _):
        tails = parts.tails(commands)
        silence_checks = SilenceChecks(
            tails, parts.log(commands), Endings(parts.log(commands)), parts.settings, on_lost=delivery.lose
        )
        pages = Pages(parts.log(commands), _not_ended, page_events=256, cache_bytes_max=1 << 20)
        parts.patch.setattr(gateway.metrics, "handover", Handover())
        measuring = GatewayMeasuring(
            delivery, tails, silence_checks, pages, commands, Lanes(commands, [parts.queue(commands)]), parts.settings
        )
        once = Once(measuring._measure_server)
        parts.patch.setattr(measuring, "_measure_server", once)
        measuring.start()
        try:
            yield lambda: once.calls > 2
        finally:
            await measuring.close()


@case("measure")
async def _measure(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    async with parts.commands() as commands:
        measuring = Measuring(Handover(), commands)
        once = Once(measuring._loop_lag.observe)
        parts.patch.setattr(measuring._loop_lag, "observe", once)
        measuring.start()
        try:
            yield lambda: once.calls > 2
        finally:
            await measuring.close()


@case("presence")
async def _presence(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    parts.patch.setattr(shared.presence, "BEAT_SECONDS", 0.02)
    once = Once(lambda: {"totals": {}})
    async with parts.commands() as commands:
        presence = Presence(commands, "worker", "ann", once, {})
        presence.start()
        try:
            yield lambda: once.calls > 2
        finally:
            await presence.close()


@case("api_keys")
async def _api_keys(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    parts.patch.setattr(gateway.access.api_keys, "_LOOK_SECONDS", 0.02)
    async with parts.commands() as commands:
        keys = ApiKeys(commands, parts.settings)
        once = Once(keys._look)
        parts.patch.setattr(keys, "_look", once)
        keys.start()
        try:
            yield lambda: once.calls > 2
        finally:
            await keys.close()


@case("user_keys")
async def _user_keys(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    parts.patch.setattr(gateway.access.user_tokens, "_READ_AGAIN_SECONDS", 0.02)
    once = Once(lambda source: {})
    parts.patch.setattr(gateway.access.user_tokens, "_read", once)
    settings = Settings(jwt_keys=__file__, jwt_issuer="i", jwt_audience="a")
    users = UserTokens(settings)
    parts.patch.setattr(users, "_take", lambda keys: None)
    users.start()
    try:
        yield lambda: once.calls > 2
    finally:
        await users.close()


@case("samples")
async def _samples(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    parts.patch.setattr(gateway.console.overview, "_SAMPLE_SECONDS", 0.02)
    async with parts.commands() as commands:
        overview = Overview(commands, Lanes(commands, [parts.queue(commands)]))
        watchers = Watchers(overview)
        once = Once(overview.sample)
        parts.patch.setattr(overview, "sample", once)
        watchers.start()
        try:
            yield lambda: once.calls > 2 and bool(overview.samples.all())
        finally:
            await watchers.close()


@case("silence_checks")
async def _silence_checks(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    async with parts.commands() as commands:
        tails = parts.tails(commands)
        once = Once(Tails.__iter__)
        parts.patch.setattr(Tails, "__iter__", once)
        silence_checks = SilenceChecks(
            tails, parts.log(commands), Endings(parts.log(commands)), parts.settings, on_lost=lambda tail: None
        )
        tails.start()
        silence_checks.start()
        try:
            yield lambda: once.calls > 2
        finally:
            await silence_checks.close()
            await tails.close()


@case("lost_writers")
async def _lost_writers(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    parts.patch.setattr(gateway.writing.lost_writers, "LOOK_SECONDS", 0.02)
    async with parts.commands() as commands:
        leases = WriterLeases(commands, ttl_seconds=60)
        once = Once(leases.count)
        parts.patch.setattr(leases, "count", once)
        lost_writers = LostWriters(cast(Any, None), parts.log(commands), leases, parts.settings)
        lost_writers.start()
        try:
            yield lambda: once.calls > 2
        finally:
            await lost_writers.close()


@case("archive")
async def _archive(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    parts.patch.setattr(gateway.restoring, "_ASK_SECONDS", 0.02)
    once, none = Once(AsyncMock()), cast(Any, None)
    unkept = cast(Any, SimpleNamespace(can_write=AsyncMock(return_value=True)))
    restoring = Restoring(cast(Any, SimpleNamespace(ping=once, close=AsyncMock())), none, unkept)
    restoring.start()
    try:
        yield lambda: once.calls > 2 and restoring.is_up
    finally:
        await restoring.close()


async def _archiving(parts: Parts, method: str) -> AsyncIterator[Callable[[], bool]]:
    parts.patch.setattr(producer.archiving, "_LOOK_PAUSE_SECONDS", 0.02)
    parts.patch.setattr(producer.archiving, "_PRUNE_SECONDS", 0.02)
    once, none = Once(AsyncMock(return_value=0)), cast(Any, None)
    archive = cast(Any, SimpleNamespace(ping=AsyncMock(), prune=AsyncMock(return_value=0), close=AsyncMock()))
    unkept = cast(Any, SimpleNamespace(count=AsyncMock(return_value=0), take=AsyncMock(return_value=[])))
    parts.patch.setattr(archive if method == "prune" else Archiving, method, once)
    archiving = Archiving(archive, unkept, none, none, none, parts.settings)
    archiving.start()
    try:
        yield lambda: once.calls > 2
    finally:
        await archiving.close()


@case("archive_looks")
async def _archive_looks(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    async for condition in _archiving(parts, "_count"):
        yield condition


@case("archive_prune")
async def _archive_prune(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    async for condition in _archiving(parts, "prune"):
        yield condition


@case("webhooks")
async def _webhooks(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    parts.patch.setattr(producer.webhooks, "_LOOK_PAUSE_SECONDS", 0.02)
    once, none = Once(AsyncMock(return_value=0)), cast(Any, None)
    parts.patch.setattr(Webhooks, "_look_at_some", once)
    store = cast(Any, SimpleNamespace(counts=AsyncMock(return_value=(0, 0))))
    webhooks = Webhooks(store, Poster(parts.settings), Secrets.of(SECRET), none, none, parts.settings)
    webhooks.start()
    try:
        yield lambda: once.calls > 2
    finally:
        await webhooks.close()


@case("request_timeouts")
async def _request_timeouts(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    request_timeouts = RequestTimeouts(0.1, waiting_max=9, waiting_of_address_max=0, new_max=9, counted=str)
    once = Once(request_timeouts._late)
    parts.patch.setattr(request_timeouts, "_late", once)
    request_timeouts.start()
    try:
        yield lambda: once.calls > 2
    finally:
        await request_timeouts.close()


@case("watchers")
async def _watchers(parts: Parts) -> AsyncIterator[Callable[[], bool]]:
    parts.patch.setattr(gateway.console.watchers, "SNAPSHOT_SECONDS", 0.02)
    async with parts.commands() as commands:
        watchers = Watchers(Overview(commands, Lanes(commands, [parts.queue(commands)])))
        sinks = [Sink(), Sink()]
        for sink in sinks:
            watcher = Watcher(watchers, cast(Connection, sink))
            watcher.takes = True
            watchers._watching.add(watcher)
        once = Once(sinks[0].send)
        parts.patch.setattr(sinks[0], "send", once)
        watchers._keep_sending()
        try:
            yield lambda: once.calls == 1 and sinks[1].sent > 1
        finally:
            await watchers.close()


@pytest.mark.parametrize("name", metrics.BACKGROUND_TASKS)
async def test_a_task_that_raises_is_logged_counted_and_restarted(
    name: str, valkey_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE_SECONDS", 0.01)
    failures = metrics.BACKGROUND_FAILURES.counter().labels(name)
    before = failures._value.get()
    async with CASES[name](Parts(valkey_server.url, monkeypatch)) as went_on:
        await wait_until(went_on, what=f"{name} goes on")
    assert failures._value.get() - before == 1
    (record,) = [record for record in caplog.records if record.name == "shared.background"]
    assert record.exc_info is not None
    assert f"the background task {name} broke" in record.getMessage()


async def test_silence_checks_drop_a_tail_that_is_no_longer_followed(
    valkey_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(valkey_server.url, monkeypatch)
    async with parts.commands() as commands:
        log = parts.log(commands)
        tails = parts.tails(commands)
        lost: list[Tail] = []
        silence_checks = SilenceChecks(tails, log, Endings(log), parts.settings, on_lost=lost.append)
        tails.start()
        silence_checks.start()
        try:
            tail = tails.hold(new_stream_id())
            await wait_until(lambda: lost == [tail], what="its log is missing")
            assert tail in silence_checks._missing
            tail.release()
            await wait_until(lambda: not silence_checks._missing, what="it is forgotten")
        finally:
            await silence_checks.close()
            await tails.close()


async def test_restarts_have_growing_pauses_with_a_maximum_and_can_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", noted)

    async def break_down() -> None:
        raise RuntimeError("again")

    task = keep_running("silence_checks", break_down)
    while len(pauses) < 12:
        await sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pauses[:3] == [0.1, 0.2, 0.4]
    assert set(pauses[6:]) == {5.0}


async def test_a_task_that_returns_is_not_restarted_and_a_cancellation_is_not_a_failure() -> None:
    ran: list[str] = []

    async def once() -> None:
        ran.append("once")

    await keep_running("silence_checks", once)
    assert ran == ["once"]
    waiting = keep_running("silence_checks", asyncio.Event().wait)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


SHORT_LIVED = {
    "shared/background.py": {"keep_running"},
    "shared/cluster.py": {"_let_go", "_seed_nodes"},
    "shared/cluster_parts.py": {"_let_go"},
    "shared/connections.py": {"check"},
    "shared/event_log.py": {"_hand_on"},
    "shared/replicas.py": {"execute"},
    "shared/sentinel.py": {"is_replaced"},
    "shared/spans.py": {"close"},
    "gateway/access/limits.py": {"_some_have_ended"},
    "gateway/http/exchange.py": {"unless_disconnected"},
    "gateway/provider_models.py": {"_listed"},
    "gateway/following/pages.py": {"_page"},
    "gateway/delivery/delivery.py": {"_spawn"},
    "gateway/api/readiness.py": {"complaint"},
    "gateway/facades/durable/services.py": {"_begin"},
    "gateway/restoring.py": {"restore"},
    "gateway/streams/streams.py": {"write_receipt"},
    "gateway/supervisor.py": {"__init__"},
    "gateway/following/endings.py": {"begin"},
    "gateway/tracing.py": {"parent_of"},
    "producer/generator_provider.py": {"follow"},
    "producer/run.py": {"_generate", "_pause", "watch"},
    "producer/webhook_post.py": {"_resolved"},
    "producer/webhooks.py": {"_begin_posts"},
    "producer/worker.py": {"_first_of", "_run", "_start"},
    "producer/writer.py": {"_on_reply", "probe"},
}
"""Functions that start a task or thread which ends by itself: with a request, a stream, a generator, a reply, or a process (the thread of a
supervisor's child). All others must be started by `keep_running`."""


def test_every_long_lived_task_is_started_by_keep_running() -> None:
    makers = {"create_task", "ensure_future", "start_soon", "run_coroutine_threadsafe", "Thread", "TaskGroup"}
    found: dict[str, set[str]] = {}
    for folder in ("shared", "gateway", "producer"):
        for path in (_ROOT / folder).rglob("*.py"):
            for function in ast.walk(ast.parse(path.read_text())):
                if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                for node in ast.walk(function):
                    called = (
                        getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
                    )
                    if called in makers:
                        found.setdefault(path.relative_to(_ROOT).as_posix(), set()).add(function.name)
    assert found == SHORT_LIVED, "long-lived tasks are made by shared.background.keep_running"


def test_every_background_task_has_a_case_here() -> None:
    assert set(CASES) == set(metrics.BACKGROUND_TASKS)
