"""Compares the answers of a real gateway with /openapi.json: statuses, media types, bodies and events of every operation."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator
from websockets.asyncio.client import connect

from shared.ids import new_stream_id
from shared.sse import Decoder, Message
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAST = {"tokens": 8, "tokens_per_second": 0}
MESSAGES = [{"role": "user", "content": "x"}]
ASKED = {"messages": MESSAGES, "simulate": FAST}
UI_MESSAGES = [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "x"}]}]
UNKNOWN = "{unknown}"
EXPIRED = "01m82g4k5c66h4kxepyg1ykthpcxk4ftc3a5"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    url = f"sqlite:///{tmp_path_factory.mktemp('archive')}/archive.sqlite"
    async with System(settings={"archive_url": url}) as system:
        yield system


@pytest.fixture
def system(running: System) -> System:
    return running


@dataclass(frozen=True)
class Call:
    """A request of one operation, and the status of its answer. `{id}` in the path is a stream that has completed."""

    operation: str
    method: str
    path: str
    status: int
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


def get(operation: str, path: str, status: int = 200, **headers: str) -> Call:
    return Call(
        operation, "GET", path, status, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


def post(operation: str, path: str, body: Any, status: int = 200) -> Call:
    return Call(operation, "POST", path, status, body)


CALLS = [
    post("create_stream", "/v1/streams", ASKED, 201),
    post("create_stream", "/v1/streams", {"messages": []}, 400),
    post("append_events", "/v1/streams/{external}/events", [{"token": "a"}, {"event": "tool", "data": 1}]),
    post("append_events", "/v1/streams/{external}/events", {"token": 1}, 400),
    post("append_events", "/v1/streams/{id}/events", {"token": "a"}, 409),
    post("append_events", f"/v1/streams/{UNKNOWN}/events", {"token": "a"}, 404),
    post("begin_attempt", "/v1/streams/{external}/attempts", {"writer": "me", "model": "mine"}),
    post("begin_attempt", "/v1/streams/{external}/attempts", {"keep": 10_000}, 400),
    get("list_streams", "/v1/streams?limit=2&status=completed"),
    get("list_streams", "/v1/streams?limit=0", 400),
    get("follow_stream", "/v1/streams/{id}/events"),
    get("follow_stream", "/v1/streams/{id}/events", accept="application/x-ndjson"),
    get("follow_stream", "/v1/streams/{id}/events", accept="text/plain"),
    get("follow_stream", "/v1/streams/{id}/events?last_event_id=1-9", 204),
    get("follow_stream", "/v1/streams/{id}/events", 304, if_none_match="*"),
    get("follow_stream", "/v1/streams/{id}/events?from=then", 400),
    get("follow_stream", "/v1/streams/{id}/events", 400, last_event_id="x"),
    get("follow_stream", f"/v1/streams/{UNKNOWN}/events", 404),
    get("follow_stream", f"/v1/streams/{EXPIRED}/events", 410),
    get("follow_text", "/v1/streams/{id}/text"),
    get("follow_text", "/v1/streams/{id}/text?last_event_id=1-9", 204),
    get("follow_text", "/v1/streams/{id}/text", 304, if_none_match="*"),
    get("follow_text", "/v1/streams/{id}/text?after_bytes=x", 400),
    get("follow_text", f"/v1/streams/{UNKNOWN}/text", 404),
    get("follow_websocket", "/v1/streams/{id}/ws", 426),
    get("stream_state", "/v1/streams/{id}"),
    get("stream_state", "/v1/streams/{id}", 304, if_none_match="*"),
    get("stream_state", "/v1/streams/{id}?wait=x", 400),
    get("stream_state", f"/v1/streams/{UNKNOWN}", 404),
    post("cancel_stream", "/v1/streams/{id}/cancel", None),
    post("cancel_stream", f"/v1/streams/{UNKNOWN}/cancel", None, 404),
    post(
        "create_access_token", "/v1/streams/{id}/tokens", None, 404
    ),  # authentication is off: test_access.py has the rest
    get("stream_receipt", "/v1/streams/{id}/receipt"),
    get("stream_state", f"/v1/streams/{EXPIRED}", 410),
    get("stream_receipt", f"/v1/streams/{UNKNOWN}/receipt", 404),
    Call("delete_stream", "DELETE", "/v1/streams/{deleted}", 204),
    Call("delete_stream", "DELETE", f"/v1/streams/{UNKNOWN}", 404),
    get("prompt", "/stream?prompt=x"),
    get("prompt", "/stream", 204, last_event_id="{id}/1-9"),
    get("prompt", "/stream", 400),
    get("healthz", "/healthz"),
    get("readyz", "/readyz"),
    get("metrics", "/metrics"),
    get("probe", "/v1/probe?events=2&interval_ms=0&padding_bytes=3&name=openapi-1"),
    get("probe", "/v1/probe?status=204", 204),
    get("probe", "/v1/probe?events=x", 400),
    get("probe_trace", "/v1/probe/openapi-1"),
    get("probe_trace", "/v1/probe/openapi-2", 404),
    get("docs", "/docs"),
    Call("docs", "HEAD", "/docs", 200),
    get("openapi", "/openapi.json"),
    Call("openapi", "HEAD", "/openapi.json", 200),
    post("create_chat_completion", "/v1/chat/completions", ASKED),
    post(
        "create_chat_completion",
        "/v1/chat/completions",
        {**ASKED, "stream": True, "stream_options": {"include_usage": True}},
    ),
    post("create_chat_completion", "/v1/chat/completions", {"messages": []}, 400),
    post(
        "create_chat_completion",
        "/v1/chat/completions",
        {**ASKED, "simulate": {"tokens": 5, "tokens_per_second": 0, "fail_after": 0}},
        502,
    ),
    get("follow_chat_completion", "/v1/chat/completions/chatcmpl-{id}/events"),
    get("follow_chat_completion", "/v1/chat/completions/{id}/events?last_event_id=1-9", 204),
    get("follow_chat_completion", "/v1/chat/completions/{id}/events?last_event_id=x", 400),
    get("follow_chat_completion", f"/v1/chat/completions/{UNKNOWN}/events", 404),
    get("follow_chat_completion", f"/v1/chat/completions/{EXPIRED}/events", 410),
    get("list_models", "/v1/models"),
    get("one_model", "/v1/models/{model}"),
    get("one_model", "/v1/models/none/such", 404),
    post("create_response", "/v1/responses", {"input": "x", "simulate": FAST}),
    post("create_response", "/v1/responses", {"input": "x", "simulate": FAST, "stream": True}),
    post("create_response", "/v1/responses", {"input": []}, 400),
    post(
        "create_response",
        "/v1/responses",
        {"input": "x", "simulate": {"tokens": 5, "tokens_per_second": 0, "fail_after": 2}, "stream": True},
    ),
    get("retrieve_response", "/v1/responses/resp_{id}"),
    get("retrieve_response", "/v1/responses/resp_{id}?stream=true&starting_after=1"),
    get("retrieve_response", "/v1/responses/resp_{id}?stream=perhaps", 400),
    get("retrieve_response", "/v1/responses/none", 404),
    Call("retrieve_response", "PUT", "/v1/responses/none", 405),
    post("cancel_response", "/v1/responses/resp_{id}/cancel", None),
    post("cancel_response", "/v1/responses/none/cancel", None, 404),
    Call("delete_response", "DELETE", "/v1/responses/resp_{removed}", 200),
    Call("delete_response", "DELETE", "/v1/responses/none", 404),
    post("ask", "/api/chat", {"id": "c", "messages": UI_MESSAGES, "simulate": FAST}),
    post("ask", "/api/chat", {"id": "", "messages": UI_MESSAGES}, 400),
    get("resume_chat", "/api/chat/nobody/stream", 204),
    get("resume_chat", "/api/chat/c/stream?ended=replay"),
    get("resume_chat", "/api/chat/c/stream?ended=x", 400),
    post("stop_chat", "/api/chat/c/stop", None),
    post("stop_chat", "/api/chat/c/stop", {"activeStreamId": 1}, 400),
    Call("create_written_stream", "PUT", "/v1/stream/openapi", 201, [1, 2]),
    Call("create_written_stream", "PUT", "/v1/stream/openapi", 200, [1, 2]),
    Call("create_written_stream", "PUT", "/v1/stream/openapi", 409, headers={"content-type": "text/plain"}),
    Call("create_written_stream", "PUT", "/v1/stream/forked", 501, headers={"stream-forked-from": "openapi"}),
    Call("create_written_stream", "PUT", "/v1/stream/{id}", 405),
    post("append_to_written_stream", "/v1/stream/openapi", {"a": 1}, 204),
    Call(
        "append_to_written_stream",
        "POST",
        "/v1/stream/openapi",
        200,
        [3],
        {"producer-id": "p", "producer-epoch": "0", "producer-seq": "0", "stream-closed": "true"},
    ),
    post("append_to_written_stream", "/v1/stream/openapi", [4], 409),
    post("append_to_written_stream", "/v1/stream/openapi", [], 400),
    post("append_to_written_stream", "/v1/stream/{id}", [4], 405),
    post("append_to_written_stream", "/v1/stream/none", [4], 404),
    get("read_stream", "/v1/stream/openapi"),
    get("read_stream", "/v1/stream/{id}"),
    get("read_stream", "/v1/stream/openapi?offset=-1&live=sse"),
    get("read_stream", "/v1/stream/{id}?offset=-1&live=sse"),
    get("read_stream", "/v1/stream/openapi?offset=now&live=long-poll", 204),
    get("read_stream", "/v1/stream/openapi", 304, if_none_match="*"),
    get("read_stream", "/v1/stream/openapi?offset=x", 400),
    get("read_stream", "/v1/stream/none", 404),
    Call("delete_stream_at_path", "DELETE", "/v1/stream/openapi", 204),
    Call("delete_stream_at_path", "DELETE", "/v1/stream/openapi", 404),
    get("overview", "/v1/overview"),
    get("usage", "/v1/usage"),
    get("usage", "/v1/usage?from=yesterday", 400),
    get("overview_events", "/v1/overview/events"),
    *(
        get(name, path)
        for name, path in (("console", "/"), ("chat_page", "/chat"), ("console_file", "/console/chat.js"))
    ),
    get("console_file", "/console/style.css"),
    get("console_file", "/console/icon.svg"),
    *(
        Call(name, "HEAD", path, 200)
        for name, path in (("console", "/"), ("chat_page", "/chat"), ("console_file", "/console/chat.js"))
    ),
    get("console", "/", 304, if_none_match="*"),
    get("console_file", "/console/none", 404),
]
"""All calls, in order: a probe's trace is read after the probe, a chat is stopped after it has begun."""


