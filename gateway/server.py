"""One gateway process: builds its parts, starts them, serves, and closes them in the reverse order.

On a signal uvicorn waits for open responses, and a stream's response stays open as long as its answer takes. So the
server's own `handle_exit` drains the readers first: each gets the events that are ready and a jittered `retry:`, and
resumes at its token through another gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from gateway.access.admission import Admission
from gateway.access.api_keys import ApiKeys
from gateway.access.append_rates import AppendRates
from gateway.access.authenticators import KeptUp
from gateway.access.given_tokens import GivenTokens
from gateway.access.limits import Limits, OwnLimits
from gateway.access.mode import is_authentication_on
from gateway.access.owners import Owners
from gateway.access.sessions import Sessions
from gateway.access.signing import SigningKeys
from gateway.access.stream_readers import StreamReaders
from gateway.access.stream_tokens import StreamTokens
from gateway.access.webhooks import StreamWebhooks
from gateway.api.follow import Subscribe
from gateway.api.health import Health
from gateway.api.readiness import Readiness
from gateway.app import Services, make_app
from gateway.console.files import is_wanted
from gateway.console.overview import Overview
from gateway.console.watchers import Watchers
from gateway.delivery.delivery import Delivery
from gateway.delivery.ledger import Ledger
from gateway.delivery.reader import Reader
from gateway.facades.durable.durable import DurableStreams, are_wanted
from gateway.following.endings import Endings
from gateway.following.followed_streams import FollowedStreams
from gateway.following.pages import Pages
from gateway.following.silence_checks import SilenceChecks
from gateway.following.tails import Tails
from gateway.http.addresses import Addresses
from gateway.http.connection import Connection
from gateway.http.exchange import HEADERS_OF_ALL
from gateway.http.request_timeouts import RequestTimeouts
from gateway.http.routes import ASGI
from gateway.http.uvicorn_inside import check_uvicorn
from gateway.http.websocket_connection import MESSAGE_BYTES_MAX, WebSocketConnection
from gateway.listening import BACKLOG
from gateway.measuring import GatewayMeasuring
from gateway.presence import presence
from gateway.provider_models import ProviderModels
from gateway.streams.streams import Streams
from gateway.tracing import TracedLedger, TracedStreams, Traces
from gateway.writing.lost_writers import LostWriters
from gateway.writing.writes import Writes
from shared.accounts import Accounts
from shared.archive import archive_of
from shared.connections import RedisConnection, RedisSubscriber, check, connection_to
from shared.event_log import EventLog
from shared.external_writes import ExternalWrites, WriterLeases
from shared.lanes import Lanes, lanes_of
from shared.metrics_server import MetricsServer
from shared.presence import Presence
from shared.queue import RequestQueue
from shared.receipt import DeliveryNotes
from shared.replicas import ReplicatedCommands
from shared.running_parts import RunningParts
from shared.settings import Settings
from shared.unkept import Unkept
from shared.usage import Usage
from shared.webhooks import WebhookStore
from shared.written_log import Holdings, Names, WrittenLog

if TYPE_CHECKING:
    from gateway.finding import Finding
    from gateway.restoring import Restoring
    from shared.archive.store import Archive
    from shared.spans import Tracing

logger = logging.getLogger(__name__)


_DATE_SECONDS = 1.0
"""The pause between two updates of the header `Date` of responses, whose unit is the second (RFC 9110, section 5.6.7)."""


class Server(uvicorn.Server):
    """uvicorn, with a call of our own when it is asked to stop."""

    def __init__(self, config: uvicorn.Config, on_exit: Callable[[], None]) -> None:
        super().__init__(config)
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self._exit_requested = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        logger.info("stopping: sending the readers away")
        # Not called here: a signal interrupts any code, also a loop over the readers that are to leave.
        self._loop.call_soon_threadsafe(self._on_exit)
        self._loop.call_soon_threadsafe(self._exit_requested.set)
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # else uvicorn raises it again, and the process dies before it has closed

    async def main_loop(self) -> None:
        """Sets the responses' Date once a second, until a signal ends it. uvicorn's looks for that ten times a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DATE_SECONDS):
                    await self._exit_requested.wait()


