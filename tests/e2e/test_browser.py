"""Chromium's own EventSource, without any script of ours between it and the gateway."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Browser, Page, Request

from shared.sse import Message
from tests.support.system import System, answer_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

_CLOSED = 2  # EventSource.readyState
_OPEN_SOURCE = """url => {
    window.received = [];
    window.source = new EventSource(url);
    window.source.onmessage = event => received.push([event.lastEventId, 'message', event.data]);
    for (const name of ['accepted', 'started', 'restarted', 'done', 'failed', 'cancelled', 'gap'])
        window.source.addEventListener(name, event => received.push([event.lastEventId, name, event.data]));
}"""


class Follower:
    """A page of the gateway's origin with one EventSource."""

    def __init__(self, page: Page, url: str) -> None:
        self._page = page
        self._url = url
        self.requests: list[Request] = []
        self.statuses: list[int] = []
        page.on("request", lambda request: self.requests.append(request) if request.url == url else None)
        page.on("response", lambda answer: self.statuses.append(answer.status) if answer.url == url else None)

    @classmethod
    async def open(cls, browser: Browser, system: System, path: str) -> Follower:
        page = await browser.new_page()
        follower = cls(page, system.gateway_url() + path)
        await page.goto(f"{system.gateway_url()}/healthz")
        await page.evaluate(_OPEN_SOURCE, follower._url)
        return follower

    async def received(self) -> list[Message]:
        rows: list[list[str]] = await self._page.evaluate("received")
        return [Message(*row) for row in rows]

    async def until_received(self, count: int) -> None:
        async def enough() -> bool:
            return len(await self.received()) >= count

        await wait_until(enough, within_seconds=20.0, what=f"{count} messages")

    async def until_closed(self) -> list[Message]:
        """Waits until the browser has closed the EventSource for good, which it does only after a 204."""

        async def closed() -> bool:
            state: int = await self._page.evaluate("source.readyState")
            return state == _CLOSED

        await wait_until(closed, within_seconds=30.0, what="the EventSource is closed")
        messages = await self.received()
        await self._page.close()
        return messages


async def delivered(system: System, stream_id: str) -> dict[str, Any]:
    state = await system.state(stream_id)
    assert state["status"] == "completed"
    return state


async def test_the_browser_resumes_by_itself_and_stops_after_done(browser: Browser) -> None:
    """The gateway ends every response that is 0.4 s old."""
    settings = {"connection_seconds": 0.4, "retry_milliseconds": 50}
    async with System(settings=settings) as system:
        stream_id = await system.create(simulate={"tokens": 150, "tokens_per_second": 40})
        follower = await Follower.open(browser, system, f"/v1/streams/{stream_id}/events")
        answer = answer_of(await follower.until_closed())
        assert len(answer.tokens) == 150
        assert answer.text == (await delivered(system, stream_id))["text"]
        assert answer.end == "done"
        statuses = follower.statuses
        assert len(statuses) >= 4, "it was to be cut at least twice"
        assert statuses == [200] * (len(statuses) - 1) + [204]
        assert await system.metric("midstream_reader_closes_total") == len(statuses) - 1
        assert await system.metric("midstream_readers") == 0


async def test_gateway_killed_twice(browser: Browser) -> None:
    async with System(settings={"retry_milliseconds": 100}) as system:
        stream_id = await system.create(simulate={"tokens": 200, "tokens_per_second": 50})
        follower = await Follower.open(browser, system, f"/v1/streams/{stream_id}/events")
        for seen in (20, 110):
            await follower.until_received(seen)
            system.gateways[0].kill()
            await system.start_gateway(0)
        answer = answer_of(await follower.until_closed())
        assert len(answer.tokens) == 200
        assert answer.text == (await delivered(system, stream_id))["text"]
        assert len(follower.requests) >= 4


def prompt_answer(messages: list[Message]) -> tuple[str, list[str]]:
    """Returns the stream's id and the tokens from the one-line endpoint. AssertionError unless every id came once and in order."""
    stream_id = messages[0].id.partition("/")[0]
    assert {one.event for one in messages} <= {"message", "accepted"}
    tokens = [one for one in messages if one.event == "message"]
    assert tokens[-1].data == "[DONE]"
    assert [one.id for one in tokens] == [f"{stream_id}/1-{offset}" for offset in range(1, len(tokens) + 1)]
    return stream_id, [one.data for one in tokens[:-1]]


async def test_one_line_endpoint_makes_one_generation(browser: Browser) -> None:
    async with System(settings={"connection_seconds": 0.5, "retry_milliseconds": 50}) as system:
        follower = await Follower.open(browser, system, "/stream?prompt=What%20is%20a%20stream%3F")
        stream_id, tokens = prompt_answer(await follower.until_closed())
        assert len(tokens) == (await delivered(system, stream_id))["tokens"] == 80
        statuses = follower.statuses
        assert len(statuses) >= 4
        assert statuses[-1] == 204
        assert await system.metric("midstream_streams_created_total") == 1
        assert len(await system.logs()) == 1


async def test_one_line_endpoint_cut_before_the_first_token(browser: Browser) -> None:
    async with System(settings={"connection_seconds": 0.3, "retry_milliseconds": 50}) as system:
        system.workers[0].kill()
        follower = await Follower.open(browser, system, "/stream?prompt=hello")
        await wait_until(lambda: len(follower.requests) >= 4, what="three cuts before any token")
        assert [one.event for one in await follower.received()] == ["accepted"]
        await system.start_worker(0)
        stream_id, tokens = prompt_answer(await follower.until_closed())
        assert len(tokens) == (await delivered(system, stream_id))["tokens"] == 80
        assert await system.metric("midstream_streams_created_total") == 1
        assert len(await system.logs()) == 1


async def test_one_line_endpoint_with_its_gateway_killed(browser: Browser) -> None:
    async with System(settings={"retry_milliseconds": 100}) as system:
        follower = await Follower.open(browser, system, "/stream?prompt=hello")
        await follower.until_received(20)
        system.gateways[0].kill()
        await system.start_gateway(0)
        stream_id, tokens = prompt_answer(await follower.until_closed())
        assert len(tokens) == (await delivered(system, stream_id))["tokens"] == 80
        assert await system.metric("midstream_streams_created_total") == 0  # of the restarted gateway
        assert len(await system.logs()) == 1
