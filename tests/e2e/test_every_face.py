"""One answer through every API: the same text, the same calls, the same finish reason, the same usage.

The provider sends tests/recordings, byte by byte. Each face is read by the client that it is made for, and compared with the
recording, which is merged without any code of the gateway.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from httpx_sse import EventSource, ServerSentEvent
from websockets.asyncio.client import connect

from tests.support import ai_sdk
from tests.support.replay_server import Content, Gathering, ReplayServer, content_of, recorded
from tests.support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES: list[Any] = [{"role": "user", "content": "as recorded"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with ReplayServer() as server:
        settings = {"provider": "openai", "openai_base_url": server.url}
        async with System(gateways=2, settings=settings) as system:
            yield system


def check(shown: Content, name: str, face: str) -> None:
    """Checks that everything this face shows equals the recording."""
    wanted = content_of(name)
    for one in fields(Content):
        value = getattr(shown, one.name)
        assert value is None or value == getattr(wanted, one.name), f"{one.name}, as {face} has it"


def sse_of(body: bytes) -> list[ServerSentEvent]:
    """Decodes the events with a decoder that is not ours."""
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    return list(EventSource(response).iter_sse())


def of_events(events: list[tuple[str, Any]]) -> Content:
    """Merges native events, given as (name, data)."""
    gathering = Gathering()
    for name, data in events:
        if name == "message":
            gathering.add({"content": data["token"]} if "token" in data else data["delta"])
    name, end = events[-1]
    assert name == "done"
    assert end["truncated"] == (end["finish_reason"] == "length")
    return gathering.content(end["finish_reason"], end["usage"])


@pytest.mark.parametrize("name", recorded())
async def test_every_form_of_the_native_api(system: System, name: str) -> None:
    """Followed live through one gateway, replayed through the other: SSE, NDJSON, text, WebSocket, state."""
    stream_id = await system.create(model=name)

    async def sse(gateway: int) -> Content:
        reader = await system.follow(stream_id, gateway=gateway).until_end()
        return of_events([(one.event, json.loads(one.data)) for one in reader.messages])

    async def ndjson(gateway: int) -> Content:
        url = system.events_url(stream_id, gateway=gateway)
        response = await system.http.get(url, headers={"accept": "application/x-ndjson"})
        lines = [json.loads(line) for line in response.text.splitlines()]
        return of_events([(one["event"], one["data"]) for one in lines])

    async def text(gateway: int) -> Content:
        url = f"{system.gateway_url(gateway)}/v1/streams/{stream_id}/text"
        return Content(text=(await system.http.get(url)).text)

    async def websocket(gateway: int) -> Content:
        url = f"{system.gateway_url(gateway).replace('http', 'ws', 1)}/v1/streams/{stream_id}/ws"
        async with connect(url, proxy=None) as socket:
            messages = [json.loads(message) async for message in socket]
        return of_events([(one["event"], one["data"]) for one in messages])

    async def state(gateway: int) -> Content:
        seen = await system.state(stream_id, gateway=gateway, wait_seconds=30)
        assert seen["truncated"] == (seen["finish_reason"] == "length")
        usage = seen["usage"]
        return Content(
            text=seen["text"],
            finish_reason=seen["finish_reason"],
            usage=(usage["prompt_tokens"], usage["completion_tokens"]),
        )

    faces = (sse, ndjson, text, websocket, state)
    for gateway, when in ((0, "live"), (1, "replayed")):
        for face, shown in zip(faces, await asyncio.gather(*(face(gateway) for face in faces)), strict=True):
            check(shown, name, f"{face.__name__} {when}")


@pytest.mark.parametrize("name", recorded())
async def test_the_one_line_endpoint(system: System, name: str) -> None:
    response = await system.http.get(f"{system.gateway_url()}/stream?prompt=as+recorded&model={name}")
    *events, last = [one for one in sse_of(response.content) if one.event != "accepted"]
    assert last.data == "[DONE]"
    gathering, finish_reason = Gathering(), None
    for one in events:
        data = json.loads(one.data)
        if one.event == "message":
            gathering.add({"content": data["token"]} if "token" in data else data["delta"])
        else:
            assert one.event == "done", "only a truncated answer has a done event"
            finish_reason = data["finish_reason"]
    shown = gathering.content(finish_reason, None)
    check(shown, name, "the one-line endpoint")
    assert (finish_reason == "length") == (content_of(name).finish_reason == "length")


@pytest.mark.parametrize("name", recorded())
async def test_chat_completions(client: openai.AsyncOpenAI, system: System, name: str) -> None:
    """Streamed, whole, and read again by its id."""
    stream = await client.chat.completions.with_raw_response.create(
        model=name, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk.model_dump(exclude_unset=True) async for chunk in stream.parse()]
    check(of_chunks(chunks), name, "chat, streamed")

    stream_id = stream.headers["x-stream-id"]
    again = await system.http.get(f"{system.gateway_url(1)}/v1/chat/completions/{stream_id}/events")
    data = [one.data for one in sse_of(again.content)]
    assert data[-1] == "[DONE]"
    check(of_chunks([json.loads(one) for one in data[:-1]]), name, "chat, read again")
    check(Content(text=(await system.state(stream_id))["text"]), name, "the state of a chat's stream")

    whole = (await client.chat.completions.create(model=name, messages=MESSAGES)).model_dump(exclude_unset=True)
    (choice,) = whole["choices"]
    gathering = Gathering()
    calls = choice["message"].get("tool_calls") or []
    gathering.add(choice["message"] | {"tool_calls": [call | {"index": index} for index, call in enumerate(calls)]})
    check(gathering.content(choice["finish_reason"], whole["usage"]), name, "chat, whole")


def of_chunks(chunks: list[dict[str, Any]]) -> Content:
    gathering, finish_reason, usage = Gathering(), None, None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            gathering.add(choice["delta"])
            finish_reason = choice["finish_reason"] or finish_reason
    return gathering.content(finish_reason, usage)


@pytest.mark.parametrize("name", recorded())
async def test_responses(client: openai.AsyncOpenAI, system: System, name: str) -> None:
    """Streamed, retrieved, and streamed again from the other gateway."""
    events: list[Any] = [
        one async for one in await client.responses.create(model=name, input="as recorded", stream=True)
    ]
    response = events[-1].response
    check(of_response(response), name, "responses, at the end of its stream")

    def joined(kind: str) -> str:
        return "".join(one.delta for one in events if one.type == f"response.{kind}.delta")

    pieces = Content(text=joined("output_text"), refusal=joined("refusal"), reasoning=joined("reasoning_text"))
    check(pieces, name, "responses, in pieces")

    check(of_response(await client.responses.retrieve(response.id)), name, "responses, retrieved")
    async with openai.AsyncOpenAI(base_url=f"{system.gateway_url(1)}/v1", api_key="any") as other:
        again = [one async for one in await other.responses.retrieve(response.id, stream=True)]
    assert [one.to_dict() for one in again] == [one.to_dict() for one in events]


def of_response(response: Any) -> Content:
    shown = Content(text="", reasoning="", refusal="", calls=[])
    for item in response.output:
        if item.type == "function_call":
            shown.calls = [*(shown.calls or ()), (item.call_id, item.name, item.arguments)]
            continue
        for part in item.content:
            if item.type == "reasoning":
                shown.reasoning = (shown.reasoning or "") + part.text
            elif part.type == "refusal":
                shown.refusal = (shown.refusal or "") + part.refusal
            else:
                shown.text = (shown.text or "") + part.text
    if response.status == "incomplete":
        assert response.incomplete_details.reason == "max_output_tokens"
        shown.finish_reason = "length"
    else:
        assert response.status == "completed"
        shown.finish_reason = "tool_calls" if shown.calls else "stop"
    shown.usage = (response.usage.input_tokens, response.usage.output_tokens)
    return shown


@pytest.mark.parametrize("name", recorded())
async def test_the_ai_sdk(system: System, name: str) -> None:
    """The AI SDK shows a refusal as text, and a call's arguments as a parsed value."""
    question = {
        "id": f"chat-{name}",
        "messages": [{"id": "u", "role": "user", "parts": [{"type": "text", "text": "x"}]}],
    }
    answer = await system.http.post(f"{system.gateway_url()}/api/chat", json={**question, "model": name})
    seen = await ai_sdk.read(answer.content)
    assert not seen["wrong"]
    assert not seen["errors"]
    message, wanted = seen["message"], content_of(name)
    parts = message["parts"]
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    assert text == (wanted.text or "") + (wanted.refusal or "")
    usage = message["metadata"]["usage"]
    shown = Content(
        reasoning="".join(part["text"] for part in parts if part["type"] == "reasoning"),
        finish_reason=seen["chunks"][-1]["finishReason"].replace("-", "_"),
        usage=(usage["inputTokens"], usage["outputTokens"]),
    )
    check(shown, name, "the AI SDK")
    calls = [(part["toolCallId"], part["type"], part["input"]) for part in parts if part["type"].startswith("tool-")]
    assert calls == [
        (call, f"tool-{function}", json.loads(arguments)) for call, function, arguments in wanted.calls or ()
    ]


@pytest.mark.parametrize("name", ["smollm2-cut-off", "openai-parallel-tool-calls"])
async def test_an_answer_of_one_api_is_read_through_another(
    client: openai.AsyncOpenAI, system: System, name: str
) -> None:
    """Every stream is a log, whichever API created it."""
    raw = await client.chat.completions.with_raw_response.create(model=name, messages=MESSAGES, stream=True)
    chat = raw.headers["x-stream-id"]
    [chunk async for chunk in raw.parse()]
    response = await client.responses.create(model=name, input="as recorded")
    for stream_id in (chat, response.id.removeprefix("resp_")):
        reader = await system.follow(stream_id, gateway=1).until_end()
        check(of_events([(one.event, json.loads(one.data)) for one in reader.messages]), name, "native SSE")
        text = await system.http.get(f"{system.gateway_url(1)}/v1/streams/{stream_id}/text")
        check(Content(text=text.text), name, "text")
