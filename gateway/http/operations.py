"""Types that describe an operation of the HTTP API (parameters, body, answers, events) for the OpenAPI document.

Schemas come from pydantic models that live beside the routes. The models describe and do not check requests: the checks are
those of each API (`gateway.api.requests` and its like), whose messages name the parameter, what it must be and what it is.
A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

JSON, HTML = "application/json", "text/html"
PROBLEM_JSON = "application/problem+json"


class Described(BaseModel):
    """A JSON object; a field that is not described may be added at any time."""

    model_config = ConfigDict(extra="allow", defer_build=True, use_attribute_docstrings=True)


class Closed(Described):
    """A JSON object in which a field that is not described is refused."""

    model_config = ConfigDict(extra="forbid")


class ProblemDocument(Described):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    """What was wrong, and what is allowed."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in the query, the path or a header. `schema` is JSON Schema."""

    name: str
    place: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True)
class EventKind:
    """An event of a stream: its name (empty for an unnamed one), the model of its data, and whether it has an id.

    `data` is a text where the data is no JSON, as `[DONE]`.
    """

    name: str
    data: type[BaseModel] | str
    description: str
    has_id: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """The answers with one status. `bodies`: the model of the body by media type, None if it has no schema."""

    status: int
    description: str
    bodies: Mapping[str, type[BaseModel] | None] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """What one method of one path does."""

    tag: str
    name: str
    summary: str
    answers: Sequence[Answer]
    parameters: Sequence[Parameter] = ()
    body: type[BaseModel] | None = None
    body_is_required: bool = True
    takes_any_body: bool = False
    """The body, which may be empty, is of any media type."""
    body_media_type: str = JSON
    errors: Sequence[int] = ()
    """Statuses that are answered with `error`."""
    error: type[BaseModel] = ProblemDocument
    events: Sequence[EventKind] = ()
    description: str = ""


def query(name: str, description: str, **schema: Any) -> Parameter:
    """A parameter of the query; a text unless `schema` says otherwise."""
    return Parameter(name, "query", description, schema or {"type": "string"})


def header(name: str, description: str, **schema: Any) -> Parameter:
    """A request header."""
    return Parameter(name, "header", description, schema or {"type": "string"})


def in_path(name: str, description: str, **schema: Any) -> Parameter:
    """The parameter of a path template."""
    return Parameter(name, "path", description, schema or {"type": "string"})


REQUEST_ID = header("X-Request-Id", "Appears in the answer and in the logs; the gateway makes one if it is missing.")
TRACEPARENT = header("traceparent", "W3C Trace Context: the parent span of the request, if tracing is on.")
LAST_EVENT_ID = header("Last-Event-ID", "The newest event that the client has: the answer continues after it.")
RESUME_PARAMETERS = (
    LAST_EVENT_ID,
    query(
        "last_event_id",
        "As the header `Last-Event-ID`, which takes precedence. Also written `lastEventId`, `Last-Event-ID`.",
    ),
)
NOTHING_MORE = Answer(204, "No more events will come: the client has everything up to the end.")
IDEMPOTENCY_KEY = header(
    "Idempotency-Key",
    "A repeated request with the same key is answered with the first one's stream.",
    type="string",
    minLength=1,
    maxLength=255,
)
TO_LOGIN = Answer(
    303, "A browser without a session goes to the login, where authentication is on.", headers={"Location": "`/login`"}
)
IF_NONE_MATCH = header("If-None-Match", "ETags that the client has (RFC 9110, section 13.1.2).")

EVERYWHERE = (400, 403, 408, 414, 421, 431, 503)
"""Errors that any request may be answered with: docs/reference/http.md."""
