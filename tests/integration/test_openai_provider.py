"""The provider, with a server that speaks OpenAI's protocol, and breaks it on request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from producer.openai_provider import OpenAIProvider
from producer.provider import Finish, Refused, Unavailable
from shared.events import Item
from tests.support.hearing import Heard, answer_of
from tests.support.openai_server import OpenAIServer
from tests.support.redis_server import free_port
from tests.support.waiting import wait_until


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer() as server:
        yield server


@pytest.fixture
async def provider(server: OpenAIServer) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(api_key="", base_url=server.url, default_model="default", connections_max=10)
    yield provider
    await provider.close()


def request_for(script: dict[str, Any] | None = None, **parameters: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "say something"}], "script": script or {}, **parameters}


async def failed_answer_of(
    provider: OpenAIProvider, request: dict[str, Any], error: type[Exception]
) -> tuple[list[Item], Any]:
    """Returns the items before the error, and the error."""
    hearer = Heard()
    with pytest.raises(error) as raised:
        await provider.generate(request, "", hearer)
    return hearer.items, raised.value


async def test_tokens_usage_and_reason_are_the_providers(provider: OpenAIProvider, server: OpenAIServer) -> None:
    text = ["Hel", "lo", " wörld", " 😀", "\n\n", "\x00", '"}']
    items, finish = await answer_of(provider, request_for({"text": text}))
    assert items == text
    usage = {"prompt_tokens": 2, "completion_tokens": 7, "total_tokens": 9}
    assert finish == Finish("stop", usage, {"provider": {"model": "default"}})
    assert server.tokens == 7


async def test_parameters_pass_through_untouched(provider: OpenAIProvider, server: OpenAIServer) -> None:
    unknown = {"nested": [1, None, {"a": "b"}]}
    request = request_for(
        {"tokens": 1},
        temperature=0.3,
        unknown=unknown,
        stream=False,
        stream_options={"include_obfuscation": False},
        simulate={"tokens": 5},
    )
    await answer_of(provider, request)
    [body] = server.bodies
    assert body.pop("stream_options") == {"include_usage": True, "include_obfuscation": False}
    assert body == {
        "model": "default",
        "messages": request["messages"],
        "stream": True,
        "temperature": 0.3,
        "unknown": unknown,
        "script": {"tokens": 1},
    }


async def test_the_request_s_model_is_used(provider: OpenAIProvider, server: OpenAIServer) -> None:
    request = request_for({"tokens": 1}, model="a-model")
    assert provider.model_of(request) == "a-model"
    await answer_of(provider, request)
    assert server.bodies[0]["model"] == "a-model"


async def test_a_truncated_answer_has_the_reason_length(provider: OpenAIProvider) -> None:
    items, finish = await answer_of(provider, request_for({"tokens": 10}, max_tokens=3))
    assert len(items) == 3
    assert finish.reason == "length"


async def test_an_answer_continues_a_partial_text(provider: OpenAIProvider, server: OpenAIServer) -> None:
    whole, _ = await answer_of(provider, request_for({"tokens": 10}))
    begun = [item for item in whole[:4] if isinstance(item, str)]
    request = request_for({"tokens": 10})
    rest, _ = await answer_of(provider, request, "".join(begun))
    assert begun + rest == whole
    assert len(request["messages"]) == 1, "the request itself stays as it was"


async def test_tool_calls_reasoning_and_logprobs_are_kept(provider: OpenAIProvider) -> None:
    call: dict[str, Any] = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city":"Zürich 😀"}'},
    }
    items, finish = await answer_of(
        provider, request_for({"text": ["a"], "reasoning": ["hm", " so"], "tool_calls": [call]})
    )
    assert finish.reason == "tool_calls"
    deltas: list[Any] = [orjson.loads(item)["delta"] if isinstance(item, bytes) else item for item in items]
    assert deltas[:3] == [{"reasoning_content": "hm"}, {"reasoning_content": " so"}, "a"]
    pieces = [delta["tool_calls"][0] for delta in deltas[3:]]
    assert pieces[0]["id"] == "call_1"
    assert pieces[0]["function"]["name"] == "weather"
    assert "".join(piece["function"]["arguments"] for piece in pieces) == call["function"]["arguments"]

    items, _ = await answer_of(provider, request_for({"text": ["a"], "logprobs": True}))
    [only] = items
    assert orjson.loads(only) == {
        "delta": {"content": "a"},
        "logprobs": {"content": [{"token": "a", "logprob": -0.5}]},
    }


async def test_of_several_choices_the_first_is_text_and_the_others_are_kept(provider: OpenAIProvider) -> None:
    items, finish = await answer_of(provider, request_for({"text": ["a", "b"]}, n=3))
    assert [item for item in items if isinstance(item, str)] == ["a", "b"]
    others = [orjson.loads(item) for item in items if isinstance(item, bytes)]
    for index in (1, 2):
        mine = [other for other in others if other["index"] == index]
        assert [one["delta"].get("content", "") for one in mine] == ["a", "b", ""]
        assert mine[-1]["finish_reason"] == "stop"
    assert finish.reason == "stop"


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
async def test_temporary_errors_are_retryable(provider: OpenAIProvider, server: OpenAIServer, status: int) -> None:
    script = {"fail_status": status, "retry_after": 2.5, "times": 1, "key": "k", "tokens": 1}
    items, error = await failed_answer_of(provider, request_for(script), Unavailable)
    assert (items, error.retryable, error.retry_after_seconds) == ([], True, 2.5)
    assert str(status) in str(error)
    assert server.requests == 1, "the SDK itself tries nothing again"
    items, _ = await answer_of(provider, request_for(script))
    assert len(items) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_refusals_are_not_retryable(provider: OpenAIProvider, status: int) -> None:
    error = {"message": "the reason why", "type": "invalid_request_error"}
    items, refused = await failed_answer_of(provider, request_for({"fail_status": status, "error": error}), Refused)
    assert (items, refused.retryable, refused.code) == ([], False, "provider_refused")
    assert "the reason why" in str(refused)


@pytest.mark.parametrize(
    ("status", "error", "kind", "code"),
    [
        (400, {"message": "no", "code": "content_filter"}, Refused, "content_filtered"),
        (429, {"message": "no", "type": "insufficient_quota"}, Refused, "provider_refused"),
        (429, {"message": "no", "type": "rate_limit"}, Unavailable, "provider_unavailable"),
    ],
)
async def test_the_type_of_an_error_decides_whether_it_is_retryable(
    provider: OpenAIProvider, status: int, error: dict[str, Any], kind: type[Exception], code: str
) -> None:
    _, raised = await failed_answer_of(provider, request_for({"fail_status": status, "error": error}), kind)
    assert raised.code == code


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "overloaded", "type": "server_error"}, Unavailable),
        ({"message": "too long", "type": "invalid_request_error"}, Refused),
        ({"message": "no", "code": "content_filter"}, Refused),
    ],
)
async def test_an_error_inside_the_answer_ends_it(
    provider: OpenAIProvider, error: dict[str, Any], kind: type[Exception]
) -> None:
    items, raised = await failed_answer_of(provider, request_for({"error_chunk_after": 3, "error": error}), kind)
    assert len(items) == 3
    assert error["message"] in str(raised)


async def test_an_interrupted_answer_is_retryable(provider: OpenAIProvider) -> None:
    script = {"break_after": 3, "times": 1, "tokens": 6, "tokens_per_second": 200}
    items, error = await failed_answer_of(provider, request_for(script), Unavailable)
    assert len(items) == 3
    assert error.code == "provider_unavailable"
    items, _ = await answer_of(provider, request_for(script))
    assert len(items) == 6


async def test_an_answer_without_a_finish_reason_is_incomplete(provider: OpenAIProvider) -> None:
    items, error = await failed_answer_of(provider, request_for({"tokens": 5, "no_finish": True}), Unavailable)
    assert len(items) == 5
    assert "finish_reason" in str(error)


async def test_an_unreachable_provider_is_unavailable() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    provider = OpenAIProvider(api_key="", base_url=url, default_model="m", connections_max=1)
    try:
        await failed_answer_of(provider, request_for(), Unavailable)
    finally:
        await provider.close()


@pytest.mark.parametrize("pace", [50, 0])
async def test_cancelling_stops_the_provider(provider: OpenAIProvider, server: OpenAIServer, pace: float) -> None:
    hearer = Heard()
    generating = asyncio.create_task(
        provider.generate(request_for({"tokens": 1_000_000, "tokens_per_second": pace}), "", hearer)
    )
    await wait_until(lambda: hearer.times > 0)
    assert server.running == 1
    generating.cancel()
    await asyncio.gather(generating, return_exceptions=True)
    assert generating.cancelled()
    await wait_until(lambda: server.running == 0, what="the connection was closed")
    assert server.aborted == 1
    assert server.tokens < 1_000_000


async def test_the_provider_waits_for_a_hearer_without_room(provider: OpenAIProvider) -> None:
    hearer = Heard(enough=True)
    finish = await provider.generate(request_for({"tokens": 500, "tokens_per_second": 5000}), "", hearer)
    assert len(hearer.items) == 500
    assert finish.reason == "stop"
    assert hearer.times > 1
    assert hearer.waits in (hearer.times, hearer.times - 1)  # there is no need to wait for what ended the answer


async def test_an_exception_of_the_hearer_ends_the_answer(provider: OpenAIProvider, server: OpenAIServer) -> None:
    def refuse(items: list[Item]) -> None:
        raise LookupError("no place")

    with pytest.raises(LookupError, match="no place"):
        await provider.generate(request_for({"tokens": 1_000_000}), "", Heard(on_take=refuse))
    await wait_until(lambda: server.running == 0, what="the connection was closed")


async def test_cancelling_the_reader_of_a_stalled_answer_stops_the_provider(
    provider: OpenAIProvider, server: OpenAIServer
) -> None:
    reading = asyncio.create_task(answer_of(provider, request_for({"stall_after": 2})))
    await wait_until(lambda: server.tokens == 2)
    assert not reading.done()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await wait_until(lambda: server.running == 0)
    assert server.aborted == 1


async def test_more_answers_than_connections_wait_for_their_turn(server: OpenAIServer) -> None:
    provider = OpenAIProvider(api_key="", base_url=server.url, default_model="m", connections_max=4)
    try:
        answers = await asyncio.gather(*(answer_of(provider, request_for({"tokens": 5})) for _ in range(20)))
        assert [len(items) for items, _ in answers] == [5] * 20
        assert server.running == 0
        assert server.aborted == 0
    finally:
        await provider.close()
