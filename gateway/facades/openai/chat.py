"""`POST /v1/chat/completions`, streaming and not, and `GET /v1/chat/completions/{id}/events`, which resumes a stream.

streaming:      create ─► wait up to 5 s for the first delta or the end ─► failed: the provider's status
                                        │
                                        ▼ else
                          200, and followed like any other stream, in OpenAI's chunks
not streaming:  create ─► wait for the end ─► one object, or the provider's status
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.follow import FollowRequest
from gateway.api.requests import ChatRequest, check_chat, check_idempotency_key, owner_in
from gateway.facades.facade import Facade, FacadeServices
from gateway.facades.openai.chat_chunks import ChatFace, chat_cursor, chat_face, resumed_chat_face, stream_id_of
from gateway.facades.openai.chat_whole import completion
from gateway.facades.openai.errors import cancelled_problem, failure_problem
from gateway.http.bodies import parse_body, received
from gateway.http.connection import Connection, Scope
from gateway.http.cursor import Place, last_event_id
from gateway.http.exchange import json_response, query_of, unless_disconnected
from gateway.http.principal import act_for
from gateway.http.problems import Problem, not_found
from gateway.http.routes import OperationsOf, Route
from gateway.http.whole_bodies import made
from gateway.streams.creation import NewStream
from shared.errors import Unreadable
from shared.events import DONE
from shared.ids import EventId, is_stream_id
from shared.lifecycle import History

operations = OperationsOf("gateway.facades.openai.operations")

_PATH = "/v1/chat/completions"
_EVENTS_PATH_TAIL = "/events"
_STREAM_ID = b"x-stream-id"
_HEAD_SECONDS_MAX = 5.0
"""A streaming response begins after so long at the latest. Until then a provider's refusal can be answered with its status;
the attempts that a worker makes by default fit in. Then comments keep it alive: proxies wait for 30 s or more."""


class ChatCompletions(Facade):
    """OpenAI's Chat Completions API."""

    def __init__(self, services: FacadeServices) -> None:
        super().__init__(services)
        self.routes = (
            Route("POST", _PATH, self.create, operations.CREATE_CHAT, "create"),
            Route(
                "GET", _PATH + "/{completion_id:path}" + _EVENTS_PATH_TAIL, self.events, operations.CHAT_EVENTS, "read"
            ),
        )

    async def create(self, scope: Scope, receive: Any, send: Any) -> None:
        """`POST /v1/chat/completions`"""
        self._subscribe.take_place()
        stream_id, face, as_cookie = await self._created(Request(scope, receive))
        # An error has these headers too: the events before it can be read from that stream.
        given = self._given_tokens.headers(scope, stream_id, as_cookie=as_cookie)
        Connection.add_headers(send, [(_STREAM_ID, stream_id.encode()), *given])
        if face is not None:
            await self._stream(stream_id, face, scope, receive, send)
        else:
            await self._whole(stream_id, scope, receive, send)

    async def events(self, scope: Scope, receive: Any, send: Any) -> None:
        """`GET /v1/chat/completions/{id}/events`"""
        stream_id = stream_id_of(scope["path"][len(_PATH) + 1 : -len(_EVENTS_PATH_TAIL)])
        if not is_stream_id(stream_id):
            raise not_found()
        cursor, pieces = chat_cursor(last_event_id(scope, query_of(scope)))
        try:
            face = resumed_chat_face(await self._streams.accepted(stream_id))
        except Unreadable:
            face = resumed_chat_face(None)
        Connection.add_headers(send, [(_STREAM_ID, stream_id.encode())])
        if cursor is not None and pieces:
            await (await self._rest_of_the_end(stream_id, face, cursor, pieces))(scope, receive, send)
        else:
            await self._subscribe.follow(FollowRequest(stream_id, face, Place(cursor)), scope, send)

    # --- helpers

    async def _created(self, request: Request) -> tuple[str, ChatFace | None, bool]:
        """Creates a stream. Returns its id, the face for its client (None for one that wants the whole answer at once), and
        whether the client wants a cookie.

        Nothing else of the request, which may be large, stays in memory while the answer is generated.
        """
        async with received(request, self._settings.body_bytes_max) as body:
            parsed = parse_body(body)
            chat = check_chat(parsed, request.headers, await self._models.default_for(parsed))
            act_for(owner_in(parsed))
            key = check_idempotency_key(request.headers)
            facade = {"api": "chat", "include_usage": chat.include_usage}
            created = await self._streams.create(NewStream(chat.generation, chat.policies, chat.metadata, key, facade))
            return created["id"], _face_of(chat), chat.cookie

    async def _stream(self, stream_id: str, face: ChatFace, scope: Scope, receive: Any, send: Any) -> None:
        with self._subscribe.holding(stream_id, face) as tail:
            begun = await unless_disconnected(receive, self._subscribe.until_begun(tail, _HEAD_SECONDS_MAX))
            if begun is None:
                return  # the client has left
            if tail.ended is not None and tail.ended_as != DONE:
                history = await self._streams.history(stream_id)
                if not history.items:
                    raise _problem_of(history)
            await self._subscribe.follow(FollowRequest(stream_id, face), scope, send)

    async def _whole(self, stream_id: str, scope: Scope, receive: Any, send: Any) -> None:
        began_at = time.time()
        history = await unless_disconnected(receive, self._at_its_end(stream_id))
        if history is None:
            return  # the client has left
        if history.status != "completed":
            raise _problem_of(history)
        body = await made(history.size_bytes, partial(_encoded, stream_id, history))
        last = history.last
        del history  # while the body is sent only its bytes stay in memory
        await json_response(body)(scope, receive, send)
        await self._streams.note_delivered(stream_id, last, began_at)

    async def _at_its_end(self, stream_id: str) -> History:
        await self._streams.until_ended(stream_id, self._settings.log_ttl_seconds)  # no answer lives longer
        return await self._streams.history(stream_id)

    async def _rest_of_the_end(self, stream_id: str, face: ChatFace, cursor: EventId, pieces: int) -> Response:
        """Returns the pieces of the end after the first `pieces`, for a client cut off between the last chunk and `[DONE]`.

        Raises Problem 400.
        """
        history = await self._streams.history(stream_id)
        if history.status != "completed" or history.last != cursor or history.terminal is None:
            raise Problem(400, f"{cursor}.{pieces} is not an event of this stream", param="last_event_id")
        rest = b"".join(face.encoder(stream_id).end(cursor, history.terminal)[pieces:])
        return Response(rest, headers={"content-type": face.media_type.decode(), "cache-control": "no-store"})


def _face_of(chat: ChatRequest) -> ChatFace | None:
    return chat_face(chat.generation, chat.policies, chat.include_usage) if chat.streams else None


def _encoded(stream_id: str, history: History) -> bytes:
    return orjson.dumps(completion(stream_id, history))


def _problem_of(history: History) -> Problem:
    """Returns the error for a client that waited for a stream which is not completed."""
    terminal = history.terminal or {}
    if history.status == "failed":
        return failure_problem(terminal)
    if history.status == "cancelled":
        return cancelled_problem(terminal["by"])
    return Problem(504, "the answer has not ended in time; follow it at its events")
