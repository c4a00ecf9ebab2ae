"""The AI SDK's protocol over HTTP. The SDK itself, in Node, reads the answers and checks them with its schemas."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
import pytest_asyncio

from shared.keys import chat_key
from tests.support import ai_sdk
from tests.support.openai_server import OpenAIServer
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOOK = {"id": "call_7", "type": "function", "function": {"name": "look", "arguments": '{"at":"the sea"}'}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(server: OpenAIServer) -> AsyncIterator[System]:
    settings = {"provider": "openai", "openai_base_url": server.url, "keepalive_seconds": 1}  # comments in between
    async with System(gateways=2, settings=settings) as system:
        yield system


def user(text: str) -> dict[str, Any]:
    return {"id": "u1", "role": "user", "parts": [{"type": "text", "text": text}]}


async def post(system: System, path: str, body: Any = None, *, gateway: int = 0) -> httpx2.Response:
    content = b"" if body is None else json.dumps(body).encode()
    return await system.http.post(f"{system.gateway_url(gateway)}{path}", content=content)


async def ask(system: System, chat: str, *messages: dict[str, Any], gateway: int = 0, **body: Any) -> httpx2.Response:
    """Sends what useChat's transport sends, and reads the response to its end."""
    question = {"id": chat, "messages": list(messages) or [user("hello")], "trigger": "submit-message", **body}
    return await post(system, "/api/chat", question, gateway=gateway)


class Asked:
    """A request as useChat's transport sends it, whose response is read in the background."""

    def __init__(self, system: System, chat: str, **body: Any) -> None:
        self.body = b""
        self.stream_id = ""
        question = {"id": chat, "messages": [user("hello")], "trigger": "submit-message", **body}
        self.task = asyncio.create_task(self._read(system, question))

    async def _read(self, system: System, question: dict[str, Any]) -> None:
        async with system.http.stream("POST", f"{system.gateway_url()}/api/chat", json=question) as response:
            assert response.status_code == 200
            self.stream_id = response.headers["x-stream-id"]
            async for part in response.aiter_bytes():
                self.body += part

    async def until_deltas(self, count: int) -> None:
        await wait_until(lambda: self.body.count(b'"text-delta"') >= count, within_seconds=15.0)

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def resume(system: System, chat: str, *, gateway: int = 0, query: str = "") -> httpx2.Response:
    return await system.http.get(f"{system.gateway_url(gateway)}/api/chat/{quote(chat, safe='')}/stream{query}")


def without_comments(body: bytes) -> bytes:
    return b"\n".join(line for line in body.split(b"\n") if not line.startswith(b":"))


def text_of(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["parts"] if part["type"] == "text")


@pytest.mark.parametrize("version", ["ai", "ai-v6"])
async def test_every_part_is_valid_for_the_sdk(system: System, version: str) -> None:
    """An answer with all kinds of parts: reasoning, text, a tool call, usage; for the newest version of the SDK and the one before."""
    script = {"reasoning": ["let me", " see"], "text": ["Grüße 👋🏽", ' "q"\n', "\u2028"], "tool_calls": [LOOK]}
    answer = await ask(system, "every-part", script=script)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.content.endswith(b"data: [DONE]\n\n")
    seen = await ai_sdk.read(answer.content, version)
    assert not seen["wrong"]
    assert not seen["errors"]
    message, stream_id = seen["message"], answer.headers["x-stream-id"]
    assert message["id"] == f"msg_{stream_id}"
    assert message["metadata"]["streamId"] == stream_id
    assert set(message["metadata"]["usage"]) == {"inputTokens", "outputTokens", "totalTokens"}
    shown = [{key: part[key] for key in part if key in ("type", "text", "state", "input")} for part in message["parts"]]
    assert shown == [
        {"type": "step-start"},
        {"type": "reasoning", "text": "let me see", "state": "done"},
        {"type": "text", "text": 'Grüße 👋🏽 "q"\n\u2028', "state": "done"},
        {"type": "tool-look", "state": "input-available", "input": {"at": "the sea"}},
    ]
    assert seen["chunks"][-1]["finishReason"] == "tool-calls"


async def test_cut_off(system: System) -> None:
    seen = await ai_sdk.read((await ask(system, "cut-off", max_tokens=3)).content)
    assert seen["chunks"][-1]["finishReason"] == "length"
    assert len(text_of(seen["message"]).split()) == 3


async def test_a_provider_that_fails_in_mid_answer(system: System) -> None:
    script = {"text": ["a", "b", "c"], "error_chunk_after": 2}
    answer = await ask(system, "fails", script=script, midstream={"on_interrupt": "fail"})
    seen = await ai_sdk.read(answer.content)
    assert not seen["wrong"]
    assert [chunk["type"] for chunk in seen["chunks"]][-3:] == ["error", "finish-step", "finish"]
    assert "the provider broke off" in seen["errors"][0]
    assert text_of(seen["message"]) == "ab"
    assert seen["chunks"][-1]["finishReason"] == "error"


