"""The agents in examples/*_writer.py, each with its framework, against a model that calls two tools and then answers.

Authentication is on.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from shared.api_keys import new_key
from tests.support.anthropic_server import AnthropicServer
from tests.support.needs import needs
from tests.support.system import System, answer_of
from tests.support.tool_model import CITIES, LAST_WORDS, ToolModel

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.long]

_ROOT = Path(__file__).resolve().parents[2]
_PYTHON = _ROOT / ".venv-frameworks" / "bin" / "python"
_EXAMPLES = sorted((_ROOT / "examples").glob("*_writer.py"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    needs("the agent frameworks (make frameworks)", _PYTHON.exists())
    async with System(workers=0, api_key=new_key()) as system:
        yield system


@pytest.mark.timeout(120)
@pytest.mark.parametrize("example", _EXAMPLES, ids=lambda path: path.stem)
async def test_an_agent_writes_its_steps_and_its_answer(system: System, example: Path) -> None:
    async with ToolModel() as openai, AnthropicServer() as anthropic:
        environment = {
            **os.environ,
            "MIDSTREAM_URL": system.gateway_url(),
            "MIDSTREAM_API_KEY": system.api_key,
            "OPENAI_BASE_URL": openai.url,
            "OPENAI_API_KEY": "any",
            "ANTHROPIC_BASE_URL": anthropic.origin,
            "ANTHROPIC_API_KEY": "any",
        }
        command = [str(_PYTHON), str(example), "Will it rain?"]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=90
        )
    assert done.returncode == 0, done.stderr
    answer = answer_of((await system.follow(done.stdout.strip().rpartition("/")[2]).until_end()).messages)
    looks = [("token", "Let "), ("token", "me "), ("token", "look.")]
    tools = [("tool", {"name": "weather", "result": f"18 degrees and rain in {city}"}) for city in CITIES]
    assert answer.items == [*looks, tools[0], *looks, tools[1], *(("token", word) for word in LAST_WORDS)]
    assert answer.end == "done"
