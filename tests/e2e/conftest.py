"""Fixtures of the end-to-end tests: one system per module if no test breaks it, its provider, and clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import openai
import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.support.browser import chromium
from tests.support.openai_server import OpenAIServer
from tests.support.system import System


@pytest.fixture
def system(running: System) -> Iterator[System]:
    """The module's system (its fixture `running`). A test must leave no traceback in a log, and no key without expiry."""
    yield running
    print(running.tails())  # shown when the test fails
    running.assert_no_complaints()
    running.assert_keys_expire()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[OpenAIServer]:
    """The provider of the module's system."""
    async with OpenAIServer() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(server: OpenAIServer) -> AsyncIterator[System]:
    """Two gateways, and a worker that asks `server`. A module may define another one."""
    async with System(gateways=2, settings={"provider": "openai", "openai_base_url": server.url}) as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, for pages of the module's tests."""
    async with chromium() as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients(running: System) -> AsyncIterator[list[openai.AsyncOpenAI]]:
    """OpenAI's own client, one for each gateway of the module's system."""
    urls = [f"{running.gateway_url(index)}/v1" for index in range(len(running.gateways))]
    api_key = running.api_key or "any"
    clients = [openai.AsyncOpenAI(base_url=url, api_key=api_key, max_retries=0) for url in urls]
    yield clients
    for client in clients:
        await client.close()


@pytest.fixture
def client(clients: list[openai.AsyncOpenAI]) -> openai.AsyncOpenAI:
    return clients[0]


@pytest.fixture
def other(clients: list[openai.AsyncOpenAI]) -> openai.AsyncOpenAI:
    """The client of the other gateway."""
    return clients[1]
