"""The requests of one HTTP connection: within bounds, one at a time; and the refusal of what is not a request.

`gateway.http.framing` finds where a request ends and refuses what is too large. A pipelined request is not parsed before
the one ahead of it is answered. A refusal ends the connection: nothing after it is read as HTTP. No object of a request
refers to the connection after the answer, so that a closed connection's memory is free at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any
from urllib.parse import unquote

from httptools import HttpParserInvalidURLError, parse_url
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.protocols.utils import is_ssl

from gateway.http.closing import Closing
from gateway.http.framing import (
    REQUEST_LINE_BYTES_MAX,
    Body,
    ChunkedBody,
    Head,
    Lines,
    check_begun,
    no_request,
    read_head,
)
from gateway.http.problems import Problem
from gateway.http.request_timeouts import RequestTimeouts
from gateway.metrics import refused

EXTENSION = "midstream.connection"
"""The key of a request's scope under which its connection is."""
_NO_PIPELINE: deque[Any] = deque(maxlen=0)
_EMPTY_LINES_BYTES_MAX = 64
"""Empty lines in one piece before a request: a client may send one after a body, and no more."""
_UNREAD_BYTES_MAX = 64 << 10
"""Pipelined requests that wait for the answer to the one ahead. Beyond it reading pauses."""
_BEHIND_SECONDS = 1.0
"""How long it pauses. Then what waits is dropped and reading goes on: a client that has gone is only noticed while reading."""
_DRAINED_BYTES_MAX = 1 << 20
"""How much of an unwanted body is read for the sake of the next request; beyond it the connection is closed."""


