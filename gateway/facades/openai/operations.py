"""Describes the operations of OpenAI's Chat Completions API and of its models for the OpenAPI document.

The models are documentation; requests are checked by `gateway.api.requests`, whose messages say more than a model's would.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.api.models import ChatMessage, MidstreamOptions, Simulation
from gateway.http.accept import SSE
from gateway.http.operations import (
    IDEMPOTENCY_KEY,
    JSON,
    NOTHING_MORE,
    RESUME_PARAMETERS,
    Answer,
    Described,
    EventKind,
    Operation,
    header,
    in_path,
)


class OpenAIErrorObject(Described):
    """What was wrong: the provider's own object where it gave one."""

    message: str | None
    type: str | None
    param: str | None = None
    code: str | int | None = None


class OpenAIError(Described):
    """An error in OpenAI's shape."""

    error: OpenAIErrorObject


class ChatStreamOptions(Described):
    """Options of a streaming answer."""

    include_usage: bool | None = None
    """A chunk with the usage comes last."""


class ChatCompletionRequest(Described):
    """An OpenAI Chat Completions request. All that is not named here goes to the provider as it is."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: Annotated[str, Field(min_length=1, max_length=256)] = Field(default_factory=str)
    """The gateway's default model where it is missing."""
    n: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    stream: bool | None = None
    stream_options: ChatStreamOptions | None = None
    simulate: Simulation | None = None
    midstream: MidstreamOptions = MidstreamOptions(on_interrupt="fail")


class CompletionMessage(Described):
    """The model's answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class CompletionChoice(Described):
    """One of the `n` answers."""

    index: int
    message: CompletionMessage
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class ChatCompletion(Described):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: dict[str, Any] | None


class ChunkChoice(Described):
    """What a chunk adds to one of the `n` answers."""

    index: int
    delta: dict[str, Any]
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class ChunkRestart(Described):
    """Another attempt has begun: keep the first `base` deltas and drop the others."""

    attempt: int
    base: int
    reason: str


class ChunkGap(Described):
    """The events between these ids are gone."""

    requested: str
    first_available: str


class ChunkNote(Described):
    """Events that only Midstream has; the chunk's one choice has an empty delta."""

    restarted: ChunkRestart | None = None
    gap: ChunkGap | None = None
    event: str | None = None
    """The name of an event of a generator of the operator's own."""
    data: Any = None
    """The data of that event."""


class ChatCompletionChunk(Described):
    """A piece of a streaming answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: dict[str, Any] | None = None
    midstream: ChunkNote | None = None


class Model(Described):
    """One of the provider's models."""

    id: str
    object: str = "model"
    created: int | None = None
    owned_by: str | None = None


class ModelList(Described):
    """The provider's models."""

    object: Literal["list"]
    data: list[Model]


ON_INTERRUPT = header(
    "X-Midstream-On-Interrupt",
    "`midstream.on_interrupt`, for clients that cannot change the body. The body takes precedence.",
    type="string",
    enum=["fail", "restart", "continue"],
)
PACE = header(
    "X-Midstream-Pace-Ms", "`midstream.pace_ms` for clients that cannot change the body. The body takes precedence."
)
WEBHOOK = header(
    "X-Midstream-Webhook",
    "The URL of `midstream.webhook`, for clients that cannot change the body. The body takes precedence.",
)
ON_DISCONNECT = header("X-Midstream-On-Disconnect", "`continue` or `cancel_after=SECONDS`. The body takes precedence.")
STREAM_ID_HEADER = {"X-Stream-Id": "The stream's id, for other requests."}
PROVIDER_ERRORS = (401, 404, 413, 415, 422, 424, 429, 499, 502, 504, 507)
"""Statuses that the provider may send, and those of failures without a status of the provider."""

_CHUNKS = (
    EventKind(
        "",
        ChatCompletionChunk,
        "One chunk for each event: the role, a delta, `finish_reason`, the usage if it was requested, or an object `midstream`.",
    ),
    EventKind("", OpenAIError, "Instead of the end: the answer failed or was cancelled. No `[DONE]` comes."),
    EventKind("", "[DONE]", "The answer is complete."),
)

CREATE_CHAT = Operation(
    "OpenAI",
    "create_chat_completion",
    "OpenAI's chat completions, streaming or not.",
    (
        Answer(
            200,
            "The whole answer; its chunks with `stream: true`.",
            {JSON: ChatCompletion, SSE: None},
            STREAM_ID_HEADER,
        ),
    ),
    parameters=(IDEMPOTENCY_KEY, ON_INTERRUPT, ON_DISCONNECT, PACE, WEBHOOK),
    body=ChatCompletionRequest,
    errors=PROVIDER_ERRORS,
    error=OpenAIError,
    events=_CHUNKS,
    description="A refusal or failure has the provider's status if there is one. `Authorization` is ignored.",
)
CHAT_EVENTS = Operation(
    "OpenAI",
    "follow_chat_completion",
    "The chunks of a chat completion, after an event or from the beginning.",
    (
        Answer(200, "The chunks.", {SSE: None}, STREAM_ID_HEADER),
        NOTHING_MORE,
    ),
    parameters=(
        in_path("completion_id", "The completion's id, or the stream's."),
        *RESUME_PARAMETERS,
    ),
    errors=(404, 410),
    error=OpenAIError,
    events=_CHUNKS,
)
LIST_MODELS = Operation(
    "OpenAI",
    "list_models",
    "The provider's models.",
    (Answer(200, "The list. Without a provider it has only the gateway's default model.", {JSON: ModelList}),),
    errors=(401, 429, 502, 504),
    error=OpenAIError,
)
ONE_MODEL = Operation(
    "OpenAI",
    "one_model",
    "One of the provider's models.",
    (Answer(200, "The model.", {JSON: Model}),),
    parameters=(in_path("model", "The model's id, which may have slashes."),),
    errors=(401, 404, 429, 502, 504),
    error=OpenAIError,
)
