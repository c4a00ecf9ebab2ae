"""Describes the operations of OpenAI's Responses API for the OpenAPI document.

The models are documentation; requests are checked by `gateway.facades.responses.request`, whose messages say more than a model's would.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.api.models import MidstreamOptions
from gateway.facades.openai.operations import (
    ON_DISCONNECT,
    ON_INTERRUPT,
    PACE,
    PROVIDER_ERRORS,
    STREAM_ID_HEADER,
    WEBHOOK,
    OpenAIError,
)
from gateway.http.accept import SSE
from gateway.http.operations import (
    IDEMPOTENCY_KEY,
    JSON,
    Answer,
    Described,
    EventKind,
    Operation,
    in_path,
    query,
)


class ResponseRequest(Described):
    """An OpenAI Responses request. What Chat Completions do not have is refused with a 400 that names it."""

    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    """A text, or items: messages, function calls and their outputs."""
    model: str | None = None
    instructions: str | None = None
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    max_output_tokens: Any = None
    tools: list[dict[str, Any]] | None = None
    """Functions only."""
    tool_choice: str | dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    truncation: Literal["disabled"] | None = None
    stream_options: dict[str, Any] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=64)] | None = None
    midstream: MidstreamOptions = MidstreamOptions(on_interrupt="fail")


class ResponseError(Described):
    """Why a response has failed."""

    code: str
    """One of OpenAI's codes."""
    message: str
    type: str
    """One of the failure codes of docs/reference/http.md."""


class ResponseUsage(Described):
    """Tokens, under the names of the Responses API."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: dict[str, int] = Field(default_factory=dict)
    output_tokens_details: dict[str, int] = Field(default_factory=dict)


class OutputItem(Described):
    """A `message`, `reasoning` or `function_call`."""

    id: str
    type: Literal["message", "reasoning", "function_call"]
    status: str


class Response(Described):
    """A response as it is now."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: ResponseError | None
    incomplete_details: dict[str, Any] | None
    instructions: Any = None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str | None
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, Any]
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_p: float | None
    truncation: str
    usage: ResponseUsage | None


class DeletedResponse(Described):
    """The response is gone."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ResponseEvent(Described):
    """The fields of every event."""

    type: str
    sequence_number: Annotated[int, Field(ge=0)]


class ResponseSnapshotEvent(ResponseEvent):
    """An event with the whole response."""

    response: Response


class OutputItemEvent(ResponseEvent):
    """An item begins or is complete."""

    output_index: int
    item: OutputItem


class ContentPartEvent(ResponseEvent):
    """A part of an item begins or is complete."""

    item_id: str
    output_index: int
    content_index: int
    part: dict[str, Any]


class ContentDeltaEvent(ResponseEvent):
    """A piece of a part's text."""

    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[dict[str, Any]] | None = None


class OutputTextDoneEvent(ResponseEvent):
    """A part's whole text."""

    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[dict[str, Any]] | None = None


class RefusalDoneEvent(ResponseEvent):
    """A refusal's whole text."""

    item_id: str
    output_index: int
    content_index: int
    refusal: str


class ArgumentsDeltaEvent(ResponseEvent):
    """A piece of a call's arguments."""

    item_id: str
    output_index: int
    delta: str


class ArgumentsDoneEvent(ResponseEvent):
    """A call's whole arguments."""

    item_id: str
    output_index: int
    name: str
    arguments: str


class OwnEvent(Described):
    """An event of a generator of the operator's own."""

    event: str
    """The name that the generator gave it."""
    data: Any = None


class OwnResponseEvent(ResponseEvent):
    """An own event, in an event of OpenAI's that says nothing."""

    midstream: OwnEvent


class ResponseErrorEvent(ResponseEvent):
    """An error, sent before `response.failed`."""

    code: str | None
    message: str
    param: str | None


def _kind(name: str, data: type[ResponseEvent], description: str) -> EventKind:
    return EventKind(name, data, description, has_id=False)


_EVENTS = (
    _kind("response.created", ResponseSnapshotEvent, "The request is in the log."),
    _kind("response.queued", ResponseSnapshotEvent, "The request waits; only with `background`."),
    _kind("response.in_progress", ResponseSnapshotEvent, "A worker has begun, or another attempt begins."),
    _kind("response.output_item.added", OutputItemEvent, "An item begins."),
    _kind(
        "response.output_item.done",
        OutputItemEvent,
        "An item is complete, or was cut off: then its `status` is `incomplete`.",
    ),
    _kind("response.content_part.added", ContentPartEvent, "A part of a message or of reasoning begins."),
    _kind("response.content_part.done", ContentPartEvent, "A part is complete."),
    _kind("response.output_text.delta", ContentDeltaEvent, "A piece of text."),
    _kind("response.output_text.done", OutputTextDoneEvent, "The whole text of a part."),
    _kind("response.reasoning_text.delta", ContentDeltaEvent, "A piece of reasoning."),
    _kind("response.reasoning_text.done", OutputTextDoneEvent, "The whole text of a part of reasoning."),
    _kind("response.refusal.delta", ContentDeltaEvent, "A piece of a refusal."),
    _kind("response.refusal.done", RefusalDoneEvent, "The whole refusal."),
    _kind("response.function_call_arguments.delta", ArgumentsDeltaEvent, "A piece of a call's arguments."),
    _kind("response.function_call_arguments.done", ArgumentsDoneEvent, "A call's whole arguments."),
    _kind("keepalive", OwnResponseEvent, "An event of a generator of the operator's own."),
    _kind("response.completed", ResponseSnapshotEvent, "The answer is complete; the last event."),
    _kind("response.incomplete", ResponseSnapshotEvent, "The answer was cut off or cancelled; the last event."),
    _kind("response.failed", ResponseSnapshotEvent, "The answer has failed; the last event."),
    _kind(
        "error", ResponseErrorEvent, "Comes before `response.failed`; with the code `events_missing`: events are lost."
    ),
)
_ID = in_path("response_id", "`resp_` and the stream's id.")

CREATE = Operation(
    "OpenAI",
    "create_response",
    "OpenAI's responses: streaming, in the background, or answered at the end.",
    (Answer(200, "The response; its events with `stream: true`.", {JSON: Response, SSE: None}, STREAM_ID_HEADER),),
    parameters=(IDEMPOTENCY_KEY, ON_INTERRUPT, ON_DISCONNECT, PACE, WEBHOOK),
    body=ResponseRequest,
    errors=PROVIDER_ERRORS,
    error=OpenAIError,
    events=_EVENTS,
)
RETRIEVE = Operation(
    "OpenAI",
    "retrieve_response",
    "A response as it is now, or its events.",
    (Answer(200, "The response; its events with `stream=true`.", {JSON: Response, SSE: None}),),
    parameters=(
        _ID,
        query("stream", "`true`: answer with the events.", type="string", enum=["true", "false"]),
        query("starting_after", "Only events with a higher `sequence_number`.", type="integer", minimum=0),
    ),
    errors=(404, 405),
    error=OpenAIError,
    events=_EVENTS,
)
CANCEL = Operation(
    "OpenAI",
    "cancel_response",
    "Stop a response. May be repeated; one that has ended stays as it is.",
    (Answer(200, "The response after the cancel.", {JSON: Response}),),
    parameters=(_ID,),
    errors=(404, 405),
    error=OpenAIError,
)
DELETE = Operation(
    "OpenAI",
    "delete_response",
    "Cancel a response if it runs, and forget it.",
    (Answer(200, "The response is deleted.", {JSON: DeletedResponse}),),
    parameters=(_ID,),
    errors=(404, 405),
    error=OpenAIError,
)
