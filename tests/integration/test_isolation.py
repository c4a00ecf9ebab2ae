"""Encoders and callbacks that raise exceptions affect nothing else. In one process, with a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway import metrics
from gateway.access.given_tokens import GivenTokens
from gateway.access.limits import Limits, OwnLimits
from gateway.access.owners import Owners
from gateway.access.stream_readers import StreamReaders
from gateway.api.follow import Subscribe
from gateway.delivery.delivery import Delivery
from gateway.delivery.ledger import Ledger
from gateway.delivery.reader import Reader
from gateway.faces import NATIVE, Face
from gateway.following.followed_streams import FollowedStreams
from gateway.following.pages import Pages
from gateway.following.tails import Tails
from gateway.http.cursor import Place
from gateway.provider_models import ProviderModels
from gateway.streams.streams import Streams
from shared import events
from shared.accounts import Accounts
from shared.errors import RedisRefused
from shared.event_log import EventLog
from shared.events import Entry, Event
from shared.ids import BEGINNING, EventId, new_stream_id
from shared.keys import live_channel
from shared.lanes import Lanes, lanes_of
from shared.receipt import DeliveryNotes
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from shared.settings import Settings
from shared.usage import Usage
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until
from tests.unit.test_damaged_logs import ACCEPTED, DONE, STARTED, FailingFace

pytestmark = pytest.mark.usefixtures("valkey_server")
SETTINGS = Settings(sweep_seconds=1.0)


class Sink:
    """A sink that records all bytes."""

    def __init__(self) -> None:
        self.body, self.end = b"", ""

    def send(self, body: bytes, chunk: bytes) -> bool:
        self.body += body
        return True

    def finish(self, body: bytes) -> None:
        self.body, self.end = self.body + body, "finished"

    def cut(self, body: bytes) -> None:
        self.body, self.end = self.body + body, "cut"


class Gateway:
    """The parts of a gateway process that follow streams."""

    def __init__(self, url: str) -> None:
        def connection(name: str, **more: Any) -> RespConnection:
            return RespConnection(RedisAddress.parse(url), name=name, reply_seconds=5.0, **more)

        self.commands = connection("test", scripts=(*EventLog.SCRIPTS, *DeliveryNotes.SCRIPTS))
        self.log = EventLog(self.commands, log_ttl_seconds=600, ended_ttl_seconds=600, tombstone_ttl_seconds=600)
        deliveries = DeliveryNotes(self.commands)
        self.unreadable: list[Event] = []
        followed = FollowedStreams(lambda stream_id, failed: self.unreadable.append(failed))
        pages = Pages(self.log, followed.found_unreadable, page_events=256, cache_bytes_max=1 << 20)
        self.delivery = Delivery(pages, Ledger(deliveries, SETTINGS), SETTINGS)

        def subscriber(on_push: Callable[[list[Any]], None], on_up: Callable[[], None]) -> RespConnection:
            return connection("subscriber", on_push=on_push, on_up=on_up)

        self.tails = Tails(followed, self.log, subscriber, SETTINGS, self.delivery.on_new)
        queue = Lanes(self.commands, lanes_of(self.commands, SETTINGS))
        accounts, own_limits = Accounts(self.commands, SETTINGS), OwnLimits(SETTINGS, lambda name: {})
        limits, usage = (
            Limits(accounts, self.log, own_limits, SETTINGS),
            Usage(accounts, self.log, deliveries, SETTINGS),
        )
        parts = (self.commands, self.log, queue, self.tails, deliveries, SETTINGS)
        streams = Streams(*parts, Owners(checked=False), limits, usage)
        stream_readers = StreamReaders(self.commands, own_limits)
        given, models = GivenTokens(None, ""), ProviderModels(SETTINGS)
        self.subscribe = Subscribe(streams, given, self.tails, self.delivery, models, SETTINGS, stream_readers)

    async def follow(self, stream_id: str, face: Face, cursor: EventId = BEGINNING) -> Sink:
        sink = Sink()
        async with self.subscribe.ready(stream_id, face, Place(cursor)) as tail:
            self.subscribe.begin(Reader(self.delivery, tail, tail.open_ring(face), sink, cursor))
        return sink

    async def end_for(self, stream_id: str, face: Face) -> EventId | None:
        async with self.subscribe.ready(stream_id, face) as tail:
            return tail.end_for(face)


@asynccontextmanager
async def running(url: str) -> AsyncIterator[Gateway]:
    gateway = Gateway(url)
    gateway.commands.start()
    await gateway.commands.wait_until_up()
    gateway.tails.start()
    gateway.delivery.ledger.start()
    gateway.delivery.start()
    try:
        yield gateway
    finally:
        for part in (gateway.delivery, gateway.delivery.ledger, gateway.tails, gateway.commands):
            await part.close()


class Writer:
    """Appends and publishes entries as a worker does."""

    def __init__(self, log: EventLog, stream_id: str) -> None:
        self._log, self.stream_id, self.held = log, stream_id, 0

    async def write(self, event_id: tuple[int, int], field: bytes, value: bytes) -> None:
        appended = await self._log.append(self.stream_id, self.held, Entry(EventId(*event_id), field, value), 600)
        assert appended.status == "applied"
        self.held += 1

    async def begin(self) -> None:
        await self.write((0, 1), events.ACCEPTED, ACCEPTED)
        await self.write((1, 0), events.STARTED, STARTED)


def ids(*offsets: int) -> bytes:
    return b"".join(b"1-%d;" % offset for offset in offsets)


HEAD = b"started@1-0;"


@pytest.mark.parametrize("native_first", [True, False])
@pytest.mark.parametrize("stateful", [True, False])
async def test_a_failing_encoder_ends_only_the_readers_of_its_face(
    valkey_server: RedisServer, native_first: bool, stateful: bool
) -> None:
    async with running(valkey_server.url) as gateway:
        face: Any = FailingFace(b"bad")
        face.stateful = stateful
        writer = Writer(gateway.log, new_stream_id())
        await writer.begin()
        beside = Writer(gateway.log, new_stream_id())
        await beside.begin()
        order: list[Face] = [NATIVE, face] if native_first else [face, NATIVE]
        sinks = {one: await gateway.follow(writer.stream_id, one) for one in order}
        other = await gateway.follow(beside.stream_id, face)
        second = await gateway.follow(writer.stream_id, face)
        reconnects, failures = gateway.tails.subscriber.reconnects, total(metrics.FACE_FAILURES)

        for offset, text in enumerate((b"a", b"b", b"bad", b"c", b"d"), start=1):
            await writer.write((1, offset), events.TOKEN, text)
            await beside.write((1, offset), events.TOKEN, b"x")
        await wait_until(lambda: sinks[face].end and second.end, what="both get their end")
        for sink in (sinks[face], second):
            assert (sink.body, sink.end) == (HEAD + ids(1, 2) + b"failed@1-3;", "finished")
        assert await gateway.end_for(writer.stream_id, face) == (1, 3)
        for cursor, rest in ((BEGINNING, None), (EventId(1, 1), ids(2) + b"failed@1-3;")):
            late = await gateway.follow(writer.stream_id, face, cursor)
            await until_ended(late)
            assert late.body.endswith(rest or b"failed@1-3;")

        await writer.write((1, 6), events.DONE, DONE)
        await beside.write((1, 6), events.DONE, DONE)
        await wait_until(lambda: sinks[NATIVE].end and other.end, what="the others go on to their end")
        shown = [line for line in sinks[NATIVE].body.split(b"\n") if line.startswith(b"id: ")]
        assert shown == [b"id: 1-%d" % offset for offset in range(7)]
        assert other.body == HEAD + ids(1, 2, 3, 4, 5) + b"done@1-6;"
        assert gateway.tails.subscriber.reconnects == reconnects
        assert total(metrics.FACE_FAILURES) > failures

        again = await gateway.follow(writer.stream_id, face)  # no reader is left: it is read from the log
        await wait_until(lambda: again.end, what="and much later")
        assert again.body == HEAD + ids(1, 2) + b"failed@1-3;"


async def until_ended(sink: Sink) -> None:
    await wait_until(lambda: sink.end, what="a later reader gets the end, too")


def total(counter: Any) -> float:
    return float(sum(one.value for metric in counter.collect() for one in metric.samples))


@pytest.mark.parametrize("stateful", [True, False])
async def test_a_failing_encoder_also_ends_readers_that_catch_up(valkey_server: RedisServer, stateful: bool) -> None:
    """The event that cannot be encoded is far behind the ring."""
    async with running(valkey_server.url) as gateway:
        face: Any = FailingFace(b"bad")
        face.stateful = stateful
        writer = Writer(gateway.log, new_stream_id())
        await writer.begin()
        for first in range(1, 2001, 100):
            texts = b",".join(b'"bad"' if offset == 150 else b'"x"' for offset in range(first, first + 100))
            await writer.write((1, first + 99), events.BATCH, b"[" + texts + b"]")
        for cursor in (BEGINNING, EventId(1, 140)):
            sink = await gateway.follow(writer.stream_id, face, cursor)
            await until_ended(sink)
            assert sink.body.endswith(ids(*range(141, 150)) + b"failed@1-150;")
            assert sink.body.count(b"failed") == 1
        native = await gateway.follow(writer.stream_id, NATIVE)
        await writer.write((1, 2001), events.DONE, DONE)
        await wait_until(lambda: native.end, what="the native reader gets all")
        assert native.body.count(b"\nid: 1-") + native.body.startswith(b"id: 1-") == 2002


async def test_entries_pushed_out_of_order_are_never_sent_twice(valkey_server: RedisServer) -> None:
    """With a failing face, garbage and old entries on the channel, and reads of the log in between."""
    async with running(valkey_server.url) as gateway:
        writer = Writer(gateway.log, new_stream_id())
        await writer.begin()
        faces: list[Any] = [FailingFace(b"%d" % bad) for bad in (3, 7, 11)]
        sinks = [await gateway.follow(writer.stream_id, face) for face in faces]
        native = await gateway.follow(writer.stream_id, NATIVE)
        for offset in range(1, 21):
            await writer.write((1, offset), events.TOKEN, b"%d" % offset)
            for garbage in (
                b"1-%d t again" % offset,
                b"1-%d t \xff" % (offset + 1),
                b"nothing",
                b"1-%d b [1]" % (offset + 1),
            ):
                await gateway.commands.execute("SPUBLISH", live_channel(writer.stream_id), garbage)
        await writer.write((1, 21), events.DONE, DONE)
        await wait_until(lambda: native.end and all(sink.end for sink in sinks), what="all get their end")
        shown = [line for line in native.body.split(b"\n") if line.startswith(b"id: ")]
        assert shown == [b"id: 1-%d" % offset for offset in range(22)]
        for sink, bad in zip(sinks, (3, 7, 11), strict=True):
            assert sink.body == HEAD + ids(*range(1, bad)) + b"failed@1-%d;" % bad
        assert gateway.tails.subscriber.reconnects == 0


async def test_a_callback_that_raises_affects_no_other_reply(valkey_server: RedisServer) -> None:
    async with running(valkey_server.url) as gateway:
        commands, replies = gateway.commands, list[Any]()

        def raising(reply: Any) -> None:
            raise LookupError("as it should")

        for number in range(5):
            commands.send(("ECHO", f"{number}"), replies.append)
            commands.send(("ECHO", "odd"), raising)
            commands.send(("NO-SUCH-COMMAND",), raising)
        assert await commands.execute("ECHO", "last") == b"last"
        assert replies == [b"0", b"1", b"2", b"3", b"4"]
        assert (commands.failed_callbacks, commands.reconnects, commands.is_up) == (10, 0, True)
        with pytest.raises(RedisRefused):
            await commands.execute("NO-SUCH-COMMAND")


@pytest.mark.parametrize("garbage", [b"+OK\r\n" * 3, b"?\r\n", b"*-7\r\n$9999999999999\r\n", b"\xff\x00" * 50])
async def test_a_server_that_does_not_speak_redis_is_disconnected(garbage: bytes) -> None:
    """It is not known which reply belongs to which command: a new connection is made, and pending commands get `Disconnected`."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.read(1000)
        writer.write(b"+OK\r\n+PONG\r\n" + garbage)
        await reader.read(1000)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = RespConnection(RedisAddress.parse(f"redis://127.0.0.1:{port}"), name="test", reply_seconds=2.0)
    connection.start()
    try:
        await wait_until(lambda: connections >= 3, what="it tries again")
    finally:
        await connection.close()
        server.close()