class Described:
    """The gateway's OpenAPI document."""

    def __init__(self, whole: dict[str, Any]) -> None:
        self.components = whole["components"]
        self.operations = {
            operation["operationId"]: (method.upper(), path, operation)
            for path, item in whole["paths"].items()
            for method, operation in item.items()
        }

    def answer(self, operation: str, status: int) -> dict[str, Any]:
        """Returns the description of this status. AssertionError if there is none."""
        responses = self.operations[operation][2]["responses"]
        assert str(status) in responses, f"{operation} does not say that it answers {status}"
        answer: dict[str, Any] = responses[str(status)]
        return self.components["responses"][answer["$ref"].rpartition("/")[2]] if "$ref" in answer else answer

    def wrong(self, schema: Mapping[str, Any], value: Any) -> str:
        """Returns how a value violates its schema; empty if it does not."""
        errors = Draft202012Validator({**schema, "components": self.components}).iter_errors(value)
        return "; ".join(f"{error.json_path}: {error.message}" for error in errors)

    def check_event(self, operation: str, name: str, data: str) -> None:
        """Checks that the operation describes this event and its data."""
        kinds = [kind for kind in self.operations[operation][2]["x-events"] if kind.get("event", "") == name]
        assert kinds, f"{operation} does not say that it sends {name!r}"
        wrong = []
        for kind in kinds:
            is_text = "const" in kind["data"] and data == kind["data"]["const"]
            try:
                wrong.append("" if is_text else self.wrong(kind["data"], json.loads(data)))
            except json.JSONDecodeError as error:
                wrong.append(str(error))
        assert "" in wrong, f"{operation}, {name!r}: {data[:300]}: {wrong}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def described(running: System) -> Described:
    return Described((await running.http.get(f"{running.gateway_url()}/openapi.json")).json())


