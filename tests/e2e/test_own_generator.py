"""Generators of a user's own in real workers: on every face, over deaths, and as `midstream up --provider` starts them."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from shared.keys import log_key
from tests.support import ai_sdk, node
from tests.support.browser import Opened
from tests.support.system import System, answer_of, environment_of
from tests.support.tool_model import CITIES, LAST_WORDS, ToolModel
from tests.support.waiting import wait_until

_ROOT = Path(__file__).resolve().parents[2]
_HOW_TO = _ROOT / "docs" / "how-to" / "your-own-generator.md"
_UP_SECONDS_MAX = 20.0


in_module = pytest.mark.asyncio(loop_scope="module")


# --- in a system's worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    """Two gateways, and a worker with the generators of `tests.support.generators` beside the simulated provider."""
    providers = "simple=simulated,steps=tests.support.generators:steps,bad=tests.support.generators:raises"
    async with System(gateways=2, settings={"providers": providers}) as system:
        yield system


@in_module
async def test_own_events_reach_an_event_source_and_are_resumed_at_any_of_them(system: System) -> None:
    stream_id = await system.create(midstream={"provider": "steps"})
    whole = await system.follow(stream_id).until_end()
    answer = answer_of(whole.messages)
    step = ("step", {"number": 1, "of": "steps"})
    assert answer.items == [("token", "one"), step, ("token", " two"), ("delta", {"reasoning_content": "Hm."})]
    assert (answer.end, answer.end_data["usage"]) == ("done", {"total_tokens": 4})
    for count, message in enumerate(whole.messages):
        if message.id:
            rest = await system.follow(stream_id, gateway=1, after=message.id).until_end()
            assert [it for it in rest.messages if it.event != "live"] == [
                it for it in whole.messages[count + 1 :] if it.event != "live"
            ]


@in_module
async def test_a_request_chooses_its_generator_by_model_too(system: System) -> None:
    for body, text in (({"model": "steps"}, "one two"), ({"simulate": {"tokens": 2}}, "This is")):
        stream_id = await system.create(**body)
        assert (await system.state(stream_id, wait_seconds=10))["text"] == text
    listed = (await system.http.get(f"{system.gateway_url()}/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["simple", "steps", "bad"]
    stream_id = await system.create(midstream={"provider": "none"})
    state = await system.state(stream_id, wait_seconds=10)
    assert state["error"]["message"] == "there is no provider 'none'; there are simple, steps, bad"
    refused = await system.http.post(
        f"{system.gateway_url()}/v1/streams", json={"messages": [{"role": "user"}], "midstream": {"provider": 7}}
    )
    assert (refused.status_code, "midstream.provider must be" in refused.text) == (400, True)


@in_module
async def test_an_exception_names_its_type_to_readers_and_its_place_to_the_operator(running: System) -> None:
    stream_id = await running.create("a prompt that nobody should see", midstream={"provider": "bad"})
    failed = await running.follow(stream_id).until_event("failed")
    assert failed == {"code": "generator_error", "message": "the generator raised KeyError", "retryable": False}
    logged = running.workers[0].logged()
    assert re.search(r"generators\.py.{1,40}in raises", logged), "the traceback"
    assert "a prompt that nobody should see" not in logged


@in_module
async def test_openais_sdk_passes_over_own_events(system: System) -> None:
    """Its accumulators, too: of Chat Completions and of Responses."""
    async with openai.AsyncOpenAI(base_url=f"{system.gateway_url()}/v1", api_key="any") as client:
        ask = {"role": "user", "content": "hello"}
        own: list[Any] = []
        async with client.chat.completions.stream(model="steps", messages=[ask]) as chunks:  # type: ignore[list-item]
            async for event in chunks:
                if event.type == "chunk" and "midstream" in (more := event.chunk.model_extra or {}):
                    own.append(more["midstream"])
            whole = await chunks.get_final_completion()
        assert whole.choices[0].message.content == "one two"
        assert own == [{"event": "step", "data": {"number": 1, "of": "steps"}}]
        own.clear()
        async with client.responses.stream(model="steps", input="hello") as parts:
            async for part in parts:
                if "midstream" in (more := part.model_extra or {}):
                    own.append(more["midstream"])
            response = await parts.get_final_response()
        assert response.output_text == "one two"
        assert own == [{"event": "step", "data": {"number": 1, "of": "steps"}}]
        numbers = [
            part.sequence_number async for part in await client.responses.create(model="steps", input="x", stream=True)
        ]
        assert numbers == list(range(len(numbers)))


@in_module
async def test_openais_node_sdk_passes_over_own_events(system: System) -> None:
    seen = await node.run("own_events.mjs", {"baseURL": f"{system.gateway_url()}/v1"})
    step = {"event": "step", "data": {"number": 1, "of": "steps"}}
    assert seen == {"own": [step, step], "text": "one two", "outputText": "one two"}


@in_module
@pytest.mark.parametrize("version", ["ai", "ai-v6"])
async def test_the_ai_sdk_has_own_events_as_parts_of_the_message(system: System, version: str) -> None:
    message = {"id": "1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}
    body = {"id": "own", "messages": [message], "trigger": "submit-message", "model": "steps"}
    answer = await system.http.post(f"{system.gateway_url()}/api/chat", json=body)
    seen = await ai_sdk.read(answer.content, version)
    assert not seen["wrong"]
    assert not seen["errors"]
    assert [(part["type"], part.get("text") or part.get("data")) for part in seen["message"]["parts"]] == [
        ("step-start", None),
        ("text", "one"),
        ("data-step", {"number": 1, "of": "steps"}),
        ("text", " two"),
        ("reasoning", "Hm."),
    ]


@in_module
async def test_the_chat_page_and_the_terminal_count_own_events(system: System, browser: Browser) -> None:
    opened = await Opened.at(browser, f"{system.gateway_url()}/chat")
    await opened.page.get_by_text("Options").click()
    await opened.page.get_by_label("Your question").fill("hello")
    await opened.page.locator("#model").select_option("steps")
    await opened.page.get_by_label("Your question").press("Enter")
    await expect(opened.page.locator(".story")).to_contain_text("none lost, none doubled", timeout=20_000)
    await opened.close(host=urlsplit(system.gateway_url()).netloc)
    stream_id = await system.create(model="steps")
    command = [str(Path(sys.executable).parent / "midstream"), "tail", stream_id, "--server", system.gateway_url()]
    shown = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=20)
    assert shown.stderr == '[step: {"number":1,"of":"steps"}]\n'
    assert shown.stdout.startswith("one\n two\n")


# --- the example of a tool loop


@pytest.mark.parametrize("killed_after", [None, "calls", "result", "text"])
async def test_the_tool_loop_calls_no_tool_again(killed_after: str | None) -> None:
    async with ToolModel(tokens_per_second=60) as model:
        settings = {
            "provider": "examples.openai_tool_loop:answer",
            "lease_seconds": 0.5,
            "openai_base_url": model.url,
            "openai_api_key": "any",
        }
        async with System(workers=1 if killed_after is None else 2, settings=settings) as system:
            stream_id = await system.create("rain?", midstream={"on_interrupt": "continue"})
            reader = system.follow(stream_id)
            if killed_after == "text":
                await reader.until_tokens(10)
            elif killed_after is not None:
                await reader.until_event(killed_after)
            if killed_after is not None:
                (await system.worker_of(stream_id)).kill()
            answer = answer_of((await reader.until_end()).messages)
    assert answer.end == "done", answer
    assert len(answer.restarted) >= (
        killed_after is not None
    )  # more, if a worker of a busy machine was taken for dead, too
    results = [data["content"] for name, data in answer.items if name == "result"]
    assert results == [f"18 degrees and rain in {city}" for city in CITIES]
    assert [name for name, _ in answer.items if name != "token"] == ["calls", "result"] * 2
    assert answer.text == "Let me look." * 2 + "".join(LAST_WORDS)


def test_the_example_is_short() -> None:
    assert len((_ROOT / "examples" / "openai_tool_loop.py").read_text().splitlines()) <= 40


# --- midstream up --provider


@contextmanager
def up(directory: Path, *options: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `midstream up` in this directory, on a free port; its output is in `log`."""
    command = [str(Path(sys.executable).parent / "midstream"), "up", "--port", "0", *options]
    environment = {**environment_of({}), "PYTHONPATH": str(_ROOT)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=output)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(20)


