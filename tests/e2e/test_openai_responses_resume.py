"""Responses that are resumed after a dropped connection, followed by many readers, or cancelled, with OpenAI's own client."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.support.openai_server import OpenAIServer
from tests.support.responses import CALL, ENDLESS, SLOW, TEXT, all_of, create, text_of
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(server: OpenAIServer) -> AsyncIterator[System]:
    settings = {"provider": "openai", "openai_base_url": server.url, "provider_backoff_seconds": 0.01}
    # A small ring, so that most late readers read the log.
    async with System(gateways=2, settings=settings, gateway_settings={"ring_events": 16}) as system:
        yield system


async def test_a_dropped_connection_is_resumed_through_another_gateway(
    client: openai.AsyncOpenAI, other: openai.AsyncOpenAI, server: OpenAIServer
) -> None:
    requests_before = server.requests
    first: list[Any] = []
    stream = await create(client, SLOW, background=True, stream=True)
    async for event in stream:
        first.append(event)
        if len(first) == 12:
            break
    await stream.close()
    created = first[0]
    assert created.type == "response.created"
    assert created.response.status == "queued"
    rest = await all_of(await other.responses.retrieve(created.response.id, stream=True, starting_after=11))
    assert rest[0].sequence_number == 12
    assert rest[-1].type == "response.completed"
    whole = await all_of(await client.responses.retrieve(created.response.id, stream=True))
    assert [*first, *rest] == whole
    assert server.requests == requests_before + 1


async def test_readers_that_come_at_any_time_get_the_same_events(clients: list[openai.AsyncOpenAI]) -> None:
    async def read(client: openai.AsyncOpenAI, after: int) -> list[Any]:
        return await all_of(await client.responses.retrieve(response.id, stream=True, starting_after=after))

    script = {"reasoning": ["let", " me"], "tokens": 150, "tokens_per_second": 100, "tool_calls": [CALL]}
    response = await create(clients[0], script, background=True)
    dice, whole = random.Random(7), []
    reading: list[tuple[int, asyncio.Task[list[Any]]]] = []
    async for event in await clients[1].responses.retrieve(response.id, stream=True):
        whole.append(event)
        if len(whole) % 12 == 0 and len(whole) < 150:  # from far behind to ahead of the newest event
            after = dice.randrange(len(whole) + 10)
            reading.append((after, asyncio.create_task(read(clients[len(reading) % 2], after))))
    assert len(reading) == 12
    for after, events in reading:
        assert await events == whole[after + 1 :], f"after {after}"


async def test_resumed_after_any_event(client: openai.AsyncOpenAI, running: System) -> None:
    """Also between the events of one log entry, and at and behind the end."""
    script = {"reasoning": ["let", " me"], "text": ["a", "b"], "tool_calls": [CALL]}
    response = await create(client, script)
    bodies = []
    for gateway in range(2):
        url = f"{running.gateway_url(gateway)}/v1/responses/{response.id}?stream=true"
        bodies.append((await running.http.get(url)).content)
    assert bodies[0] == bodies[1]
    pieces = [piece + b"\n\n" for piece in bodies[0].split(b"\n\n")[:-1]]
    head = pieces[0][: pieces[0].index(b"event:")]
    for number in range(len(pieces) + 3):
        url = f"{running.gateway_url(number % 2)}/v1/responses/{response.id}?stream=true&starting_after={number}"
        answer = await running.http.get(url)
        assert answer.status_code == 200
        assert answer.content.removeprefix(head) == b"".join(pieces[number + 1 :]), f"after {number} of {len(pieces)}"


async def test_a_cursor_ahead_of_a_running_response(
    client: openai.AsyncOpenAI, other: openai.AsyncOpenAI, system: System
) -> None:
    response = await create(client, {"tokens": 40, "tokens_per_second": 20}, background=True)
    rest = await all_of(await other.responses.retrieve(response.id, stream=True, starting_after=25))
    assert rest[0].sequence_number == 26, "it waits for those that will come"
    endless = await create(client, {"tokens": 1, "stall_after": 1}, background=True)
    with pytest.raises(openai.BadRequestError) as refused:
        await other.responses.retrieve(endless.id, stream=True, starting_after=900)
    assert refused.value.param == "starting_after"
    await client.responses.cancel(endless.id)


async def test_the_stream_helper(client: openai.AsyncOpenAI, other: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(
        model="some-model", input="say something", extra_body={"script": {"text": TEXT}}
    ) as stream:
        snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert snapshots[-1] == final.output_text == "".join(TEXT)
    # This helper requests everything and skips what it has.
    async with other.responses.stream(response_id=final.id, starting_after=6) as stream:
        again = [event async for event in stream]
        assert (await stream.get_final_response()).output_text == "".join(TEXT)
    assert again[0].sequence_number == 7


async def test_cancel_stops_the_provider(
    client: openai.AsyncOpenAI, other: openai.AsyncOpenAI, server: OpenAIServer
) -> None:
    await wait_until(lambda: server.running == 0, what="no other test is answered any more")
    stream = await create(client, ENDLESS, background=True, stream=True)
    first = await anext(aiter(stream))
    await wait_until(lambda: server.running == 1, what="the provider answers")
    aborted = server.aborted
    cancelled = await other.responses.cancel(first.response.id)
    assert cancelled.status == "cancelled"
    await wait_until(lambda: server.running == 0 and server.aborted == aborted + 1, what="the provider has stopped")
    rest = await all_of(stream)
    assert rest[-1].type == "response.incomplete"
    assert rest[-1].response.to_dict() == cancelled.to_dict()
    assert (await client.responses.cancel(first.response.id)).to_dict() == cancelled.to_dict()


async def test_closing_the_connection_cancels_the_response(client: openai.AsyncOpenAI, server: OpenAIServer) -> None:
    await wait_until(lambda: server.running == 0, what="no other test is answered any more")
    midstream = {"on_disconnect": {"cancel_after": 0.2}}
    stream = await create(client, ENDLESS, stream=True, extra_body={"script": ENDLESS, "midstream": midstream})
    first = await anext(aiter(stream))
    await wait_until(lambda: server.running == 1, what="the provider answers")
    await stream.close()
    await wait_until(lambda: server.running == 0, what="the provider has stopped")
    assert (await client.responses.retrieve(first.response.id)).status == "cancelled"


async def test_a_stopping_gateway_ends_the_stream_with_an_error(server: OpenAIServer) -> None:
    """The SDK would take a proper end for the end of the answer: it gets an error instead, and resumes at another gateway."""
    settings = {"provider": "openai", "openai_base_url": server.url}
    async with System(gateways=2, settings=settings) as system:
        urls = [f"{system.gateway_url(index)}/v1" for index in range(2)]
        async with (
            openai.AsyncOpenAI(base_url=urls[0], api_key="any", max_retries=0) as client,
            openai.AsyncOpenAI(base_url=urls[1], api_key="any", max_retries=0) as other,
        ):
            stream = await create(client, SLOW, stream=True)
            first = [await anext(stream) for _ in range(10)]
            system.gateways[0].send(signal.SIGTERM)
            with pytest.raises(openai.APIConnectionError):
                await read_into(first, stream)
            response_id, last = first[0].response.id, len(first) - 1
            rest = await all_of(await other.responses.retrieve(response_id, stream=True, starting_after=last))
            assert rest[0].sequence_number == len(first)
            assert rest[-1].response.output_text == text_of([*first, *rest])


async def read_into(events: list[Any], stream: Any) -> None:
    async for event in stream:
        events.append(event)
