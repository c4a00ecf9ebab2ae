"""The pipelined connection to real servers that are killed, frozen and restarted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from shared.errors import Disconnected, RedisRefused
from shared.event_log import EventLog
from shared.redis_server import RedisAddress
from shared.resp import _GATHER_SECONDS, RespConnection
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

REPLY_SECONDS = 0.4


@pytest.fixture(params=["unix", "tcp"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Yields a server for this test alone, which may be killed."""
    with RedisServer("valkey", tcp=request.param == "tcp") as server:
        yield server


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[RespConnection]:
    options = {"reply_seconds": 5.0, "reconnect_seconds_max": 0.05, **options}
    connection = RespConnection(RedisAddress.parse(url), name="test", **options)
    connection.start()
    try:
        await wait_until(lambda: connection.is_up, what="the connection is up")
        yield connection
    finally:
        await connection.close()


async def test_replies_come_in_the_order_of_the_commands(server: RedisServer) -> None:
    async with connected(server.url) as connection:
        replies: list[Any] = []
        for number in range(1000):
            connection.send(("ECHO", b"%d" % number), replies.append)
        assert await connection.execute("ECHO", "last") == b"last"
        assert replies == [b"%d" % number for number in range(1000)]


async def test_a_busy_connection_that_gathers_writes_once_for_many_commands(server: RedisServer) -> None:
    async with connected(server.url, gathers=True) as connection:
        replies: list[Any] = []
        before = connection.writes
        server.freeze()  # so that all of them are under way
        for number in range(100):
            connection.send(("ECHO", b"%d" % number), replies.append)
            await asyncio.sleep(0)
        server.thaw()
        assert await connection.execute("ECHO", "last") == b"last"
        assert replies == [b"%d" % number for number in range(100)]
        assert connection.writes - before < 30


async def test_a_connection_that_gathers_sends_a_lone_command_at_once(server: RedisServer) -> None:
    async with connected(server.url, gathers=True) as connection:
        before, lasted_seconds = connection.writes, []
        for number in range(100):
            began = time.monotonic()
            await connection.execute("ECHO", number)
            lasted_seconds.append(time.monotonic() - began)
        assert connection.writes - before == 100
        assert min(lasted_seconds) < _GATHER_SECONDS, "each waited for a tick"


async def test_what_was_gathered_is_sent_before_a_close(server: RedisServer) -> None:
    async with connected(server.url) as other, connected(server.url, gathers=True) as connection:
        for number in range(10):
            connection.send(("RPUSH", "list", number), lambda reply: None)
            await asyncio.sleep(0)
        await connection.close()

        async def all_are_there() -> bool:
            return await other.execute("LLEN", "list") == 10  # type: ignore[no-any-return]

        await wait_until(all_are_there)


async def test_an_error_affects_only_its_command(server: RedisServer) -> None:
    async with connected(server.url) as connection:
        commands = [("ECHO", "a"), ("NOT-A-COMMAND",), ("ECHO", "b")]
        replies = await asyncio.gather(*(connection.execute(*one) for one in commands), return_exceptions=True)
        assert replies[::2] == [b"a", b"b"]
        assert isinstance(replies[1], RedisRefused)
        assert replies[1].code == "ERR"


async def test_arguments_of_every_kind_and_large_replies(server: RedisServer) -> None:
    large = bytes(range(256)) * 40_000
    async with connected(server.url) as connection:
        await connection.execute("SET", "key", large, "EX", 60)
        assert await connection.execute("GET", b"key") == large
        assert await connection.execute("INCRBYFLOAT", "number", 1.5) == b"1.5"
        assert await connection.execute("GET", "nothing") is None


async def test_no_callback_runs_before_send_returns(server: RedisServer) -> None:
    replies: list[Any] = []
    async with connected(server.url) as connection:
        connection.send(("PING",), replies.append)
        assert replies == []
        await wait_until(lambda: replies)
    connection.send(("PING",), replies.append)
    assert len(replies) == 1
    await wait_until(lambda: len(replies) == 2)
    assert isinstance(replies[1], Disconnected)


