"""Checks of a client's request, before anything is stored. Each raises Problem 400 that names the parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from gateway.http.principal import OWNER_CHARACTERS_MAX
from gateway.http.problems import Problem
from shared.events import PACE_MS_MAX, Policies, Webhook

_MIDSTREAM = {
    *("cookie", "lease_seconds", "metadata", "on_disconnect", "on_interrupt", "owner", "pace_ms", "provider"),
    *("webhook", "writer"),
}
_SIMULATE = {"tokens", "tokens_per_second", "finish_reason", "fail_after", "stall_after"}
_INTERRUPT_POLICIES = ("fail", "restart", "continue")
_CANCEL_AFTER_SECONDS_MAX = 86_400
_SIMULATED_TOKENS_MAX = 100_000
_METADATA_ENTRIES_MAX = 64
_PROVIDER_CHARACTERS_MAX = 256
"""Of a provider's name: `package.module:object` at the longest."""
_CHAT_MODEL_CHARACTERS_MAX = 256
"""The model's name is in every chunk."""
CHAT_CHOICES_MAX = 128
"""How many choices get a first chunk with their role: OpenAI's own bound."""
IDEMPOTENCY_KEY_CHARACTERS_MAX = 255
_TOKEN_SECONDS_MAX = 100_000_000
"""Three years: no stream can be read for longer."""
LEASE_SECONDS = 30.0
"""The lease of an external writer that asks for none: long enough for a plain program without heartbeats, whose tools may take
a while."""
LEASE_SECONDS_LEAST, LEASE_SECONDS_MOST = 1, 3600
EXTERNAL_MODEL = "external"
"""What a stream of an external writer has as its model if none is named: OpenAI's APIs have to name one."""


def check_generation(body: dict[str, Any], default_model: str) -> tuple[dict[str, Any], Policies, dict[str, str]]:
    """Splits a `POST /v1/streams` body into the provider's request, the policies and the metadata.

    Only what is used here is checked: providers have values of their own (`max_tokens: -1`), and refuse others themselves.
    """
    request = dict(body)
    options = request.pop("midstream", {})
    policies, metadata = _check_midstream(options)
    if options.get("provider") is not None:
        request["midstream"] = {"provider": options["provider"]}  # for the worker, which alone knows its providers
    external = policies.lease_seconds is not None
    if external and options.get("provider") is not None:
        raise Problem(
            400, "midstream.provider is for workers: an external writer needs none", param="midstream.provider"
        )
    model = request.setdefault("model", EXTERNAL_MODEL if external else default_model)
    if not isinstance(model, str) or not model:
        _wrong("model", "a name", model)
    messages = request.setdefault("messages", []) if external else request.get("messages")
    if not isinstance(messages, list) or not (messages or external):
        _wrong("messages", "a list of at least one message", messages)
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            _wrong(f"messages[{index}]", 'an object with a "role"', message)
    if not isinstance(request.get("stream_options"), dict | None):
        _wrong("stream_options", "an object", request["stream_options"])
    if request.get("simulate") is not None:
        _check_simulate(request["simulate"])
    return request, policies, metadata


def wants_cookie(body: dict[str, Any]) -> bool:
    """Returns whether a request that has been checked asks for its stream's access token as a cookie."""
    return body.get("midstream", {}).get("cookie") is True