@dataclass(frozen=True)
class _Gateway:
    """The parts of one gateway process, in the order in which they start."""

    traces: Traces | None
    commands: RedisConnection
    durable: RedisConnection | None
    readiness: Readiness
    authenticators: Sequence[KeptUp]
    endings: Endings
    tails: Tails
    silence_checks: SilenceChecks
    measuring: GatewayMeasuring
    usage: Usage
    stream_readers: StreamReaders
    streams: Streams
    lost_writers: LostWriters
    restoring: Restoring | None
    ledger: Ledger
    delivery: Delivery
    presence: Presence
    request_timeouts: RequestTimeouts
    watchers: Watchers | None
    written: DurableStreams | None
    metrics_server: MetricsServer
    app: ASGI

    async def start(self, running: RunningParts) -> None:
        """Starts the parts. They are closed in reverse: readers first, Redis and traces last."""
        if self.traces is not None:
            running.add(self.traces)
        running.add(self.commands).start()
        if self.durable is not None:
            running.add(self.durable).start()
        await running.add(self.readiness).start()
        for authenticator in self.authenticators:
            running.add(authenticator).start()
        running.add(self.endings)
        running.add(self.tails).start()
        running.add(self.silence_checks).start()
        running.add(self.measuring).start()
        running.add(self.usage).start()
        running.add(self.stream_readers).start()
        running.add(self.streams)
        running.add(self.lost_writers).start()
        if self.restoring is not None:
            running.add(self.restoring).start()
        running.add(self.ledger).start()
        running.add(self.delivery).start()
        running.add(self.presence).start()
        running.add(self.request_timeouts).start()
        if self.watchers is not None:
            running.add(self.watchers).start()
        if self.written is not None:
            running.add(self.written)
        metrics_url = await running.add(self.metrics_server).open()
        if metrics_url is not None:
            logger.info("metrics: %s", metrics_url)

    def leave(self) -> None:
        """Sends all readers away, since the process is about to stop."""
        if self.traces is not None:
            self.traces.leave()
        self.delivery.drain()
        if self.watchers is not None:
            self.watchers.drain()


def _restoring(archive: Archive, commands: RedisConnection, unkept: Unkept) -> Restoring:
    from gateway.restoring import Restoring  # imports the database's libraries

    return Restoring(archive, commands, unkept)


def _finding(archive: Archive, unkept: Unkept, log: EventLog, commands: RedisConnection) -> Finding:
    from gateway.finding import Finding  # imports the database's libraries

    return Finding(archive, unkept, log, commands)


