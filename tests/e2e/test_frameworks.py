"""docs/how-to/use-your-framework.md: LangChain and LiteLLM as its reader uses them, and the requests of Open WebUI and LibreChat."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
import pytest_asyncio
import yaml

from shared.api_keys import new_key
from tests.support.needs import needs
from tests.support.openai_server import OpenAIServer
from tests.support.recipes import ROOT, blocks, environment, run_python
from tests.support.redis_server import free_port
from tests.support.system import System, settings_with
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.long]

_KEY = new_key()
_WITH_AND_WITHOUT_KEY = pytest.mark.parametrize(("gateway", "key"), [(0, "unused"), (1, _KEY)], ids=["open", "key"])
"""Gateway 0 has no authentication: its clients send what the guide's programs have as a key."""

_GUIDE = ROOT / "docs" / "how-to" / "use-your-framework.md"
_PROXY_START_SECONDS_MAX = 60.0
_NO_CALLS = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "DO_NOT_TRACK": "1"}
"""The frameworks ask no server of their own."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(server: OpenAIServer) -> AsyncIterator[System]:
    system = System(gateways=2, settings={"provider": "openai", "openai_base_url": server.url})
    system.gateways[1].settings |= settings_with(_KEY)
    async with system:
        yield system


def program_under(heading: str, package: str) -> str:
    needs(f"{package} (pip install -e '.[recipes]')", importlib.util.find_spec(package))
    (program,) = blocks(_GUIDE, "python", under=heading)
    return program


_TOOLS = """
from langchain_core.tools import tool

@tool
def look(city: str) -> str:
    "Returns the weather."
    return "rain"

again = ChatOpenAI(model="m", base_url="http://127.0.0.1:8000/v1", api_key="unused", extra_body={"script": SCRIPT})
whole = again.bind_tools([look]).invoke("How is it in Bern?")
print("\\n", whole.tool_calls[0]["name"], whole.tool_calls[0]["args"])
streamed = None
for chunk in again.bind_tools([look]).stream("How is it in Bern?"):
    streamed = chunk if streamed is None else streamed + chunk
print(streamed.tool_calls[0]["name"], streamed.tool_calls[0]["args"])
"""


@_WITH_AND_WITHOUT_KEY
async def test_langchain(system: System, tmp_path: Path, gateway: int, key: str) -> None:
    """The guide's program, and tools, called whole and in pieces."""
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Bern"}'}}
    script = {"text": ["I look."], "tool_calls": [call], "finish_reason": "tool_calls"}
    program = program_under("## LangChain", "langchain_openai") + _TOOLS.replace("SCRIPT", repr(script))
    program = program.replace('"unused"', repr(key))
    printed = await run_python(program, tmp_path, system.gateway_url(gateway), **_NO_CALLS)
    match = re.match(r"\[([0-9a-z]{36})\]\n(.+)", printed)
    assert match, printed
    state = await system.state(match[1])
    assert (state["status"], state["text"], state["metadata"]) == ("completed", match[2], {"app": "rivers"})
    assert printed.count("look {'city': 'Bern'}") == 2, printed


@_WITH_AND_WITHOUT_KEY
async def test_litellm_before_us(system: System, tmp_path: Path, gateway: int, key: str) -> None:
    program = program_under("### Before Midstream: its SDK", "litellm") + "print('\\n' + chunk.id)\n"
    program = program.replace('"unused"', repr(key))
    printed = await run_python(program, tmp_path, system.gateway_url(gateway), **_NO_CALLS)
    text, completion_id = printed.strip().splitlines()[-2:]
    state = await system.state(completion_id.removeprefix("chatcmpl-"))
    assert (state["status"], state["text"]) == ("completed", text)


@contextlib.asynccontextmanager
async def litellm_proxy(folder: Path, config: dict[str, Any], key: str) -> AsyncIterator[str]:
    """LiteLLM's proxy with this configuration, on a free port; gives its base URL."""
    program = os.environ.get("LITELLM_PROXY", "")
    needs("LITELLM_PROXY, the program litellm of an environment of its own with litellm[proxy] (750 MB),", program)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    variables = environment(**_NO_CALLS, LITELLM_MASTER_KEY=key)
    variables["PATH"] = f"{Path(program).parent}{os.pathsep}{variables['PATH']}"
    with (folder / "litellm.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(program, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)),
            cwd=folder,
            env=variables,
            stdout=log,
            stderr=log,
        )
    try:
        async with httpx2.AsyncClient(trust_env=False) as http:

            async def lives() -> bool:
                assert process.returncode is None, (folder / "litellm.log").read_text()[-3000:]
                with contextlib.suppress(httpx2.TransportError):
                    return (await http.get(f"http://127.0.0.1:{port}/health/liveliness")).status_code == 200
                return False

            await wait_until(lives, within_seconds=_PROXY_START_SECONDS_MAX, what="LiteLLM's proxy answers")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def between(
    server: OpenAIServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[System, str, str]]:
    """A system whose provider is LiteLLM's proxy, which also has the system as a model: gives the proxy's URL and key."""
    key, gateway_port = f"sk-{secrets.token_hex(24)}", free_port()
    (text,) = blocks(_GUIDE, "yaml", under="### Before Midstream: its proxy")
    config = yaml.safe_load(text)
    (before,) = config["model_list"]
    before["litellm_params"] |= {"api_base": f"http://127.0.0.1:{gateway_port}/v1", "api_key": _KEY}
    behind = {"model": "openai/model-behind", "api_base": server.url, "api_key": "unused"}
    config["model_list"].append({"model_name": "gpt-4o-mini", "litellm_params": behind})
    config["router_settings"] = {"num_retries": 0}
    async with litellm_proxy(tmp_path_factory.mktemp("litellm"), config, key) as proxy_url:
        settings = {"provider": "openai", "openai_base_url": proxy_url, "openai_api_key": key}
        async with System(settings=settings, gateway_settings={"port": gateway_port}, api_key=_KEY) as system:
            yield system, proxy_url, key


