"""What clients and proxies really send, kind by kind, to real processes."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import re
import shutil
import zlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from shared.ids import new_stream_id
from shared.keys import kept_key, log_key, request_key
from tests.support import ai_sdk
from tests.support.needs import needs
from tests.support.raw_http import RawHttp, exchange, statuses
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUICK = {"tokens": 5, "tokens_per_second": 0}
STALLED = {"tokens": 40, "tokens_per_second": 0, "stall_after": 3}
MESSAGES = [{"role": "user", "content": "hello"}]
EVENTS_ONLY = {"accept": "text/event-stream"}
ORIGINS = (
    "tauri://localhost,capacitor://localhost,ionic://localhost,app://.,app://obsidian.md,file://,wails://wails.localhost:34115,"
    "chrome-extension://abcdef,vscode-webview://0a1b2c,http://tauri.localhost,https://localhost/"
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    settings = {"cors_origins": ORIGINS, "path_prefix": "/ai", "console": "on", "request_seconds": 10}
    async with System(gateway_settings=settings) as system:
        yield system


async def ended(system: System, **body: Any) -> str:
    stream_id = await system.create("field", **{"simulate": QUICK, **body})
    await system.until_status(stream_id, "completed")
    return stream_id


# --- the cursor


@pytest.mark.parametrize("name", ["last_event_id", "lastEventId", "lastEventID", "Last-Event-ID", "Last-Event-Id"])
async def test_the_cursor_as_polyfills_write_it(system: System, name: str) -> None:
    first = await system.http.get(f"{system.gateway_url()}/stream?prompt=hello", headers=EVENTS_ONLY)
    ids = re.findall(r"^id: (.*)$", first.text, re.MULTILINE)
    before = len([key async for key in system.commands.scan_iter("*:log")])
    rest = await system.http.get(f"{system.gateway_url()}/stream?prompt=hello&{name}={ids[2].replace('/', '%2F')}")
    assert re.findall(r"^id: (.*)$", rest.text, re.MULTILINE) == ids[3:]
    assert (await system.http.get(f"{system.gateway_url()}/stream?prompt=hello&{name}={ids[-1]}")).status_code == 204
    assert len([key async for key in system.commands.scan_iter("*:log")]) == before, "nothing was generated again"


@pytest.mark.parametrize("cursor", ["1-4", "1-5", "1-6", "1-99", "2-0", "3-7", "9999999999999999-9999999999999999"])
@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_a_cursor_ahead_of_an_ended_stream_gets_the_end(system: System, cursor: str, accept: str) -> None:
    url = system.events_url(await ended(system))
    answer = await system.http.get(url, headers={"last-event-id": cursor, "accept": accept})
    if cursor == "1-6":
        assert answer.status_code == 204, "the terminal event's own id: nothing is left"
        return
    assert (answer.status_code, answer.text.count("done"), answer.text.count("1-6")) == (200, 1, 1)
    text = await system.http.get(url.replace("/events", "/text"), headers={"last-event-id": cursor})
    assert text.status_code == 200


async def test_a_cursor_ahead_of_a_running_stream_gets_a_gap_and_goes_on(system: System) -> None:
    """After the time in which a Redis that has lost something is repaired; and all that ends meanwhile gets its end."""
    paced = {"tokens": 40, "tokens_per_second": 5}
    cursors = ("1-41", "1-77", "2-5", "9-0")
    names = [await system.create(f"ahead {cursor}", simulate=paced) for cursor in cursors]
    short = await system.create("short", simulate={"tokens": 5, "tokens_per_second": 5})
    readers = [system.follow(name, after=cursor) for name, cursor in zip(names, cursors, strict=True)]
    over = system.follow(short, after="1-77")
    await over.until_end()
    assert [message.event for message in over.messages] == ["done"]
    for reader in readers:
        await reader.until_end()
        events = [message.event for message in reader.messages]
        assert events[0] == "gap", reader
        assert events[-1] == "done", reader
        assert 1 <= len(reader.tokens) < 40
        first = reader.named("gap")[0]["first_available"]
        assert first == next(message.id for message in reader.messages if '"token"' in message.data)


# --- HEAD


OTHER_STATUSES = {
    "/v1/streams": 404,
    "/stream": 400,
    "/nothing": 404,
    "/v1/nothing": 404,
    "/v1/probe/none-of-these": 404,
    "/api/chat/x/stream": 204,
}


async def test_head_is_get_without_the_body(system: System) -> None:
    """On every GET path that the gateway describes; on one connection, so that a body would be taken for the next answer."""
    stream_id = await ended(system)
    described = (await system.http.get(f"{system.gateway_url()}/openapi.json")).json()["paths"]
    values = {"stream_id": stream_id, "completion_id": stream_id, "response_id": f"resp_{stream_id}"}
    values |= {"model": "gpt-4o-mini", "name": "none-of-these", "chat_id": "x", "file": "console.js", "path": stream_id}
    paths = [re.sub(r"{(\w+)}", lambda name: values[name[1]], path) for path in described if "get" in described[path]]
    paths += ["/stream?prompt=hello", f"/v1/responses/resp_{stream_id}?stream=true", "/nothing", "/v1/nothing"]
    assert len(paths) > 20
    generated = [key async for key in system.commands.scan_iter("*:log")]
    async with RawHttp(system.gateway_port()) as raw:
        for path in paths:
            await raw.send(b"HEAD %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
            head = await raw.read_until(b"\r\n\r\n")
            assert head.endswith(b"\r\n\r\n"), path
            assert head.count(b"HTTP/1.1 ") == 1, path
            status = 426 if path.endswith("/ws") else OTHER_STATUSES.get(path, 200)
            assert statuses(head) == [status], path
            if status == 200 and ("/events" in path or path.startswith("/stream")):
                assert b"\r\ncontent-type: text/event-stream" in head
    assert [key async for key in system.commands.scan_iter("*:log")] == generated, "HEAD generates nothing"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_head_pipelined_before_another_request(system: System, method: str) -> None:
    events = f"/v1/streams/{await ended(system)}/events"
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    head = f"HEAD {events} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    other = f"{method} /readyz HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    answers = await exchange(system.gateway_port(), head + other + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200"] * 3


async def test_wget_spider(system: System) -> None:
    needs("wget", shutil.which("wget"))
    for url in (system.events_url(await ended(system)), f"{system.gateway_url()}/healthz"):
        process = await asyncio.create_subprocess_exec("wget", "--spider", "-q", "-t", "1", "-T", "10", url)
        assert await process.wait() == 0, url


# --- paths


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/v1/completions", 404, "POST /v1/chat/completions"),
        ("POST", "/v1/embeddings", 404, "POST /v1/chat/completions"),
        ("POST", "/v1/chat/completion", 404, "POST /v1/chat/completions"),
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/chat/completions/x", 404, "POST /v1/chat/completions"),
        ("POST", "/v1//chat/completions", 404, "there is POST /v1/chat/completions"),
        ("POST", "//v1/chat/completions", 404, "there is POST /v1/chat/completions"),
        ("POST", "/v1/chat/completions/", 404, "there is POST /v1/chat/completions"),
        ("POST", "/v1/v1/chat/completions", 404, "there is POST /v1/chat/completions"),
        ("POST", "/chat/completions", 404, "there is POST /v1/chat/completions"),
        ("GET", "/models", 404, "there is GET /v1/models"),
        ("POST", "/openai/deployments/x/chat/completions", 404, "POST /v1/chat/completions"),
        ("POST", "/v1/models", 405, "GET and HEAD"),
        ("POST", "/v1/models/x", 405, "GET and HEAD"),
        ("GET", "/v1/models/", 404, "there is GET /v1/models"),
        ("PUT", "/v1/responses", 405, "POST"),
        ("POST", "/v1/responses/resp_x", 405, "GET and HEAD and DELETE"),
        ("GET", "/v1/responses/resp_x/input_items", 404, "POST /v1/responses"),
        ("POST", "/v1/audio/speech", 404, "POST /v1/chat/completions"),
        ("GET", "/v1", 404, "GET /v1/models"),
        ("GET", "/v1/", 404, "GET /v1/models"),
    ],
)
async def test_paths_of_openai_have_its_errors(system: System, method: str, path: str, status: int, words: str) -> None:
    answer = await system.http.request(method, system.gateway_url() + path)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error"), answer.text
    assert words in error["message"]
    allow = answer.headers.get("allow")
    assert (allow is None) == (status != 405)
    assert allow is None or allow.replace(", ", " and ") in error["message"]


async def test_the_sdk_shows_what_is_there_instead(system: System) -> None:
    async with openai.AsyncOpenAI(base_url=f"{system.gateway_url()}/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError, match="POST /v1/chat/completions"):
            await client.embeddings.create(model="m", input="x")
        with pytest.raises(openai.NotFoundError, match="POST /v1/chat/completions"):
            await client.completions.create(model="m", prompt="x")


@pytest.mark.parametrize(
    "path", ["/v1/streams/", "/v1/streams//", "/healthz/", "//healthz", "/stream/", "/v1//streams"]
)
async def test_nothing_is_redirected(system: System, path: str) -> None:
    for method in ("GET", "POST", "HEAD"):
        answer = await system.http.request(method, system.gateway_url() + path)
        assert answer.status_code == 404
        assert method == "HEAD" or "; there is " in answer.json()["detail"]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_a_405_says_what_is_allowed(system: System, method: str) -> None:
    answer = await system.http.request(method, f"{system.gateway_url()}/v1/streams")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST, GET, HEAD")
    assert answer.headers["content-type"] == "application/problem+json"


async def test_below_another_path(system: System) -> None:
    """Whether the proxy has taken the prefix off or not. Nobody is believed who only says so."""
    for prefix in ("", "/ai"):
        url = f"{system.gateway_url()}{prefix}/v1/streams"
        body = {"messages": MESSAGES, "simulate": QUICK}
        created = await system.http.post(url, json=body, headers={"x-forwarded-prefix": "/evil"})
        location = f"/ai/v1/streams/{created.json()['id']}/events"
        assert (created.status_code, created.headers["location"]) == (201, location)
        assert created.json()["events_url"] == location
        assert "event: done" in (await system.http.get(system.gateway_url() + location)).text
    accepted = await system.http.get(f"{system.gateway_url()}/ai/stream?prompt=hello")
    assert '"events_url":"/ai/v1/streams/' in accepted.text
    assert (await system.http.get(f"{system.gateway_url()}/ai/healthz")).status_code == 200
    assert (await system.http.get(f"{system.gateway_url()}/aihealthz")).status_code == 404
    unknown = await system.http.post(f"{system.gateway_url()}/ai/v1/embeddings")
    assert unknown.json()["error"]["type"] == "invalid_request_error"


# --- origins


@pytest.mark.parametrize(
    "origin", [origin.rstrip("/") if origin[-3:] != "://" else origin for origin in ORIGINS.split(",")]
)
async def test_an_app_may_be_named(system: System, origin: str) -> None:
    headers = {"origin": origin, "sec-fetch-site": "cross-site"}
    url = f"{system.gateway_url()}/v1/streams"
    created = await system.http.post(url, json={"messages": MESSAGES, "simulate": QUICK}, headers=headers)
    assert (created.status_code, created.headers["access-control-allow-origin"]) == (201, origin)
    preflight = await system.http.options(url, headers={**headers, "access-control-request-method": "POST"})
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, origin)


async def test_an_app_is_compared_as_browsers_do(system: System) -> None:
    url = f"{system.gateway_url()}/v1/streams"
    body = {"messages": MESSAGES, "simulate": QUICK}
    upper = await system.http.post(url, json=body, headers={"origin": "app://Obsidian.MD"})
    assert upper.headers["access-control-allow-origin"] == "app://Obsidian.MD"
    port = system.gateway_port()
    for origin in (f"other://127.0.0.1:{port}", "tauri://localhost:1", "null", "app://"):
        assert (await system.http.post(url, json=body, headers={"origin": origin})).status_code == 403, origin


# --- bodies


def deflated(data: bytes, bits: int) -> bytes:
    packing = zlib.compressobj(wbits=bits)
    return packing.compress(data) + packing.flush()


PATHS = {
    "/v1/streams": ({"messages": MESSAGES, "simulate": QUICK}, 201),
    "/v1/chat/completions": ({"messages": MESSAGES, "simulate": QUICK}, 200),
    "/v1/responses": ({"input": "hello", "simulate": QUICK}, 200),
    "/api/chat": (
        {"id": "c", "messages": [{"role": "user", "parts": [{"type": "text", "text": "x"}]}], "simulate": QUICK},
        200,
    ),
}


@functools.cache
def bomb() -> bytes:
    return gzip.compress(b" " * (64 << 20), 1)


@pytest.mark.parametrize("path", PATHS)
async def test_bodies_are_decoded_on_every_path(system: System, path: str) -> None:
    body, status = PATHS[path]
    plain, url = json.dumps(body).encode(), system.gateway_url() + path
    for coding, data in (
        ("gzip", gzip.compress(plain)),
        ("deflate", deflated(plain, 15)),
        ("deflate", deflated(plain, -15)),
    ):
        answer = await system.http.post(url, content=data, headers={"content-encoding": coding})
        assert answer.status_code == status, answer.text
    refused = await system.http.post(url, content=plain, headers={"content-encoding": "br"})
    assert (refused.status_code, refused.headers["accept-encoding"]) == (415, "gzip, deflate")
    exploded = await system.http.post(url, content=bomb(), headers={"content-encoding": "gzip"})
    assert exploded.status_code == 413


async def memory_of(system: System, *keys: bytes) -> list[int]:
    return [await system.commands.memory_usage(key) or 0 for key in keys]


def photo(size: int) -> list[dict[str, Any]]:
    url = "data:image/jpeg;base64," + "A" * size
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


async def test_a_request_of_20_mb_works_and_its_memory_goes_with_the_end(system: System) -> None:
    messages = photo(20_000_000)
    running = await system.http.post(
        f"{system.gateway_url()}/v1/streams", json={"messages": messages, "simulate": {"tokens": 3, "stall_after": 0}}
    )
    assert running.status_code == 201, running.text
    stream_id = running.json()["id"]
    await system.until_status(stream_id, "running")
    log, beside = await memory_of(system, log_key(stream_id), request_key(stream_id))
    assert beside > 20_000_000
    assert log < 10_000
    await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")
    assert await memory_of(system, request_key(stream_id), kept_key(stream_id)) == [0, 0]
    url = f"{system.gateway_url()}/v1/chat/completions"
    answer = await system.http.post(url, json={"messages": messages, "simulate": QUICK})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["finish_reason"] == "stop"

    async def is_free() -> bool:
        return bool((await system.commands.info("memory"))["used_memory"] < 20_000_000)

    await wait_until(is_free, within_seconds=15, what="Redis has given the memory back")
    too_large = await system.http.post(url, content=b"x" * (25 << 20))
    assert too_large.status_code == 413


async def test_a_stored_response_keeps_its_request(system: System) -> None:
    url = f"{system.gateway_url()}/v1/responses"
    image = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 100_000}
    given = [{"role": "user", "content": [{"type": "input_text", "text": "one two three"}, image]}]
    base = {"instructions": "be brief " * 5000, "input": given, "simulate": QUICK}
    ids = [(await system.http.post(url, json={**base, "store": store})).json()["id"] for store in (True, False)]
    for response_id, kept in zip(ids, (True, False), strict=True):
        stream_id = response_id.removeprefix("resp_")
        sizes = await memory_of(system, request_key(stream_id), kept_key(stream_id))
        assert [size > 100_000 for size in sizes] == [False, kept]
    shown = (await system.http.get(f"{url}/{ids[0]}")).json()
    assert shown["instructions"] == base["instructions"], "also a long one is shown"
    body = {"previous_response_id": ids[0], "input": "and?", "simulate": QUICK}
    second = (await system.http.post(url, json=body)).json()
    assert (
        second["usage"]["input_tokens"]
        > (await system.http.post(url, json={**body, "previous_response_id": None})).json()["usage"]["input_tokens"] + 3
    )
    await system.http.delete(f"{url}/{ids[0]}")
    assert await memory_of(system, kept_key(ids[0].removeprefix("resp_"))) == [0]


# --- request lines


@pytest.mark.parametrize("prompt", ["你好", "Grüße", "a😀b", "é%20%C3%A9"])
async def test_a_prompt_that_is_not_encoded(system: System, prompt: str) -> None:
    request = f"GET /stream?prompt={prompt} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    answer = await exchange(system.gateway_port(), request)
    assert statuses(answer[:20]) == [200]
    stream_id = re.findall(rb'{"id":"(\w+)"', answer)[0].decode()
    accepted = (await system.commands.xrange(log_key(stream_id), count=1))[0][1][b"accepted"]
    content = json.loads(accepted)["request"]["messages"][0]["content"]
    assert content == prompt.replace("%20", " ").replace("%C3%A9", "é")


@pytest.mark.parametrize(
    ("target", "status", "words"),
    [
        (b"/stream?prompt=\xff", 400, b"UTF-8"),
        (b"/stream?prompt=" + b"x" * 70_000, 414, b"8192"),
        (b"/stream?prompt=" + "好".encode() * 30_000, 414, b"8192"),
        ("/\u597d".encode(), 404, b"there is no"),
    ],
)
async def test_a_request_line_that_is_wrong(system: System, target: bytes, status: int, words: bytes) -> None:
    request = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target
    answer = await exchange(system.gateway_port(), request)
    assert statuses(answer) == [status]
    assert words in answer


# --- values of a provider's own


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": -1},
        {"max_tokens": "inf"},
        {"max_completion_tokens": 0},
        {"n": 0},
        {"n": 500},
        {"top_k": -1, "mirostat": 2},
        {"messages": [{"role": "user", "content": {"of": "its own"}}]},
        {"tool_choice": "any"},
        {"response_format": {"type": "grammar"}},
        {"stream_options": None, "logit_bias": None, "temperature": "0.7"},
    ],
    ids=str,
)
async def test_what_is_not_used_here_is_passed_through(system: System, more: dict[str, Any]) -> None:
    for path in ("/v1/streams", "/v1/chat/completions"):
        body = {"messages": MESSAGES, "simulate": QUICK, "stream": True, **more}
        assert (await system.http.post(system.gateway_url() + path, json=body)).status_code in (200, 201)


async def test_responses_pass_a_provider_s_values_too(system: System) -> None:
    own = {"max_output_tokens": -1, "tool_choice": "any", "text": {"format": {"type": "grammar", "grammar": "x"}}}
    answer = await system.http.post(
        f"{system.gateway_url()}/v1/responses", json={"input": "x", "simulate": QUICK, **own}
    )
    assert (answer.status_code, answer.json()["max_output_tokens"]) == (200, -1), answer.text


# --- references to items


async def test_an_item_reference_is_the_item(system: System) -> None:
    url = f"{system.gateway_url()}/v1/responses"
    first = (await system.http.post(url, json={"input": "one two", "simulate": QUICK})).json()
    item = first["output"][0]
    for reference in (
        {"type": "item_reference", "id": item["id"]},
        {"id": item["id"]},
        {"id": item["id"], "type": None},
    ):
        given = [{"role": "user", "content": "one two"}, reference, {"role": "user", "content": "three"}]
        second = await system.http.post(url, json={"input": given, "simulate": QUICK})
        assert second.status_code == 200, second.text
        stream_id = second.json()["id"].removeprefix("resp_")
        accepted = (await system.commands.xrange(log_key(stream_id), count=1))[0][1][b"accepted"]
        messages = json.loads(accepted)["request"]["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant", "user"]
        assert messages[1]["content"] == item["content"][0]["text"]


async def test_the_ai_sdk_s_openai_provider_over_three_turns(system: System) -> None:
    """From the second turn on it names the earlier answers by their ids."""
    seen = await ai_sdk.chat(f"{system.gateway_url()}/v1", {"tokens": 7, "tokens_per_second": 0})
    assert seen["errors"] == []
    assert all(seen["texts"])
    kinds = [[item.get("type") or item.get("role") for item in given] for given in seen["inputs"]]
    assert kinds[2] == ["user", "item_reference", "user", "item_reference", "user"]


async def test_a_reference_to_nothing(system: System) -> None:
    url = f"{system.gateway_url()}/v1/responses"
    unstored = (await system.http.post(url, json={"input": "x", "store": False, "simulate": QUICK})).json()
    names = [unstored["output"][0]["id"], f"msg_{new_stream_id()}_0", "msg_x_0", "nonsense", "", "msg__0"]
    for name in names:
        given = [{"role": "user", "content": "x"}, {"type": "item_reference", "id": name}]
        answer = await system.http.post(url, json={"input": given, "simulate": QUICK})
        assert answer.status_code in (400, 404), name
        assert answer.json()["error"]["param"].startswith("input"), name
    many = [{"type": "item_reference", "id": f"msg_{new_stream_id()}_0"} for _ in range(257)]
    assert (await system.http.post(url, json={"input": many})).status_code == 400


# --- WebSocket


@pytest.mark.parametrize(
    ("offered", "spoken"),
    [
        (["json"], "json"),
        (["graphql-ws", "midstream", "json"], "midstream"),
        (["access_token", "abc"], None),
        ([], None),
    ],
)
async def test_a_subprotocol_that_we_speak(system: System, offered: list[str], spoken: str | None) -> None:
    names = [Subprotocol(name) for name in offered]
    for stream_id in (await ended(system), new_stream_id()):
        url = f"{system.gateway_url()}/v1/streams/{stream_id}/ws".replace("http", "ws", 1)
        async with connect(url, proxy=None, subprotocols=names or None) as socket:
            assert socket.subprotocol == spoken
            assert json.loads(await socket.recv())


async def test_a_refused_handshake_is_no_error_in_the_log(system: System) -> None:
    before = len(system.gateways[0].logged())
    key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
    head = b"Connection: Upgrade\r\nUpgrade: websocket\r\nHost: x\r\n"
    for path, more in (
        (b"/nothing", key),
        (b"/v1/streams/x/ws", b""),
        (b"/v1/streams/x/ws", key + b"Origin: http://e\r\n"),
    ):
        request = b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path, head, more)
        assert statuses(await exchange(system.gateway_port(), request))[0] >= 400
    assert '"level":"error"' not in system.gateways[0].logged()[before:].lower()


# --- full, or leaving


async def test_an_event_source_comes_back_to_a_full_gateway() -> None:
    """It gets an empty stream that says when to come back; everybody else gets 503 with Retry-After."""
    async with System(gateway_settings={"connections_max": 1, "console": "on"}) as system:
        stream_id = await system.create("full", simulate=STALLED)
        reader = system.follow(stream_id)
        await reader.until_event("live")
        for path in (f"/v1/streams/{stream_id}/events", "/stream?prompt=x", f"/v1/chat/completions/{stream_id}/events"):
            url = system.gateway_url() + path
            for accept in ("text/event-stream", "Text/Event-Stream; q=1.0"):
                answer = await system.http.get(url, headers={"accept": accept})
                assert answer.status_code == 200
                assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
                retry = re.fullmatch(r": [^\n]+\nretry: (\d+)\n", answer.text)
                assert retry is not None, answer.text
                assert 2000 <= int(retry[1]) <= 4000
            for accept in (
                "*/*",
                "text/event-stream, */*",
                "text/event-stream,application/json",
                "application/x-ndjson",
            ):
                answer = await system.http.get(url, headers={"accept": accept})
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "2"), accept
        posted = await system.http.post(
            f"{system.gateway_url()}/v1/chat/completions", json={"messages": MESSAGES}, headers=EVENTS_ONLY
        )
        assert posted.status_code == 503, "a POST is no EventSource's"
        await reader.leave()

        async def whole() -> bool:
            answer = await system.http.get(system.events_url(stream_id) + "?from=now", headers={"accept": "*/*"})
            return bool(answer.status_code == 200)

        await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")
        await wait_until(whole, what="there is room again")
