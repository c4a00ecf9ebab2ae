"""midstream.client against real gateways and workers, which are cut and killed."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from midstream.client import AsyncClient, Client, Lost, Restarted, Started, StreamError, StreamEvent
from shared.ids import new_stream_id
from tests.support.http_server import Closed, HttpServer, Request
from tests.support.openai_server import OpenAIServer
from tests.support.python_client import KINDS, Collected, Face, Kind, with_ids
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

_ROOT = Path(__file__).resolve().parents[2]
_PAGE = _ROOT / "docs" / "how-to" / "use-the-python-client.md"
_EXAMPLE = _ROOT / "examples" / "terminal_client.py"
_PROGRAM_SECONDS_MAX = 60.0
_AT_ONCE = 100


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(server: OpenAIServer) -> AsyncIterator[System]:
    """Gateways that have their clients come back at once, and workers whose death is noticed soon."""
    settings = {"provider": "openai", "openai_base_url": server.url, "lease_seconds": 1}
    async with System(workers=2, settings=settings, gateway_settings={"retry_milliseconds": 0}) as system:
        yield system


class CuttingProxy(HttpServer):
    """Passes requests on to a port. The first response that a path with `?cut=N` gets is cut after N bytes, its head included."""

    def __init__(self, target_port: int) -> None:
        super().__init__()
        self._target_port = target_port
        self._cut: set[str] = set()

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place = request.path.partition("cut=")[2]
        left = int(place) if place and place not in self._cut else sys.maxsize
        self._cut.add(place)
        async with asyncio.timeout(_PROGRAM_SECONDS_MAX):
            for part in await response_of(self._target_port, request.path, request.headers.get("last-event-id", "")):
                writer.write(part[:left])
                left -= len(part[:left])
        await writer.drain()
        raise Closed


async def response_of(port: int, path: str, last_event_id: str = "") -> list[bytes]:
    """Returns a whole response to a GET, with its head, in the parts in which it came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    after = f"Last-Event-ID: {last_event_id}\r\n" if last_event_id else ""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{after}Connection: close\r\n\r\n".encode())
    parts = []
    while part := await reader.read(65_536):
        parts.append(part)
    writer.close()
    await writer.wait_closed()
    return parts


def expect_whole(events: Sequence[StreamEvent], state: dict[str, Any]) -> None:
    """Checks that each id is there once and in order, and that the text after the last event is the gateway's."""
    attempt, offset = 0, 0
    for event in (event for event in events if event.id is not None):
        if isinstance(event, Started | Restarted):
            attempt, offset = attempt + 1, event.base if isinstance(event, Restarted) else 0
            assert event.id == f"{attempt}-0"
        else:
            offset += 1
            assert event.id == f"{attempt}-{offset}"
    assert (events[-1].type, events[-1].text) == ("done", state["text"])


@pytest.mark.parametrize("kind", KINDS)
async def test_cut_at_every_byte(system: System, kind: Kind) -> None:
    """Of a stream with reasoning, tokens, a tool call and a second attempt; the response's head is cut, too."""
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    script = {"reasoning": ["hm"], "text": ["Grü", "ße ", "👋🏽"], "tool_calls": [call]}
    faulty = {**script, "break_after": 2, "times": 1, "key": f"cut {kind}"}
    stream_id = await system.create("cut", script=faulty, midstream={"on_interrupt": "restart"})
    state = await system.until_status(stream_id, "completed")
    assert state["attempt"] == 2
    path = f"/v1/streams/{stream_id}/events"
    size = sum(map(len, await response_of(system.gateway_port(), path)))
    whole = await Face(kind, system.gateway_url()).follow(stream_id)
    expect_whole(whole.events, state)
    async with CuttingProxy(system.gateway_port()) as proxy, AsyncClient(proxy.origin) as asynchronous:
        with Client(proxy.origin) as client, ThreadPoolExecutor(_AT_ONCE) as threads:

            async def cut_at(place: int) -> list[StreamEvent]:
                if kind == "async":
                    return [event async for event in asynchronous.follow(f"{path}?cut={place}")]
                following = client.follow(f"{path}?cut={place}")
                return await asyncio.get_running_loop().run_in_executor(threads, lambda: list(following))

            collected = await asyncio.gather(*map(cut_at, range(size)))
    expected = with_ids(whole.events)
    assert [place for place, events in enumerate(collected) if with_ids(events) != expected] == []
    assert size > 1000
    assert sum(isinstance(event, Lost) for events in collected for event in events) >= size - 100, "cuts were noticed"


async def test_gateways_and_a_worker_are_killed(system: System) -> None:
    # The first attempt stops at its 95th token: it cannot end before its worker is killed.
    script = {"tokens": 200, "tokens_per_second": 50, "stall_after": 95, "times": 1, "key": "killed"}
    stream_id = await system.create("killed", script=script, midstream={"on_interrupt": "continue"})
    seen = {kind: Collected() for kind in KINDS}

    async def follow(kind: Kind) -> Collected:
        def note(collected: Collected) -> bool:
            seen[kind] = collected
            return False

        return await Face(kind, system.gateway_url()).follow(stream_id, until=note)

    following = [asyncio.create_task(follow(kind)) for kind in KINDS]
    for tokens in (30, 60):
        await wait_until(lambda: all(len(one.events) > tokens for one in seen.values()), within_seconds=15.0)  # noqa: B023
        system.gateways[0].kill()
        await system.start_gateway(0)
    await wait_until(lambda: all(len(one.events) > 90 for one in seen.values()), within_seconds=15.0)
    worker = await system.worker_of(stream_id)
    worker.kill()
    try:
        state = await system.until_status(stream_id, "completed", within_seconds=30.0)
        assert state["attempt"] >= 2
        for collected in await asyncio.gather(*following):
            expect_whole(collected.events, state)
            assert len(collected.lost) >= 2
    finally:
        await system.start_worker(system.workers.index(worker))


