"""Streams that another program fills over HTTP: two gateways, no worker."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect

from shared.keys import lease_key, log_key
from tests.support.system import System, answer_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

NDJSON = {"content-type": "application/x-ndjson"}
CONTINUE = {"on_disconnect": "continue"}
SETTINGS = {"stream_entries_max": 40, "orphan_seconds": 1, "sweep_seconds": 0.3, "console": "on"}
"""A worker that was silent for a second would count as lost; the lease of an external writer decides alone."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with System(gateways=2, workers=0, settings=SETTINGS) as system:
        yield system


async def create(system: System, **midstream: Any) -> str:
    """Creates a stream for an external writer."""
    body = {"midstream": {"writer": "external", **CONTINUE, **midstream}}
    response = await system.http.post(f"{system.gateway_url()}/v1/streams", json=body)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


async def append(
    system: System,
    stream_id: str,
    events: Any,
    *,
    gateway: int = 0,
    after: str = "",
    status: int = 200,
    lease: str = "",
) -> dict[str, Any]:
    """Appends events; returns the answer."""
    headers = {**({"last-event-id": after} if after else {}), **({"stream-lease": lease} if lease else {})}
    content = b"" if events is None else json.dumps(events).encode()
    url = system.events_url(stream_id, gateway=gateway)
    response = await system.http.post(url, content=content, headers=headers)
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def begin(system: System, stream_id: str, writer: str = "", *, gateway: int = 0, **more: Any) -> dict[str, Any]:
    """Begins an attempt; returns the answer."""
    url = f"{system.gateway_url(gateway)}/v1/streams/{stream_id}/attempts"
    body = {**({"writer": writer} if writer else {}), **more}
    response = await system.http.post(url, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def tokens(*texts: str) -> list[dict[str, str]]:
    return [{"token": text} for text in texts]


EVENTS: list[dict[str, Any]] = [
    {"token": "It "},
    {"event": "tool", "data": {"name": "weather", "n": [1, None]}},
    {
        "delta": {
            "tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
        }
    },
    {"delta": {"reasoning_content": "hm"}},
    {"token": "rains."},
]
END = {
    "end": "done",
    "finish_reason": "length",
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


async def test_every_face_shows_what_was_written(system: System) -> None:
    """One event, an array, and the end; read live through the other gateway, and in every form afterwards."""
    stream_id = await create(system)
    reader = system.follow(stream_id, gateway=1)
    assert (await system.state(stream_id))["status"] == "queued"
    assert (await append(system, stream_id, EVENTS[0]))["last_event_id"] == "1-1"
    await reader.until_tokens(1)
    answer = await append(system, stream_id, EVENTS[1:], gateway=1)
    assert answer == {**answer, "status": "running", "attempt": 1, "tokens": 5, "listeners": 1, "last_event_id": "1-5"}
    assert (await append(system, stream_id, END))["status"] == "completed"
    shown = answer_of((await reader.until_end()).messages)
    assert shown.text == "It rains."
    assert shown.end == "done"
    assert ("tool", EVENTS[1]["data"]) in shown.items
    assert ("delta", {"reasoning_content": "hm"}) in shown.items
    assert shown.end_data == {"finish_reason": "length", "truncated": True, "usage": END["usage"]}

    url = f"{system.gateway_url(1)}/v1"
    lines = (
        await system.http.get(f"{url}/streams/{stream_id}/events", headers={"accept": "application/x-ndjson"})
    ).text
    assert [json.loads(line)["id"] for line in lines.splitlines()] == ["1-0", *(f"1-{n}" for n in range(1, 7))]
    assert (await system.http.get(f"{url}/streams/{stream_id}/text")).text == "It rains."
    async with connect(f"{url.replace('http', 'ws', 1)}/streams/{stream_id}/ws", proxy=None) as socket:
        assert json.loads([message async for message in socket][-1])["event"] == "done"
    chunks = (await system.http.get(f"{url}/chat/completions/{stream_id}/events")).text
    assert "rains." in chunks
    assert '"name":"f"' in chunks
    assert "[DONE]" in chunks
    state = await system.state(stream_id)
    assert (state["text"], state["model"], state["usage"]) == ("It rains.", "external", END["usage"])
    receipt = (await system.http.get(f"{url}/streams/{stream_id}/receipt")).json()
    assert receipt["generated"]["tokens"] == 5
    assert receipt["generated"]["attempts"][0]["worker"].startswith("http-")
    assert receipt["delivered"]["tokens"] == 5


async def test_the_console_lists_it(system: System) -> None:
    stream_id = await create(system, metadata={"user": "ann"})
    await append(system, stream_id, tokens("a", "b"))

    async def row() -> dict[str, Any]:
        overview = (await system.http.get(f"{system.gateway_url()}/v1/overview")).json()["streams"]
        found = [row for row in overview["newest"] if row["id"] == stream_id]
        assert overview["running"] >= len(found)
        return found[0] if found else {}

    await wait_until(lambda: row(), what="it is listed")
    shown = await row()
    assert (shown["status"], shown["tokens"], shown["worker"]) == ("running", 2, "external")
    assert (shown["model"], shown["metadata"]) == ("external", {"user": "ann"})
    await append(system, stream_id, {"end": "done"})


async def test_the_ai_sdk_and_openai_follow_it(system: System) -> None:
    """Created through their own APIs, with the option in the body; the response follows what the writer writes."""
    option = {"midstream": {"writer": "external", **CONTINUE}}
    message = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "hi"}]}
    requests: dict[str, dict[str, Any]] = {
        "/api/chat": {"id": "c", "messages": [message], **option},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "stream": True, **option},
        "/v1/responses": {"input": "hi", "stream": True, "background": True, **option},
    }

    async def shown(path: str, body: dict[str, Any]) -> str:
        before = set(await system.logs())
        asking = asyncio.create_task(system.http.post(system.gateway_url() + path, json=body))
        new: list[bytes] = []

        async def there() -> bool:
            new[:] = set(await system.logs()) - before
            return bool(new)

        await wait_until(there)
        stream_id = new[0].decode().partition("{")[2].partition("}")[0]
        await append(system, stream_id, [*EVENTS, {"end": "done"}], gateway=1)
        return (await asking).text

    answers = {path: await shown(path, body) for path, body in requests.items()}
    assert '"type":"data-tool"' in answers["/api/chat"]
    for path, answer in answers.items():
        assert "rains." in answer, path


