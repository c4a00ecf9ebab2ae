"""The AI SDK's `useChat`, also with `resume`: POST /api/chat, GET /api/chat/{chatId}/stream, POST /api/chat/{chatId}/stop.

One key in Redis names a chat's newest stream. It is only ever overwritten, by the chat's next message; whether that stream
is active is in its log. So nothing has to be cleared, and a late stop cannot clear the wrong stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.follow import FollowRequest
from gateway.api.requests import check_generation, check_idempotency_key, owner_in, wants_cookie
from gateway.facades.ai_sdk.messages import chat_messages, replayed_parts
from gateway.facades.ai_sdk.stream_parts import AI_SDK, AI_SDK_REPLAY
from gateway.facades.facade import Facade, FacadeServices
from gateway.http.accept import accepts_json_and_no_events
from gateway.http.bodies import body_of, parse_body, received
from gateway.http.connection import Connection, Receive, Scope
from gateway.http.exchange import json_response, query_of
from gateway.http.principal import act_for, principal
from gateway.http.problems import Problem
from gateway.http.routes import OperationsOf, Route
from gateway.http.whole_bodies import made
from gateway.streams.creation import NewStream
from shared.errors import RedisRefused, Unreadable
from shared.ids import is_stream_id
from shared.keys import chat_key

operations = OperationsOf("gateway.facades.ai_sdk.operations")

_CHAT, _CHAT_HEAD, _STREAM_TAIL, _STOP_TAIL = "/api/chat", "/api/chat/", "/stream", "/stop"
_DURABLE_HEAD = "/v1/stream/"
CHAT_ID_CHARACTERS_MAX = 255
"""Ten times as long as the ids that useChat makes; the id is kept with each stream."""
_OURS = ("id", "messages", "trigger", "messageId")
_STOP_BODY_BYTES_MAX = 1 << 20
"""The SDK's own example sends the whole answer, which is not needed here. This has room for the text of 200,000 tokens."""