@pytest.mark.parametrize("kind", KINDS)
async def test_the_calls(system: System, server: OpenAIServer, kind: Kind) -> None:
    """create, state, receipt and cancel as a gateway answers them, and the end that each gives."""
    face = Face(kind, system.gateway_url())
    endless = {"messages": [{"role": "user", "content": "x"}], "script": {"tokens": 2000, "tokens_per_second": 20}}
    created = await face.call("create", endless, idempotency_key=f"same {kind}")
    assert (await face.call("create", endless, idempotency_key=f"same {kind}")).id == created.id
    await face.follow(created.url, until=lambda collected: len(collected.events) > 5)
    assert (await face.call("state", created.id)).status == "running"
    cancelled = await face.call("cancel", created.url)
    assert (cancelled.status, cancelled.cancelled_by) == ("cancelled", "client")
    await wait_until(lambda: server.running == 0, what="the provider has stopped")
    ended = await face.follow(created.id)
    assert (ended.events[-1].type, ended.text) == ("cancelled", cancelled.text)
    (end,) = (await face.follow(created.id, after=str(ended.events[-1].id))).events
    assert end.type == "cancelled", "the terminal event comes again for who has all"
    short = await face.ask({"messages": [{"role": "user", "content": "x"}], "script": {"tokens": 5}, "max_tokens": 3})
    assert (short.events[-1].type, short.events[-1].data["truncated"]) == ("done", True)
    refused = {"messages": [{"role": "user", "content": "x"}], "script": {"fail_status": 400}}
    failed = (await face.ask(refused)).events[-1]
    assert (failed.type, failed.data["code"]) == ("failed", "provider_refused")
    stream = (await face.call("create", "hello")).id
    assert (await face.call("state", stream, wait_seconds=10)).status == "completed"
    assert (await face.call("receipt", stream)).generated["tokens"] == 20


@pytest.mark.parametrize("kind", KINDS)
async def test_what_the_gateway_refuses(system: System, kind: Kind) -> None:
    face = Face(kind, system.gateway_url())
    expired = "00000000000000000000000000" + new_stream_id()[:10]
    for work, status in (
        (face.follow(new_stream_id()), 404),
        (face.follow(expired), 410),
        (face.follow(new_stream_id(), after="x"), 400),
        (face.call("create", {"messages": 1}), 400),
        (face.call("cancel", new_stream_id()), 404),
    ):
        with pytest.raises(StreamError) as raised:
            await work
        assert (raised.value.status, raised.value.retryable) == (status, False)
    with pytest.raises(StreamError, match="answers with application/json, not with"):
        await face.follow(f"{system.gateway_url()}/openapi.json")


async def run_program(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Runs a program in Python; returns its exit code and what it printed."""
    process = await start_program(*arguments, environment=environment)
    async with asyncio.timeout(_PROGRAM_SECONDS_MAX):
        printed, _ = await process.communicate()
    return process.returncode or 0, printed.decode()


async def start_program(*arguments: str, environment: dict[str, str] | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", *arguments),
        cwd=_ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


_PROGRAMS = re.findall(r"^```python\n(.*?)^```$", _PAGE.read_text(), re.MULTILINE | re.DOTALL)
_PRINTED = [r"\w.*\n\d+ characters, done\n", r"\w.* done\n", r"done \d+\n", r"(cancelled|completed)\n.*\n\d+\n"]
"""The output of each program, in their order. A short answer may be whole before it can be cancelled."""


@pytest.mark.parametrize(
    ("program", "printed"),
    list(zip(_PROGRAMS, _PRINTED, strict=True)),
    ids=["ask", "asyncio", "resume", "calls"],
)
async def test_the_programs_of_the_guide(system: System, program: str, printed: str) -> None:
    assert "http://127.0.0.1:8000" in program
    code, output = await run_program("-c", program.replace("http://127.0.0.1:8000", system.gateway_url()))
    assert code == 0, output
    assert re.fullmatch(printed, output, re.DOTALL), output


async def test_the_example_of_a_terminal_client(system: System, server: OpenAIServer) -> None:
    environment = {"MIDSTREAM_URL": system.gateway_url()}
    code, printed = await run_program(str(_EXAMPLE), "hello", environment=environment)
    assert code == 0, printed
    assert len(printed.split()) == 20
    script = {"tokens": 2000, "tokens_per_second": 50}
    stream_id = await system.create("stopped", script=script)
    process = await start_program(str(_EXAMPLE), "--stream", stream_id, environment=environment)
    assert process.stdout is not None
    await process.stdout.readuntil(b" ")
    process.send_signal(signal.SIGINT)
    printed = (await process.communicate())[0].decode()
    assert process.returncode == 0, printed
    assert printed.endswith(f"[cancelled: {stream_id}]\n")
    await wait_until(lambda: server.running == 0, what="the provider has stopped")
    code, printed = await run_program(str(_EXAMPLE), "--stream", stream_id, environment=environment)
    assert (code, printed.splitlines()[-1]) == (1, "[stopped by client]")