async def test_an_append_that_is_repeated_is_there_once(system: System) -> None:
    stream_id = await create(system)
    first = await begin(system, stream_id, "a")
    assert (first["last_event_id"], first["tokens"]) == ("1-0", 0)
    assert await begin(system, stream_id, "a", gateway=1) == first, "the same writer has the same attempt"
    for gateway in (0, 1, 0):
        answer = await append(system, stream_id, tokens("a", "b", "c"), after="1-0", gateway=gateway)
        assert answer["last_event_id"] == "1-3"
    answer = await append(system, stream_id, tokens("b", "c", "d"), after="1-1", gateway=1)
    assert answer["last_event_id"] == "1-4", "what is there is passed over, the rest is appended"
    old = await append(system, stream_id, tokens("a", "b"), after="1-0")
    assert old["last_event_id"] == "1-4"
    gap = await append(system, stream_id, tokens("x"), after="1-7", status=409)
    assert (gap["reason"], gap["last_event_id"], gap["tokens"]) == ("gap", "1-4", 4)
    for gateway in (0, 1):
        ended = await append(system, stream_id, [*tokens("e"), {"end": "done"}], after="1-4", gateway=gateway)
        assert (ended["status"], ended["last_event_id"], ended["tokens"]) == ("completed", "1-6", 5)
    assert (await append(system, stream_id, tokens("f"), after="1-5", status=409))["reason"] == "completed"
    assert (await system.state(stream_id))["text"] == "abcde"