async def url_of(process: subprocess.Popen[bytes], log: Path) -> str:
    """Returns where `midstream up` listens."""

    def found() -> re.Match[str] | None:
        assert process.poll() is None, log.read_text()
        return re.search(r"midstream is up: (http\S+)", log.read_text())

    await wait_until(found, within_seconds=_UP_SECONDS_MAX, what="midstream is up")
    match = found()
    assert match is not None
    return match[1]


def blocks_of_how_to() -> list[str]:
    """Returns the Python examples of the how-to, in order."""
    return re.findall(r"^```python\n(.*?)^```", _HOW_TO.read_text(), re.MULTILINE | re.DOTALL)


async def text_of(url: str) -> str:
    body = {"messages": [{"role": "user", "content": "to be or not"}]}
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as http:
        created = (await http.post(f"{url}/v1/streams", json=body)).json()
        state: dict[str, Any] = (await http.get(f"{url}/v1/streams/{created['id']}?wait=10")).json()
        return str(state["text"])


async def test_the_smallest_example_has_five_lines_and_is_reloaded_when_it_changes(tmp_path: Path) -> None:
    smallest = blocks_of_how_to()[0]
    assert len(smallest.strip().splitlines()) == 5
    source, log = tmp_path / "app.py", tmp_path / "log"
    source.write_text(smallest)
    with up(tmp_path, "--provider", "app:answer", "--reload", log=log) as process:
        url = await url_of(process, log)
        assert await text_of(url) == "you said: to be or not "
        source.write_text("def answer(request):\n    yield 'now in a thread'\n")
        await wait_until(lambda: "app.py has changed" in log.read_text(), what="the change is noticed")
        await wait_until(
            lambda: log.read_text().count(" is up: ") >= 4, what=f"the worker is up again: {log.read_text()}"
        )
        assert await text_of(url) == "now in a thread"
        source.write_text("def answer(:\n")
        await wait_until(lambda: "raised SyntaxError" in log.read_text(), what="the worker cannot start")
        source.write_text("def answer(request):\n    yield 'mended'\n")
        assert await text_of(url) == "mended"
    assert process.returncode == 0, log.read_text()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (None, "there is no module 'app' in"),
        ("import nowhere_at_all\n", "importing 'app' raised ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("async def answer(request):\n    return 'no'\n", "it is no generator"),
    ],
)
def test_what_cannot_be_imported_ends_the_start_with_one_sentence(
    tmp_path: Path, source: str | None, sentence: str
) -> None:
    if source is not None:
        (tmp_path / "app.py").write_text(source)
    with up(tmp_path, "--provider", "app:answer", log=tmp_path / "log") as process:
        assert process.wait(_UP_SECONDS_MAX) == 1
    logged = (tmp_path / "log").read_text()
    assert logged.startswith("midstream up: the provider 'app:answer' cannot be used: ")
    assert sentence in logged
    assert logged.count("\n") == 1


def test_reload_is_for_a_generator_of_ones_own(tmp_path: Path) -> None:
    with up(tmp_path, "--provider", "simulated", "--reload", log=tmp_path / "log") as process:
        assert process.wait(_UP_SECONDS_MAX) == 1
    assert "--reload is for a generator of your own, and none is named" in (tmp_path / "log").read_text()


async def test_a_worker_with_a_generator_that_does_not_stop_still_ends() -> None:
    async with System(settings={"provider": "tests.support.generators:deaf", "worker_drain_seconds": 0}) as system:
        stream_id = await system.create()
        await system.follow(stream_id).until_tokens(1)
        worker = system.workers[0]
        worker.send(signal.SIGTERM)
        assert await worker.exit_code() == 0
        assert "what generates it has not stopped within 2 s" in worker.logged()
        assert "leaving 1 generators that do not stop" in worker.logged()
        newest = (await system.commands.xrange(log_key(stream_id)))[-1]
        assert newest[1] == {b"t": b"one"}, json.dumps(str(newest))
        await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")
