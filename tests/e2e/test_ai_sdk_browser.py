"""The AI SDK's own `useChat({resume: true})` in Chromium, on a page of the gateway's origin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import httpx2
import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.support import ai_sdk
from tests.support.chat_page import Chat, answered
from tests.support.openai_server import OpenAIServer
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(server: OpenAIServer) -> AsyncIterator[System]:
    await asyncio.to_thread(ai_sdk.page)  # built once for all tests; may skip them
    settings = {"provider": "openai", "openai_base_url": server.url, "keepalive_seconds": 1}  # comments in between
    async with System(gateways=2, settings=settings) as system:
        yield system


async def test_an_answer_arrives_token_by_token(browser: Browser, system: System) -> None:
    chat = await Chat.open(browser, system, "simple")
    assert (await chat.until("ready"))["messages"] == []
    await chat.ask("tell me", script={"tokens": 30, "tokens_per_second": 60})
    early = await chat.until("streaming", words=3)
    assert len(early["text"].split()) < 30
    state = await chat.until("ready", words=30)
    assert state["text"] == await answered(system, await chat.stream_id())
    assert len(state["seen"]) > 3, "a busy page may render several tokens at once, and not all"
    assert [message["role"] for message in state["messages"]] == ["user", "assistant"]
    assert state["finished"] == [{"finishReason": "stop", "isAbort": False, "isDisconnect": False, "isError": False}]
    await chat.ask("and then", script={"tokens": 3})
    state = await chat.until("ready", words=3)
    assert [message["role"] for message in state["messages"]] == ["user", "assistant"] * 2
    await chat.page.close()


async def test_a_page_reloaded_in_mid_answer_shows_the_answer_once(
    browser: Browser, system: System, server: OpenAIServer
) -> None:
    asked_before = server.requests
    chat = await Chat.open(browser, system, "reloaded")
    await chat.ask("tell me", script={"tokens": 120, "tokens_per_second": 40})
    for words in (15, 60):
        await chat.until("streaming", words=words)
        await chat.load()
    state = await chat.until("ready", words=120)
    assert state["text"] == await answered(system, await chat.stream_id())
    assert [message["role"] for message in state["messages"]] == ["user", "assistant"]
    assert [part["type"] for part in state["messages"][-1]["parts"]] == ["step-start", "text"]
    assert state["finished"][-1]["finishReason"] == "stop"
    assert server.requests == asked_before + 1
    await chat.load()
    assert (await chat.until("ready"))["text"] == "", "it has ended: 204, and this page did not keep it"
    await chat.page.close()


async def test_an_answer_that_ended_while_the_page_was_closed(browser: Browser, system: System) -> None:
    """`?ended=replay` is for a page that stores no answers. An answer that it has already is not shown twice."""
    chat = await Chat.open(browser, system, "ended", replay="1", keep="1")
    await chat.ask("tell me", script={"tokens": 40, "tokens_per_second": 80})
    await chat.until("streaming", words=3)
    stream_id = await chat.stream_id()
    await chat.page.goto(f"{system.gateway_url()}/healthz")
    text = await answered(system, stream_id)
    for _ in range(2):
        await chat.load()
        state = await chat.until("ready", words=40)
        assert state["text"] == text
        assert [message["role"] for message in state["messages"]] == ["user", "assistant"]
    await chat.page.close()


async def test_stopping_after_a_reload_stops_the_provider(
    browser: Browser, system: System, server: OpenAIServer
) -> None:
    chat = await Chat.open(browser, system, "stopped")
    await chat.ask("tell me", script={"tokens": 2000, "tokens_per_second": 40})
    await chat.until("streaming", words=5)
    await chat.load()
    await chat.until("streaming", words=10)
    answer = await chat.page.evaluate("() => stopNow()")
    assert answer == {"stopped": True, "stream_id": await chat.stream_id(), "status": "cancelled"}
    await wait_until(lambda: server.running == 0, what="the provider has stopped")
    state = await chat.until("ready", words=10)
    assert state["error"] is None
    async with httpx2.AsyncClient(trust_env=False) as http:
        stats = (await http.get(server.url.removesuffix("/v1") + "/stats")).json()
    assert stats["aborted"] >= 1
    assert (await system.state(answer["stream_id"]))["cancelled_by"] == "client"
    await chat.load()
    assert (await chat.until("ready"))["text"] == ""
    await chat.page.close()


async def test_cut_off_by_its_length(browser: Browser, system: System) -> None:
    chat = await Chat.open(browser, system, "length")
    await chat.ask("tell me", max_tokens=7)
    state = await chat.until("ready", words=7)
    assert state["finished"] == [{"finishReason": "length", "isAbort": False, "isDisconnect": False, "isError": False}]
    assert state["messages"][-1]["metadata"]["usage"]["outputTokens"] > 0
    await chat.page.close()


async def test_after_a_tool_call_the_answer_continues_in_the_same_message(
    browser: Browser, system: System, server: OpenAIServer
) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at":"the sea"}'}}
    chat = await Chat.open(browser, system, "tool")
    await chat.ask("what is there?", script={"text": ["I look."], "tool_calls": [call]})
    part = (await chat.until("ready", words=2))["messages"][-1]["parts"][-1]
    shown = {key: part[key] for key in ("type", "toolCallId", "state", "input")}
    assert shown == {
        "type": "tool-look",
        "toolCallId": "call_1",
        "state": "input-available",
        "input": {"at": "the sea"},
    }
    give = "() => chat.addToolOutput({tool: 'look', toolCallId: 'call_1', output: {seen: 'waves'}})"
    await chat.page.evaluate(give)
    await wait_until(lambda: server.bodies[-1]["messages"][-1]["role"] == "tool", what="the result is sent by itself")
    state = await chat.until("ready", words=10)
    assert [message["role"] for message in state["messages"]] == ["user", "assistant"]
    kinds = [part["type"] for part in state["messages"][-1]["parts"]]
    assert kinds == ["step-start", "text", "tool-look", "step-start", "text"]
    await chat.page.close()


async def test_a_failure_is_an_error_and_the_text_stays(browser: Browser, system: System) -> None:
    chat = await Chat.open(browser, system, "failure")
    script = {"text": ["as", " far", " as", " it", " goes"], "break_after": 2}
    await chat.ask("tell me", script=script, midstream={"on_interrupt": "fail"})
    state = await chat.until("error", words=2)
    assert state["text"] == "as far"
    assert "connection to the provider" in state["error"]
    assert state["finished"][-1]["isError"]
    await chat.page.close()


async def test_the_error_for_a_refused_request_says_why(browser: Browser, system: System) -> None:
    chat = await Chat.open(browser, system, "refused")
    await chat.until(
        "ready"
    )  # `useChat` has asked whether there is an answer to resume: else that answer would replace the error
    await chat.ask("tell me", model=0)
    assert "model must be a name" in (await chat.until("error"))["error"]
    await chat.page.close()


async def test_a_second_attempt_replaces_the_text(browser: Browser, system: System) -> None:
    chat = await Chat.open(browser, system, "second")
    script = {"tokens": 40, "tokens_per_second": 60, "break_after": 20, "times": 1, "key": "browser-second"}
    await chat.ask("tell me", script=script)
    state = await chat.until("ready", words=40)
    assert state["text"] == await answered(system, await chat.stream_id())
    assert len(state["text"].split()) == 40
    lengths = [len(text.split()) for text in state["seen"]]
    assert any(later < earlier for earlier, later in pairwise(lengths)), "nothing was taken back"
    assert state["error"] is None
    await chat.page.close()


async def test_its_gateway_is_killed(browser: Browser, server: OpenAIServer) -> None:
    """useChat reports a lost connection and does not reconnect by itself; `resumeStream`, or a reload, brings the whole answer.

    With `?ended=replay` this also works if the answer ends before the gateway is back: a 204 would leave the page with half of it.
    """
    async with System(settings={"provider": "openai", "openai_base_url": server.url}) as system:
        chat = await Chat.open(browser, system, "killed", replay="1")
        await chat.ask("tell me", script={"tokens": 150, "tokens_per_second": 50})
        await chat.until("streaming", words=10)
        system.gateways[0].kill()
        assert (await chat.until("error"))["finished"][-1]["isDisconnect"]
        await system.start_gateway(0)
        await chat.page.evaluate("() => void chat.resumeStream()")
        state = await chat.until("ready", words=150)
        assert state["text"] == await answered(system, await chat.stream_id())
        assert [message["role"] for message in state["messages"]] == ["user", "assistant"]
        await chat.page.close()


async def test_earlier_steps_stay_after_a_reload_behind_a_tool_s_result(
    browser: Browser, system: System, server: OpenAIServer
) -> None:
    """useChat empties the message before a replay, so the replay must also have the parts from before this stream."""
    call = {"id": "call_2", "type": "function", "function": {"name": "look", "arguments": '{"at":"the sky"}'}}
    chat = await Chat.open(browser, system, "tool-reload", keep="1")
    await chat.ask("what is there?", script={"reasoning": ["hm"], "text": ["I look."], "tool_calls": [call]})
    before = (await chat.until("ready", words=2))["messages"][-1]
    output = "{tool: 'look', toolCallId: 'call_2', output: {seen: 'stars'}, options: {body: {script: %s}}}"
    script = '{"tokens": 80, "tokens_per_second": 40}'
    await chat.page.evaluate(f"() => void chat.addToolOutput({output % script})")
    await chat.until("streaming", words=10)
    await chat.load()
    await chat.until("streaming", words=30)
    state = await chat.until("ready", words=81)
    assert [message["role"] for message in state["messages"]] == ["user", "assistant"]
    message = state["messages"][-1]
    assert message["id"] == before["id"]
    assert [part["type"] for part in message["parts"]] == [
        "step-start",
        "reasoning",
        "text",
        "tool-look",
        "step-start",
        "text",
    ]
    tool = message["parts"][3]
    assert (tool["state"], tool["input"], tool["output"]) == ("output-available", {"at": "the sky"}, {"seen": "stars"})
    assert message["parts"][-1]["text"] == await answered(system, await chat.stream_id())
    await chat.page.close()
