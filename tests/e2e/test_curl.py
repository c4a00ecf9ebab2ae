"""`curl -N`, the simplest client: cut off and resumed by hand."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
import pytest_asyncio
from httpx_sse import EventSource, ServerSentEvent

from shared.keys import log_key
from tests.support.needs import needs
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAST = {"tokens": 200, "tokens_per_second": 400}
STALLED = {"tokens": 5, "stall_after": 0}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    needs("curl", shutil.which("curl"))
    async with System(gateways=2, gateway_settings={"keepalive_seconds": 1}) as system:
        yield system


@dataclass
class Fetched:
    """The output of one run of curl, read by a decoder that is not ours."""

    head: str
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head.split(" ")[1])

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.strip().splitlines()[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def events(self) -> list[ServerSentEvent]:
        response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=self.body)
        return list(EventSource(response).iter_sse())

    @property
    def tokens(self) -> list[tuple[str, str]]:
        """Returns (id, text) of each token."""
        return [(one.id, json.loads(one.data)["token"]) for one in self.events if one.event == "message"]


async def curl(url: str, *arguments: str, until: re.Pattern[bytes] | None = None, count: int = 1) -> Fetched:
    """Runs `curl -N` to the end of the response, or kills it at the `count`-th event whose block matches `until`."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "-N", "-i", "--max-time", "30", *arguments, url), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    head = body = block = b""
    try:
        while line := await process.stdout.readline():
            if not head.endswith(b"\r\n\r\n"):
                head += line
                continue
            body, block = body + line, block + line
            if line != b"\n":
                continue
            count -= until is not None and until.search(block) is not None
            block = b""
            if count == 0:
                break
        else:
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
    return Fetched(head.decode(), body)


TOKEN = re.compile(rb"^data: \{\"token\"", re.MULTILINE)


@pytest.mark.parametrize("by", ["header", "query"])
@pytest.mark.parametrize("gateways", [(0, 0, 0), (0, 1, 0)], ids=["one gateway", "two gateways"])
async def test_cut_twice_and_resumed(system: System, by: str, gateways: tuple[int, int, int]) -> None:
    stream_id = await system.create(f"cut {by} {gateways}", simulate=FAST)
    urls = [system.events_url(stream_id, gateway=index) for index in gateways]

    def resume(url: str, last_id: str) -> tuple[str, ...]:
        return (url, "-H", f"Last-Event-ID: {last_id}") if by == "header" else (f"{url}?last_event_id={last_id}",)

    first = await curl(urls[0], until=TOKEN, count=60)
    assert first.tokens[-1][0] == "1-60"
    second = await curl(*resume(urls[1], "1-60"), until=TOKEN, count=70)
    assert second.tokens[-1][0] == "1-130"
    third = await curl(*resume(urls[2], "1-130"))

    tokens = first.tokens + second.tokens + third.tokens
    assert [token_id for token_id, _ in tokens] == [f"1-{offset}" for offset in range(1, 201)]
    state = await system.state(stream_id, gateway=1)
    assert "".join(text for _, text in tokens) == state["text"]
    assert state["status"] == "completed"
    assert third.events[-1].event == "done"
    assert third.events[-1].id == "1-201"
    again = await curl(*resume(urls[1], "1-201"))
    assert (again.status, again.body) == (204, b"")


async def test_a_gateway_that_did_not_follow_a_stream_replays_all_of_it(system: System) -> None:
    stream_id = await system.create("replay", simulate={**FAST, "tokens": 600})
    followed = await curl(system.events_url(stream_id))
    replayed = await curl(system.events_url(stream_id, gateway=1))
    assert [vars(one) for one in followed.events if one.event != "live"] == [vars(one) for one in replayed.events]
    assert len(replayed.tokens) == 600


async def test_the_header_takes_precedence_over_the_query(system: System) -> None:
    stream_id = await system.create("both", simulate={"tokens": 10, "tokens_per_second": 0})
    await system.until_status(stream_id, "completed")
    url = system.events_url(stream_id) + "?last_event_id=1-3"
    assert (await curl(url)).tokens[0][0] == "1-4"
    assert (await curl(url, "-H", "Last-Event-ID: 1-7")).tokens[0][0] == "1-8"


