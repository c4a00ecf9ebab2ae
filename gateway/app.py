"""Routes, and nothing else. What streams is dispatched before FastAPI, whose wrappers cost 3–7 µs per event."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import orjson
from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gateway.api.docs import Docs, describe_all
from gateway.api.follow import Subscribe
from gateway.api.probe import Probe
from gateway.api.readiness import Readiness
from gateway.api.requests import (
    IDEMPOTENCY_KEY_CHARACTERS_MAX,
    check_generation,
    parse_body,
    seconds,
)
from gateway.api.websocket import WebSockets
from gateway.console.files import Console
from gateway.console.watchers import Watchers
from gateway.delivery.delivery import Delivery
from gateway.facades import facades
from gateway.facades.openai.errors import openai_error
from gateway.http.connection import Connection
from gateway.http.cors import Cors
from gateway.http.etags import etag_of_body, is_known
from gateway.http.exchange import ASGI, Part, body_of, json_response, unless_disconnected
from gateway.http.hosts import Hosts
from gateway.http.problems import Problem, stopping
from gateway.http.request_id import take_request_id
from gateway.http.whole_bodies import made
from gateway.metrics import exposition, refused
from gateway.streams import Streams
from shared.event_log import Commands
from shared.lifecycle import History
from shared.outcomes import ENDED
from shared.settings import Settings
from shared.version import VERSION

logger = logging.getLogger(__name__)

_WAIT_SECONDS_MAX = 600
_OPENAI_PATHS = ("/v1/chat/", "/v1/responses", "/v1/models")


def make_app(
    streams: Streams,
    subscribe: Subscribe,
    delivery: Delivery,
    watchers: Watchers | None,
    commands: Commands,
    readiness: Readiness,
    settings: Settings,
) -> ASGI:
    """The gateway's ASGI application; with `watchers` it has a console, and what feeds it."""
    api = _routes(streams, delivery, readiness, settings)
    docs = Docs(describe_all(api, console=watchers is not None))
    hosts = Hosts(settings)
    cors = Cors(settings.cors_origins)
    websockets = WebSockets(streams, subscribe)  # the first part: it takes all that is not HTTP
    parts: list[Part] = [
        websockets,
        subscribe,
        Probe(delivery, settings),
        *facades(streams, subscribe, settings, commands),
        docs,
        *((watchers, Console()) if watchers is not None else ()),
    ]

    def admitted(scope: dict[str, Any], send: Any) -> ASGI | None:
        """What answers a preflight; None for a request to be handled. Raises Problem 403, 421."""
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
            if scope["type"] == "websocket":  # a refused handshake is not given the connection's own headers
                response.headers["x-content-type-options"] = "nosniff"
            await response(scope, receive, send)
        except asyncio.CancelledError:
            if not delivery.draining:
                raise
            # The time to leave is up: who still waits for an answer is told so, if there is a moment left.
            with contextlib.suppress(RuntimeError, asyncio.CancelledError):
                await stopping().response()(scope, receive, send)

    return app


async def whole_state(stream_id: str, history: History) -> bytes:
    """The body of `GET /v1/streams/{id}`."""
    return await made(history.size_bytes, lambda: orjson.dumps(history.state(stream_id)))


def _with_etag(body: bytes) -> tuple[bytes, bytes]:
    return body, etag_of_body(body)


def _routes(streams: Streams, delivery: Delivery, readiness: Readiness, settings: Settings) -> FastAPI:
    api = FastAPI(title="Midstream", version=VERSION, docs_url=None, redoc_url=None, redirect_slashes=False)

    @api.exception_handler(Problem)
    async def _(request: Request, problem: Problem) -> Response:
        refused(problem.status)
        return problem.response()

    @api.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        refused(error.status_code)
        detail = str(error.detail)
        if error.status_code == 404:
            detail = f"there is no {request.method} {request.url.path[:200]}"
        elif error.status_code == 405:
            detail = f"{request.method} is not possible here"
        response = Problem(error.status_code, detail).response()
        response.headers.update(error.headers or {})
        return response

    @api.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> Response:
        refused(500)
        return Problem(500, "something went wrong in the gateway; its log says what").response()

    @api.post("/v1/streams", status_code=201, tags=["streams"])
    async def create(request: Request) -> Response:
        """Ask for a generation: an OpenAI Chat Completions request with an optional `midstream` object."""
        if delivery.draining:
            raise stopping()
        body = parse_body(await body_of(request, settings.body_bytes_max))
        generation, policies, metadata = check_generation(body, settings.default_model)
        key = request.headers.get("idempotency-key")
        if key is not None and not 1 <= len(key) <= IDEMPOTENCY_KEY_CHARACTERS_MAX:
            raise Problem(400, f"Idempotency-Key must have 1 to {IDEMPOTENCY_KEY_CHARACTERS_MAX} characters")
        created = await streams.create(generation, policies, metadata, idempotency=key)
        return json_response(created, 201, {"location": created["events_url"]})

    @api.get("/v1/streams/{stream_id}", tags=["streams"])
    async def state(stream_id: str, request: Request) -> Response:
        """A stream's state; with `?wait=SECONDS`, when it has ended or the time is up."""
        wait = request.query_params.get("wait")
        wait_seconds = seconds("wait", wait, _WAIT_SECONDS_MAX) if wait else 0.0
        history = await unless_disconnected(request.receive, streams.state(stream_id, wait_seconds))
        if history is None:
            return Response()  # to nobody
        if history.status not in ENDED:
            return json_response(await whole_state(stream_id, history))
        body, etag = await made(history.size_bytes, lambda: _with_etag(orjson.dumps(history.state(stream_id))))
        headers = {"etag": etag.decode(), "cache-control": "private, no-cache"}
        if is_known(request.headers.raw, etag):
            return Response(status_code=304, headers=headers)
        return json_response(body, headers=headers)

    @api.post("/v1/streams/{stream_id}/cancel", tags=["streams"])
    async def cancel(stream_id: str) -> Response:
        """Stop a stream. Idempotent; an ended stream stays as it is."""
        return json_response(await whole_state(stream_id, await streams.cancel(stream_id)))

    @api.get("/v1/streams/{stream_id}/receipt", tags=["streams"])
    async def receipt(stream_id: str) -> Response:
        """What was generated, what was delivered, and over which connections."""
        return json_response(await streams.receipt(stream_id))

    @api.delete("/v1/streams/{stream_id}", status_code=204, tags=["streams"])
    async def delete(stream_id: str) -> Response:
        """Cancel a stream if it runs, and forget it."""
        await streams.delete(stream_id)
        return Response(status_code=204)

    @api.get("/healthz", tags=["operations"])
    async def healthz() -> Response:
        """The process lives."""
        return json_response({"status": "ok", "version": VERSION})

    @api.get("/readyz", tags=["operations"])
    async def readyz() -> Response:
        """Redis answers, lets this process do what it must, may not evict, and this process is not about to stop."""
        if delivery.draining:
            raise Problem(503, "this gateway is about to stop")
        complaint = await readiness.complaint()
        if complaint:
            raise Problem(503, complaint)
        return json_response({"status": "ready", "readers": delivery.readers})

    @api.get("/metrics", tags=["operations"])
    async def metrics() -> Response:
        """Prometheus: this gateway, whichever of its processes answers."""
        return Response(exposition(), media_type=CONTENT_TYPE_LATEST)

    return api