@pytest.mark.parametrize("on_interrupt", [None, "continue"])
async def test_a_second_attempt(system: System, on_interrupt: str | None) -> None:
    """By default the first attempt's text is taken back; with `continue` it stays. The text is complete and there once."""
    script = {"tokens": 10, "break_after": 6, "times": 1, "key": f"second-{on_interrupt}"}
    options: dict[str, Any] = {} if on_interrupt is None else {"midstream": {"on_interrupt": on_interrupt}}
    answer = await ask(system, f"second-{on_interrupt}", script=script, **options)
    seen = await ai_sdk.read(answer.content)
    assert not seen["wrong"]
    assert not seen["errors"]
    assert [chunk["type"] for chunk in seen["chunks"]].count("reset-step") == (on_interrupt is None)
    state = await system.state(answer.headers["x-stream-id"])
    assert state["attempt"] == 2
    assert text_of(seen["message"]) == state["text"]
    assert len(state["text"].split()) == 10


async def test_resumed_from_the_first_part_through_another_gateway(system: System) -> None:
    """The same bytes, also when the beginning has left the ring."""
    chat = "chat/with ünusual?id"
    running = Asked(system, chat, script={"tokens": 900, "tokens_per_second": 300})
    await running.until_deltas(600)
    answer = await resume(system, chat, gateway=1)
    await running.task
    assert answer.status_code == 200
    assert answer.headers["x-stream-id"] == running.stream_id
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert without_comments(answer.content) == without_comments(running.body)
    assert (await resume(system, chat)).status_code == 204
    replayed = await resume(system, chat, gateway=1, query="?ended=replay")
    assert without_comments(replayed.content) == without_comments(running.body)


async def test_a_chat_without_an_active_stream_is_204(system: System) -> None:
    answer = await resume(system, "never-heard-of")
    assert (answer.status_code, answer.content) == (204, b"")
    response = await ask(system, "to-be-deleted")
    deleted = await system.http.delete(f"{system.gateway_url()}/v1/streams/{response.headers['x-stream-id']}")
    assert deleted.status_code == 204
    for query in ("", "?ended=replay"):
        assert (await resume(system, "to-be-deleted", query=query)).status_code == 204


async def test_the_chat_s_key_expires(system: System) -> None:
    await ask(system, "expires")
    left_seconds = await system.commands.ttl(chat_key("anonymous", "expires"))
    assert 86_000 < left_seconds <= 86_400


async def test_stop(system: System, server: OpenAIServer) -> None:
    running = Asked(system, "stop", script={"tokens": 1000, "tokens_per_second": 100})
    await running.until_deltas(5)
    answer = (await post(system, "/api/chat/stop/stop", gateway=1)).json()
    assert answer == {"stopped": True, "stream_id": running.stream_id, "status": "cancelled"}
    await running.task
    await wait_until(lambda: server.running == 0, what="the provider has stopped")
    seen = await ai_sdk.read(running.body)
    assert not seen["wrong"]
    assert seen["chunks"][-1] == {"type": "abort", "reason": "stopped by the user"}
    assert (await post(system, "/api/chat/stop/stop")).json() == answer, "it may be repeated"
    assert (await resume(system, "stop")).status_code == 204


async def test_a_late_stop_does_not_cancel_a_newer_stream(system: System, server: OpenAIServer) -> None:
    slow = {"tokens": 1000, "tokens_per_second": 50}
    first = Asked(system, "late", script=slow)
    await first.until_deltas(1)
    assert (await post(system, "/api/chat/late/stop")).json()["stopped"]
    await first.task
    second = Asked(system, "late", script=slow)
    await second.until_deltas(1)
    answer = (await post(system, "/api/chat/late/stop", {"activeStreamId": first.stream_id})).json()
    assert answer["stream_id"] == first.stream_id
    assert (await system.state(second.stream_id))["status"] == "running"
    other = (await post(system, "/api/chat/other/stop", {"activeStreamId": second.stream_id})).json()
    assert other == {"stopped": False, "stream_id": second.stream_id, "status": None}
    assert (await post(system, "/api/chat/other/stop", {"activeStreamId": None})).json()["stream_id"] is None
    assert (await post(system, "/api/chat/late/stop", {"activeStreamId": second.stream_id})).json()["stopped"]
    await second.task
    await wait_until(lambda: server.running == 0, what="the provider has stopped")


async def test_a_new_question_replaces_the_active_stream_without_cancelling_it(system: System) -> None:
    old = Asked(system, "replaced", script={"tokens": 100, "tokens_per_second": 50})
    await old.until_deltas(1)
    new = Asked(system, "replaced", script={"tokens": 1000, "tokens_per_second": 50})
    await new.until_deltas(1)
    stopped = (await post(system, "/api/chat/replaced/stop")).json()
    assert stopped["stream_id"] == new.stream_id
    await asyncio.gather(old.task, new.task)
    seen = await ai_sdk.read(old.body)
    assert seen["chunks"][-1]["finishReason"] == "stop", "somebody read it to its end"


