"""Chats over Durable Streams with unchanged clients: `useChat` with its transport in Chromium, TanStack AI's in Node.

A response that ends early is followed by a request for the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from gateway.facades.durable.offsets import offset_of
from shared.ids import EventId
from tests.support import ai_sdk, node
from tests.support.chat_page import Chat, answered
from tests.support.guarded_gateway import MODULE, TOKEN_KEYS
from tests.support.openai_server import OpenAIServer
from tests.support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")

_CONNECTION_SECONDS = 1.5
"""The gateways end each connection after about so long. The client takes three shorter than 1 s for the stream's end."""
_GUARDED = 1
"""The gateway with authentication."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(server: OpenAIServer) -> AsyncIterator[System]:
    await asyncio.to_thread(ai_sdk.page, "durable")  # built once for all tests; may skip them
    settings = {"provider": "openai", "openai_base_url": server.url, "connection_seconds": _CONNECTION_SECONDS}
    system = System(gateways=2, gateway_module=MODULE, settings=settings)
    system.gateways[_GUARDED].settings |= {"auth": "required", "token_keys": TOKEN_KEYS, "user_cookie": "user"}
    async with system:
        yield system


def reads(chat: Chat) -> list[dict[str, str]]:
    """Returns the queries of the page's requests to the stream, in order."""
    split = [urlsplit(request.url) for request in chat.requests]
    return [
        {name: values[-1] for name, values in parse_qs(url.query).items()}
        for url in split
        if url.path.startswith("/v1/stream/")
    ]


async def ask(browser: Browser, system: System, chat_id: str, *, replay: bool = False, **script: Any) -> Chat:
    query: dict[str, Any] = {"replay": "1"} if replay else {}
    chat = await Chat.open(browser, system, chat_id, folder="durable", **query)
    await chat.ask("tell me", script=script)
    return chat


@pytest.mark.parametrize(
    ("page", "body"),
    [
        ({"gateway": 0}, {}),
        ({"gateway": _GUARDED, "cookies": {"user": "jwt_alice"}}, {}),
        ({"gateway": _GUARDED, "key": "tk_alice"}, {"midstream": {"cookie": True}}),
    ],
    ids=["open", "a user's cookie", "the answer's cookie"],
)
async def test_a_cut_connection_resumes_at_its_offset(
    browser: Browser, system: System, server: OpenAIServer, page: dict[str, Any], body: dict[str, Any]
) -> None:
    asked_before = server.requests
    chat = await Chat.open(browser, system, "cut", folder="durable", **page)
    await chat.ask("tell me", script={"tokens": 160, "tokens_per_second": 40}, **body)
    state = await chat.until("ready", words=160)
    assert state["text"] == await answered(system, await chat.stream_id())
    assert state["error"] is None
    assert state["finished"] == [{"finishReason": "stop", "isAbort": False, "isDisconnect": False, "isError": False}]
    assert [message["role"] for message in state["messages"]] == ["user", "assistant"]
    first, *live = reads(chat)
    assert first == {"as": "ui", "offset": "-1"}
    offsets = [query.pop("offset") for query in live]
    assert len(offsets) >= 3, "no connection was cut"
    assert offsets == sorted(set(offsets))
    assert offsets[-1] > offset_of(EventId(1, 40))
    assert all(query.pop("as") == "ui" and query.pop("live") == "sse" for query in live)
    assert server.requests == asked_before + 1
    await chat.page.close()


async def test_a_reloaded_page_has_the_answer_once(browser: Browser, system: System, server: OpenAIServer) -> None:
    asked_before = server.requests
    chat = await ask(browser, system, "reloaded", tokens=240, tokens_per_second=40)
    for words in (15, 60):
        await chat.until("streaming", words=words)
        await chat.load()
    state = await chat.until("ready", words=240)
    assert state["text"] == await answered(system, await chat.stream_id())
    assert [message["role"] for message in state["messages"]] == ["user", "assistant"]
    assert {query["as"] for query in reads(chat)[2:]} <= {"ui", "ui-replay"}
    assert reads(chat)[-1]["as"] == "ui-replay"
    assert server.requests == asked_before + 1
    await chat.load()
    assert (await chat.until("ready"))["text"] == "", "it has ended: 204"
    await chat.page.close()


async def test_a_cancelled_answer_is_aborted(browser: Browser, system: System) -> None:
    chat = await ask(browser, system, "stopped", tokens=2000, tokens_per_second=40)
    await chat.until("streaming", words=5)
    stopped = await system.http.post(f"{system.gateway_url()}/api/chat/stopped/stop")
    assert stopped.json()["stopped"]
    assert (await chat.until("ready", words=5))["error"] is None
    await chat.page.close()


async def test_tanstack_ai(system: System) -> None:
    words = 100
    url = f"{system.gateway_url()}/v1/stream/tanstack"
    seen = await node.run("tanstack.mjs", {"writeUrl": url, "readUrl": url, "words": words}, folder="durable")
    text = "".join(f"{number} " for number in range(words))
    assert seen == {"asked": text, "snapshot": text, "roles": ["user", "assistant"], "next": "TEXT_MESSAGE_START"}


async def test_its_gateway_is_killed(browser: Browser, system: System) -> None:
    """The transport takes a connection that breaks for an error, as useChat's own does: a reload brings the whole answer."""
    chat = await ask(browser, system, "killed", replay=True, tokens=200, tokens_per_second=40)
    await chat.until("streaming", words=10)
    system.gateways[0].kill()
    await chat.until("error")
    await system.start_gateway(0)
    await chat.load()
    state = await chat.until("ready", words=200)
    assert state["text"] == await answered(system, await chat.stream_id())
    await chat.page.close()