async def test_litellm_s_proxy_on_both_sides(between: tuple[System, str, str], server: OpenAIServer) -> None:
    """client → proxy → Midstream → proxy → provider, token by token."""
    system, proxy_url, key = between
    body = {
        "model": "rivers",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "script": {"tokens": 40, "tokens_per_second": 20},
    }
    pieces: list[str] = []
    at_first: dict[str, Any] = {}
    async with system.http.stream(
        "POST", f"{proxy_url}/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
    ) as response:
        assert response.status_code == 200, await response.aread()
        stream_id = response.headers["llm_provider-x-stream-id"]
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choices = orjson.loads(line.removeprefix("data: "))["choices"]
            if choices and (content := choices[0]["delta"].get("content")):
                pieces.append(content)
                at_first = at_first or await system.state(stream_id)
    state = await system.state(stream_id)
    assert (state["status"], state["text"]) == ("completed", "".join(pieces))
    assert at_first["status"] == "running", "the first token came while the provider was still at it"
    assert len(pieces) == 40


async def test_a_stop_reaches_the_provider_behind_litellm_s_proxy(
    between: tuple[System, str, str], server: OpenAIServer
) -> None:
    system, _, _ = between
    stream_id = await system.create(model="gpt-4o-mini", script={"tokens": 5000, "tokens_per_second": 20})
    reader = system.follow(stream_id)
    await reader.until_tokens(3)
    assert server.running == 1
    await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")
    await reader.until_event("cancelled")
    await wait_until(lambda: server.running == 0, within_seconds=15.0, what="the provider has stopped")


_OPEN_WEBUI = {
    "content-type": "application/json",
    "x-openwebui-user-name": "Ada",
    "x-openwebui-user-id": "9b1f",
    "x-openwebui-user-email": "ada@example.com",
    "x-openwebui-user-role": "user",
    "x-openwebui-chat-id": "0c6e",
    "x-midstream-on-disconnect": "cancel_after=0",
}
_LIBRECHAT = {"x-midstream-on-disconnect": "cancel_after=0"}
_LIBRECHAT_BODY = {"temperature": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "user": "66f0"}


@_WITH_AND_WITHOUT_KEY
@pytest.mark.parametrize(
    ("headers", "parameters"),
    [(_OPEN_WEBUI, {"stream_options": {"include_usage": True}}), (_LIBRECHAT, _LIBRECHAT_BODY)],
    ids=["Open WebUI", "LibreChat"],
)
async def test_the_requests_of_chat_programs(
    headers: dict[str, str], parameters: dict[str, Any], system: System, server: OpenAIServer, gateway: int, key: str
) -> None:
    """Its list of models, a chat that is stopped by closing the connection, and a title. The programs themselves do not run here."""
    base, headers = f"{system.gateway_url(gateway)}/v1", {**headers, "authorization": f"Bearer {key}"}
    models = (await system.http.get(f"{base}/models", headers=headers)).json()["data"]
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    chat = {"model": models[0]["id"], "messages": messages, "stream": True, **parameters}
    endless = {**chat, "script": {"tokens": 5000, "tokens_per_second": 20}}
    async with system.http.stream("POST", f"{base}/chat/completions", json=endless, headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        stream_id = response.headers["x-stream-id"]
        async for line in response.aiter_lines():
            if '"content":"' in line and '"content":""' not in line:
                break
    state = await system.until_status(stream_id, "cancelled")
    assert state["cancelled_by"] == "disconnect"
    await wait_until(lambda: server.running == 0, what="the provider has stopped")
    title = await system.http.post(f"{base}/chat/completions", json={**chat, "stream": False}, headers=headers)
    assert title.json()["choices"][0]["message"]["content"]


def settings_of(text: str) -> list[str]:
    """Returns the base URLs that a block of the guide sets."""
    return re.findall(r"(?:OPENAI_API_BASE_URL=|baseURL: )(\S+)", text)


async def test_the_settings_of_chat_programs() -> None:
    (docker,) = blocks(_GUIDE, "sh", under="## Open WebUI")
    (headers,) = blocks(_GUIDE, "json", under="## Open WebUI")
    (librechat,) = blocks(_GUIDE, "yaml", under="## LibreChat")
    assert settings_of(docker) == settings_of(librechat) == ["http://midstream:8000/v1"]
    (endpoint,) = yaml.safe_load(librechat)["endpoints"]["custom"]
    assert endpoint["headers"] == orjson.loads(headers) == {"X-Midstream-On-Disconnect": "cancel_after=0"}
