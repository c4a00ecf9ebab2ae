from __future__ import annotations

from typing import Any

import pytest

from gateway.facades.ai_sdk.messages import chat_messages, replayed_parts
from gateway.http.problems import Problem

STEP = {"type": "step-start"}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content, "state": "done"}


def tool(state: str, name: str = "look", **more: Any) -> dict[str, Any]:
    return {"type": f"tool-{name}", "toolCallId": f"c-{name}", "state": state, "input": {"at": 1}, **more}


def file(url: str, media_type: str, **more: Any) -> dict[str, Any]:
    return {"type": "file", "url": url, "mediaType": media_type, **more}


def of(role: str, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the chat messages that one UI message becomes. A question is added and removed again, since requests must not be empty."""
    question = {"role": "user", "parts": [text("q")]}
    *converted, last = chat_messages([{"id": "1", "role": role, "parts": list(parts)}, question])
    assert last == {"role": "user", "content": "q"}
    return converted


def called(name: str = "look", arguments: str = '{"at":1}') -> dict[str, Any]:
    return {"id": f"c-{name}", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_text() -> None:
    assert of("system", text("be "), text("brief")) == [{"role": "system", "content": "be brief"}]
    assert of("user", text("hi")) == [{"role": "user", "content": "hi"}]
    two = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert of("user", text("a"), text("b")) == [{"role": "user", "content": two}]
    assert of("assistant", text("a"), text("b")) == [{"role": "assistant", "content": "ab"}]


def test_parts_that_are_only_displayed_are_left_out() -> None:
    shown: list[dict[str, Any]] = [
        {"type": "reasoning", "text": "hm"},
        {"type": "source-url", "sourceId": "s", "url": "https://example.org"},
        {"type": "data-weather", "data": {}},
        {"type": "not-known-yet"},
        STEP,
    ]
    assert of("assistant", STEP, *shown, text("a")) == [{"role": "assistant", "content": "a"}]
    for role in ("system", "user", "assistant"):
        assert of(role, *shown) == []


@pytest.mark.parametrize(
    ("part", "content"),
    [
        (
            file("https://example.org/a.png", "image/png"),
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        ),
        (
            file("data:image/jpeg;base64,AA==", "image/jpeg"),
            {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AA=="}},
        ),
        (
            file("data:audio/mpeg;base64,AA==", "audio/mpeg"),
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "mp3"}},
        ),
        (
            file("data:application/pdf;base64,AA==", "application/pdf", filename="a.pdf"),
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
        ),
    ],
)
def test_files(part: dict[str, Any], content: dict[str, Any]) -> None:
    assert of("user", text("see"), part) == [{"role": "user", "content": [{"type": "text", "text": "see"}, content]}]
    assert of("user", part) == [{"role": "user", "content": [content]}]


@pytest.mark.parametrize(
    "part",
    [
        file("https://example.org/a.pdf", "application/pdf"),
        file("data:video/mp4;base64,AA==", "video/mp4"),
        file("blob:https://example.org/1", "image/png"),
    ],
)
def test_files_that_a_chat_message_cannot_have(part: dict[str, Any]) -> None:
    with pytest.raises(Problem, match=r"^messages\[0\]\.parts\[1\] must be an image") as caught:
        of("user", text("see"), part)
    assert caught.value.status == 400


def test_steps_with_tools() -> None:
    parts = (
        STEP,
        text("I look. "),
        tool("output-available", output={"seen": "ö"}),
        tool("output-error", "ask", errorText="nobody there"),
        STEP,
        tool("output-denied", "buy", approval={"id": "a", "approved": False, "reason": "too dear"}),
        STEP,
        text("Done."),
    )
    assert of("assistant", *parts) == [
        {"role": "assistant", "content": "I look. ", "tool_calls": [called(), called("ask")]},
        {"role": "tool", "tool_call_id": "c-look", "content": '{"seen":"ö"}'},
        {"role": "tool", "tool_call_id": "c-ask", "content": "nobody there"},
        {"role": "assistant", "content": None, "tool_calls": [called("buy")]},
        {"role": "tool", "tool_call_id": "c-buy", "content": "too dear"},
        {"role": "assistant", "content": "Done."},
    ]


def test_a_tool_call_without_a_result_is_left_out() -> None:
    for state in ("input-streaming", "input-available", "approval-requested"):
        assert of("assistant", STEP, text("I l"), tool(state)) == [{"role": "assistant", "content": "I l"}]
        assert of("assistant", STEP, tool(state)) == []


def test_dynamic_tools_and_wrong_input() -> None:
    dynamic = {**tool("output-available", output="seen"), "type": "dynamic-tool", "toolName": "look"}
    wrong = tool("output-error", "ask", errorText="no JSON", rawInput='{"a":')
    del wrong["input"]
    assert of("assistant", dynamic, wrong) == [
        {"role": "assistant", "content": None, "tool_calls": [called(), called("ask", '{"a":')]},
        {"role": "tool", "tool_call_id": "c-look", "content": "seen"},
        {"role": "tool", "tool_call_id": "c-ask", "content": "no JSON"},
    ]


def test_a_message_is_replayed() -> None:
    parts = [
        STEP,
        {"type": "reasoning", "text": "hm"},
        text("I look."),
        tool("output-available", output=1),
        tool("output-error", "ask", errorText="no"),
        tool("input-streaming", "half"),
        STEP,
        {**tool("output-denied", "buy"), "type": "dynamic-tool", "toolName": "buy"},
        file("data:image/png;base64,AA==", "image/png", filename="a.png"),
    ]
    given = '{"at":1}'
    assert replayed_parts(parts) == [
        {"type": "start-step"},
        {"type": "reasoning-start", "id": "before-1"},
        {"type": "reasoning-delta", "id": "before-1", "delta": "hm"},
        {"type": "reasoning-end", "id": "before-1"},
        {"type": "text-start", "id": "before-2"},
        {"type": "text-delta", "id": "before-2", "delta": "I look."},
        {"type": "text-end", "id": "before-2"},
        {"type": "tool-input-start", "toolCallId": "c-look", "toolName": "look"},
        {"type": "tool-input-delta", "toolCallId": "c-look", "inputTextDelta": given},
        {"type": "tool-output-available", "toolCallId": "c-look", "output": 1},
        {"type": "tool-input-start", "toolCallId": "c-ask", "toolName": "ask"},
        {"type": "tool-input-delta", "toolCallId": "c-ask", "inputTextDelta": given},
        {"type": "tool-output-error", "toolCallId": "c-ask", "errorText": "no"},
        {"type": "finish-step"},
        {"type": "start-step"},
        {"type": "tool-input-start", "toolCallId": "c-buy", "toolName": "buy", "dynamic": True},
        {"type": "tool-input-delta", "toolCallId": "c-buy", "inputTextDelta": given},
        {"type": "tool-output-denied", "toolCallId": "c-buy"},
        {"type": "file", "url": "data:image/png;base64,AA==", "mediaType": "image/png"},
        {"type": "finish-step"},
    ]
