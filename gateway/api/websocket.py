"""`/v1/streams/{id}/ws`: the same events as WebSocket messages, and `{"type": "cancel"}` from the client.

A server's frames are not masked (RFC 6455, section 5.1), so one frame is right for every reader: the face encodes whole
frames, once per tail, and a connection writes them as they are. So there is no compression, which is per connection,
and no task or queue between a ring and a socket: a full one is treated as that of any other reader.

uvicorn's protocol over the `websockets` library's Sans-I/O core does the rest (handshake, pings, the client's frames,
closing): of uvicorn's three it is the one whose core is neither deprecated, as the legacy `websockets` server is, nor
hardly maintained, as wsproto is; and its state does not mind frames that are written beside it.
"""

from __future__ import annotations

import logging
from typing import Any

import orjson
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gateway.api.follow import Subscribe, place_of, stream_of
from gateway.delivery.reader import Reader
from gateway.faces import Encoder, event_object, live_object, retry_object
from gateway.http.connection import Receive, Scope, Send
from gateway.http.exchange import ASGI
from gateway.http.problems import Problem
from gateway.metrics import refused
from gateway.streams import Streams
from shared.events import Event

_PATH_HEAD, _PATH_TAIL = "/v1/streams/", "/ws"
MESSAGE_BYTES_MAX = 4096
"""A client says `{"type": "cancel"}`, and no more; a longer message is answered with 1009."""
_MESSAGES_MAX = 16
"""Of a client, per connection: one is enough."""
_FRAGMENTS_MAX = 64
"""Of one message: also of empty ones, which count for nothing against its size."""
_CONTROL_FRAMES_MAX = 64
"""Pings and pongs in one piece of what comes: a client sends one now and then."""
_EARLY_BYTES_MAX = 16 << 10
"""Of frames that come before the handshake is answered, as a hasty client sends them."""
_PIECE_BYTES = 4096
"""So much is gone through before it is asked whether that was too much already: each frame costs 10 µs, and may have 6 bytes."""
_ENDED, _COME_BACK, _TOO_MUCH, _NO_UTF8 = 1000, 1012, 1008, 1007
_CLIENT_ERROR = 4000
"""Added to the HTTP status that would have been the answer."""
_TOKEN = b'{"id":"%b","event":"message","data":{"token":%b}}'
_TOKEN_BYTES = len(_TOKEN % (b"", b""))
_REASON_BYTES_MAX = 123  # RFC 6455, section 5.5

_logger = logging.getLogger(__name__)
_logger.setLevel(logging.WARNING)  # uvicorn says at `info` who came, with the query, and at `debug` every frame


def frame(message: bytes) -> bytes:
    """One unmasked text frame (RFC 6455, section 5.2)."""
    size = len(message)
    if size < 126:
        return b"\x81%c%b" % (size, message)
    if size < 65_536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), message)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), message)


class WebSocketFace(Encoder):
    """Each event in a frame of its own."""

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
        told = event_object(event)
        return frame(told) if told else b""


FACE = WebSocketFace()


