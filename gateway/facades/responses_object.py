"""The `response` object: what was asked for, as the Responses API says it, from what the log has of it.

All of it is read from the Chat Completions request that the log keeps, so that a stream which was made through another
API has a response object, too.
"""

from __future__ import annotations

from typing import Any

from shared.events import Accepted
from shared.ids import created_at

_SAME_NAME = ("prompt_cache_key", "safety_identifier", "service_tier", "top_logprobs", "user")
PREFIX = "resp_"
"""What stands before the stream's id in a response's."""

_INVALID = frozenset({"content_filtered", "provider_refused"})


def described(stream_id: str, accepted: Accepted) -> dict[str, Any]:
    """The object as it is when the request has been accepted."""
    request, facade = accepted.request, accepted.facade
    instructions = request["messages"][0]["content"] if facade.get("instructions") else None
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
        "metadata": accepted.metadata,
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


def usage_of(chat: dict[str, Any] | None) -> dict[str, Any] | None:
    """A provider's usage under the names of the Responses API."""
    if chat is None:
        return None
    asked, answered = chat.get("prompt_tokens") or 0, chat.get("completion_tokens") or 0
    of_prompt, of_answer = chat.get("prompt_tokens_details") or {}, chat.get("completion_tokens_details") or {}
    return {
        "input_tokens": asked,
        "input_tokens_details": {
            "cached_tokens": of_prompt.get("cached_tokens") or 0,
            "cache_write_tokens": of_prompt.get("cache_write_tokens") or 0,
        },
        "output_tokens": answered,
        "output_tokens_details": {"reasoning_tokens": of_answer.get("reasoning_tokens") or 0},
        "total_tokens": chat.get("total_tokens") or asked + answered,
    }


def error_of(failed: dict[str, Any]) -> dict[str, Any]:
    """A stream's failure as `response.error`: `code` is one of OpenAI's, `type` is ours (docs/reference/http.md)."""
    status = failed.get("status")
    if status == 429:
        code = "rate_limit_exceeded"
    elif failed["code"] in _INVALID and status in (None, 400, 404, 413, 422):
        code = "invalid_prompt"
    else:
        code = "server_error"
    return {"code": code, "message": failed["message"], "type": failed["code"]}


def _text(request: dict[str, Any]) -> dict[str, Any]:
    wanted = request.get("response_format")
    told: dict[str, Any] = {"format": {"type": "text"}}
    if isinstance(wanted, dict):
        schema = wanted.get("json_schema")
        told["format"] = {"type": wanted.get("type"), **(schema if isinstance(schema, dict) else {})}
    if request.get("verbosity") is not None:
        told["verbosity"] = request["verbosity"]
    return told


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
