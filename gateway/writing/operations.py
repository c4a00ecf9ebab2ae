"""Describes the operations of external writers for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from gateway.api.models import Count, StreamStatus
from gateway.api.operations import STREAM_ID
from gateway.http.accept import NDJSON
from gateway.http.operations import JSON, Answer, Closed, Described, Operation, header


class WrittenEvent(Closed):
    """One event of a writer: it has one of `token`, `delta`, `event` and `end`."""

    token: str | None = None
    """Text."""
    delta: dict[str, Any] | None = None
    """More than text, as the Chat Completions API has it; perhaps with `index`, `logprobs`, `finish_reason`."""
    index: Count | None = None
    logprobs: dict[str, Any] | None = None
    event: str | None = None
    """The name of an event of your own, whose `data` is any JSON."""
    data: Any = None
    end: Literal["done", "failed", "cancelled"] | None = None
    """How the stream ends. Nothing may follow."""
    finish_reason: str | None = None
    """Of `done`: `stop` (if none is given), `length`, `tool_calls` or `content_filter`."""
    usage: dict[str, Any] | None = None
    code: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,63}$")] | None = None
    """Of `failed`, as `message` and `retryable`."""
    message: Annotated[str, Field(max_length=500)] | None = None
    retryable: bool | None = None


class WrittenEvents(RootModel[WrittenEvent | list[WrittenEvent]]):
    """One event, or several in order."""


class WriterAnswer(Described):
    """The stream after the append."""

    id: str
    status: StreamStatus
    attempt: Count
    last_event_id: str
    """The id of the last entry: the next append goes after it."""
    tokens: Count
    """How many events stand."""
    listeners: Count
    """How many gateway processes have readers of the stream."""


class AttemptRequest(Closed):
    """Who is going to write."""

    writer: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """A name for this run of your program. The same name gets the same attempt again."""
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """What readers are told that answers."""
    keep: Count | None = None
    """How many of the events that are there stand; all if it is missing."""


_LEASE = header(
    "Stream-Lease",
    "From now on the stream ends as failed if nothing is heard of its writer for so many seconds.",
    type="number",
    minimum=1,
    maximum=3600,
)
APPEND = Operation(
    "streams",
    "append_events",
    "Append events to a stream that was made for an external writer, or renew its lease with an empty body.",
    (Answer(200, "The events are in the log.", {JSON: WriterAnswer, NDJSON: None}),),
    parameters=(
        STREAM_ID,
        header(
            "Last-Event-ID",
            "The event after which these go. With it a repeated request appends nothing twice, and an earlier writer is refused.",
        ),
        _LEASE,
    ),
    body=WrittenEvents,
    body_is_required=False,
    errors=(404, 409, 410, 413, 415),
    description=(
        "A body of the type `application/x-ndjson` may be as long as the stream: each line is appended as it comes. A client that "
        "accepts `application/x-ndjson` gets a line of progress each second. A 409 has a `reason`: `fenced`, `gap`, `completed`, "
        "`failed`, `cancelled`, `not_external` or `unreadable`, and a `last_event_id`."
    ),
)
BEGIN_ATTEMPT = Operation(
    "streams",
    "begin_attempt",
    "Begin to write a stream that was made for an external writer. Whoever wrote it before is refused from now on.",
    (Answer(200, "The attempt has begun.", {JSON: WriterAnswer}),),
    parameters=(STREAM_ID, _LEASE),
    body=AttemptRequest,
    body_is_required=False,
    errors=(404, 409, 410, 413, 415),
)
