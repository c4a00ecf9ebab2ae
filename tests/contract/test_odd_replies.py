"""A proxy, or a server that is not Redis, may answer anything: that is an error of the one call, and affects nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest

from gateway.console.listed import ListedStreams
from shared.errors import Disconnected, MidstreamError, Unusable
from shared.event_log import EventLog
from shared.events import CANCELLED, TOKEN, Entry
from shared.grants import check_for_all
from shared.ids import EventId, new_stream_id
from shared.queue import Claim, RequestQueue
from shared.receipt import DeliveryNotes
from shared.redis_server import RedisAddress, eviction_policy
from shared.replicas import ReplicatedCommands
from shared.resp import RespConnection
from shared.settings import Settings
from tests.support.ordinary_commands import OrdinaryCommands, ordinary_client
from tests.support.waiting import wait_until


class OddServer:
    """Speaks RESP on a real socket. It answers PING and ECHO correctly, and all other commands with `reply`."""

    def __init__(self) -> None:
        self.reply = b"+OK\r\n"
        self.request_timeouts = b""
        """Bytes that are sent together with the next answer."""
        self.connections = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield int(server.sockets[0].getsockname()[1])
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65_536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    name = command[0].upper()
                    if name == b"PING":
                        writer.write(b"+PONG\r\n")
                    elif name == b"ECHO":
                        writer.write(b"$%d\r\n%b\r\n" % (len(command[1]), command[1]))
                    else:
                        writer.write(self.reply)
                    writer.write(self.request_timeouts)
                    self.request_timeouts = b""
        finally:
            writer.close()


@asynccontextmanager
async def connected(server: OddServer) -> AsyncIterator[RespConnection]:
    async with server.serving() as port:
        address = RedisAddress("127.0.0.1", port)
        connection = RespConnection(address, name="test", reply_seconds=2.0, reconnect_seconds_max=0.02)
        connection.start()
        await connection.wait_until_up()
        try:
            yield connection
        finally:
            await connection.close()


REPLIES = {
    "a number": b":7\r\n",
    "a negative number": b":-1\r\n",
    "a word": b"+OK\r\n",
    "bytes": b"$3\r\n\xff\xfe\x00\r\n",
    "nothing": b"$-1\r\n",
    "no list": b"*-1\r\n",
    "an empty list": b"*0\r\n",
    "a list of numbers": b"*3\r\n:1\r\n:2\r\n:3\r\n",
    "a list of nothing": b"*2\r\n$-1\r\n$-1\r\n",
    "entries without an id": b"*1\r\n*2\r\n$-1\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n",
    "entries whose id is none": b"*1\r\n*2\r\n$3\r\nx-y\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n",
    "lists of lists of lists": b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
    "an append's answer with a strange id": b"*3\r\n$9\r\nduplicate\r\n$1\r\nx\r\n$1\r\ny\r\n",
    "an error without a word": b"-\r\n",
    "an error of no known kind": b"-WHATEVER \xff\r\n",
    "a true of RESP3": b"#t\r\n",
    "a map of RESP3": b"%1\r\n+a\r\n:1\r\n",
}


@pytest.mark.parametrize("waits", [False, True], ids=["", "with replicas"])
@pytest.mark.parametrize("reply", REPLIES)
async def test_an_odd_reply_affects_only_its_own_call(
    reply: str, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server, stream_id = OddServer(), new_stream_id()
    server.reply = REPLIES[reply]
    async with connected(server) as connection:
        replicated = ReplicatedCommands(connection, 1) if waits else None
        lives = {"log_ttl_seconds": 9, "ended_ttl_seconds": 9, "tombstone_ttl_seconds": 9}
        log = EventLog(connection, **lives, replicated=replicated)  # type: ignore[arg-type]
        queue = RequestQueue(connection, ttl_seconds=9, requests_max=9, consumer="ann", replicated=replicated)
        entry = Entry(EventId(1, 1), TOKEN, b"a")
        read: list[Any] = []
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "append": lambda: log.append(stream_id, 0, entry),
            "probe": lambda: log.probe(stream_id, 0, entry.id),
            "read": lambda: log.read(stream_id),
            "read_page": lambda: log.read_page(stream_id, entry.id, entry.id),
            "newest": lambda: log.newest(stream_id),
            "end": lambda: log.end(stream_id, CANCELLED, b"{}"),
            "delete": lambda: log.delete(stream_id),
            "enqueue": lambda: queue.enqueue(stream_id),
            "claim": lambda: queue.claim(connection, 1, 1),
            "claim_expired": lambda: queue.claim_expired(1, 1),
            "renew": lambda: queue.renew([Claim(b"1-1", stream_id)]),
            "acknowledge": lambda: queue.acknowledge(Claim(b"1-1", stream_id)),
            "forget_idle_consumers": lambda: queue.forget_idle_consumers(1),
            "counts": queue.counts,
            "newest_requests": lambda: queue.newest(1),
            "leases": lambda: queue.leases(b"-", 1),
            "last_heard_at": lambda: queue.last_heard_at("bob"),
            "about": lambda: ListedStreams(connection).read({stream_id: 1}),
            "deliveries": lambda: DeliveryNotes(connection).read(stream_id),
            "eviction_policy": lambda: eviction_policy(connection),
        }
        for name, call in calls.items():
            other = asyncio.create_task(connection.execute("ECHO", name))
            with contextlib.suppress(MidstreamError):
                await call()
            assert await other == name.encode(), "replies stay with their commands"
        log.send_read(stream_id, EventId(0, 0), 1, read.append)
        log.send_newest(stream_id, 1, read.append)
        log.send_newest_ids([stream_id], read.append)
        assert await connection.execute("ECHO", "last") == b"last"
        assert len(read) == 3, "each is called back once"
        assert isinstance(read[2], MidstreamError), "no log is taken for gone"
        assert all(isinstance(item, MidstreamError | list) for item in read), read
        assert server.connections == 1
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    "request_timeouts", [b"+ONE MORE\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x01\x00\x00"]
)
async def test_an_unexpected_reply_leads_to_a_new_connection(request_timeouts: bytes) -> None:
    """It is no longer known which reply belongs to which command."""
    server = OddServer()
    async with connected(server) as connection:
        server.request_timeouts = request_timeouts
        assert await connection.execute("ECHO", "before") == b"before"
        await wait_until(lambda: server.connections == 2 and connection.is_up, what="a new connection")
        assert await connection.execute("ECHO", "after") == b"after"


@pytest.mark.parametrize("reply", [*REPLIES, "no RESP"])
async def test_an_odd_reply_to_a_claim_is_an_error_and_the_next_claim_works(reply: str) -> None:
    """Claims use a separate connection, through redis-py."""
    server, stream_id = OddServer(), new_stream_id()
    async with connected(server) as connection, server.serving() as port:
        server.reply = REPLIES.get(reply, b"HTTP/1.1 400 Bad Request\r\n\r\n")
        client = ordinary_client(f"redis://127.0.0.1:{port}/0", reply_seconds=2.0)
        blocking = OrdinaryCommands(client)
        queue = RequestQueue(connection, ttl_seconds=9, requests_max=9, consumer="ann")
        with contextlib.suppress(MidstreamError):
            assert await queue.claim(blocking, 1, 1) == []
        server.reply = (
            b"*1\r\n*2\r\n$1\r\nq\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$2\r\nid\r\n$36\r\n%b\r\n" % stream_id.encode()
        )
        assert await queue.claim(blocking, 1, 1) == [Claim(b"1-1", stream_id)]
        await client.aclose()


@pytest.mark.parametrize("reply", [*REPLIES, "no RESP"])
async def test_an_odd_server_never_crashes_the_start(reply: str) -> None:
    server = OddServer()
    server.reply = REPLIES.get(reply, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    async with server.serving() as port:
        settings = Settings(redis_start_seconds=0.2, redis_reply_seconds=0.5)
        with pytest.raises(Unusable) as refused:
            await check_for_all(f"redis://127.0.0.1:{port}/0", settings)
        assert "Redis at 127.0.0.1" in str(refused.value)


async def test_a_failing_callback_does_not_affect_other_replies(caplog: pytest.LogCaptureFixture) -> None:
    server = OddServer()
    async with connected(server) as connection:
        connection.send(("ECHO", "a"), lambda reply: 1 / 0)  # type: ignore[arg-type]
        assert await connection.execute("ECHO", "b") == b"b"
        assert server.connections == 1
        connection.send(("ECHO", "a"), lambda reply: 1 / 0)  # type: ignore[arg-type]
        lost = asyncio.create_task(connection.execute("ECHO", "b"))
        await asyncio.sleep(0)
        assert connection._transport is not None
        connection._transport.abort()
        with pytest.raises(Disconnected):
            await lost
    assert connection.failed_callbacks == 2
    assert len([record for record in caplog.records if record.exc_info]) == 2
