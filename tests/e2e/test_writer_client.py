"""midstream.client as the writer of a stream, synchronous and for asyncio: two gateways, no worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
import pytest_asyncio
import redis

from midstream.client import AsyncClient, AsyncWriter, Client, Stopped, Writer
from shared.keys import log_key
from tests.support.system import System, answer_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENS = [f"t{number} " for number in range(200)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with System(gateways=2, workers=0) as system:
        yield system


class Writing:
    """One face for both writers."""

    def __init__(self, writer: Writer | AsyncWriter) -> None:
        self.writer = writer

    async def do(self, name: str, *arguments: Any, **named: Any) -> None:
        method = getattr(self.writer, name)
        if isinstance(self.writer, AsyncWriter):
            await method(*arguments, **named)
        else:
            await asyncio.to_thread(method, *arguments, **named)


Program = Callable[[Writing], Coroutine[Any, Any, None]]
"""Writes a stream; `do` calls a method of the writer by its name."""


async def write_async(url: str, stream_id: str, program: Program, **options: Any) -> None:
    async with AsyncClient(url) as client, client.write(stream_id, **options) as writer:
        await program(Writing(writer))


async def write_sync(url: str, stream_id: str, program: Program, **options: Any) -> None:
    """Runs the synchronous writer in a thread, with the program in an event loop of that thread."""

    def write() -> None:
        with Client(url) as client, client.write(stream_id, **options) as writer:
            asyncio.run(program(Writing(writer)))

    await asyncio.to_thread(write)


Write = Callable[..., Awaitable[None]]
both = pytest.mark.parametrize("write", [write_sync, write_async], ids=["sync", "async"])


async def create(system: System, **more: Any) -> str:
    async with AsyncClient(system.gateway_url()) as client:
        return (await client.create_external({"midstream": {"on_disconnect": "continue"}, **more})).id


@both
async def test_what_is_written_is_read(system: System, write: Write) -> None:
    stream_id = await create(system)
    reader = system.follow(stream_id, gateway=1)

    async def program(writing: Writing) -> None:
        for text in TOKENS:
            await writing.do("token", text)
        await writing.do("event", "tool", {"name": "weather"})
        assert writing.writer.state is not None
        assert (writing.writer.state.tokens, writing.writer.state.listeners) == (201, 1), "an event is in the log"
        await writing.do("delta", {"reasoning_content": "so"})
        await writing.do("end", "length", {"total_tokens": 3})

    await write(system.gateway_url(), stream_id, program, model="mine")
    answer = answer_of((await reader.until_end()).messages)
    assert answer.tokens == TOKENS
    assert answer.items[200:] == [("tool", {"name": "weather"}), ("delta", {"reasoning_content": "so"})]
    assert answer.started is not None
    assert answer.started["model"] == "mine"
    assert (answer.end, answer.end_data["truncated"]) == ("done", True)


@both
async def test_an_exception_ends_the_stream_as_failed(system: System, write: Write) -> None:
    stream_id = await create(system)

    async def program(writing: Writing) -> None:
        await writing.do("token", "a")
        raise LookupError("a secret")

    with pytest.raises(LookupError):
        await write(system.gateway_url(), stream_id, program)
    state = await system.state(stream_id)
    assert (state["text"], state["error"]["code"]) == ("a", "writer_failed")
    assert "LookupError" in state["error"]["message"]
    assert "secret" not in state["error"]["message"]


@both
@pytest.mark.alone("it stops within a second")
async def test_a_cancel_stops_a_silent_writer_within_a_second(system: System, write: Write) -> None:
    stream_id = await create(system)
    waits = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def program(writing: Writing) -> None:
        await writing.do("event", "thinks")
        loop.call_soon_threadsafe(waits.set)
        if isinstance(writing.writer, AsyncWriter):
            await asyncio.sleep(60)
        await wait_until(lambda: writing.writer.stopped)

    writing = asyncio.ensure_future(write(system.gateway_url(), stream_id, program))
    await waits.wait()
    began_at = time.monotonic()
    await system.http.post(f"{system.gateway_url(1)}/v1/streams/{stream_id}/cancel")
    with pytest.raises(Stopped) as stopped:
        await writing
    assert time.monotonic() - began_at < 1.0
    assert (stopped.value.reason, stopped.value.by) == ("cancelled", "client")


@both
async def test_an_earlier_writer_is_stopped_by_a_later_one(system: System, write: Write) -> None:
    stream_id = await create(system)
    reader = system.follow(stream_id)

    async def later(writing: Writing) -> None:
        assert writing.writer.state is not None
        assert writing.writer.state.tokens == 1
        await writing.do("token", "later")

    async def earlier(writing: Writing) -> None:
        await writing.do("event", "step", 1)
        await write(system.gateway_url(1), stream_id, later)
        await writing.do("event", "step", 2)

    with pytest.raises(Stopped) as stopped:
        await write(system.gateway_url(), stream_id, earlier)
    assert stopped.value.reason in ("fenced", "completed")
    answer = answer_of((await reader.until_end()).messages)
    assert answer.items == [("step", 1), ("token", "later")]


@both
@pytest.mark.parametrize("left", [40, 1], ids=["some", "all but the request"])
async def test_what_redis_forgets_is_written_again(system: System, write: Write, left: int) -> None:
    """The log loses its newest entries, as after a crash or a failover."""
    stream_id = await create(system)

    async def program(writing: Writing) -> None:
        for text in TOKENS[:100]:
            await writing.do("event", "t", text)
        await forget(system, stream_id, left)
        for text in TOKENS[100:]:
            await writing.do("token", text)

    await write(system.gateway_url(), stream_id, program)
    answer = answer_of((await system.follow(stream_id).until_end()).messages)
    assert [value for _, value in answer.items] == TOKENS


async def forget(system: System, stream_id: str, left: int) -> None:
    """Puts an earlier state of the log in place of it: its first entries, and the key's expiry."""
    with redis.Redis.from_url(system.redis.url, protocol=2) as commands:  # callable from any thread
        key = log_key(stream_id)
        entries: Any = commands.xrange(key, count=left)
        pipe = commands.pipeline()
        pipe.delete(key)
        for entry_id, fields in entries:
            pipe.xadd(key, fields, entry_id)
        pipe.expire(key, 600)
        pipe.execute()


async def test_a_stream_that_is_gone_stops_its_writer(system: System) -> None:
    stream_id = await create(system)

    async def program(writing: Writing) -> None:
        await writing.do("event", "step")
        await system.commands.delete(log_key(stream_id))
        await asyncio.sleep(10)

    with pytest.raises(Stopped) as stopped:
        await write_async(system.gateway_url(), stream_id, program)
    assert stopped.value.reason == "lost"


async def test_a_writer_that_is_cancelled_from_outside_stays_cancelled(system: System) -> None:
    stream_id = await create(system)

    async def write() -> None:
        async with AsyncClient(system.gateway_url()) as client, client.write(stream_id) as writer:
            await writer.token("a")
            await asyncio.sleep(60)

    task = asyncio.create_task(write())
    await system.until_status(stream_id, "running")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await system.until_status(stream_id, "failed"))["error"]["code"] == "writer_failed"
