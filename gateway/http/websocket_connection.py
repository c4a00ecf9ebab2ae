"""One WebSocket connection, into which whole frames are written, and a Sink over it.

uvicorn's protocol over the `websockets` library's Sans-I/O core does the rest (handshake, pings, the client's frames,
closing): of uvicorn's three it is the one whose core is neither deprecated, as the legacy `websockets` server is, nor
hardly maintained, as wsproto is; and its state does not mind frames that are written beside it.

What it needs of uvicorn's inside is checked at the start (`gateway.http.uvicorn_inside`).
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import orjson
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gateway.http.connection import Follower
from gateway.metrics import refused

MESSAGE_BYTES_MAX = 4096
"""A client sends `{"type": "cancel"}` and nothing longer; a longer message is answered with 1009."""
MESSAGES_MAX = 16
"""Messages of a client that are read on one connection: it needs one."""
_FRAGMENTS_MAX = 64
"""Fragments of one message, also empty ones, which do not count towards its size."""
_CONTROL_FRAMES_MAX = 64
"""Pings and pongs within `_PIECE_BYTES` of input: a client sends one now and then."""
_EARLY_BYTES_MAX = 16 << 10
"""Frames that come before the handshake is answered, as a hasty client sends them."""
_PIECE_BYTES = 4096
"""How much input is parsed before the bounds are looked at: each frame costs 10 µs and may have only 6 bytes."""
ENDED, COME_BACK, TOO_MUCH = 1000, 1012, 1008
"""Close codes (RFC 6455, section 7.4.1, and IANA's registry): the stream has ended; reconnect; the client sent too much."""
_NO_UTF8 = 1007
_REASON_BYTES_MAX = 123  # RFC 6455, section 5.5

_logger = logging.getLogger(__name__)
_logger.setLevel(logging.WARNING)  # uvicorn logs each client with its query at `info`, and every frame at `debug`


class StreamFollower(Follower, Protocol):
    """A Follower of a connection that ends with its stream, or before it."""

    outcome: str
    """`completed` once the whole stream was sent: only then the client need not come back."""


def frame(message: bytes) -> bytes:
    """One unmasked text frame (RFC 6455, section 5.2)."""
    size = len(message)
    if size < 126:
        return b"\x81%c%b" % (size, message)
    if size < 65_536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), message)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), message)


class WebSocketConnection(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket connection, beside whose own frames a follower writes those of a stream."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.logger = self.conn.logger = _logger
        self.conn.debug = False
        self._follower: StreamFollower | None = None
        self.write_paused = False
        self._control_frames = 0
        self._early = b""

    @classmethod
    def of(cls, send: Any) -> WebSocketConnection:
        """The connection whose method `send` is, as uvicorn gives it to the application."""
        connection: WebSocketConnection = send.__self__
        return connection

    def follow(self, follower: StreamFollower) -> bool:
        """Has `follower` called when the socket takes bytes again, and when it is lost. False if the client has gone."""
        if self.disconnected or self.close_sent or self.transport.is_closing():
            return False
        self._follower = follower
        return True

    def send_event(self, event: str, data: dict[str, Any]) -> None:
        """Sends a message that is not an event of the log."""
        if not self.close_sent and not self.transport.is_closing():
            self.transport.write(frame(orjson.dumps({"id": None, "event": event, "data": data})))

    def end(self, code: int, reason: str) -> None:
        """Begins to close. A client that does not answer is cut off after `close_timeout` seconds."""
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
        follower = self.let_go()
        if follower is not None:
            follower.lost()

    def let_go(self) -> StreamFollower | None:
        """Forgets the follower, if there is one, and returns it."""
        follower, self._follower = self._follower, None
        return follower

    async def send(self, message: Any) -> None:
        if self.transport.is_closing():
            raise ClientDisconnected  # uvicorn would drop the message and log that no answer came
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True  # refused with an answer of our own: else uvicorn logs that there was none
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
            self._cut_off(TOO_MUCH, f"a message has no more than {_FRAGMENTS_MAX} fragments")

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not _is_utf8(b"".join(self.frames)):
            self._cut_off(_NO_UTF8, "a message must be UTF-8")
        elif self.queue.qsize() <= MESSAGES_MAX:  # what comes beyond is never read
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
            self._cut_off(TOO_MUCH, "too many pings")

    def _cut_off(self, code: int, reason: str) -> None:
        """Ends the connection of a client that breaks the protocol, or floods this process."""
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
        self.transport.pause_reading()  # a client that does not read may not send: each ping would add a pong to the buffer

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_paused = False
        if not self.read_paused:
            self.transport.resume_reading()
        if self._follower is not None:
            self._follower.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.conn.parser.close()  # else connection and parser refer to each other until the collector runs
        _forget_frames(self.conn.handshake_exc)
        self._leave()


def _forget_frames(error: BaseException | None) -> None:
    """Drops the tracebacks of a refused handshake's exceptions: the connection keeps these, and their frames lead back to it."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class Frames:
    """A Sink whose bytes are whole frames."""

    __slots__ = ("_connection",)

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection

    def send(self, body: bytes, chunk: bytes) -> bool:
        connection = self._connection
        if connection.transport.is_closing():
            return False  # `connection_lost` follows
        connection.transport.write(body)
        return not connection.write_paused

    def finish(self, body: bytes) -> None:
        follower = self._connection.let_go()  # whoever calls this detaches it
        ended = follower is not None and follower.outcome == "completed"
        if not self._connection.transport.is_closing():
            self._connection.transport.write(body)
        self._connection.end(ENDED if ended else COME_BACK, "" if ended else "come back with last_event_id")

    def cut(self, body: bytes) -> None:
        self._connection.let_go()
        if not self._connection.transport.is_closing():
            self._connection.transport.write(body)
            self._connection.transport.close()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
