"""Unsupported or wrong requests to the Responses API: a 4xx that names the parameter, never a 500."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.support.openai_server import OpenAIServer
from tests.support.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"input": 7}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": 1}]}, "input[0].id"),
        ({"input": [{"role": "user", "content": [{"type": "input_video"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [7]}, "input[0]"),
        ({"input": [{"role": "user", "content": [[]]}]}, "input[0].content[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": "all"}, "tools"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"background": True, "store": False}, "store"),
        ({"background": 1}, "background"),
        ({"stream": "yes"}, "stream"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"instructions": ["a"]}, "instructions"),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
        ({"midstream": {"on_interrupt": "panic"}}, "midstream.on_interrupt"),
        ({"midstream": 7}, "midstream"),
        ({"previous_response_id": 7}, "previous_response_id"),
    ],
)
async def test_wrong_or_unsupported_parameters_are_named(system: System, wrong: dict[str, Any], param: str) -> None:
    answer = await post(system, {"model": "m", "input": "x", **wrong})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert param in error["message"]
    assert error["type"] == "invalid_request_error"


async def post(system: System, body: Any) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body)
    return await system.http.post(f"{system.gateway_url()}/v1/responses", content=content)


async def test_malformed_requests(system: System, server: OpenAIServer) -> None:
    requests_before = server.requests
    for body in (b"", b"[]", b"{", b"\xff", b'{"input":' + b"[" * 4000):
        answer = await post(system, body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]
    assert (await post(system, b"x" * (25 << 20))).status_code == 413
    assert server.requests == requests_before
    for depth in range(236, 256):  # nested as deeply as it may be, and more
        schema: Any = {}
        for _ in range(depth):
            schema = {"a": schema}
        tools = [{"type": "function", "name": "f", "parameters": schema}]
        text = {"format": {"type": "json_schema", "name": "f", "schema": schema}}
        answer = await post(system, {"input": "x", "script": {"tokens": 1}, "tools": tools, "text": text})
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 200:
            followed = await system.http.get(f"{system.gateway_url(1)}/v1/responses/{answer.json()['id']}?stream=true")
            assert followed.content.count(b"event: response.completed") == 1
    url = system.gateway_url() + "/v1/responses"
    for method, path, status in (
        ("GET", "", 405),
        ("PUT", "/resp_x", 405),
        ("GET", "/resp_x/cancel", 405),
        ("GET", "/resp_x/input_items", 404),
        ("GET", "/resp_x/y/z", 404),
    ):
        answer = await system.http.request(method, url + path)
        assert (answer.status_code, "message" in answer.json()["error"]) == (status, True)
    response_id = "resp_" + await system.create(script={"tokens": 1})
    for query in ("stream=maybe", "stream=true&starting_after=-1", "stream=true&starting_after=x", "starting_after=1"):
        answer = await system.http.get(f"{url}/{response_id}?{query}")
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error"), query
