"""Converts the body of `POST /v1/responses` to a Chat Completions request, the form that providers and the log use.

Parameters that both APIs have under one name, and unknown ones, are passed to the provider unchanged. Parameters that only
the Responses API has are converted, or refused with a 400 that names them; none is silently left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.facades.responses.checks import an_object, objects, one_of, text, truth, unsupported, wrong
from gateway.facades.responses.items import messages_of
from gateway.http.problems import Problem

API = "responses"
"""The `api` in `Accepted.facade` of a stream created here."""
LOGPROBS = "message.output_text.logprobs"

_UNSUPPORTED = (
    "access_programs",
    "background_options",
    "context_management",
    "conversation",
    "image",
    "max_tool_calls",
    "moderation",
    "prompt",
    "prompt_cache_options",
)
_OF_CHAT = {"messages": "input", "n": "one request for each", "response_format": "text.format"}
"""Parameters of Chat Completions, and what to use instead in the Responses API."""
_CONVERTED = frozenset(
    "background include input instructions max_output_tokens metadata midstream previous_response_id reasoning store "
    "stream stream_options text tool_choice tools top_logprobs truncation".split()
)
_TOOL = ("name", "description", "parameters", "strict")


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """A checked body."""

    chat: dict[str, Any]
    """The Chat Completions request, with the object `midstream`, without the messages of earlier responses."""
    instructions: str | None
    previous: str | None
    """The id of the response that this one continues."""
    stream: bool
    background: bool
    store: bool

    def facade(self) -> dict[str, Any]:
        """Returns the part of the request that only this API needs later (`Accepted.facade`)."""
        stored = {
            "background": self.background,
            "previous": self.previous,
            "instructions": self.instructions is not None,
        }
        return {"api": API, **{key: value for key, value in stored.items() if value}, "store": self.store}

    def request(self, before: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the whole request; `before` are the messages up to the end of the response that this one continues."""
        opening = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        return {**self.chat, "messages": [*opening, *before, *self.chat["messages"]]}


def check_response_request(body: dict[str, Any]) -> ResponseRequest:
    """Returns the checked body. Raises Problem 400."""
    for name in _UNSUPPORTED:
        if body.get(name) is not None:
            raise Problem(400, f"{name} is not supported", param=name, code="unsupported")
    for name, instead in _OF_CHAT.items():
        if body.get(name) is not None:
            raise Problem(400, f"{name} belongs to Chat Completions; here it is {instead}", param=name)
    background, store = truth(body.get("background"), "background", False), truth(body.get("store"), "store", True)
    if background and not store:
        wrong("store", "true with background: what is generated in the background is fetched later", store)
    one_of(body.get("truncation") or "disabled", "truncation", ("disabled",))
    an_object(body.get("stream_options"), "stream_options", ("include_obfuscation",))
    previous = body.get("previous_response_id")
    instructions = body.get("instructions")
    chat = {name: value for name, value in body.items() if name not in _CONVERTED and value is not None}
    chat |= {
        "messages": _messages(body.get("input")),
        **_limit(body.get("max_output_tokens")),
        **_tools(body),
        **_text(body.get("text")),
        **_reasoning(body.get("reasoning")),
        **_logprobs(body),
        "midstream": _midstream(body, background),
    }
    return ResponseRequest(
        chat,
        None if instructions is None else text(instructions, "instructions"),
        None if previous is None else text(previous, "previous_response_id"),
        truth(body.get("stream"), "stream", False),
        background,
        store,
    )


def _messages(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        wrong("input", "a text or a list of at least one item", value)
    messages = messages_of(value, "input")
    return messages or wrong("input", "more than reasoning items, which are not sent to the provider", value)


def _limit(tokens_max: Any) -> dict[str, Any]:
    """Converts `max_output_tokens`. `max_completion_tokens` counts reasoning too, and is the only limit that OpenAI's
    newer models accept. Providers may have values of their own."""
    if tokens_max is None:
        return {}
    return {"max_completion_tokens": tokens_max}


def _tools(body: dict[str, Any]) -> dict[str, Any]:
    chat: dict[str, Any] = {}
    tools = []
    for index, tool in enumerate(objects(body.get("tools"), "tools")):
        name = f"tools[{index}]"
        if tool.get("type") != "function":
            unsupported(f"{name}.type", tool.get("type"), "function")
        text(tool.get("name"), f"{name}.name")
        tools.append({"type": "function", "function": {key: tool[key] for key in _TOOL if tool.get(key) is not None}})
    if tools:
        chat["tools"] = tools
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        if choice.get("type") != "function":
            unsupported("tool_choice.type", choice.get("type"), "function")
        choice = {"type": "function", "function": {"name": text(choice.get("name"), "tool_choice.name")}}
    if choice is not None:
        chat["tool_choice"] = choice
    return chat


def _text(value: Any) -> dict[str, Any]:
    """Converts `text.format` and `text.verbosity`."""
    options = an_object(value, "text", ("format", "verbosity"))
    chat: dict[str, Any] = {}
    if "verbosity" in options:
        chat["verbosity"] = options["verbosity"]
    if "format" in options:
        wanted = options["format"]
        if not isinstance(wanted, dict):
            wrong("text.format", "an object", wanted)
        chat["response_format"] = wanted  # a provider's own kinds have the same form in both APIs, as far as is known
        if wanted.get("type") == "json_schema":
            text(wanted.get("name"), "text.format.name")
            schema = {key: value for key, value in wanted.items() if key != "type" and value is not None}
            chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    return chat


def _reasoning(value: Any) -> dict[str, Any]:
    options = an_object(value, "reasoning", ("effort",))
    return {"reasoning_effort": options["effort"]} if options else {}


def _logprobs(body: dict[str, Any]) -> dict[str, Any]:
    included = body.get("include") or []
    if not isinstance(included, list):
        wrong("include", "a list", included)
    for index, name in enumerate(included):
        if name != LOGPROBS:
            unsupported(f"include[{index}]", name, LOGPROBS)
    alternatives = body.get("top_logprobs")
    if not included and alternatives is None:
        return {}
    return {"logprobs": True, **({} if alternatives is None else {"top_logprobs": alternatives})}


def _midstream(body: dict[str, Any], background: bool) -> Any:
    """Returns the object `midstream` with the metadata. An answer in the background goes on without readers."""
    metadata = body.get("metadata")
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        wrong("metadata", "an object of texts", metadata)
    options = body.get("midstream")
    if not isinstance(options, dict | None):
        return options  # `check_chat` refuses it
    on_disconnect = {"on_disconnect": "continue"} if background else {}
    return {"metadata": metadata, **on_disconnect, **(options or {})}
