"""A real gateway with garbage in logs and on their channels: only the damaged stream is affected.

Every reader, through every API, gets one end; no answer is a 5xx; an end that can be appended is appended once; and a reader of
another stream, connected all the time, notices nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import orjson
import pytest
import pytest_asyncio
import redis.exceptions
from websockets.asyncio.client import connect

from shared.ids import EventId, new_stream_id
from shared.keys import (
    PROCESSES_ABOUT,
    PROCESSES_UNTIL,
    chat_key,
    deliveries_key,
    idempotency_key,
    live_channel,
    log_key,
)
from shared.receipt import DeliveryNote
from shared.sse import Decoder, Message
from tests.support.system import Reader, System, answer_of
from tests.support.waiting import wait_until
from tests.unit.test_damaged_logs import ACCEPTED, DAMAGED, DONE, STARTED, nested

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED = int(os.environ.get("SEED", "1"))
"""Of what the tests choose at random: the same in each run, so that a run that fails fails again; `SEED=7 make test ARGS=…`."""
LOG_SECONDS = 300
END_SECONDS_MAX = 20.0
"""The longest that a reader may wait for the end, on a machine with other work."""
BEGUN: list[tuple[bytes, Sequence[bytes]]] = [
    (b"0-1", (b"accepted", ACCEPTED)),
    (b"1-0", (b"started", STARTED)),
    (b"1-1", (b"t", b"a")),
]
TERMINAL = ("done", "failed", "cancelled")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with System(gateways=1, workers=0, settings={"sweep_seconds": 1}) as system:
        yield system


class Neighbour:
    """An intact stream that a reader follows all the time, through the same gateway."""

    def __init__(self, system: System) -> None:
        self.system, self.stream_id, self.count = system, new_stream_id(), 0

    async def start(self) -> Reader:
        for entry in BEGUN[:2]:
            await append(self.system, self.stream_id, *entry)
        self.reader = self.system.follow(self.stream_id)
        await self.reader.until_event("started")
        await self.reader.until_event("live")
        return self.reader

    async def append_token(self) -> None:
        """Appends a token, and checks that it arrives: the subscription still works."""
        self.count += 1
        await append(self.system, self.stream_id, b"1-%d" % self.count, (b"t", b"%d" % self.count))
        await self.reader.until_tokens(self.count)
        assert self.reader.tokens == [str(number + 1) for number in range(self.count)]

    async def finish(self) -> None:
        await append(self.system, self.stream_id, b"1-%d" % (self.count + 1), (b"done", DONE))
        await self.reader.until_end()
        assert answer_of(self.reader.messages).end == "done"  # exact ids, in order


@pytest_asyncio.fixture(loop_scope="module")
async def neighbour(system: System) -> AsyncIterator[Neighbour]:
    neighbour = Neighbour(system)
    await neighbour.start()
    before = await system.metric("midstream_redis_reconnects_total")
    yield neighbour
    await neighbour.append_token()
    await neighbour.finish()
    assert await system.metric("midstream_redis_reconnects_total") == before
    assert await system.metric("midstream_redis_callbacks_failed_total") == 0
    assert await system.metric("midstream_face_failures_total") == 0


async def append(system: System, stream_id: str, event_id: bytes, fields: Sequence[bytes], push: bool = True) -> None:
    if len(fields) % 2 or not fields:
        return  # Redis refuses such an entry
    try:
        await system.commands.execute_command("XADD", log_key(stream_id), event_id, *fields)
    except redis.exceptions.ResponseError as refused:
        if "equal or smaller" in str(refused):  # the stream has been ended: its writer is fenced
            return
        raise
    await system.commands.expire(log_key(stream_id), LOG_SECONDS)
    if push:
        await system.commands.execute_command("SPUBLISH", live_channel(stream_id), b" ".join((event_id, *fields)))


def messages_of(body: bytes) -> list[Message]:
    return list(Decoder().feed(body))


class Faces:
    """All ways to read one stream. Each checks that it gets exactly one end, and must not hang."""

    def __init__(self, system: System, stream_id: str) -> None:
        self.system, self.stream_id = system, stream_id
        self.url = system.gateway_url()

    async def all(self, *, ended: bool = True) -> None:
        """Reads the stream to its end in all ways at the same time."""
        await self.system.commands.set(chat_key("anonymous", self.stream_id), self.stream_id, ex=LOG_SECONDS)
        ways = [self.native, self.ndjson, self.text, self.prompt, self.chat, self.responses, self.ai, self.websocket]
        async with asyncio.timeout(END_SECONDS_MAX):
            await asyncio.gather(*(way() for way in ways))
            if ended:
                await self.whole()

    async def get(self, path: str, **headers: str) -> Any:
        """Reads a whole response; its body may be cut off."""
        body, is_whole = b"", True
        async with self.system.http.stream("GET", self.url + path, headers=headers) as response:
            try:
                async for part in response.aiter_bytes():
                    body += part
            except httpx2.RemoteProtocolError:
                is_whole = False
        assert is_whole or path.endswith("/text"), path
        assert response.status_code < 500, (path, response.status_code, body)
        return response.status_code, body

    async def native(self) -> None:
        status, body = await self.get(f"/v1/streams/{self.stream_id}/events")
        events = messages_of(body)
        assert [one.event for one in events if one.event in TERMINAL] == [events[-1].event], events
        again, _ = await self.get(f"/v1/streams/{self.stream_id}/events", **{"last-event-id": events[-1].id})
        assert (status, again) == (200, 204), body

    async def ndjson(self) -> None:
        _, body = await self.get(f"/v1/streams/{self.stream_id}/events", accept="application/x-ndjson")
        lines = [json.loads(line) for line in body.splitlines()]
        assert [one["event"] for one in lines if one["event"] in TERMINAL] == [lines[-1]["event"]], lines

    async def text(self) -> None:
        status, _ = await self.get(f"/v1/streams/{self.stream_id}/text")
        assert status == 200

    async def prompt(self) -> None:
        _, body = await self.get("/stream", **{"last-event-id": f"{self.stream_id}/0-0"})
        assert body.count(b"data: [DONE]") == 1, body

    async def chat(self) -> None:
        status, body = await self.get(f"/v1/chat/completions/{self.stream_id}/events")
        assert status == 200
        assert body.count(b"data: [DONE]") + body.count(b'"error":{') == 1, body

    async def responses(self) -> None:
        status, body = await self.get(f"/v1/responses/resp_{self.stream_id}?stream=true")
        ends = [one.event for one in messages_of(body) if one.event in ENDS_OF_RESPONSES]
        assert (status, len(ends)) == (200, 1), body

    async def ai(self) -> None:
        status, body = await self.get(f"/api/chat/{self.stream_id}/stream?ended=replay")
        assert (status, body.count(b"data: [DONE]")) == (200, 1), body

    async def websocket(self) -> None:
        async with connect(f"{self.url.replace('http', 'ws')}/v1/streams/{self.stream_id}/ws") as socket:
            names = [json.loads(message)["event"] async for message in socket]
            assert [one for one in names if one in TERMINAL] == names[-1:], names
        assert socket.close_code == 1000

    async def whole(self) -> None:
        """Makes the requests that are answered at once."""
        for path in ("", "?wait=0.1", "/receipt"):
            status, body = await self.get(f"/v1/streams/{self.stream_id}{path}")
            assert (status, json.loads(body)["id"]) == (200, self.stream_id)
        status, _ = await self.get(f"/v1/responses/resp_{self.stream_id}")
        assert status == 200
        status, _ = await self.get(f"/v1/responses/resp_{self.stream_id}?stream=true&starting_after=0")
        assert status == 200

    async def cancel_and_delete(self) -> None:
        cancelled = await self.system.http.post(f"{self.url}/v1/streams/{self.stream_id}/cancel")
        stopped = await self.system.http.post(f"{self.url}/api/chat/{self.stream_id}/stop")
        deleted = await self.system.http.delete(f"{self.url}/v1/streams/{self.stream_id}")
        assert (cancelled.status_code, stopped.status_code, deleted.status_code) == (200, 200, 204)
        gone = await self.system.http.get(f"{self.url}/v1/streams/{self.stream_id}")
        assert gone.status_code == 404


ENDS_OF_RESPONSES = ("response.completed", "response.incomplete", "response.failed")


async def state(system: System, stream_id: str) -> tuple[str, str | None]:
    found = await system.state(stream_id)
    return found["status"], (found["error"] or {}).get("code")


async def failures_in(system: System, stream_id: str) -> int:
    entries = await system.commands.xrange(log_key(stream_id))
    return sum(b"failed" in fields and b"unreadable" in fields[b"failed"] for _, fields in entries)


WRITABLE = [name for name, raw in DAMAGED.items() if all(len(fields) and not len(fields) % 2 for _, fields in raw)]


@pytest.mark.parametrize("name", WRITABLE)
async def test_a_damaged_log(system: System, neighbour: Neighbour, name: str) -> None:
    stream_id = new_stream_id()
    newest = (0, 0)
    for event_id, fields in DAMAGED[name]:
        attempt, offset = map(int, event_id.split(b"-"))
        if (attempt, offset) > newest:  # Redis refuses smaller ids
            newest = (attempt, offset)
            await append(system, stream_id, event_id, fields, push=False)
    faces = Faces(system, stream_id)
    await faces.all()
    assert await state(system, stream_id) == ("failed", "unreadable")
    await neighbour.append_token()
    await faces.cancel_and_delete()


@pytest.mark.parametrize(
    "fields",
    [
        (b"t", b"\xff"),
        (b"t", b"a", b"t", b"b"),
        (b"d", b"[1]"),
        (b"b", b'["x",null]'),
        (b"done", b"{}"),
        (b"failed", b"nothing"),
    ],
)
async def test_a_log_damaged_while_readers_follow_it(
    system: System, neighbour: Neighbour, fields: tuple[bytes, ...]
) -> None:
    """The end is appended, once, to a log that has not ended."""
    stream_id = new_stream_id()
    for entry in BEGUN:
        await append(system, stream_id, *entry)
    reading = asyncio.create_task(Faces(system, stream_id).all())
    followed = "midstream_readers"
    await wait_until(lambda: at_least(system, followed, 9), what="all follow")
    await append(system, stream_id, b"1-2", fields, push=len(fields) == 2)
    if fields[0] in (b"done", b"failed"):
        await reading  # by then the gateway has tried to append an end, behind which nothing of the test stands yet
    else:
        await wait_until(lambda: has_failed_entry(system, stream_id), what="the end stands in the log")
    await append(system, stream_id, b"9-0", (b"restarted", b"{}"), push=False)  # entries behind the end are not read
    await reading
    assert await failures_in(system, stream_id) == (fields[0] not in (b"done", b"failed"))
    assert await state(system, stream_id) == ("failed", "unreadable")
    await neighbour.append_token()


async def at_least(system: System, metric: str, count: int) -> bool:
    return await system.metric(metric) >= count


async def has_failed_entry(system: System, stream_id: str) -> bool:
    return await failures_in(system, stream_id) == 1


@pytest.mark.parametrize("ended", [True, False])
async def test_a_long_log_damaged_in_its_middle(system: System, neighbour: Neighbour, ended: bool) -> None:
    """Further back than the ring reaches, and than one read of the log covers."""
    stream_id = new_stream_id()
    for entry in BEGUN:
        await append(system, stream_id, *entry, push=False)
    pipeline = system.commands.pipeline(transaction=False)
    for offset in range(2, 1601):
        pipeline.execute_command("XADD", log_key(stream_id), f"1-{offset}", "t", b"\xff" if offset == 700 else b"x")
    if ended:
        pipeline.execute_command("XADD", log_key(stream_id), "1-1601", "done", DONE)
    await pipeline.execute()
    held = system.follow(stream_id, query="?from=now")
    await wait_until(lambda: held.status == 200, what="somebody follows it from its end")
    await Faces(system, stream_id).all()
    for after in (1, 650, 699):
        reader = await system.follow(stream_id, after=f"1-{after}").until_end()
        assert [one.id for one in reader.messages] == [f"1-{offset}" for offset in range(after + 1, 701)]
        assert [one.event for one in reader.messages[-1:]] == ["failed"]
    assert (await system.follow(stream_id, after="1-700").until_end()).status == 204
    await held.until_end()
    assert await failures_in(system, stream_id) == (not ended)
    await neighbour.append_token()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "stream": True}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/responses", {"input": "hi", "stream": True}),
    ],
)
async def test_waiting_requests_get_an_error_for_a_damaged_log(
    system: System, neighbour: Neighbour, path: str, body: dict[str, Any]
) -> None:
    """Requests that wait for the whole answer or for the first token get an error that no SDK retries."""
    before = set(await system.logs())
    waiting = asyncio.create_task(system.http.post(system.gateway_url() + path, json={"model": "m", **body}))

    async def created() -> bool:
        return len(set(await system.logs()) - before) == 1

    await wait_until(created, what="the stream is there")
    (key,) = set(await system.logs()) - before
    stream_id = key.decode().partition("{")[2].partition("}")[0]
    await append(system, stream_id, b"1-0", (b"started", b"\xff"))
    async with asyncio.timeout(END_SECONDS_MAX):
        response = await waiting
    assert (response.status_code, response.json()["error"]["code"]) == (424, "unreadable")
    await neighbour.append_token()


ODD_DELTAS: list[Any] = [
    {"delta": {"tool_calls": [None]}},
    {"delta": {"tool_calls": 5}},
    {"delta": {"tool_calls": [{"index": "x", "id": 7, "function": {"name": [], "arguments": {"a": 1}}}]}},
    {"delta": {"content": "x"}, "logprobs": 1.5},
    {"delta": {"content": "x"}, "logprobs": {"content": [1, {"token": 1, "top_logprobs": 7}]}},
    {"delta": {"content": ["x"]}, "finish_reason": {"a": 1}, "index": "0"},
    {"delta": {"content": "x"}, "index": [0]},
    {"delta": "x"},
    {"index": -1},
    {},
]


@pytest.mark.parametrize("live", [False, True])
async def test_odd_deltas_are_shown_as_far_as_possible(system: System, neighbour: Neighbour, live: bool) -> None:
    stream_id, done = new_stream_id(), value_with_odd_words()
    for entry in BEGUN:
        await append(system, stream_id, *entry)
    reading = asyncio.create_task(Faces(system, stream_id).all()) if live else None
    if live:
        await wait_until(lambda: at_least(system, "midstream_readers", 9), what="all follow")
    offset = 1
    for delta in ODD_DELTAS:
        offset += 1
        await append(system, stream_id, b"1-%d" % offset, (b"d", orjson.dumps(delta)))
    for value in (nested(200), nested(900)):
        offset += 2
        await append(system, stream_id, b"1-%d" % offset, (b"b", b'["y",' + value + b"]"))
    await append(system, stream_id, b"1-%d" % (offset + 1), (b"done", done))
    await (reading or Faces(system, stream_id).all())
    found = await system.state(stream_id)
    assert (found["status"], found["text"], found["tokens"]) == ("completed", "axxxykeptykept", offset)
    await neighbour.append_token()
    await Faces(system, stream_id).cancel_and_delete()


def value_with_odd_words() -> bytes:
    usage = {"prompt_tokens": "1", "prompt_tokens_details": [1], "completion_tokens_details": 5}
    return orjson.dumps({"finish_reason": {"a": 1}, "usage": usage, "time": 1.0, "provider": [], "choice": 7})


@pytest.mark.parametrize("kind", ["string", "hash", "list"])
async def test_a_key_of_another_type(system: System, neighbour: Neighbour, kind: str) -> None:
    stream_id = new_stream_id()
    command: tuple[Any, ...] = {"string": ("SET",), "hash": ("HSET", "f"), "list": ("RPUSH",)}[kind]
    await system.commands.execute_command(command[0], log_key(stream_id), *command[1:], b"v")
    await system.commands.expire(log_key(stream_id), LOG_SECONDS)
    faces = Faces(system, stream_id)
    await faces.all()
    assert await state(system, stream_id) == ("failed", "unreadable")
    await neighbour.append_token()
    await faces.cancel_and_delete()


async def test_garbage_on_a_channel(system: System, neighbour: Neighbour) -> None:
    """Garbage is ignored and counted, the log is read, and no subscription is lost."""
    stream_id = new_stream_id()
    for entry in BEGUN:
        await append(system, stream_id, *entry)
    reader = system.follow(stream_id)
    await reader.until_tokens(1)
    before = await system.metric("midstream_pushes_passed_over_total")
    choose = random.Random(SEED)
    odd = [
        b"",
        b" ",
        b"  ",
        b"1-2",
        b"1-2 t",
        b"x y z",
        b"1- t z",
        b"1-2 t \xff",
        b"1-2 b {",
        b"1-2 b 5",
        b"1-2 d [",
        b"1-2 done {}",
    ]
    odd += [
        b"1-2 accepted {}",
        b"1-2  x",
        b"9-9 t x",
        b"-1 t x",
        b"1-2 started " + STARTED,
        b"18446744073709551615-1 t x",
    ]
    odd += [choose.randbytes(choose.randrange(30)) for _ in range(60)]
    for message in odd:
        await system.commands.execute_command("SPUBLISH", live_channel(stream_id), message)
    await wait_until(lambda: at_least(system, "midstream_pushes_passed_over_total", int(before) + 15), what="counted")
    for offset in (2, 3, 4):
        await append(system, stream_id, b"1-%d" % offset, (b"t", b"%d" % offset), push=offset == 4)
    await reader.until_tokens(4)
    await append(system, stream_id, b"1-5", (b"done", DONE))
    await reader.until_end()
    assert answer_of(reader.messages).tokens == ["a", "2", "3", "4"]
    await neighbour.append_token()


async def test_garbage_in_other_keys(system: System, neighbour: Neighbour) -> None:
    """A chat's newest stream, an idempotency key, delivery notes, and heartbeats of processes."""
    http, url, commands = system.http, system.gateway_url(), system.commands
    for chat, value in (("one", b"\xff\xfe"), ("two", b"no stream"), ("three", b"0" * 36 + b"\n")):
        await commands.set(chat_key("anonymous", chat), value, ex=LOG_SECONDS)
    await commands.rpush(chat_key("anonymous", "four"), b"x")
    await commands.expire(chat_key("anonymous", "four"), LOG_SECONDS)
    for chat in ("one", "two", "three", "four"):
        assert (await http.get(f"{url}/api/chat/{chat}/stream")).status_code == 204
        stopped = await http.post(f"{url}/api/chat/{chat}/stop")
        assert (stopped.status_code, stopped.json()["stopped"]) == (200, False)

    body = {"messages": [{"role": "user", "content": "hi"}]}
    created = await http.post(f"{url}/v1/streams", json=body, headers={"idempotency-key": "garbage"})
    (name,) = [key async for key in commands.scan_iter(match=idempotency_key("*"))]
    for spoil in (("SET", name, b"\xff"), ("SET", name, b"x y"), ("DEL", name), ("RPUSH", name, b"x")):
        await commands.execute_command(*spoil)
        await commands.expire(name, LOG_SECONDS)
        if spoil[0] != "DEL":
            first = await http.post(f"{url}/v1/streams", json=body, headers={"idempotency-key": "garbage"})
            again = await http.post(f"{url}/v1/streams", json=body, headers={"idempotency-key": "garbage"})
            assert (first.status_code, again.json()) == (201, first.json())

    stream_id = created.json()["id"]
    delivered = DeliveryNote("c", "g", EventId(0, 0), EventId(1, 1), 5.0, noted_at=6.0).stored()
    notes = (b"\xff", b"5", b"{}", b'{"id":1}', b'{"from":"x","to":"1-1"}', nested(900))
    for index, note in enumerate((*notes, *(delivered.replace(b"6.0", odd) for odd in (b'"x"', b"[]", b"true")))):
        await commands.hset(deliveries_key(stream_id), f"c{index}", note)
    await commands.hset(deliveries_key(stream_id), "usage", b"[]")
    await commands.expire(deliveries_key(stream_id), LOG_SECONDS)
    receipt = await http.get(f"{url}/v1/streams/{stream_id}/receipt")
    assert (receipt.status_code, receipt.json()["delivered"]["connections"]) == (200, [])
    await commands.delete(deliveries_key(stream_id))
    await commands.set(deliveries_key(stream_id), b"x", ex=LOG_SECONDS)
    assert (await http.get(f"{url}/v1/streams/{stream_id}/receipt")).status_code == 200

    words = (
        b"\xff",
        b"5",
        b"{}",
        b'{"kind":1,"name":2,"started_at":3}',
        b'{"kind":"gateway","name":"x","started_at":"x"}',
        nested(900),
    )
    for index, word in enumerate(words):
        await commands.zadd(PROCESSES_UNTIL, {f"odd-{index}": 1e15})
        await commands.hset(PROCESSES_ABOUT, f"odd-{index}", word)
    await commands.xadd("midstream:requests", {b"id": b"\xff\xfe"})
    overview = await http.get(f"{url}/v1/overview")
    assert (overview.status_code, overview.json()["redis"]["up"]) == (200, True)
    assert [one["kind"] for one in overview.json()["processes"]] == ["gateway"]
    await neighbour.append_token()


