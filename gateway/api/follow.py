"""From a stream's id to its terminal event, over one connection. A plain ASGI callable: the hot path.

which stream, from where ──► its tail is ready ──► 404, 410, 204, 503
                                    │
                                    ▼
              200, a comment and `retry:` at once ──► delivered to (gateway.delivery) until one side ends it
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.access.given_tokens import GivenTokens
from gateway.access.stream_readers import StreamReaders
from gateway.api.requests import prompt_request
from gateway.api.text import TEXT, TextSink, text_after
from gateway.delivery.delivery import Delivery
from gateway.delivery.reader import Reader
from gateway.faces import NATIVE, NDJSON, PROMPT, Face
from gateway.following.tail import Tail
from gateway.following.tails import Tails
from gateway.http import accept
from gateway.http.addresses import place
from gateway.http.connection import Connection, Receive, Scope, Send, Sink
from gateway.http.cursor import (
    BEGINNING_PLACE,
    Place,
    after_bytes_of,
    last_event_id,
    place_of,
    stream_and_place_of,
)
from gateway.http.etags import etag_of_end, is_known, not_modified
from gateway.http.exchange import query_of
from gateway.http.principal import require
from gateway.http.problems import Problem, not_found, stopping
from gateway.http.routes import OperationsOf, Route, route_for
from gateway.provider_models import ProviderModels
from gateway.streams.creation import NewStream
from gateway.streams.streams import Streams
from shared.events import Policies
from shared.ids import BEGINNING, FIRST_ID, EventId, is_stream_id
from shared.settings import Settings

operations = OperationsOf("gateway.api.operations")

_HEADERS = [
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
_VARY = (b"vary", b"accept")
_STREAM_PATH_HEAD, _CREATING_PATH = "/v1/streams/", "/stream"

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class FollowRequest:
    """Which stream a client is to be sent over its connection, in which form, and from where on."""

    stream_id: str
    face: Face
    place: Place = BEGINNING_PLACE
    headers: Headers = ()
    """Response headers in addition to those of every stream."""
    representation: str = ""
    """The name that makes the ETag of the whole of an ended stream; without one it has none."""
    first: bytes = b""
    """Stands before everything else in the body."""
    had: EventId | None = None
    """The last event that the client had before this response, if `first` has the events from there up to the place."""


class Subscribe:
    """The ways to follow a stream by a plain GET."""

    def __init__(
        self,
        streams: Streams,
        given_tokens: GivenTokens,
        tails: Tails,
        delivery: Delivery,
        models: ProviderModels,
        settings: Settings,
        stream_readers: StreamReaders,
    ) -> None:
        self._streams = streams
        self._given_tokens = given_tokens
        self._stream_readers = stream_readers
        self._placed: set[asyncio.Task[Any]] = set()
        """Requests that have a place among the readers of their stream, and do not follow yet."""
        self._tails = tails
        self._delivery = delivery
        self._models = models
        self._settings = settings
        self._coming: set[asyncio.Task[Any]] = set()
        """Requests that have taken a reader's place and do not follow yet: they wait for Redis, or for their own body."""
        self.routes = (
            Route("GET", "/v1/streams/{stream_id:path}/events", self.events, operations.EVENTS, "read"),
            Route("GET", "/v1/streams/{stream_id:path}/text", self.text, operations.TEXT_ONLY, "read"),
            Route("GET", _CREATING_PATH, self.prompt, operations.PROMPT, "read"),
        )

    def route(self, scope: Scope) -> Route | None:
        """The route of a request to follow a stream; None for everything else."""
        return route_for(self.routes, scope)

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /v1/streams/{id}/events`: as Server-Sent Events, lines of JSON, or text, whichever `Accept` prefers."""
        wanted = accept.preferred(scope)
        if wanted == accept.TEXT:
            await self.text(scope, receive, send)
            return
        stream_id, place = stream_of(scope), place_of(scope)
        face, kind = (NDJSON, "ndjson") if wanted == accept.NDJSON else (NATIVE, "sse")
        request = FollowRequest(stream_id, face, place, headers=(_VARY,), representation=kind)
        await self.follow(request, scope, send)

    async def text(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /v1/streams/{id}/text`: the text that stands, then what comes, and nothing else."""
        stream_id, place = stream_of(scope), place_of(scope)
        after_bytes = after_bytes_of(query_of(scope))
        self.take_place()
        history = await self._streams.history(stream_id)
        if history.ended and place.is_at(history.last):
            await _nothing_more(send)
            return
        reached = max(history.last, place.after or BEGINNING)
        if history.ended:
            reached = EventId(history.last.attempt, history.last.offset - 1)  # the reader is still to get the end
        first, had = b"", reached
        if not place.from_now:
            first, had, reached = text_after(history, place.after, after_bytes, reached)
        headers: Headers = (_VARY,)
        if history.status == "completed" and place == BEGINNING_PLACE and not after_bytes:
            etag = etag_of_end(history.last, "text")
            if is_known(scope["headers"], etag):
                await not_modified(send, etag, [*_HEADERS, _VARY])
                return
            headers = (_VARY, (b"etag", etag))
        request = FollowRequest(stream_id, TEXT, Place(reached), headers=headers, first=first, had=had)
        await self.follow(request, scope, send)

    async def prompt(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /stream?prompt=`: makes a stream, once, and follows it however often the browser comes back."""
        query = query_of(scope)
        last = last_event_id(scope, query)
        if last:
            stream_id, place = stream_and_place_of(last)
            await self.follow(FollowRequest(stream_id, PROMPT, place), scope, send)
            return
        prompt = query.get("prompt", "")
        if not prompt:
            raise Problem(400, "prompt is missing: GET /stream?prompt=...")
        if len(prompt.encode()) > self._settings.body_bytes_max:
            raise Problem(413, f"the prompt is longer than {self._settings.body_bytes_max} bytes")
        if scope["method"] == "HEAD":  # a safe method: nothing is generated (RFC 9110, section 9.2.1)
            await _whole_stream(b"", send)
            return
        require("create")
        as_cookie = query.get("cookie", "false")
        if as_cookie not in ("true", "false"):
            raise Problem(400, f"cookie must be true or false, not {as_cookie[:64]!r}")
        self.take_place()
        model = query.get("model") or await self._models.default()
        created = await self._streams.create(NewStream(prompt_request(prompt, model), Policies(), {}))
        stream_id = created["id"]
        # The browser must have an id before the first token, or a cut there would begin a second generation.
        accepted = orjson.dumps({"id": stream_id, "events_url": created["events_url"]})
        Connection.add_headers(
            send, self._given_tokens.headers(scope, stream_id, as_cookie=as_cookie == "true", path=_CREATING_PATH)
        )
        first = b"event: accepted\ndata: %b\nid: %b/%b\n\n" % (accepted, stream_id.encode(), bytes(FIRST_ID))
        try:
            await self.follow(FollowRequest(stream_id, PROMPT, first=first), scope, send)
        except Problem as problem:
            if problem.status != 503:
                raise
            # The stream is there. A client that did not get its id would come back for a second one.
            await _whole_stream(PROMPT.prelude(self._settings.retry_milliseconds) + first, send)

    async def follow(self, request: FollowRequest, scope: Scope, send: Send) -> None:
        """Answers a request with a stream. 204 when nothing is left of it and never will be. Raises Problem 404, 410, 429, 503."""
        face, place, headers = request.face, request.place, request.headers
        async with self.ready(request.stream_id, face, place) as tail:
            if place.is_at(tail.end_for(face), tail.ended):
                await _nothing_more(send)
                return
            if request.representation and tail.ended is not None and place == BEGINNING_PLACE:
                etag = etag_of_end(tail.ended, request.representation)
                if is_known(scope["headers"], etag):
                    await not_modified(send, etag, [*_HEADERS, *headers])
                    return
                headers = (*headers, (b"etag", etag))
            connection = Connection.of(scope)
            reader = self.reader(tail, face, connection, place)
            reader.had = request.had or reader.cursor
            if face is TEXT:
                reader.sink = TextSink(connection, reader)
            head = [(b"content-type", face.media_type), *_HEADERS, *headers]
            prelude = face.prelude(self._settings.retry_milliseconds) + request.first
            if connection.open(send, reader, head, prelude):
                self.begin(reader)

    @contextlib.asynccontextmanager
    async def ready(self, stream_id: str, face: Face | None, place: Place = BEGINNING_PLACE) -> AsyncIterator[Tail]:
        """The tail of a stream, when its log has been read. Raises Problem 404, 410, 429, 503."""
        self.take_place()
        with self.holding(stream_id, face, place) as tail:
            await self._streams.check_owner(stream_id)  # meanwhile the tail is read
            if not tail.is_ready:
                async with self._streams.log_read_in_time(stream_id):
                    await tail.until_ready()
            if not tail.exists and await self._streams.brought_back(stream_id):
                async with self._streams.log_read_in_time(stream_id):
                    await self._tails.read_anew(tail)
            if not tail.exists:
                raise self._streams.missing(stream_id)
            async with self._place_at(stream_id):
                yield tail

    @contextlib.asynccontextmanager
    async def _place_at(self, stream_id: str) -> AsyncIterator[None]:
        """Takes a place among the readers of a stream, where those are limited; gives it back unless `begin` was called.

        Raises Problem 429, 503.
        """
        task = asyncio.current_task()
        assert task is not None
        if await self._streams.answered(self._stream_readers.enter, stream_id):
            self._placed.add(task)
        try:
            yield
        finally:
            if task in self._placed:
                self._placed.discard(task)
                self._stream_readers.left(stream_id)

    def reader(self, tail: Tail, face: Face, sink: Sink, place: Place) -> Reader:
        """A reader of a tail that is held, from a place on."""
        return Reader(self._delivery, tail, tail.open_ring(face), sink, place.first_cursor(tail.last, tail.ended))

    def begin(self, reader: Reader) -> None:
        """Delivers to a reader whose response has begun, until one side ends it."""
        task = asyncio.current_task()
        self._coming.discard(task)
        reader.has_place = task in self._placed
        self._placed.discard(task)
        reader.place = place.get()
        if reader.place is not None:
            reader.place.outlives_request = True
        self._delivery.attach(reader)

    @contextlib.contextmanager
    def holding(self, stream_id: str, face: Face | None, place: Place = BEGINNING_PLACE) -> Iterator[Tail]:
        """The stream's tail with a ring of this face, for a request that does not follow yet but counts as a reader."""
        tail = self._tails.hold(stream_id, face, place.after or BEGINNING)
        try:
            yield tail
        finally:
            tail.release()

    async def until_begun(self, tail: Tail, wait_seconds: float) -> bool:
        """Waits until a tail that is held has its answer's first increment or its end; False when the time is up."""
        try:
            async with asyncio.timeout(wait_seconds):
                await tail.until_ready()
                while tail.exists and not tail.begun:
                    await self._delivery.until_flushed(tail)
        except TimeoutError:
            pass
        return tail.begun

    def take_place(self) -> None:
        """Takes a reader's place for the request of this task, before it waits for anything. Raises Problem 503.

        The place is kept until the request follows or its task ends. Taking it again has no effect.
        """
        task = asyncio.current_task()
        assert task is not None
        if task in self._coming:
            return
        if self._delivery.draining:
            raise stopping()
        if self._delivery.readers + len(self._coming) >= self._settings.connections_max:
            raise Problem(503, "this gateway has as many readers as it may have", retry_after_seconds=2)
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)


async def _whole_stream(body: bytes, send: Send) -> None:
    """Answers with an event stream that ends at once."""
    head = [(b"content-type", PROMPT.media_type), *_HEADERS]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def _nothing_more(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": [(b"cache-control", b"no-store")]})
    await send({"type": "http.response.body", "body": b""})


def stream_of(scope: Scope) -> str:
    """The stream that a path like `/v1/streams/{id}/events` names. Raises Problem 404."""
    stream_id: str = scope["path"][len(_STREAM_PATH_HEAD) :].rpartition("/")[0]
    if not is_stream_id(stream_id):
        raise not_found()
    return stream_id