async def completed(system: System) -> str:
    stream_id = await system.create("x", simulate=FAST)
    await system.until_status(stream_id, "completed")
    return stream_id


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def names(running: System) -> dict[str, str]:
    """The values of the names in braces in the calls' paths."""
    models = (await running.http.get(f"{running.gateway_url()}/v1/models")).json()
    return {
        "id": await completed(running),
        "external": await running.create(midstream={"writer": "external", "lease_seconds": 600}),
        "deleted": await completed(running),
        "removed": await completed(running),
        "unknown": new_stream_id(),
        "model": models["data"][0]["id"],
    }


async def called(system: System, call: Call, names: dict[str, str], **headers: str) -> tuple[httpx2.Response, bytes]:
    """Returns the answer and its body; of an endless body the part that comes at once."""
    url = system.gateway_url() + call.path.format(**names)
    sent = {name: value.format(**names) for name, value in {**call.headers, **headers}.items()}
    async with system.http.stream(call.method, url, json=call.json, headers=sent) as answer:
        if call.operation != "overview_events" or answer.status_code != 200:
            return answer, await answer.aread()
        body = b""
        async for part in answer.aiter_bytes():
            body += part
            if b"\n\n" in body:
                break
        return answer, body


def messages_in(body: bytes) -> list[Message]:
    decoder = Decoder()
    return list(decoder.feed(body))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.operation} {call.method} {call.path} {call.status}")