async def test_a_tail_with_a_failed_face_is_dropped_in_the_end(valkey_server: RedisServer) -> None:
    async with running(valkey_server.url) as gateway:
        face: Any = FailingFace(b"bad")
        writer = Writer(gateway.log, new_stream_id())
        await writer.begin()
        sink = await gateway.follow(writer.stream_id, face)
        await writer.write((1, 1), events.TOKEN, b"bad")
        await wait_until(lambda: sink.end, what="the reader gets its end")
        assert (len(gateway.tails), gateway.delivery.readers) == (0, 0)
        late = await gateway.follow(writer.stream_id, face, EventId(1, 5))  # from any cursor
        await until_ended(late)
        assert len(gateway.tails) == 0


@pytest.mark.parametrize("ended", [True, False])
async def test_a_reader_that_arrives_during_a_first_read_from_a_later_id(
    valkey_server: RedisServer, ended: bool
) -> None:
    """A reader resumes after the newest id. Before its read is answered, another reader comes, from the beginning."""
    async with running(valkey_server.url) as gateway:
        writer = Writer(gateway.log, new_stream_id())
        await writer.begin()
        for offset in range(1, 4):
            await writer.write((1, offset), events.TOKEN, b"x")
        if ended:
            await writer.write((1, 4), events.DONE, DONE)
        came = asyncio.Event()
        send_read, held = gateway.log.send_read, list[Any]()

        def reading(stream_id: str, *arguments: Any, **more: Any) -> None:
            send_read(stream_id, *arguments, **more)
            if not came.is_set():
                came.set()
                held.append(gateway.tails.hold(stream_id, NATIVE))

        gateway.log.send_read = reading  # type: ignore[method-assign]  # it is asked as ever, and then somebody comes
        async with gateway.subscribe.ready(writer.stream_id, NATIVE, Place(EventId(1, 4))) as tail:
            assert came.is_set()
            assert (tail.exists, tail.ended) == (True, EventId(1, 4) if ended else None)
        sink = await gateway.follow(writer.stream_id, NATIVE)
        if not ended:
            await writer.write((1, 4), events.DONE, DONE)
        await until_ended(sink)
        assert [line for line in sink.body.split(b"\n") if line.startswith(b"id: ")] == [
            b"id: 1-%d" % offset for offset in range(5)
        ]
        assert gateway.unreadable == []
        held[0].release()
