"""How one HTTP connection ends, so that no client holds it for ever: one that takes no answer, or that has closed its half.

close ──► what is buffered is sent ──► ends; cut off when a client takes nothing of it for `MIDSTREAM_REQUEST_SECONDS`
refused ──► our half is closed ──► the client is read for a moment, so that it sees why ──► cut off
client's half closed ──► its request is answered; meanwhile probes find out whether it is there at all
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.http.request_timeouts import RequestTimeouts

_LINGER_SECONDS = 2.0
"""How long a refused client may go on sending before it is cut off: at once, and it might not see why (RFC 9112, 9.6)."""
_PROBE_SECONDS, _PROBE_SECONDS_MAX = 0.25, 8.0
"""When a client that has closed its half is first probed, and the longest time between two probes."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Closing(HttpToolsProtocol):
    """uvicorn's connection, with bounds on how long its end may take."""

    # Slots beside uvicorn's own dictionary: with more than 30 names in it Python no longer shares its keys among
    # connections, and each would take 1.4 KB more.
    __slots__ = ("_half_closed", "_request_timeouts", "_stuck", "_timer")

    def __init__(self, request_timeouts: RequestTimeouts, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._half_closed = False
        """The client sends no more, but may still read."""
        self._timer: asyncio.TimerHandle | None = None
        """The one wait under way: for the answer to an earlier request, for a probe of the client, or for the end."""
        self._stuck: asyncio.TimerHandle | None = None
        """Runs while the client does not take what it is sent."""
        self._request_timeouts = request_timeouts

    def _close(self) -> None:
        """Closes the connection when the client has taken what is buffered."""
        self.transport.close()
        self._watch_the_rest()

    def _close_after_a_moment(self) -> None:
        """Closes the own half and keeps reading for a moment: the client may be in the middle of what was refused."""
        if self._half_closed or self.transport.is_closing():
            self._close()
            return
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def _watch_the_rest(self) -> None:
        """Cuts the connection off if the client takes nothing of what is buffered for the time of a request."""
        if self._stuck is None and (left := self.transport.get_write_buffer_size()):
            self._stuck = self.loop.call_later(self._request_timeouts.seconds, self._cut_if_stuck, left)

    def _cut_if_stuck(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        self._stuck = None
        if left >= before:
            self.transport.abort()
        elif left:
            self._stuck = self.loop.call_later(self._request_timeouts.seconds, self._cut_if_stuck, left)

    def _probe_half_closed(self) -> None:
        """Begins to probe the client, which has closed its half: it may have closed the other one, too."""
        self._half_closed = True
        self._end_wait()
        self._timer = self.loop.call_later(_PROBE_SECONDS, self._probe, _PROBE_SECONDS)

    def _probe(self, seconds: float) -> None:
        """Sends something harmless: a client that has gone resets the connection."""
        self._timer = None
        if _has_failed(self.transport):
            self.transport.abort()
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_started:
            if cycle.scope["http_version"] == "1.0":  # it knows no 1xx, so nothing can be sent: it counts as gone
                self.transport.abort()
                return
            self.transport.write(_CONTINUE)  # before a final answer it means nothing (RFC 9110, section 15.2)
        self._timer = self.loop.call_later(seconds, self._probe, min(2 * seconds, _PROBE_SECONDS_MAX))

    def _end_wait(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _end_watch(self) -> None:
        stuck, self._stuck = self._stuck, None
        if stuck is not None:
            stuck.cancel()

    # --- of uvicorn and asyncio

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_the_rest()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_the_rest()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._end_watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves that timer of a connection that was reset
        self._end_wait()
        self._end_watch()


def _has_failed(transport: asyncio.Transport) -> bool:
    """Whether the other side has reset the connection, which asyncio notices only while it reads or writes."""
    try:
        duplicate = socket.socket(fileno=socket.dup(transport.get_extra_info("socket").fileno()))
    except OSError:
        return True
    with duplicate:
        return duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
