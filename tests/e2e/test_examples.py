"""The programs in examples/ do what their how-to pages say, with processes that are killed meanwhile."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from examples import own_backend
from tests.support.event_source import EventSource
from tests.support.redis_server import free_port
from tests.support.system import System
from tests.support.waiting import wait_until
from tests.support.webhook_receiver import SECRET

ROOT = Path(__file__).resolve().parents[2]
LINES_MAX = 60


@pytest.mark.parametrize("example", sorted((ROOT / "examples").rglob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(example: Path) -> None:
    assert len(example.read_text().splitlines()) <= LINES_MAX


async def test_the_receiver_of_webhooks_prints_what_has_ended() -> None:
    port = free_port()
    settings = {
        "webhook_secrets": SECRET,
        "webhook_url": f"http://127.0.0.1:{port}/ended",
        "webhook_networks": "127.0.0.1",
        "webhook_http": 1,
        "webhook_backoff_seconds": 0.2,
    }
    async with System(settings=settings) as system:
        command = ["-m", "uvicorn", "examples.webhook_receiver:app", "--port", str(port)]
        receiver = start(system, *command, WEBHOOK_SECRET=SECRET)
        try:
            stream_id = await system.create(simulate={"tokens": 7})
            assert receiver.stdout is not None
            line = await asyncio.wait_for(asyncio.to_thread(receiver.stdout.readline), 20)
            assert line.decode().split() == ["stream.completed", stream_id, "7"]
        finally:
            receiver.terminate()
            receiver.communicate(timeout=10)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("page_with_*/*.*")), ids=lambda path: path.name)
def test_what_a_page_of_users_needs_is_short(example: Path) -> None:
    lines = [line for line in example.read_text().splitlines() if line.strip()]
    assert len(lines) <= (40 if example.suffix == ".py" else LINES_MAX)


def start(system: System, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "MIDSTREAM_URL": system.gateway_url(), **variables}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


async def test_a_backend_before_midstream_survives_the_death_of_the_gateway() -> None:
    async with System(settings={"retry_milliseconds": 100}) as system:
        backend_port = free_port()
        backend = start(system, "-m", "uvicorn", "examples.own_backend:app", "--port", str(backend_port))
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{backend_port}", trust_env=False) as browser:

                async def answers() -> bool:
                    try:
                        return (await browser.get("/openapi.json")).status_code == 200
                    except httpx.TransportError:
                        return False

                await wait_until(answers, within_seconds=20, what="the backend answers")
                stream_id = (await browser.post("/answers", params={"question": "rivers"})).json()["id"]
                source = EventSource(backend_port, f"/answers/{stream_id}")
                following = asyncio.create_task(source.run())
                await wait_until(lambda: source.events > 20, within_seconds=15, what="the answer has begun")
                system.gateways[0].kill()
                created = asyncio.create_task(browser.post("/answers", params={"question": "a second"}, timeout=20))
                await wait_until(lambda: not created.done(), what="the second question is asked")
                await system.start_gateway(0)
                await asyncio.wait_for(following, 30)
                assert source.refused == []
                assert source.answer.end == "done"
                assert source.answer.text == (await system.state(stream_id))["text"]
                assert (await created).status_code == 200, "a question that was asked meanwhile waited"
                assert (await browser.get("/answers/unknown")).status_code == 404
        finally:
            backend.terminate()
            await asyncio.to_thread(backend.communicate, timeout=20)


@pytest.mark.parametrize("status", [None, 503])
async def test_a_browser_is_asked_to_come_back_while_no_gateway_answers(
    status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def problem() -> AsyncIterator[bytes]:
        yield b'{"status":503,"detail":"full"}'

    def gateway(request: httpx.Request) -> httpx.Response:
        if status is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(status, content=problem())

    away = httpx.AsyncClient(base_url="http://gateway", transport=httpx.MockTransport(gateway))
    monkeypatch.setattr(own_backend, "gateway", away)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(own_backend.app), base_url="http://backend") as browser:
        answer = await browser.get("/answers/any")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert "data:" not in answer.text
    assert ("retry: 1000\n\n" in answer.text) == (status is None)


async def test_a_job_shows_its_progress_goes_on_and_is_stopped() -> None:
    provider = {"provider": "examples.job_with_progress:resize"}
    policies = {"on_disconnect": "continue", "on_interrupt": "continue"}
    async with System(workers=2, settings={"lease_seconds": 1}, worker_settings=provider) as system:
        files = [f"{number}.png" for number in range(60)]
        stream_id = await system.create("resize", files=files, midstream=policies)
        reader = system.follow(stream_id)
        await wait_until(lambda: len(reader.named("progress")) >= 10, what="ten files are done")
        (await system.worker_of(stream_id)).kill()
        late = system.follow(stream_id)
        for follower in (reader, late):
            await follower.until_end()
            steps = [(event["file"], event["done"]) for event in follower.named("progress")]
            assert steps == [(file, number) for number, file in enumerate(files, 1)], "each file once"
            assert follower.tokens == ["60 files are resized."]
        endless = await system.create("resize", files=[str(number) for number in range(1000)], midstream=policies)
        watching = system.follow(endless)
        await wait_until(lambda: watching.named("progress"), what="a file is done")
        await system.http.post(f"{system.gateway_url()}/v1/streams/{endless}/cancel")
        await watching.until_event("cancelled")
        await watching.until_end()


async def test_an_agent_that_crashed_goes_on_at_its_step() -> None:
    async with System() as system:
        crashed = start(system, "examples/agent_steps.py", "run-1")
        assert crashed.stdout is not None
        first = await asyncio.to_thread(crashed.stdout.readline)

        async def second_runs() -> bool:
            return len(await system.logs()) == 2

        await wait_until(second_runs, within_seconds=15, what="step 2 was asked for")
        crashed.send_signal(signal.SIGKILL)
        crashed.communicate()
        again, _ = await asyncio.to_thread(start(system, "examples/agent_steps.py", "run-1").communicate, timeout=60)
        lines = again.splitlines(keepends=True)
        assert lines[0] == first
        assert [re.match(rb"step (\d):", line)[1] for line in lines] == [b"1", b"2", b"3"]  # type: ignore[index]
        assert len(await system.logs()) == 3, "no step was generated twice"
        assert await system.metric("midstream_streams_created_total") == 3
