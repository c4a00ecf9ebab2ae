"""`GET …&live=sse`: what stands in a stream, then what comes, as Server-Sent Events (section 5.7).

From here on a reader is one of many (`gateway.delivery`): nothing of this API stands between its stream's tail and its socket,
but for the face that frames what is sent.
"""

from __future__ import annotations

from typing import Any

from gateway.facades.durable.face import DurableFace, Form, face_of
from gateway.facades.durable.found import Found
from gateway.facades.durable.headers import ReadQuery
from gateway.facades.durable.offsets import cursor_floor, event_id_of
from gateway.facades.durable.services import DurableServices
from gateway.faces import End
from gateway.http.connection import Connection, Scope
from gateway.http.cursor import Place
from shared.events import Event

_HEADERS = [(b"cache-control", b"no-cache, no-transform"), (b"x-accel-buffering", b"no")]


class Live:
    """Sends streams as they grow."""

    def __init__(self, services: DurableServices) -> None:
        self._services = services

    async def __call__(self, path: str, query: ReadQuery, scope: Scope, send: Any) -> None:
        from_now = query.offset == "now"
        place = Place(
            None if from_now else event_id_of("-1" if query.offset is None else query.offset), from_now=from_now
        )
        floor = cursor_floor(query.cursor)

        async def use(found: Found) -> bool | None:
            await self._follow(found, face_of(found.written, query.shape, floor), place, scope, send)
            return True

        await self._services.finder.until_found(path, use)

    async def _follow(self, found: Found, face: DurableFace, place: Place, scope: Scope, send: Any) -> None:
        """Answers with the stream from a place on. Raises Problem 404, 410, 503."""
        subscribe = self._services.subscribe
        async with subscribe.ready(found.stream_id, face, place) as tail:
            found.has_ended = tail.ended is not None
            self._services.finder.renew(found)
            head = [(b"content-type", face.media_type), *_HEADERS]
            if face.form is Form.BYTES:
                head.append((b"stream-sse-data-encoding", b"base64"))
            if place.is_at(tail.end_for(face), tail.ended) and tail.ended is not None:
                # It has all, also the end: of a generated answer, whose end is a message.
                end = End.of(Event(tail.ended, tail.ended_as, b""))
                await send({"type": "http.response.start", "status": 200, "headers": head})
                await send({"type": "http.response.body", "body": face.frame((end,), tail.ended, is_newest=True)})
                return
            reader = subscribe.reader(tail, face, Connection.of(scope), place)
            if Connection.of(scope).open(send, reader, head, b""):
                subscribe.begin(reader)
