"""OpenAI's Responses API: the response `resp_<stream id>` is another form of a stream (docs/reference/http.md).

create      with stream: is followed at once; with background: runs to its end without readers;
            with neither: is answered when it has ended
retrieve    the response as it is now; with stream, the events after any number
cancel, delete
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.follow import FollowRequest
from gateway.api.requests import check_chat, check_idempotency_key
from gateway.facades.facade import Facade, FacadeServices
from gateway.facades.openai.errors import failure_problem
from gateway.facades.responses.checks import wrong
from gateway.facades.responses.events import RESPONSES, ResponsesEncoder
from gateway.facades.responses.items import messages_of, reference_of
from gateway.facades.responses.request import check_response_request
from gateway.facades.responses.response_object import PREFIX
from gateway.faces import encode
from gateway.following.ring import broken_off
from gateway.following.token_runs import checked
from gateway.http.bodies import parse_body, received
from gateway.http.connection import Connection, Receive, Scope
from gateway.http.cursor import Place
from gateway.http.exchange import json_response, query_of, unless_disconnected
from gateway.http.problems import Problem
from gateway.http.routes import ASGI, OperationsOf, Route
from gateway.http.whole_bodies import Held
from gateway.streams.creation import NewStream
from shared.errors import Unreadable
from shared.event_log import READ_ENTRIES_MAX
from shared.events import FAILED, Event
from shared.ids import BEGINNING, EventId, is_stream_id
from shared.lifecycle import Order

operations = OperationsOf("gateway.facades.responses.operations")

_PATH = "/v1/responses"
_NUMBER_DIGITS_MAX = 12
_HEAD_SECONDS_MAX = 5.0
"""A streaming response begins after so long at the latest; until then a refusal can be answered with its status."""
_AHEAD_SECONDS_MAX, _AHEAD_PAUSE_SECONDS = 5.0, 0.25
"""How long a client may be ahead of the log: a live worker rewrites within 1 s what Redis has lost."""

_REFERENCED_RESPONSES_MAX = 256
"""Responses whose items one request may name: the log of each is read. A chat names one for each of its turns."""
_ENTRIES_AT_ONCE = 20
"""So many entries, 1,280 deltas at most, are encoded before other tasks may run: some milliseconds."""

_Handler = Callable[[str, Scope, Receive, Any], Awaitable[None]]


class Responses(Facade):
    """OpenAI's Responses API."""

    def __init__(self, services: FacadeServices) -> None:
        super().__init__(services)
        self.routes = (
            Route("POST", _PATH, self.create, operations.CREATE, "create"),
            Route("GET", _PATH + "/{response_id}", _of(self.retrieve), operations.RETRIEVE, "read"),
            Route("DELETE", _PATH + "/{response_id}", _of(self.delete), operations.DELETE, "create"),
            Route("POST", _PATH + "/{response_id}/cancel", _of(self.cancel), operations.CANCEL, "cancel"),
        )

    async def create(self, scope: Scope, receive: Receive, send: Any) -> None:
        """`POST /v1/responses`"""
        self._subscribe.take_place()
        stream_id, streams, background, as_cookie = await self._created(Request(scope, receive))
        Connection.add_headers(send, self._given_tokens.headers(scope, stream_id, as_cookie=as_cookie))
        if streams:
            await self._follow_new(stream_id, background, scope, receive, send)
            return
        work = self._so_far(stream_id) if background else self._at_its_end(stream_id)
        found = await unless_disconnected(receive, work)
        if found is None:
            return  # the client has left
        encoder, failed = found
        response = encoder.snapshot()
        if failed is not None and not response["output"] and not background:
            raise failure_problem(failed)
        answer = json_response(response, headers={"x-stream-id": stream_id})
        del found, encoder, response  # while the body is sent only its bytes stay in memory
        await answer(scope, receive, send)

    async def retrieve(self, stream_id: str, scope: Scope, receive: Receive, send: Any) -> None:
        """`GET /v1/responses/{id}`"""
        query = query_of(scope)
        stream = query.get("stream", "false")
        if stream not in ("true", "false"):
            wrong("stream", "true or false", stream)
        after = _number(query.get("starting_after"))
        if stream == "false":
            if after is not None:
                raise Problem(400, "starting_after is for stream=true", param="starting_after")
            encoder, _ = await self._so_far(stream_id)
            response = encoder.snapshot()
            if encoder.ended and not response["store"]:
                raise _no_response(stream_id, "; with store=false it is there only until it has ended")
            answer = json_response(response)
            del encoder, response  # while the body is sent only its bytes stay in memory
            await answer(scope, receive, send)
        elif after is None:
            await self._subscribe.follow(FollowRequest(stream_id, RESPONSES), scope, send)
        else:
            place = await unless_disconnected(receive, self._place_after(stream_id, after))
            if place is not None:
                await self._follow_after(stream_id, *place, scope, receive, send)

    async def cancel(self, stream_id: str, scope: Scope, receive: Receive, send: Any) -> None:
        """`POST /v1/responses/{id}/cancel`"""
        await self._streams.cancel(stream_id)
        encoder, _ = await self._so_far(stream_id)
        answer = json_response(encoder.snapshot())
        del encoder
        await answer(scope, receive, send)

    async def delete(self, stream_id: str, scope: Scope, receive: Receive, send: Any) -> None:
        """`DELETE /v1/responses/{id}`"""
        await self._streams.delete(stream_id)
        deleted = {"id": PREFIX + stream_id, "object": "response", "deleted": True}
        await json_response(deleted)(scope, receive, send)

    # --- creating

    async def _created(self, request: Request) -> tuple[str, bool, bool, bool]:
        """Creates a stream. Returns its id, and whether its client wants the events, an answer that runs in the background, a cookie.

        Nothing else of the request, which may be large, stays in memory while the answer is generated.
        """
        async with received(request, self._settings.body_bytes_max) as body:
            wanted = check_response_request(await self._with_items(parse_body(body)))
            before = [] if wanted.previous is None else await self._conversation(wanted.previous)
            chat_body = wanted.request(before)
            chat = check_chat(chat_body, request.headers, await self._models.default_for(chat_body))
            new = NewStream(
                chat.generation,
                chat.policies,
                chat.metadata,
                idempotency=check_idempotency_key(request.headers),
                facade=wanted.facade(),
                keep_request=wanted.store,
                shown_messages=0 if wanted.instructions is None else 1,
            )
            created = await self._streams.create(new)
            return created["id"], wanted.stream, wanted.background, chat.cookie

    async def _with_items(self, body: dict[str, Any]) -> dict[str, Any]:
        """Returns a body with the items that its input names by their ids. Raises Problem 400, 404, 503."""
        items = body.get("input")
        if not isinstance(items, list):
            return body
        names = [reference_of(item) for item in items]
        by_stream: dict[str, set[str]] = {}
        for name in filter(None, names):
            stream_id = name.partition("_")[2].rpartition("_")[0]
            by_stream.setdefault(stream_id if is_stream_id(stream_id) else "", set()).add(name)
        if not by_stream:
            return body
        if len(by_stream) > _REFERENCED_RESPONSES_MAX:
            raise Problem(400, f"input has items of more than {_REFERENCED_RESPONSES_MAX} responses", param="input")
        found: dict[str, dict[str, Any]] = {}
        size = 0
        for stream_id, wanted in by_stream.items():
            of_stream = await self._items_of(stream_id) if stream_id else {}
            for name in wanted & of_stream.keys():
                found[name] = of_stream[name]
                size += len(orjson.dumps(of_stream[name]))
            if size > self._settings.body_bytes_max:
                bound = f"the limit for a request is {self._settings.body_bytes_max} bytes"
                raise Problem(400, f"input names items of {size} bytes; {bound}", param="input")
        missing = next((name for name in filter(None, names) if name not in found), None)
        if missing is not None:
            why = "an item can be named while its response is there: with store, and until that expires"
            raise Problem(404, f"there is no item {missing[:80]!r}; {why}", param="input")
        return {**body, "input": [found[name] if name else item for name, item in zip(names, items, strict=True)]}

    async def _items_of(self, stream_id: str) -> dict[str, dict[str, Any]]:
        """Returns the items of an earlier response by their ids; none if it is not there, or has not ended."""
        try:
            encoder, _ = await self._so_far(stream_id)
        except Problem as problem:
            if problem.status not in (404, 410):
                raise
            return {}
        if not encoder.ended:
            return {}
        response = encoder.snapshot()
        return {item["id"]: item for item in response["output"]} if response["store"] else {}

    # --- following

    async def _follow_new(self, stream_id: str, background: bool, scope: Scope, receive: Receive, send: Any) -> None:
        with self._subscribe.holding(stream_id, RESPONSES) as tail:
            if not background:
                begun = await unless_disconnected(receive, self._subscribe.until_begun(tail, _HEAD_SECONDS_MAX))
                if begun is None:
                    return  # the client has left
                if tail.ended_as == FAILED:
                    encoder, failed = await self._so_far(stream_id)
                    if failed is not None and not encoder.snapshot()["output"]:
                        raise failure_problem(failed)
            headers = ((b"x-stream-id", stream_id.encode()),)
            await self._subscribe.follow(FollowRequest(stream_id, RESPONSES, headers=headers), scope, send)

    async def _follow_after(
        self, stream_id: str, cursor: EventId, rest: bytes, ended: bool, scope: Scope, receive: Receive, send: Any
    ) -> None:
        if not ended:
            await self._subscribe.follow(FollowRequest(stream_id, RESPONSES, Place(cursor), first=rest), scope, send)
            return
        # Nothing more will come. Not a 204, which ends an EventSource: OpenAI's SDK for Node takes it for an error.
        headers = {"cache-control": "no-store", "content-type": RESPONSES.media_type.decode()}
        await Response(rest, headers=headers)(scope, receive, send)

    async def _place_after(self, stream_id: str, number: int) -> tuple[EventId, bytes, bool]:
        """Returns where a client resumes that has every event up to `number`.

        That is the id of the log event which became the client's last one, the bytes of the events that the same log event
        became after it, and whether the log ends there. Raises Problem 400, 404, 503.
        """
        encoder, cursor = RESPONSES.encoder(stream_id), BEGINNING
        give_up_at = asyncio.get_running_loop().time() + _AHEAD_SECONDS_MAX
        while True:
            async for event in self._events(stream_id, cursor):
                encoded, cursor = _encoded(encoder, event), event.id
                more = encoder.next_number - 1 - number
                if more >= 0:
                    pieces = encoded.split(b"\n\n")[:-1]  # compact JSON contains no line feed
                    rest = b"".join(piece + b"\n\n" for piece in pieces[len(pieces) - more :])
                    return cursor, rest, encoder.ended
                if encoder.ended:
                    return cursor, b"", True
            if not encoder.exists:
                raise self._streams.missing(stream_id)
            if asyncio.get_running_loop().time() > give_up_at:
                newest = encoder.next_number - 1
                why = f"starting_after must be the number of an event that there is; the newest one's is {newest}"
                raise Problem(400, why, param="starting_after")
            await asyncio.sleep(_AHEAD_PAUSE_SECONDS)

    # --- reading

    async def _events(self, stream_id: str, after: EventId = BEGINNING) -> AsyncIterator[Event]:
        """Yields the events that the log holds now after an id, up to the first unreadable entry."""
        order = Order(BEGINNING if after == BEGINNING else None)
        while True:
            entries = await self._streams.read(stream_id, after)
            for start in range(0, len(entries), _ENTRIES_AT_ONCE):
                for part in checked(entries[start : start + _ENTRIES_AT_ONCE], order):
                    for event in part.events:
                        yield event
                    if part.unreadable:
                        return
                await asyncio.sleep(0)  # readers of other streams do not wait for a long log
            if len(entries) < READ_ENTRIES_MAX:
                return
            after = entries[-1].id

    async def _so_far(self, stream_id: str) -> tuple[ResponsesEncoder, dict[str, Any] | None]:
        """Returns an encoder that was fed the whole log, and the value of `failed`, if the log has one.

        Raises Problem 404, 410.
        """
        encoder, failed = RESPONSES.encoder(stream_id), None
        held, size = Held(encoder), 0
        async for event in self._events(stream_id):
            size += len(event.value)
            held.grow_to(size)
            if event.field == FAILED and not encoder.ended:
                failed = orjson.loads(event.value)
            _encoded(encoder, event)
        if not encoder.exists:
            raise self._streams.missing(stream_id)
        return encoder, failed

    async def _at_its_end(self, stream_id: str) -> tuple[ResponsesEncoder, dict[str, Any] | None]:
        await self._streams.until_ended(stream_id, self._settings.log_ttl_seconds)  # no answer lives longer
        return await self._so_far(stream_id)

    async def _conversation(self, response_id: str) -> list[dict[str, Any]]:
        """Returns the messages up to the end of an earlier response, without its instructions. Raises Problem 400."""
        gone = Problem(
            400,
            f"previous_response_id {response_id[:80]!r} is not there (any more), or not yours",
            param="previous_response_id",
            code="previous_response_not_found",
        )
        stream_id = response_id.removeprefix(PREFIX)
        if not (response_id.startswith(PREFIX) and is_stream_id(stream_id)):
            raise gone
        try:
            encoder, _ = await self._so_far(stream_id)
            accepted = await self._streams.accepted(stream_id, large_fields=True)
        except Problem as problem:
            raise gone if problem.status in (404, 410) else problem from None
        except Unreadable:
            raise gone from None
        response = encoder.snapshot()
        if not encoder.ended:
            why = "must be a response that has ended: wait for it, or cancel it"
            raise Problem(400, f"previous_response_id {why}", param="previous_response_id")
        if not response["store"]:
            raise gone
        messages_before = accepted.request.get("messages")
        request_messages = messages_before if isinstance(messages_before, list) else []
        request_messages = request_messages[1 if accepted.facade.get("instructions") else 0 :]
        # Calls of an answer that was cut off may be incomplete: only its messages are kept.
        items = [item for item in response["output"] if item["type"] == "message" or response["status"] == "completed"]
        messages = [*request_messages, *messages_of(items, "previous_response_id")]
        if len(orjson.dumps(messages)) > self._settings.body_bytes_max:
            bound = f"a conversation has more than {self._settings.body_bytes_max} bytes, the limit for a request"
            raise Problem(400, f"{bound}; begin a new one with a shorter input", param="previous_response_id")
        return messages