async def test_a_repeated_request_gets_the_same_stream(system: System, server: OpenAIServer) -> None:
    asked_before = server.requests
    body = {"id": "repeated", "messages": [user("hello")], "trigger": "submit-message"}
    headers = {"idempotency-key": "ai-sdk-1"}
    answers = [
        await system.http.post(f"{system.gateway_url(gateway)}/api/chat", json=body, headers=headers)
        for gateway in (0, 1)
    ]
    assert without_comments(answers[0].content) == without_comments(answers[1].content)
    assert server.requests == asked_before + 1


async def test_a_message_continues_after_a_tool_s_result(system: System, server: OpenAIServer) -> None:
    first = await ai_sdk.read((await ask(system, "tools", script={"text": ["I look. "], "tool_calls": [LOOK]})).content)
    message = first["message"]
    message["parts"][-1] |= {"state": "output-available", "output": {"seen": "waves"}}
    answer = await ask(system, "tools", user("what is there?"), message, script={"text": ["Waves."]}, temperature=0.5)
    assert (await ai_sdk.read(answer.content))["message"]["id"] == message["id"]
    sent = server.bodies[-1]
    assert sent["temperature"] == 0.5
    assert not {"id", "trigger", "messageId"} & set(sent)
    assert sent["messages"] == [
        {"role": "user", "content": "what is there?"},
        {"role": "assistant", "content": "I look. ", "tool_calls": [LOOK]},
        {"role": "tool", "tool_call_id": "call_7", "content": '{"seen":"waves"}'},
    ]


async def test_a_stopping_gateway_cuts_the_response_off(server: OpenAIServer) -> None:
    """useChat would take a body that ends properly for a complete answer."""
    settings = {"provider": "openai", "openai_base_url": server.url, "connection_seconds": 0.5}
    async with System(gateways=2, settings=settings) as system:
        running = Asked(system, "leaving", script={"tokens": 200, "tokens_per_second": 50})
        await running.until_deltas(100)  # the stream is not rotated by age
        system.gateways[0].send(signal.SIGTERM)
        with pytest.raises(httpx2.RemoteProtocolError):
            await running.task
        answer = await resume(system, "leaving", gateway=1)
        assert without_comments(answer.content).startswith(without_comments(running.body))
        assert (await ai_sdk.read(answer.content))["chunks"][-1]["finishReason"] == "stop"


async def test_the_error_for_a_bad_request_names_the_fault(system: System) -> None:
    def message(*parts: Any) -> list[Any]:
        return [{"role": "user", "parts": list(parts)}]

    cases: list[tuple[Any, str]] = [
        ({"messages": message()}, "id must be"),
        ({"id": "", "messages": message()}, "id must be"),
        ({"id": "x" * 256, "messages": message()}, "id must be"),
        ({"id": "c"}, "messages must be"),
        ({"id": "c", "messages": [7]}, "messages[0] must be"),
        ({"id": "c", "messages": [{"role": "tool", "parts": []}]}, "messages[0] must be"),
        ({"id": "c", "messages": [{"role": "user", "content": "hi"}]}, "messages[0].parts must be"),
        ({"id": "c", "messages": message("hi")}, "messages[0].parts[0] must be"),
        ({"id": "c", "messages": message({"type": "text"})}, "messages[0].parts[0].text must be"),
        ({"id": "c", "messages": message({"type": "tool-x"})}, "messages[0].parts[0].toolCallId must be"),
        (
            {"id": "c", "messages": message({"type": "file", "url": "ftp://x", "mediaType": "image/png"})},
            "must be an image",
        ),
        ({"id": "c", "messages": message({"type": "step-start"})}, "messages must have something"),
        ({"id": "c", "messages": message({"type": "text", "text": "a"}), "n": 2}, "n must be 1"),
        ({"id": "c", "messages": message({"type": "text", "text": "a"}), "model": 0}, "model must be"),
        ([], "the body must be"),
    ]
    for body, named in cases:
        answer = await post(system, "/api/chat", body)
        assert answer.status_code == 400, body
        assert named in answer.json()["detail"], body
    for path, body in (("/api/chat/c/stop", {"activeStreamId": "x"}), (f"/api/chat/{'c' * 256}/stop", {})):
        assert (await post(system, path, body)).status_code == 400
    assert (await resume(system, "c", query="?ended=yes")).status_code == 400
    assert (await post(system, "/api/chat/c/stop", [])).status_code == 400
    for method, path in (
        ("GET", "/api/chat"),
        ("PUT", "/api/chat"),
        ("GET", "/api/chat/c/stop"),
        ("POST", "/api/chatter"),
    ):
        answer = await system.http.request(method, system.gateway_url() + path)
        assert answer.status_code in (404, 405)
        assert answer.headers["content-type"] == "application/problem+json"
