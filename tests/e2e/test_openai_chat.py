"""Chat completions with OpenAI's own clients for Python and Node: they get the base URL, and an API key of ours as theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from shared.api_keys import new_key
from tests.support import node
from tests.support.openai_server import OpenAIServer
from tests.support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "say something"}]
CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city":"Zürich 😀"}'},
}
TEXT = ["Grü", "ße", ' "quoted"\n\n', " \u2028", " data: [DONE]", " 😀"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(server: OpenAIServer) -> AsyncIterator[System]:
    settings = {"provider": "openai", "openai_base_url": server.url, "provider_backoff_seconds": 0.01}
    async with System(settings=settings, api_key=new_key()) as system:
        yield system


async def chunks_of(client: openai.AsyncOpenAI, script: dict[str, Any], **more: Any) -> list[ChatCompletionChunk]:
    stream = await client.chat.completions.create(
        model="some-model", messages=MESSAGES, stream=True, extra_body={"script": script}, **more
    )
    return [chunk async for chunk in stream]


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    choices = (choice for chunk in chunks for choice in chunk.choices if choice.index == index)
    return "".join(choice.delta.content or "" for choice in choices)


async def test_a_stream_has_the_provider_s_text_under_one_name(client: openai.AsyncOpenAI, system: System) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model="some-model", messages=MESSAGES, stream=True, extra_body={"script": {"text": TEXT}}
    )
    chunks = [chunk async for chunk in raw.parse()]
    assert text_of(chunks) == "".join(TEXT)
    [(name, created, model, kind)] = {(one.id, one.created, one.model, one.object) for one in chunks}
    stream_id = raw.headers["x-stream-id"]
    state = await system.state(stream_id)
    assert (name, created) == (f"chatcmpl-{stream_id}", int(state["created_at"]))
    assert (model, kind) == ("some-model", "chat.completion.chunk")
    assert state["usage"]["total_tokens"] == 8, "the log has the usage all the same"
    assert [one.choices[0].delta.role for one in chunks] == ["assistant", *[None] * (len(TEXT) + 1)]
    assert [one.choices[0].finish_reason for one in chunks] == [*[None] * (len(TEXT) + 1), "stop"]
    assert all(one.usage is None for one in chunks)


async def test_the_usage_comes_last_if_it_is_asked_for(client: openai.AsyncOpenAI) -> None:
    chunks = await chunks_of(client, {"text": TEXT}, stream_options={"include_usage": True})
    *before, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 8
    assert all("usage" in one.model_fields_set and one.usage is None for one in before)


async def test_a_whole_answer_is_one_object(client: openai.AsyncOpenAI) -> None:
    script = {"text": TEXT, "about": {"system_fingerprint": "fp_1", "service_tier": "flex"}, "last": {"stop_reason": 7}}
    raw = await client.chat.completions.with_raw_response.create(
        model="some-model", messages=MESSAGES, extra_body={"script": script}
    )
    whole = raw.parse()
    assert whole.id == f"chatcmpl-{raw.headers['x-stream-id']}"
    assert (whole.object, whole.model, len(whole.choices)) == ("chat.completion", "some-model", 1)
    assert (whole.system_fingerprint, whole.service_tier) == ("fp_1", "flex")
    assert whole.choices[0].message.model_dump(exclude_unset=True) == {
        "role": "assistant",
        "content": "".join(TEXT),
        "refusal": None,
    }
    assert (whole.choices[0].finish_reason, whole.choices[0].logprobs) == ("stop", None)
    assert (whole.choices[0].model_extra or {})["stop_reason"] == 7
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (2, 6)


async def test_the_fields_of_a_stream_s_end_are_kept(client: openai.AsyncOpenAI) -> None:
    script = {"tokens": 2, "about": {"system_fingerprint": "fp_1", "service_tier": "flex"}, "last": {"stop_reason": 7}}
    *_, last = await chunks_of(client, script)
    assert (last.system_fingerprint, last.service_tier) == ("fp_1", "flex")
    assert (last.choices[0].model_extra or {})["stop_reason"] == 7


@pytest.mark.parametrize(
    ("script", "more"),
    [
        ({"text": TEXT}, {}),
        ({"tokens": 3, "tool_calls": [CALL, {**CALL, "id": "call_2"}]}, {}),
        ({"tokens": 0, "tool_calls": [CALL]}, {}),
        ({"tokens": 3, "reasoning": ["let", " me", " think"]}, {}),
        ({"refusal": ["I", " won't"]}, {}),
        ({"tokens": 3, "logprobs": True}, {}),
        ({"tokens": 3, "further": [["a", "b"], ["c"]]}, {"n": 3}),
        ({"tokens": 3, "tool_calls": [CALL], "reasoning": ["hm"]}, {"n": 2}),
    ],
)
async def test_whole_and_streamed_are_the_same(
    client: openai.AsyncOpenAI, script: dict[str, Any], more: dict[str, Any]
) -> None:
    """The SDK merges the chunks as it does OpenAI's; the result equals the whole answer that the gateway makes."""
    request: dict[str, Any] = {"model": "some-model", "messages": MESSAGES, "extra_body": {"script": script}, **more}
    whole = await client.chat.completions.create(**request)
    async with client.chat.completions.stream(**request, stream_options={"include_usage": True}) as stream:
        streamed = await stream.get_final_completion()
    assert whole.usage == streamed.usage
    assert len(whole.choices) == more.get("n", 1)
    for one, other in zip(whole.choices, streamed.choices, strict=True):
        assert one.finish_reason == other.finish_reason
        assert (one.message.content or "") == (other.message.content or "")
        assert one.message.refusal == other.message.refusal
        assert one.message.model_extra == other.message.model_extra, "reasoning"
        calls = [[(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
                 for choice in (one, other)]  # fmt: skip
        assert calls[0] == calls[1]
        logprobs = [
            choice.logprobs and [entry.logprob for entry in choice.logprobs.content or []] for choice in (one, other)
        ]
        assert logprobs[0] == logprobs[1]


async def test_choices_calls_and_reasoning_are_separate(client: openai.AsyncOpenAI) -> None:
    script = {"text": ["x", "y"], "further": [["a", "b"], ["c"]], "finish_reason": "length"}
    whole = await client.chat.completions.create(model="m", messages=MESSAGES, n=3, extra_body={"script": script})
    assert [(one.index, one.message.content, one.finish_reason) for one in whole.choices] == [
        (0, "xy", "length"),
        (1, "ab", "stop"),
        (2, "c", "stop"),
    ]
    called = await client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        extra_body={"script": {"tokens": 0, "tool_calls": [CALL], "reasoning": ["h", "m"]}},
    )
    message = called.choices[0].message
    assert (message.content, called.choices[0].finish_reason) == (None, "tool_calls")
    assert [call.model_dump(exclude_unset=True) for call in message.tool_calls or []] == [CALL]
    assert (message.model_extra or {})["reasoning_content"] == "hm"


async def test_parameters_that_are_not_known_pass_untouched(client: openai.AsyncOpenAI, server: OpenAIServer) -> None:
    unknown = {"nested": [1, None, {"a": "b"}]}
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    await client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        temperature=0.25,
        metadata={"theirs": "yes"},
        extra_body={"unknown": unknown, "response_format": format_, "midstream": {"metadata": {"ours": "yes"}}},
    )
    sent = server.bodies[-1]
    assert sent.pop("stream_options") == {"include_usage": True}
    assert sent == {
        "model": "m",
        "messages": MESSAGES,
        "stream": True,
        "temperature": 0.25,
        "metadata": {"theirs": "yes"},
        "unknown": unknown,
        "response_format": format_,
    }