class WebSocketConnection(WebSocketsSansIOProtocol):
    """uvicorn's connection, into which frames may be written."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.logger = self.conn.logger = _logger
        self.conn.debug = False
        self.reader: Reader | None = None
        self.write_paused = False
        self._control_frames = 0
        self._early = b""

    def follow(self, reader: Reader) -> bool:
        """This reader is to be told what becomes of the connection. False if the client has gone."""
        if self.disconnected or self.close_sent or self.transport.is_closing():
            return False
        self.reader = reader
        return True

    def tell(self, event: str, data: dict[str, Any]) -> None:
        """Send a message that is no event of the log."""
        if not self.close_sent and not self.transport.is_closing():
            self.transport.write(frame(orjson.dumps({"id": None, "event": event, "data": data})))

    def end(self, code: int, reason: str) -> None:
        """Begin to close. A client that does not answer is cut off after `close_timeout` seconds."""
        self._leave()
        if self.close_sent or self.transport.is_closing():
            return
        self.stop_keepalive()
        self.close_sent = True
        self.conn.send_close(code, reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore"))
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.resume_reading()  # for the answer
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})

    def _leave(self) -> None:
        reader, self.reader = self.reader, None
        if reader is not None:
            reader.lost()

    async def send(self, message: Any) -> None:
        if self.transport.is_closing():
            raise ClientDisconnected  # uvicorn would drop it, and complain of an answer that never came
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = (
                True  # refused, with an answer of our own: else uvicorn complains that there was none
            )
        if self._early and self.handshake_complete and not self.close_sent:
            early, self._early = self._early, b""
            self.data_received(early)

    # --- what comes, within bounds

    def data_received(self, data: bytes) -> None:
        if (
            self.handshake_initiated and not self.handshake_complete
        ):  # the library takes no frame before it has accepted
            self._early += data
            if len(self._early) > _EARLY_BYTES_MAX:
                self.transport.close()
            return
        for at in range(0, len(data), _PIECE_BYTES):
            if self.transport.is_closing():
                return
            self._control_frames = 0
            super().data_received(data[at : at + _PIECE_BYTES])

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if self.response.status_code != 101:
            refused(self.response.status_code)

    def handle_cont(self, event: Any) -> None:
        if len(self.frames) < _FRAGMENTS_MAX:
            super().handle_cont(event)
        else:
            self._cut_off(_TOO_MUCH, f"a message has no more than {_FRAGMENTS_MAX} fragments")

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not _is_utf8(b"".join(self.frames)):
            self._cut_off(_NO_UTF8, "a message must be UTF-8")
        elif self.queue.qsize() <= _MESSAGES_MAX:  # else as many as are looked at wait
            super().send_receive_event_to_app()
        self.frames = []

    def handle_ping(self) -> None:
        super().handle_ping()
        self._count_control_frame()

    def handle_pong(self, event: Any) -> None:
        super().handle_pong(event)
        self._count_control_frame()

    def _count_control_frame(self) -> None:
        self._control_frames += 1
        if self._control_frames == _CONTROL_FRAMES_MAX:
            self._cut_off(_TOO_MUCH, "too many pings")

    def _cut_off(self, code: int, reason: str) -> None:
        """End the connection of a client that breaks the protocol, or wants to keep this process busy."""
        self.end(code, reason)
        self.transport.close()

    async def receive(self) -> Any:
        message = await super().receive()
        if self.write_paused and not self.transport.is_closing():
            self.transport.pause_reading()  # uvicorn has just resumed it
        return message

    # --- asyncio.Protocol

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write_paused = True
        self.transport.pause_reading()  # whoever does not read may not send: each ping would add a pong to what waits

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_paused = False
        if not self.read_paused:
            self.transport.resume_reading()
        if self.reader is not None:
            self.reader.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.conn.parser.close()  # it knows what knows it: both would wait for the collector
        self._leave()


class _Frames:
    """A Sink: what the face encodes are whole frames."""

    __slots__ = ("_connection",)

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection

    def send(self, body: bytes, chunk: bytes) -> bool:
        connection = self._connection
        if connection.transport.is_closing():
            return False  # its end is on the way
        connection.transport.write(body)
        return not connection.write_paused

    def finish(self, body: bytes) -> None:
        reader, self._connection.reader = self._connection.reader, None  # it is detached by whoever ends it
        ended = reader is not None and reader.outcome == "completed"
        if not self._connection.transport.is_closing():
            self._connection.transport.write(body)
        self._connection.end(_ENDED if ended else _COME_BACK, "" if ended else "come back with last_event_id")

    def cut(self, body: bytes) -> None:
        self._connection.reader = None
        if not self._connection.transport.is_closing():
            self._connection.transport.write(body)
            self._connection.transport.close()


class WebSockets:
    """All WebSocket requests."""

    def __init__(self, streams: Streams, subscribe: Subscribe) -> None:
        self._streams = streams
        self._subscribe = subscribe

    def route(self, scope: Scope) -> ASGI | None:
        if scope["type"] == "websocket":
            return self.events
        path: str = scope["path"]
        return _not_upgraded if path.startswith(_PATH_HEAD) and path.endswith(_PATH_TAIL) else None

    async def events(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`/v1/streams/{id}/ws`

        What a retry can mend is refused in the handshake, with a status. A page's script is told no status, and would
        try for ever: so what no retry can mend is told by the code with which an accepted connection is closed.
        """
        path: str = scope["path"]
        if not (path.startswith(_PATH_HEAD) and path.endswith(_PATH_TAIL)):
            raise Problem(404, f"there is no WebSocket at {path[:200]}")
        connection: WebSocketConnection = send.__self__  # type: ignore[attr-defined]  # it is a method of the protocol
        await receive()  # websocket.connect
        try:
            stream_id = stream_of(scope)
            cursor, at_tail = place_of(scope)
            async with self._subscribe.ready(stream_id, FACE, cursor) as tail:
                await send({"type": "websocket.accept"})
                end = tail.end_for(FACE)
                if cursor is not None and end is not None and cursor >= end:
                    connection.end(_ENDED, "")
                    return
                reader = self._subscribe.reader(tail, FACE, _Frames(connection), cursor, at_tail=at_tail)
                if not connection.follow(reader):
                    return
                self._subscribe.begin(reader)
        except Problem as problem:
            if problem.status >= 500:
                raise
            await send({"type": "websocket.accept"})
            _refuse(connection, problem)
            return
        await self._listen(stream_id, connection, receive)

    async def _listen(self, stream_id: str, connection: WebSocketConnection, receive: Receive) -> None:
        """Do what the client says, until it or the stream's end closes the connection."""
        for _ in range(_MESSAGES_MAX):
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                _check_cancel(message)
            except Problem as problem:
                _refuse(connection, problem)
                return
            try:
                await self._streams.cancel(stream_id)
            except Problem as problem:  # Redis is away: the client may say it again
                connection.tell("error", _about(problem))
        connection.end(_TOO_MUCH, f"no more than {_MESSAGES_MAX} messages are taken")


def _check_cancel(message: dict[str, Any]) -> None:
    """Raises Problem 400 for anything but `{"type": "cancel"}`."""
    text = message.get("text")
    if text is None:
        raise Problem(400, 'a message must be text, not binary: {"type": "cancel"}')
    try:
        said = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Problem(400, f'a message must be JSON, {{"type": "cancel"}}: {error}') from None
    kind = said.get("type") if isinstance(said, dict) else said
    if kind != "cancel" or not isinstance(said, dict):
        raise Problem(400, f'a message must be {{"type": "cancel"}}; {str(kind)[:64]!r} is not known')


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _about(problem: Problem) -> dict[str, Any]:
    return {"status": problem.status, "detail": problem.detail}


def _refuse(connection: WebSocketConnection, problem: Problem) -> None:
    """Say what is wrong, and close."""
    connection.tell("error", _about(problem))
    connection.end(_CLIENT_ERROR + problem.status, problem.detail)


async def _not_upgraded(scope: Scope, receive: Any, send: Any) -> None:
    response = Problem(426, "this path speaks WebSocket: connect to it with ws:// or wss://, not http://").response()
    response.headers["upgrade"] = "websocket"
    await response(scope, receive, send)