def _assemble(settings: Settings, tracing: Tracing | None, *, authenticates: bool) -> _Gateway:
    """Builds the parts of a gateway and connects them. Nothing is started."""
    stores = (
        *(EventLog, RequestQueue, DeliveryNotes, ExternalWrites, WriterLeases),
        *(WrittenLog, Names, Holdings, Accounts, StreamReaders),
    )
    scripts = tuple(script for scripted in stores for script in scripted.SCRIPTS)
    commands = connection_to(settings, name="gateway", scripts=scripts)
    durable = connection_to(settings, name="durable", scripts=scripts) if settings.min_replicas else None
    replicated = None if durable is None else ReplicatedCommands(durable, settings.min_replicas)
    archive, unkept = archive_of(settings), None
    if archive is not None:
        unkept = Unkept(
            commands,
            log_ttl_seconds=settings.log_ttl_seconds,
            ended_ttl_seconds=settings.ended_ttl_seconds,
            replicated=replicated,
        )
    store = WebhookStore(commands, log_ttl_seconds=settings.log_ttl_seconds, replicated=replicated)

    def ended_here(stream_id: str) -> None:
        store.send_soon(stream_id)
        if unkept is not None:
            unkept.send_soon(stream_id)

    log = EventLog(
        commands,
        log_ttl_seconds=settings.log_ttl_seconds,
        ended_ttl_seconds=settings.unkept_ttl_seconds,
        tombstone_ttl_seconds=settings.tombstone_ttl_seconds,
        replicated=replicated,
        on_ended=ended_here,
    )
    restoring = None if archive is None or unkept is None else _restoring(archive, commands, unkept)
    queue = Lanes(commands, lanes_of(commands, settings, replicated=replicated))
    deliveries = DeliveryNotes(commands) if unkept is None else DeliveryNotes(commands, unkept.noted_after_end)
    accounts = Accounts(commands, settings, replicated=replicated)
    usage = Usage(accounts, log, deliveries, settings)
    traces = None if tracing is None else Traces(tracing, log, settings)
    leases = WriterLeases(commands, ttl_seconds=settings.log_ttl_seconds)

    def failed_here(stream_id: str, code: str) -> None:
        usage.ended_without_receipt(stream_id)
        if traces is not None:
            traces.failed_here(stream_id, code)

    endings = Endings(log, failed_here, leases)
    followed = FollowedStreams(endings.end_unreadable)
    pages = Pages(
        log,
        followed.found_unreadable,
        page_events=settings.page_events,
        cache_bytes_max=settings.page_cache_bytes_max,
    )
    api_keys = ApiKeys(commands, settings) if authenticates else None
    authenticators = [] if api_keys is None else authenticators_for(api_keys, settings)
    own_limits = OwnLimits(settings, _none_of_its_own if api_keys is None else api_keys.limits_of)
    stream_readers = StreamReaders(commands, own_limits)
    addresses = Addresses(settings)

    def left(reader: Reader) -> None:
        if reader.has_place:
            stream_readers.left(reader.tail.stream_id)
        if reader.place is not None:
            addresses.leave(reader.place)

    noting = (deliveries, settings, usage.read_after_its_end, left)
    ledger = Ledger(*noting) if traces is None else TracedLedger(traces, *noting)
    delivery = Delivery(pages, ledger, settings)
    tails = Tails(
        followed,
        log,
        partial(_subscriber_of, commands),
        settings,
        on_new=delivery.on_new,
    )
    silence_checks = SilenceChecks(tails, log, endings, settings, on_lost=delivery.lose)
    limits = Limits(accounts, log, own_limits, settings)
    owners = Owners(checked=authenticates)
    webhook_of_key = _none_of_its_own if api_keys is None else api_keys.webhook_of
    webhooks = StreamWebhooks(settings, store, webhook_of_key, authenticates=authenticates)
    parts = (commands, log, queue, tails, deliveries, settings, owners, limits, usage, unkept, restoring)
    own = (*parts, webhooks, replicated)
    streams = Streams(*own) if traces is None else TracedStreams(traces, *own)
    external = ExternalWrites(
        commands,
        ended_ttl_seconds=settings.unkept_ttl_seconds,
        entries_max=settings.stream_entries_max,
        bytes_max=settings.stream_bytes_max,
    )
    rates = AppendRates(settings)
    writes = Writes(streams, log, external, leases, rates, settings)
    models = ProviderModels(settings)
    admission = admission_for(authenticators, settings) if authenticates else Admission()
    given_tokens = GivenTokens(admission.tokens, settings.path_prefix)
    subscribe = Subscribe(streams, given_tokens, tails, delivery, models, settings, stream_readers)
    measuring = GatewayMeasuring(delivery, tails, silence_checks, pages, commands, queue, settings)
    request_timeouts = RequestTimeouts(
        settings.request_seconds,
        waiting_max=settings.idle_connections_max,
        waiting_of_address_max=settings.idle_connections_per_address,
        new_max=settings.connections_max,
        counted=addresses.counted,
    )
    watchers = (
        Watchers(Overview(commands, queue, has_archive=archive is not None))
        if is_wanted(settings, guarded=authenticates)
        else None
    )
    readiness = Readiness(commands, settings)
    health = Health(delivery, readiness, lambda: streams.archive_state)
    finding = None if restoring is None or unkept is None else _finding(restoring.archive, unkept, log, commands)
    written = None
    if are_wanted(settings, authenticates=authenticates):
        written = DurableStreams(streams, subscribe, delivery, log, commands, settings, given_tokens, rates)
    app = make_app(
        Services(
            streams,
            writes,
            subscribe,
            delivery,
            models,
            watchers,
            commands,
            health,
            admission,
            addresses,
            accounts,
            written,
            given_tokens,
            settings,
            finding,
        )
    )
    if traces is not None:
        app = traces.joining(app)

    return _Gateway(
        traces,
        commands,
        durable,
        readiness,
        authenticators,
        endings,
        tails,
        silence_checks,
        measuring,
        usage,
        stream_readers,
        streams,
        LostWriters(streams, log, leases, settings),
        restoring,
        ledger,
        delivery,
        presence(delivery, tails, commands, settings),
        request_timeouts,
        watchers,
        written,
        MetricsServer(health.answers(), settings),
        app,
    )


