"""`PUT`: makes a stream, or finds that it is there already (section 5.1)."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway import metrics
from gateway.facades.durable import answers, headers
from gateway.facades.durable.append import ended_by, messages_of
from gateway.facades.durable.found import Found, path_of
from gateway.facades.durable.services import DurableServices
from gateway.http.bodies import received
from gateway.http.connection import Receive, Scope
from gateway.http.principal import principal
from gateway.http.problems import Problem, full
from shared.errors import LogFull
from shared.ids import is_stream_id, new_stream_id
from shared.keys import name_digest
from shared.logs import outcome, request_id
from shared.tracing import traceparent
from shared.written_log import Messages, WrittenStream

logger = logging.getLogger(__name__)

_TRIES_MAX = 4
"""A name may come to point elsewhere while a stream for it is made: another gateway was faster, or deleted that stream again."""


class Create:
    """Makes written streams."""

    def __init__(self, services: DurableServices) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Any) -> None:
        services, settings = self._services, self._services.settings
        path, fields = path_of(scope), headers.headers_of(scope)
        if is_stream_id(path):
            raise Problem(
                405, "this path is the id of a stream, which cannot be chosen: take another path", headers=_ALLOW
            )
        if "stream-forked-from" in fields:
            raise Problem(501, "streams cannot be forked here")
        life = headers.life_of(fields, settings.written_life_seconds_max)
        content_type = headers.content_type_of(fields)
        end = ended_by(fields) if headers.closes(fields) else None
        async with received(Request(scope, receive), settings.append_bytes_max) as body:
            stream = _stream(path, content_type, life, settings.log_ttl_seconds)
            stream = dataclasses.replace(stream, webhook=services.streams.webhook_of(fields.get("x-midstream-webhook")))
            messages = messages_of(stream.media_type, body)
        for _ in range(_TRIES_MAX):
            points_to, found = await services.finder.look(path, to_create=True)
            if found is not None:
                answer = await self._existing(found, stream, is_closed=end is not None)
            else:
                answer = await self._new(path, points_to, stream, messages, end, life, scope)
            if answer is not None:
                stream_id = answer.headers["x-stream-id"]
                answer.raw_headers += self._services.given_tokens.headers(scope, stream_id, as_cookie=False)
                await answer(scope, receive, send)
                return
        raise Problem(503, "this name is being made and deleted by others; try again", retry_after_seconds=1)

    async def _existing(self, found: Found, wanted: WrittenStream, *, is_closed: bool) -> Response | None:
        """Returns the answer for a name that points to a stream; None if its log is gone."""
        tail = await self._services.reading.tail(found)
        if tail is None:
            return None
        there = found.written
        differs = [] if there is not None else ["it is a generated answer"]
        if there is not None:
            if there.media_type != wanted.media_type:
                differs.append(f"its Content-Type is {there.content_type}")
            if (there.ttl_seconds, there.expires_at) != (wanted.ttl_seconds, wanted.expires_at):
                differs.append("it lives for another time")
            if bool(tail.outcome) != is_closed:
                differs.append("it is closed" if tail.outcome else "it is not closed")
        if there is None or differs:
            raise Problem(409, f"there is a stream at this path already, and {', '.join(differs)}")
        answer_headers = {"content-type": there.content_type, "x-stream-id": found.stream_id}
        return answers.empty(200, {**answer_headers, **answers.place_headers(tail.reached, tail.outcome)})

    async def _new(
        self,
        path: str,
        before: str,
        stream: WrittenStream,
        messages: Messages,
        end: tuple[bytes, bytes] | None,
        life: headers.Life,
        scope: Scope,
    ) -> Response | None:
        """Makes the stream and lets the name point to it, which points to `before`, a stream that is gone, or to none.

        None if the name points elsewhere meanwhile.
        """
        services, owner, stream_id = self._services, stream.owner, stream.stream_id
        lives_ms = stream.life_ms or max(1, life.expires_at_ms - int(time.time() * 1000))
        answered = services.streams.answered
        try:
            await services.quotas.admit(stream, lives_ms, len(messages.value))
            if stream.webhook is not None:
                await services.streams.enter_webhook(stream_id)
            if end is not None or not stream.has_own_life:
                await services.streams.enter(stream_id)
            await answered(
                services.log.create,
                stream,
                messages,
                end,
                expires_at_ms=life.expires_at_ms,
                request_id=request_id.get(),
                traceparent=traceparent.get(),
            )
            points_to = await answered(
                services.names.point, owner, path, before=before, after=stream_id, life_ms=lives_ms
            )
        except LogFull:
            raise full() from None
        if points_to != stream_id:
            await answered(services.event_log.delete, stream_id)
            await services.quotas.forget(stream)
            return None
        found = Found(stream_id, stream, path, time.monotonic(), len(messages.value), end is not None)
        if found.has_ended:
            services.streams.look_soon(stream_id)
        services.finder.remember(path, found)
        metrics.created("durable")
        logger.info("stream %s: created", stream_id, extra=outcome("created", stream_id, api="durable", model=None))
        tail = await services.reading.tail(found)
        answer_headers = {
            "content-type": stream.content_type,
            "location": answers.location_of(scope, services.settings.path_prefix),
            "x-stream-id": stream_id,
        }
        place = answers.place_headers(tail.reached, tail.outcome) if tail is not None else {}
        return answers.empty(201, {**answer_headers, **place})


_ALLOW = {"allow": "GET, HEAD, DELETE"}


def _stream(path: str, content_type: str, life: headers.Life, default_life_seconds: int) -> WrittenStream:
    """Returns a new stream of the principal."""
    life_ms = 0
    if life.expires_at is None:
        seconds = default_life_seconds if life.ttl_seconds is None else life.ttl_seconds
        life_ms = max(1, seconds * 1000)
    owner = principal.get().name
    digest = name_digest(owner, path)
    return WrittenStream(new_stream_id(), owner, content_type, life.ttl_seconds, life.expires_at, life_ms, digest)