def owner_in(body: dict[str, Any]) -> str | None:
    """Returns the end user for whom a request that has been checked creates a stream, if it names one."""
    owner: str | None = body.get("midstream", {}).get("owner")
    return owner


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A `POST /v1/chat/completions`: what goes to the provider, and how the client wants the answer."""

    generation: dict[str, Any]
    policies: Policies
    metadata: dict[str, str]
    streams: bool
    include_usage: bool
    cookie: bool


def check_chat(body: dict[str, Any], headers: Mapping[str, str], default_model: str) -> ChatRequest:
    """Checks a chat completions body. A chunk cannot take text back, so `on_interrupt` is `fail` by default."""
    midstream = body.get("midstream", {})
    if isinstance(midstream, dict):
        body = {**body, "midstream": {"on_interrupt": "fail", **_midstream_of(headers), **midstream}}
    generation, policies, metadata = check_generation(body, default_model)
    if len(generation["model"]) > _CHAT_MODEL_CHARACTERS_MAX:
        _wrong("model", f"a name of at most {_CHAT_MODEL_CHARACTERS_MAX} characters", generation["model"])
    options = generation.get("stream_options") or {}
    for name, value in (
        ("stream", generation.get("stream")),
        ("stream_options.include_usage", options.get("include_usage")),
    ):
        if not isinstance(value, bool | None):
            _wrong(name, "true or false", value)
    streams, include_usage = bool(generation.get("stream")), bool(options.get("include_usage"))
    return ChatRequest(generation, policies, metadata, streams, include_usage, wants_cookie(body))


def _midstream_of(headers: Mapping[str, str]) -> dict[str, Any]:
    """The fields of the `midstream` object that headers set, for clients that cannot add to the body."""
    options: dict[str, Any] = {}
    interrupt = headers.get("x-midstream-on-interrupt")
    if interrupt is not None:
        if interrupt not in _INTERRUPT_POLICIES:
            _wrong("X-Midstream-On-Interrupt", f"one of {', '.join(_INTERRUPT_POLICIES)}", interrupt)
        options["on_interrupt"] = interrupt
    disconnect = headers.get("x-midstream-on-disconnect")
    if disconnect is not None:
        name, _, after = disconnect.partition("=")
        if disconnect == "continue":
            options["on_disconnect"] = disconnect
        elif name.strip() == "cancel_after":
            after_seconds = seconds("X-Midstream-On-Disconnect: cancel_after", after, _CANCEL_AFTER_SECONDS_MAX)
            options["on_disconnect"] = {"cancel_after": after_seconds}
        else:
            _wrong("X-Midstream-On-Disconnect", "continue or cancel_after=SECONDS", disconnect)
    pace = headers.get("x-midstream-pace-ms")
    if pace is not None:
        if not pace.isascii() or not pace.isdecimal() or len(pace) > 5 or int(pace) > PACE_MS_MAX:
            _wrong("X-Midstream-Pace-Ms", f"a whole number from 0 to {PACE_MS_MAX}", pace)
        options["pace_ms"] = int(pace)
    if "x-midstream-webhook" in headers:
        options["webhook"] = headers["x-midstream-webhook"]
    return options


@dataclass(frozen=True, slots=True)
class WantedToken:
    """A `POST /v1/streams/{id}/tokens`."""

    scopes: list[str]
    expires_in_seconds: float
    """The longest there is where none was given."""
    cookie: bool


def check_token_request(body: dict[str, Any]) -> WantedToken:
    """Checks the body of a request for an access token."""
    unknown = sorted(set(body) - {"scopes", "expires_in", "cookie"})
    if unknown:
        raise Problem(400, f"{unknown[0][:80]!r} is not known; there are cookie, expires_in, scopes", param=unknown[0])
    scopes = body.get("scopes", ["read"])
    if not isinstance(scopes, list) or not scopes or not all(scope in ("read", "cancel") for scope in scopes):
        _wrong("scopes", "a list of read and cancel", scopes)
    expires_in = body.get("expires_in")
    if expires_in is not None and (type(expires_in) not in (int, float) or not 1 <= expires_in <= _TOKEN_SECONDS_MAX):
        _wrong("expires_in", f"a number of seconds from 1 to {_TOKEN_SECONDS_MAX}", expires_in)
    if not isinstance(body.get("cookie", False), bool):
        _wrong("cookie", "true or false", body["cookie"])
    expires_in_seconds = _TOKEN_SECONDS_MAX if expires_in is None else float(expires_in)
    return WantedToken(sorted({"read", *scopes}), expires_in_seconds, body.get("cookie", False))


def check_idempotency_key(headers: Mapping[str, str]) -> str | None:
    """The request's `Idempotency-Key`; None without one."""
    key = headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= IDEMPOTENCY_KEY_CHARACTERS_MAX:
        raise Problem(400, f"Idempotency-Key must have 1 to {IDEMPOTENCY_KEY_CHARACTERS_MAX} characters")
    return key


