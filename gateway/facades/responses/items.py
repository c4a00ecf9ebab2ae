"""Converts the items of the Responses API to messages of Chat Completions. Raises Problem 400 that names the parameter.

| item | message |
|---|---|
| `message` (the default type) | one of the same role; text alone becomes a string, which every provider accepts |
| `function_call` | an element of `tool_calls`, in the assistant's message before it or in a new one |
| `function_call_output` | one of the role `tool` |
| `reasoning` | none: Chat Completions has no field for it |
| `item_reference` | as the item that it names (`reference_of`), which is put in its place before |
"""

from __future__ import annotations

from typing import Any

from gateway.facades.responses.checks import one_of, text, unsupported, wrong

_ROLES = ("user", "assistant", "system", "developer")
_ITEMS = "message, function_call, function_call_output, reasoning and item_reference"
_PARTS = "input_text, input_image, input_file and input_audio"


def messages_of(items: list[Any], name: str) -> list[dict[str, Any]]:
    """Returns the messages for the items of the parameter `name`."""
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        at = f"{name}[{index}]"
        if not isinstance(item, dict):
            wrong(at, "an object", item)
        kind = item.get("type") or "message"
        if kind == "message":
            messages.append(_message(item, at))
        elif kind == "function_call":
            _add_call(messages, item, at)
        elif kind == "function_call_output":
            messages.append(
                {
                    "role": "tool",
                    "tool_call_id": text(item.get("call_id"), f"{at}.call_id"),
                    "content": _output(item.get("output"), f"{at}.output"),
                }
            )
        elif kind == "item_reference":  # one with an id stands for its item, and is not here any more
            wrong(f"{at}.id", "the id of an item", item.get("id"))
        elif kind != "reasoning":
            unsupported(f"{at}.type", kind, _ITEMS)
    return messages


def reference_of(item: Any) -> str | None:
    """Returns the id of the item that an `item_reference` names; None for any other item. The type may be left out."""
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        return None
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    return item["id"] if kind == "item_reference" else None


def _message(item: dict[str, Any], at: str) -> dict[str, Any]:
    role = one_of(item.get("role"), f"{at}.role", _ROLES)
    content = item.get("content")
    if isinstance(content, str):
        return {"role": role, "content": content}
    if not isinstance(content, list):
        wrong(f"{at}.content", "a text or a list of parts", content)
    return _assistant(content, at) if role == "assistant" else {"role": role, "content": _content(content, at)}


def _assistant(parts: list[Any], at: str) -> dict[str, Any]:
    """Returns an assistant's message: its texts joined, and its refusal."""
    texts, refusals = [], []
    for index, part in enumerate(parts):
        name = f"{at}.content[{index}]"
        kind = part.get("type") if isinstance(part, dict) else wrong(name, "an object", part)
        if kind in ("output_text", "input_text"):
            texts.append(text(part.get("text"), f"{name}.text"))
        elif kind == "refusal":
            refusals.append(text(part.get("refusal"), f"{name}.refusal"))
        else:
            unsupported(f"{name}.type", kind, "output_text and refusal")
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts or not refusals else None}
    if refusals:
        message["refusal"] = "".join(refusals)
    return message


def _content(parts: list[Any], at: str) -> str | list[dict[str, Any]]:
    converted = [_part(part, f"{at}.content[{index}]") for index, part in enumerate(parts)]
    if len(converted) == 1 and converted[0]["type"] == "text":
        return str(converted[0]["text"])
    return converted


def _part(part: Any, name: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else wrong(name, "an object", part)
    if kind in ("input_text", "output_text"):
        return {"type": "text", "text": text(part.get("text"), f"{name}.text")}
    if kind == "input_image":
        _refuse(part, name, "file_id", "image_url")
        image = {"url": text(part.get("image_url"), f"{name}.image_url")}
        if part.get("detail") is not None:
            image["detail"] = text(part["detail"], f"{name}.detail")
        return {"type": "image_url", "image_url": image}
    if kind == "input_file":
        _refuse(part, name, "file_url", "file_data")
        keys = ("file_data", "file_id", "filename")
        return {"type": "file", "file": {key: part[key] for key in keys if part.get(key) is not None}}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    return unsupported(f"{name}.type", kind, _PARTS)


def _refuse(part: dict[str, Any], name: str, key: str, instead: str) -> None:
    if part.get(key) is not None:
        unsupported(f"{name}.{key}", part[key], instead)


def _add_call(messages: list[dict[str, Any]], item: dict[str, Any], at: str) -> None:
    call = {name: text(item.get(name), f"{at}.{name}") for name in ("call_id", "name", "arguments")}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(
        {
            "id": call["call_id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": call["arguments"]},
        }
    )


def _output(output: Any, name: str) -> str:
    """Returns a tool's output, which is a text or a list of parts that are text, as one text."""
    if isinstance(output, str):
        return output
    if not isinstance(output, list):
        wrong(name, "a text or a list of parts", output)
    texts = []
    for index, part in enumerate(output):
        at = f"{name}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else wrong(at, "an object", part)
        if kind not in ("input_text", "output_text"):
            unsupported(f"{at}.type", kind, "input_text: Chat Completions takes text alone from a tool")
        texts.append(text(part.get("text"), f"{at}.text"))
    return "".join(texts)