async def test_an_answer_is_as_described(
    system: System, described: Described, names: dict[str, str], call: Call
) -> None:
    answer, body = await called(system, call, names)
    assert answer.status_code == call.status, body[:500]
    about = described.answer(call.operation, call.status)
    for name in about.get("headers", {}):
        if name not in ("ETag", "Retry-After") and not name.startswith("Stream-"):  # where they apply
            assert name.lower() in answer.headers, name
    if not body:
        assert call.method == "HEAD" or not about.get("content"), "a body is described, and there is none"
        return
    media_type = answer.headers["content-type"].partition(";")[0]
    assert media_type in about["content"], f"{media_type} is not described"
    if media_type.endswith(("/json", "+json")):
        assert described.wrong(about["content"][media_type]["schema"], json.loads(body)) == ""
    elif media_type == "text/event-stream":
        found = messages_in(body)
        assert found
        for message in found:
            described.check_event(call.operation, "" if message.event == "message" else message.event, message.data)
    elif media_type == "application/x-ndjson":
        for line in body.splitlines():
            event = json.loads(line)
            name = "" if event["event"] == "message" else event["event"]
            described.check_event(call.operation, name, json.dumps(event["data"]))


async def test_every_operation_is_called(described: Described) -> None:
    called_with = {
        call.operation: {other.status for other in CALLS if other.operation == call.operation} for call in CALLS
    }
    assert set(called_with) == set(described.operations)
    assert {name for name, statuses in called_with.items() if min(statuses) >= 400} == {
        "create_access_token",
        "follow_websocket",
    }


async def test_errors_that_any_request_may_get(system: System, described: Described, names: dict[str, str]) -> None:
    """A request for a host that the gateway does not answer for gets an error in the shape that each operation names."""
    for operation, (method, path, _) in described.operations.items():
        call = Call(operation, method, path.replace("{", "").replace("}", ""), 421)
        answer, body = await called(system, call, names, host="elsewhere.example")
        assert answer.status_code == 421, path
        if method != "HEAD":
            content = described.answer(operation, 421)["content"]
            schema = content[answer.headers["content-type"]]["schema"]
            assert described.wrong(schema, json.loads(body)) == "", path


async def test_the_messages_of_a_websocket(system: System, described: Described, names: dict[str, str]) -> None:
    url = system.gateway_url().replace("http", "ws") + f"/v1/streams/{names['id']}/ws"
    got = []
    async with connect(url, proxy=None) as socket:
        got += [json.loads(message) async for message in socket]
    async with connect(f"{url}?from=then", proxy=None) as socket:
        got.append(json.loads(await socket.recv()))
    assert {"started", "message", "done", "error"} <= {event["event"] for event in got}
    for event in got:
        name = "" if event["event"] == "message" else event["event"]
        described.check_event("follow_websocket", name, json.dumps(event["data"]))


async def test_answers_for_unusual_streams(system: System, described: Described) -> None:
    """Streams that failed, were cancelled or restarted, in every form."""
    failing = await system.create("x", simulate={"tokens": 8, "tokens_per_second": 0, "fail_after": 3})
    slow = await system.create("x", simulate={"tokens": 1000, "tokens_per_second": 20})
    await system.until_status(failing, "failed")
    await wait_until(lambda: _has_begun(system, slow))
    await system.http.post(f"{system.gateway_url()}/v1/streams/{slow}/cancel")
    paths = {
        "follow_stream": "/v1/streams/{id}/events",
        "follow_chat_completion": "/v1/chat/completions/{id}/events",
        "retrieve_response": "/v1/responses/resp_{id}?stream=true",
        "prompt": "/stream?last_event_id={id}/0-1",
    }
    seen: dict[str, set[str]] = {}
    for operation, path in paths.items():
        for stream_id in (failing, slow):
            answer, body = await called(system, get(operation, path), {"id": stream_id})
            assert answer.status_code == 200, body
            for message in messages_in(body):
                name = "" if message.event == "message" else message.event
                described.check_event(operation, name, message.data)
                seen.setdefault(operation, set()).add(name)
    assert {"failed", "cancelled", "restarted"} <= seen["follow_stream"]
    assert {"error", "response.failed", "response.incomplete"} <= seen["retrieve_response"]
    for stream_id in (failing, slow):
        for operation, path in (
            ("stream_state", f"/v1/streams/{stream_id}"),
            ("stream_receipt", f"/v1/streams/{stream_id}/receipt"),
            ("retrieve_response", f"/v1/responses/resp_{stream_id}"),
        ):
            answer, body = await called(system, get(operation, path), {})
            schema = described.answer(operation, 200)["content"]["application/json"]["schema"]
            assert described.wrong(schema, json.loads(body)) == "", operation


async def _has_begun(system: System, stream_id: str) -> bool:
    return bool((await system.state(stream_id))["tokens"])
