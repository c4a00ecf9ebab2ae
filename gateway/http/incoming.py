"""What comes in on one HTTP connection: requests within bounds, one at a time, and what becomes of all that is none.

What a client sends is gone through by `gateway.http.framing`, which says where a request ends and refuses what is too large. A
request behind one that is not answered yet is not looked at. A refusal ends the connection: nothing after it is read as HTTP.
No object of a request knows the connection for longer than it is answered: what a closed one held is free at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from typing import Any
from urllib.parse import unquote

from httptools import HttpParserInvalidURLError, parse_url
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.http.framing import REQUEST_LINE_BYTES_MAX, Body, Head, Lines, check_begun, no_request, read_head
from gateway.http.problems import Problem
from gateway.http.request_timeouts import RequestTimeouts
from gateway.metrics import refused

EXTENSION = "midstream.connection"
"""Where a request's scope has its connection."""
_NO_PIPELINE: deque[Any] = deque(maxlen=0)
_EMPTY_LINES_BYTES_MAX = 64
"""In one piece before a request: a client may send one after a body, and no more."""
_UNREAD_BYTES_MAX = 64 << 10
"""Of requests that wait for the answer to the one before them. Nothing more is read, until it is answered or stays away."""
_BEHIND_SECONDS = 1.0
"""For so long. Then what waits is dropped and reading goes on, because only who reads notices that a client has gone."""
_DRAINED_BYTES_MAX = 1 << 20
"""Of a body that nobody wanted, so much is read for the sake of the next request; beyond that the connection is closed."""
_LINGER_SECONDS = 2.0
"""How long a client that was refused may go on sending before it is cut off: at once, and it might not see why (RFC 9112, 9.6)."""
_GONE_SECONDS, _GONE_SECONDS_MAX = 0.25, 8.0
"""How soon, and then how often, it is looked whether a client that has closed its half is there at all."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Incoming(HttpToolsProtocol):
    """uvicorn's connection, but for how it takes requests."""

    _unread = b""
    """What has come and was not looked at: a head that is not whole, or requests behind one that is not answered."""
    _lines: Lines | None = None
    """Of a head that is not whole."""
    _body: Body | None = None
    """Of the newest request, if it is not whole."""
    _drained_bytes = 0
    _deaf = False
    """It is to end: whatever else comes is dropped."""
    _half_closed = False
    """The client sends no more, but may still read."""
    _timer: asyncio.TimerHandle | None = None
    """The one wait of the moment, of these: for what is behind, for whether the client is there, for the end."""
    _stuck: asyncio.TimerHandle | None = None
    """While the client does not take what it is sent."""

    def __init__(self, request_timeouts: RequestTimeouts, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.parser = None  # type: ignore[assignment]  # each head has its own, for as long as it is read
        self.pipeline = _NO_PIPELINE
        self._request_timeouts = request_timeouts

    # --- what comes

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self.passed_over()
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
            self._request_timeouts.begun(
                self
            )  # also where it begins no request: empty lines have ended uvicorn's own wait
        if not self._unread and self.cycle is None and self._body is None:
            end = data.find(b"\r\n\r\n") + 4
            if 4 < end <= REQUEST_LINE_BYTES_MAX:  # so no line is longer than it may be
                self._unread = data[end:]
                self._begin(data[:end])
                if self._unread:
                    self._go_on()
                return
        self._unread = self._unread + data if self._unread else data
        self._go_on()

    def passed_over(self) -> None:
        """Bytes have come that nobody looks at."""

    def _go_on(self) -> None:
        """Look at what was not looked at, as far as that is possible now."""
        while self._unread and not self._deaf:
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
        """Begin the request whose head is the first that was not looked at; False if it is not whole."""
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
        """Those before a request (RFC 9112, section 2.2); False if nothing is left."""
        begun = self._unread[:_EMPTY_LINES_BYTES_MAX].lstrip(b"\r\n")
        if not begun and len(self._unread) > _EMPTY_LINES_BYTES_MAX:
            self._refuse(no_request())
            return False
        self._unread = begun + self._unread[_EMPTY_LINES_BYTES_MAX:]
        return bool(self._unread)

    def _begin(self, raw: bytes, *, since_earlier: bool = False) -> None:
        """A request whose head this is. Its time runs already if the head came in pieces."""
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
            "server": self.server,
            "client": self.client,
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
            scope=scope,  # type: ignore[arg-type]  # any extension of one's own is allowed
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
        """Read nothing more for a while: enough requests wait."""
        if self._timer is None:
            self.flow.pause_reading()
            self._timer = self.loop.call_later(_BEHIND_SECONDS, self._drop_what_waits)
        elif len(self._unread) > 2 * _UNREAD_BYTES_MAX:
            self.flow.pause_reading()  # the application wanted its body, and has resumed it

    def _drop_what_waits(self) -> None:
        self._timer = None
        self._unread = b""
        cycle = self.cycle
        if cycle is not None:
            cycle.keep_alive = False
            self._deaf = True  # but for the end
            self.flow.resume_reading()

    # --- what does not become a request

    def time_is_up(self) -> None:
        if self._body is None and not self._unread:
            self.transport.close()  # nothing was asked
            self._watch_the_rest()
        else:
            self._refuse(Problem(408, f"the request did not come whole within {self._request_timeouts.seconds:g} s"))

    def _refuse(self, problem: Problem) -> None:
        """Answer what cannot be a request, and end the connection. No byte of it is looked at any more."""
        cycle = self.cycle
        answered = self._body is not None  # by now: what is at fault is the rest of a body that nobody waited for
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
        """End the connection, but hear the client out for a moment: it may be in the middle of what was refused."""
        self._deaf = True
        self._unread, self._lines, self._body = b"", None, None
        self._request_timeouts.ended(self)
        self._unset_keepalive_if_required()
        self._end_wait()
        self.flow.resume_reading()
        if self._half_closed or self.transport.is_closing():
            self.transport.close()
            self._watch_the_rest()
            return
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

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
            rest, self._unread, self._deaf = self._unread, b"", True
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
            problem = Problem(400, "this is no WebSocket handshake (RFC 6455)")
        self._refuse(problem)

    # --- the way out

    def on_response_complete(self) -> None:
        """The newest request is answered: to the next, or to wait for it."""
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
        if self._deaf or self.cycle is not None or self._lines is not None or self._body is not None:
            return
        if self._half_closed:
            self.transport.close()
            self._watch_the_rest()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _forget_request(self) -> None:
        """Its scope knows this connection: whoever still has it must not keep a closed connection's memory."""
        cycle, self.cycle = self.cycle, None  # type: ignore[assignment]
        self._drained_bytes = 0
        if cycle is not None:
            cycle.on_response = _nothing

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_the_rest()

    def _end_wait(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    # --- a client that does not take what it is sent, or has closed its half

    def _watch_the_rest(self) -> None:
        """The connection is closed as soon as its client has taken the rest: it must not take for ever."""
        if self._stuck is None and (left := self.transport.get_write_buffer_size()):
            self._stuck = self.loop.call_later(self._request_timeouts.seconds, self._cut_if_stuck, left)

    def _cut_if_stuck(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        self._stuck = None
        if left >= before:
            self.transport.abort()
        elif left:
            self._stuck = self.loop.call_later(self._request_timeouts.seconds, self._cut_if_stuck, left)

    def _look_for_the_client(self, seconds: float) -> None:
        """Whether a client that has closed its half is there at all: one that is not says so to whatever it is sent."""
        self._timer = None
        if _has_failed(self.transport):
            self.transport.abort()
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_started:
            if cycle.scope["http_version"] == "1.0":  # which knows nothing that could be sent: it counts as gone
                self.transport.abort()
                return
            self.transport.write(_CONTINUE)  # before an answer it means nothing (RFC 9110, section 15.2)
        self._timer = self.loop.call_later(seconds, self._look_for_the_client, min(2 * seconds, _GONE_SECONDS_MAX))

    # --- asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._request_timeouts.begun(self)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn keeps nothing open
        """Whether the way out stays open: for the answer to a request that has come whole."""
        if self._deaf and self.cycle is None:
            return False
        if self.cycle is None or self._body is not None:
            if self._unread or self._body is not None:
                self._refuse(_cut_short())
            return False
        self._half_closed = True
        self._end_wait()
        self._timer = self.loop.call_later(_GONE_SECONDS, self._look_for_the_client, _GONE_SECONDS)
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_the_rest()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stuck is not None and not self.transport.is_closing():
            self._stuck.cancel()
            self._stuck = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_timeouts.ended(self)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it, of a connection that was reset
        self._end_wait()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        self._deaf = True
        self._unread, self._lines, self._body = b"", None, None
        self._forget_request()


def _cut_short() -> Problem:
    return Problem(400, "the connection ended before the request did")


def _nothing() -> None:
    pass


def _target(url: bytes) -> tuple[str, bytes, bytes]:
    """The path, as it is meant and as it was sent, and the query of a request's target. Raises Problem 400."""
    try:
        parsed = parse_url(url)
        raw_path = parsed.path or b"/"
        path = raw_path.decode("ascii")
    except (HttpParserInvalidURLError, UnicodeDecodeError):
        raise Problem(400, "the request's target is no path (RFC 9112, section 3.2)") from None
    return unquote(path) if "%" in path else path, raw_path, parsed.query or b""


def _has_failed(transport: asyncio.Transport) -> bool:
    """Whether the other side has reset the connection, which asyncio notices only while it reads or writes."""
    try:
        same = socket.socket(fileno=socket.dup(transport.get_extra_info("socket").fileno()))
    except OSError:
        return True
    with same:
        return same.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