def prompt_request(prompt: str, model: str) -> dict[str, Any]:
    """The provider's request of `GET /stream?prompt=`."""
    return {"model": model, "messages": [{"role": "user", "content": prompt}]}


def seconds(name: str, text: str, most: float) -> float:
    """Parses a duration of a query parameter or a header."""
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
        name = f"midstream.{unknown[0]}"
        raise Problem(400, f"{name} is not known; there are {', '.join(sorted(_MIDSTREAM))}", param=name)
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
    if not isinstance(options.get("cookie", False), bool):
        _wrong("midstream.cookie", "true or false", options["cookie"])
    owner = options.get("owner")
    if owner is not None and not (isinstance(owner, str) and 1 <= len(owner) <= OWNER_CHARACTERS_MAX):
        _wrong("midstream.owner", f"a text of 1 to {OWNER_CHARACTERS_MAX} characters", owner)
    pace_ms = options.get("pace_ms")
    if pace_ms is not None:
        _whole("midstream.pace_ms", pace_ms, least=0, most=PACE_MS_MAX)
    provider = options.get("provider")
    if provider is not None and not (isinstance(provider, str) and 1 <= len(provider) <= _PROVIDER_CHARACTERS_MAX):
        _wrong("midstream.provider", "the name of a provider", provider)
    cancel_after_seconds = _cancel_after_seconds(options.get("on_disconnect", {"cancel_after": 60}))
    webhook = wanted_webhook(options.get("webhook"))
    return Policies(cancel_after_seconds, interrupt, pace_ms, _lease_seconds(options), webhook), metadata


def wanted_webhook(value: Any) -> Webhook | None:
    """Returns the webhook that a request names; None if it leaves it to the default. Where it may go is checked later."""
    if value is None:
        return None
    if value is False:
        return Webhook("")
    if isinstance(value, str):
        value = {"url": value}
    if (
        not isinstance(value, dict)
        or set(value) - {"url", "text"}
        or not isinstance(value.get("url"), str)
        or not value["url"]
        or not isinstance(value.get("text", False), bool)
    ):  # the value is not shown: it may have a secret
        name = "midstream.webhook"
        raise Problem(400, f'{name} must be a URL, {{"url": URL, "text": true or false}}, or false', param=name)
    return Webhook(value["url"], value.get("text", False))


def _lease_seconds(options: dict[str, Any]) -> float | None:
    """The lease of an external writer; None for a stream that a worker fills."""
    writer, lease_seconds = options.get("writer"), options.get("lease_seconds")
    if writer not in (None, "worker", "external"):
        _wrong("midstream.writer", '"worker" or "external"', writer)
    if writer != "external":
        if lease_seconds is not None:
            name = "midstream.lease_seconds"
            raise Problem(400, f'{name} is for a stream with "writer": "external"', param=name)
        return None
    if lease_seconds is None:
        return LEASE_SECONDS
    return _number("midstream.lease_seconds", lease_seconds, LEASE_SECONDS_LEAST, LEASE_SECONDS_MOST)


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
        name = f"simulate.{unknown[0]}"
        raise Problem(400, f"{name} is not known; there are {', '.join(sorted(_SIMULATE))}", param=name)
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


def _wrong(name: str, wanted: str, value: Any) -> NoReturn:
    shown = orjson.dumps(value, default=str).decode()
    cut = shown if len(shown) <= 80 else shown[:77] + "..."
    raise Problem(400, f"{name} must be {wanted}, not {cut}", param=name)
