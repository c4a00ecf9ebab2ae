"""The gateway's spans: a stream's creation, each connection that reads it, and the ends that a gateway writes.

The creation's span is a child of the client's `traceparent`, and is noted in the log: all other spans of the stream are
its children, in whatever process. This module is used only if traces are on.
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
from gateway.http.problems import Problem
from gateway.http.routes import ASGI
from gateway.streams.creation import NewStream
from gateway.streams.streams import Streams
from shared import events
from shared.errors import Disconnected, RedisRefused, Unreadable
from shared.event_log import EventLog
from shared.events import Accepted
from shared.ids import BEGINNING, EventId
from shared.lifecycle import History
from shared.outcomes import AttemptOutcome, ReaderOutcome
from shared.settings import Settings
from shared.tracing import traceparent

if TYPE_CHECKING:
    from gateway.delivery.reader import Reader
    from shared.spans import Attributes, Span, Tracing

_LAST_SPANS_SECONDS, _LEAVING_SECONDS, _LEAST_SECONDS = 0.25, 0.9, 0.05
"""At the end the collector has so long to take the last spans, unless leaving would take longer than the second in all;
and the third at least."""
_CONNECTIONS_PER_SECOND_MAX = 1000
"""So many connections per second get spans, 50 ms of work. If more end at once, as when a stream with thousands of readers
ends, the others get none: the queue of the exporter could not hold them either."""
_TRACEPARENT_BYTES_MAX = 128
"""The most bytes of a `traceparent`: 55 today, but a later version of the header may be longer."""


class _Request(NamedTuple):
    name: str
    path: str
    method: str
    scheme: str
    traceparent: str
    """The header as the client sent it; empty if it sent none, or several."""
    came_at: float


_request: contextvars.ContextVar[_Request] = contextvars.ContextVar("traced_request")


class Traces:
    """Makes the spans of this process. A stream's log holds the span that is their parent."""

    def __init__(self, tracing: Tracing, log: EventLog, settings: Settings) -> None:
        self._tracing = tracing
        self._log = log
        self._wait_seconds = settings.redis_wait_seconds
        self._parents: WeakValueDictionary[str, asyncio.Task[str]] = WeakValueDictionary()
        self._reading: set[asyncio.Task[str]] = set()
        self._leaving_at = math.inf

    def leave(self) -> None:
        """Notes that the process is about to stop: its time to send the last spans begins."""
        self._leaving_at = min(self._leaving_at, time.monotonic())

    async def close(self) -> None:
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
        left_seconds = self._leaving_at + _LEAVING_SECONDS - time.monotonic()
        await self._tracing.close(max(_LEAST_SECONDS, min(_LAST_SPANS_SECONDS, left_seconds)))

    def joining(self, app: ASGI) -> ASGI:
        """Wraps an application so that spans can be children of the request's `traceparent`."""

        async def joined(scope: Scope, receive: Receive, send: Send) -> None:
            sent = [value for name, value in scope["headers"] if name == b"traceparent"]
            parent = sent[0].decode("latin-1") if len(sent) == 1 and len(sent[0]) <= _TRACEPARENT_BYTES_MAX else ""
            method, path = scope.get("method", "GET"), scope["path"]
            _request.set(_Request(f"{method} {path}", path, method, scope["scheme"], parent, time.time()))
            await app(scope, receive, send)

        return joined

    @staticmethod
    def caller() -> str:
        """Returns the `traceparent` of the request that the current task works for; may be empty."""
        request = _request.get(None)
        return "" if request is None else request.traceparent

    @contextmanager
    def creation(self, model: str) -> Iterator[Span]:
        """Makes the span of a request that creates a stream, from the request's arrival on. Spans made within are children."""
        request = _request.get()
        attributes = {
            "http.request.method": request.method,
            "http.route": request.path,  # paths that create streams have no variable segments
            "url.path": request.path,
            "url.scheme": request.scheme,
            "gen_ai.request.model": model,
        }
        span = self._tracing.span(
            request.name, "server", parent=request.traceparent, attributes=attributes, began_at=request.came_at
        )
        traceparent.set(span.traceparent)
        error = ""
        try:
            yield span
        except Problem as problem:
            span.set_attributes({"http.response.status_code": problem.status})
            error = str(problem.status) if problem.status >= 500 else ""
            raise
        except BaseException as broken:
            error = type(broken).__name__
            raise
        finally:
            span.end(error)

    def span(
        self, name: str, stream_id: str, attributes: Attributes, *, parent: str, link: str, began_at: float
    ) -> Span:
        """Makes a span of a stream."""
        attributes = {"midstream.stream.id": stream_id, **attributes}
        return self._tracing.span(name, "internal", parent=parent, link=link, attributes=attributes, began_at=began_at)

    def parent_of(self, stream_id: str) -> asyncio.Task[str]:
        """Returns a task that reads the parent of a stream's spans from its log, empty if that fails. Callers share one task."""
        task = self._parents.get(stream_id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._read_parent(stream_id))
            self._parents[stream_id] = task
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)
        return task

    def failed_here(self, stream_id: str, code: str) -> None:
        """Makes the span of a stream that this gateway has ended as failed."""
        now = time.time()

        def make_span(parent: asyncio.Task[str]) -> None:
            attributes = {"midstream.outcome": AttemptOutcome.FAILED}
            span = self.span("end", stream_id, attributes, parent=_result(parent), link="", began_at=now)
            span.event("midstream.failed", {"error.type": code})
            span.end(code)

        self.parent_of(stream_id).add_done_callback(make_span)

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
    """Streams with spans for creations and cancels."""

    def __init__(self, traces: Traces, *parts: Any) -> None:
        super().__init__(*parts)
        self._traces = traces

    async def create(self, new: NewStream) -> dict[str, Any]:
        with self._traces.creation(str(new.request.get("model", ""))) as span:
            created = await super().create(new)
            span.set_attributes({"midstream.stream.id": created["id"]})
            return created

    def cancelled_here(self, stream_id: str, history: History, by: str) -> None:
        parent = history.accepted.traceparent if history.accepted is not None else ""
        attributes = {"midstream.outcome": AttemptOutcome.CANCELLED, "midstream.by": by}
        began_at = history.ended_at or time.time()
        span = self._traces.span(
            "cancel", stream_id, attributes, parent=parent, link=self._traces.caller(), began_at=began_at
        )
        span.event("midstream.cancelled")
        span.end()

    async def note_delivered(self, stream_id: str, reached: EventId, began_at: float) -> None:
        attributes = _connection(BEGINNING, reached, reached.offset - 1, ReaderOutcome.COMPLETED, "whole")
        # The request that created the stream gets the answer: this is still its task, whose `traceparent` is the creation's.
        self._traces.span("read", stream_id, attributes, parent=traceparent.get(), link="", began_at=began_at).end()
        await super().note_delivered(stream_id, reached, began_at)