async def test_the_synchronous_client_reads_the_same(running: System) -> None:
    def ask() -> tuple[str | None, str]:
        request: dict[str, Any] = {"model": "m", "messages": MESSAGES, "extra_body": {"script": {"text": TEXT}}}
        with openai.OpenAI(base_url=f"{running.gateway_url()}/v1", api_key=running.api_key, max_retries=0) as client:
            whole = client.chat.completions.create(**request)
            with client.chat.completions.create(**request, stream=True) as stream:
                streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        return whole.choices[0].message.content, streamed

    assert await asyncio.to_thread(ask) == ("".join(TEXT), "".join(TEXT))


STATUSES = [
    (400, openai.BadRequestError),
    (401, openai.AuthenticationError),
    (403, openai.PermissionDeniedError),
    (404, openai.NotFoundError),
    (422, openai.UnprocessableEntityError),
    (429, openai.RateLimitError),
    (503, openai.InternalServerError),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "kind"), STATUSES)
async def test_a_refusal_has_the_provider_s_status_and_message(
    client: openai.AsyncOpenAI, status: int, kind: type[openai.APIStatusError], stream: bool
) -> None:
    error = {"message": "as the provider says it", "type": "a_type", "param": "messages", "code": "a_code", "more": [1]}
    script = {"fail_status": status, "error": error, "retry_after": 150}  # longer than a worker waits
    with pytest.raises(kind) as raised:
        await client.chat.completions.create(model="m", messages=MESSAGES, stream=stream, extra_body={"script": script})
    assert raised.value.status_code == status
    assert raised.value.body == error
    assert (raised.value.code, raised.value.param, raised.value.type) == ("a_code", "messages", "a_type")
    assert raised.value.response.headers["retry-after"] == "150"
    assert raised.value.response.headers["x-stream-id"]


