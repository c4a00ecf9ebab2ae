"""Ended streams do not change: a client's copy is compared by ETag, and sent again only if it differs."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.needs import needs
from tests.support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANSWER = {"tokens": 30, "tokens_per_second": 0}
RUNNING = {"tokens": 5, "stall_after": 2}
REPRESENTATIONS = [
    ("", "*/*"),
    ("/events", "text/event-stream"),
    ("/events", "application/x-ndjson"),
    ("/events", "text/plain"),
    ("/text", "*/*"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with System(gateways=2) as system:
        yield system


async def get(system: System, stream_id: str, path: str, *, gateway: int = 0, **headers: str) -> Any:
    url = f"{system.gateway_url(gateway)}/v1/streams/{stream_id}{path}"
    return await system.http.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(("path", "accept"), REPRESENTATIONS)
async def test_a_finished_stream(system: System, path: str, accept: str) -> None:
    stream_id = await system.create("finished", simulate=ANSWER)
    await system.until_status(stream_id, "completed")
    whole = await get(system, stream_id, path, accept=accept)
    etag = whole.headers["etag"]
    assert etag.startswith('"'), "a strong one"
    assert "no-cache" in whole.headers["cache-control"]
    assert "max-age" not in whole.headers["cache-control"], "it can be deleted at any time"
    for gateway in (0, 1):
        for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
            same = await get(system, stream_id, path, gateway=gateway, accept=accept, if_none_match=known)
            assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
        again = await get(system, stream_id, path, gateway=gateway, accept=accept, if_none_match='"other"')
        assert (again.status_code, again.content, again.headers["etag"]) == (200, whole.content, etag)
    await system.http.delete(f"{system.gateway_url(1)}/v1/streams/{stream_id}")
    gone = await get(system, stream_id, path, accept=accept, if_none_match=etag)
    assert gone.status_code == 404
    assert "etag" not in gone.headers


async def test_each_representation_has_its_own_etag(system: System) -> None:
    stream_id = await system.create("each", simulate=ANSWER)
    await system.until_status(stream_id, "completed")
    answers = [await get(system, stream_id, path, accept=accept) for path, accept in REPRESENTATIONS]
    assert len({one.headers["etag"] for one in answers}) == len({one.content for one in answers}) == 4
    assert all("accept" in one.headers["vary"] for one in answers[1:])


@pytest.mark.parametrize(("path", "accept"), REPRESENTATIONS[:3])
async def test_failed_and_cancelled_streams_have_an_etag_too(system: System, path: str, accept: str) -> None:
    failed = await system.create("f", simulate={**ANSWER, "fail_after": 5}, midstream={"on_interrupt": "fail"})
    await system.until_status(failed, "failed")
    cancelled = await system.create("c", simulate=RUNNING)
    await system.http.post(f"{system.gateway_url()}/v1/streams/{cancelled}/cancel")
    for stream_id in (failed, cancelled):
        etag = (await get(system, stream_id, path, accept=accept)).headers["etag"]
        assert (await get(system, stream_id, path, accept=accept, if_none_match=etag)).status_code == 304


async def test_a_partial_request_is_never_answered_with_304(system: System) -> None:
    """A request for a part gets it, whatever its `If-None-Match` says."""
    stream_id = await system.create("part", simulate=ANSWER)
    await system.until_status(stream_id, "completed")
    for path in ("/events?last_event_id=1-3", "/events?from=now", "/text?after_bytes=3", "/text?last_event_id=1-3"):
        part = await get(system, stream_id, path, if_none_match="*")
        assert part.status_code == 200
        assert "etag" not in part.headers


async def test_a_running_stream_has_no_etag(system: System) -> None:
    stream_id = await system.create("runs", simulate=RUNNING)
    await system.follow(stream_id).until_tokens(2)
    state = await get(system, stream_id, "", if_none_match="*")
    assert (state.status_code, state.headers["cache-control"]) == (200, "no-store")
    assert "etag" not in state.headers
    for path in ("/events", "/text"):
        url = f"{system.gateway_url()}/v1/streams/{stream_id}{path}"
        async with system.http.stream("GET", url, headers={"if-none-match": "*"}) as response:
            assert response.status_code == 200
            assert "etag" not in response.headers
            assert "no-cache" in response.headers["cache-control"]
    await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")


async def test_incomplete_text_has_no_etag(system: System) -> None:
    stream_id = await system.create("f", simulate={**ANSWER, "fail_after": 5}, midstream={"on_interrupt": "fail"})
    await system.until_status(stream_id, "failed")
    url = f"{system.gateway_url()}/v1/streams/{stream_id}/text"
    async with system.http.stream("GET", url, headers={"if-none-match": "*"}) as response:
        assert response.status_code == 200
        assert "etag" not in response.headers


async def test_curl_keeps_its_copy(system: System, tmp_path: Path) -> None:
    """`curl --etag-save` and `--etag-compare`, which keep the file if nothing has changed."""
    needs("curl", shutil.which("curl"))
    stream_id = await system.create("curl", simulate=ANSWER)
    state = await system.until_status(stream_id, "completed")
    etag, copy = tmp_path / "etag", tmp_path / "answer.txt"
    url = f"{system.gateway_url()}/v1/streams/{stream_id}/text"

    async def fetch(*more: str) -> bytes:
        command = ("curl", "-sS", "--max-time", "20", "-w", "%{http_code}", "-o", str(copy), *more, url)
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        assert process.returncode == 0
        return output

    assert await fetch("--etag-save", str(etag)) == b"200"
    assert copy.read_text() == state["text"]
    assert await fetch("--etag-compare", str(etag)) == b"304"
    assert copy.read_text() == state["text"]
