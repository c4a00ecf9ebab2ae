"""A worker that calls an OpenAI-compatible server over HTTP; the server's counters show what was generated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import httpx
import pytest
import pytest_asyncio

from shared.keys import log_key
from tests.support.needs import needs
from tests.support.openai_server import OpenAIServer
from tests.support.system import System, answer_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TICKING = {"tokens": 2000, "tokens_per_second": 50}
GRACE_SECONDS = 0.5


@dataclass
class Model:
    server: OpenAIServer
    system: System


@pytest_asyncio.fixture(loop_scope="module")
async def model(server: OpenAIServer, system: System) -> AsyncIterator[Model]:
    """Yields the server and the system, both idle before and after the test."""
    assert server.running == 0
    yield Model(server, system)
    await wait_until(lambda: server.running == 0, what="the provider is at rest")


async def cancel(system: System, stream_id: str) -> dict[str, Any]:
    response = await system.http.post(f"{system.gateway_url(1)}/v1/streams/{stream_id}/cancel")
    assert response.status_code == 200
    state: dict[str, Any] = response.json()
    return state


async def test_answer_and_usage_are_the_provider_s(model: Model) -> None:
    words = ["Grüße", " 👋🏽", ' "quoted"\n', " \u2028", " end"]
    stream_id = await model.system.create("one two three", model="some-model", script={"text": words})
    answer = answer_of((await model.system.follow(stream_id).until_end()).messages)
    assert answer.started == {"attempt": 1, "model": "some-model"}
    assert answer.tokens == words
    assert answer.end_data == {
        "finish_reason": "stop",
        "truncated": False,
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    }
    state = await model.system.state(stream_id)
    assert (state["status"], state["text"], state["tokens"]) == ("completed", "".join(words), 5)
    assert state["usage"] == answer.end_data["usage"]


async def test_parameters_reach_the_provider_untouched(model: Model) -> None:
    more: dict[str, Any] = {
        "temperature": 0.3,
        "stop": ["\n\n"],
        "logit_bias": {"50256": -100},
        "user": "someone",
        "unheard_of": [1],
    }
    stream_id = await model.system.create("hello", model="m", midstream={"metadata": {"a": "b"}}, **more)
    await model.system.until_status(stream_id, "completed")
    body = model.server.bodies[-1]
    assert {name: body.get(name) for name in more} == more
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert (body["model"], body["stream"]) == ("m", True)
    assert "midstream" not in body


async def test_cut_off_by_length(model: Model) -> None:
    stream_id = await model.system.create("long", max_tokens=7, script={"tokens": 50})
    answer = answer_of((await model.system.follow(stream_id).until_end()).messages)
    assert len(answer.tokens) == 7
    assert (answer.end_data["finish_reason"], answer.end_data["truncated"]) == ("length", True)
    state = await model.system.state(stream_id)
    assert (state["status"], state["truncated"]) == ("completed", True)


async def test_tool_calls_are_deltas(model: Model) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Zürich"}'}}
    stream_id = await model.system.create("weather?", script={"text": ["Let me", " see."], "tool_calls": [call]})
    answer = answer_of((await model.system.follow(stream_id).until_end()).messages)
    assert answer.tokens == ["Let me", " see."]
    pieces = [piece for delta in answer.deltas for piece in delta["tool_calls"]]
    assert pieces[0]["id"] == "call_1"
    assert pieces[0]["function"]["name"] == "weather"
    assert "".join(piece["function"]["arguments"] for piece in pieces) == call["function"]["arguments"]  # type: ignore[index]
    assert answer.end_data["finish_reason"] == "tool_calls"
    assert (await model.system.state(stream_id))["text"] == "Let me see."


@pytest.mark.alone("the provider's connection is closed within a second")
async def test_cancel_stops_the_provider_within_a_second(model: Model) -> None:
    stream_id = await model.system.create("cancel", script=TICKING)
    reader = model.system.follow(stream_id)
    await reader.until_tokens(20)
    state = await cancel(model.system, stream_id)
    assert state["status"] == "cancelled"
    await wait_until(lambda: model.server.running == 0, within_seconds=1.0, what="the provider's connection is closed")
    produced = model.server.tokens
    answer = answer_of((await reader.until_end()).messages)
    assert (answer.end, answer.end_data) == ("cancelled", {"by": "client"})
    assert answer.text == state["text"]
    assert await cancel(model.system, stream_id) == state  # a second cancel changes nothing
    assert model.server.tokens == produced


async def test_tokens_at_a_pace_keep_their_ids_and_reach_readers_together(model: Model) -> None:
    script = {"tokens": 60, "tokens_per_second": 100}
    stream_id = await model.system.create("pace", script=script, midstream={"pace_ms": 100})
    reader = await model.system.follow(stream_id).until_end()
    assert answer_of(reader.messages).end == "done"
    ids = [message.id for message in reader.messages if message.event == "message"]
    assert ids == [f"1-{offset}" for offset in range(1, 61)]
    entries = await model.system.commands.xlen(log_key(stream_id))
    assert entries <= 3 + 60 / 100 / 0.1 + 6, "accepted, started, done, and about ten a second"


@pytest.mark.parametrize("stall_after", [0, 5])
async def test_cancel_while_the_provider_is_silent(model: Model, stall_after: int) -> None:
    stream_id = await model.system.create("silent", script={"tokens": 50, "stall_after": stall_after})
    reader = model.system.follow(stream_id)
    await reader.until_event("started")
    await reader.until_tokens(stall_after)
    await wait_until(lambda: model.server.running == 1, what="the provider was asked")
    await cancel(model.system, stream_id)
    await wait_until(lambda: model.server.running == 0, what="the provider's connection is closed")
    assert answer_of((await reader.until_end()).messages).end == "cancelled"


async def test_the_last_reader_leaves(model: Model) -> None:
    midstream = {"on_disconnect": {"cancel_after": GRACE_SECONDS}}
    stream_id = await model.system.create("leave", script=TICKING, midstream=midstream)
    readers = [model.system.follow(stream_id, gateway=index) for index in (0, 1)]
    for reader in readers:
        await reader.until_tokens(10)
    await readers[0].leave()
    await readers[1].until_tokens(
        len(readers[1].tokens) + int(50 * 3 * GRACE_SECONDS)
    )  # one reader stays, for far longer than the limit
    assert model.server.running == 1
    await readers[1].leave()
    await wait_until(lambda: model.server.running == 0, within_seconds=GRACE_SECONDS + 1.5, what="it has stopped")
    answer = answer_of((await model.system.follow(stream_id).until_end()).messages)
    assert (answer.end, answer.end_data) == ("cancelled", {"by": "disconnect"})
    assert (await model.system.state(stream_id))["status"] == "cancelled"


async def test_the_first_reader_may_come_a_moment_after_the_first_tokens(model: Model) -> None:
    """With `cancel_after: 0`, too: who asks and follows in one request subscribes while the worker may have begun."""
    midstream = {"on_disconnect": {"cancel_after": 0}}
    stream_id = await model.system.create("late", script=TICKING, midstream=midstream)

    async def has_begun() -> bool:
        return int((await model.system.state(stream_id))["tokens"]) >= 5

    await wait_until(has_begun, what="5 tokens, in 0.1 of the 0.5 s that a stream waits for its first reader")
    reader = model.system.follow(stream_id)
    await reader.until_tokens(50)
    await reader.leave()
    state = await model.system.until_status(stream_id, "cancelled")
    assert state["cancelled_by"] == "disconnect"


async def test_a_stream_without_any_reader_is_cancelled(model: Model) -> None:
    midstream = {"on_disconnect": {"cancel_after": GRACE_SECONDS}}
    stream_id = await model.system.create("nobody", script=TICKING, midstream=midstream)
    await model.system.until_status(stream_id, "cancelled", within_seconds=GRACE_SECONDS + 3.0)


async def test_a_reader_that_returns_in_time_keeps_the_stream(model: Model) -> None:
    midstream = {"on_disconnect": {"cancel_after": 2}}
    stream_id = await model.system.create(
        "reload", script={"tokens": 200, "tokens_per_second": 50}, midstream=midstream
    )
    parts = []
    after = ""
    for gateway in (0, 1, 0):
        reader = model.system.follow(stream_id, gateway=gateway, after=after)
        await reader.until_tokens(30)
        await reader.leave()
        parts.append(reader.messages)
        after = reader.last_id
    last = await model.system.follow(stream_id, gateway=1, after=after).until_end()
    answer = answer_of(*parts, last.messages)
    assert (answer.end, len(answer.tokens)) == ("done", 200)


async def test_continue_needs_no_reader(model: Model) -> None:
    midstream = {"on_disconnect": "continue"}
    stream_id = await model.system.create("alone", script={"tokens": 60, "tokens_per_second": 60}, midstream=midstream)
    assert (await model.system.state(stream_id, wait_seconds=20))["tokens"] == 60


async def test_delete_stops_the_provider_and_leaves_a_tombstone(model: Model) -> None:
    stream_id = await model.system.create("delete", script=TICKING)
    reader = model.system.follow(stream_id)
    await reader.until_tokens(10)
    url = f"{model.system.gateway_url(1)}/v1/streams/{stream_id}"
    assert (await model.system.http.delete(url)).status_code == 204
    await wait_until(lambda: model.server.running == 0, what="the provider's connection is closed")
    assert answer_of((await reader.until_end()).messages).end == "cancelled"
    for request in (model.system.http.get(url), model.system.http.get(url + "/events")):
        assert (await request).status_code == 404
    assert (await model.system.http.delete(url)).status_code == 204, "repeated"
    keys = [key async for key in model.system.commands.scan_iter(match=f"*{stream_id}*")]
    assert keys == [log_key(stream_id)]
    entries = await model.system.commands.xrange(keys[0])
    assert [list(fields) for _, fields in entries] == [[b"deleted"]]
    assert 0 < await model.system.commands.ttl(keys[0]) <= 300


async def test_refused_by_the_provider(model: Model) -> None:
    error = {"message": "no such model", "type": "invalid_request_error", "code": "model_not_found"}
    stream_id = await model.system.create("refused", script={"fail_status": 404, "error": error})
    answer = answer_of((await model.system.follow(stream_id).until_end()).messages)
    assert answer.end == "failed"
    assert answer.end_data["retryable"] is False
    assert "no such model" in answer.end_data["message"]
    assert (await model.system.state(stream_id))["error"] == answer.end_data


async def test_retries_before_the_first_token_are_invisible(model: Model) -> None:
    script = {"tokens": 10, "key": "busy", "times": 2, "fail_status": 429, "retry_after": 0.05}
    stream_id = await model.system.create("again", script=script)
    answer = answer_of((await model.system.follow(stream_id).until_end()).messages)
    assert (answer.end, len(answer.tokens), answer.restarted) == ("done", 10, [])


@pytest.mark.parametrize("policy", ["restart", "continue", "fail"])
async def test_the_provider_breaks_off_in_mid_answer(model: Model, policy: str) -> None:
    script = {"tokens": 40, "tokens_per_second": 200, "key": policy, "times": 1, "break_after": 15}
    whole = await model.system.create(f"break {policy}", script={"tokens": 40})
    expected = (await model.system.until_status(whole, "completed"))["text"]
    stream_id = await model.system.create(f"break {policy}", script=script, midstream={"on_interrupt": policy})
    answer = answer_of((await model.system.follow(stream_id).until_end()).messages)
    state = await model.system.state(stream_id)
    assert answer.text == state["text"]
    if policy == "fail":
        assert (answer.end, len(answer.tokens)) == ("failed", 15)
        assert answer.end_data["retryable"] is True
        assert expected.startswith(answer.text)
    else:
        assert (answer.end, answer.text) == ("done", expected)
        assert [one["base"] for one in answer.restarted] == [15 if policy == "continue" else 0]


@pytest.mark.parametrize("wrong", [{"stream_options": 5}, {"stream_options": "all"}, {"extra": {"a": float(10**18)}}])
async def test_odd_parameters_end_in_an_answer_or_a_clear_error(model: Model, wrong: dict[str, Any]) -> None:
    response = await model.system.http.post(
        f"{model.system.gateway_url()}/v1/streams",
        json={"messages": [{"role": "user", "content": "odd"}], "script": {"tokens": 3}, **wrong},
    )
    if response.status_code != 400:
        assert response.status_code == 201
        await model.system.until_status(response.json()["id"], "completed", "failed")


async def test_clients_that_split_lines_by_unicode(model: Model) -> None:
    """httpx and requests take U+0085, U+2028 and U+2029 for line ends: no event of any API may have one."""
    needs("requests (a part of `pip install -e .[dev]`)", find_spec("requests"))
    import requests

    said = ["a\u2028b", "c\u2029", "\u0085d", "e\x0b\x0c\x1c\x1e\r\nf", " end"]
    script = {"text": said, "reasoning": ["r\u2028"]}
    body = {"model": "m\u2028", "messages": [{"role": "user", "content": "x"}], "script": script, "stream": True}
    base = model.system.gateway_url()

    def of_requests(url: str, body: Any) -> list[str]:
        with requests.request("POST" if body else "GET", url, json=body, stream=True, timeout=20) as response:
            return [str(line) for line in response.iter_lines(decode_unicode=True)]

    async def of_httpx(url: str, body: Any) -> list[str]:
        async with (
            httpx.AsyncClient(trust_env=False, timeout=20) as client,
            client.stream("POST" if body else "GET", url, json=body) as response,
        ):
            return [line async for line in response.aiter_lines()]

    stream_id = await model.system.create("x", script=script)
    native = f"{base}/v1/streams/{stream_id}/events"
    responses = {"model": "m\u2028", "input": "x", "script": script, "stream": True}
    for url, body_ in ((native, None), (f"{base}/v1/chat/completions", body), (f"{base}/v1/responses", responses)):
        for lines in (await of_httpx(url, body_), await asyncio.to_thread(of_requests, url, body_)):
            data = [json.loads(line[6:]) for line in lines if line.startswith("data: ") and line != "data: [DONE]"]
            assert len(data) >= 7
            fields = {line.partition(":")[0] for line in lines if line}
            assert fields <= {"data", "id", "event", "retry", ""}, fields
            texts = [
                one.get("token") or one.get("delta") or (one.get("choices") or [{}])[0].get("delta", {}).get("content")
                for one in data
                if one.get("type", "response.output_text.delta") == "response.output_text.delta"
            ]
            assert "".join(text for text in texts if isinstance(text, str)) == "".join(said)
