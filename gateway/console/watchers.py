"""`GET /v1/overview` and `/v1/overview/events`: one snapshot of all streams and processes, or one a second.

With `?history=1` the first event is named `history` and has the numbers of the last two minutes.

Snapshots are written to a watcher's socket directly, as events are to a reader's. A watcher whose socket is full misses snapshots.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from urllib.parse import parse_qs

import orjson
from starlette.responses import Response

from gateway.access.authenticators import proof
from gateway.console.overview import Overview
from gateway.faces import on_one_line
from gateway.http.connection import Connection, Receive, Scope, Send, chunk_of
from gateway.http.problems import Problem, stopping
from gateway.http.routes import OperationsOf, Route, route_for
from shared import sse
from shared.background import keep_running, pause

operations = OperationsOf("gateway.console.operations")

PATH = "/v1/overview"
SNAPSHOT_SECONDS = 1.0
WATCHERS_MAX = 32
"""The most watchers of one process: a snapshot of 100 streams is 25 KB, and readers must not suffer."""
_HELLO = sse.KEEP_ALIVE + sse.retry(1000)
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


class Watcher:
    """One connection that gets snapshots; implements `Follower`."""

    def __init__(self, watchers: Watchers, connection: Connection) -> None:
        self._watchers = watchers
        self.connection = connection
        self.proof = proof.get()
        self.takes = False
        """The response has begun, and the socket is not full."""

    def writable(self) -> None:
        self.takes = True

    def lost(self) -> None:
        self._watchers.forget(self)


class Watchers:
    """The routes of the overview. Makes snapshots while there is a watcher, and otherwise only samples of the numbers."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._watching: set[Watcher] = set()
        self._task: asyncio.Task[None] | None = None
        self._sampling: asyncio.Task[None] | None = None
        self._draining = False
        self.routes = (
            Route("GET", PATH, self.once, operations.OVERVIEW, "admin"),
            Route("GET", PATH + "/events", self.watch, operations.OVERVIEW_EVENTS, "admin"),
        )

    def start(self) -> None:
        self._sampling = keep_running("samples", self._sample)

    def route(self, scope: Scope) -> Route | None:
        """Returns the route of a request of one of these paths; None for everything else."""
        return route_for(self.routes, scope)

    async def once(self, scope: Scope, receive: Any, send: Any) -> None:
        """`GET /v1/overview`"""
        headers = {"cache-control": "no-store"}
        response = Response(await self._overview.current(), 200, headers, media_type="application/json")
        await response(scope, receive, send)

    async def watch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /v1/overview/events`"""
        if self._draining:
            raise stopping()
        if len(self._watching) >= WATCHERS_MAX:
            raise Problem(
                503, f"this process has {WATCHERS_MAX} watchers already, which is the limit", retry_after_seconds=5
            )
        connection = Connection.of(scope)
        watcher = Watcher(self, connection)
        self._watching.add(watcher)  # before the first await, so that it counts for the limit
        try:
            first = _event(await self._overview.current())
            if parse_qs(scope["query_string"].decode("latin-1")).get("history") == ["1"]:
                first = (
                    b"event: history\ndata: %b\n\n" % on_one_line(orjson.dumps(self._overview.samples.all())) + first
                )
        except BaseException:
            self.forget(watcher)
            raise
        if self._draining or not connection.open(send, watcher, _HEADERS, _HELLO + first):
            self.forget(watcher)
            if self._draining:
                raise stopping()
            return
        watcher.takes = True
        self._keep_sending()

    def forget(self, watcher: Watcher) -> None:
        self._watching.discard(watcher)

    def drain(self) -> None:
        """Ends all responses: this process is about to stop, and watchers reconnect to another."""
        self._draining = True
        for watcher in [watcher for watcher in self._watching if watcher.takes]:
            self.forget(watcher)
            watcher.connection.finish(b"")

    async def close(self) -> None:
        tasks = [task for task in (self._task, self._sampling) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _sample(self) -> None:
        """Takes samples while nobody watches, so that the charts of the next watcher do not begin empty."""
        pause_seconds = 0.0
        while True:
            await pause(pause_seconds)
            pause_seconds = SNAPSHOT_SECONDS if self._watching else await self._overview.sample()

    def _keep_sending(self) -> None:
        if self._task is None or self._task.done():
            self._task = keep_running("watchers", self._send_snapshots)

    async def _send_snapshots(self) -> None:
        while self._watching:
            await asyncio.sleep(SNAPSHOT_SECONDS)  # a `pause` may be shorter: then watchers would get what they have
            await self._end_revoked()
            event = _event(await self._overview.current())
            chunk = chunk_of(event)
            for watcher in [watcher for watcher in self._watching if watcher.takes]:
                watcher.takes = False  # stays so if `send` raises: the other watchers get the next snapshot
                watcher.takes = watcher.connection.send(event, chunk)

    async def _end_revoked(self) -> None:
        """Ends the responses of watchers whose key was revoked, or whose session is over."""
        for watcher in [watcher for watcher in self._watching if watcher.proof is not None and watcher.takes]:
            with contextlib.suppress(Problem):  # it cannot be known while Redis is away
                if watcher.proof is not None and not await watcher.proof.holds() and watcher in self._watching:
                    self.forget(watcher)
                    watcher.connection.finish(b"")


def _event(snapshot: bytes) -> bytes:
    return b"data: %b\n\n" % on_one_line(snapshot)