class TracedLedger(Ledger):
    """A ledger that makes a span for each connection, too, when the connection ends."""

    def __init__(self, traces: Traces, *parts: Any) -> None:
        super().__init__(*parts)
        self._traces = traces
        self._open: dict[Reader, tuple[asyncio.Task[str], str]] = {}
        self._second = self._spans_in_second = 0

    def opened(self, reader: Reader) -> None:
        super().opened(reader)
        self._open[reader] = self._traces.parent_of(reader.tail.stream_id), self._traces.caller()

    def closed(self, reader: Reader) -> None:
        super().closed(reader)
        parent, link = self._open.pop(reader)
        closed_at = time.time()
        if int(closed_at) != self._second:
            self._second, self._spans_in_second = int(closed_at), 0
        self._spans_in_second += 1
        if self._spans_in_second > _CONNECTIONS_PER_SECOND_MAX:
            return
        note, reached = reader.note, reader.reached()
        tokens = reader.tail.tokens_between(note.start, reached)
        face = type(reader.ring.face).__name__.removesuffix("Face").lower()
        attributes = {
            **_connection(note.start, reached, tokens, reader.outcome, face),
            "midstream.connection.id": note.connection,
        }
        make_span = partial(self._make_span, reader.tail.stream_id, attributes, link, note.opened_at, closed_at)
        parent.add_done_callback(make_span)

    def _make_span(
        self,
        stream_id: str,
        attributes: Attributes,
        link: str,
        opened_at: float,
        closed_at: float,
        parent: asyncio.Task[str],
    ) -> None:
        span = self._traces.span("read", stream_id, attributes, parent=_result(parent), link=link, began_at=opened_at)
        span.end(at=closed_at)


def _connection(start: EventId, reached: EventId, tokens: int, outcome: str, face: str) -> Attributes:
    """Returns the attributes of a connection's span, named as in a receipt, with the face."""
    return {
        "midstream.from": _shown(start),
        "midstream.to": _shown(reached),
        "midstream.tokens": tokens,
        "midstream.outcome": outcome,
        "midstream.face": face,
    }


def _shown(cursor: EventId) -> str:
    return f"{cursor.attempt}-{max(0, cursor.offset)}"


def _result(parent: asyncio.Task[str]) -> str:
    return "" if parent.cancelled() else parent.result()