async def test_random_entries_and_pushes(system: System, neighbour: Neighbour) -> None:
    """Any entries in a log lead to one end for each reader."""
    choose = random.Random(SEED)
    fields = [
        b"t",
        b"d",
        b"b",
        b"accepted",
        b"started",
        b"restarted",
        b"done",
        b"failed",
        b"cancelled",
        b"x",
    ]
    values = [
        b"",
        b"x",
        b"\xff",
        b"{}",
        b"[]",
        b"null",
        b'["x"]',
        b'{"delta":{}}',
        ACCEPTED,
        STARTED,
        DONE,
        nested(300),
    ]
    for _ in range(8):
        stream_id = new_stream_id()
        entries = list(BEGUN) if choose.random() < 0.7 else []
        places = sorted({(choose.randrange(4), choose.randrange(1, 6)) for _ in range(choose.randrange(1, 6))})
        for place in places:
            if place > (1, 1) or not entries:
                entries.append((b"%d-%d" % place, (choose.choice(fields), choose.choice(values))))
        entries.append((b"7-7", (b"t", b"\xff")))
        if choose.random() < 0.5:
            for entry in entries:
                await append(system, stream_id, *entry, push=False)
            await following_all(system, stream_id, choose)
        else:
            await append(system, stream_id, *entries[0])
            reading = asyncio.create_task(following_all(system, stream_id, choose))
            for entry in entries[1:]:
                await append(system, stream_id, *entry)
            await reading
        await neighbour.append_token()


async def following_all(system: System, stream_id: str, choose: random.Random) -> None:
    found = await system.http.get(f"{system.gateway_url()}/v1/streams/{stream_id}")
    assert found.status_code == 200, found.text
    await Faces(system, stream_id).all()
