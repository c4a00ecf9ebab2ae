"""Dispatch and errors: which part of the gateway answers a request, and how a Problem that it raises is shown.

What streams is dispatched before FastAPI, whose wrappers cost 3–7 µs per event.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

from gateway.api.docs import Docs
from gateway.api.follow import Subscribe
from gateway.api.probe import Probe
from gateway.api.readiness import Readiness
from gateway.api.routes import NativeApi
from gateway.api.websocket import WebSockets
from gateway.console.files import Console
from gateway.console.watchers import Watchers
from gateway.delivery.delivery import Delivery
from gateway.facades import facades
from gateway.facades.openai.errors import openai_error
from gateway.http.connection import Connection
from gateway.http.cors import Cors
from gateway.http.hosts import Hosts
from gateway.http.problems import Problem, stopping
from gateway.http.request_id import take_request_id
from gateway.http.routes import ASGI, Part
from gateway.metrics import refused
from gateway.provider_models import ProviderModels
from gateway.request_metrics import counting
from gateway.streams import Streams
from shared.commands import Commands
from shared.settings import Settings

_OPENAI_PATHS = ("/v1/chat/", "/v1/responses", "/v1/models")


@dataclass(frozen=True, slots=True)
class Services:
    """What the parts of the gateway work with. Without `watchers` the gateway has no console."""

    streams: Streams
    subscribe: Subscribe
    delivery: Delivery
    models: ProviderModels
    watchers: Watchers | None
    commands: Commands
    readiness: Readiness
    settings: Settings


def parts_of(services: Services) -> tuple[NativeApi, list[Part]]:
    """The API that FastAPI serves, and the parts that come before it, in the order in which they are asked."""
    streams, subscribe, settings = services.streams, services.subscribe, services.settings
    native = NativeApi(streams, services.delivery, services.readiness, services.models, settings)
    parts: list[Part] = [
        WebSockets(streams, subscribe),  # takes all that is not HTTP
        subscribe,
        Probe(services.delivery, settings),
        *facades(streams, subscribe, services.models, settings, services.commands),
        *((services.watchers, Console()) if services.watchers is not None else ()),
    ]
    docs = Docs([*native.routes, *(route for part in parts for route in part.routes)])
    return native, [*parts, docs]


def make_app(services: Services) -> ASGI:
    """The gateway's ASGI application."""
    native, parts = parts_of(services)
    api = native.app()
    hosts, cors, delivery = Hosts(services.settings), Cors(services.settings.cors_origins), services.delivery

    def admitted(scope: dict[str, Any], send: Any) -> ASGI | None:
        """The answer to a preflight; None for a request that a part is to handle. Raises Problem 403, 421."""
        hosts.check(scope)
        if scope["type"] == "http":
            headers = cors.headers(scope)
            if headers:
                Connection.add_headers(send, headers)
            preflight = cors.preflight(scope)
            if preflight is not None:
                return preflight
        cors.check(scope)
        return None

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        try:
            take_request_id(scope, send)
            handler = admitted(scope, send)
            if handler is None:
                handler = next((found for part in parts if (found := part.route(scope)) is not None), api)
            await handler(scope, receive, send)
        except Problem as problem:
            refused(problem.status)
            in_openai_shape = scope["path"].startswith(_OPENAI_PATHS)
            response = openai_error(problem) if in_openai_shape else problem.response()
            if scope["type"] == "websocket":  # a refused handshake does not get the server's default headers
                response.headers["x-content-type-options"] = "nosniff"
            await response(scope, receive, send)
        except asyncio.CancelledError:
            if not delivery.draining:
                raise
            # The grace period is over: clients that still wait get a 503, if a moment is left to send it.
            with contextlib.suppress(RuntimeError, asyncio.CancelledError):
                await stopping().response()(scope, receive, send)

    return counting(app, [*native.routes, *(route for part in parts for route in part.routes)])
