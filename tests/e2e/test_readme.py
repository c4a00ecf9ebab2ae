"""The README's first commands, run as its reader runs them: from an empty folder, against what `midstream up` starts.

tests/e2e/test_chat_page.py runs its page, tests/e2e/test_deploy.py checks the files for Compose.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Route, expect

from tests.support.needs import needs
from tests.support.packages import packages
from tests.support.recipes import ROOT, at, blocks, midstream_up, run, run_python, run_shell

pytestmark = pytest.mark.asyncio(loop_scope="module")

_README = ROOT / "README.md"
_READERS = "## Which of these are you?"
_SIMULATED = "This is a simulated answer:"
_FILM_BYTES_MAX = 1_500_000
_LINES_MAX = 190


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with midstream_up(tmp_path_factory.mktemp("up")) as url:
        yield url


def block_with(language: str, word: str) -> str:
    (found,) = [block for block in blocks(_README, language, under=_READERS) if word in block]
    return found


async def test_it_is_short_and_its_film_loads_fast() -> None:
    assert len(_README.read_text().splitlines()) <= _LINES_MAX
    (film,) = re.findall(r"\((docs/images/\S+\.webp)\)", _README.read_text())
    assert 0 < (ROOT / film).stat().st_size < _FILM_BYTES_MAX
    for language in ("js", "python", "jsx", "sh"):
        for block in blocks(_README, language, under=_READERS):
            assert len(block.splitlines()) <= 10


@pytest.mark.parametrize(
    ("word", "expected"),
    [("OpenAI", _SIMULATED), ("midstream.client", r"started .*\ntoken .*\ndone \S")],
    ids=["OpenAI client", "service"],
)
async def test_a_program(word: str, expected: str, url: str, tmp_path: Path) -> None:
    printed = await run_python(block_with("python", word), tmp_path, url)
    assert re.search(expected, printed, re.DOTALL), printed


async def test_an_agent(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(block_with("python", "async def answer"))
    async with (
        midstream_up(tmp_path, block_with("sh", "app:answer")) as url,
        httpx2.AsyncClient(base_url=url, timeout=30.0) as http,
    ):
        body = {"messages": [{"role": "user", "content": "rivers?"}]}
        stream = (await http.post("/v1/streams", json=body)).json()["id"]
        events = (await http.get(f"/v1/streams/{stream}/events")).text
    assert 'event: tool\ndata: {"name":"search","query":"rivers?"}' in events
    assert 'data: {"token":"Rivers find their way to the sea."}' in events
    assert "event: done" in events


async def test_an_operator(url: str, tmp_path: Path) -> None:
    lines = block_with("sh", "midstream doctor").splitlines()
    (doctor,) = [line for line in lines if line.startswith("midstream doctor")]
    without_silence = doctor.replace("midstream doctor", "midstream doctor --idle 0")  # it lasts 17 s
    assert "SSE streams as it should." in await run_shell(without_silence, tmp_path, url)


async def test_a_shell(url: str, tmp_path: Path) -> None:
    needs("curl (Debian: apt install curl)", shutil.which("curl"))
    (commands,) = blocks(_README, "sh", under="## From a shell")
    printed = await run_shell(commands.replace("midstream tail", f"midstream tail --server {url}"), tmp_path, url)
    assert printed.count("event: done") == 2, "followed, and resumed"
    assert printed.count('data: {"token":"This"}') == 1, "resumed behind it"
    assert '"status":"completed"' in printed
    assert '"generated":{"tokens":80' in printed
    assert f"}}{_SIMULATED}" in printed, "the tail, behind the receipt's JSON"


async def test_the_ai_sdk(browser: Browser, url: str, tmp_path: Path) -> None:
    """The README's two lines as the inside of a component."""
    place = await asyncio.to_thread(packages, "ai_sdk")
    inside = at(url, block_with("jsx", "useChat"))
    page_source = f"""
        import {{ useChat }} from '@ai-sdk/react';
        import {{ DefaultChatTransport }} from 'ai';
        import {{ createRoot }} from 'react-dom/client';
        function Chat({{ id }}) {{
          {inside}
          window.ask = () => sendMessage({{ text: 'Tell me about rivers.' }});
          return <pre>{{messages.flatMap(({{ parts }}) => parts.map(({{ text }}) => text)).join('')}}</pre>;
        }}
        createRoot(document.body.appendChild(document.createElement('main'))).render(<Chat id="readme" />);
    """
    (tmp_path / "page.jsx").write_text(page_source)
    command = [str(place / "node_modules/.bin/esbuild"), str(tmp_path / "page.jsx"), "--bundle", "--jsx=automatic"]
    command += ["--log-level=error", '--define:process.env.NODE_ENV="production"']
    bundled = await run(command, tmp_path, NODE_PATH=str(place / "node_modules"))

    async def html(route: Route) -> None:
        await route.fulfill(body="<!doctype html><body></body>", content_type="text/html")

    page = await browser.new_page()
    await page.route("**/readme", html)
    await page.goto(f"{url}/readme")
    await page.add_script_tag(content=bundled)
    await page.wait_for_function("() => window.ask")
    await page.evaluate("void ask()")
    await expect(page.locator("pre")).to_contain_text(_SIMULATED)
    await page.close()


async def test_the_demo(tmp_path: Path) -> None:
    """`make demo` is `midstream demo` in the `.venv` that make has set up."""
    assert "midstream demo" in (ROOT / "Makefile").read_text()
    assert "none lost, none doubled" in await run(["midstream", "demo"], tmp_path)
