"""examples/nextjs as its reader runs it: `npm ci`, `next build`, `next start`; answers pass through unbuffered, and survive a gateway's death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from tests.support.event_source import EventSource
from tests.support.needs import needs
from tests.support.recipes import ROOT, environment, run
from tests.support.redis_server import free_port
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600), pytest.mark.long]

_START_SECONDS_MAX = 60.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with System(settings={"retry_milliseconds": 100}) as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def port(running: System, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[int]:
    """The port of the built application, before the system's gateway."""
    needs("node and npm (Debian: apt install nodejs npm)", shutil.which("node") and shutil.which("npm"))
    needs("Next.js, 340 MB and a minute of building, which runs with CI=true only: it", os.environ.get("CI"))
    folder = tmp_path_factory.mktemp("nextjs") / "app"
    shutil.copytree(ROOT / "examples" / "nextjs", folder, ignore=shutil.ignore_patterns("node_modules", ".next"))
    quiet = {"NEXT_TELEMETRY_DISABLED": "1"}
    await run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], folder, **quiet)
    await run(["npx", "next", "build"], folder, **quiet)
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *("npx", "next", "start", "--hostname", "127.0.0.1", "--port", str(port)),
        cwd=folder,
        env=environment(**quiet, MIDSTREAM_URL=running.gateway_url()),
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:

        async def answers() -> bool:
            with contextlib.suppress(httpx2.TransportError):
                return (await running.http.get(f"http://127.0.0.1:{port}/")).status_code == 200
            return False

        await wait_until(answers, within_seconds=_START_SECONDS_MAX, what="Next.js answers")
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # npx, and the server that it has started
        await process.wait()


async def asked(system: System, port: int) -> str:
    response = await system.http.post(f"http://127.0.0.1:{port}/answers", json={"question": "rivers"})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


async def test_it_passes_on_unbuffered_and_notices_who_leaves(system: System, port: int) -> None:
    stream_id = await asked(system, port)
    url = f"http://127.0.0.1:{port}/answers/{stream_id}/events"
    headers = {"accept": "text/event-stream", "accept-encoding": "gzip, br"}
    async with system.http.stream("GET", url, headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in response.headers
        async for line in response.aiter_lines():
            if line.startswith('data: {"token"'):
                break
        assert (await system.state(stream_id))["status"] == "running", "the first token is here before the last is made"

    async def left() -> bool:
        receipt: dict[str, Any] = (
            await system.http.get(f"{system.gateway_url()}/v1/streams/{stream_id}/receipt")
        ).json()
        return [row["outcome"] for row in receipt["delivered"]["connections"]] == ["disconnected"]

    await wait_until(left, what="the gateway knows that its reader has left")
    stopped = await system.http.post(f"http://127.0.0.1:{port}/answers/{stream_id}/stop")
    assert (stopped.status_code, stopped.json()["status"]) == (200, "cancelled")


async def test_an_answer_survives_the_death_of_the_gateway(system: System, port: int) -> None:
    stream_id = await asked(system, port)
    source = EventSource(port, f"/answers/{stream_id}/events")
    following = asyncio.create_task(source.run())
    await wait_until(lambda: source.events > 20, within_seconds=15, what="the answer has begun")
    system.gateways[0].kill()
    await system.start_gateway(0)
    await asyncio.wait_for(following, 30)
    assert (source.refused, source.answer.end) == ([], "done")
    assert source.answer.text == (await system.state(stream_id))["text"]
    unknown = await system.http.get(f"http://127.0.0.1:{port}/answers/unknown/events")
    assert unknown.status_code == 404