async def test_a_second_writer_fences_off_the_first(system: System) -> None:
    stream_id = await create(system)
    await begin(system, stream_id, "first")
    await append(system, stream_id, tokens("a", "b", "c"), after="1-0")
    reader = system.follow(stream_id)
    second = await begin(system, stream_id, "second", gateway=1)
    assert (second["last_event_id"], second["tokens"]) == ("2-0", 3), "it goes on behind what is there"
    for gateway in (0, 1):
        refused = await append(system, stream_id, tokens("X"), after="1-3", gateway=gateway, status=409)
        assert refused["reason"] == "fenced"
        assert (await append(system, stream_id, None, after="1-3", gateway=gateway, status=409))["reason"] == "fenced"
    assert (await append(system, stream_id, tokens("d"), after="2-0"))["last_event_id"] == "2-4"
    assert (await append(system, stream_id, tokens("e"), after="2-4", gateway=1))["last_event_id"] == "2-5"
    third = await begin(system, stream_id, "third", keep=1)
    assert (third["last_event_id"], third["tokens"]) == ("3-0", 1)
    await append(system, stream_id, [*tokens("z"), {"end": "done"}], after="3-0")
    answer = answer_of((await reader.until_end()).messages)
    assert answer.text == "az"
    assert [restarted["base"] for restarted in answer.restarted] == [3, 1]


async def test_of_two_writers_with_one_name_one_is_refused(system: System) -> None:
    """Both take themselves for the writer of attempt 1. What one has appended is not taken for what the other sends."""
    stream_id = await create(system)
    for gateway in (0, 1):
        await begin(system, stream_id, "same", gateway=gateway)
    await append(system, stream_id, tokens("a", "b"), after="1-0")
    for sent in (tokens("x"), tokens("a", "y"), [*tokens("a", "b"), {"end": "failed"}]):
        status = 200 if "end" in sent[-1] else 409
        answer = await append(system, stream_id, sent, after="1-0", gateway=1, status=status)
        assert status == 200 or answer["reason"] == "fenced"
    other = await append(system, stream_id, [*tokens("a", "b"), {"end": "done"}], after="1-0", status=409)
    assert other["reason"] == "failed"
    assert (await system.state(stream_id))["text"] == "ab"


async def test_plain_appends_of_many_at_once_are_all_there(system: System) -> None:
    """Without a place each append goes to the end, whoever else appends there: none is lost, none is doubled."""
    stream_id = await create(system)
    await asyncio.gather(*(append(system, stream_id, tokens(f"{n} "), gateway=n % 2) for n in range(16)))
    text = (await system.state(stream_id))["text"]
    assert sorted(map(int, text.split())) == list(range(16))


async def test_a_silent_writer_is_lost_within_its_lease(system: System) -> None:
    stream_id = await create(system, lease_seconds=2)
    await begin(system, stream_id, "a")
    reader = system.follow(stream_id)
    began_at = time.monotonic()
    while time.monotonic() - began_at < 2.5:  # heartbeats keep it alive for longer than a lease
        await append(system, stream_id, None, after="1-0")
        await asyncio.sleep(0.2)
    assert not reader.named("failed")
    heard_at = time.monotonic()
    await append(system, stream_id, tokens("a"), after="1-0")
    assert (await reader.until_event("failed"))["code"] == "writer_lost"
    assert 1.9 < time.monotonic() - heard_at < 7.0
    refused = await append(system, stream_id, tokens("b"), after="1-1", status=409)
    assert (refused["reason"], refused["code"]) == ("failed", "writer_lost")


async def test_a_stream_that_nobody_begins_to_write_fails_too(system: System) -> None:
    stream_id = await create(system, lease_seconds=1)
    assert (await system.until_status(stream_id, "failed"))["error"]["code"] == "writer_lost"


async def test_a_lease_can_be_made_longer(system: System) -> None:
    stream_id = await create(system, lease_seconds=5)
    await append(system, stream_id, tokens("a"), lease="60")
    assert await system.commands.pttl(lease_key(stream_id)) > 50_000
    await append(system, stream_id, None)
    assert await system.commands.pttl(lease_key(stream_id)) > 50_000
    await append(system, stream_id, {"end": "cancelled"})
    assert not await system.commands.exists(lease_key(stream_id))
    assert (await system.state(stream_id))["cancelled_by"] == "writer"


async def test_a_lease_can_be_made_shorter(system: System) -> None:
    """Also one that was to be looked at only after its first, long, time."""
    stream_id = await create(system, lease_seconds=60)
    await wait_until(lambda: looked_at(system, stream_id))
    await append(system, stream_id, tokens("a"), lease="1")
    assert (await system.until_status(stream_id, "failed"))["error"]["code"] == "writer_lost"


async def looked_at(system: System, stream_id: str) -> bool:
    """Whether a gateway has looked at the lease, and so has noted when it is to be looked at again."""
    return bool(await system.commands.zscore("midstream:writers", stream_id))


