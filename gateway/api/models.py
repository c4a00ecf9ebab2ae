"""The bodies and events of the native API as models, for the OpenAPI document (`gateway.api.operations`).

They document; requests are checked by `gateway.api.requests`, whose messages say more than a model's would. A test
(tests/unit/test_openapi.py) holds the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.http.operations import Closed, Described

# --- requests

Count = Annotated[int, Field(ge=0)]


class CancelAfter(Closed):
    """How long generation goes on when no gateway has a reader of the stream."""

    cancel_after: Annotated[float, Field(ge=0, le=86_400)]
    """Seconds."""


class WebhookOptions(Closed):
    """Who is told of a stream's end."""

    url: Annotated[str, Field(min_length=1, max_length=2048)]
    text: bool = False
    """Whether the answer's text is sent along, up to 64 KiB."""


class MidstreamOptions(Closed):
    """Options of a stream: its provider, and the policies for an interruption and for a stream that nobody reads."""

    on_disconnect: Literal["continue"] | CancelAfter = CancelAfter(cancel_after=60)
    """How long generation goes on when no gateway has a reader of the stream."""
    on_interrupt: Literal["restart", "continue", "fail"] = "restart"
    """The policy for a worker or a provider that fails in mid-answer."""
    pace_ms: Annotated[int, Field(ge=0, le=5_000)] | None = None
    """The least time between two entries of the log, in milliseconds: tokens in between share the next. The worker's setting where none is given."""
    metadata: dict[str, str] = Field(default_factory=dict, max_length=64)
    """Texts that are stored with the stream."""
    provider: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """The provider of the workers that answers; if none is given, the one with the name of the model, else the first."""
    cookie: bool = False
    """The answer sets the stream's access token as a cookie, too, if authentication is on."""
    owner: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """The end user whose stream it is to be: `sub` of their JWT. Needs the scope `act`. The header `X-Midstream-Owner` says the same."""
    webhook: Annotated[str, Field(max_length=2048)] | WebhookOptions | Literal[False] | None = None
    """Where a signed POST goes when the stream has ended: the URL, or an object with `url` and `text`. `false`: nowhere, also where there is a default."""
    writer: Literal["worker", "external"] = "worker"
    """`external`: a program of yours fills the stream over HTTP, and no worker does. `messages` may then be missing."""
    lease_seconds: Annotated[float, Field(ge=1, le=3_600)] | None = None
    """How long an external writer may be silent before its stream ends as failed; 30 if none is given."""


class Simulation(Closed):
    """How the simulated provider is to answer; other providers do not know this field."""

    tokens: Annotated[int, Field(ge=0, le=100_000)] | None = None
    tokens_per_second: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    finish_reason: Literal["stop", "length"] = "stop"
    fail_after: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """The provider breaks off after so many tokens."""
    stall_after: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """The provider falls silent after so many tokens."""


class ChatMessage(Described):
    """A message as the Chat Completions API has it."""

    role: str
    content: Any = None


class StreamRequest(Described):
    """An OpenAI Chat Completions request. All that is not named here goes to the provider as it is."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)] = Field(default_factory=str)
    """The gateway's default model where it is missing."""
    max_tokens: Any = None
    max_completion_tokens: Any = None
    n: Any = None
    stream_options: dict[str, Any] | None = None
    simulate: Simulation | None = None
    midstream: MidstreamOptions = MidstreamOptions()


# --- answers

StreamStatus = Literal["queued", "running", "completed", "failed", "cancelled"]


class CreatedStream(Described):
    """A stream that has been created, or that the same `Idempotency-Key` created before."""

    id: str
    status: StreamStatus
    created_at: float
    """Unix seconds, as all times."""
    events_url: str
    """The path at which the stream is followed."""
    access_token: str | None = None
    """The right to read and cancel this stream, for as long as it can be read; only if authentication is on."""


class TokenRequest(Closed):
    """The rights that an access token is to have."""

    scopes: Annotated[list[Literal["read", "cancel"]], Field(min_length=1)] = Field(default_factory=list)
    """`cancel` includes `read`. `read` where it is missing."""
    expires_in: Annotated[float, Field(ge=1, le=100_000_000)] | None = None
    """Seconds; if none is given, for as long as the stream can be read."""
    cookie: bool = False
    """The answer sets the token as a cookie, too."""


class AccessToken(Described):
    """The right to one stream, for whoever has it."""

    access_token: str
    token_type: Literal["Bearer"]
    scopes: list[str]
    expires_at: int


class StreamError(Described):
    """Why a stream has failed."""

    code: str
    """One of the failure codes of docs/reference/http.md."""
    message: str
    retryable: bool
    """Whether another try, with a new stream, may succeed."""


class StreamState(Described):
    """A stream as it is now."""

    id: str
    status: StreamStatus
    text: str
    """The answer's text so far."""
    tokens: Count
    """The number of tokens and deltas in the text."""
    attempt: Count
    model: str | None
    finish_reason: str | None
    native_finish_reason: str | None = None
    """The provider's own word, where it is another."""
    truncated: bool
    """Whether the answer hit its length limit."""
    usage: dict[str, Any] | None
    error: StreamError | None
    cancelled_by: str | None
    """`client`, `disconnect`, `operator` or `writer`."""
    created_at: float | None
    started_at: float | None
    ended_at: float | None
    metadata: dict[str, str]


class ListedUsage(Described):
    """What the provider says that it has used."""

    prompt_tokens: Count | None
    completion_tokens: Count | None


