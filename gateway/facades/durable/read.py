"""`GET` and `HEAD`: what stands in a stream now, and long-polls, which wait for more (sections 5.4 to 5.6)."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from gateway.facades.durable import answers, headers
from gateway.facades.durable.face import Form, form_of, joined
from gateway.facades.durable.found import Found, path_of
from gateway.facades.durable.headers import ReadQuery, Shape
from gateway.facades.durable.live import Live
from gateway.facades.durable.offsets import cursor_floor, cursor_now, event_id_of
from gateway.facades.durable.reading import Chunk
from gateway.facades.durable.services import DurableServices
from gateway.http.connection import Receive, Scope
from gateway.http.etags import is_known
from gateway.http.exchange import unless_disconnected
from shared.ids import BEGINNING, EventId

_LOOK_SECONDS = 1.0
"""How often a long-poll looks whether the gateway is about to stop."""


class Read:
    """Reads streams."""

    def __init__(self, services: DurableServices) -> None:
        self._services = services
        self._live = Live(services)

    async def __call__(self, scope: Scope, receive: Receive, send: Any) -> None:
        path = path_of(scope)
        if scope["method"] == "HEAD":
            answer = await self._services.finder.until_found(path, self._head)
            await answer(scope, receive, send)
            return
        query = headers.read_query_of(scope)
        if query.live == "sse":
            await self._live(path, query, scope, send)
            return
        place = None if query.offset == "now" else event_id_of("-1" if query.offset is None else query.offset)

        async def use(found: Found) -> Response | None:
            return await self._read(found, place, query, scope)

        reading = self._services.finder.until_found(path, use)
        if query.live:
            self._services.subscribe.take_place()
            waited = await unless_disconnected(receive, reading)
            if waited is None:
                return
            await waited(scope, receive, send)
            return
        await (await reading)(scope, receive, send)

    async def _head(self, found: Found) -> Response | None:
        """Returns the answer to HEAD."""
        tail = await self._services.reading.tail(found)
        if tail is None:
            return None
        answer_headers = answers.place_headers(tail.reached, tail.outcome)
        answer_headers |= {"content-type": _content_type(found), "x-stream-id": found.stream_id}
        written = found.written
        if written is not None and written.ttl_seconds is not None:
            answer_headers["stream-ttl"] = str(written.ttl_seconds)
        if written is not None and written.expires_at is not None:
            answer_headers["stream-expires-at"] = written.expires_at
        return answers.empty(200, {**answer_headers, "etag": _etag(found, BEGINNING, tail)})

    async def _read(self, found: Found, place: EventId | None, query: ReadQuery, scope: Scope) -> Response | None:
        """Returns the answer with what stands behind a place (None: nothing of what is there now)."""
        reading = self._services.reading
        chunk = await (reading.tail(found) if place is None else reading.after(found, place, query.shape))
        if chunk is None:
            return None
        self._services.finder.renew(found)
        if not query.live:
            if place is None:
                return answers.whole(
                    joined(form_of(found.written), ()),
                    _content_type(found),
                    answers.chunk_headers(chunk) | answers.NO_STORE,
                )
            return _answer(found, place, chunk, scope, query.shape)
        if not chunk.messages and not chunk.outcome:
            await self._until_more(found, chunk.reached)
            chunk = await reading.after(found, chunk.reached, query.shape)
            if chunk is None:
                return None
        cursor = {"stream-cursor": cursor_now(cursor_floor(query.cursor))}
        if chunk.messages:
            return _answer(found, place or BEGINNING, chunk, scope, query.shape, cursor)
        return answers.empty(204, answers.chunk_headers(chunk) | cursor)

    async def _until_more(self, found: Found, reached: EventId) -> None:
        """Returns when the stream has more than this, or has ended, or the time is up."""
        services, loop = self._services, asyncio.get_running_loop()
        until = loop.time() + services.settings.long_poll_seconds
        async with services.subscribe.ready(found.stream_id, None) as tail:
            while tail.last <= reached and tail.ended is None and not services.delivery.draining:
                left_seconds = until - loop.time()
                if left_seconds <= 0:
                    return
                try:
                    async with asyncio.timeout(min(left_seconds, _LOOK_SECONDS)):
                        await services.delivery.until_flushed(tail)
                except TimeoutError:
                    pass


def _answer(
    found: Found, place: EventId, chunk: Chunk, scope: Scope, shape: Shape, more: answers.HeaderFields | None = None
) -> Response:
    """Returns an answer with a chunk; 304 if the client has it already."""
    etag = _etag(found, place, chunk, shape)
    caching = {"cache-control": "private, no-cache", "etag": etag, **(more or {})}
    if is_known(scope["headers"], etag.encode()):
        return Response(status_code=304, headers=answers.chunk_headers(chunk) | caching)
    body = joined(form_of(found.written), chunk.messages)
    return answers.whole(body, _content_type(found), answers.chunk_headers(chunk) | caching)


def _content_type(found: Found) -> str:
    return (
        "application/json"
        if form_of(found.written) is Form.GENERATED or found.written is None
        else found.written.content_type
    )


def _etag(found: Found, place: EventId, chunk: Chunk, shape: Shape = "") -> str:
    closed, shown = ":closed" if chunk.outcome else "", f":{shape}" if shape else ""
    return f'"{found.stream_id}:{place}:{chunk.reached}{closed}{shown}"'
