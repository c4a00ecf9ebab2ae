"""Streams that programs write over HTTP: two gateways, other faces, bounds, ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from gateway.facades.durable.offsets import offset_of
from gateway.facades.durable.services import NOTED_BYTES
from shared.ids import EventId
from shared.sse import Decoder
from tests.support.system import Reader, System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"content-type": "application/json"}
BYTES_MAX = 4096
ORPHAN_SECONDS = 1.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system() -> AsyncIterator[System]:
    settings = {"sweep_seconds": 0.2, "orphan_seconds": ORPHAN_SECONDS}
    bounds = {
        "append_bytes_max": 1024,
        "stream_bytes_max": BYTES_MAX,
        "written_life_seconds_max": 3600,
        "long_poll_seconds": 10,
    }
    async with System(gateways=2, settings=settings, gateway_settings=bounds) as system:
        yield system


class Path:
    """A path of a stream, at both gateways."""

    def __init__(self, system: System, path: str) -> None:
        self._system, self._path = system, path

    async def ask(self, method: str, query: str = "", *, gateway: int = 0, **more: Any) -> httpx2.Response:
        url = f"{self._system.gateway_url(gateway)}/v1/stream/{self._path}{query}"
        return await self._system.http.request(method, url, **more)

    async def put(self, content: Any = None, **more: Any) -> httpx2.Response:
        body = b"" if content is None else json.dumps(content).encode()
        return await self.ask("PUT", headers=JSON | more.pop("headers", {}), content=body, **more)

    async def post(self, content: Any, **more: Any) -> httpx2.Response:
        return await self.ask("POST", headers=JSON | more.pop("headers", {}), json=content, **more)

    async def close(self, **headers: str) -> httpx2.Response:
        return await self.ask("POST", headers={"stream-closed": "true", **headers})

    async def read(self, query: str = "", *, gateway: int = 0) -> Any:
        answer = await self.ask("GET", query, gateway=gateway)
        assert answer.status_code == 200, answer.text
        return answer.json()


def place(offset: int) -> str:
    return offset_of(EventId(1, offset))


async def test_of_many_who_make_one_name_one_makes_it(system: System) -> None:
    path = Path(system, "raced")
    answers = await asyncio.gather(*(path.put([number], gateway=number % 2) for number in range(20)))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 200: 19}
    assert len({answer.headers["x-stream-id"] for answer in answers}) == 1
    first = next(number for number, answer in enumerate(answers) if answer.status_code == 201)
    assert await path.read(gateway=1) == [first]


async def test_a_gateway_that_remembers_a_deleted_stream_finds_the_new_one(system: System) -> None:
    path = Path(system, "remade/of course")
    old = (await path.put([1])).headers["x-stream-id"]
    assert (await path.post([2], gateway=1)).status_code == 204
    assert (await path.ask("DELETE")).status_code == 204
    assert (await path.post([3], gateway=1)).status_code == 404
    new = (await path.put([4])).headers["x-stream-id"]
    assert new != old
    assert (await path.post([5], gateway=1)).status_code == 204
    assert await path.read() == [4, 5]


async def test_a_long_poll_and_a_live_reader_at_the_other_gateway(system: System) -> None:
    path = Path(system, "live")
    await path.put([1])
    polls = [asyncio.create_task(path.ask("GET", "?offset=now&live=long-poll", gateway=1)) for _ in range(2)]
    reader = Reader(system.http, f"{system.gateway_url(1)}/v1/stream/live?offset=-1&live=sse")

    def controls() -> list[Any]:
        return [json.loads(message.data) for message in reader.messages if message.event == "control"]

    def is_at(offset: int) -> bool:
        return any(control.get("upToDate") and control["streamNextOffset"] == place(offset) for control in controls())

    await wait_until(lambda: is_at(1), what="what is there")
    assert not any(poll.done() for poll in polls)
    await path.post([2, 3])
    await wait_until(lambda: is_at(3), what="what is new")
    await path.close(**{"stream-outcome": "failed"})
    await reader.until_end()
    assert [json.loads(message.data) for message in reader.messages if message.event == "data"] == [[1], [2, 3]]
    assert controls()[-1] == {"streamNextOffset": place(3), "streamClosed": True, "streamOutcome": "failed"}
    for poll in await asyncio.gather(*polls):
        assert (poll.status_code, poll.json(), poll.headers["stream-next-offset"]) == (200, [2, 3], place(3))


async def test_native_faces_show_messages(system: System) -> None:
    path, url = Path(system, "shown"), system.gateway_url()
    stream_id = (await path.put([{"a": 1}, "two"])).headers["x-stream-id"]
    await path.close()
    reader = await system.follow(stream_id).until_end()
    assert [(message.event, message.data, message.id) for message in reader.messages if message.id] == [
        ("started", '{"attempt":1,"model":null}', "1-0"),
        ("message", '{"a": 1}', "1-1"),
        ("message", '"two"', "1-2"),
        ("done", '{"finish_reason":null,"truncated":false,"usage":null}', "1-3"),
    ]
    state = await system.state(stream_id)
    assert (state["status"], state["tokens"], state["text"]) == ("completed", 2, "")
    receipt = (await system.http.get(f"{url}/v1/streams/{stream_id}/receipt")).json()
    assert receipt["generated"]["tokens"] == 2

    raw = Path(system, "shown-bytes")
    about = await raw.ask("PUT", headers={"content-type": "application/octet-stream"}, content=b"\xff\x00")
    await raw.ask("POST", headers={"content-type": "application/octet-stream"}, content="é\n".encode())
    await raw.close()
    lines = (
        await system.http.get(
            system.events_url(about.headers["x-stream-id"]), headers={"accept": "application/x-ndjson"}
        )
    ).text.splitlines()
    shown = [json.loads(line) for line in lines]
    assert [(event["event"], event["data"]) for event in shown if event["id"] in ("1-1", "1-2")] == [
        ("bytes", "/wA="),
        ("text", "é\n"),
    ]


@pytest.mark.parametrize("face", ["/v1/chat/completions/chatcmpl-{}/events", "/v1/responses/resp_{}?stream=true"])
async def test_faces_of_answers_pass_messages_over(system: System, face: str) -> None:
    path = Path(system, "foreign" + face.replace("{}", ""))
    stream_id = (await path.put([{"a": 1}])).headers["x-stream-id"]
    await path.close()
    answer = await system.http.get(system.gateway_url() + face.format(stream_id))
    assert answer.status_code == 200
    assert '"a"' not in answer.text


async def test_a_generated_answer_is_read_as_json(system: System) -> None:
    stream_id = await system.create(simulate={"tokens": 30, "tokens_per_second": 200})
    path = Path(system, stream_id)
    url = f"{system.gateway_url(1)}/v1/stream/{stream_id}?offset=-1&live=sse"
    live: list[Any] = []
    async with system.http.stream("GET", url) as response:
        decoder = Decoder()
        async for part in response.aiter_bytes():
            live += decoder.feed(part)
    controls = [json.loads(message.data) for message in live if message.event == "control"]
    followed = [event for message in live if message.event == "data" for event in json.loads(message.data)]
    lines = await system.http.get(system.events_url(stream_id), headers={"accept": "application/x-ndjson"})
    expected = [event for event in map(json.loads, lines.text.splitlines()) if event["id"]]
    assert followed == expected == await path.read()
    assert controls[-1]["streamClosed"] is True
    assert controls[-1]["streamNextOffset"] == place(31)
    assert await path.read(f"?offset={place(28)}") == expected[-3:]
    at_end = await path.ask("GET", f"?offset={place(31)}")
    assert (at_end.json(), at_end.headers["stream-closed"]) == ([], "true")
    again = await path.ask("GET", f"?offset={place(31)}&live=sse")
    assert '"streamClosed":true' in again.text
    assert (await path.post([1])).status_code == 405


def ui_parts(body: str) -> list[Any]:
    """Returns the messages of all `data` events in a body."""
    return [
        part
        for message in Decoder().feed(body.encode())
        if message.event == "data"
        for part in json.loads(message.data)
    ]


async def test_a_generated_answer_is_read_as_parts_of_a_ui_message(system: System) -> None:
    """Live and caught up, at either gateway; behind any offset comes the rest, although parts depend on those before."""
    stream_id = await system.create(simulate={"tokens": 30, "tokens_per_second": 100})
    path, url = Path(system, stream_id), f"{system.gateway_url(1)}/v1/stream/{stream_id}?as=ui"
    live = ui_parts((await system.http.get(f"{url}&offset=-1&live=sse")).text)
    kinds = ["start", "start-step", "text-start", "text-end", "finish-step", "finish"]
    assert [part["type"] for part in live[:3] + live[-3:]] == kinds
    text = "".join(part["delta"] for part in live if part["type"] == "text-delta")
    assert text == (await system.state(stream_id))["text"]
    assert await path.read("?as=ui") == live
    for offset, parts_before in ((0, 2), (1, 4), (17, 20), (30, 33)):
        rest = await path.read(f"?as=ui&offset={place(offset)}")
        assert rest == live[parts_before:]
        for mode in ("sse", "long-poll"):
            answer = await path.ask("GET", f"?as=ui&offset={place(offset)}&live={mode}", gateway=1)
            assert (ui_parts(answer.text) if mode == "sse" else answer.json()) == rest
    for query in ("", "&live=sse"):
        at_end = await path.ask("GET", f"?as=ui&offset={place(31)}{query}")
        assert "true" in at_end.headers.get("stream-closed", at_end.text)
    known = await path.ask("GET", "?as=ui")
    assert known.headers["etag"] != (await path.ask("GET")).headers["etag"]
    again = await path.ask("GET", "?as=ui", headers={"if-none-match": known.headers["etag"]})
    assert again.status_code == 304
    assert (await path.ask("GET", "?as=html")).status_code == 400


async def test_a_long_poll_for_parts_waits(system: System) -> None:
    stream_id = await system.create(simulate={"tokens": 20, "tokens_per_second": 40})
    path, offset = Path(system, stream_id), "-1"
    parts: list[Any] = []
    while True:
        answer = await path.ask("GET", f"?as=ui&offset={offset}&live=long-poll")
        parts += answer.json() if answer.content else []
        offset = answer.headers["stream-next-offset"]
        if "stream-closed" in answer.headers:
            break
    assert parts == await path.read("?as=ui")


RECORDED = {
    "AG-UI": [
        b'{"type":"RUN_STARTED","timestamp":1764316800123,"threadId":"t-1","runId":"r-1"}',
        b'{"type":"TOOL_CALL_ARGS","toolCallId":"c-1","delta":"{\\"city\\": \\"Z\\u00fcrich\\"}"}',
        b'{"type":"STATE_DELTA","delta":[{"op":"replace","path":"/steps/0","value":1.0e2}]}',
        '{"type": "TEXT_MESSAGE_CONTENT", "messageId": "m-1", "delta": "Grüße 👋🏽"}'.encode(),
        b'{"type":"RUN_FINISHED","threadId":"t-1","runId":"r-1","result":null}',
    ],
    "LangGraph": [
        b'{"event":"metadata","data":{"run_id":"1ef9a6f1-03b4-6e0c-8f55-6d2b5a4b2c11","attempt":1}}',
        b'{"event":"messages","data":[{"content":"Hel","additional_kwargs":{},"type":"AIMessageChunk","id":"run-1"},'
        b'{"langgraph_step":1,"langgraph_node":"agent","ls_temperature":0.10}]}',
        b'{"event":"updates","data":{"tools":{"messages":[{"type":"tool","content":"18 \\u00b0C","tool_call_id":"c-1"}]}}}',
        b'{"event":"end","data":null}',
    ],
    "A2A": [
        b'{"jsonrpc":"2.0","id":12345678901234567890,"result":{"kind":"task","id":"task-1","contextId":"ctx-1",'
        b'"status":{"state":"submitted","timestamp":"2026-11-28T08:00:00.000Z"}}}',
        b'{"jsonrpc":"2.0","id":1,"result":{"kind":"artifact-update","taskId":"task-1","append":true,"lastChunk":false,'
        b'"artifact":{"artifactId":"a-1","parts":[{"kind":"text","text":"line\\nline"}]}}}',
        b'{"jsonrpc":"2.0","id":1,"result":{"kind":"status-update","taskId":"task-1","status":{"state":"completed"},"final":true}}',
    ],
    "UI message chunks": [
        b'{"type":"start","messageId":"m-1","messageMetadata":{"model":"m"}}',
        b'{"type":"text-delta","id":"t-1","delta":"He\\"llo"}',
        b'{"type":"data-weather","id":"d-1","data":{"degrees":18.50},"transient":true}',
        b'{"type":"finish","finishReason":"stop"}',
    ],
}
"""Events as these protocols and libraries send them, with spaces, escapes and numbers that would change if they were parsed."""


@pytest.mark.parametrize("kind", RECORDED)
async def test_payloads_of_other_protocols_pass_unchanged(system: System, kind: str) -> None:
    """Byte for byte, one append for each or all as an array, on each face and at the other gateway."""
    messages = RECORDED[kind]
    path = Path(system, f"recorded/{kind.replace(' ', '-')}")
    created = await path.ask("PUT", headers=JSON, content=messages[0])
    for message in messages[1:-1]:
        assert (await path.ask("POST", headers=JSON, content=message)).is_success
    await path.ask("POST", headers={**JSON, "stream-closed": "true"}, content=b"[ %b ]" % messages[-1])
    whole = b"[%b]" % b",".join(messages)
    stream_id = created.headers["x-stream-id"]
    assert (await path.ask("GET", gateway=1)).content == whole
    live = await path.ask("GET", "?offset=-1&live=sse", gateway=1)
    assert b"data:%b\n" % whole in live.content
    events = (await system.http.get(system.events_url(stream_id, gateway=1))).content
    assert [line.removeprefix(b"data: ") for line in events.split(b"\n") if line.startswith(b"data: ")][
        : len(messages) + 1
    ][-len(messages) :] == messages
    lines = await system.http.get(system.events_url(stream_id), headers={"accept": "application/x-ndjson"})
    for number, message in enumerate(messages, 1):
        assert b'{"id":"1-%d","event":"message","data":%b}\n' % (number, message) in lines.content


@pytest.mark.parametrize("kind", RECORDED)
async def test_an_external_writer_s_events_have_their_payload(system: System, kind: str) -> None:
    """As own events of `POST /v1/streams/{id}/events`: the same JSON."""
    messages = RECORDED[kind]
    body = {"midstream": {"writer": "external"}}
    stream_id = (await system.http.post(f"{system.gateway_url()}/v1/streams", json=body)).json()["id"]
    url = f"{system.gateway_url()}/v1/streams/{stream_id}/events"
    listed = b",".join(b'{"event":"own","data":%b}' % message for message in messages)
    assert (await system.http.post(url, content=b'[%b,{"end":"done"}]' % listed)).status_code == 200
    lines = await system.http.get(system.events_url(stream_id, gateway=1), headers={"accept": "application/x-ndjson"})
    events = [event for event in map(json.loads, lines.text.splitlines()) if event["event"] == "own"]
    assert [event["data"] for event in events] == [json.loads(message) for message in messages]


async def test_a_cancel_reaches_the_writer_at_its_next_append(system: System) -> None:
    path = Path(system, "cancelled")
    stream_id = (await path.put([1])).headers["x-stream-id"]
    assert (await path.post([2], gateway=1)).status_code == 204
    await system.http.post(f"{system.gateway_url(0)}/v1/streams/{stream_id}/cancel")
    refused = await path.post([3], gateway=1)
    assert (refused.status_code, refused.headers["stream-outcome"]) == (409, "cancelled")
    assert refused.headers["stream-next-offset"] == place(2)
    read = await path.ask("GET", f"?offset={place(2)}")
    assert (read.json(), read.headers["stream-outcome"]) == ([], "cancelled")


async def test_a_repeated_append_is_a_success_whatever_has_happened_since(system: System) -> None:
    path, producer = Path(system, "repeated"), {"producer-id": "p", "producer-epoch": "0"}
    await path.put()
    for sequence in range(3):
        first = await path.post([sequence], headers={**producer, "producer-seq": str(sequence)})
        assert first.status_code == 200
    await path.close()
    again = await path.post([0], headers={**producer, "producer-seq": "0"})
    assert (again.status_code, again.headers["producer-seq"]) == (204, "2")
    assert await path.read() == [0, 1, 2]


async def test_a_silent_writer_is_not_taken_for_a_lost_worker(system: System) -> None:
    path = Path(system, "silent")
    stream_id = (await path.put([1])).headers["x-stream-id"]
    reader = system.follow(stream_id)
    await reader.until_event("started")
    checks = await system.metric("midstream_log_checks_total")
    began_at = time.monotonic()

    async def checked_for_long() -> bool:
        looked = await system.metric("midstream_log_checks_total") >= checks + 3
        return looked and time.monotonic() - began_at > 2 * ORPHAN_SECONDS

    await wait_until(checked_for_long, what="the silent stream was compared with its log")
    assert (await path.post([2])).status_code == 204
    await path.close()
    assert [message.data for message in (await reader.until_end()).messages if message.event == "message"] == ["1", "2"]


@pytest.mark.parametrize(
    ("method", "headers", "content", "status", "words"),
    [
        ("POST", JSON, b"[%b]" % (b"1," * 600 + b"1"), 413, "1024 bytes"),
        ("PUT", {**JSON, "stream-ttl": "3601"}, b"", 400, "3600 seconds at most"),
        ("PUT", {"content-type": "text/" + "x" * 300}, b"", 400, "255"),
        ("POST", {**JSON, "stream-seq": "x" * 256}, b"1", 400, "255"),
        ("POST", {**JSON, "stream-closed": "true", "stream-outcome": "odd"}, b"1", 400, "done, failed or cancelled"),
    ],
)
async def test_bounds_of_a_request(
    system: System, method: str, headers: dict[str, str], content: bytes, status: int, words: str
) -> None:
    await Path(system, "bounded").put()
    answer = await Path(system, "bounded" if method == "POST" else "new").ask(method, headers=headers, content=content)
    assert answer.status_code == status
    assert words in answer.json()["detail"]


async def test_a_stream_has_so_many_bytes(system: System) -> None:
    path = Path(system, "full")
    await path.put()
    statuses = [(await path.post("x" * 998)).status_code for _ in range(5)]
    assert statuses == [204] * 4 + [413]
    refused = await path.post("x" * 998)
    assert "more bytes than one may have" in refused.json()["detail"]
    assert (await path.close()).status_code == 204  # a full stream can be ended


async def test_a_principal_has_so_many_streams_and_bytes() -> None:
    part = NOTED_BYTES
    bounds = {"written_streams_max": 3, "written_bytes_max": 2 * part}
    async with System(workers=0, gateway_settings=bounds) as system:
        paths = [Path(system, f"stream-{number}") for number in range(4)]
        assert [(await path.put()).status_code for path in paths] == [201, 201, 201, 429]
        assert (await paths[0].ask("DELETE")).status_code == 204
        assert (await paths[3].put(["x" * part])).status_code == 201

        async def refused() -> bool:
            answer = await paths[3].post("x" * part)
            if answer.status_code == 429:
                assert f"{2 * part} are the limit" in answer.json()["detail"]
                assert answer.headers["retry-after"] == "5"
            return answer.status_code == 429

        await wait_until(refused, what="the principal has too many bytes")
        assert (await paths[1].post([1])).status_code == 429  # in any of its streams
        assert (await paths[0].put(["x"])).status_code == 429
        assert (await paths[3].ask("DELETE")).status_code == 204
        assert (await paths[0].put(["x"])).status_code == 201


async def test_they_can_be_turned_off() -> None:
    async with System(workers=0, gateway_settings={"written_streams": "off"}) as system:
        assert (await Path(system, "x").put()).status_code == 404
        question = {"id": "chat", "messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}]}
        url = f"{system.gateway_url()}/api/chat"
        refused = await system.http.post(url, json=question, headers={"accept": "application/json"})
        assert refused.status_code == 406
