"""`GET /v1/probe`: events sent at known times, which show what proxies do to a stream (`midstream doctor`). Needs no Redis.

    first event (what the gateway got of the request) ── silence, with comments if wanted ── events ── `end`

Each event says when it was sent. The clocks of two machines differ, so a client compares the times between events. A client
that gave the probe a name can ask later (`GET /v1/probe/{name}`) whether the gateway noticed that it had left.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self

import orjson

from gateway.delivery.delivery import Delivery
from gateway.http.connection import Connection, Receive, Scope, Send, chunk_of
from gateway.http.exchange import query_of
from gateway.http.problems import Problem, stopping
from gateway.http.routes import OperationsOf, Route, route_for
from shared import sse
from shared.settings import Settings
from shared.version import VERSION

operations = OperationsOf("gateway.api.operations")

PATH = "/v1/probe"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]
"""Those of a real stream, so that proxies treat both alike."""

_PROBES_MAX = 64
"""Probes at once in one process: they need no key, and must not take the place of readers."""
_NAMES_MAX = 256
_PROBE_SECONDS_MAX = 3600
_PROBE_BYTES_MAX = 16 << 20
_LOOK_SECONDS = 0.05
"""How often a waiting probe looks whether the gateway is to stop; shorter than uvicorn's own interval."""
_NAME = re.compile(r"[A-Za-z0-9_-]{8,64}")
_SHOWN_CHARACTERS = 256
_ECHOED = (
    "last-event-id",
    "accept",
    "accept-encoding",
    "connection",
    "via",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-amzn-trace-id",
    "cf-ray",
    "cdn-loop",
    "x-vercel-id",
)
"""Request headers that proxies set, change or drop. None of them carries a secret."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a probe sends."""

    events: int = 20
    interval_ms: int = 50
    padding_bytes: int = 0
    """Additional text in each event, to fill a buffer and learn its size."""
    silence_ms: int = 0
    """Between the first event and the others."""
    comment_ms: int = 0
    """A keep-alive comment this often during the silence; 0 for none."""

    @classmethod
    def parse(cls, query: dict[str, str]) -> Self:
        """The plan that a query describes. Raises Problem 400."""
        plan = cls(
            events=_whole(query, "events", 20, 0, 10_000),
            interval_ms=_whole(query, "interval_ms", 50, 0, 10_000),
            padding_bytes=_whole(query, "padding_bytes", 0, 0, 16_384),
            silence_ms=_whole(query, "silence_ms", 0, 0, _PROBE_SECONDS_MAX * 1000),
            comment_ms=_whole(query, "comment_ms", 0, 0, 60_000),
        )
        if plan.silence_ms + plan.events * plan.interval_ms > _PROBE_SECONDS_MAX * 1000:
            raise Problem(400, f"silence_ms + events x interval_ms must be at most {_PROBE_SECONDS_MAX} s in all")
        if plan.events * plan.padding_bytes > _PROBE_BYTES_MAX:
            raise Problem(400, f"events x padding_bytes must be at most {_PROBE_BYTES_MAX}")
        if 0 < plan.comment_ms < 50:
            raise Problem(400, f"comment_ms must be 0 (no comments) or 50 to 60000, not {plan.comment_ms}")
        return plan


@dataclass(slots=True)
class _Trace:
    """What became of a probe."""

    opened_at: float
    sent: int = 0
    closed_by: str = ""
    """client, gateway or end; empty while it runs."""
    closed_after_ms: float = 0.0


