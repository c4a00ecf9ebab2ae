"""From a stream's id to its terminal event, over one connection. A plain ASGI callable: the hot path.

which stream, from where ──► its tail is ready ──► 404, 410, 204, 503
                                    │
                                    ▼
              200, a comment and `retry:` at once ──► delivered to (gateway.readers) until one side ends it
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

import orjson

from gateway.connection import Connection, Receive, Scope, Send
from gateway.faces import NATIVE, PROMPT, Face
from gateway.problems import Problem, away, not_found, stopping
from gateway.readers import Delivery, Reader
from gateway.requests import prompt_request
from gateway.streams import Streams
from gateway.tail import Tail, Tails
from shared.errors import MalformedId
from shared.events import Policies
from shared.ids import ACCEPTED, BEGINNING, EventId, is_stream_id
from shared.settings import Settings

_HEADERS = [
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
_EVENTS_PATH_HEAD, _EVENTS_PATH_TAIL = "/v1/streams/", "/events"
_PROMPT_PATH = "/stream"


class Subscribe:
    """The two ways to follow a stream."""

    def __init__(self, streams: Streams, tails: Tails, delivery: Delivery, settings: Settings) -> None:
        self._streams = streams
        self._tails = tails
        self._delivery = delivery
        self._settings = settings

    def route(self, scope: Scope) -> Callable[[Scope, Receive, Send], Awaitable[None]] | None:
        """The handler for a request of the hot path; None for everything else."""
        if scope["type"] != "http" or scope["method"] != "GET":
            return None
        path: str = scope["path"]
        if path.endswith(_EVENTS_PATH_TAIL) and path.startswith(_EVENTS_PATH_HEAD):
            return self.events
        return self.prompt if path == _PROMPT_PATH else None

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /v1/streams/{id}/events`"""
        stream_id = scope["path"][len(_EVENTS_PATH_HEAD) : -len(_EVENTS_PATH_TAIL)]
        query = _query(scope)
        if not is_stream_id(stream_id):
            raise not_found()
        cursor = _cursor(_last_event_id(scope, query))
        at_tail = query.get("from")
        if at_tail not in (None, "now"):
            raise Problem(400, f"from must be now, not {at_tail[:64]!r}; leave it out to begin at the beginning")
        await self.follow(stream_id, cursor, NATIVE, scope, send, at_tail=at_tail == "now" and cursor is None)

    async def prompt(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /stream?prompt=`: makes a stream, once, and follows it however often the browser comes back."""
        query = _query(scope)
        last = _last_event_id(scope, query)
        if last:
            stream_id, _, event_id = last.rpartition("/")
            cursor = _cursor(event_id)
            if not is_stream_id(stream_id):
                raise Problem(400, f"{last[:80]!r} is not an event id of this endpoint: <stream id>/<attempt>-<offset>")
            await self.follow(stream_id, cursor, PROMPT, scope, send)
            return
        prompt = query.get("prompt", "")
        if not prompt:
            raise Problem(400, "prompt is missing: GET /stream?prompt=...")
        if len(prompt.encode()) > self._settings.body_bytes_max:
            raise Problem(413, f"the prompt is longer than {self._settings.body_bytes_max} bytes")
        self.refuse_if_full()
        model = query.get("model") or self._settings.default_model
        created = await self._streams.create(prompt_request(prompt, model), Policies(), {})
        stream_id = created["id"]
        # The browser must have an id before the first token, or a cut there would begin a second generation.
        told = orjson.dumps({"id": stream_id, "events_url": created["events_url"]})
        first = b"id: %b/%b\nevent: accepted\ndata: %b\n\n" % (stream_id.encode(), bytes(ACCEPTED), told)
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
    ) -> None:
        """Answer a request with a stream from after `cursor` on; `first` stands before all of it.

        Raises Problem 404, 410, 503; answers 204 when there is nothing after the cursor and never will be.
        """
        self.refuse_if_full()
        tail = self._tails.hold(stream_id, face)
        try:
            try:
                async with asyncio.timeout(self._settings.redis_wait_seconds):
                    await asyncio.shield(tail.ready)
            except TimeoutError:
                raise away() from None
            if not tail.exists:
                raise self._streams.missing(stream_id)
            if cursor is not None and tail.ended is not None and cursor >= tail.ended:
                await send({"type": "http.response.start", "status": 204, "headers": [(b"cache-control", b"no-store")]})
                await send({"type": "http.response.body", "body": b""})
                return
            if at_tail:
                cursor = _just_before_the_end(tail)
            connection = Connection.of(scope)
            reader = Reader(self._delivery, tail, tail.open_ring(face), connection, cursor or BEGINNING)
            head = [(b"content-type", face.media_type), *_HEADERS, *headers]
            hello = face.keep_alive + face.farewell(self._settings.retry_milliseconds) + first
            if connection.open(send, reader, head, hello):
                tail.holders += 1  # the reader's own, until it is detached
                self._delivery.attach(reader)
        finally:
            self._tails.release(tail)

    def refuse_if_full(self) -> None:
        """Raises Problem 503."""
        if self._delivery.draining:
            raise stopping()
        if self._delivery.readers >= self._settings.connections_max:
            raise Problem(503, "this gateway has as many readers as it may have", retry_after_seconds=2)


def _just_before_the_end(tail: Tail) -> EventId:
    """Where `from=now` begins: at the newest event, or, when the stream has ended, so that its end is seen."""
    if tail.ended is None:
        return tail.last
    return EventId(tail.ended.attempt, tail.ended.offset - 1)


def _query(scope: Scope) -> dict[str, str]:
    """The query's parameters, the last of each name."""
    try:
        parsed = parse_qs(
            scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=64
        )
    except ValueError:  # UnicodeDecodeError is one
        raise Problem(400, "the query is not percent-encoded UTF-8") from None
    return {name: values[-1] for name, values in parsed.items()}


def _last_event_id(scope: Scope, query: dict[str, str]) -> str:
    for name, value in scope["headers"]:
        if name == b"last-event-id" and value:
            return str(value.decode("latin-1")).strip()
    return query.get("last_event_id", "").strip()


def _cursor(text: str) -> EventId | None:
    if not text:
        return None
    try:
        return EventId.parse(text)
    except MalformedId as error:
        raise Problem(400, str(error)) from None
