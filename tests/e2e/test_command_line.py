"""The command line with real processes behind it: a provider, a gateway, another web server."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from midstream import cli, demo
from tests.support.openai_server import OpenAIServer
from tests.support.redis_server import free_port
from tests.support.system import System, environment_of

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
    told = capsys.readouterr().out
    assert [f"cut after token {cut}\n" in told for cut in cuts] == [True] * len(cuts), told
    assert f"{tokens} tokens over {len(cuts) + 1} connections: none lost, none doubled" in told


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