async def test_a_cancel_reaches_the_writer_with_its_next_append(system: System) -> None:
    stream_id = await create(system)
    await append(system, stream_id, tokens("a"))
    await system.http.post(f"{system.gateway_url(1)}/v1/streams/{stream_id}/cancel")
    refused = await append(system, stream_id, tokens("b"), status=409)
    assert (refused["reason"], refused["by"], refused["last_event_id"]) == ("cancelled", "client", "2-0")


async def test_without_readers_it_is_cancelled(system: System) -> None:
    stream_id = await create(system, on_disconnect={"cancel_after": 0.5})
    reader = system.follow(stream_id, gateway=1)
    await append(system, stream_id, tokens("a"))
    await reader.until_tokens(1)
    await asyncio.sleep(0.6)
    assert (await append(system, stream_id, None))["listeners"] == 1, "while somebody reads it goes on"
    await reader.leave()

    async def nobody_listens() -> bool:
        return not (await append(system, stream_id, None))["listeners"]

    await wait_until(nobody_listens)
    await asyncio.sleep(0.6)
    refused = await append(system, stream_id, None, status=409)
    assert (refused["reason"], refused["by"]) == ("cancelled", "disconnect")


@pytest.mark.parametrize(("cancel_after", "milliseconds"), [(0, 500), (2, 2000)])
async def test_it_waits_half_a_second_for_a_reader_at_least(
    system: System, cancel_after: float, milliseconds: int
) -> None:
    stream_id = await create(system, on_disconnect={"cancel_after": cancel_after})
    assert int(await system.commands.hget(lease_key(stream_id), "alone_ms")) == milliseconds