async def test_a_killed_server_disconnects_every_unanswered_command(server: RedisServer) -> None:
    async with connected(server.url) as connection:
        server.freeze()  # so that none of these is answered
        replies: list[Any] = []
        for number in range(100):
            connection.send(("ECHO", b"%d" % number), replies.append)
        waiting = asyncio.create_task(connection.execute("PING"))
        await asyncio.sleep(0)
        server.kill()
        with pytest.raises(Disconnected):
            await waiting
        assert len(replies) == 100
        assert all(isinstance(reply, Disconnected) for reply in replies)
        with pytest.raises(Disconnected):
            await connection.execute("PING")


async def test_it_reconnects_loads_its_scripts_and_calls_on_up_each_time(server: RedisServer) -> None:
    ups: list[bool] = []
    connection_now: list[RespConnection] = []
    async with connected(
        server.url, scripts=EventLog.SCRIPTS, on_up=lambda: ups.append(not connection_now or connection_now[0].is_up)
    ) as connection:
        connection_now.append(connection)
        assert len(ups) == 1
        for restart in (1, 2, 3):
            server.kill()
            await wait_until(lambda: not connection.is_up)
            server.start()
            await connection.wait_until_up()
            assert len(ups) == restart + 1
            digests = [EventLog.APPEND.digest, EventLog.END.digest, EventLog.DELETE.digest]
            assert await connection.execute("SCRIPT", "EXISTS", *digests) == [1, 1, 1]
        assert all(ups)
        assert connection.reconnects == 3


async def test_it_waits_for_a_server_that_comes_later(server: RedisServer) -> None:
    server.kill()
    connection = RespConnection(
        RedisAddress.parse(server.url), name="test", reply_seconds=5, reconnect_seconds_max=0.05
    )
    connection.start()
    try:
        with pytest.raises(Disconnected):
            await connection.execute("PING")
        server.start()
        await wait_until(lambda: connection.is_up)
        assert await connection.execute("PING") == b"PONG"
    finally:
        await connection.close()


@pytest.mark.alone("noticed within tenths of a second")
async def test_a_server_that_falls_silent_is_noticed(server: RedisServer) -> None:
    async with connected(server.url, reply_seconds=REPLY_SECONDS) as connection:
        server.freeze()
        began = time.monotonic()
        with pytest.raises(Disconnected):
            await connection.execute("PING")
        assert REPLY_SECONDS * 0.9 < time.monotonic() - began < REPLY_SECONDS * 1.5 + 0.3
        server.thaw()
        await connection.wait_until_up()
        assert await connection.execute("PING") == b"PONG"


async def test_an_idle_connection_is_not_aborted(server: RedisServer) -> None:
    async with connected(server.url, reply_seconds=0.1) as connection:
        began = time.monotonic()
        await wait_until(lambda: time.monotonic() - began > 0.5)
        assert connection.is_up
        assert connection.reconnects == 0


async def test_a_server_that_accepts_and_never_answers_is_not_up() -> None:
    accepted = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    address = RedisAddress("127.0.0.1", listening.sockets[0].getsockname()[1])
    connection = RespConnection(address, name="test", reply_seconds=0.1, reconnect_seconds_max=0.05)
    connection.start()
    try:
        await wait_until(lambda: accepted >= 3, what="it gives up and tries again")
        assert not connection.is_up
    finally:
        await connection.close()
        listening.close()


async def test_with_a_wrong_password_it_never_comes_up(server: RedisServer) -> None:
    with RedisServer("valkey", password="right/one", tcp=server.port != 0) as locked:
        async with connected(locked.url) as connection:
            assert await connection.execute("PING") == b"PONG"
        ups: list[int] = []
        address = RedisAddress.parse(locked.url.replace("right", "wrong"))
        refused = RespConnection(
            address, name="test", reply_seconds=5, reconnect_seconds_max=0.02, on_up=lambda: ups.append(1)
        )
        refused.start()
        try:
            async with connected(locked.url) as looking:

                async def tried() -> bool:
                    about = (await looking.execute("INFO", "stats")).decode()
                    return int(about.partition("acl_access_denied_auth:")[2].split()[0]) >= 3

                await wait_until(tried, what="it is refused time and again")
            assert not refused.is_up
            assert ups == []
        finally:
            await refused.close()


