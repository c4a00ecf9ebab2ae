"""How streams, attempts and connections stand or have ended: closed sets of words.

They appear on the wire, in the log, in log lines, traces and as labels of metrics. Each is a string, so that it is written
and compared as its value.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """The state of a stream. `shared.lifecycle` says which event leads from one to another."""

    UNKNOWN = "unknown"
    """No entry of its log has been read."""
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DELETED = "deleted"


ENDED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
"""The states of a stream that has ended and can still be read."""


class FailureCode(StrEnum):
    """Why a stream has failed. docs/reference/http.md has the meaning of each."""

    PROVIDER_UNAVAILABLE = "provider_unavailable"
    PROVIDER_TIMEOUT = "provider_timeout"
    PROVIDER_STALLED = "provider_stalled"
    PROVIDER_REFUSED = "provider_refused"
    PROVIDER_UNREADABLE = "provider_unreadable"
    CONTENT_FILTERED = "content_filtered"
    GENERATOR_ERROR = "generator_error"
    LOG_FULL = "log_full"
    QUEUE_TIMEOUT = "queue_timeout"
    WORKER_LOST = "worker_lost"
    WRITER_LOST = "writer_lost"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    UNREADABLE = "unreadable"
    INTERNAL_ERROR = "internal_error"


PROVIDER_CODES = (
    FailureCode.PROVIDER_UNAVAILABLE,
    FailureCode.PROVIDER_TIMEOUT,
    FailureCode.PROVIDER_STALLED,
    FailureCode.PROVIDER_REFUSED,
    FailureCode.PROVIDER_UNREADABLE,
    FailureCode.CONTENT_FILTERED,
    FailureCode.GENERATOR_ERROR,
)
"""The failure codes of a call of the provider, which may be a generator of the user's own."""


class CancelReason(StrEnum):
    """Who or what has cancelled a stream."""

    CLIENT = "client"
    DISCONNECT = "disconnect"
    """The last reader had left for as long as the stream's policy allows."""
    OPERATOR = "operator"
    """`midstream forget`."""
    WRITER = "writer"
    """The external writer that filled the stream."""


class AttemptOutcome(StrEnum):
    """How an attempt has ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    RESTARTED = "restarted"
    """The provider broke off, and another attempt of the same worker follows."""
    FENCED = "fenced"
    """Somebody else has ended the stream or taken it over."""
    HANDED_BACK = "handed_back"
    """The worker stops, and another one takes the stream over."""
    ERROR = "error"
    """A bug, or a Redis that refuses."""


class ReaderOutcome(StrEnum):
    """How a connection that follows a stream has ended."""

    COMPLETED = "completed"
    DISCONNECTED = "disconnected"
    ROTATED = "rotated"
    REVOKED = "revoked"
    DRAINED = "drained"
    SLOW = "slow"
    ERROR = "error"