async def test_resumed_inside_an_entry_of_many_tokens(system: System) -> None:
    """At full speed an entry has many tokens: a reader that resumes in the middle of one gets only the rest."""
    stream_id = await system.create("batches", simulate={"tokens": 300, "tokens_per_second": 0})
    state = await system.until_status(stream_id, "completed")
    assert await system.commands.xlen(log_key(stream_id)) < 300
    texts = []
    for offset in range(0, 300, 37):
        fetched = await curl(system.events_url(stream_id, gateway=1), "-H", f"Last-Event-ID: 1-{offset}")
        assert [token_id for token_id, _ in fetched.tokens] == [f"1-{n}" for n in range(offset + 1, 301)]
        texts.append("".join(text for _, text in fetched.tokens))
    assert texts[0] == state["text"]
    assert all(state["text"].endswith(text) for text in texts)


WANTED_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}


async def test_head_of_a_stream_without_a_token(system: System) -> None:
    stream_id = await system.create("no token", simulate=STALLED)
    await system.until_status(stream_id, "running")
    fetched = await curl(system.events_url(stream_id), until=re.compile(rb"event: live"))
    assert fetched.status == 200
    assert {name: fetched.headers.get(name) for name in WANTED_HEADERS} == WANTED_HEADERS
    assert "content-length" not in fetched.headers
    assert "content-encoding" not in fetched.headers
    # The comment and `retry:` belong to the block of the first event: no blank line follows them.
    head = rb':\nretry: 2000\n:?\n?event: started\ndata: \{"attempt":1,"model":"simulated"\}\nid: 1-0\n\n'
    assert re.match(head, fetched.body), fetched.body
    assert [(one.event, one.data) for one in fetched.events] == [
        ("started", '{"attempt":1,"model":"simulated"}'),
        ("live", '{"offset":0}'),
    ]
    await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")


async def test_comments_keep_a_silent_stream_alive(system: System) -> None:
    stream_id = await system.create("silence", simulate=STALLED)
    await system.until_status(stream_id, "running")
    reader = system.follow(stream_id, gateway=1)
    await reader.until_event("live")
    events = bytes(reader.body).replace(b":\n", b"")
    received = len(reader.body)
    await wait_until(lambda: len(reader.body) >= received + 4, what="two comments")
    assert bytes(reader.body).replace(b":\n", b"") == events  # nothing but comments, and no blank line
    await reader.leave()
    await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")


async def test_head_of_the_one_line_endpoint(system: System) -> None:
    fetched = await curl(f"{system.gateway_url()}/stream?prompt=hello", until=TOKEN, count=2)
    assert fetched.status == 200
    assert {name: fetched.headers.get(name) for name in WANTED_HEADERS} == WANTED_HEADERS
    assert fetched.body.startswith(b":\nretry: 2000\nevent: accepted\ndata: ")
    stream_id = json.loads(fetched.events[0].data)["id"]
    assert [one.id for one in fetched.events if one.event == "message"] == [f"{stream_id}/1-1", f"{stream_id}/1-2"]
    rest = await curl(f"{system.gateway_url(1)}/stream?prompt=hello", "-H", f"Last-Event-ID: {stream_id}/1-2")
    assert rest.events[0].id == f"{stream_id}/1-3"
    assert rest.events[-1].data == "[DONE]"
    again = await curl(f"{system.gateway_url()}/stream?prompt=hello", "-H", f"Last-Event-ID: {rest.events[-1].id}")
    assert again.status == 204


async def test_live_comes_once_where_the_replay_ends(system: System) -> None:
    stream_id = await system.create("live", simulate={"tokens": 100, "tokens_per_second": 50})
    await system.follow(stream_id).until_tokens(20)
    fetched = await curl(system.events_url(stream_id, gateway=1))
    names = [one.event for one in fetched.events]
    assert names.count("live") == 1
    before = names.index("live")
    assert before >= 20
    assert json.loads(fetched.events[before].data) == {"offset": before - 1}  # `started` is no token
    assert len(fetched.tokens) == 100
    ended = await curl(system.events_url(stream_id))
    assert "live" not in [one.event for one in ended.events]


async def test_from_now(system: System) -> None:
    stream_id = await system.create("now", simulate={"tokens": 100, "tokens_per_second": 50})
    await system.follow(stream_id).until_tokens(30)
    fetched = await curl(system.events_url(stream_id, gateway=1) + "?from=now")
    assert fetched.events[0].event == "live"
    begin = json.loads(fetched.events[0].data)["offset"]
    assert begin >= 30
    assert [token_id for token_id, _ in fetched.tokens] == [f"1-{offset}" for offset in range(begin + 1, 101)]
    ended = await curl(system.events_url(stream_id) + "?from=now")
    assert [one.event for one in ended.events] == ["done"]
