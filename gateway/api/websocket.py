"""`/v1/streams/{id}/ws`: the events of a stream as WebSocket messages, and `{"type": "cancel"}` from the client.

A server's frames are not masked (RFC 6455, section 5.1), so one frame is right for every reader: the face encodes whole
frames, once per tail, and a connection writes them as they are. So there is no compression, which is per connection,
and no task or queue between a ring and a socket: a full one is treated as that of any other reader.
"""

from __future__ import annotations

from typing import Any

import orjson

from gateway.api.follow import Subscribe, stream_of
from gateway.faces import Encoder, event_object, live_object, retry_object
from gateway.http.connection import Receive, Scope, Send
from gateway.http.cursor import place_of
from gateway.http.principal import require
from gateway.http.problems import Problem
from gateway.http.routes import ASGI, OperationsOf, Route, route_for
from gateway.http.websocket_connection import (
    ENDED,
    MESSAGES_MAX,
    TOO_MUCH,
    Frames,
    WebSocketConnection,
    frame,
)
from gateway.streams.streams import Streams
from shared.events import Event

operations = OperationsOf("gateway.api.operations")

_CLIENT_ERROR = 4000
"""Added to the HTTP status that would have been the answer."""
SUBPROTOCOLS = ("json", "midstream")
"""Names under which a client may offer what is spoken here (RFC 6455, section 1.9). A browser that has offered some closes a
connection for which the server names none of them."""
_TOKEN = b'{"id":"%b","event":"message","data":{"token":%b}}'
_TOKEN_BYTES = len(_TOKEN % (b"", b""))


class WebSocketFace(Encoder):
    """Each event in a frame of its own."""

    name = "websocket"
    media_type = b""
    keep_alive = b""  # the protocol has its own pings, which also find who has gone
    stateful = False
    cut_unless_done = False
    resumable = True

    def encoder(self, stream_id: str) -> Encoder:
        return self

    def prelude(self, retry_milliseconds: int) -> bytes:
        return b""

    def live(self, offset: int) -> bytes:
        return frame(live_object(offset))

    def epilogue(self, retry_milliseconds: int) -> bytes:
        return frame(retry_object(retry_milliseconds))

    def token(self, event_id: bytes, value: bytes) -> bytes:
        text = orjson.dumps(value.decode())
        size = len(event_id) + len(text) + _TOKEN_BYTES
        if size < 126:  # as in `frame`, but written in one go: there is one of these for each token
            return b'\x81%c{"id":"%b","event":"message","data":{"token":%b}}' % (size, event_id, text)
        return frame(_TOKEN % (event_id, text))

    def other(self, event: Event) -> bytes:
        message = event_object(event)
        return frame(message) if message else b""


FACE = WebSocketFace()


class WebSockets:
    """All WebSocket requests."""

    def __init__(self, streams: Streams, subscribe: Subscribe) -> None:
        self._streams = streams
        self._subscribe = subscribe
        self._events = Route("GET", "/v1/streams/{stream_id:path}/ws", self.events, operations.WEBSOCKET, "read")
        self._plain = Route("GET", self._events.path, _not_upgraded, operations.WEBSOCKET, "read")
        self.routes = (self._events,)

    def route(self, scope: Scope) -> Route | None:
        """The route of a WebSocket handshake, also of paths where there is none, and of HTTP requests of the path."""
        if scope["type"] == "websocket":
            return self._events
        return route_for((self._plain,), scope)

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`/v1/streams/{id}/ws`

        What a retry can mend is refused in the handshake, with a status. A page's script does not see that status and
        would try for ever: so what no retry can mend is shown by the close code of an accepted connection.
        """
        path: str = scope["path"]
        if not self._events.matches(path):
            raise Problem(404, f"there is no WebSocket at {path[:200]}")
        connection = WebSocketConnection.of(send)
        await receive()  # websocket.connect
        try:
            stream_id = stream_of(scope)
            place = place_of(scope)
            async with self._subscribe.ready(stream_id, FACE, place) as tail:
                await _accept(scope, send)
                if place.is_at(tail.end_for(FACE), tail.ended):
                    connection.end(ENDED, "")
                    return
                reader = self._subscribe.reader(tail, FACE, Frames(connection), place)
                if not connection.follow(reader):
                    return
                self._subscribe.begin(reader)
        except Problem as problem:
            if problem.status == 429 or problem.status >= 500:
                raise
            await _accept(scope, send)
            _refuse(connection, problem)
            return
        await self._listen(stream_id, connection, receive)

    async def _listen(self, stream_id: str, connection: WebSocketConnection, receive: Receive) -> None:
        """Carries out the client's messages until the connection is closed, by the client or at the stream's end."""
        for _ in range(MESSAGES_MAX):
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                _check_cancel(message)
            except Problem as problem:
                _refuse(connection, problem)
                return
            try:
                require("cancel")
                await self._streams.cancel(stream_id)
            except Problem as problem:  # Redis is away: the client may send it again; or it may only read
                connection.send_event("error", _about(problem))
        connection.end(TOO_MUCH, f"no more than {MESSAGES_MAX} messages are taken")


async def _accept(scope: Scope, send: Send) -> None:
    """Accepts a handshake, with the first subprotocol offered that is spoken here, else without one."""
    spoken = next((offered for offered in scope["subprotocols"] if offered.lower() in SUBPROTOCOLS), None)
    await send({"type": "websocket.accept", "subprotocol": spoken})


def _check_cancel(message: dict[str, Any]) -> None:
    """Raises Problem 400 for anything but `{"type": "cancel"}`."""
    text = message.get("text")
    if text is None:
        raise Problem(400, 'a message must be text, not binary: {"type": "cancel"}')
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Problem(400, f'a message must be JSON, {{"type": "cancel"}}: {error}') from None
    kind = content.get("type") if isinstance(content, dict) else content
    if kind != "cancel" or not isinstance(content, dict):
        raise Problem(400, f'a message must be {{"type": "cancel"}}; {str(kind)[:64]!r} is not known')


def closing_with(problem: Problem) -> ASGI:
    """Returns a handler that accepts a handshake only to show why it is refused, by the close code."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        connection = WebSocketConnection.of(send)
        await receive()  # websocket.connect
        await _accept(scope, send)
        _refuse(connection, problem)

    return refuse


def _about(problem: Problem) -> dict[str, Any]:
    return {"status": problem.status, "detail": problem.detail}


def _refuse(connection: WebSocketConnection, problem: Problem) -> None:
    """Sends what is wrong, and closes the connection."""
    connection.send_event("error", _about(problem))
    connection.end(_CLIENT_ERROR + problem.status, problem.detail)


async def _not_upgraded(scope: Scope, receive: Any, send: Any) -> None:
    response = Problem(426, "this path speaks WebSocket: connect to it with ws:// or wss://, not http://").response()
    response.headers["upgrade"] = "websocket"
    await response(scope, receive, send)
