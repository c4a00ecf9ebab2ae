"""Chat completions that are cut off, resumed, abandoned or cancelled, which OpenAI's own API does not offer."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from typing import Any

import httpx2
import openai
import pytest

from shared.sse import Decoder, Message
from tests.support.needs import needs
from tests.support.openai_server import OpenAIServer
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES: Any = [{"role": "user", "content": "say something"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Ur"}'}}
TICKING = {"tokens": 2000, "tokens_per_second": 50}


def chat_url(system: System, gateway: int = 0) -> str:
    return f"{system.gateway_url(gateway)}/v1/chat/completions"


def request_for(script: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "some-model", "messages": MESSAGES, "script": script, **more}


def blocks(body: str) -> list[str]:
    """Returns the events of a body, each with its lines, without comments and `retry:`."""
    lines = [line for line in body.split("\n") if not line.startswith((":", "retry:"))]
    return [one for one in "\n".join(lines).split("\n\n") if one]


def data_of(block: str) -> str:
    return block.split("data: ")[1].split("\nid: ")[0]


async def resumed(system: System, stream_id: str, after: str, **how: Any) -> httpx2.Response:
    headers = {"last-event-id": after} if after else {}
    return await system.http.get(f"{chat_url(system, 1)}/{stream_id}/events", headers=headers, **how)


async def test_a_stream_can_be_resumed_after_any_of_its_events(system: System) -> None:
    script = {"tokens": 5, "tool_calls": [CALL], "further": [["a", "b"]], "reasoning": ["hm"]}
    request = request_for(script, stream=True, n=2, stream_options={"include_usage": True})
    response = await system.http.post(chat_url(system), json=request)
    whole = blocks(response.text)
    stream_id = response.headers["x-stream-id"]
    ids = [one.split("\n")[-1].removeprefix("id: ") for one in whole]
    assert len(set(ids)) == len(whole), "every event has an id of its own"
    assert whole[-1].startswith("data: [DONE]\nid: ")
    assert blocks((await resumed(system, stream_id, "")).text) == whole
    for place, event_id in enumerate(ids[:-1]):
        again = await resumed(system, stream_id, event_id)
        assert (again.status_code, blocks(again.text)) == (200, whole[place + 1 :]), event_id
        assert again.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert again.headers["x-stream-id"] == stream_id
    assert (await resumed(system, stream_id, ids[-1])).status_code == 204
    by_query = await resumed(system, f"chatcmpl-{stream_id}", "", params={"last_event_id": ids[3]})
    assert blocks(by_query.text) == whole[4:], "the completion's own id is understood, and the parameter"


async def test_a_client_that_was_cut_off_resumes_a_running_stream(system: System) -> None:
    """Half of the answer from one gateway, the rest from another while it is still being generated."""
    got: list[Message] = []
    decoder = Decoder()
    request = request_for({"tokens": 60, "tokens_per_second": 60}, stream=True)
    async with system.http.stream("POST", chat_url(system), json=request) as response:
        stream_id = response.headers["x-stream-id"]
        async for part in response.aiter_bytes():
            got += decoder.feed(part)
            if len(got) > 20:
                break
    rest: list[Message] = []
    decoder_of_rest = Decoder()
    async with system.http.stream(
        "GET", f"{chat_url(system, 1)}/{stream_id}/events", headers={"last-event-id": got[-1].id}
    ) as response:
        async for part in response.aiter_bytes():
            rest += decoder_of_rest.feed(part)
    assert rest[-1].data == "[DONE]"
    pieces = [json.loads(one.data)["choices"][0]["delta"].get("content", "") for one in [*got, *rest][:-1]]
    assert "".join(pieces) == (await system.state(stream_id))["text"]


@pytest.mark.parametrize(
    ("stream_id", "after", "status"),
    [
        ("0" * 36, "", 410),
        ("short", "", 404),
        (None, "x", 400),
        (None, "1-2.x", 400),
        (None, ".1", 400),
        (None, "1-1.1", 400),
    ],
)
async def test_an_impossible_resumption_is_refused_with_a_reason(
    system: System, stream_id: str | None, after: str, status: int
) -> None:
    response = await system.http.post(chat_url(system), json=request_for({"tokens": 2}))
    answer = await resumed(system, stream_id or response.headers["x-stream-id"], after)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_streams_can_be_read_through_other_apis_than_they_were_created_with(system: System) -> None:
    native = await system.create(model="m", script={"tokens": 3}, midstream={"on_disconnect": "continue"})
    *chunks, done = [data_of(one) for one in blocks((await resumed(system, native, "")).text)]
    state = await system.state(native)
    pieces = [choice["delta"].get("content", "") for one in chunks for choice in json.loads(one)["choices"]]
    assert ("".join(pieces), done) == (state["text"], "[DONE]")
    assert json.loads(chunks[-1])["usage"] == state["usage"], "who had no say about the usage gets it"
    response = await system.http.post(chat_url(system), json=request_for({"tokens": 3}))
    reader = await system.follow(response.headers["x-stream-id"], gateway=1).until_end()
    assert "".join(reader.tokens) == response.json()["choices"][0]["message"]["content"]


async def test_a_truncated_answer_has_the_reason_length_in_every_api(system: System) -> None:
    whole = (await system.http.post(chat_url(system), json=request_for({"tokens": 9}, max_tokens=4))).json()
    streamed = await system.http.post(chat_url(system), json=request_for({"tokens": 9}, max_tokens=4, stream=True))
    last = json.loads(data_of(blocks(streamed.text)[-2]))
    assert whole["choices"][0]["finish_reason"] == last["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("first_token", [False, True])
async def test_the_provider_stops_when_the_client_leaves(
    system: System, server: OpenAIServer, stream: bool, first_token: bool
) -> None:
    script = TICKING if first_token else {"stall_after": 0}
    headers = {"x-midstream-on-disconnect": "cancel_after=0.2"}
    running = asyncio.ensure_future(
        system.http.post(chat_url(system), json=request_for(script, stream=stream), headers=headers)
    )
    await wait_until(lambda: server.running == 1, what="the provider answers")
    tokens = server.tokens
    await wait_until(lambda: not first_token or server.tokens > tokens + 5, what="it is in mid-answer")
    aborted = server.aborted
    running.cancel()
    await wait_until(lambda: server.running == 0, what="the provider has stopped")
    assert server.aborted == aborted + 1


async def test_the_response_begins_before_a_silent_provider_s_first_token(system: System, server: OpenAIServer) -> None:
    """The response begins before the first token, so that no proxy takes the connection for dead."""
    began = time.monotonic()
    async with system.http.stream(
        "POST", chat_url(system), json=request_for({"stall_after": 0}, stream=True)
    ) as response:
        assert 4 < time.monotonic() - began < 10
        assert response.status_code == 200
        body = response.aiter_text()
        assert (await anext(body)).startswith(":\n")
        stream_id = response.headers["x-stream-id"]
        await system.http.post(f"{system.gateway_url(1)}/v1/streams/{stream_id}/cancel")
        rest = "".join([part async for part in body])
    assert json.loads(data_of(blocks(rest)[-1]))["error"]["code"] == "cancelled"
    await wait_until(lambda: server.running == 0, what="the provider has stopped")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_sdk_does_not_retry_a_cancelled_answer(system: System, server: OpenAIServer, stream: bool) -> None:
    async with openai.AsyncOpenAI(base_url=f"{system.gateway_url()}/v1", api_key="any", max_retries=2) as client:
        requests = server.requests
        running = asyncio.ensure_future(
            client.chat.completions.create(
                model="m", messages=MESSAGES, stream=stream, extra_body={"script": {"stall_after": 0}}
            )
        )
        await wait_until(lambda: server.running == 1, what="the provider answers")
        [stream_id] = [one for one in [await stream_that_runs(system)] if one]
        await system.http.post(f"{system.gateway_url(1)}/v1/streams/{stream_id}/cancel")
        with pytest.raises(openai.APIStatusError) as raised:
            await running
        assert (raised.value.status_code, raised.value.code) == (499, "cancelled")
        assert server.requests == requests + 1
    await wait_until(lambda: server.running == 0, what="the provider has stopped")


async def stream_that_runs(system: System) -> str:
    for key in await system.logs():
        stream_id = key.decode().partition("{")[2].partition("}")[0]
        if (await system.state(stream_id))["status"] == "running":
            return stream_id
    raise AssertionError("no stream runs")


async def test_a_request_repeated_with_its_idempotency_key_is_one_answer(system: System, server: OpenAIServer) -> None:
    requests = server.requests
    headers = {"idempotency-key": "once"}
    request = request_for({"tokens": 5})
    first, second = [
        (await system.http.post(chat_url(system, n), json=request, headers=headers)).json() for n in (0, 1)
    ]
    assert first == second
    assert server.requests == requests + 1


async def test_a_whole_answer_is_in_the_receipt(system: System) -> None:
    response = await system.http.post(chat_url(system), json=request_for({"tokens": 7}))
    url = f"{system.gateway_url()}/v1/streams/{response.headers['x-stream-id']}/receipt"

    async def delivered() -> bool:
        receipt = (await system.http.get(url)).json()
        return (receipt["delivered"]["tokens"], receipt["undelivered_tokens"]) == (7, 0)

    await wait_until(delivered, what="the receipt has it")


async def test_curl_reads_the_stream(system: System) -> None:
    needs("curl", shutil.which("curl"))
    body = json.dumps(request_for({"tokens": 30, "tokens_per_second": 100}, stream=True))
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "-N", "--fail-with-body", "-H", "Content-Type: application/json", "-d", body),
        chat_url(system),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    events = blocks(output.decode())
    assert len(events) == 33
    assert data_of(events[-1]) == "[DONE]"


async def test_an_sdk_s_stream_is_not_rotated_by_age_and_is_cut_off_when_the_gateway_stops() -> None:
    """An SDK does not reconnect: its response lasts as long as the answer, and an incomplete one must be recognisable."""
    request: dict[str, Any] = {"model": "m", "messages": MESSAGES, "stream": True}
    simulate = {"tokens": 100, "tokens_per_second": 50}
    async with System(gateways=2, gateway_settings={"connection_seconds": 0.3}) as system:
        url = chat_url(system)
        response = await system.http.post(url, json={**request, "simulate": simulate})
        assert len(blocks(response.text)) == 103
        async with (
            system.http.stream("POST", url, json={**request, "simulate": {**simulate, "tokens": 5000}}) as long,
            openai.AsyncOpenAI(base_url=f"{system.gateway_url()}/v1", api_key="any", max_retries=0) as client,
        ):
            follower = await resumed(system, long.headers["x-stream-id"], "")
            assert "[DONE]" not in follower.text, "who can come back is asked to"
            assert "retry:" in follower.text.splitlines()[-1]
            models = [model.id async for model in client.models.list()]
            assert models == ["gpt-4o-mini"], "without a provider there is the default"
            stream = await client.chat.completions.create(
                **request, extra_body={"simulate": {**simulate, "tokens": 5000}}
            )
            await anext(stream)
            system.gateways[0].send(signal.SIGTERM)

            async def read() -> None:
                async for _ in stream:
                    pass

            with pytest.raises(openai.APIConnectionError):
                await read()
            assert await system.gateways[0].exit_code() == 0
