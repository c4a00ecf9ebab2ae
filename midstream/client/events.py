"""What a client gets: the events of a stream, the answers to its calls, and the one error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from midstream.client.text import TextSoFar
from shared.errors import MidstreamError


class StreamError(MidstreamError):
    """A request was refused, or was tried until `give_up_seconds` were over."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        retryable: bool | None = None,
        retry_after_seconds: float = 0.0,
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.problem = problem or {}
        """The problem document with which the gateway refused; empty without one."""
        self.reason = str(self.problem.get("reason", ""))
        """Its `reason`, for programs: empty for most problems."""
        self.status = status
        """The HTTP status; 0 without one."""
        self.retryable = (status == 0 or status > 499 or status in (408, 425, 429)) if retryable is None else retryable
        """Whether the same request may succeed later."""
        self.retry_after_seconds = retry_after_seconds
        """From `Retry-After`; 0 without it."""


class Stopped(StreamError):
    """Nothing more can be written to a stream."""

    def __init__(self, message: str, *, reason: str, status: int = 0, by: str = "") -> None:
        super().__init__(message, status=status, retryable=False)
        self.reason = reason
        """`cancelled`, `completed`, `failed` (the lease ran out), `fenced` (another writer goes on), `log_full`, `lost` (there
        is no such stream any more), `gap` (Redis has lost more than is kept here), `refused`."""
        self.by = by
        """Who cancelled it: `client`, `operator`, or `disconnect` (nobody read it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    """What every event has."""

    type: ClassVar[str]

    id: str | None = None
    """`<attempt>-<offset>`; `Live`, `Gap` and `Lost` have none."""
    data: Any = field(default=None, repr=False, compare=False)
    """The event's JSON as it came, with fields that this version of the client does not know; text where it is no JSON."""
    so_far: TextSoFar = field(default_factory=TextSoFar, repr=False, compare=False)

    @property
    def text(self) -> str:
        """The text of the first choice as it stands after this event. It is put together when it is asked for."""
        return str(self.so_far)


@dataclass(frozen=True, slots=True)
class Token(_Event):
    """More text."""

    type = "token"
    token: str


@dataclass(frozen=True, slots=True)
class Delta(_Event):
    """More than plain text, as the Chat Completions API has it: a tool call, reasoning, another choice."""

    type = "delta"
    delta: Mapping[str, Any]
    index: int = 0
    """Of the choice."""
    logprobs: Mapping[str, Any] | None = None
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Started(_Event):
    """The first attempt has begun."""

    type = "started"
    attempt: int
    model: str


@dataclass(frozen=True, slots=True)
class Restarted(_Event):
    """A new attempt has begun. It keeps the first `base` increments; `text` has lost the others already."""

    type = "restarted"
    attempt: int
    base: int
    reason: str


@dataclass(frozen=True, slots=True)
class Live(_Event):
    """All that was there has come; what follows is new."""

    type = "live"
    offset: int


@dataclass(frozen=True, slots=True)
class Gap(_Event):
    """The events between these ids are lost for everybody. The text goes on behind them."""

    type = "gap"
    requested: str
    first_available: str


@dataclass(frozen=True, slots=True)
class OwnEvent(_Event):
    """An event of the application's own: its name, and its `data`."""

    type = "event"
    name: str


@dataclass(frozen=True, slots=True)
class Lost(_Event):
    """The connection is lost. The client tries again by itself, in `wait_seconds`."""

    type = "lost"
    error: StreamError
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class Done(_Event):
    """The end: the answer is complete, or was cut off at its length limit (`truncated`)."""

    type = "done"
    finish_reason: str | None = None
    truncated: bool = False
    usage: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Failed(_Event):
    """The end: the answer failed. What arrived may be shown."""

    type = "failed"
    code: str
    message: str
    retryable: bool
    """Whether a new stream with the same request may succeed."""


@dataclass(frozen=True, slots=True)
class Cancelled(_Event):
    """The end: the answer was stopped."""

    type = "cancelled"
    by: str
    """`client`, `operator`, `writer` (the external writer itself), or `disconnect` (nobody read it)."""


End = Done | Failed | Cancelled
StreamEvent = Token | Delta | Started | Restarted | Live | Gap | OwnEvent | Lost | End

Status = Literal["queued", "running", "completed", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """A stream that has been created."""

    id: str
    status: Status
    created_at: float
    """Unix seconds."""
    url: str
    """The stream's address, for the other calls; its id does as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A stream's state, and the answer as it stands. Times are Unix seconds."""

    id: str
    status: Status
    text: str
    tokens: int
    attempt: int
    model: str | None
    finish_reason: str | None
    truncated: bool
    usage: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    """`code`, `message`, `retryable`, if it failed."""
    cancelled_by: str | None
    created_at: float | None
    started_at: float | None
    ended_at: float | None
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What was generated in each attempt, and what was delivered over which connection."""

    id: str
    status: Status
    finish_reason: str | None
    metadata: Mapping[str, str]
    generated: Mapping[str, Any]
    """`tokens`, `usage`, `attempts`."""
    delivered: Mapping[str, Any]
    """`tokens`, `connections`."""
    undelivered_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterState:
    """A stream as its writer sees it."""

    id: str
    status: Status
    attempt: int
    last_event_id: str
    tokens: int
    """How many events stand."""
    listeners: int
    """How many gateway processes have readers of it."""