async def lines(queue: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    while (line := await queue.get()) is not None:
        yield line


async def test_a_long_body_is_appended_line_by_line(system: System) -> None:
    stream_id = await create(system, lease_seconds=2)
    reader = system.follow(stream_id, gateway=1)
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    posting = asyncio.create_task(system.http.post(system.events_url(stream_id), content=lines(queue), headers=NDJSON))
    for count, event in enumerate([{"token": "a"}, {"token": "b"}, {"token": "c"}], 1):
        text = json.dumps(event).encode()
        queue.put_nowait(text[:5])
        queue.put_nowait(text[5:] + b"\r\n")
        await reader.until_tokens(count)
    for _ in range(6):  # empty lines are signs of life, for longer than the lease
        queue.put_nowait(b"\n")
        await asyncio.sleep(0.5)
    queue.put_nowait(b'{"event": "step"}\n{"token": "d"}\n{"end": "done"}')
    queue.put_nowait(None)
    answer = (await posting).json()
    assert (answer["status"], answer["tokens"], answer["last_event_id"]) == ("completed", 5, "1-6")
    assert answer_of((await reader.until_end()).messages).text == "abcd"


async def raw_lines(system: System, stream_id: str, *head: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Opens a long body by hand: `write(chunk)` sends, the reader has whatever the gateway answers meanwhile."""
    reader, writer = await asyncio.open_connection("127.0.0.1", system.gateway_port())
    more = "".join(f"{line}\r\n" for line in head)
    writer.write(
        f"POST /v1/streams/{stream_id}/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
        f"Transfer-Encoding: chunked\r\n{more}\r\n".encode()
    )
    return reader, writer


def chunk(event: Mapping[str, Any]) -> bytes:
    body = json.dumps(event).encode() + b"\n"
    return b"%x\r\n%b\r\n" % (len(body), body)


async def test_a_cancel_ends_a_long_body_at_once(system: System) -> None:
    stream_id = await create(system)
    reader, writer = await raw_lines(system, stream_id)
    writer.write(chunk({"token": "a"}))
    await system.until_status(stream_id, "running")
    await system.http.post(f"{system.gateway_url(1)}/v1/streams/{stream_id}/cancel")
    answer = await asyncio.wait_for(reader.read(), 10)  # it is closed, so that the writer notices in any case
    assert b" 409 " in answer.splitlines()[0]
    assert b'"reason":"cancelled"' in answer
    writer.close()


async def test_a_long_body_is_told_its_progress(system: System) -> None:
    stream_id = await create(system)
    reader, writer = await raw_lines(system, stream_id, "Accept: application/x-ndjson")
    writer.write(chunk({"token": "a"}))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert b" 200 " in head
    assert b"application/x-ndjson" in head
    size = int(await reader.readline(), 16)
    assert json.loads(await reader.readexactly(size))["last_event_id"] == "1-1"
    await reader.readline()
    await begin(system, stream_id, "another", gateway=1)
    writer.write(chunk({"token": "b"}))  # a body without a place appends wherever the end is
    writer.write(chunk({"token": 3}))
    rest = await asyncio.wait_for(reader.read(), 5)
    assert b'"line":3' in rest
    assert b'"status":400' in rest
    assert (await system.state(stream_id))["text"] == "ab", "the lines before the one at fault are there"
    writer.close()


async def test_a_long_body_of_a_fenced_writer_is_refused(system: System) -> None:
    stream_id = await create(system)
    await begin(system, stream_id, "first")
    reader, writer = await raw_lines(system, stream_id, "Last-Event-ID: 1-0")
    writer.write(chunk({"token": "a"}))
    await system.until_status(stream_id, "running")
    await begin(system, stream_id, "second", gateway=1)
    answer = await asyncio.wait_for(reader.read(), 5)
    assert b'"reason":"fenced"' in answer
    writer.close()


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ({}, "must have one of"),
        ({"token": 1}, "token must be a text"),
        ({"token": "a", "event": "b"}, "must have one of"),
        ({"token": "a", "x": 1}, "'x' is not known"),
        ({"delta": []}, "delta must be an object"),
        ({"delta": {"tool_calls": "x"}}, "another shape"),
        ({"event": "done"}, "reserved"),
        ({"event": "a", "data": "x" * 65_536}, "65536 are the most"),
        ({"token": "x" * 65_537}, "more than 65536 bytes"),
        ({"end": "over"}, "end must be one of"),
        ({"end": "done", "finish_reason": "enough"}, "finish_reason must be"),
        ({"end": "done", "usage": {"total_tokens": "5"}}, "usage must be"),
        ({"end": "failed", "code": "No!"}, "code must be"),
        ([{"token": "a"}, 3], "event 1: an event must be a JSON object"),
        ([{"end": "done"}, {"token": "a"}], "nothing may follow"),
    ],
    ids=lambda value: None if isinstance(value, str) else json.dumps(value)[:30],
)
async def test_a_wrong_event_is_refused_with_a_sentence(system: System, events: Any, says: str) -> None:
    stream_id = await create(system)
    refused = await append(system, stream_id, events, status=400)
    assert says in refused["detail"]
    assert (await system.state(stream_id))["tokens"] == 0, "nothing of the body was appended"


async def test_bounds(system: System) -> None:
    stream_id = await create(system)
    for number in range(36):  # with `accepted`, `started` and the end there is room for 37 entries
        await append(system, stream_id, tokens(str(number)))
    await append(system, stream_id, tokens("last"))
    full = await append(system, stream_id, tokens("too much"), status=413)
    assert full["reason"] == "log_full"
    assert (await system.state(stream_id))["error"]["code"] == "log_full"
    other = await create(system)
    await append(system, other, [tokens("x" * 60_000)[0]] * 20, status=413)
    reader, writer = await raw_lines(system, other)
    for _ in range(2):
        writer.write(b"%x\r\n%b\r\n" % (40_000, b"x" * 40_000))
    assert b" 413 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()


async def test_only_a_stream_that_was_made_for_it_takes_events(system: System) -> None:
    stream_id = await system.create("a worker's")
    assert (await append(system, stream_id, tokens("a"), status=409))["reason"] == "not_external"
    assert await system.commands.xlen(log_key(stream_id)) == 1
    unknown = "0" * 36
    await append(system, unknown, tokens("a"), status=410)
    for midstream in ({"writer": "me"}, {"lease_seconds": 3}, {"writer": "external", "lease_seconds": 0}):
        response = await system.http.post(
            f"{system.gateway_url()}/v1/streams", json={"messages": [{"role": "user"}], "midstream": midstream}
        )
        assert response.status_code == 400, midstream
    deleted = await create(system)
    await system.http.delete(f"{system.gateway_url()}/v1/streams/{deleted}")
    await append(system, deleted, tokens("a"), status=404)
