"""The OpenAPI document has every declared route and no other, is valid, and its schemas agree with the checks of requests."""

from __future__ import annotations

import re
from html import escape
from typing import Any, cast

import pytest
from jsonschema import Draft202012Validator

from gateway.api.docs import page_of
from gateway.api.follow import Subscribe
from gateway.api.health import Health
from gateway.api.openapi import document
from gateway.api.requests import check_chat, check_generation
from gateway.app import Services, parts_of
from gateway.console.watchers import Watchers
from gateway.facades.durable.durable import DurableStreams
from gateway.facades.responses.request import check_response_request
from gateway.http.accept import SSE
from gateway.http.operations import HTML, PROBLEM_JSON
from gateway.http.problems import Problem
from gateway.http.routes import Part, Route, methods_like
from gateway.server import admission_for
from shared.settings import Settings

SETTINGS = Settings(auth="required", token_keys="0" * 32)
ADMISSION = admission_for((), SETTINGS)
NOBODY = cast(Any, None)
"""Replaces the parts that answer requests: these tests send none."""


def parts(*, console: bool = True) -> tuple[list[Route], list[Part]]:
    """The FastAPI application, and the routes that are tried before it."""
    subscribe = Subscribe(NOBODY, NOBODY, NOBODY, NOBODY, NOBODY, SETTINGS, NOBODY)
    watchers = Watchers(NOBODY) if console else None
    durable = DurableStreams(NOBODY, subscribe, NOBODY, NOBODY, NOBODY, SETTINGS, NOBODY, NOBODY)
    native, before, routes = parts_of(
        Services(
            *(NOBODY, NOBODY, subscribe, NOBODY, NOBODY, watchers, NOBODY, Health(NOBODY, NOBODY), ADMISSION),
            *(NOBODY, NOBODY, durable, NOBODY, SETTINGS),
        )
    )
    assert routes == [*native.routes, *(route for part in before for route in part.routes)]
    assert {(method, route.path) for route in native.routes for method in methods_like(route.method)} == {
        (method, cast(Any, route).path)
        for route in native.app().routes
        if cast(Any, route).name not in ("openapi",)
        for method in cast(Any, route).methods
    }
    return list(native.routes), before


def described(*, console: bool = True) -> dict[str, Any]:
    native, before = parts(console=console)
    return document([*native, *(route for part in before for route in part.routes)])


DOCUMENT = described()


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
    }


def sample(path: str) -> str:
    """Returns a path that matches this template."""
    return re.sub(r"\{(\w+)\}", lambda name: "console.js" if name[1] == "file" else "x", path)


def test_the_document_is_valid() -> None:
    from openapi_spec_validator import OpenAPIV31SpecValidator  # takes half a second: no other process needs it

    assert [str(error) for error in OpenAPIV31SpecValidator(cast(Any, DOCUMENT)).iter_errors()] == []


def test_exactly_the_declared_routes_are_described_and_dispatched() -> None:
    native, before = parts()
    declared = {(route.method, route.path): route for part in before for route in part.routes}
    assert len(declared) == sum(len(part.routes) for part in before), "two parts declare one route"
    assert set(operations()) == set(declared) | {(route.method, route.path) for route in native}
    for method, path in operations():
        scope = {"type": "http", "method": method, "path": sample(path)}
        found = next((route for part in before if (route := part.route(scope)) is not None), None)
        assert (found is not None) == ((method, path) in declared), f"{method} {path}"


def test_undeclared_paths_are_not_dispatched() -> None:
    _, before = parts()
    for path in {path for _, path in operations()} | {"/nothing", "/v1", "/console/none", "/v1/streams/x/nothing"}:
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
            scope = {"type": "http", "method": method, "path": sample(path)}
            for part in before:
                declared = ("GET" if method == "HEAD" else method, path) in operations()
                if part.route(scope) is not None and not declared:
                    assert path.endswith("/ws"), f"{method} {path}: only what is no handshake has a refusal of its own"


def test_the_console_is_described_only_if_there_is_one() -> None:
    paths = set(described(console=False)["paths"])
    assert set(DOCUMENT["paths"]) - paths == {
        "/",
        "/chat",
        "/console/{file}",
        "/v1/overview",
        "/v1/overview/events",
        "/login",
        "/logout",
    }


def test_each_operation_describes_its_parameters_and_answers() -> None:
    names = [operation["operationId"] for operation in operations().values()]
    assert len(names) == len(set(names))
    for (method, path), operation in operations().items():
        in_path = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
        assert in_path == set(re.findall(r"\{(\w+)\}", path)), path
        assert operation["summary"].endswith("."), path
        assert ("requestBody" in operation) >= (method == "POST" and not path.endswith(("/cancel", "/logout"))), path
        streams = any("text/event-stream" in answer.get("content", {}) for answer in operation["responses"].values())
        assert bool(operation.get("x-events")) == (streams or "101" in operation["responses"]), path


def test_every_model_has_a_description() -> None:
    assert [name for name, schema in DOCUMENT["components"]["schemas"].items() if not schema.get("description")] == []


