"""One HTTP connection. A reader's response is taken out of uvicorn's hands and written to the socket directly.

For as long as a response lasts, uvicorn keeps a task, its coroutines, the request's scope and its headers (5 KB), and
checks and frames every piece of a body for each reader again. A reader's response lasts for minutes, and many readers get
the same pieces. So once a reader is admitted, nothing of its request stays but the connection
(docs/decisions/0008-a-reader-s-response-is-taken-out-of-uvicorn.md).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from gateway.http.incoming import EXTENSION, Incoming
from gateway.http.request_timeouts import RequestTimeouts

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
"""The three arguments of an ASGI application."""


class Follower(Protocol):
    """The writer of a connection, with callbacks that the connection calls, never before `open` has returned."""

    def writable(self) -> None:
        """Called when the socket, which was full, takes bytes again."""

    def lost(self) -> None:
        """Called when the connection has ended."""


class Sink(Protocol):
    """An open connection that a reader's bytes are written to."""

    def send(self, body: bytes, chunk: bytes) -> bool:
        """Sends one piece of the body; `chunk` is `chunk_of(body)`. False if the socket is full, until `writable` is called."""

    def finish(self, body: bytes) -> None:
        """Sends the last piece, which may be empty, and ends the response."""

    def cut(self, body: bytes) -> None:
        """Sends a piece and breaks off, so that the client sees that the response is incomplete."""


def chunk_of(body: bytes) -> bytes:
    """Returns one chunk of a chunked body (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(body), body)


_NOT_NOW, _NEVER = -1, -2
"""In place of a file descriptor: pieces go to the transport, for now or (TLS) always."""


class _Flow:
    """The part of uvicorn's FlowControl that a response needs which no coroutine awaits."""

    __slots__ = ("write_paused",)

    def __init__(self) -> None:
        self.write_paused = False

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False

    def resume_reading(self) -> None:
        """Does nothing: reading is never paused here."""


class Connection(Incoming):
    """uvicorn's HTTP connection, which is also a Sink once a response is open."""

    __slots__ = ("_chunked", "_direct_fd", "_follower", "_keep_open")

    def __init__(self, request_timeouts: RequestTimeouts, *arguments: Any, **more: Any) -> None:
        super().__init__(request_timeouts, *arguments, **more)
        self._follower: Follower | None = None
        self._chunked = True
        self._direct_fd = _NOT_NOW
        """The socket's file descriptor, while the transport holds nothing that must be sent before."""
        self._keep_open = False

    @classmethod
    def of(cls, scope: dict[str, Any]) -> Connection:
        """The connection of a request."""
        connection: Connection = scope["extensions"][EXTENSION]
        return connection

    @staticmethod
    def add_headers(send: Any, headers: list[tuple[bytes, bytes]]) -> None:
        """Adds headers to every response to this request, whichever handler gives it."""
        cycle: RequestResponseCycle = send.__self__
        cycle.default_headers = [*cycle.default_headers, *headers]

    def open(self, send: Any, follower: Follower, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Begins a response with status 200 and takes it over from uvicorn. False if there is nobody to follow: the client has
        gone, or has sent HEAD and gets the head only."""
        cycle: RequestResponseCycle = send.__self__
        if self.transport.is_closing() or cycle.disconnected:
            cycle.disconnected = True  # `connection_lost` follows: uvicorn need not miss an answer
            return False
        self._chunked = cycle.scope["http_version"] != "1.0"
        self._keep_open = cycle.keep_alive and self._chunked and self._body is None and not self._half_closed
        lines = [STATUS_LINE[200]]
        for name, value in (*cycle.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self._keep_open:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        cycle.response_started = cycle.response_complete = True  # for uvicorn
        if cycle.scope["method"] == "HEAD":
            self.transport.write(b"%b\r\n" % head)
            if not self._keep_open:
                self.transport.close()
            self.on_response_complete()
            return False
        self.transport.write(b"%b\r\n%b" % (head, chunk_of(body) if self._chunked and body else body))
        self._direct_fd = min(self._direct_fd, _NOT_NOW)  # a response before this one may have been written directly
        if self._body is not None:
            self._body = None  # the rest of it is not read
            self._request_timeouts.ended(self)
        if not self._keep_open:
            self._unread = b""
        self._forget_request()
        self._slim_down()
        self._drops_input = True
        self._follower = follower
        return True

    def _slim_down(self) -> None:
        """Drops what only a request needs, a third of an idle reader's memory, until the response has ended."""
        if not self._half_closed:
            self._end_wait()
        self.flow.resume_reading()
        self.flow = _Flow()  # type: ignore[assignment]

    # --- Sink

    def send(self, body: bytes, chunk: bytes) -> bool:
        """Writes to the socket at once, without the transport, which takes a fifth longer; what the socket does not take goes there."""
        transport, piece = self.transport, chunk if self._chunked else body
        if self._direct_fd >= 0 and not transport.is_closing() and not transport.get_write_buffer_size():
            try:
                written = os.write(self._direct_fd, piece)
            except OSError:  # it is full, or broken: the transport finds out which
                written = 0
            if written == len(piece):
                return True
            piece = piece[written:]
        transport.write(piece)
        self._write_directly_soon()
        return not self.flow.write_paused

    def _write_directly_soon(self) -> None:
        """Has the next pieces written directly once the transport has passed on what it was just given, at the end of this turn of the loop."""
        if self._direct_fd != _NEVER:
            self._direct_fd = _NOT_NOW
            self.loop.call_soon(self._write_directly)

    def _write_directly(self) -> None:
        if self._follower is None or self.transport.is_closing():
            return
        if self.transport.get_extra_info("sslcontext") is not None:
            self._direct_fd = _NEVER
        else:
            self._direct_fd = self.transport.get_extra_info("socket").fileno()

    def finish(self, body: bytes) -> None:
        self._follower = None
        if self._chunked:
            self.transport.write(chunk_of(body) + b"0\r\n\r\n" if body else b"0\r\n\r\n")
        else:
            self.transport.write(body)
        if self._keep_open:
            self._drops_input = False
            self.flow = FlowControl(self.transport)
        else:
            self.transport.close()
        self.on_response_complete()

    def cut(self, body: bytes) -> None:
        self._follower = None
        if body:
            self.transport.write(chunk_of(body) if self._chunked else body)
        self.transport.close()
        self._watch_the_rest()

    # --- asyncio.Protocol

    def passed_over(self) -> None:
        self._keep_open = False  # a pipelined request is dropped: HTTP allows to close after the response
        self._unread = b""

    def pause_writing(self) -> None:
        if self._follower is None:
            super().pause_writing()
        else:
            self.flow.pause_writing()  # a reader may be slow

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._follower is not None:
            self._follower.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.lost()
