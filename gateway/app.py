"""Dispatch and errors: which part of the gateway answers a request, and how a Problem that it raises is shown.

What streams is dispatched before FastAPI, whose wrappers cost 3–7 µs per event.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from gateway.access.admission import Admission
from gateway.access.given_tokens import GivenTokens
from gateway.api.docs import Docs
from gateway.api.follow import Subscribe
from gateway.api.health import Health
from gateway.api.probe import Probe
from gateway.api.routes import NativeApi
from gateway.api.usage import UsageApi
from gateway.api.websocket import WebSockets, closing_with
from gateway.console.files import Console
from gateway.console.login import Login, to_login
from gateway.console.watchers import Watchers
from gateway.delivery.delivery import Delivery
from gateway.facades import facades
from gateway.facades.durable.durable import DurableStreams
from gateway.facades.facade import FacadeServices
from gateway.facades.openai.errors import is_openai_path, openai_error
from gateway.http.accept import accepts_only_events
from gateway.http.addresses import Addresses
from gateway.http.come_back import empty_stream
from gateway.http.connection import Connection
from gateway.http.cors import Cors
from gateway.http.exchange import HEADERS_OF_ALL
from gateway.http.hosts import Hosts
from gateway.http.path_prefix import PathPrefix
from gateway.http.problems import Problem, stopping
from gateway.http.request_id import take_request_id
from gateway.http.routes import ASGI, Part, Route, no_route, route_for
from gateway.metrics import refused
from gateway.provider_models import ProviderModels
from gateway.request_metrics import counting
from gateway.streams.streams import Streams
from gateway.writing.routes import WriterApi
from gateway.writing.writes import Writes
from shared.accounts import Accounts
from shared.commands import Commands
from shared.settings import Settings

if TYPE_CHECKING:
    from gateway.finding import Finding

_OF_OPENAI = "of OpenAI's API there are POST /v1/chat/completions, POST /v1/responses and GET /v1/models"


@dataclass(frozen=True, slots=True)
class Services:
    """What the parts of the gateway work with. Without `watchers` the gateway has no console, without `durable` no written streams."""

    streams: Streams
    writes: Writes
    subscribe: Subscribe
    delivery: Delivery
    models: ProviderModels
    watchers: Watchers | None
    commands: Commands
    health: Health
    admission: Admission
    addresses: Addresses
    accounts: Accounts
    durable: DurableStreams | None
    given_tokens: GivenTokens
    settings: Settings
    finding: Finding | None = None


def parts_of(services: Services) -> tuple[NativeApi, list[Part], list[Route]]:
    """Returns the API that FastAPI serves, the parts that are tried before it, in order, and all routes."""
    streams, subscribe, settings = services.streams, services.subscribe, services.settings
    admission, given_tokens = services.admission, services.given_tokens
    native = NativeApi(streams, given_tokens, services.delivery, services.models, settings, services.finding)
    of_facades = FacadeServices(
        *(streams, given_tokens, subscribe, services.models, settings, services.commands),
        has_durable=services.durable is not None,
    )
    parts: list[Part] = [
        WebSockets(streams, subscribe),  # takes all that is not HTTP
        subscribe,
        UsageApi(streams, services.accounts),
        WriterApi(services.writes, subscribe, services.delivery),
        Probe(services.delivery, settings),
        *facades(of_facades),
        *((services.durable,) if services.durable is not None else ()),
    ]
    if not (admission.is_on and settings.metrics_port):
        parts.append(services.health)  # else they are at a port of their own, which strangers do not reach
    if services.watchers is not None:
        parts += [services.watchers, Console()]
        if admission.sessions is not None:
            parts.append(Login(admission, admission.sessions, settings.path_prefix))
    routes = [*native.routes, *(route for part in parts for route in part.routes)]
    docs = Docs(routes, settings.path_prefix)
    return native, [*parts, docs], [*routes, *docs.routes]


def make_app(services: Services) -> ASGI:
    """The gateway's ASGI application."""
    native, parts, routes = parts_of(services)
    api = native.app()
    settings, delivery = services.settings, services.delivery
    hosts, cors = Hosts(settings), Cors(settings.cors_origins)
    path_prefix = PathPrefix(settings.path_prefix)
    has_login = services.watchers is not None and services.admission.sessions is not None

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

    def routed(scope: dict[str, Any]) -> tuple[Route, ASGI]:
        """The route of a request and its handler. Raises Problem 404, 405."""
        for part in parts:
            route = part.route(scope)
            if route is not None:
                return route, route.handler
        route = route_for(native.routes, scope)
        if route is None:
            raise no_route(routes, scope, _OF_OPENAI if is_openai_path(scope["path"]) else "")
        return route, api

    async def guarded(scope: dict[str, Any]) -> ASGI:
        """The handler for a request whose principal may have it. Raises Problem 401, 403, 404, 405."""
        route, handler = routed(scope)
        try:
            await services.admission.admit(scope, route, with_cookies=cors.lets_cookies_count(scope))
        except Problem as problem:
            if scope["type"] == "websocket":
                return closing_with(problem)
            login = to_login(scope, settings.path_prefix) if has_login and route.is_page else None
            if problem.status != 401 or login is None:
                raise
            refused(problem.status)
            return login
        return handler

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        taken = None
        try:
            take_request_id(scope, send)
            taken = services.addresses.enter(scope)
            path_prefix.take_off(scope)
            handler = admitted(scope, send) or await guarded(scope)
            await handler(scope, receive, send)
        except Problem as problem:
            refused(problem.status)
            response = error_response(problem, scope)
            if scope["type"] == "websocket":  # a refused handshake does not get the server's default headers
                response.headers.update(HEADERS_OF_ALL)
            await response(scope, receive, send)
        except asyncio.CancelledError:
            if not delivery.draining:
                raise
            # The grace period is over: clients that still wait get a 503, if a moment is left to send it.
            with contextlib.suppress(RuntimeError, asyncio.CancelledError):
                await error_response(stopping(), scope)(scope, receive, send)
        finally:
            services.addresses.request_ended(taken)

    return counting(app, routes)


def error_response(problem: Problem, scope: dict[str, Any]) -> Response:
    """The answer for a problem, in the shape that the client understands."""
    if problem.status in (429, 503) and accepts_only_events(scope):
        return empty_stream(problem)
    return openai_error(problem) if is_openai_path(scope["path"]) else problem.response()
