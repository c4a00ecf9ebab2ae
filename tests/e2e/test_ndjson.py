"""JSON lines: the same events as in Server-Sent Events, resumed in the same way."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from shared.ids import new_stream_id
from tests.support.needs import needs
from tests.support.npm import Node, clients
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

NDJSON = {"accept": "application/x-ndjson"}
FAST = {"tokens": 200, "tokens_per_second": 400}
STALLED = {"tokens": 5, "stall_after": 2}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    await asyncio.to_thread(clients)
    settings = {"keepalive_seconds": 1, "retry_milliseconds": 100}
    async with System(gateways=2, gateway_settings=settings, settings={"lease_seconds": 1}) as system:
        yield system


def lines_of(body: str) -> list[dict[str, Any]]:
    """Parses each line by itself, as the simplest client would."""
    assert body.endswith("\n")
    return [json.loads(line) for line in body[:-1].split("\n")]


async def fetched(system: System, stream_id: str, query: str = "", *, gateway: int = 0, **headers: str) -> Any:
    url = system.events_url(stream_id, gateway=gateway) + query
    return await system.http.get(
        url, headers={**NDJSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
    )


async def test_the_same_events_as_server_sent_events(system: System) -> None:
    stream_id = await system.create("same", simulate=FAST)
    followed, sse = await asyncio.gather(fetched(system, stream_id), system.follow(stream_id, gateway=1).until_end())
    assert followed.headers["content-type"] == "application/x-ndjson"
    assert followed.headers["vary"] == "accept"
    lines = lines_of(followed.text)
    assert {frozenset(line) for line in lines} == {frozenset({"id", "event", "data"})}
    without_live = [(line["id"], line["event"], line["data"]) for line in lines if line["event"] != "live"]
    assert without_live == [(one.id, one.event, json.loads(one.data)) for one in sse.messages if one.event != "live"]
    (live,) = [line for line in lines if line["event"] == "live"]
    assert live["id"] is None
    replayed = lines_of((await fetched(system, stream_id, gateway=1)).text)
    assert [tuple(line.values()) for line in replayed] == without_live


@pytest.mark.parametrize("by", ["header", "query"])
async def test_resumed(system: System, by: str) -> None:
    stream_id = await system.create(f"resume {by}", simulate=FAST)
    await system.until_status(stream_id, "completed")
    whole = lines_of((await fetched(system, stream_id)).text)
    for offset in (0, 1, 57, 199, 200):
        cursor = f"1-{offset}"
        if by == "header":
            rest = await fetched(system, stream_id, gateway=1, last_event_id=cursor)
        else:
            rest = await fetched(system, stream_id, f"?last_event_id={cursor}", gateway=1)
        assert lines_of(rest.text) == whole[offset + 1 :]
    assert (await fetched(system, stream_id, last_event_id="1-201")).status_code == 204
    assert [line["event"] for line in lines_of((await fetched(system, stream_id, "?from=now")).text)] == ["done"]


async def test_a_silent_stream_is_kept_alive_and_no_line_is_empty(system: System) -> None:
    stream_id = await system.create("silence", simulate=STALLED)
    body = bytearray()

    async def read() -> None:
        async with system.http.stream("GET", system.events_url(stream_id), headers=NDJSON) as response:
            async for part in response.aiter_bytes():
                body.extend(part)

    reading = asyncio.create_task(read())
    await wait_until(lambda: re.search(rb"\n +$", body), what="a keep-alive")
    received = len(body)
    await wait_until(lambda: len(body) >= received + 2, what="two more")
    await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")
    await reading
    lines = lines_of(body.decode())
    assert lines[-1]["event"] == "cancelled"
    tokens = [line["data"]["token"] for line in lines if line["event"] == "message"]
    assert tokens == ["This", " is"]


async def test_jq_reads_keep_alives_too(system: System) -> None:
    """A keep-alive is a space before a line, which every JSON parser ignores as white space."""
    jq = shutil.which("jq")
    needs("jq (Debian: apt install jq)", jq)
    assert jq is not None
    process = await asyncio.create_subprocess_exec(
        jq, "-c", ".event", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate(b'{"event":"a"}\n   {"event":"b"}\n ')
    assert output.split() == [b'"a"', b'"b"']


async def test_node_reconnects_after_the_gateway_was_stopped(system: System) -> None:
    """The gateway is stopped in mid-answer: the last line says when to reconnect, and the rest follows without a hole."""
    async with System(gateway_settings={"connection_seconds": 0.3, "retry_milliseconds": 100}) as own:
        stream_id = await own.create("node", simulate={"tokens": 90, "tokens_per_second": 45})
        lines = await (await Node.run("ndjson.mjs", own.events_url(stream_id))).until_end()
        statuses = [one["status"] for one in lines if "status" in one]
        assert len(statuses) >= 3
        assert set(statuses) == {200}
        again = [one for one in lines if one.get("event") == "retry"]
        assert len(again) == len(statuses) - 1, "each response that ended early said so in its last line"
        assert all(one["id"] is None and 25 <= one["data"]["milliseconds"] <= 100 for one in again)
        assert not [one for one in lines if "cut" in one or "error" in one]
        tokens = [one for one in lines if one.get("event") == "message"]
        assert [one["id"] for one in tokens] == [f"1-{offset}" for offset in range(1, 91)]
        assert "".join(one["data"]["token"] for one in tokens) == (await own.state(stream_id))["text"]


async def test_node_resumes_after_the_gateway_was_killed(system: System) -> None:
    async with System() as own:
        stream_id = await own.create("killed", simulate={"tokens": 120, "tokens_per_second": 60})
        reader = await Node.run("ndjson.mjs", own.events_url(stream_id))
        await wait_until(lambda: len(reader.lines) > 30, within_seconds=15, what="30 lines")
        own.gateways[0].kill()
        await own.start_gateway(0)
        lines = await reader.until_end()
        assert [one for one in lines if "error" in one], "it was cut off, and saw it"
        tokens = [one["id"] for one in lines if one.get("event") == "message"]
        assert tokens == [f"1-{offset}" for offset in range(1, 121)]


async def test_curl_pipes_lines(system: System) -> None:
    needs("curl", shutil.which("curl"))
    stream_id = await system.create("curl", simulate=FAST)
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sSN", "--max-time", "20", "-H", "Accept: application/x-ndjson", system.events_url(stream_id)),
        stdout=asyncio.subprocess.PIPE,
    )
    body, _ = await process.communicate()
    assert process.returncode == 0
    assert lines_of(body.decode())[-1]["event"] == "done"


async def test_lines_read_by_httpx(system: System) -> None:
    stream_id = await system.create("httpx", simulate=FAST)
    async with (
        httpx.AsyncClient(timeout=10.0, trust_env=False) as client,
        client.stream("GET", system.events_url(stream_id), headers=NDJSON) as response,
    ):
        events = [json.loads(line)["event"] async for line in response.aiter_lines()]
    assert events.count("message") == 200
    assert events[-1] == "done"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "text/event-stream; charset=utf-8"),
        ("application/json", "text/event-stream; charset=utf-8"),
        ("application/json, text/plain, */*", "text/event-stream; charset=utf-8"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/event-stream; charset=utf-8"),
        ("application/x-ndjson, */*", "application/x-ndjson"),
        ("application/x-ndjson;q=0.5, text/event-stream", "text/event-stream; charset=utf-8"),
        ("text/plain;q=0.4, APPLICATION/X-NDJSON;q=0.9", "application/x-ndjson"),
        ("text/plain", "text/plain; charset=utf-8"),
        ("text/plain, */*;q=0.1", "text/plain; charset=utf-8"),
    ],
)
async def test_media_types_of_the_accept_header(system: System, accept: str, media_type: str) -> None:
    stream_id = await system.create("accept", simulate={"tokens": 1, "tokens_per_second": 0})
    response = await system.http.get(system.events_url(stream_id), headers={"accept": accept})
    assert response.headers["content-type"] == media_type


async def test_errors_are_problems(system: System) -> None:
    wrong = await fetched(system, new_stream_id())
    assert (wrong.status_code, wrong.headers["content-type"]) == (404, "application/problem+json")
    stream_id = await system.create("errors", simulate={"tokens": 1})
    assert (await fetched(system, stream_id, last_event_id="x")).status_code == 400


async def test_a_restart_is_an_event(system: System) -> None:
    """A worker dies in mid-answer: another one restarts it, and the line says how many tokens are kept."""
    stream_id = await system.create("restart", simulate={"tokens": 60, "tokens_per_second": 40})
    reading = asyncio.create_task(fetched(system, stream_id))
    await system.follow(stream_id, gateway=1).until_tokens(10)
    (await system.worker_of(stream_id)).kill()
    await system.start_worker(0)
    lines = lines_of((await reading).text)
    (restarted,) = [line for line in lines if line["event"] == "restarted"]
    assert restarted["id"] == "2-0"
    assert restarted["data"]["base"] == 0
    after = lines[lines.index(restarted) + 1 :]
    tokens = [line["data"]["token"] for line in after if line["event"] == "message"]
    assert "".join(tokens) == (await system.state(stream_id))["text"]
    assert len(tokens) == 60
