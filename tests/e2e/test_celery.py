"""examples/celery_tasks.py as its how-to says, with authentication on: a task's process is killed, and another task is stopped."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from shared.api_keys import new_key
from tests.support.needs import needs
from tests.support.redis_server import RedisServer, binary_of
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).resolve().parents[2]
END_SECONDS_MAX = 15.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    needs("celery (pip install -e '.[recipes]')", importlib.util.find_spec("celery"))
    async with System(workers=0, api_key=new_key()) as system:
        yield system


@pytest.fixture(scope="module")
def variables(running: System) -> Iterator[dict[str, str]]:
    """The environment of the application and of Celery, with a Redis of their own between them."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MIDSTREAM_")}
    with RedisServer("redis" if binary_of("redis") else "valkey", tcp=True) as broker:
        yield {
            **ours,
            "MIDSTREAM_URL": running.gateway_url(),
            "MIDSTREAM_API_KEY": running.api_key,
            "CELERY_BROKER_URL": broker.url,
        }


@pytest.fixture(scope="module")
def celery(variables: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "celery", "-A", "examples.celery_tasks", "worker", "--concurrency", "1"]
    with tempfile.TemporaryFile() as printed:
        worker = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=printed, stderr=subprocess.STDOUT)
        yield worker
        worker.send_signal(signal.SIGQUIT)  # its cold shutdown
        try:
            worker.wait(END_SECONDS_MAX)
        finally:
            worker.kill()
            worker.wait()
            printed.seek(0)
            print(printed.read().decode()[-3000:])  # shown when a test fails


async def started(variables: dict[str, str], files: list[str]) -> str:
    """Starts a task as an application does; returns its stream's id."""
    program = f"from examples.celery_tasks import start; print(start({files!r}))"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), cwd=ROOT, env=variables, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return printed.decode().strip()


async def until(system: System, stream_id: str, *, tokens: int = 0, status: str = "") -> None:
    async def reached() -> bool:
        state = await system.state(stream_id)
        return state["tokens"] >= tokens and status in ("", state["status"])

    await wait_until(reached, within_seconds=40.0, what=f"{tokens} events, {status}")


def task_process(celery: subprocess.Popen[bytes]) -> int:
    """Returns the process in which Celery runs its tasks."""
    children = Path(f"/proc/{celery.pid}/task/{celery.pid}/children").read_text().split()
    return int(children[0])


async def test_a_task_whose_process_is_killed_goes_on_behind_its_last_event(
    system: System, variables: dict[str, str], celery: subprocess.Popen[bytes]
) -> None:
    files = [f"{number}.png" for number in range(30)]
    stream_id = await started(variables, files)
    await until(system, stream_id, tokens=8)
    os.kill(task_process(celery), signal.SIGKILL)
    await until(system, stream_id, tokens=30, status="completed")
    lines = await system.http.get(system.events_url(stream_id), headers={"accept": "application/x-ndjson"})
    events = [event for event in map(json.loads, lines.text.splitlines()) if event["event"] == "progress"]
    assert [(event["data"]["file"], event["data"]["done"]) for event in events] == [
        (file, number) for number, file in enumerate(files, 1)
    ]
    assert (await system.state(stream_id))["attempt"] == 2


async def test_a_cancel_ends_a_task_and_the_next_one_runs(
    system: System, variables: dict[str, str], celery: subprocess.Popen[bytes]
) -> None:
    endless = await started(variables, [str(number) for number in range(1000)])
    await until(system, endless, tokens=1)
    cancelled = await system.http.post(f"{system.gateway_url()}/v1/streams/{endless}/cancel")
    assert cancelled.status_code == 200
    following = await started(variables, ["a.png"])
    await until(system, following, tokens=1, status="completed")
