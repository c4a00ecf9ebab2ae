"""Converts the AI SDK's UI messages, as `useChat` sends them, to chat messages. Raises Problem 400 that names the part.

An assistant's message may have several steps: each becomes a message with its tool calls, and one for each result. Parts
that are only displayed (reasoning, sources, data, step boundaries) are left out. So are tool calls without a result: else
an answer that was stopped in the middle of a call would make every later request of the chat fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from gateway.http.problems import Problem

_AUDIO_FORMATS = {"audio/wav": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3"}
_SAME_IN_STREAM = {
    "file": ("url", "mediaType"),
    "source-url": ("sourceId", "url"),
    "source-document": ("sourceId", "mediaType", "title"),
}
"""Parts that have the same form in a message and in a stream, with their required fields."""
_RESULTS = ("output-available", "output-error", "output-denied")
_DENIED = "The user did not allow this tool call."


def chat_messages(messages: Any) -> list[dict[str, Any]]:
    """Returns the messages of a Chat Completions request."""
    if not isinstance(messages, list) or not messages:
        raise Problem(400, "messages must be a list of at least one UI message")
    converted: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        name = f"messages[{index}]"
        if not isinstance(message, dict) or message.get("role") not in _CONVERT:
            raise Problem(400, f'{name} must be a UI message: an object with a "role" of {", ".join(_CONVERT)}')
        parts = message.get("parts")
        if not isinstance(parts, list):
            raise Problem(
                400, f"{name}.parts must be a list of parts; this API takes UI messages, as useChat sends them"
            )
        for place, part in enumerate(parts):
            _check(f"{name}.parts[{place}]", part)
        converted.extend(_CONVERT[message["role"]](name, parts))
    if not converted:
        raise Problem(400, "messages must have something to answer: all of them are empty")
    return converted


def replayed_parts(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the stream parts from which a client builds these message parts, with their steps.

    A call's input is sent as a delta: `tool-input-available` would make the client run its own tools once more.
    """
    replayed: list[dict[str, Any]] = []
    steps = 0
    for number, part in enumerate(parts):
        kind: str = part["type"]
        if kind == "step-start":
            replayed += [{"type": "finish-step"}] * (steps > 0) + [{"type": "start-step"}]
            steps += 1
        elif kind in ("text", "reasoning") and isinstance(part.get("text"), str):
            part_id = f"before-{number}"
            replayed.append({"type": f"{kind}-start", "id": part_id})
            replayed.append({"type": f"{kind}-delta", "id": part_id, "delta": part["text"]})
            replayed.append({"type": f"{kind}-end", "id": part_id})
        elif _is_tool(part) and part.get("state") in _RESULTS:
            replayed += _replayed_call(part)
        elif kind in _SAME_IN_STREAM and all(isinstance(part.get(field), str) for field in _SAME_IN_STREAM[kind]):
            replayed.append({"type": kind, **{field: part[field] for field in _SAME_IN_STREAM[kind]}})
        elif kind.startswith("data-"):  # an own event
            named = {"id": part["id"]} if isinstance(part.get("id"), str) else {}
            replayed.append({"type": kind, **named, "data": part.get("data")})
    return replayed + [{"type": "finish-step"}] * (steps > 0)


def _replayed_call(part: dict[str, Any]) -> list[dict[str, Any]]:
    call = _call(part)
    call_fields, function = {"toolCallId": part["toolCallId"]}, call["function"]
    dynamic = {"dynamic": True} if part["type"] == "dynamic-tool" else {}
    replayed: list[dict[str, Any]] = [
        {"type": "tool-input-start", **call_fields, "toolName": function["name"], **dynamic},
        {"type": "tool-input-delta", **call_fields, "inputTextDelta": function["arguments"]},
    ]
    if part["state"] == "output-available":
        replayed.append({"type": "tool-output-available", **call_fields, "output": part.get("output")})
    elif part["state"] == "output-error":
        replayed.append({"type": "tool-output-error", **call_fields, "errorText": _json_or_text(part.get("errorText"))})
    else:
        replayed.append({"type": "tool-output-denied", **call_fields})
    return replayed