@pytest.mark.parametrize("stream", [False, True])
async def test_retries_of_the_provider_are_invisible(client: openai.AsyncOpenAI, stream: bool) -> None:
    script = {"text": TEXT, "fail_status": 503, "times": 2, "key": f"again-{stream}"}
    answer = await client.chat.completions.create(
        model="m", messages=MESSAGES, stream=stream, extra_body={"script": script}
    )
    if isinstance(answer, openai.AsyncStream):
        assert text_of([chunk async for chunk in answer]) == "".join(TEXT)
    else:
        assert answer.choices[0].message.content == "".join(TEXT)


async def test_a_failure_in_mid_stream_is_an_error_after_the_chunks(client: openai.AsyncOpenAI) -> None:
    error = {"message": "overloaded", "type": "server_error", "param": None, "code": "busy"}
    stream = await client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        stream=True,
        extra_body={"script": {"text": TEXT, "error_chunk_after": 3, "error": error}},
    )
    chunks: list[ChatCompletionChunk] = []

    async def read() -> None:
        async for chunk in stream:
            chunks.append(chunk)

    with pytest.raises(openai.APIError) as raised:
        await read()
    assert text_of(chunks) == "".join(TEXT[:3])
    assert (raised.value.message, raised.value.code, raised.value.body) == ("overloaded", "busy", error)


async def test_without_an_error_of_the_provider_the_error_is_ours(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        await client.chat.completions.create(
            model="m", messages=MESSAGES, extra_body={"script": {"tokens": 5, "break_after": 2}}
        )
    assert (raised.value.status_code, raised.value.code, raised.value.type) == (
        502,
        "provider_unavailable",
        "server_error",
    )


@pytest.mark.parametrize(("policy", "base"), [("restart", 0), ("continue", 2)])
async def test_a_requested_restart_is_in_the_chunks(client: openai.AsyncOpenAI, policy: str, base: int) -> None:
    stream = await client.chat.completions.create(
        model="m",
        messages=MESSAGES,
        stream=True,
        extra_headers={"x-midstream-on-interrupt": policy},
        extra_body={"script": {"text": TEXT, "break_after": 2, "times": 1, "key": policy}},
    )
    restarts: list[Any] = []
    pieces: list[str] = []
    async for chunk in stream:
        assert chunk.choices, "what clients look at without asking is there"
        restarted = (chunk.model_extra or {}).get("midstream", {}).get("restarted")
        if restarted:
            restarts.append(restarted)
            del pieces[restarted["base"] :]
        elif chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
    assert restarts == [{"attempt": 2, "base": base, "reason": "provider_unavailable"}]
    assert pieces == TEXT


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream_options": []}, "stream_options"),
        ({"model": "m" * 257}, "model"),
        ({"midstream": {"on_interrupt": "never"}}, "midstream.on_interrupt"),
        ({"midstream": 1}, "midstream"),
    ],
)
async def test_the_wrong_parameter_of_a_request_is_named(system: System, body: dict[str, Any], param: str) -> None:
    response = await system.http.post(
        f"{system.gateway_url()}/v1/chat/completions", json={"model": "m", "messages": MESSAGES, **body}
    )
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, None)
    assert param in error["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"x-midstream-on-interrupt": "never"},
        {"x-midstream-on-disconnect": "5"},
        {"x-midstream-on-disconnect": "cancel_after=soon"},
        {"x-midstream-pace-ms": "fast"},
        {"x-midstream-pace-ms": "5001"},
        {"idempotency-key": "k" * 256},
    ],
)
async def test_the_wrong_header_is_named(system: System, headers: dict[str, str]) -> None:
    url = f"{system.gateway_url()}/v1/chat/completions"
    response = await system.http.post(url, json={"messages": MESSAGES}, headers=headers)
    assert response.status_code == 400
    assert next(iter(headers)) in response.json()["error"]["message"].lower()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
