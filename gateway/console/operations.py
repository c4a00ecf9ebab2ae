"""Describes the console's operations for the OpenAPI document. The models are documentation; they check nothing."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from gateway.http.accept import SSE
from gateway.http.operations import (
    HTML,
    IF_NONE_MATCH,
    JSON,
    TO_LOGIN,
    Answer,
    Closed,
    Described,
    EventKind,
    Operation,
    in_path,
)


class OverviewStream(Described):
    """A stream's state, from the newest entry of its log."""

    id: str
    status: str
    """`waiting`, `running`, `completed`, `failed`, `cancelled` or `deleted`."""
    created_at: float
    age_seconds: float
    attempt: int
    tokens: int
    tokens_per_second: float
    worker: str | None = None
    lease_age_seconds: float | None = None
    ended_at: float | None = None


class OverviewStreams(Described):
    """The queue and its newest streams."""

    running: int
    waiting: int
    oldest_waiting_seconds: float
    newest: Annotated[list[OverviewStream], Field(max_length=100)]
    ended: Annotated[list[OverviewStream], Field(max_length=20)]
    """Streams that ended while the overview was watched."""


class OverviewLag(Described):
    """Quantiles of the last 30 seconds, of the process where they are worst."""

    p50_ms: float
    p99_ms: float
    samples: int | None = None
    process: str | None = None


class OverviewProcess(Described):
    """A gateway or a worker."""

    kind: str
    name: str
    host: str
    pid: int
    version: str
    started_at: float
    cpu: float
    """CPU usage; 1.0 is one core."""
    memory_bytes: float
    draining: bool | None = None
    heard_seconds: float
    silent: bool
    totals: dict[str, float] = Field(default_factory=dict)
    per_second: dict[str, float] = Field(default_factory=dict)
    lag: dict[str, dict[str, float]] = Field(default_factory=dict)
    readers: int | None = None
    readers_max: int | None = None
    followed: int | None = None
    tick_ms: float | None = None
    provider: str | None = None
    running: int | None = None
    capacity: int | None = None


class OverviewRedis(Described):
    """The state of Redis, as the processes measure it."""

    up: bool
    memory_bytes: float
    headroom_bytes: float
    commands_per_second: float
    time: float | None = None
    refusal: str | None = None


class Snapshot(Described):
    """All streams and processes that share this Redis, as they are now."""

    time: float
    version: str
    gateway: str
    """The process that answers."""
    has_archive: bool
    """Whether `GET /v1/streams` lists ended streams."""
    streams: OverviewStreams
    readers: int
    totals: dict[str, float]
    per_second: dict[str, float]
    lag: dict[str, OverviewLag]
    processes: list[OverviewProcess]
    redis: OverviewRedis


OVERVIEW = Operation(
    "console",
    "overview",
    "A snapshot of all streams and processes.",
    (Answer(200, "The snapshot. A new one is made at most once a second.", {JSON: Snapshot}),),
)
OVERVIEW_EVENTS = Operation(
    "console",
    "overview_events",
    "Snapshots of all streams and processes, one a second.",
    (Answer(200, "Snapshots, until the client leaves.", {SSE: None}),),
    events=(EventKind("", Snapshot, "A snapshot.", has_id=False),),
)
_PAGE_HEADERS: dict[str, Any] = {"ETag": "The file's ETag."}
_SAME = Answer(304, "The client's copy is still valid.", headers=_PAGE_HEADERS)


def _page(name: str, summary: str) -> Operation:
    answers = (Answer(200, "A page.", {HTML: None}, _PAGE_HEADERS), TO_LOGIN, _SAME)
    return Operation("console", name, summary, answers, parameters=(IF_NONE_MATCH,))


class LoginForm(Closed):
    """The form of the login page."""

    key: str
    """An API key with the scope `admin`."""


_AFTER_LOGIN = {"Location": "Where the browser goes now.", "Set-Cookie": "The session."}
LOGIN_PAGE = Operation("console", "login_page", "The login page.", (Answer(200, "A page.", {HTML: None}),))
LOGIN = Operation(
    "console",
    "login",
    "Log in to the console: an API key for a session cookie.",
    (
        Answer(303, "Logged in.", headers=_AFTER_LOGIN),
        Answer(403, "The key is not known, or lacks the scope `admin`.", {HTML: None}),
    ),
    body=LoginForm,
    body_media_type="application/x-www-form-urlencoded",
    errors=(413, 415),
)
LOGOUT = Operation("console", "logout", "End the session.", (Answer(303, "Logged out.", headers=_AFTER_LOGIN),))
CONSOLE = _page("console", "The console.")
CHAT_PAGE = _page("chat_page", "A chat page to try Midstream.")
_FILE_TYPES = {"text/css": None, "text/javascript": None, "image/svg+xml": None}
CONSOLE_FILE = Operation(
    "console",
    "console_file",
    "A script, style sheet or picture of these pages.",
    (Answer(200, "The file.", _FILE_TYPES, _PAGE_HEADERS), _SAME),
    parameters=(in_path("file", "The file's name."), IF_NONE_MATCH),
    errors=(404,),
)