def _check(name: str, part: Any) -> None:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise Problem(400, f'{name} must be a part: an object with a "type"')
    for kind, fields in (("text", ("text",)), ("file", ("url", "mediaType")), ("dynamic-tool", ("toolName",))):
        for field in fields:
            if part["type"] == kind and not isinstance(part.get(field), str):
                raise Problem(400, f"{name}.{field} must be a text")
    if _is_tool(part) and not isinstance(part.get("toolCallId"), str):
        raise Problem(400, f"{name}.toolCallId must be a text")


def _system(name: str, parts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    text = _text(parts)
    if text:
        yield {"role": "system", "content": text}


def _user(name: str, parts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    content = []
    for place, part in enumerate(parts):
        if part["type"] == "text":
            content.append({"type": "text", "text": part["text"]})
        elif part["type"] == "file":
            content.append(_file(f"{name}.parts[{place}]", part))
    if len(content) == 1 and content[0]["type"] == "text":
        yield {"role": "user", "content": content[0]["text"]}  # the form that every provider accepts
    elif content:
        yield {"role": "user", "content": content}


def _assistant(name: str, parts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    step: list[dict[str, Any]] = []
    for part in (*parts, {"type": "step-start"}):
        if part["type"] != "step-start":
            step.append(part)
            continue
        text, calls = _text(step), [(part, _result(part)) for part in step if _is_tool(part)]
        answered = [(part, result) for part, result in calls if result is not None]
        if answered:
            yield {"role": "assistant", "content": text or None, "tool_calls": [_call(part) for part, _ in answered]}
            for part, result in answered:
                yield {"role": "tool", "tool_call_id": part["toolCallId"], "content": result}
        elif text:
            yield {"role": "assistant", "content": text}
        step = []


_CONVERT = {"system": _system, "user": _user, "assistant": _assistant}


def _text(parts: list[dict[str, Any]]) -> str:
    return "".join(part["text"] for part in parts if part["type"] == "text")


def _file(name: str, part: dict[str, Any]) -> dict[str, Any]:
    url, media_type = part["url"], part["mediaType"]
    inline = url.startswith("data:")
    if media_type.startswith("image/") and (inline or url.startswith(("https://", "http://"))):
        return {"type": "image_url", "image_url": {"url": url}}
    if media_type in _AUDIO_FORMATS and inline:
        audio = {"data": url.partition(",")[2], "format": _AUDIO_FORMATS[media_type]}
        return {"type": "input_audio", "input_audio": audio}
    if media_type == "application/pdf" and inline:
        filename = part.get("filename") if isinstance(part.get("filename"), str) else "document.pdf"
        return {"type": "file", "file": {"filename": filename, "file_data": url}}
    takes = "an image (a data URL or an http address), or a data URL of application/pdf, audio/wav, audio/mpeg"
    raise Problem(400, f"{name} must be {takes}, not {media_type[:64]} at {url[:32]!r}")


def _is_tool(part: dict[str, Any]) -> bool:
    kind: str = part["type"]
    return kind == "dynamic-tool" or kind.startswith("tool-")


def _call(part: dict[str, Any]) -> dict[str, Any]:
    arguments = part.get("input")
    if arguments is None:
        arguments = part.get("rawInput", {})  # the input of a call that was not valid
    name = part["toolName"] if part["type"] == "dynamic-tool" else part["type"].removeprefix("tool-")
    return {
        "id": part["toolCallId"],
        "type": "function",
        "function": {"name": name, "arguments": _json_or_text(arguments)},
    }


def _result(part: dict[str, Any]) -> str | None:
    """Returns the result of a tool call as text for the model; None while there is none."""
    state = part.get("state")
    if state == "output-available":
        return _json_or_text(part.get("output"))
    if state == "output-error":
        return _json_or_text(part.get("errorText"))
    if state == "output-denied":
        approval = part.get("approval")
        reason = approval.get("reason") if isinstance(approval, dict) else None
        return reason if isinstance(reason, str) and reason else _DENIED
    return None


def _json_or_text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
