"""A gateway's common headers, its documentation, and the limits of answers that are sent whole."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.http.whole_bodies import WHOLE_BYTES_MAX
from shared.events import Accepted, Policies
from shared.ids import new_stream_id
from shared.keys import log_key
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).resolve().parents[2]
FAST = {"tokens": 20, "tokens_per_second": 0}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with System() as system:
        yield system


async def long_answer(system: System, tokens: int, token: str, *, before: int = 0) -> tuple[str, str]:
    """Writes a finished answer as a worker does, in entries of 64 tokens; returns its id and its text. `before`: tokens kept of a first attempt."""
    stream_id = new_stream_id()
    accepted = Accepted({"model": "m", "messages": []}, Policies(), time.time(), "anonymous", {})
    started = {"attempt": 1, "model": "m", "worker": "w", "time": time.time()}
    entries: list[tuple[str, bytes, bytes]] = [
        ("0-1", b"accepted", accepted.stored()),
        ("1-0", b"started", orjson.dumps(started)),
    ]
    attempt, texts = 1, []
    for first in range(0, tokens, 64):
        if before and attempt == 1 and first >= before:
            attempt = 2
            entries.append(
                ("2-0", b"restarted", orjson.dumps({**started, "attempt": 2, "base": first, "reason": "worker_lost"}))
            )
        texts += (batch := [f"{number}{token}" for number in range(first, min(first + 64, tokens))])
        entries.append((f"{attempt}-{first + len(batch)}", b"b", orjson.dumps(batch)))
    done = {"finish_reason": "stop", "usage": None, "time": time.time()}
    entries.append((f"{attempt}-{tokens + 1}", b"done", orjson.dumps(done)))
    async with system.commands.pipeline(transaction=False) as pipeline:
        for entry_id, field, value in entries:
            pipeline.xadd(log_key(stream_id), {field: value}, id=entry_id)
        pipeline.expire(log_key(stream_id), 600)
        await pipeline.execute()
    return stream_id, "".join(texts)


def peak_mb(system: System) -> float:
    status = Path(f"/proc/{system.gateways[0].pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


async def raw(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


OF_ALL = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


async def test_every_answer_has_nosniff_and_no_referrer(system: System) -> None:
    """Both are in pages, streams, errors, answers to malformed HTTP, and handshakes. All but the last two say whether they may be kept."""
    stream_id = await system.create("x", simulate=FAST)
    await system.until_status(stream_id, "completed")
    url, port = system.gateway_url(), system.gateway_port()
    last = f"/v1/streams/{stream_id}/events?last_event_id=1-21"
    requests = [
        *(
            ("GET", path)
            for path in (
                "/",
                "/chat",
                "/console/console.js",
                "/docs",
                "/openapi.json",
                "/metrics",
                "/healthz",
                "/readyz",
            )
        ),
        *(
            ("GET", f"/v1/streams/{stream_id}{path}")
            for path in ("", "/events", "/text", "/receipt", "/ws", "/nothing")
        ),
        *(
            ("GET", path)
            for path in (
                "/v1/models",
                "/v1/overview",
                "/v1/probe?events=1",
                "/stream",
                "/none",
                last,
                "/v1/responses/x",
            )
        ),
        *(
            ("POST", path)
            for path in ("/v1/streams", "/v1/chat/completions", "/v1/responses", "/api/chat", "/api/chat/x/stop", "/")
        ),
        *(("OPTIONS", "/v1/streams"), ("DELETE", f"/v1/streams/{stream_id}"), ("BREW", "/"), ("HEAD", "/chat")),
    ]
    statuses = set()
    for method, path in requests:
        answer = await system.http.request(method, url + path)
        for name, value in OF_ALL.items():
            assert answer.headers.get_list(name) == [value], f"{method} {path}"
        assert len(answer.headers.get_list("cache-control")) == 1, f"{method} {path}"
        statuses.add(answer.status_code)
    assert {200, 204, 400, 404, 405, 426} <= statuses
    for request in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n"):
        refusal = (await raw(port, request)).lower()
        for name, value in OF_ALL.items():
            assert refusal.count(f"\r\n{name}: {value}\r\n".encode()) == 1
    with pytest.raises(InvalidStatus) as caught:
        async with connect(f"ws://127.0.0.1:{port}/nothing", proxy=None):
            pass
    other_id = await system.create("x", simulate=FAST)
    async with connect(f"ws://127.0.0.1:{port}/v1/streams/{other_id}/ws", proxy=None) as accepted:
        assert accepted.response is not None
        for response in (caught.value.response, accepted.response):
            assert {name: response.headers.get_all(name) for name in OF_ALL} == {
                name: [value] for name, value in OF_ALL.items()
            }


async def test_the_documentation_has_all_paths_and_loads_nothing_from_other_sites(system: System) -> None:
    page = await system.http.get(f"{system.gateway_url()}/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src" not in policy
    assert page.headers["x-frame-options"] == "DENY"
    assert "<script" not in page.text
    assert not re.search(r"(src|href)=\"?(https?:)?//", page.text)
    described = (await system.http.get(f"{system.gateway_url()}/openapi.json")).json()
    table = (ROOT / "docs" / "reference" / "http.md").read_text().partition("## `POST")[0]
    named = {
        (method, re.sub(r"\{\w+\}", "{}", path))
        for methods, path in re.findall(
            r"`?((?:GET|POST|DELETE)(?:(?:, | and )(?:`)?(?:GET|POST|DELETE))*)`? ?`?(/[^`?,\s]*)", table
        )
        for method in re.findall(r"GET|POST|DELETE", methods)
    }
    assert len(named) > 20
    has = {
        (method.upper(), re.sub(r"\{\w+\}", "{}", path)) for path, item in described["paths"].items() for method in item
    }
    assert named - has - {("GET", "/docs"), ("GET", "/openapi.json"), ("POST", "/login"), ("POST", "/logout")} == set()
    for path, item in described["paths"].items():
        assert path in page.text
        for operation in item.values():
            assert {one["name"] for one in operation.get("parameters", [])} >= set(re.findall(r"\{(\w+)\}", path))
    assert (await system.http.get(f"{system.gateway_url()}/docs/oauth2-redirect")).status_code == 404


async def test_the_body_of_a_stop_request_is_limited(system: System) -> None:
    url = f"{system.gateway_url()}/api/chat/c1/stop"
    fits = orjson.dumps({"messages": ["x" * 900_000]})
    assert (await system.http.post(url, content=fits)).status_code == 200
    assert (await system.http.post(url, content=orjson.dumps({"messages": ["x" * (1 << 20)]}))).status_code == 413


@pytest.mark.parametrize("before", [0, 30_016])
async def test_a_long_text_is_complete_from_memory_and_from_the_log(system: System, before: int) -> None:
    """The text begins with a piece from memory, and continues with pages of the log."""
    stream_id, text = await long_answer(system, 60_000, " ünïcode", before=before)
    url, encoded = f"{system.gateway_url()}/v1/streams/{stream_id}", text.encode()
    assert (await system.http.get(url)).json()["text"] == text
    assert (await system.http.get(f"{url}/text")).content == encoded
    for after_bytes in (1, 300_001, len(encoded) - 1, len(encoded)):
        assert (await system.http.get(f"{url}/text?after_bytes={after_bytes}")).content == encoded[after_bytes:]
    assert (await system.http.get(f"{url}/text?after_bytes={len(encoded) + 1}")).status_code == 400
    attempt = 2 if before else 1
    for offset in (before + 1, before + 5000, 59_999):
        rest = "".join(f"{number} ünïcode" for number in range(offset, 60_000))
        got = await system.http.get(f"{url}/text", headers={"last-event-id": f"{attempt}-{offset}"})
        assert got.text == rest, offset
    receipt = (await system.http.get(f"{url}/receipt")).json()
    assert receipt["generated"]["tokens"] == 60_000
    assert receipt["delivered"]["tokens"] == 60_000


async def test_memory_for_long_answers_that_are_not_read_is_limited() -> None:
    """Sixty clients request 15 MB each, in every form that is sent whole, and read nothing."""
    clients = 60
    async with System(workers=0) as system:
        stream_id, text = await long_answer(system, 15_000, "x" * 1000)
        url, port = system.gateway_url(), system.gateway_port()
        assert (await system.http.get(f"{url}/v1/streams/{stream_id}")).json()["text"] == text
        before = peak_mb(system)
        paths = (f"/v1/streams/{stream_id}", f"/v1/streams/{stream_id}/text", f"/v1/responses/resp_{stream_id}")
        writers: list[asyncio.StreamWriter] = []
        for number in range(clients):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
            writers.append(writer)
            writer.write(f"GET {paths[number % 3]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await asyncio.sleep(0)
            del reader

        async def is_full() -> bool:
            answer = await system.http.get(f"{url}/v1/streams/{stream_id}")
            if answer.status_code == 200:
                return False
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) > 0
            return True

        await wait_until(is_full, within_seconds=30, what="the room for long answers is taken")
        assert (await system.http.get(f"{url}/healthz")).status_code == 200
        assert (
            await system.http.post(f"{url}/v1/streams", json={"messages": [{"role": "user", "content": "x"}]})
        ).status_code == 201
        grown = peak_mb(system) - before
        print(f"{clients} clients that do not read: {grown:.0f} MB more at the peak")
        assert grown < 2.5 * (WHOLE_BYTES_MAX >> 20)
        for writer in writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

        async def is_free() -> bool:
            answer = await system.http.get(f"{url}/v1/streams/{stream_id}")
            return answer.status_code == 200 and answer.json()["text"] == text

        await wait_until(is_free, within_seconds=30, what="there is room again")


async def test_a_long_answer_does_not_delay_other_requests(system: System) -> None:
    """While states, receipts and texts of 190,000 tokens are made, short requests are answered almost at once."""
    stream_id, _ = await long_answer(system, 190_000, " a")
    url = system.gateway_url()
    paths = ("", "/receipt", "/text", "?wait=1")
    waits: list[float] = []
    asking = [asyncio.create_task(system.http.get(f"{url}/v1/streams/{stream_id}{path}")) for path in paths * 2]
    while not all(task.done() for task in asking):
        began = time.monotonic()
        assert (await system.http.get(f"{url}/healthz")).status_code == 200
        waits.append(time.monotonic() - began)
    answers: list[Any] = [task.result() for task in asking]
    assert {answer.status_code for answer in answers} == {200}
    print(
        f"{len(waits)} short requests meanwhile: {sorted(waits)[len(waits) // 2] * 1000:.0f} ms as a rule, {max(waits) * 1000:.0f} ms at most"
    )
    assert (
        max(waits) < 1.0
    )  # allows for a busy machine; if they were made in the event loop, each would take 0.2 to 0.6 s
