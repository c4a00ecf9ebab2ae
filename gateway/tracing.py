"""The gateway's spans: a stream's creation, each connection that reads it, and the ends that a gateway writes.

The creation's span is a child of the client's `traceparent`, and stands in the log: all others of the stream are its
children, in whatever process. What is here is in use only where traces are on.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

from gateway.delivery.ledger import Ledger
from gateway.http.connection import Receive, Scope, Send
from gateway.http.exchange import ASGI
from gateway.http.problems import Problem
from gateway.metrics import tokens_between
from gateway.streams import Streams
from shared import events
from shared.errors import Disconnected, RedisRefused, Unreadable
from shared.event_log import EventLog
from shared.events import Accepted, Policies
from shared.ids import BEGINNING, EventId
from shared.lifecycle import History
from shared.outcomes import AttemptOutcome, ReaderOutcome
from shared.settings import Settings
from shared.tracing import traceparent

if TYPE_CHECKING:
    from gateway.delivery.delivery import Reader
    from shared.spans import Attributes, Span, Tracing

_LAST_SPANS_SECONDS, _LEAVING_SECONDS, _LEAST_SECONDS = 0.25, 0.9, 0.05
"""What the collector gets to take the last spans, while leaving takes no longer than that in all; and at least."""
_CONNECTIONS_PER_SECOND_MAX = 1000
"""So many have spans, 50 ms of work. Of more that leave at once, as when a stream with thousands of readers ends or the
gateway does, the others have none: the queue of what is to be sent would not hold them either."""
_TRACEPARENT_BYTES_MAX = 128
"""55, but a later version of the header may be longer."""


class _Request(NamedTuple):
    name: str
    path: str
    method: str
    scheme: str
    traceparent: str
    """As the client sent it; empty if it sent none, or several."""
    came_at: float


_request: contextvars.ContextVar[_Request] = contextvars.ContextVar("traced_request")


class Traces:
    """The spans of this process, of which the log knows where they belong."""

    def __init__(self, tracing: Tracing, log: EventLog, settings: Settings) -> None:
        self._tracing = tracing
        self._log = log
        self._wait_seconds = settings.redis_wait_seconds
        self._parents: WeakValueDictionary[str, asyncio.Task[str]] = WeakValueDictionary()
        self._reading: set[asyncio.Task[str]] = set()
        self._leaving_at = math.inf

    def leave(self) -> None:
        """The process is about to stop: from here on time is counted."""
        self._leaving_at = min(self._leaving_at, time.monotonic())

    async def close(self) -> None:
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
        left_seconds = self._leaving_at + _LEAVING_SECONDS - time.monotonic()
        await self._tracing.close(max(_LEAST_SECONDS, min(_LAST_SPANS_SECONDS, left_seconds)))

    def joining(self, app: ASGI) -> ASGI:
        """The same application, that knows which span a request comes from."""

        async def joined(scope: Scope, receive: Receive, send: Send) -> None:
            told = [value for name, value in scope["headers"] if name == b"traceparent"]
            comes_from = told[0].decode("latin-1") if len(told) == 1 and len(told[0]) <= _TRACEPARENT_BYTES_MAX else ""
            method, path = scope.get("method", "GET"), scope["path"]
            _request.set(_Request(f"{method} {path}", path, method, scope["scheme"], comes_from, time.time()))
            await app(scope, receive, send)

        return joined

    @staticmethod
    def caller() -> str:
        """The `traceparent` that came with the request which this work is done for."""
        request = _request.get(None)
        return "" if request is None else request.traceparent

    @contextmanager
    def creation(self, model: str) -> Iterator[Span]:
        """The span of a request that creates a stream, from when it came; what is created within is its child."""
        request = _request.get()
        about = {
            "http.request.method": request.method,
            "http.route": request.path,  # paths at which streams are created have nothing variable in them
            "url.path": request.path,
            "url.scheme": request.scheme,
            "gen_ai.request.model": model,
        }
        span = self._tracing.span(
            request.name, "server", parent=request.traceparent, attributes=about, began_at=request.came_at
        )
        traceparent.set(span.traceparent)
        error = ""
        try:
            yield span
        except Problem as problem:
            span.tell({"http.response.status_code": problem.status})
            error = str(problem.status) if problem.status >= 500 else ""
            raise
        except BaseException as broken:
            error = type(broken).__name__
            raise
        finally:
            span.end(error)

    def span(self, name: str, stream_id: str, about: Attributes, *, parent: str, link: str, began_at: float) -> Span:
        """A span of a stream that is there."""
        about = {"midstream.stream.id": stream_id, **about}
        return self._tracing.span(name, "internal", parent=parent, link=link, attributes=about, began_at=began_at)

    def parent_of(self, stream_id: str) -> asyncio.Task[str]:
        """What the log says of where a stream's spans belong; empty where it cannot be read. One read for all who hold it."""
        task = self._parents.get(stream_id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._read_parent(stream_id))
            self._parents[stream_id] = task
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)
        return task

    def failed_here(self, stream_id: str, code: str) -> None:
        """This gateway has ended a stream that had nobody to speak for it."""
        now = time.time()

        def tell(parent: asyncio.Task[str]) -> None:
            about = {"midstream.outcome": AttemptOutcome.FAILED}
            span = self.span("end", stream_id, about, parent=_known(parent), link="", began_at=now)
            span.event("midstream.failed", {"error.type": code})
            span.end(code)

        self.parent_of(stream_id).add_done_callback(tell)

    async def _read_parent(self, stream_id: str) -> str:
        try:
            async with asyncio.timeout(self._wait_seconds):
                first = await self._log.read(stream_id, BEGINNING, 1)
        except (TimeoutError, Disconnected, RedisRefused):
            return ""
        if not first or first[0].field != events.ACCEPTED:
            return ""
        try:
            return Accepted.load(first[0].value).traceparent
        except Unreadable:
            return ""


