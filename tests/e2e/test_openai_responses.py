"""OpenAI's Responses API with OpenAI's own clients for Python and Node; only the base URL is changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.responses import Response

from tests.support import node
from tests.support.openai_server import OpenAIServer
from tests.support.responses import CALL, SLOW, TEXT, all_of, create, text_of
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOOL: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(server: OpenAIServer) -> AsyncIterator[System]:
    settings = {"provider": "openai", "openai_base_url": server.url, "provider_backoff_seconds": 0.01}
    # A small ring, so that most late readers read the log.
    async with System(gateways=2, settings=settings, gateway_settings={"ring_events": 16}) as system:
        yield system


def native(response_id: str) -> str:
    return response_id.removeprefix("resp_")


async def test_a_whole_response(client: openai.AsyncOpenAI, other: openai.AsyncOpenAI, system: System) -> None:
    response = await create(client, {"text": TEXT}, instructions="Be brief.", metadata={"a": "b"}, temperature=0.5)
    assert isinstance(response, Response)
    Response.model_validate(response.to_dict())
    assert (response.status, response.output_text) == ("completed", "".join(TEXT))
    state = await system.state(native(response.id))
    assert (state["text"], state["metadata"]) == (response.output_text, {"a": "b"})
    assert (response.model, response.object, response.created_at) == (
        "some-model",
        "response",
        int(state["created_at"]),
    )
    assert (response.instructions, response.metadata, response.temperature) == ("Be brief.", {"a": "b"}, 0.5)
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (4, 6, 10)
    assert (await other.responses.retrieve(response.id)).to_dict() == response.to_dict()


async def test_a_stream(client: openai.AsyncOpenAI, system: System) -> None:
    events = await all_of(await create(client, {"text": TEXT}, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert isinstance(events[-1].response, Response)
    assert text_of(events) == events[-1].response.output_text == "".join(TEXT)
    assert (await system.state(native(events[-1].response.id)))["text"] == "".join(TEXT)


async def test_polling(client: openai.AsyncOpenAI, other: openai.AsyncOpenAI) -> None:
    begun = await create(client, SLOW, background=True)
    assert begun.status in ("queued", "in_progress")
    seen = set()

    async def ended() -> bool:
        response = await other.responses.retrieve(begun.id)
        Response.model_validate(response.to_dict())
        seen.add(response.status)
        if response.output:
            assert response.output[0].type == "message"
            assert response.output[0].status == response.status
        return response.status == "completed"

    await wait_until(ended, within_seconds=15, what="the response is completed")
    assert "in_progress" in seen


async def test_the_request_that_the_provider_gets(client: openai.AsyncOpenAI, server: OpenAIServer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    items: list[Any] = [
        {"role": "developer", "content": "Be kind."},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is this?"},
                {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"},
            ],
        },
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "role": "assistant",
            "content": [{"type": "output_text", "text": "A "}, {"type": "output_text", "text": "cat."}],
        },
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Sure?"}]},
    ]
    response = await create(
        client,
        {"tokens": 1, "logprobs": True},
        input=items,
        text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}, "verbosity": "low"},
        reasoning={"effort": "low"},
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        top_p=0.5,
        parallel_tool_calls=False,
        tools=[TOOL],
        tool_choice={"type": "function", "name": "weather"},
        user="somebody",
        extra_body={"script": {"tokens": 1, "logprobs": True}, "seed": 7},
    )
    sent = {key: value for key, value in server.bodies[-1].items() if key not in ("stream", "stream_options", "script")}
    assert sent == {
        "model": "some-model",
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                    {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
                ],
            },
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": "Sure?"},
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
        "verbosity": "low",
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": 2,
        "top_p": 0.5,
        "parallel_tool_calls": False,
        "tools": [
            {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}, "strict": False}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "user": "somebody",
        "seed": 7,
    }
    assert (response.top_p, response.parallel_tool_calls, response.user) == (0.5, False, "somebody")
    assert (response.text.format.name, response.reasoning.effort, response.tools[0].name) == ("n", "low", "weather")
    assert response.output[0].content[0].logprobs[0].logprob == -0.5


async def test_a_truncated_response_is_incomplete(client: openai.AsyncOpenAI, server: OpenAIServer) -> None:
    events = await all_of(await create(client, {"tokens": 20}, stream=True, max_output_tokens=4))
    response = events[-1].response
    assert (events[-1].type, response.status) == ("response.incomplete", "incomplete")
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.max_output_tokens == 4
    assert len(response.output_text.split()) == 4
    assert server.bodies[-1]["max_completion_tokens"] == 4


async def test_a_function_is_called_and_answered(client: openai.AsyncOpenAI, server: OpenAIServer) -> None:
    script = {"text": ["Let", " me look."], "tool_calls": [CALL, {**CALL, "id": "call_2"}]}
    calling = await create(client, script, tools=[TOOL], tool_choice="auto", instructions="Be brief.")
    message, *calls = calling.output
    assert (message.type, message.status) == ("message", "completed")
    assert [(call.name, call.call_id, call.arguments) for call in calls] == [
        ("weather", "call_1", CALL["function"]["arguments"]),
        ("weather", "call_2", CALL["function"]["arguments"]),
    ]
    assert server.bodies[-1]["tools"][0]["function"]["name"] == "weather"
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "mild"} for call in calls]
    answered = await create(
        client, {"text": ["It is mild."]}, input=results, previous_response_id=calling.id, instructions="Be polite."
    )
    assert (answered.output_text, answered.previous_response_id) == ("It is mild.", calling.id)
    assert server.bodies[-1]["messages"] == [
        {"role": "system", "content": "Be polite."},
        {"role": "user", "content": "say something"},
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [CALL, {**CALL, "id": "call_2"}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "mild"},
        {"role": "tool", "tool_call_id": "call_2", "content": "mild"},
    ]
    # Without the earlier response: its output is sent as input.
    await create(client, {"tokens": 1}, input=[{"role": "user", "content": "say something"}, *calling.output, *results])
    assert server.bodies[-1]["messages"][1]["tool_calls"][1]["id"] == "call_2"
    third = await create(client, {"tokens": 1}, input="And now?", previous_response_id=answered.id)
    assert [one["role"] for one in server.bodies[-1]["messages"]] == [
        *"user assistant tool tool assistant user".split()
    ]
    assert third.status == "completed"


async def test_deleted_and_unknown_responses(client: openai.AsyncOpenAI, other: openai.AsyncOpenAI) -> None:
    response = await create(client, {"tokens": 2})
    await other.responses.delete(response.id)
    for response_id in (response.id, "resp_unknown", "chatcmpl-1"):
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(response_id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(response_id, stream=True, starting_after=3)
        with pytest.raises(openai.NotFoundError):
            await client.responses.cancel(response_id)
        if response_id != response.id:  # a delete may be repeated
            with pytest.raises(openai.NotFoundError):
                await client.responses.delete(response_id)
        with pytest.raises(openai.BadRequestError) as refused:
            await create(client, {}, previous_response_id=response_id)
        assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")


async def test_a_response_with_store_false_exists_until_it_has_ended(client: openai.AsyncOpenAI) -> None:
    events = await all_of(await create(client, {"text": TEXT}, stream=True, store=False))
    response = events[-1].response
    assert response.model_extra["store"] is False
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError):
        await create(client, {}, previous_response_id=response.id)
    # A client that has lost the connection can still read the rest.
    assert await all_of(await client.responses.retrieve(response.id, stream=True, starting_after=5)) == events[6:]


async def test_a_refusal_of_the_provider_has_its_status(client: openai.AsyncOpenAI) -> None:
    error = {"message": "no such model", "type": "invalid_request_error", "code": "model_not_found"}
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as refused:
            await create(client, {"fail_status": 404, "error": error}, stream=stream)
        assert refused.value.code == "model_not_found"


async def test_a_failure_in_mid_answer_keeps_the_text(client: openai.AsyncOpenAI, other: openai.AsyncOpenAI) -> None:
    script = {"text": TEXT, "break_after": 3}
    events = await all_of(await create(client, script, stream=True))
    assert [event.type for event in events[-2:]] == ["error", "response.failed"]
    response = events[-1].response
    assert (response.status, response.output_text) == ("failed", "".join(TEXT[:3]))
    assert (response.error.code, response.error.type) == ("server_error", "provider_unavailable")
    assert (await other.responses.retrieve(response.id)).to_dict() == response.to_dict()
    whole = await create(client, script)
    assert (whole.status, whole.output_text) == ("failed", "".join(TEXT[:3]))


async def test_an_answer_restarts_if_the_policy_says_so(client: openai.AsyncOpenAI) -> None:
    script = {"text": TEXT, "break_after": 3, "times": 1, "key": "anew"}
    body = {"script": script, "midstream": {"on_interrupt": "restart"}}
    async with client.responses.stream(model="m", input="say something", extra_body=body) as stream:
        done: list[Any] = [event async for event in stream if event.type == "response.output_item.done"]
        final: Any = await stream.get_final_response()
    assert [event.item.status for event in done] == ["incomplete", "completed"]
    assert final.output_text == "".join(TEXT)
    assert [item.id for item in final.output] == [done[1].item.id]


async def test_a_stream_of_another_api_is_a_response_too(client: openai.AsyncOpenAI, system: System) -> None:
    stream_id = await system.create(script={"text": TEXT, "tool_calls": [CALL]})
    events = await all_of(await client.responses.retrieve(f"resp_{stream_id}", stream=True))
    response = events[-1].response
    assert (response.status, response.output_text) == ("completed", "".join(TEXT))
    assert response.output[1].arguments == CALL["function"]["arguments"]


async def test_the_same_key_gives_the_same_response(client: openai.AsyncOpenAI, server: OpenAIServer) -> None:
    requests_before = server.requests
    headers = {"Idempotency-Key": "of this test"}
    first = await create(client, {"tokens": 3}, extra_headers=headers)
    assert (await create(client, {"tokens": 3}, extra_headers=headers)).to_dict() == first.to_dict()
    assert server.requests == requests_before + 1


async def test_the_length_of_a_conversation_is_limited(client: openai.AsyncOpenAI) -> None:
    first = await create(client, {"tokens": 1}, input="x" * 13_000_000)
    second = await create(client, {"tokens": 1}, input="x" * 13_000_000, previous_response_id=first.id)
    with pytest.raises(openai.BadRequestError) as refused:
        await create(client, {"tokens": 1}, previous_response_id=second.id)
    assert refused.value.param == "previous_response_id"


async def test_openai_s_client_for_node(system: System) -> None:
    urls = [f"{system.gateway_url(index)}/v1" for index in range(2)]
    output = await node.run(
        "responses.mjs", {"baseURL": urls[0], "otherURL": urls[1], "slow": SLOW, "call": {"tool_calls": [CALL]}}
    )
    assert output["retrieved"] == output["whole"]
    assert output["text"] == output["whole"]["output_text"]
    assert output["again"][-1]["response"]["output"] == output["whole"]["output"]
    assert output["nothing"] == []
    numbers = [event["sequence_number"] for event in (*output["first"], *output["rest"])]
    assert numbers == list(range(len(numbers)))
    assert output["rest"][-1]["type"] == "response.completed"
    assert output["deltas"] == output["called"]["output"][-1]["arguments"] == CALL["function"]["arguments"]
    assert output["followed"]["output_text"] == "".join(
        event["delta"] for event in (*output["first"], *output["rest"]) if event["type"] == "response.output_text.delta"
    )
    assert output["refused"] == {"name": "BadRequestError", "status": 400, "param": "conversation"}