class Incoming(Closing):
    """uvicorn's connection, with this package's own parsing of requests."""

    __slots__ = ("_body", "_drained_bytes", "_drops_input", "_lines", "_unread")

    def __init__(self, request_timeouts: RequestTimeouts, *arguments: Any, **more: Any) -> None:
        super().__init__(request_timeouts, *arguments, **more)
        self._unread = b""
        """Bytes that are not parsed yet: a head that is incomplete, or pipelined requests."""
        self._lines: Lines | None = None
        """The lines of an incomplete head."""
        self._body: Body | None = None
        """The rest of the newest request's body; None when it is complete."""
        self._drained_bytes = 0
        self._drops_input = False
        """The connection is to end: whatever else comes is dropped."""
        self.parser = None  # type: ignore[assignment]  # each head gets its own, while it is read
        self.pipeline = _NO_PIPELINE

    # --- what comes

    def data_received(self, data: bytes) -> None:
        if self._drops_input:
            self.passed_over()
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
            # Also if no request begins: empty lines have ended uvicorn's own keep-alive timer.
            self._request_timeouts.begun(self)
        if not self._unread and self.cycle is None and self._body is None:
            end = data.find(b"\r\n\r\n") + 4
            if 4 < end <= REQUEST_LINE_BYTES_MAX:  # then no line is too long
                self._unread = data[end:]
                self._begin(data[:end])
                if self._unread:
                    self._go_on()
                return
        self._unread = self._unread + data if self._unread else data
        self._go_on()

    def passed_over(self) -> None:
        """Called when bytes have come that are dropped."""

    def _go_on(self) -> None:
        """Parses the unread bytes, as far as that is possible now."""
        while self._unread and not self._drops_input:
            if self._body is not None:
                self._take_body(self._body)
                if self._body is not None:
                    return
            elif self.cycle is not None:
                if len(self._unread) > _UNREAD_BYTES_MAX and not self._half_closed:
                    self._wait_for_the_answer()
                return
            elif not self._take_head():
                return

    def _take_head(self) -> bool:
        """Begins the request whose head is next; False if the head is incomplete."""
        if self._lines is None:
            if self._unread[:1] in b"\r\n" and not self._pass_over_empty_lines():
                return False
            self._lines = Lines()
            self._request_timeouts.begun(self)
        data = self._unread
        try:
            end = self._lines.end(data)
            if not end:
                check_begun(data)
                return False
        except Problem as problem:
            self._refuse(problem)
            return False
        self._lines = None
        self._unread = data[end:]
        self._begin(data[:end], since_earlier=True)
        return True

    def _pass_over_empty_lines(self) -> bool:
        """Drops empty lines before a request (RFC 9112, section 2.2); False if nothing is left."""
        begun = self._unread[:_EMPTY_LINES_BYTES_MAX].lstrip(b"\r\n")
        if not begun and len(self._unread) > _EMPTY_LINES_BYTES_MAX:
            self._refuse(no_request())
            return False
        self._unread = begun + self._unread[_EMPTY_LINES_BYTES_MAX:]
        return bool(self._unread)

    def _begin(self, raw: bytes, *, since_earlier: bool = False) -> None:
        """Begins the request that has this head. `since_earlier`: its time limit runs already, since the head came in pieces."""
        try:
            head = read_head(raw)
            body = head.body()
            path, raw_path, query = _target(head.url)
            if head.is_websocket and body is not None:
                raise Problem(400, "a WebSocket handshake has no body")
        except Problem as problem:
            self._refuse(problem)
            return
        if head.is_websocket:
            self._become_a_websocket(head)
            return
        self._body = body
        if self._body is None:
            self._request_timeouts.ended(self)
        elif not since_earlier:
            self._request_timeouts.begun(self)
        scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": head.version,
            "server": self._address("sockname"),
            "client": self._address("peername"),
            "scheme": self.scheme,
            "method": head.method,
            "root_path": self.root_path,
            "path": self.root_path + path,
            "raw_path": self.root_path.encode("ascii") + raw_path,
            "query_string": query,
            "headers": head.headers,
            "state": self.app_state.copy(),
            "extensions": {EXTENSION: self},
        }
        self.cycle = RequestResponseCycle(
            scope=scope,  # type: ignore[arg-type]  # ASGI allows extensions of our own
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=head.expects_continue and head.version == "1.1",
            keep_alive=head.keep_alive,
            on_response=self.on_response_complete,
        )
        if self._body is None:
            self.cycle.more_body = False
            self.cycle.message_event.set()
        self._start_asgi_task(self.cycle, self.app)

    def _address(self, side: str) -> tuple[str, int] | None:
        """Returns a host and port of the connection: `sockname`, the own ones, or `peername`. None of a Unix socket."""
        address = self.transport.get_extra_info(side)
        return (str(address[0]), int(address[1])) if type(address) is tuple else None

    def _take_body(self, body: Body) -> None:
        try:
            part, self._unread = body.take(self._unread)
        except Problem as problem:
            self._refuse(problem)
            return
        cycle = self.cycle
        if body.whole:
            self._body = None
            self._request_timeouts.ended(self)
        if cycle is not None:
            cycle.body += part
            cycle.more_body = not body.whole
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()
        elif body.whole:
            self._await_next()
        else:
            self._drained_bytes += len(part)
            if self._drained_bytes > _DRAINED_BYTES_MAX:
                self._linger()

    def _wait_for_the_answer(self) -> None:
        """Pauses reading: enough requests wait."""
        if self._timer is None:
            self.flow.pause_reading()
            self._timer = self.loop.call_later(_BEHIND_SECONDS, self._drop_what_waits)
        elif len(self._unread) > 2 * _UNREAD_BYTES_MAX:
            self.flow.pause_reading()  # the application has read its body, which resumed reading

    def _drop_what_waits(self) -> None:
        self._timer = None
        self._unread = b""
        cycle = self.cycle
        if cycle is not None:
            cycle.keep_alive = False
            self._drops_input = True  # only the end of the connection is still noticed
            self.flow.resume_reading()

    # --- what is not a request

    def time_is_up(self) -> None:
        """Ends the connection, whose request is not complete in time; 408 if it has begun."""
        if self._body is None and not self._unread:
            self._close()  # there is no request to answer
        else:
            self._refuse(Problem(408, f"the request was not complete within {self._request_timeouts.seconds:g} s"))

    @property
    def peer(self) -> str:
        """The address of the other side; empty if it has none."""
        address = self._address("peername")
        return "" if address is None else address[0]

    def make_room(self) -> None:
        """Ends the connection, which has no complete request, without an answer: too many wait."""
        self._drops_input = True
        self._close()

    def has_a_long_body(self) -> None:
        """Ends the time limit of the request under way: its body comes as it is made. Whoever reads it has a limit of its own."""
        self._request_timeouts.ended(self)
        if isinstance(self._body, ChunkedBody):
            self._body.has_short_chunks = True

    def no_more_body(self) -> None:
        """Ends the connection if the request that was answered has not come whole: what its client still sends is dropped."""
        if self._body is not None and not self._drops_input:
            self._linger()

    def _refuse(self, problem: Problem) -> None:
        """Answers what cannot be a request, and ends the connection. None of its bytes is parsed any more."""
        cycle = self.cycle
        answered = self._body is not None  # then the rest of the body of an answered request is at fault
        if cycle is not None:
            answered = cycle.response_started
            cycle.disconnected = True
            cycle.waiting_for_100_continue = False
            cycle.message_event.set()
        self._forget_request()
        if not answered:
            refused(problem.status)
            body = problem.body()
            headers = {**problem.headers(), "content-length": str(len(body)), "connection": "close"}
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            default = b"".join(b"%b: %b\r\n" % pair for pair in self.server_state.default_headers)
            self.transport.write(b"%b%b%b\r\n%b" % (STATUS_LINE[problem.status], default, lines.encode("ascii"), body))
        self._linger()

    def _linger(self) -> None:
        """Ends the connection, but goes on reading for a moment."""
        self._drops_input = True
        self._unread, self._lines, self._body = b"", None, None
        self._request_timeouts.ended(self)
        self._unset_keepalive_if_required()
        self._end_wait()
        self.flow.resume_reading()
        self._close_after_a_moment()

    def _become_a_websocket(self, head: Head) -> None:
        self._request_timeouts.ended(self)
        self.connections.discard(self)
        lines = [head.method.encode(), b" ", head.url, b" HTTP/1.1\r\n"]
        for name, value in head.headers:
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"\r\n")
        protocol: Any = self.ws_protocol_class(  # type: ignore[call-arg, misc]
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        protocol.connection_made(self.transport)
        protocol.data_received(b"".join(lines))
        if protocol.handshake_initiated:
            self.transport.set_protocol(protocol)
            rest, self._unread, self._drops_input = self._unread, b"", True
            if rest:
                protocol.data_received(rest)
            return
        self.connections.discard(protocol)
        self.connections.add(self)
        longest = max(len(name) + len(value) for name, value in head.headers)
        if longest > REQUEST_LINE_BYTES_MAX - 8:
            problem = Problem(
                431, f"a header field of a WebSocket handshake has more than {REQUEST_LINE_BYTES_MAX} bytes"
            )
        else:
            problem = Problem(400, "this is not a WebSocket handshake (RFC 6455)")
        self._refuse(problem)

    # --- the answer

    def on_response_complete(self) -> None:
        """Called when the newest request is answered: goes on with the next one, or waits for it."""
        self.server_state.total_requests += 1
        self._forget_request()
        if self.transport.is_closing():
            self._watch_the_rest()
            return
        self._unset_keepalive_if_required()
        if not self._half_closed:
            self._end_wait()
        self.flow.resume_reading()
        if self._body is None:
            self._await_next()

    def _await_next(self) -> None:
        if self._unread:
            self._go_on()
            if self._half_closed and (self._lines is not None or self._body is not None):
                self._refuse(_cut_short())
        if self._drops_input or self.cycle is not None or self._lines is not None or self._body is not None:
            return
        if self._half_closed:
            self._close()
        else:
            self._request_timeouts.idle(self)
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _forget_request(self) -> None:
        """Drops the request's cycle: its scope refers to this connection, and may live longer than that."""
        cycle, self.cycle = self.cycle, None  # type: ignore[assignment]
        self._drained_bytes = 0
        if cycle is not None:
            cycle.on_response = _nothing

    # --- asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        # As uvicorn's, which also looks up both addresses. It keeps them, and the transport a socket object with them: 360
        # bytes of every idle reader. Here each request looks them up.
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.scheme = "https" if is_ssl(transport) else "http"
        if self._request_timeouts.has_room():
            self._request_timeouts.begun(self)
        else:
            self._drops_input = True
            transport.abort()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn keeps nothing open
        """True to keep our half open, for the answer to a request that is complete."""
        if self._drops_input and self.cycle is None:
            return False
        if self.cycle is None or self._body is not None:
            if self._unread or self._body is not None:
                self._refuse(_cut_short())
            return False
        self._probe_half_closed()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_timeouts.ended(self)
        super().connection_lost(exc)
        self._drops_input = True
        self._unread, self._lines, self._body = b"", None, None
        self._forget_request()


def _cut_short() -> Problem:
    return Problem(400, "the connection ended before the request did")


def _nothing() -> None:
    pass


def _target(url: bytes) -> tuple[str, bytes, bytes]:
    """The decoded path, the path as it was sent, and the query of a request's target. Raises Problem 400."""
    try:
        parsed = parse_url(url)
        raw_path = parsed.path or b"/"
        path = raw_path.decode("ascii")
    except (HttpParserInvalidURLError, UnicodeDecodeError):
        raise Problem(400, "the request's target is not a path (RFC 9112, section 3.2)") from None
    return unquote(path) if "%" in path else path, raw_path, parsed.query or b""
