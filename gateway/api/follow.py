"""From a stream's id to its terminal event, over one connection. A plain ASGI callable: the hot path.

which stream, from where ──► its tail is ready ──► 404, 410, 204, 503
                                    │
                                    ▼
              200, a comment and `retry:` at once ──► delivered to (gateway.readers) until one side ends it
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import orjson

from gateway.api.requests import prompt_request
from gateway.api.text import TEXT, TextSink, text_after
from gateway.delivery.delivery import Delivery
from gateway.delivery.reader import Reader
from gateway.faces import NATIVE, NDJSON, PROMPT, Face
from gateway.following.tail import Tail
from gateway.following.tails import Tails
from gateway.http import accept
from gateway.http.connection import Connection, Receive, Scope, Send, Sink
from gateway.http.etags import etag_of_end, is_known, not_modified
from gateway.http.exchange import last_event_id, query_of
from gateway.http.problems import Problem, not_found, stopping
from gateway.streams import Streams
from shared.errors import MalformedId
from shared.events import Policies
from shared.ids import BEGINNING, FIRST_ID, EventId, is_stream_id
from shared.settings import Settings

_HEADERS = [
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
_VARY = (b"vary", b"accept")
_STREAM_PATH_HEAD, _EVENTS_PATH_TAIL, _TEXT_PATH_TAIL = "/v1/streams/", "/events", "/text"
_PROMPT_PATH = "/stream"
_AFTER_BYTES_DIGITS_MAX = 12


class Subscribe:
    """The ways to follow a stream that need nothing but a GET."""

    def __init__(self, streams: Streams, tails: Tails, delivery: Delivery, settings: Settings) -> None:
        self._streams = streams
        self._tails = tails
        self._delivery = delivery
        self._settings = settings
        self._coming: set[asyncio.Task[Any]] = set()
        """Requests that have a reader's place and do not follow yet: they wait for Redis, or for their own body."""

    def route(self, scope: Scope) -> Callable[[Scope, Receive, Send], Awaitable[None]] | None:
        """The handler for a request of the hot path; None for everything else."""
        if scope["type"] != "http" or scope["method"] != "GET":
            return None
        path: str = scope["path"]
        if path.startswith(_STREAM_PATH_HEAD):
            if path.endswith(_EVENTS_PATH_TAIL):
                return self.events
            if path.endswith(_TEXT_PATH_TAIL):
                return self.text
        return self.prompt if path == _PROMPT_PATH else None

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /v1/streams/{id}/events`: as Server-Sent Events, lines of JSON, or text, as the client likes it best."""
        wanted = accept.preferred(scope)
        if wanted == accept.TEXT:
            await self.text(scope, receive, send)
            return
        stream_id = stream_of(scope)
        cursor, at_tail = place_of(scope)
        face, kind = (NDJSON, "ndjson") if wanted == accept.NDJSON else (NATIVE, "sse")
        await self.follow(stream_id, cursor, face, scope, send, at_tail=at_tail, headers=(_VARY,), representation=kind)

    async def text(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /v1/streams/{id}/text`: nothing but the text that stands, and what comes."""
        stream_id = stream_of(scope)
        cursor, at_tail = place_of(scope)
        after_bytes = _after_bytes(query_of(scope).get("after_bytes", ""))
        self.take_place()
        history = await self._streams.history(stream_id)
        if cursor is not None and history.ended and cursor >= history.last:
            await _nothing_more(send)
            return
        reached = max(history.last, cursor or BEGINNING)
        if history.ended:
            reached = EventId(history.last.attempt, history.last.offset - 1)  # so that its end is seen
        first, had = b"", reached
        if not at_tail:
            first, had, reached = text_after(history, cursor, after_bytes, reached)
        headers = [_VARY]
        if history.status == "completed" and cursor is None and not after_bytes and not at_tail:
            etag = etag_of_end(history.last, "text")
            if is_known(scope["headers"], etag):
                await not_modified(send, etag, [*_HEADERS, _VARY])
                return
            headers.append((b"etag", etag))
        await self.follow(stream_id, reached, TEXT, scope, send, first=first, headers=tuple(headers), had=had)

    async def prompt(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /stream?prompt=`: makes a stream, once, and follows it however often the browser comes back."""
        query = query_of(scope)
        last = last_event_id(scope, query)
        if last:
            stream_id, _, event_id = last.rpartition("/")
            cursor = cursor_of(event_id)
            if not is_stream_id(stream_id):
                raise Problem(400, f"{last[:80]!r} is not an event id of this endpoint: <stream id>/<attempt>-<offset>")
            await self.follow(stream_id, cursor, PROMPT, scope, send)
            return
        prompt = query.get("prompt", "")
        if not prompt:
            raise Problem(400, "prompt is missing: GET /stream?prompt=...")
        if len(prompt.encode()) > self._settings.body_bytes_max:
            raise Problem(413, f"the prompt is longer than {self._settings.body_bytes_max} bytes")
        self.take_place()
        model = query.get("model") or self._settings.default_model
        created = await self._streams.create(prompt_request(prompt, model), Policies(), {})
        stream_id = created["id"]
        # The browser must have an id before the first token, or a cut there would begin a second generation.
        told = orjson.dumps({"id": stream_id, "events_url": created["events_url"]})
        first = b"id: %b/%b\nevent: accepted\ndata: %b\n\n" % (stream_id.encode(), bytes(FIRST_ID), told)
        await self.follow(stream_id, None, PROMPT, scope, send, first=first)

    async def follow(
        self,
        stream_id: str,
        cursor: EventId | None,
        face: Face,
        scope: Scope,
        send: Send,
        *,
        at_tail: bool = False,
        first: bytes = b"",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        representation: str = "",
        had: EventId | None = None,
    ) -> None:
        """Answer a request with a stream from after `cursor` on; `first` stands before all of it.

        `had` is what the client has where `first` has the events from there up to the cursor. With the name of a
        `representation`, the whole of an ended stream has an ETag. Answers 204 when there is nothing after the cursor and
        never will be. Raises Problem 404, 410, 503.
        """
        async with self.ready(stream_id, face, cursor) as tail:
            end = tail.end_for(face)
            if cursor is not None and end is not None and cursor >= end:
                await _nothing_more(send)
                return
            if representation and tail.ended is not None and cursor is None and not at_tail:
                etag = etag_of_end(tail.ended, representation)
                if is_known(scope["headers"], etag):
                    await not_modified(send, etag, [*_HEADERS, *headers])
                    return
                headers = (*headers, (b"etag", etag))
            connection = Connection.of(scope)
            reader = self.reader(tail, face, connection, cursor, at_tail=at_tail)
            reader.had = had or reader.cursor
            if face is TEXT:
                reader.sink = TextSink(connection, reader)
            head = [(b"content-type", face.media_type), *_HEADERS, *headers]
            hello = face.prelude(self._settings.retry_milliseconds) + first
            if connection.open(send, reader, head, hello):
                self.begin(reader)

    @contextlib.asynccontextmanager
    async def ready(self, stream_id: str, face: Face, cursor: EventId | None = None) -> AsyncIterator[Tail]:
        """The tail of a stream that exists, as far as its log goes. Raises Problem 404, 410, 503."""
        self.take_place()
        with self.holding(stream_id, face, cursor) as tail:
            if not tail.ready.done():
                try:
                    async with asyncio.timeout(self._settings.redis_wait_seconds):
                        await asyncio.shield(tail.ready)
                except TimeoutError:
                    raise await self._streams.why_not_read(stream_id) from None
            if not tail.exists:
                raise self._streams.missing(stream_id)
            yield tail

    def reader(self, tail: Tail, face: Face, sink: Sink, cursor: EventId | None, *, at_tail: bool) -> Reader:
        """A reader of a tail that is held, from after `cursor` on; at its tail, if that is wanted."""
        if at_tail:
            cursor = _just_before_the_end(tail)
        return Reader(self._delivery, tail, tail.open_ring(face), sink, cursor or BEGINNING)

    def begin(self, reader: Reader) -> None:
        """Deliver to a reader whose response has begun, until one side ends it."""
        self._coming.discard(asyncio.current_task())
        self._delivery.attach(reader)

    @contextlib.contextmanager
    def holding(self, stream_id: str, face: Face, cursor: EventId | None = None) -> Iterator[Tail]:
        """The stream's tail and its ring of this face, for a request that is not yet followed. It counts as a reader."""
        tail = self._tails.hold(stream_id, face, cursor or BEGINNING)
        try:
            yield tail
        finally:
            tail.release()

    async def until_begun(self, tail: Tail, wait_seconds: float) -> bool:
        """Wait until a tail that is held has its answer's first increment or its end; False when the time is up."""
        try:
            async with asyncio.timeout(wait_seconds):
                await asyncio.shield(tail.ready)
                while tail.exists and not tail.begun:
                    await self._delivery.until_flushed(tail)
        except TimeoutError:
            pass
        return tail.begun

    def take_place(self) -> None:
        """Take a reader's place for the request of this task, before anything is waited for. Raises Problem 503.

        It is the request's until it follows or its task ends; to take it twice is to have it once.
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


def _just_before_the_end(tail: Tail) -> EventId:
    """Where `from=now` begins: at the newest event, or, when the stream has ended, so that its end is seen."""
    if tail.ended is None:
        return tail.last
    return EventId(tail.ended.attempt, tail.ended.offset - 1)


async def _nothing_more(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": [(b"cache-control", b"no-store")]})
    await send({"type": "http.response.body", "body": b""})


def stream_of(scope: Scope) -> str:
    """The stream that a path like `/v1/streams/{id}/events` names. Raises Problem 404."""
    stream_id: str = scope["path"][len(_STREAM_PATH_HEAD) :].rpartition("/")[0]
    if not is_stream_id(stream_id):
        raise not_found()
    return stream_id


def place_of(scope: Scope) -> tuple[EventId | None, bool]:
    """Where a reader wants to go on: after which id (None: at the beginning), or at the tail. Raises Problem 400."""
    query = query_of(scope)
    cursor = cursor_of(last_event_id(scope, query))
    place = query.get("from")
    if place not in (None, "now"):
        raise Problem(400, f"from must be now, not {place[:64]!r}; leave it out to begin at the beginning")
    return cursor, place == "now" and cursor is None


def _after_bytes(told: str) -> int:
    if not told:
        return 0
    if not (told.isascii() and told.isdigit()) or len(told) > _AFTER_BYTES_DIGITS_MAX:
        raise Problem(400, f"after_bytes must be how many bytes of the text you have, not {told[:64]!r}")
    return int(told)


def cursor_of(text: str) -> EventId | None:
    """The id that a reader sent, None if it sent none. Raises Problem 400."""
    if not text:
        return None
    try:
        return EventId.parse(text)
    except MalformedId as error:
        raise Problem(400, str(error)) from None
