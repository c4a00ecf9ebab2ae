"""HTTP/1.1 for a thousand slow answers at once: a transport for httpx2, which the official SDK takes through its client.

httpx2's own transport parses in Python (h11) and passes each chunk through anyio's scopes and six generators: 70–200 µs
of worker for a token that comes alone, which is more than all the rest of its way. Here llhttp parses in C, and whoever
follows the body is called with all that a packet brought, with no task in between.

Only what an answer needs: no proxy and no HTTP/2, for which httpx2's own transport stays. Reading has no time limit of
its own: the attempt watches over silence. (RFC 9112)
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast
from urllib.parse import urlsplit

import httptools
import httpx2

from producer.ticks import Ticks

_IDLE_SECONDS = 5.0
"""A connection that waits for its next request is closed so long after its last: before most servers close theirs."""
_IDLE_MAX = 100
_HEAD_BYTES_MAX = 64 << 10
"""Of a response's head, with the interim ones before it; and of what stands between two pieces of its body, or behind the
last: sizes and extensions of chunks, trailers."""
_HEADERS_MAX = 100
_PART_BYTES = 64
"""What a piece of the body takes in memory beside its bytes: a chunk may have one."""
_UNREAD_BYTES_MAX = 256 << 10
"""What one connection holds unread before it stops taking: a reader that waits for Redis must not fill the memory."""

_REST_SECONDS_MAX = 0.1
"""How long a connection may rest at a time: the end of an answer, or a broken connection, is seen so much later at most."""

_GATHERED_BYTES = 64 << 10
"""So many bytes end a rest early: half of a socket's usual buffer, so that its sender need not wait."""
_KERNEL_GATHERS = sys.platform == "linux"
"""Whether a socket can be told not to be readable below a number of bytes, and is looked at anew when that is taken back
(SO_RCVLOWAT, socket(7), tcp(7)). Elsewhere there are no rests."""

FOLLOW = "midstream.follow"
"""The response's extension that tells of its body past httpx2's generators: `_Connection.follow`."""

Origin = tuple[str, str, int]
AddressOf = Callable[[str, int], Awaitable[str]]
"""Returns the IP address to connect to, for a host and a port. What it raises, the request raises."""


def proxy_of(url: str) -> str | None:
    """The address of the proxy that the environment names for this URL, as httpx2 would find it."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


class DirectTransport(httpx2.AsyncBaseTransport):
    """At most `connections_max` requests at once; further ones wait for their turn, as long as their pool time-out says."""

    def __init__(
        self,
        *,
        connections_max: int,
        tls: ssl.SSLContext | None = None,
        peer: str = "the provider",
        address_of: AddressOf | None = None,
    ) -> None:
        """`peer`: what error messages call the server. `address_of` chooses the address to which a connection is made."""
        self._slots = asyncio.Semaphore(connections_max)
        self._tls = tls
        self._peer = peer
        self._address_of = address_of
        self._connections: set[_Connection] = set()
        self._idle: dict[Origin, list[_Connection]] = {}
        self._idle_count = 0
        self._ticks = Ticks()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends a request and reads the head of its response. Raises httpx2.TransportError."""
        seconds = request.extensions.get("timeout") or {}
        message = _head(request) + await request.aread()
        try:
            async with asyncio.timeout(seconds.get("pool")):
                await self._slots.acquire()
        except TimeoutError:
            raise httpx2.PoolTimeout(f"too many requests are under way to {self._peer}") from None
        connection = None
        try:
            connection = await self._connection(request.url, seconds.get("connect"))
            await connection.send_request(message)
        except BaseException:
            if connection is not None:
                connection.close()
            self._slots.release()
            raise
        return httpx2.Response(
            connection.status,
            headers=connection.headers,
            stream=_Body(self, connection),
            extensions={"http_version": b"HTTP/1.1", FOLLOW: connection.follow},
        )

    async def aclose(self) -> None:
        for connection in list(self._connections):
            connection.close()

    # --- connections

    async def _connection(self, url: httpx2.URL, connect_seconds: float | None) -> _Connection:
        """Returns a connection to the server: of the idle ones the one used last, else a new one."""
        tls = url.scheme == "https"
        origin = (url.scheme, url.host, url.port or (443 if tls else 80))
        waiting = self._idle.get(origin)
        while waiting:
            connection = waiting.pop()
            self._idle_count -= 1
            if connection.may_ask and not connection.has_news:
                return connection
            connection.close()
        connection = _Connection(origin, self._peer, self._ticks)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(connect_seconds):
                host, port = origin[1:]
                address = host if self._address_of is None else await self._address_of(host, port)
                await loop.create_connection(
                    lambda: connection,
                    address,
                    port,
                    ssl=self._tls_context() if tls else None,
                    server_hostname=host if tls else None,
                )
        except TimeoutError:
            raise httpx2.ConnectTimeout(f"no connection within {connect_seconds:g} s") from None
        except OSError as error:  # ssl.SSLError is one
            raise httpx2.ConnectError(str(error) or type(error).__name__) from error
        self._connections.add(connection)
        connection.on_lost = self._connections.discard
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        """Returns the TLS context, made when it is first needed: reading the certificates takes 20 ms."""
        if self._tls is None:
            self._tls = httpx2.create_ssl_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def give_back(self, connection: _Connection) -> None:
        """Keeps a connection for the next request, or closes it: also where its response was not read to the end, since only that stops
        the server."""
        self._slots.release()
        if not connection.may_ask or self._idle_count >= _IDLE_MAX:
            connection.close()
            return
        self._idle.setdefault(connection.origin, []).append(connection)
        self._idle_count += 1
        asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._expire, connection, connection.requests)

    def _expire(self, connection: _Connection, requests: int) -> None:
        waiting = self._idle.get(connection.origin, [])
        if connection.requests == requests and connection in waiting:
            waiting.remove(connection)
            self._idle_count -= 1
            connection.close()