def _encoded(encoder: ResponsesEncoder, event: Event) -> bytes:
    """Returns the events that a log event becomes; for one that cannot be encoded, the stream's end as failed."""
    if encoder.ended:
        return b""
    try:
        return encode(encoder, event)
    except Exception:
        return broken_off(RESPONSES, encoder, event)


def _of(handler: _Handler) -> ASGI:
    """Returns a handler for the response that the path names. One that is unknown or has expired is answered 404, as OpenAI
    does."""

    async def handled(scope: Scope, receive: Receive, send: Any) -> None:
        response_id = scope["path"][len(_PATH) + 1 :].partition("/")[0]
        stream_id = response_id.removeprefix(PREFIX)
        if not (response_id.startswith(PREFIX) and is_stream_id(stream_id)):
            raise _no_response(stream_id)
        try:
            await handler(stream_id, scope, receive, send)
        except Problem as problem:
            if problem.status == 410 or (problem.status == 404 and problem.param is None):
                raise _no_response(stream_id, "; it has expired" if problem.status == 410 else "") from None
            raise

    return handled


def _no_response(stream_id: str, why: str = "") -> Problem:
    detail = f"there is no response {(PREFIX + stream_id)[:80]!r}, or it is not yours{why}"
    return Problem(404, detail, param="response_id")


def _number(starting_after: str | None) -> int | None:
    if starting_after is None:
        return None
    digits = starting_after.isascii() and starting_after.isdigit()
    if not digits or len(starting_after) > _NUMBER_DIGITS_MAX:
        wrong("starting_after", "an event's sequence_number, 0 or more", starting_after[:64])
    return int(starting_after)
