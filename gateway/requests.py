"""What a client may ask for, checked before anything is stored. Raises Problem 400 that names the parameter."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import orjson

from gateway.problems import Problem
from shared.events import Policies

_MIDSTREAM = {"on_disconnect", "on_interrupt", "metadata"}
_SIMULATE = {"tokens", "tokens_per_second", "finish_reason", "fail_after", "stall_after"}
_INTERRUPT_POLICIES = ("fail", "restart", "continue")
_CANCEL_AFTER_SECONDS_MAX = 86_400
_SIMULATED_TOKENS_MAX = 100_000
_METADATA_ENTRIES_MAX = 64
IDEMPOTENCY_KEY_CHARACTERS_MAX = 255


def parse_body(body: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(400, f"the body is not JSON in UTF-8: {error}") from None
    if not isinstance(parsed, dict):
        _wrong("the body", "a JSON object", parsed)
    try:
        orjson.dumps([[parsed]])  # as deep as it is ever stored: more can be read than can be written
    except TypeError:
        raise Problem(400, "the body is nested too deeply: 250 levels are the most") from None
    return parsed


def check_generation(body: dict[str, Any], default_model: str) -> tuple[dict[str, Any], Policies, dict[str, str]]:
    """The provider's request, the policies and the metadata of a `POST /v1/streams` body."""
    request = dict(body)
    policies, metadata = _check_midstream(request.pop("midstream", {}))
    model = request.setdefault("model", default_model)
    if not isinstance(model, str) or not model:
        _wrong("model", "a name", model)
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        _wrong("messages", "a list of at least one message", messages)
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            _wrong(f"messages[{index}]", 'an object with a "role" and a "content"', message)
        if not isinstance(message.get("content"), str | list | None):
            _wrong(f"messages[{index}].content", "a text or a list of parts", message["content"])
    for name in ("max_tokens", "max_completion_tokens", "n"):
        if request.get(name) is not None:
            _whole(name, request[name], least=1)
    if not isinstance(request.get("stream_options"), dict | None):
        _wrong("stream_options", "an object", request["stream_options"])
    if request.get("simulate") is not None:
        _check_simulate(request["simulate"])
    return request, policies, metadata


def prompt_request(prompt: str, model: str) -> dict[str, Any]:
    """The request of the one-line endpoint."""
    return {"model": model, "messages": [{"role": "user", "content": prompt}]}


def seconds(name: str, text: str, most: float) -> float:
    """A duration in a query parameter."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise Problem(400, f"{name} must be a number of seconds from 0 to {most:g}, not {text[:64]!r}")
    return value


def _check_midstream(options: Any) -> tuple[Policies, dict[str, str]]:
    if not isinstance(options, dict):
        _wrong("midstream", "an object", options)
    unknown = sorted(set(options) - _MIDSTREAM)
    if unknown:
        raise Problem(400, f"midstream.{unknown[0]} is not known; there are {', '.join(sorted(_MIDSTREAM))}")
    interrupt = options.get("on_interrupt", "restart")
    if interrupt not in _INTERRUPT_POLICIES:
        _wrong("midstream.on_interrupt", f"one of {', '.join(_INTERRUPT_POLICIES)}", interrupt)
    metadata = options.get("metadata", {})
    if (
        not isinstance(metadata, dict)
        or len(metadata) > _METADATA_ENTRIES_MAX
        or not all(isinstance(value, str) for value in metadata.values())
    ):
        _wrong("midstream.metadata", f"an object of at most {_METADATA_ENTRIES_MAX} strings", metadata)
    return Policies(_cancel_after_seconds(options.get("on_disconnect", {"cancel_after": 60})), interrupt), metadata


def _cancel_after_seconds(on_disconnect: Any) -> float | None:
    if on_disconnect == "continue":
        return None
    if not isinstance(on_disconnect, dict) or set(on_disconnect) != {"cancel_after"}:
        _wrong("midstream.on_disconnect", '"continue" or {"cancel_after": seconds}', on_disconnect)
    return _number("midstream.on_disconnect.cancel_after", on_disconnect["cancel_after"], 0, _CANCEL_AFTER_SECONDS_MAX)


def _check_simulate(simulate: Any) -> None:
    if not isinstance(simulate, dict):
        _wrong("simulate", "an object", simulate)
    unknown = sorted(set(simulate) - _SIMULATE)
    if unknown:
        raise Problem(400, f"simulate.{unknown[0]} is not known; there are {', '.join(sorted(_SIMULATE))}")
    for name in ("tokens", "fail_after", "stall_after"):
        if simulate.get(name) is not None:
            _whole(f"simulate.{name}", simulate[name], least=0, most=_SIMULATED_TOKENS_MAX)
    if simulate.get("tokens_per_second") is not None:
        _number("simulate.tokens_per_second", simulate["tokens_per_second"], 0, 1_000_000)
    if simulate.get("finish_reason", "stop") not in ("stop", "length"):
        _wrong("simulate.finish_reason", '"stop" or "length"', simulate["finish_reason"])


def _whole(name: str, value: Any, *, least: int, most: int | None = None) -> None:
    if type(value) is not int or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        _wrong(name, f"a whole number {bounds}", value)


def _number(name: str, value: Any, least: float, most: float) -> float:
    if type(value) not in (int, float) or not least <= value <= most:
        _wrong(name, f"a number from {least:g} to {most:g}", value)
    return float(value)


def _wrong(name: str, wanted: str, got: Any) -> NoReturn:
    shown = orjson.dumps(got, default=str).decode()
    raise Problem(400, f"{name} must be {wanted}, not {shown if len(shown) <= 80 else shown[:77] + '...'}")
