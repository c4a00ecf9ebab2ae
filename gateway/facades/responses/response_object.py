"""The `response` object of the Responses API, made from the request that the log keeps.

The log keeps a Chat Completions request, whichever API it came through: so every stream has a response object.
"""

from __future__ import annotations

from typing import Any

from shared.events import Accepted
from shared.ids import created_at

_SAME_NAME = ("prompt_cache_key", "safety_identifier", "service_tier", "top_logprobs", "user")
PREFIX = "resp_"
"""A response's id is this and the stream's id."""

_COUNT_MAX = 1 << 53
_INVALID = frozenset({"content_filtered", "provider_refused"})


def response_object(stream_id: str, accepted: Accepted | None) -> dict[str, Any]:
    """Returns the object at the moment when the request has been accepted. None: the log cannot be read."""
    request, facade, metadata = (
        ({}, {}, {}) if accepted is None else (accepted.request, accepted.facade, accepted.metadata)
    )
    instructions = _instructions(request) if facade.get("instructions") else None
    background = bool(facade.get("background"))
    return {
        "id": PREFIX + stream_id,
        "object": "response",
        "created_at": int(created_at(stream_id)),
        "status": "queued" if background else "in_progress",
        "background": background,
        "error": None,
        "incomplete_details": None,
        "instructions": instructions,
        "max_output_tokens": request.get("max_completion_tokens") or request.get("max_tokens"),
        "metadata": metadata,
        "model": request.get("model"),
        "output": [],
        "parallel_tool_calls": request.get("parallel_tool_calls") is not False,
        "previous_response_id": facade.get("previous"),
        "reasoning": {"effort": request.get("reasoning_effort"), "summary": None},
        "store": facade.get("store", True),
        "temperature": request.get("temperature"),
        "text": _text(request),
        "tool_choice": _tool_choice(request.get("tool_choice")),
        "tools": _tools(request.get("tools")),
        "top_p": request.get("top_p"),
        "truncation": "disabled",
        "usage": None,
        **{name: request[name] for name in _SAME_NAME if request.get(name) is not None},
    }


def usage_of(chat: Any) -> dict[str, Any] | None:
    """Returns a provider's usage under the names of the Responses API. What is not a count there becomes 0."""
    if not isinstance(chat, dict):
        return None
    prompt, answer = _count(chat, "prompt_tokens"), _count(chat, "completion_tokens")
    of_prompt, of_answer = chat.get("prompt_tokens_details"), chat.get("completion_tokens_details")
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": _count(of_prompt, "cached_tokens"),
            "cache_write_tokens": _count(of_prompt, "cache_write_tokens"),
        },
        "output_tokens": answer,
        "output_tokens_details": {"reasoning_tokens": _count(of_answer, "reasoning_tokens")},
        "total_tokens": _count(chat, "total_tokens") or prompt + answer,
    }


def _count(usage: Any, name: str) -> int:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count <= _COUNT_MAX else 0


def _instructions(request: dict[str, Any]) -> Any:
    messages = request.get("messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    return first.get("content") if isinstance(first, dict) else None


def error_of(failed: dict[str, Any]) -> dict[str, Any]:
    """Returns `response.error` for a failure: `code` is one of OpenAI's, `type` is Midstream's (docs/reference/http.md)."""
    status = failed.get("status")
    if status == 429:
        code = "rate_limit_exceeded"
    elif failed["code"] in _INVALID and status in (None, 400, 404, 413, 422):
        code = "invalid_prompt"
    else:
        code = "server_error"
    return {"code": code, "message": failed["message"], "type": failed["code"]}


def _text(request: dict[str, Any]) -> dict[str, Any]:
    response_format = request.get("response_format")
    text: dict[str, Any] = {"format": {"type": "text"}}
    if isinstance(response_format, dict):
        schema = response_format.get("json_schema")
        text["format"] = {"type": response_format.get("type"), **(schema if isinstance(schema, dict) else {})}
    if request.get("verbosity") is not None:
        text["verbosity"] = request["verbosity"]
    return text


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, dict):
        function = choice.get("function")
        return {"type": "function", "name": function.get("name") if isinstance(function, dict) else None}
    return choice or "auto"


def _tools(tools: Any) -> list[dict[str, Any]]:
    if not isinstance(tools, list):
        return []
    functions = [
        tool["function"] for tool in tools if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    ]
    return [{"type": "function", "parameters": None, "strict": None, **function} for function in functions]
