"""The routes of the Durable Streams protocol, below `/v1/stream/`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from gateway.access.append_rates import AppendRates
from gateway.access.given_tokens import GivenTokens
from gateway.api.follow import Subscribe
from gateway.delivery.delivery import Delivery
from gateway.facades.durable.append import Append
from gateway.facades.durable.create import Create
from gateway.facades.durable.found import PATH_HEAD, Finder
from gateway.facades.durable.read import Read
from gateway.facades.durable.reading import Reading
from gateway.facades.durable.remove import Remove
from gateway.facades.durable.services import DurableServices, Quotas
from gateway.http.connection import Connection, Receive, Scope, Send
from gateway.http.routes import OperationsOf, Route, route_for
from gateway.listening import is_loopback
from gateway.streams.streams import Streams
from shared.commands import Commands
from shared.event_log import EventLog
from shared.settings import Settings
from shared.written_log import Bounds, Holdings, Names, WrittenLog

operations = OperationsOf("gateway.facades.durable.operations")

_TEMPLATE = PATH_HEAD + "{path:path}"
_SECURITY = [(b"cross-origin-resource-policy", b"same-origin")]
"""On every answer (section 10.7): another site's page may not embed what strangers have written, as an image or a script."""

Operation = Callable[[Scope, Receive, Send], Awaitable[None]]


class DurableStreams:
    """Streams that other programs write, and all streams for clients of this protocol."""

    def __init__(
        self,
        streams: Streams,
        subscribe: Subscribe,
        delivery: Delivery,
        event_log: EventLog,
        commands: Commands,
        settings: Settings,
        given_tokens: GivenTokens,
        rates: AppendRates,
    ) -> None:
        log, names = WrittenLog(commands), Names(commands)
        holdings = Holdings(
            commands,
            streams_max=settings.written_streams_max,
            life_ms_max=1000 * max(settings.written_life_seconds_max, settings.log_ttl_seconds),
        )
        self._quotas = Quotas(streams, holdings, bytes_max=settings.written_bytes_max)
        services = DurableServices(
            streams,
            subscribe,
            delivery,
            event_log,
            log,
            names,
            Finder(streams, names, log),
            Reading(streams),
            self._quotas,
            Bounds(settings.stream_bytes_max, settings.stream_entries_max),
            settings,
            given_tokens,
            rates,
        )
        self.routes = (
            Route("POST", _TEMPLATE, _secured(Append(services)), operations.APPEND, "write"),
            Route("GET", _TEMPLATE, _secured(Read(services)), operations.READ, "read"),
            Route("PUT", _TEMPLATE, _secured(Create(services)), operations.CREATE, "write"),
            Route("DELETE", _TEMPLATE, _secured(Remove(services)), operations.REMOVE, "write"),
        )

    def route(self, scope: Scope) -> Route | None:
        return route_for(self.routes, scope) if scope["path"].startswith(PATH_HEAD) else None

    async def close(self) -> None:
        await self._quotas.close()


def _secured(operation: Operation) -> Operation:
    async def secured(scope: Scope, receive: Receive, send: Any) -> None:
        Connection.add_headers(send, _SECURITY)
        await operation(scope, receive, send)

    return secured


def are_wanted(settings: Settings, *, authenticates: bool) -> bool:
    """Returns whether this gateway lets programs write streams."""
    if settings.written_streams != "auto":
        return settings.written_streams == "on"
    return authenticates or is_loopback(settings.host)
