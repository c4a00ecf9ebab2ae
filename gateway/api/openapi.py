"""The OpenAPI 3.1 document of declared routes. OpenAPI has no word for the events of a stream: they are in `x-events`.

`x-events` of an operation is a list of `event` (absent for an unnamed one), `id` (whether it has one), `description` and
`data`, the schema of its data. What the events mean also stands in the answer's description, for tools that do not know it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.http.accept import SSE
from gateway.http.operations import (
    EVERYWHERE,
    JSON,
    PROBLEM_JSON,
    REQUEST_ID,
    TRACEPARENT,
    Answer,
    EventKind,
    Operation,
    Parameter,
    ProblemDocument,
)
from gateway.http.routes import Route
from shared.version import VERSION

_ON_ALL = (REQUEST_ID, TRACEPARENT)
_TEMPLATE = "#/components/schemas/{model}"
_ABOUT = (
    "A broker for LLM answers: each answer is a log that any reader can resume at the exact token. "
    "What answers GET also answers HEAD. docs/reference/http.md of the project says it in full."
)
_OTHER_STATUSES = {499: "The answer was cancelled"}

Json = dict[str, Any]


def document(routes: Sequence[Route], path_prefix: str = "") -> Json:
    """The document of these routes, which a proxy may offer below another path."""
    models = sorted(
        {model for route in routes for model in _models_of(route.operation)}, key=lambda model: model.__name__
    )
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_TEMPLATE)
    paths: dict[str, Json] = {}
    errors: dict[str, Json] = {}
    for route in routes:
        operation = route.operation
        for status in _errors_of(operation):
            errors[_error_name(status, operation)] = _error(status, operation)
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Midstream", "version": VERSION, "description": _ABOUT},
        **({"servers": [{"url": path_prefix}]} if path_prefix else {}),
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "responses": dict(sorted(errors.items())),
        },
    }


def _models_of(operation: Operation) -> Iterable[type[BaseModel]]:
    yield ProblemDocument  # also where an API has a shape of its own: HTTP's errors come before it
    yield operation.error
    if operation.body is not None:
        yield operation.body
    for answer in operation.answers:
        yield from (model for model in answer.bodies.values() if model is not None)
    for kind in operation.events:
        if not isinstance(kind.data, str):
            yield kind.data


def _operation(operation: Operation) -> Json:
    described: Json = {
        "tags": [operation.tag],
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [_parameter(parameter) for parameter in (*operation.parameters, *_ON_ALL)],
        "responses": {
            **{str(answer.status): _answer(answer, operation) for answer in operation.answers},
            **{
                str(status): {"$ref": f"#/components/responses/{_error_name(status, operation)}"}
                for status in _errors_of(operation)
            },
        },
    }
    if operation.description:
        described["description"] = operation.description
    if operation.body is not None:
        schema = _reference(operation.body)
        described["requestBody"] = {"required": operation.body_is_required, "content": {JSON: {"schema": schema}}}
    elif operation.takes_any_body:
        described["requestBody"] = {"required": False, "content": {"*/*": {"schema": {}}}}
    if operation.events:
        described["x-events"] = [_event(kind) for kind in operation.events]
    return described


def _parameter(parameter: Parameter) -> Json:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.description,
        "schema": dict(parameter.schema),
    }


def _answer(answer: Answer, operation: Operation) -> Json:
    described: Json = {"description": answer.description}
    streams = operation.events and (SSE in answer.bodies or answer.status == 101)
    if streams:
        described["description"] += "\n\nEvents:\n" + "".join(f"\n- {_in_words(kind)}" for kind in operation.events)
    if answer.bodies:
        described["content"] = {
            media_type: {"schema": {"type": "string"} if model is None and media_type != JSON else _reference(model)}
            for media_type, model in answer.bodies.items()
        }
    if answer.headers:
        described["headers"] = {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in answer.headers.items()
        }
    return described


def _errors_of(operation: Operation) -> list[int]:
    return sorted({*operation.errors, *EVERYWHERE})


def _error_name(status: int, operation: Operation) -> str:
    return f"{operation.error.__name__}{status}"


def _error(status: int, operation: Operation) -> Json:
    """An error of an operation: in its own shape, or as HTTP's bounds are answered before any API is asked."""
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else _OTHER_STATUSES[status]
    content = {PROBLEM_JSON: {"schema": _reference(ProblemDocument)}}
    if operation.error is not ProblemDocument:
        own = {JSON: {"schema": _reference(operation.error)}}
        content = {**own, **content} if status in EVERYWHERE else own
    described: Json = {"description": phrase, "content": content}
    if status in (429, 503):
        described["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return described


def _event(kind: EventKind) -> Json:
    data = {"const": kind.data} if isinstance(kind.data, str) else _reference(kind.data)
    name = {"event": kind.name} if kind.name else {}
    return {**name, "id": kind.has_id, "description": kind.description, "data": data}


def _in_words(kind: EventKind) -> str:
    data = kind.data if isinstance(kind.data, str) else kind.data.__name__
    return f"{f'`{kind.name}`' if kind.name else 'unnamed'} (`{data}`): {kind.description}"


def _reference(model: type[BaseModel] | None) -> Json:
    return {} if model is None else {"$ref": _TEMPLATE.format(model=model.__name__)}