class Probe:
    """Serves probes, and keeps what became of the newest that have a name."""

    def __init__(self, delivery: Delivery, settings: Settings) -> None:
        self._delivery = delivery
        self._settings = settings
        self._running = 0
        self._traces: OrderedDict[str, _Trace] = OrderedDict()
        self.routes = (
            Route("GET", PATH, self.stream, operations.PROBE, "read"),
            Route("GET", PATH + "/{name:path}", self.trace, operations.PROBE_TRACE, "read"),
        )

    def route(self, scope: Scope) -> Route | None:
        """The route of a request of these paths; None for everything else."""
        return route_for(self.routes, scope)

    async def trace(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /v1/probe/{name}`: whether that probe still runs, or who ended it. 404 if another process served it."""
        trace = self._traces.get(scope["path"][len(PATH) + 1 :])
        if trace is None:
            raise Problem(404, "this process has served no probe of that name lately; another one may have")
        body = orjson.dumps(
            {
                "running": not trace.closed_by,
                "closed_by": trace.closed_by or None,
                "sent": trace.sent,
                "closed_after_ms": round(trace.closed_after_ms, 1) if trace.closed_by else None,
            }
        )
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /v1/probe`"""
        query = query_of(scope)
        if query.get("status", "200") not in ("200", "204"):
            raise Problem(400, "status must be 204, to be answered so; leave it out for a stream")
        plan, name = Plan.parse(query), query.get("name", "")
        if name and not _NAME.fullmatch(name):
            raise Problem(400, "name must have 8 to 64 letters, digits, - or _")
        if query.get("status") == "204":
            await send({"type": "http.response.start", "status": 204, "headers": [(b"cache-control", b"no-store")]})
            await send({"type": "http.response.body", "body": b""})
            return
        if self._delivery.draining:
            raise stopping()
        if self._running >= _PROBES_MAX:
            raise Problem(503, f"{_PROBES_MAX} probes run here already, which is the most", retry_after_seconds=5)
        trace = _Trace(time.monotonic())
        if name:
            self._traces[name] = trace
            while len(self._traces) > _NAMES_MAX:
                self._traces.popitem(last=False)
        self._running += 1
        try:
            await self._follow(plan, trace, scope, send)
        finally:
            self._running -= 1
            trace.closed_by = trace.closed_by or "gateway"
            trace.closed_after_ms = (time.monotonic() - trace.opened_at) * 1000

    async def _follow(self, plan: Plan, trace: _Trace, scope: Scope, send: Send) -> None:
        """Begins the response as a reader's, so that it is framed alike, and carries out the plan."""
        connection, client = Connection.of(scope), _Client()
        beginning = {
            "seen": _seen(scope),
            "probe": secrets.token_hex(8),  # a value seen twice comes from a cache
            "gateway": {
                "version": VERSION,
                "keepalive_seconds": self._settings.keepalive_seconds,
                "connection_seconds": self._settings.connection_seconds,
            },
        }
        head = sse.KEEP_ALIVE + sse.retry(self._settings.retry_milliseconds)
        if not connection.open(send, client, HEADERS, head + _event("probe", 0, 0.0, beginning)):
            trace.closed_by = "client"
            return
        try:
            async for part in self._parts(plan, trace, client):
                if not connection.send(part, chunk_of(part)):
                    client.full()
        finally:
            if not client.gone:
                connection.finish(b"")
        if not trace.closed_by:
            trace.closed_by = "gateway" if self._delivery.draining else "client"

    async def _parts(self, plan: Plan, trace: _Trace, client: _Client) -> AsyncIterator[bytes]:
        """The pieces of the body behind the first event, each when it is due. Ends early when either side leaves."""
        began = time.monotonic()
        silent_until = began + plan.silence_ms / 1000
        comments = 0

        def now_ms() -> float:
            return round((time.monotonic() - began) * 1000, 3)

        while plan.comment_ms and (due := began + (comments + 1) * plan.comment_ms / 1000) < silent_until:
            if not await self._reached(due, client):
                return
            yield sse.KEEP_ALIVE
            comments += 1
        padding = {"padding": secrets.token_hex(plan.padding_bytes)[: plan.padding_bytes]} if plan.padding_bytes else {}
        for number in range(1, plan.events + 1):
            if not await self._reached(silent_until + number * plan.interval_ms / 1000, client):
                return
            yield _event("", number, now_ms(), padding)
            trace.sent = number
        if await self._reached(silent_until, client):
            yield _event("end", plan.events + 1, now_ms(), {"comments": comments})
            trace.closed_by = "end"

    async def _reached(self, due: float, client: _Client) -> bool:
        """Waits for this time, and for a socket that takes bytes. False if the client or the gateway leaves before."""
        while not client.gone and not self._delivery.draining:
            left_seconds = due - time.monotonic()
            if left_seconds <= 0 and client.takes:
                return True
            await client.news(min(left_seconds, _LOOK_SECONDS) if left_seconds > 0 else _LOOK_SECONDS)
        return False


class _Client:
    """The Follower of a probe's connection."""

    def __init__(self) -> None:
        self.gone = False
        self.takes = True
        self._news = asyncio.Event()

    def full(self) -> None:
        self.takes = False
        self._news.clear()

    async def news(self, within_seconds: float) -> None:
        """Returns when the connection has ended, or takes bytes again, or the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                await self._news.wait()
        if not self.gone:
            self._news.clear()

    def writable(self) -> None:
        self.takes = True
        self._news.set()

    def lost(self) -> None:
        self.gone = True
        self._news.set()


def _event(name: str, number: int, sent_ms: float, more: dict[str, Any]) -> bytes:
    data = orjson.dumps({"n": number, "sent_ms": sent_ms, **more})
    return b"%bdata: %b\nid: %d\n\n" % (b"event: %b\n" % name.encode() if name else b"", data, number)


def _seen(scope: Scope) -> dict[str, Any]:
    """What arrived of the request: the last hop's HTTP version, and the headers that are left."""
    headers: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").lower()
        if name in _ECHOED:
            before = headers.get(name)
            headers[name] = (f"{before}, " if before else "") + value.decode("latin-1")
    return {
        "http_version": scope["http_version"],
        "headers": {name: value[:_SHOWN_CHARACTERS] for name, value in headers.items()},
    }


def _whole(query: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    # The length first: int() of a very long text is slow, and refused.
    if len(text) > 9 or not (text.isascii() and text.isdecimal()) or not least <= int(text) <= most:
        raise Problem(400, f"{name} must be a whole number from {least} to {most}, not {text[:64]!r}")
    return int(text)
