"""The process: its socket, its parts, and its way to leave.

uvicorn waits for open responses before it tells the application that it is to stop, and a stream's response stays open
for as long as its answer takes. So the server's own `handle_exit` tells the readers: each gets what is ready and a
jittered `retry:`, and resumes on another gateway at its token.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from gateway.api.follow import Subscribe
from gateway.api.readiness import Readiness
from gateway.api.websocket import MESSAGE_BYTES_MAX, WebSocketConnection
from gateway.app import make_app
from gateway.console.files import is_wanted
from gateway.console.overview import Overview
from gateway.console.watchers import Watchers
from gateway.delivery.delivery import Delivery
from gateway.delivery.ledger import Ledger
from gateway.following.pages import Pages
from gateway.following.silence_checks import Sweep
from gateway.following.tails import Tails
from gateway.http.connection import Connection
from gateway.http.request_timeouts import RequestTimeouts
from gateway.listening import BACKLOG
from gateway.measuring import GatewayMeasuring
from gateway.presence import presence
from gateway.streams import Streams
from gateway.tracing import TracedLedger, TracedStreams, Traces
from shared.event_log import EventLog
from shared.queue import RequestQueue
from shared.receipt import DeliveryNotes
from shared.redis_server import RedisAddress, check
from shared.resp import RespConnection
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.spans import Tracing

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """uvicorn, but for the moment at which it is asked to stop."""

    def __init__(self, config: uvicorn.Config, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        logger.info("stopping: sending the readers away")
        # Not here: a signal comes in the middle of anything, also of a walk through the very readers that are to leave.
        self._loop.call_soon_threadsafe(self._on_exit)
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # else uvicorn raises it again in the end, and the process dies of it, not closed


async def serve(settings: Settings, listening: socket.socket, tracing: Tracing | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises Unusable."""
    server_name = await check(settings.redis_url, within_seconds=settings.redis_start_seconds)
    address = RedisAddress.parse(settings.redis_url)

    def connection(name: str, **more: Any) -> RespConnection:
        return RespConnection(
            address,
            name=name,
            reply_seconds=settings.redis_reply_seconds,
            reconnect_seconds_max=settings.reconnect_seconds_max,
            **more,
        )

    commands = connection("gateway", scripts=(*EventLog.SCRIPTS, *RequestQueue.SCRIPTS, *DeliveryNotes.SCRIPTS))
    log = EventLog(
        commands,
        log_ttl_seconds=settings.log_ttl_seconds,
        ended_ttl_seconds=settings.ended_ttl_seconds,
        tombstone_ttl_seconds=settings.tombstone_ttl_seconds,
    )
    queue = RequestQueue(commands, ttl_seconds=settings.log_ttl_seconds, requests_max=settings.queue_requests_max)
    pages = Pages(log, page_events=settings.page_events, cache_bytes_max=settings.page_cache_bytes_max)
    deliveries = DeliveryNotes(commands)
    traces = None if tracing is None else Traces(tracing, log, settings)
    ledger = Ledger(deliveries, settings) if traces is None else TracedLedger(traces, deliveries, settings)
    delivery = Delivery(pages, ledger, settings)
    tails = Tails(
        log,
        lambda on_push, on_up: connection("subscriber", on_push=on_push, on_up=on_up),
        settings,
        on_new=delivery.on_new,
    )
    sweep = Sweep(tails, log, settings, on_lost=delivery.lose)
    delivery.release = tails.release
    tails.on_unreadable, pages.on_unreadable = sweep.end_unreadable, tails.found_unreadable
    parts = (commands, log, queue, tails, deliveries, settings)
    streams = Streams(*parts) if traces is None else TracedStreams(traces, *parts)
    streams.on_unreadable = tails.found_unreadable
    subscribe = Subscribe(streams, tails, delivery, settings)
    measuring = GatewayMeasuring(delivery, tails, sweep, pages, commands, queue, settings)
    request_timeouts = RequestTimeouts(settings.request_seconds)
    there = presence(delivery, tails, commands, settings)
    watchers = Watchers(Overview(commands, queue)) if is_wanted(settings) else None
    readiness = Readiness(commands, settings)
    app = make_app(streams, subscribe, delivery, watchers, commands, readiness, settings)
    if traces is not None:
        app = traces.joining(app)
        sweep.on_ended = traces.failed_here

    def leave() -> None:
        if traces is not None:
            traces.leave()
        delivery.drain()
        if watchers is not None:
            watchers.drain()

    commands.start()
    try:
        await readiness.start()
    except BaseException:
        await readiness.close()
        await commands.close()
        raise
    tails.start()
    sweep.start()
    ledger.start()
    delivery.start()
    measuring.start()
    there.start()
    request_timeouts.start()
    config = uvicorn.Config(
        app,
        http=partial(Connection, request_timeouts),  # type: ignore[arg-type]  # it is called, and nothing else
        ws=WebSocketConnection,
        ws_max_size=MESSAGE_BYTES_MAX,
        ws_ping_interval=settings.keepalive_seconds,
        ws_ping_timeout=settings.dead_peer_seconds,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        headers=[("x-content-type-options", "nosniff")],  # whatever is answered is no script and no page by mistake
        proxy_headers=False,  # nothing here asks where a request came from
        backlog=BACKLOG,
        timeout_keep_alive=settings.idle_connection_seconds,
        timeout_graceful_shutdown=settings.drain_seconds,  # type: ignore[arg-type]  # a part of a second is as good
    )
    server = Server(config, leave)
    async with _closing(
        *([watchers] if watchers is not None else []),
        request_timeouts,
        there,
        delivery,
        ledger,
        streams,
        measuring,
        sweep,
        tails,
        readiness,
        commands,
        *([traces] if traces is not None else []),
    ):
        gc.collect()
        gc.freeze()  # what is there now stays for good: the collector need not look at it again
        # Rings are full of small tuples that live for seconds. At the default of 700 the collector walks them all the
        # time, which was a tenth of the work at 20,000 events/s; cycles are rare here, and may wait a little.
        gc.set_threshold(50_000, 20, 50)
        host, port = listening.getsockname()[:2]
        logger.info("gateway is up: http://%s:%d, %s", f"[{host}]" if ":" in host else host, port, server_name)
        await server.serve([listening])


@contextlib.asynccontextmanager
async def _closing(*parts: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for part in parts:
            await part.close()