class ListedStream(Described):
    """A stream in a list. What is null is not known yet."""

    id: str
    status: StreamStatus
    owner: str
    model: str | None
    api: str | None
    """The API through which it was created: `native`, `chat`, `responses` or `ai_sdk`."""
    metadata: dict[str, str]
    created_at: float
    started_at: float | None
    ended_at: float | None
    finish_reason: str | None
    error_code: str | None
    attempts: Count
    generated_tokens: Count
    delivered_tokens: Count | None
    usage: ListedUsage | None
    archived: bool
    """Whether it is in the archive; else it runs, or will be in a moment."""
    events_url: str


class StreamList(Described):
    """A page of streams, the newest first."""

    streams: list[ListedStream]
    after: str | None
    """The parameter `after` of the next page; null: this is the last one."""


class ReceiptAttempt(Described):
    """What one attempt generated."""

    attempt: int
    tokens: int
    outcome: str | None
    worker: str | None
    started_at: float | None
    first_token_at: float | None
    last_heard_at: float | None


class Generated(Described):
    """The generated part of a receipt. `tokens`: the number in the final answer."""

    tokens: Count
    usage: dict[str, Any] | None
    attempts: list[ReceiptAttempt]


class ReceiptConnection(Described):
    """The events that were sent over one connection: those after `from`, up to `to`."""

    id: str
    gateway: str
    from_: Annotated[str, Field(alias="from")]
    to: str
    opened_at: float
    closed_at: float | None
    outcome: str | None
    """Null while the connection is open."""
    tokens: int


class Delivered(Described):
    """The delivered part of a receipt: the number of tokens of the final answer that were sent, and the connections."""

    tokens: Count
    connections: list[ReceiptConnection]


class Receipt(Described):
    """The receipt of a stream: what was generated and what was delivered."""

    id: str
    status: StreamStatus
    finish_reason: str | None
    metadata: dict[str, str]
    generated: Generated
    delivered: Delivered
    undelivered_tokens: int


class UsageRow(Described):
    """What one principal has used of one model on one day. A stream counts for the day on which it was created."""

    day: str
    """As in 2026-11-28 (UTC)."""
    principal: str
    model: str
    """`unknown`: the stream failed before a model was known; `other`: more than 100 models in a day."""
    streams: Count
    """Streams that have ended: `completed`, `failed` and `cancelled` together."""
    completed: Count
    failed: Count
    cancelled: Count
    cut_off: Count
    """Completed streams that reached their length limit."""
    generated: Count
    """Tokens, as in the receipts."""
    delivered: Count
    undelivered: Count
    prompt_tokens: Count
    """The sum of what the provider says in its `usage`; 0 where it says nothing."""
    completion_tokens: Count


class Usage(Described):
    """What has been used, by day, principal and model."""

    from_: Annotated[str, Field(alias="from")]
    to: str
    usage: list[UsageRow]
    next: str | None
    """The value of `after` for the next page; null: there is none."""


class Health(Described):
    """The process lives."""

    status: Literal["ok"]
    version: str | None = None
    """Not for strangers, if authentication is on."""


class Ready(Described):
    """The process can serve."""

    status: Literal["ready"]
    readers: Count | None = None
    """Not for strangers, if authentication is on."""
    archive: Literal["up", "read-only", "away"] | None = None
    """Only with an archive. While it is away all answers go on; what has left Redis cannot be read. `read-only`: it takes no rows."""


class ProbeTrace(Described):
    """How a probe went, or how it ended."""

    running: bool
    closed_by: Literal["client", "gateway", "end"] | None
    sent: Count
    """Events."""
    closed_after_ms: float | None


# --- events


class TokenOrDelta(Described):
    """A piece of the answer: plain text as `token`, anything else as `delta`."""

    token: str | None = None
    delta: dict[str, Any] | None = None
    index: int | None = None
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class Started(Described):
    """A worker has begun."""

    attempt: int
    model: str | None


class Restarted(Described):
    """Another attempt has begun: keep the first `base` tokens and drop the others."""

    attempt: int
    base: int
    reason: str


class Done(Described):
    """The answer is complete."""

    finish_reason: str | None
    native_finish_reason: str | None = None
    """The provider's own word, where it is another."""
    truncated: bool
    """Whether the answer hit its length limit."""
    usage: dict[str, Any] | None


class Cancelled(Described):
    """The stream was cancelled."""

    by: Literal["client", "disconnect", "operator", "writer"]


class Live(Described):
    """All earlier events have been sent; from now on events come live."""

    offset: int


class Gap(Described):
    """The events between these ids are gone."""

    requested: str
    first_available: str


class Retry(Described):
    """The response ends before its stream: reconnect after this time."""

    milliseconds: int


class WebSocketError(Described):
    """What was wrong with the request, or with a message."""

    status: int
    detail: str


class AcceptedStream(Described):
    """The stream that was created for a prompt."""

    id: str
    events_url: str


class ProbeBeginning(Described):
    """How the request arrived at the gateway, and data about the gateway."""

    n: int
    sent_ms: float
    seen: dict[str, Any]
    probe: str
    gateway: dict[str, Any]


class ProbeEvent(Described):
    """A timed event."""

    n: int
    sent_ms: float
    """Milliseconds since the response began."""
    padding: str | None = None


class ProbeEnd(Described):
    """The probe has sent everything."""

    n: int
    sent_ms: float
    comments: int