class AiSdk(Facade):
    """The HTTP API that `useChat` of the AI SDK calls."""

    def __init__(self, services: FacadeServices) -> None:
        super().__init__(services)
        self._commands = services.commands
        self._has_durable = services.has_durable
        self.routes = (
            Route("POST", _CHAT, self.ask, operations.ASK, "create"),
            Route("GET", _CHAT_HEAD + "{chat_id:path}" + _STREAM_TAIL, self.resume, operations.RESUME, "read"),
            Route("POST", _CHAT_HEAD + "{chat_id:path}" + _STOP_TAIL, self.stop, operations.STOP, "cancel"),
        )

    async def ask(self, scope: Scope, receive: Receive, send: Any) -> None:
        """`POST /api/chat`: creates a stream, which becomes the chat's newest, and follows it, or says where it can be read."""
        address_only = self._wants_address(scope)
        if not address_only:
            self._subscribe.take_place()
        http_request = Request(scope, receive)
        async with received(http_request, self._settings.body_bytes_max) as body:
            parsed = parse_body(body)
            stream_id, chat_id = await self._created(parsed, http_request.headers)
            as_cookie = wants_cookie(parsed)
            del parsed
        path = _DURABLE_HEAD + stream_id if address_only else None
        Connection.add_headers(send, self._given_tokens.headers(scope, stream_id, as_cookie=as_cookie, path=path))
        await self._redis("SET", self._key(chat_id), stream_id, "EX", self._settings.log_ttl_seconds)
        if address_only:
            await self._address(stream_id, "ui", 201)(scope, receive, send)
            return
        await self._subscribe.follow(FollowRequest(stream_id, AI_SDK, headers=_headers(stream_id)), scope, send)

    async def resume(self, scope: Scope, receive: Receive, send: Any) -> None:
        """`GET /api/chat/{chatId}/stream`: follows the active stream from its first part, or answers 204.

        With `?ended=replay` also a stream that has ended, for an application that did not store the answer.
        """
        chat_id = _checked_chat_id(scope["path"][len(_CHAT_HEAD) : -len(_STREAM_TAIL)])
        ended = query_of(scope).get("ended")
        if ended not in (None, "replay"):
            raise Problem(400, f"ended must be replay, not {ended[:64]!r}; leave it out to follow active streams only")
        stream_id = await self._newest(chat_id)
        if stream_id is not None:
            with self._subscribe.holding(stream_id, AI_SDK_REPLAY) as tail:
                try:
                    async with asyncio.timeout(self._settings.redis_wait_seconds):
                        await tail.until_ready()
                except TimeoutError:
                    raise await self._streams.why_not_read(stream_id) from None
                if tail.exists and (tail.ended is None or ended):
                    if self._wants_address(scope):
                        await self._address(stream_id, "ui-replay", 200)(scope, receive, send)
                        return
                    request = FollowRequest(stream_id, AI_SDK_REPLAY, headers=_headers(stream_id))
                    await self._subscribe.follow(request, scope, send)
                    return
        await send({"type": "http.response.start", "status": 204, "headers": [(b"cache-control", b"no-store")]})
        await send({"type": "http.response.body", "body": b""})

    async def stop(self, scope: Scope, receive: Receive, send: Any) -> None:
        """`POST /api/chat/{chatId}/stop`: cancels the stream that the body names, else the active one. Idempotent."""
        chat_id = _checked_chat_id(scope["path"][len(_CHAT_HEAD) : -len(_STOP_TAIL)])
        raw = await body_of(Request(scope, receive), _STOP_BODY_BYTES_MAX)
        named = (await made(len(raw), partial(parse_body, raw))).get("activeStreamId") if raw else None
        if named is not None and not (isinstance(named, str) and is_stream_id(named)):
            raise Problem(400, "activeStreamId must be a stream's id: the X-Stream-Id of the answer to POST /api/chat")
        stream_id = named or await self._newest(chat_id)
        status = None if stream_id is None else await self._cancel(stream_id, chat_id)
        result = {"stopped": status == "cancelled", "stream_id": stream_id, "status": status}
        await json_response(result)(scope, receive, send)

    # --- helpers

    def _wants_address(self, scope: Scope) -> bool:
        """Returns whether the client reads the answer elsewhere. Raises Problem 406 if there is no such place here."""
        wanted = accepts_json_and_no_events(scope)
        if wanted and not self._has_durable:
            detail = "answers cannot be read at /v1/stream/ here (MIDSTREAM_WRITTEN_STREAMS); accept text/event-stream"
            raise Problem(406, detail)
        return wanted

    def _address(self, stream_id: str, shape: str, status: int) -> Response:
        """Returns the answer with the address at which the durable facade shows a stream as UI message parts."""
        url = f"{self._settings.path_prefix}{_DURABLE_HEAD}{stream_id}?as={shape}"
        return json_response({"streamUrl": url}, status, {"location": url, "x-stream-id": stream_id})

    async def _created(self, body: dict[str, Any], headers: Mapping[str, str]) -> tuple[str, str]:
        """Creates a stream. Returns its id and the chat's."""
        chat_id = _checked_chat_id(body.get("id"))
        if body.get("n") not in (None, 1):
            raise Problem(400, "n must be 1: a message is one answer")
        request = {name: value for name, value in body.items() if name not in _OURS}
        request["messages"] = chat_messages(body.get("messages"))
        request, policies, metadata = check_generation(request, await self._models.default_for(request))
        act_for(owner_in(body))
        last = body["messages"][-1]
        facade: dict[str, Any] = {"api": "ai_sdk", "chat": chat_id}
        if last["role"] == "assistant" and isinstance(last.get("id"), str):
            facade |= {
                "message": last["id"],
                "before": replayed_parts(last["parts"]),
            }  # after tool results the same message continues
        key = check_idempotency_key(headers)
        created = await self._streams.create(NewStream(request, policies, metadata, key, facade))
        return created["id"], chat_id

    async def _cancel(self, stream_id: str, chat_id: str) -> str | None:
        """Returns the stream's status after the cancel; None if this chat has no such stream (any more)."""
        try:
            try:
                accepted = await self._streams.accepted(stream_id)
            except Unreadable:
                return None
            if accepted.facade.get("chat") != chat_id:
                return None
            status: str = (await self._streams.cancel(stream_id)).status
        except Problem as problem:
            if problem.status not in (404, 410):
                raise
            return None
        return status

    async def _newest(self, chat_id: str) -> str | None:
        """Returns the id of the chat's newest stream, active or not; None if the key holds none."""
        found = await self._redis("GET", self._key(chat_id))
        stream_id = found if isinstance(found, bytes) else b""
        return stream_id.decode() if stream_id.isascii() and is_stream_id(stream_id.decode()) else None

    @staticmethod
    def _key(chat_id: str) -> bytes:
        return chat_key(principal.get().name, chat_id)

    async def _redis(self, *command: bytes | str | int) -> Any:
        """Returns Redis's reply; None if the key is of another type than the command's. Raises Problem 503."""
        return await self._streams.answered(self._execute, *command)

    async def _execute(self, *command: bytes | str | int) -> Any:
        try:
            return await self._commands.execute(*command)
        except RedisRefused as error:
            if error.code != "WRONGTYPE":
                raise
            return None


def _checked_chat_id(chat_id: Any) -> str:
    if not isinstance(chat_id, str) or not 1 <= len(chat_id) <= CHAT_ID_CHARACTERS_MAX:
        raise Problem(400, f"id must be the chat's id, a text of 1 to {CHAT_ID_CHARACTERS_MAX} characters")
    return chat_id


def _headers(stream_id: str) -> tuple[tuple[bytes, bytes], ...]:
    return (b"x-vercel-ai-ui-message-stream", b"v1"), (b"x-stream-id", stream_id.encode())
