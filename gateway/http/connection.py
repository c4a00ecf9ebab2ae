"""One HTTP connection, of which a reader's response can be taken out of uvicorn's hands.

uvicorn keeps a task, its coroutines, the request's scope and its headers for as long as a response lasts (5 KB of them), and
checks and frames every piece of a body for each reader anew. A reader's response lasts for minutes, and its pieces are the
same for many. So once a reader is admitted, its connection is written to directly, and nothing else of the request stays.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from gateway.http.incoming import EXTENSION, Incoming

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
"""ASGI's three."""


class Follower(Protocol):
    """Who writes to a connection, and is told what becomes of it. Neither is called before `open` has returned."""

    def writable(self) -> None:
        """The socket that was full takes bytes again."""

    def lost(self) -> None:
        """The connection has ended."""


class Sink(Protocol):
    """Where a reader's bytes go: a connection that is open."""

    def send(self, body: bytes, chunk: bytes) -> bool:
        """Send one piece of the body, told also framed by `chunk_of`; whether it takes more. Else: `writable`."""

    def finish(self, body: bytes) -> None:
        """Send the last piece, maybe empty, and end the response."""

    def cut(self, body: bytes) -> None:
        """Send what there is and break off, so that the client sees that it is not whole."""


def chunk_of(body: bytes) -> bytes:
    """One piece of a chunked body (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(body), body)


class _Flow:
    """What of uvicorn's FlowControl a response needs that nobody awaits."""

    __slots__ = ("write_paused",)

    def __init__(self) -> None:
        self.write_paused = False

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False

    def resume_reading(self) -> None:
        """It was never paused."""


class Connection(Incoming):
    """A connection, and a Sink."""

    _follower: Follower | None = None
    _chunked = True
    _keep_open = False

    @classmethod
    def of(cls, scope: dict[str, Any]) -> Connection:
        """The connection on which a request came."""
        connection: Connection = scope["extensions"][EXTENSION]
        return connection

    @staticmethod
    def add_headers(send: Any, headers: list[tuple[bytes, bytes]]) -> None:
        """Every response to this request, whoever gives it, has these headers."""
        cycle: RequestResponseCycle = send.__self__
        cycle.default_headers = [*cycle.default_headers, *headers]

    def open(self, send: Any, follower: Follower, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Begin a response with status 200 and take it over, from uvicorn's `send`. False if the client has gone."""
        cycle: RequestResponseCycle = send.__self__
        if self.transport.is_closing() or cycle.disconnected:
            cycle.disconnected = True  # its end is on the way: nobody is owed an answer
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
        self.transport.write(b"%b\r\n%b" % (b"".join(lines), chunk_of(body) if self._chunked and body else body))
        cycle.response_started = cycle.response_complete = True  # as far as uvicorn has to do with it
        if self._body is not None:
            self._body = None  # nobody reads it
            self._request_timeouts.ended(self)
        if not self._keep_open:
            self._unread = b""
        self._forget_request()
        self._slim_down()
        self._deaf = True
        self._follower = follower
        return True

    def _slim_down(self) -> None:
        """Do without what only a request needs, a third of an idle reader's memory, until the response has ended."""
        if not self._half_closed:
            self._end_wait()
        self.flow.resume_reading()
        self.flow = _Flow()  # type: ignore[assignment]

    # --- Sink

    def send(self, body: bytes, chunk: bytes) -> bool:
        self.transport.write(chunk if self._chunked else body)
        return not self.flow.write_paused

    def finish(self, body: bytes) -> None:
        self._follower = None
        if self._chunked:
            self.transport.write(chunk_of(body) + b"0\r\n\r\n" if body else b"0\r\n\r\n")
        else:
            self.transport.write(body)
        if self._keep_open:
            self._deaf = False
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
        self._keep_open = False  # a request before the answer to the last: HTTP lets us close after that
        self._unread = b""

    def pause_writing(self) -> None:
        if self._follower is None:
            super().pause_writing()
        else:
            self.flow.pause_writing()  # a reader may take its time

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._follower is not None:
            self._follower.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.lost()