def test_the_page_shows_the_whole_document() -> None:
    page = page_of(DOCUMENT)
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert anchors == set(DOCUMENT["components"]["schemas"])
    assert set(re.findall(r'href="#([^"]+)"', page)) <= anchors
    shown = page.split("<details>")[1:]
    assert len(shown) == len(operations())
    for (method, path), operation in operations().items():
        part = next(part for part in shown if f"<code>{method} {escape(path)}</code>" in part)
        for name in (
            *(parameter["name"] for parameter in operation["parameters"]),
            *operation["responses"],
            *(event["event"] for event in operation.get("x-events", ()) if "event" in event),
        ):
            assert f"<code>{name}</code>" in part, f"{operation['operationId']}: {name}"
        body = operation.get("requestBody")
        schema = next(iter(body["content"].values()))["schema"] if body is not None else {}
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            assert f'Body: <a href="#{name}">' in part
    for name, schema in DOCUMENT["components"]["schemas"].items():
        section = page.partition(f'id="{name}"')[2].partition("<h3")[0]
        assert all(f"<code>{field}</code>" in section for field in schema.get("properties", {})), name


def accepts(schema: str, body: Any) -> bool:
    whole = {"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]}
    return bool(Draft202012Validator(whole).is_valid(body))


MESSAGES = [{"role": "user", "content": "x"}]
VALUES: dict[str, tuple[Any, ...]] = {
    "model": ("m", "", None, 1),
    "max_tokens": (1, -1, "inf", None),
    "n": (1, 0, 129, None, "2"),
    "stream_options": ({}, None, []),
    "simulate": (
        None,
        {},
        [],
        {"tokens": 0},
        {"tokens": -1},
        {"tokens": 100_001},
        {"finish_reason": None},
        {"finish_reason": "length"},
        {"tokens_per_second": 1_000_001},
        {"tokens_per_second": 0.5, "fail_after": None},
        {"nothing": 1},
    ),
    "midstream": (
        None,
        [],
        {},
        {"on_interrupt": "fail"},
        {"on_interrupt": "x"},
        {"on_interrupt": None},
        {"on_disconnect": "continue"},
        {"on_disconnect": "stop"},
        {"on_disconnect": {"cancel_after": 0}},
        {"on_disconnect": {"cancel_after": 86_401}},
        {"on_disconnect": {"cancel_after": "1"}},
        {"on_disconnect": {"cancel_after": 1, "more": 1}},
        {"on_disconnect": {}},
        {"pace_ms": None},
        {"pace_ms": 0},
        {"pace_ms": 5000},
        {"pace_ms": 5001},
        {"pace_ms": -1},
        {"pace_ms": "100"},
        {"metadata": {"a": "b"}},
        {"metadata": {"a": 1}},
        {"metadata": {str(number): "" for number in range(65)}},
        {"nothing": 1},
    ),
    "anything": (1, None, {"else": []}),
}
BODIES: list[dict[str, Any]] = [
    {"messages": MESSAGES},
    {},
    {"messages": []},
    {"messages": "x"},
    {"messages": [{"content": "x"}]},
    {"messages": [{"role": "user", "content": {"of": "a provider's own"}}]},
    {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    {"messages": [{"role": "assistant", "content": None}]},
    *({"messages": MESSAGES, name: value} for name, values in VALUES.items() for value in values),
]


@pytest.mark.parametrize("body", BODIES, ids=str)
def test_the_schemas_accept_what_the_checks_accept(body: dict[str, Any]) -> None:
    for schema, check in (
        ("StreamRequest", lambda: check_generation(body, "m")),
        ("ChatCompletionRequest", lambda: check_chat(body, {}, "m")),
    ):
        try:
            check()
            is_good = True
        except Problem:
            is_good = False
        assert accepts(schema, body) == is_good, schema


@pytest.mark.parametrize(
    "body",
    [
        {"messages": MESSAGES, "n": 128, "stream": True, "stream_options": {"include_usage": True}},
        {"messages": MESSAGES, "stream": "yes"},
        {"messages": MESSAGES, "stream_options": {"include_usage": 1}},
        {"messages": MESSAGES, "model": "m" * 257},
    ],
    ids=str,
)
def test_the_schema_of_chat_completions_accepts_what_its_checks_accept(body: dict[str, Any]) -> None:
    try:
        check_chat(body, {}, "m")
        is_good = True
    except Problem:
        is_good = False
    assert accepts("ChatCompletionRequest", body) == is_good


@pytest.mark.parametrize(
    "body",
    [
        {"input": "x"},
        {"input": [{"role": "user", "content": "x"}], "stream": True, "store": False},
        {"input": []},
        {"input": 1},
        {},
        {"input": "x", "max_output_tokens": "inf"},
        {"input": "x", "text": {"format": {"type": "grammar", "grammar": "root ::= x"}}},
        {"input": "x", "max_output_tokens": 1, "instructions": "y", "tools": []},
        {"input": "x", "background": "yes"},
        {"input": "x", "truncation": "auto"},
        {"input": "x", "previous_response_id": 1},
        {"input": "x", "instructions": 1},
    ],
    ids=str,
)
def test_the_schema_of_responses_accepts_what_its_checks_accept(body: dict[str, Any]) -> None:
    try:
        check_response_request(body)
        is_good = True
    except Problem:
        is_good = False
    assert accepts("ResponseRequest", body) == is_good


def test_an_answer_that_is_also_an_error_has_the_bodies_of_both() -> None:
    assert list(DOCUMENT["paths"]["/login"]["post"]["responses"]["403"]["content"]) == [PROBLEM_JSON, HTML]


def test_events_have_a_schema_each_and_their_stream_has_none() -> None:
    """A tool would take that of the stream for that of each event."""
    streams = [
        answer["content"][SSE]
        for operation in operations().values()
        for answer in operation["responses"].values()
        if SSE in answer.get("content", {})
    ]
    assert len(streams) > 5
    assert not any(streams)