class TracedStreams(Streams):
    """Streams whose creation and cancel have spans."""

    def __init__(self, traces: Traces, *parts: Any) -> None:
        super().__init__(*parts)
        self._traces = traces

    async def create(
        self, request: dict[str, Any], policies: Policies, metadata: dict[str, str], **more: Any
    ) -> dict[str, Any]:
        with self._traces.creation(str(request.get("model", ""))) as span:
            created = await super().create(request, policies, metadata, **more)
            span.tell({"midstream.stream.id": created["id"]})
            return created

    def cancelled_here(self, stream_id: str, history: History, by: str) -> None:
        parent = history.accepted.traceparent if history.accepted is not None else ""
        about = {"midstream.outcome": AttemptOutcome.CANCELLED, "midstream.by": by}
        began_at = history.ended_at or time.time()
        span = self._traces.span(
            "cancel", stream_id, about, parent=parent, link=self._traces.caller(), began_at=began_at
        )
        span.event("midstream.cancelled")
        span.end()

    async def note_delivered(self, stream_id: str, reached: EventId, began_at: float) -> None:
        about = _connection(BEGINNING, reached, reached.offset - 1, ReaderOutcome.COMPLETED, "whole")
        # The request that asked for the answer is the one that is given it: this is still its task.
        self._traces.span("read", stream_id, about, parent=traceparent.get(), link="", began_at=began_at).end()
        await super().note_delivered(stream_id, reached, began_at)


class TracedLedger(Ledger):
    """Each connection that is noted has a span, too: made at its end, since before that nobody could see it."""

    def __init__(self, traces: Traces, *parts: Any) -> None:
        super().__init__(*parts)
        self._traces = traces
        self._open: dict[Reader, tuple[asyncio.Task[str], str]] = {}
        self._second = self._told_in_second = 0

    def opened(self, reader: Reader) -> None:
        super().opened(reader)
        self._open[reader] = self._traces.parent_of(reader.tail.stream_id), self._traces.caller()

    def closed(self, reader: Reader) -> None:
        super().closed(reader)
        parent, link = self._open.pop(reader)
        closed_at = time.time()
        if int(closed_at) != self._second:
            self._second, self._told_in_second = int(closed_at), 0
        self._told_in_second += 1
        if self._told_in_second > _CONNECTIONS_PER_SECOND_MAX:
            return
        note, reached = reader.note, reader.reached()
        tokens = tokens_between(note.start, reached, reader.tail)
        face = type(reader.ring.face).__name__.removesuffix("Face").lower()
        about = {
            **_connection(note.start, reached, tokens, reader.outcome, face),
            "midstream.connection.id": note.connection,
        }
        tell = partial(self._tell, reader.tail.stream_id, about, link, note.opened_at, closed_at)
        parent.add_done_callback(tell)

    def _tell(
        self,
        stream_id: str,
        about: Attributes,
        link: str,
        opened_at: float,
        closed_at: float,
        parent: asyncio.Task[str],
    ) -> None:
        span = self._traces.span("read", stream_id, about, parent=_known(parent), link=link, began_at=opened_at)
        span.end(at=closed_at)


def _connection(start: EventId, reached: EventId, tokens: int, outcome: str, face: str) -> Attributes:
    """What a receipt says of a connection, and through which face it was."""
    return {
        "midstream.from": _told(start),
        "midstream.to": _told(reached),
        "midstream.tokens": tokens,
        "midstream.outcome": outcome,
        "midstream.face": face,
    }


def _told(cursor: EventId) -> str:
    return f"{cursor.attempt}-{max(0, cursor.offset)}"


def _known(parent: asyncio.Task[str]) -> str:
    return "" if parent.cancelled() else parent.result()
