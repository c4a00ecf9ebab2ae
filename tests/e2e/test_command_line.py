"""The command line with real processes behind it: a provider, a gateway, another web server."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import ANY

import pytest
import pytest_asyncio

from midstream import cli, demo
from tests.stress.proxy import Proxy
from tests.support.openai_server import OpenAIServer
from tests.support.redis_server import free_port
from tests.support.system import System, environment_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).resolve().parents[2]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with System() as system:
        yield system


@pytest.mark.parametrize(
    ("path", "words"),
    [("/chat", "answers with text/html, not with an event stream"), ("/healthz", "answers with application/json")],
)
async def test_tail_of_what_is_no_stream_ends(
    running: System, path: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(cli.main, ["tail", running.gateway_url() + path]) == 1
    assert words in capsys.readouterr().err


async def test_tail_of_a_server_without_its_scheme_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert await asyncio.to_thread(cli.main, ["tail", "0" * 36, "--server", "127.0.0.1:8000"]) == 1
    assert "must begin with http://" in capsys.readouterr().err


async def tailed(
    system: System, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int | str | None, str, str]:
    """Runs `midstream tail`; returns its exit code, what it printed, and its notes."""
    code = await asyncio.to_thread(cli.main, ["tail", "--server", system.gateway_url(), *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize(
    ("simulate", "stopped", "code", "note"),
    [
        ({"tokens": 5}, False, 0, ""),
        ({"tokens": 5, "fail_after": 3}, False, 1, "[failed: "),
        ({"tokens": 5000, "tokens_per_second": 20}, True, 3, "[cancelled by client]"),
    ],
    ids=["done", "failed", "cancelled"],
)
async def test_tail_shows_the_text_and_the_end(
    running: System, simulate: dict[str, int], stopped: bool, code: int, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stream_id = await running.create(simulate=simulate, midstream={"on_interrupt": "fail"})
    if stopped:
        await running.http.post(f"{running.gateway_url()}/v1/streams/{stream_id}/cancel")
    state = await running.state(stream_id, wait_seconds=10)
    assert await tailed(running, capsys, stream_id) == (code, state["text"] + "\n", ANY)
    url = running.events_url(stream_id)
    ended, text, notes = await tailed(running, capsys, url)
    assert (ended, text) == (code, state["text"] + "\n")
    assert note in notes
    lines = (await running.http.get(url, headers={"accept": "application/x-ndjson"})).text.splitlines()
    ended, printed, notes = await tailed(running, capsys, url, "--json")
    assert (ended, notes) == (code, "")
    assert [json.loads(line) for line in printed.splitlines()] == [json.loads(line) for line in lines]
    last_id = json.loads(lines[-1])["id"]
    ended, printed, _ = await tailed(running, capsys, stream_id, "--json", "--last-event-id", last_id)
    assert (ended, json.loads(printed)["id"]) == (code, last_id), "who has the end already is told how it ended"


async def test_tail_resumes_after_a_cut(running: System, capsys: pytest.CaptureFixture[str]) -> None:
    stream_id = await running.create(simulate={"tokens": 150, "tokens_per_second": 50})
    async with Proxy(running.gateway_port()) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/v1/streams/{stream_id}/events"
        tailing = asyncio.create_task(tailed(running, capsys, url))
        await wait_until(lambda: proxy.bytes > 1000)
        proxy.hurt("aborts", random.Random(1), 1.0)
        code, text, notes = await tailing
    assert (code, text) == (0, (await running.state(stream_id))["text"] + "\n")
    assert re.fullmatch(r"\[connection lost: .*; resuming after 1-\d+\]\n", notes), notes


async def test_tail_gives_up_a_server_that_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tail", f"http://127.0.0.1:{free_port()}/v1/streams/x", "--give-up", "0.2"]
    assert await asyncio.to_thread(cli.main, arguments) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("midstream tail: ")


async def test_tail_of_other_forms(running: System, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, notes = await tailed(running, capsys, f"{running.gateway_url()}/stream?prompt=rivers")
    assert (code, text[:26], notes) == (0, "This is a simulated answer", "")
    stream_id = await running.create(simulate={"tokens": 5})
    chunks = f"{running.gateway_url()}/v1/chat/completions/{stream_id}/events"
    code, printed, _ = await tailed(running, capsys, chunks, "--json")
    assert code == 0
    last = json.loads(printed.splitlines()[-1])
    assert (last["event"], last["data"]) == ("message", "[DONE]")


@pytest.mark.parametrize(("tokens", "cuts"), [(12, (4, 8)), (3, (1, 2)), (2, (1,)), (60, (20, 45))])
async def test_the_demo_cuts_an_answer_of_any_length(
    running: System,
    tokens: int,
    cuts: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "_TOKENS", tokens)
    monkeypatch.setattr(demo, "_AWAY_SECONDS", 0.01)
    assert await asyncio.to_thread(demo._show, running.gateway_url(), "rivers", None) == 0
    output = capsys.readouterr().out
    assert [f"cut after token {cut}\n" in output for cut in cuts] == [True] * len(cuts), output
    assert f"{tokens} tokens over {len(cuts) + 1} connections: none lost, none doubled" in output


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as errors:
        return subprocess.Popen(command, cwd=ROOT, env=environment_of({}), stdout=subprocess.PIPE, stderr=errors)


@pytest.mark.parametrize("provider", ["is there", "without its /v1", "is away"])
async def test_up_says_which_models_the_provider_has_or_why_not(provider: str, tmp_path: Path) -> None:
    async with OpenAIServer() as server:
        url, words = {
            "is there": (server.url, "has 1 model: scripted. A request that names none gets scripted"),
            "without its /v1": (server.origin, "answered 404 .*OPENAI_BASE_URL has no /v1"),
            "is away": (f"http://127.0.0.1:{free_port()}/v1", "is not ready: the provider could not be asked"),
        }[provider]
        command = [sys.executable, "-m", "midstream.cli", "up", "--port", "0", "--base-url", url]
        up = start(command, tmp_path / "log")
        assert up.stdout is not None
        try:
            lines = [(await asyncio.to_thread(up.stdout.readline)).decode() for _ in range(3)]
        finally:
            up.send_signal(signal.SIGTERM)
            await asyncio.to_thread(up.communicate, timeout=20)
    address = lines[0].removeprefix("midstream is up: ").strip()
    assert lines[1] == f"open the console: {address}/\n"
    host = url.removeprefix("http://").removesuffix("/v1")
    assert lines[2].startswith(f"the provider at {host} ")
    assert re.search(words, lines[2]), lines[2]
    assert all(line.startswith("{") for line in (tmp_path / "log").read_text().splitlines()), "JSON among JSON"