class _Body(httpx2.AsyncByteStream):
    def __init__(self, transport: DirectTransport, connection: _Connection) -> None:
        self._transport = transport
        self._connection: _Connection | None = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None and (part := await self._connection.read()):
            yield part

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.give_back(connection)


class _Connection(asyncio.Protocol):
    """One connection, which carries one request after the other; one task at a time waits on it."""

    __slots__ = (
        "_body_came",
        "_complete",
        "_excess",
        "_framing_bytes",
        "_headers_bytes",
        "_headers_count",
        "_loop",
        "_may_go_on",
        "_parser",
        "_parts",
        "_paused",
        "_peer",
        "_resting",
        "_socket",
        "_take",
        "_take_failed",
        "_ticks",
        "_transport",
        "_trouble",
        "_unread_bytes",
        "_until_closed",
        "_waiter",
        "_wants_at",
        "headers",
        "on_lost",
        "origin",
        "requests",
        "status",
    )

    def __init__(self, origin: Origin, peer: str, ticks: Ticks) -> None:
        self.origin = origin
        self._peer = peer
        self._ticks = ticks
        self._loop = asyncio.get_running_loop()
        self.on_lost: Callable[[_Connection], None] | None = None
        self.requests = 0
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._headers_count = self._headers_bytes = 0
        """Of one response, with its interim ones and its trailers."""
        self._framing_bytes = 0
        """Since the beginning of the response, or since the last piece of its body."""
        self._body_came = False
        self._excess = ""
        """What was too much, where a callback of the parser found it."""
        self._until_closed = True
        """The response tells no length: the end of the connection is its end."""
        self._parts: list[bytes] = []
        self._unread_bytes = 0
        self._paused = False
        self._complete = False
        self._may_go_on = True
        self._trouble: tuple[type[httpx2.TransportError], str] | None = None
        """Not an exception: that would hold, by its traceback, all that ever waited here."""
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], bool] | None = None
        """Whoever follows the body; None while somebody reads it instead."""
        self._wants_at: Callable[[], float] | None = None
        """When whoever follows wants to be told again (monotonic seconds); None: always at once."""
        self._resting = False
        """The kernel gathers what comes until a tick, since whoever follows wants nothing before."""
        self._socket: socket.socket | None = None
        """The transport's socket, once there was a rest: `PseudoSocket` of uvloop takes twice as long to set an option."""
        self._take_failed: Exception | None = None

    @property
    def may_ask(self) -> bool:
        """Whether it is open, and nothing of an earlier response is still to come."""
        return self._transport is not None and self._may_go_on and (self._complete or not self.requests)

    @property
    def has_news(self) -> bool:
        """Whether an idle one's socket holds what the loop has not seen yet: almost surely that its server closed it."""
        assert self._transport is not None
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))

    async def send_request(self, message: bytes) -> None:
        """Sends a request, head and body, and waits for the head of its response. Raises httpx2.TransportError."""
        assert self._transport is not None
        self.requests += 1
        self.status, self.headers = 0, []
        self._headers_count = self._headers_bytes = 0
        self._parser = httptools.HttpResponseParser(self)
        self._framing_bytes, self._body_came, self._until_closed, self._complete = 0, False, True, False
        self._transport.write(message)
        while not self.status:
            await self._news()

    async def read(self) -> bytes:
        """All that came of the body since the last time; nothing: that was all. Raises httpx2.TransportError."""
        while not self._parts:
            if self._complete:
                return b""
            await self._news()
        return self._taken()

    async def follow(self, take: Callable[[bytes], bool], wants_at: Callable[[], float] | None = None) -> bool:
        """Gives the body to `take` as it comes. Returns True at its end, False once `take` has returned False: it wants no more for now.

        `take` is called from the event loop, without a turn of the task that waits here. After each call `wants_at` says when the
        next one is wanted (monotonic seconds): until then, or a little longer, the socket is not read, which spares a wake-up for
        each chunk. Raises httpx2.TransportError, and what `take` raises.
        """
        self._take, self._wants_at = take, wants_at
        try:
            self._give_taken()
            while self._take is not None and not self._complete:
                await self._news()
                self._give_taken()
            if self._take_failed is not None:
                raise self._take_failed
            return self._take is not None
        finally:
            self._take = self._take_failed = self._wants_at = None

    def _give_taken(self) -> None:
        """Gives what has come to `take`; wakes the task that waits in `follow` when it is to return or to raise."""
        take = self._take
        if take is not None and self._parts:
            try:
                if not take(self._taken()):
                    self._take = None
            except Exception as error:  # it is the follower's, not the loop's
                self._take, self._take_failed = None, error
        if self._take is None or self._complete:
            self._wake()
        elif self._wants_at is not None:
            self._rest(self._wants_at())

    def _rest(self, wanted_at: float) -> None:
        """Lets the kernel gather what comes until then, but not for longer than a rest may be.

        The end of the connection ends the rest. To stop reading instead would cost more: the loop is woken once for each socket
        that it does not read any more.
        """
        now = self._loop.time()
        if wanted_at <= now or self._resting or not _KERNEL_GATHERS:
            return
        if self._transport is not None and not self._transport.is_closing():
            if self._socket is None:
                own = self._transport.get_extra_info("socket")
                self._socket = socket.socket(own.family, own.type, own.proto, own.fileno())
            self._resting = True
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _GATHERED_BYTES)
            self._ticks.call_at(min(wanted_at, now + _REST_SECONDS_MAX), self._end_rest)

    def _end_rest(self) -> None:
        self._resting = False
        if self._socket is not None and self._transport is not None and not self._transport.is_closing():
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _taken(self) -> bytes:
        """What is unread, as read."""
        parts, self._parts, self._unread_bytes = self._parts, [], 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _news(self) -> None:
        if self._trouble is not None:
            kind, message = self._trouble
            raise kind(message)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, message: str) -> None:
        """The response cannot be read on: it breaks HTTP's rules, or our bounds."""
        self._trouble = self._trouble or (httpx2.RemoteProtocolError, message)
        self.close()
        self._wake()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not its instances

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._complete:
            self.close()  # nothing was asked: whatever it is, it must not be taken for the next answer
            return
        if self._trouble is not None:
            return  # it is being closed
        self._body_came = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(self._excess or f"{self._peer} does not speak HTTP/1.1: {error}")
            return
        if self.status:
            self._give_taken()
        self._framing_bytes = 0 if self._body_came else self._framing_bytes + len(data)
        if self._framing_bytes > _HEAD_BYTES_MAX:
            self._fail(f"{self._peer} sent {_HEAD_BYTES_MAX} bytes of head, trailers or chunk extensions")
        elif self._unread_bytes > _UNREAD_BYTES_MAX and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._parser = None  # which knows this connection: they would hold one another
        if self._socket is not None:
            self._socket.detach()  # the transport closes it
        if self.on_lost is not None:
            self.on_lost(self)
        if self.status and self._until_closed and exc is None:
            self._complete = True
        elif exc is not None:
            self._trouble = self._trouble or (httpx2.ReadError, str(exc) or type(exc).__name__)
        else:
            when = "before its response was whole" if self.status else "without a response"
            message = f"{self._peer} closed the connection {when}"
            self._trouble = self._trouble or (httpx2.RemoteProtocolError, message)
        self._wake()

    # --- what the parser finds

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("it answers what was not asked")  # in the packet that ended the response

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers_count += 1
        self._headers_bytes += len(name) + len(value)
        if self._headers_count > _HEADERS_MAX or self._headers_bytes > _HEAD_BYTES_MAX:
            self._excess = f"{self._peer} sent more than {_HEADERS_MAX} headers or {_HEAD_BYTES_MAX} bytes of them"
            raise ValueError(self._excess)
        if self.status:
            return  # a trailer: nothing that we know of says anything with it
        self.headers.append((name, value))
        self._until_closed = self._until_closed and name.lower() not in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 100:
            self._excess = f"{self._peer} does not speak HTTP/1.1: its status is {status}"
            raise ValueError(self._excess)
        if status < 200:  # "100 Continue": the response itself is still to come
            self.headers, self._until_closed = [], True
            return
        self._may_go_on = self._parser.should_keep_alive()
        self.status = status

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)
        self._body_came = True
        self._unread_bytes += len(part) + _PART_BYTES

    def on_message_complete(self) -> None:
        if self.status:
            self._complete = True


def _head(request: httpx2.Request) -> bytes:
    """A request's first line and headers. Raises LocalProtocolError for what would end a header early."""
    lines = [request.method.encode("ascii") + b" " + request.url.raw_path + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in request.headers.raw]
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1 or b"\0" in head:
        raise httpx2.LocalProtocolError("a header of the request has a line break in it")
    return head + b"\r\n\r\n"