async def test_a_malformed_body_is_refused_in_openai_s_shape(system: System, body: bytes) -> None:
    response = await system.http.post(f"{system.gateway_url()}/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_the_models_are_the_provider_s(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["scripted"]
    assert (await client.models.retrieve("scripted")).owned_by == "tests"
    with pytest.raises(openai.NotFoundError) as raised:
        await client.models.retrieve("vendor/unknown")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


async def test_a_request_that_names_no_model_gets_one_that_the_provider_has(
    system: System, server: OpenAIServer
) -> None:
    url, messages = system.gateway_url(), [{"role": "user", "content": "no model"}]
    chat = [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "no model"}]}]
    for path, body in (
        ("/v1/streams", {"messages": messages}),
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/responses", {"input": "no model"}),
        ("/api/chat", {"id": "c", "messages": chat}),
    ):
        assert (await system.http.post(url + path, json=body)).status_code in (200, 201), path
    assert (await system.http.get(f"{url}/stream?prompt=no%20model")).status_code == 200
    asked = [body["model"] for body in server.bodies if "no model" in str(body["messages"])]
    assert asked == ["scripted"] * 5


async def test_node_reads_the_same(system: System) -> None:
    error = {"message": "overloaded", "type": "server_error", "param": None, "code": "busy"}
    output = await node.run(
        "chat.mjs",
        {
            "baseURL": f"{system.gateway_url()}/v1",
            "apiKey": system.api_key,
            "text": {"text": TEXT},
            "call": {"tokens": 1, "tool_calls": [CALL]},
            "broken": {"text": TEXT, "error_chunk_after": 2, "error": error},
            "refused": {"fail_status": 401, "error": {"message": "no", "type": "t", "code": "invalid_api_key"}},
        },
    )
    pieces = [choice["delta"].get("content") or "" for chunk in output["chunks"] for choice in chunk["choices"]]
    assert "".join(pieces) == output["whole"]["choices"][0]["message"]["content"] == "".join(TEXT)
    assert {chunk["id"] for chunk in output["chunks"]} == {f"chatcmpl-{output['streamId']}"}
    assert output["chunks"][-1]["usage"] == output["whole"]["usage"]
    [called] = output["calls"]
    assert (called["name"], called["arguments"]) == ("weather", CALL["function"]["arguments"])
    assert [output[one]["choices"][0]["message"]["tool_calls"] for one in ("final", "called")] == [[CALL], [CALL]]
    assert [output[one]["choices"][0]["finish_reason"] for one in ("final", "called")] == ["tool_calls"] * 2
    assert output["received"] == "".join(TEXT[:2])
    assert (output["midStream"]["code"], output["midStream"]["type"]) == ("busy", "server_error")
    assert output["midStream"]["message"] == "overloaded"
    assert (output["refused"]["name"], output["refused"]["status"]) == ("AuthenticationError", 401)
    assert output["refused"]["code"] == "invalid_api_key"
    assert output["models"] == ["scripted"]


async def test_two_concurrent_streams_do_not_mix(client: openai.AsyncOpenAI) -> None:
    scripts: list[dict[str, Any]] = [{"text": [f"{number}-", "a", f"-{number}"]} for number in range(20)]
    answers = await asyncio.gather(*(chunks_of(client, script) for script in scripts))
    assert [text_of(chunks) for chunks in answers] == ["".join(script["text"]) for script in scripts]
