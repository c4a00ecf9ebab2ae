"""One HTTP connection, of which a reader's response can be taken out of uvicorn's hands.

uvicorn keeps a task, its coroutines, the request's scope and its headers for as long as a response lasts (5 KB of them), and
checks and frames every piece of a body for each reader anew. A reader's response lasts for minutes, and its pieces are the
same for many. So once a reader is admitted, its connection is written to directly, and nothing else of the request stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from httptools import HttpRequestParser
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.metrics import refused
from gateway.problems import Problem
from gateway.unasked import Unasked

_EXTENSION = "midstream.connection"

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


_NO_PIPELINE: deque[Any] = deque(maxlen=0)


class Connection(HttpToolsProtocol):
    """uvicorn's connection, and a Sink."""

    _follower: Follower | None = None
    _chunked = True
    _keep_open = False

    def __init__(self, unasked: Unasked, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._unasked = unasked

    @classmethod
    def of(cls, scope: dict[str, Any]) -> Connection:
        """The connection on which a request came."""
        connection: Connection = scope["extensions"][_EXTENSION]
        return connection

    @staticmethod
    def add_headers(send: Any, headers: list[tuple[bytes, bytes]]) -> None:
        """Every response to this request, whoever gives it, has these headers."""
        cycle: RequestResponseCycle = send.__self__
        cycle.default_headers = [*cycle.default_headers, *headers]

    def open(self, send: Any, follower: Follower, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Begin a response with status 200 and take it over, from uvicorn's `send`. False if the client has gone."""
        cycle: RequestResponseCycle = send.__self__  # of this request: `self.cycle` may be the next one's already
        if self.transport.is_closing() or cycle.disconnected:
            return False
        self._chunked = cycle.scope["http_version"] != "1.0"
        self._keep_open = cycle.keep_alive and self._chunked
        lines = [STATUS_LINE[200]]
        for name, value in (*cycle.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self._keep_open:
            lines.append(b"connection: close\r\n")
        self.transport.write(b"%b\r\n%b" % (b"".join(lines), chunk_of(body) if self._chunked and body else body))
        self._unasked.ended(self)
        cycle.response_started = cycle.response_complete = True  # as far as uvicorn has to do with it
        if self.cycle is cycle:
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment]  # the next request sets them
        if not self.pipeline:
            self._slim_down()
        self._follower = follower
        return True

    def _slim_down(self) -> None:
        """Do without what only a request needs, a third of an idle reader's memory, until the response has ended."""
        self.flow.resume_reading()
        self.parser = None  # type: ignore[assignment]
        self.flow = _Flow()  # type: ignore[assignment]
        self.pipeline = _NO_PIPELINE

    def _be_ready_again(self) -> None:
        self.parser = HttpRequestParser(self)
        self.flow = FlowControl(self.transport)
        self.pipeline = deque()

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
        if not self._keep_open:
            self.transport.close()
        elif self.parser is None:
            self._be_ready_again()
        self.on_response_complete()

    def cut(self, body: bytes) -> None:
        self._follower = None
        if body:
            self.transport.write(chunk_of(body) if self._chunked else body)
        self.transport.close()

    # --- what does not become a request

    def time_is_up(self) -> None:
        cycle = self.cycle
        if cycle is not None and cycle.scope is not self.scope and not cycle.response_complete:
            self._unasked.begun(self)  # the answer to the request before it is not cut off for that
        elif self.headers is None or (cycle is not None and cycle.scope is self.scope and cycle.response_started):
            self.transport.close()  # nothing was asked, or it is answered already
        else:
            self._refuse(Problem(408, f"the request did not come whole within {self._unasked.seconds:g} s"))

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what its parser cannot read, in the shape that ours have."""
        self._refuse(Problem(400, "this is no HTTP/1.1 request"))

    def _refuse(self, problem: Problem) -> None:
        refused(problem.status)
        body = problem.body()
        told = {**problem.headers(), "content-length": str(len(body)), "connection": "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        default = b"".join(b"%b: %b\r\n" % pair for pair in self.server_state.default_headers)
        self.transport.write(b"%b%b%b\r\n%b" % (STATUS_LINE[problem.status], default, lines.encode("ascii"), body))
        self.transport.close()

    # --- asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._unasked.begun(self)

    def on_message_complete(self) -> None:
        self._unasked.ended(self)
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._unasked.ended(self)
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        self._unasked.begun(self)
        super().on_message_begin()
        self.scope["extensions"] = {_EXTENSION: self}  # type: ignore[dict-item]  # any value of one's own is allowed

    def data_received(self, data: bytes) -> None:
        if self._follower is not None:
            self._keep_open = False  # a request before the answer to the last: HTTP lets us close after that
            return
        if self.timeout_keep_alive_task is not None:
            self._unasked.begun(self)  # also of what begins no request: empty lines end uvicorn's own wait
        super().data_received(data)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._follower is not None:
            self._follower.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unasked.ended(self)
        super().connection_lost(exc)
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.lost()