async def test_it_selects_its_database_each_time(server: RedisServer) -> None:
    url = f"{server.url.removesuffix('/0')}/3" if server.port else f"{server.url}?db=3"
    async with connected(url) as connection:
        await connection.execute("SET", "key", "value", "EX", 60)
        assert await connection.execute("DBSIZE") == 1
        server.restart()
        await wait_until(lambda: connection.reconnects == 1)
        await connection.wait_until_up()
        assert b"db=3" in await connection.execute("CLIENT", "INFO")
        assert b"name=midstream-test" in await connection.execute("CLIENT", "INFO")


async def test_a_cancelled_caller_leaves_the_order_intact(server: RedisServer) -> None:
    async with connected(server.url) as connection:
        for round_number in range(20):
            calls = [asyncio.create_task(connection.execute("ECHO", f"{round_number}-{n}")) for n in range(10)]
            await asyncio.sleep(0)
            for task in calls[::2]:
                task.cancel()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert answers[1::2] == [f"{round_number}-{n}".encode() for n in range(1, 10, 2)]
            assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])


async def test_a_subscriber_gets_pushes_in_order_and_resubscribes(server: RedisServer) -> None:
    pushed: list[Any] = []
    subscriber: list[RespConnection] = []

    def subscribe() -> None:
        if subscriber:
            subscriber[0].push("SSUBSCRIBE", "channel")

    def published() -> list[bytes]:
        return [message[2] for message in pushed if message[0] == b"smessage"]

    options: dict[str, Any] = {"on_push": pushed.extend, "on_up": subscribe, "reply_seconds": 5.0}
    async with connected(server.url, **options) as one, connected(server.url) as other:
        subscriber.append(one)
        one.push("SSUBSCRIBE", "channel")
        await wait_until(lambda: [b"ssubscribe", b"channel", 1] in pushed)
        for number in range(100):
            await other.execute("SPUBLISH", "channel", str(number))
        await wait_until(lambda: len(published()) == 100)
        assert published() == [str(number).encode() for number in range(100)]
        pushed.clear()
        server.kill()
        server.start()
        await wait_until(lambda: [b"ssubscribe", b"channel", 1] in pushed, what="it subscribes anew")
        await wait_until(lambda: other.is_up)
        assert await other.execute("SPUBLISH", "channel", "again") == 1
        await wait_until(lambda: published() == [b"again"])


@pytest.mark.alone("noticed within tenths of a second")
async def test_a_subscriber_notices_a_server_that_falls_silent(server: RedisServer) -> None:
    """A subscriber pings, since otherwise a dead subscription would look like a quiet one."""
    options: dict[str, Any] = {"on_push": lambda _: None, "reply_seconds": REPLY_SECONDS}
    async with connected(server.url, **options) as subscriber:
        began = time.monotonic()
        await wait_until(lambda: time.monotonic() - began > 2 * REPLY_SECONDS)
        assert subscriber.is_up, "while the server answers its pings, it stays"
        server.freeze()
        await wait_until(lambda: not subscriber.is_up, within_seconds=REPLY_SECONDS * 2 + 0.3)
        server.thaw()
        await wait_until(lambda: subscriber.is_up)


async def test_closing_gives_disconnected_to_waiting_callers(server: RedisServer) -> None:
    async with connected(server.url) as connection:
        server.freeze()
        waiting = asyncio.create_task(connection.execute("PING"))
        await asyncio.sleep(0)
        await connection.close()
        with pytest.raises(Disconnected):
            await waiting
        server.thaw()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_it_runs_on_either_event_loop(server: RedisServer, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def once() -> bytes:
        async with connected(server.url) as connection:
            server.kill()
            await wait_until(lambda: not connection.is_up)
            server.start()
            await connection.wait_until_up()
            return bytes(await connection.execute("ECHO", "here"))

    loop = new_loop()
    try:
        assert loop.run_until_complete(once()) == b"here"
    finally:
        loop.close()