def authenticators_for(api_keys: ApiKeys, settings: Settings) -> list[KeptUp]:
    """Returns what recognizes the tokens of services and users. Raises Unusable."""
    if not settings.jwt_keys:
        return [api_keys]
    from gateway.access.user_tokens import UserTokens  # imports the libraries for JWTs

    return [api_keys, UserTokens(settings)]


def _none_of_its_own(principal_name: str) -> Mapping[str, object]:
    """Returns what a principal has in place of the settings where there are no API keys: nothing."""
    return {}


def admission_for(authenticators: Sequence[KeptUp], settings: Settings) -> Admission:
    """Returns what guards a gateway with authentication. Raises Unusable."""
    keys = SigningKeys(settings.token_keys)
    return Admission(
        authenticators,
        tokens=StreamTokens(keys, settings),
        sessions=Sessions(keys, authenticators),
        user_cookie=settings.user_cookie,
    )


def _subscriber_of(
    commands: RedisConnection, on_push: Callable[[list[Any]], None], on_up: Callable[[], None]
) -> RedisSubscriber:
    return commands.subscriber(name="subscriber", on_push=on_push, on_up=on_up)


async def serve(settings: Settings, listening: socket.socket, tracing: Tracing | None = None) -> None:
    """Serves until SIGTERM or SIGINT. Raises Unusable."""
    check_uvicorn()
    authenticates = is_authentication_on(settings, listening.getsockname()[0])
    server_name = await check(settings)
    gateway = _assemble(settings, tracing, authenticates=authenticates)
    async with RunningParts() as running:
        await gateway.start(running)
        server = Server(_uvicorn_config(gateway, settings), gateway.leave)
        _spare_the_garbage_collector()
        host, port = listening.getsockname()[:2]
        logger.info("gateway is up: http://%s:%d, %s", f"[{host}]" if ":" in host else host, port, server_name)
        await server.serve([listening])


def _uvicorn_config(gateway: _Gateway, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        gateway.app,
        http=partial(Connection, gateway.request_timeouts),  # type: ignore[arg-type]  # uvicorn only calls it
        ws=WebSocketConnection,
        ws_max_size=MESSAGE_BYTES_MAX,
        ws_ping_interval=settings.keepalive_seconds,
        ws_ping_timeout=settings.dead_peer_seconds,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        headers=list(HEADERS_OF_ALL.items()),
        proxy_headers=False,  # gateway.http.addresses reads them, where that is configured
        backlog=BACKLOG,
        timeout_keep_alive=settings.idle_connection_seconds,
        timeout_graceful_shutdown=settings.drain_seconds,  # type: ignore[arg-type]  # fractions of a second work too
    )


def _spare_the_garbage_collector() -> None:
    """Makes collections rare and short."""
    gc.collect()
    gc.freeze()  # the objects that exist now stay for good: the collector need not look at them again
    # Rings are full of small tuples that live for seconds. At the default threshold of 700 the collector walked them all
    # the time, a tenth of the work at 20,000 events/s. Reference cycles are rare here, and may wait.
    gc.set_threshold(50_000, 20, 50)
