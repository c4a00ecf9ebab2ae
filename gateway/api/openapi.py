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

from gateway.access.credentials import QUERY_NAME, SESSION_COOKIE, STREAM_COOKIE
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
from gateway.http.principal import OPEN
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

_SCHEMES: Json = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, a user's JWT, or a stream's access token. The scope that an operation needs stands with it. "
        "A key with the scope act may name the user for whom it asks, in the header X-Midstream-Owner.",
    },
    "accessToken": {
        "type": "apiKey",
        "in": "query",
        "name": QUERY_NAME,
        "description": "A stream's access token, or a user's JWT, where no header can be sent.",
    },
    "cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": STREAM_COOKIE,
        "description": f"A stream's access token. `{SESSION_COOKIE}` has the console's session; "
        "MIDSTREAM_USER_COOKIE names the one that has a user's JWT.",
    },
}
"""None of them is asked for where authentication is off."""


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
        for status in _errors_of(route):
            errors[_error_name(status, operation)] = _error(status, operation)
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Midstream", "version": VERSION, "description": _ABOUT},
        **({"servers": [{"url": path_prefix}]} if path_prefix else {}),
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "responses": dict(sorted(errors.items())),
            "securitySchemes": _SCHEMES,
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


def _operation(route: Route) -> Json:
    operation = route.operation
    described: Json = {
        "tags": [operation.tag],
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [_parameter(parameter) for parameter in (*operation.parameters, *_ON_ALL)],
        "responses": _responses(route),
        "security": [] if route.scope == OPEN else [{scheme: [route.scope]} for scheme in _SCHEMES],
    }
    if operation.description:
        described["description"] = operation.description
    if operation.body is not None:
        schema = _reference(operation.body)
        content = {operation.body_media_type: {"schema": schema}}
        described["requestBody"] = {"required": operation.body_is_required, "content": content}
    elif operation.takes_any_body:
        described["requestBody"] = {"required": False, "content": {"*/*": {"schema": {}}}}
    if operation.events:
        described["x-events"] = [_event(kind) for kind in operation.events]
    return described


def _responses(route: Route) -> Json:
    """The answers by status. One that is an error, too, has the bodies of both."""
    operation = route.operation
    responses: Json = {
        str(status): {"$ref": f"#/components/responses/{_error_name(status, operation)}"}
        for status in _errors_of(route)
    }
    for answer in operation.answers:
        described = _answer(answer, operation)
        if str(answer.status) in responses:
            content = _error(answer.status, operation)["content"]
            described["content"] = {**content, **described.get("content", {})}
        responses[str(answer.status)] = described
    return dict(sorted(responses.items()))


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
        described["content"] = {media_type: _body(media_type, model) for media_type, model in answer.bodies.items()}
    if answer.headers:
        described["headers"] = {
            name: {"description": description, "schema": {"type": "string"}}
            for name, description in answer.headers.items()
        }
    return described


def _body(media_type: str, model: type[BaseModel] | None) -> Json:
    """A body. Events have no schema here: tools would take it for that of each event."""
    if media_type == SSE:
        return {}
    return {"schema": {"type": "string"} if model is None and media_type != JSON else _reference(model)}


def _errors_of(route: Route) -> list[int]:
    return sorted({*route.operation.errors, *EVERYWHERE, *(() if route.scope == OPEN else (401,))})


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
    if status == 401:
        described["headers"] = {"WWW-Authenticate": {"description": "RFC 6750.", "schema": {"type": "string"}}}
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
