"""`/v1/streams` but for what streams: create, state, cancel, receipt, delete; on FastAPI."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import orjson
from fastapi import FastAPI, Request
from starlette.responses import Response

from gateway.access.given_tokens import GivenTokens
from gateway.api.listing import listed
from gateway.api.requests import (
    check_generation,
    check_idempotency_key,
    check_token_request,
    owner_in,
    seconds,
    wants_cookie,
)
from gateway.delivery.delivery import Delivery
from gateway.http.bodies import body_of, parse_body, received
from gateway.http.etags import etag_of_body, is_known
from gateway.http.exchange import json_response, query_of, unless_disconnected
from gateway.http.principal import act_for, principal, require
from gateway.http.problems import Problem, stopping
from gateway.http.routes import OperationsOf, Route, methods_like
from gateway.http.whole_bodies import made
from gateway.metrics import refused
from gateway.provider_models import ProviderModels
from gateway.streams.creation import NewStream
from gateway.streams.streams import Streams
from shared.lifecycle import History
from shared.settings import Settings
from shared.version import VERSION

if TYPE_CHECKING:
    from gateway.finding import Finding

operations = OperationsOf("gateway.api.operations")

_WAIT_SECONDS_MAX = 600
_TOKEN_BODY_BYTES_MAX = 4096


class NativeApi:
    """The requests that are answered whole, whatever their path names last."""

    def __init__(
        self,
        streams: Streams,
        given_tokens: GivenTokens,
        delivery: Delivery,
        models: ProviderModels,
        settings: Settings,
        finding: Finding | None = None,
    ) -> None:
        self._streams = streams
        self._given_tokens = given_tokens
        self._delivery = delivery
        self._models = models
        self._settings = settings
        self._finding = finding
        stream = "/v1/streams/{stream_id}"
        self.routes = (
            Route("POST", "/v1/streams", self.create, operations.CREATE_STREAM, "create"),
            Route("GET", "/v1/streams", self.list, operations.LIST_STREAMS, "read"),
            Route("GET", stream, self.state, operations.STATE, "read"),
            Route("POST", stream + "/cancel", self.cancel, operations.CANCEL_STREAM, "cancel"),
            Route("GET", stream + "/receipt", self.receipt, operations.RECEIPT, "read"),
            Route("POST", stream + "/tokens", self.token, operations.CREATE_TOKEN, "read"),
            Route("DELETE", stream, self.delete, operations.DELETE_STREAM, "create"),
        )

    def app(self) -> FastAPI:
        """These routes as an application."""
        app = FastAPI(title="Midstream", version=VERSION, docs_url=None, redoc_url=None, redirect_slashes=False)
        app.add_exception_handler(Problem, _problem)  # type: ignore[arg-type]  # it is given errors of this class only
        app.add_exception_handler(Exception, _unexpected)
        for route in self.routes:
            app.add_api_route(route.path, route.handler, methods=[*methods_like(route.method)])
        return app

    async def create(self, request: Request) -> Response:
        """`POST /v1/streams`"""
        if self._delivery.draining:
            raise stopping()
        key = check_idempotency_key(request.headers)
        async with received(request, self._settings.body_bytes_max) as body:
            parsed = parse_body(body)
            generation, policies, metadata = check_generation(parsed, await self._models.default_for(parsed))
            act_for(owner_in(parsed))
            created = await self._streams.create(NewStream(generation, policies, metadata, key))
            as_cookie = wants_cookie(parsed)
        token = self._given_tokens.token(created["id"])
        answer = json_response(
            created if token is None else {**created, "access_token": token}, 201, {"location": created["events_url"]}
        )
        answer.raw_headers += self._given_tokens.headers(request.scope, created["id"], as_cookie=as_cookie)
        return answer

    async def list(self, request: Request) -> Response:
        """`GET /v1/streams`: the newest streams, live and archived."""
        events_url = f"{self._settings.path_prefix}/v1/streams/{{}}/events"
        return await listed(self._finding, query_of(dict(request.scope)), events_url)

    async def state(self, stream_id: str, request: Request) -> Response:
        """`GET /v1/streams/{id}`; with `?wait=SECONDS`, when it has ended or the time is up."""
        wait = request.query_params.get("wait")
        wait_seconds = seconds("wait", wait, _WAIT_SECONDS_MAX) if wait else 0.0
        history = await unless_disconnected(request.receive, self._streams.state(stream_id, wait_seconds))
        if history is None:
            return Response()  # the client has gone
        if history.status not in ("completed", "failed", "cancelled"):
            return json_response(await _whole_state(stream_id, history))
        body, etag = await made(history.size_bytes, lambda: _with_etag(orjson.dumps(history.state(stream_id))))
        headers = {"etag": etag.decode(), "cache-control": "private, no-cache"}
        if is_known(request.headers.raw, etag):
            return Response(status_code=304, headers=headers)
        return json_response(body, headers=headers)

    async def cancel(self, stream_id: str) -> Response:
        """`POST /v1/streams/{id}/cancel`"""
        return json_response(await _whole_state(stream_id, await self._streams.cancel(stream_id)))

    async def receipt(self, stream_id: str) -> Response:
        """`GET /v1/streams/{id}/receipt`"""
        return json_response(await self._streams.receipt(stream_id))

    async def token(self, stream_id: str, request: Request) -> Response:
        """`POST /v1/streams/{id}/tokens`"""
        if self._given_tokens.tokens is None:
            raise Problem(404, "tokens are given out where authentication is on: MIDSTREAM_AUTH=required")
        raw = await body_of(request, _TOKEN_BODY_BYTES_MAX)
        wanted = check_token_request(parse_body(raw) if raw else {})
        for scope in wanted.scopes:
            require(scope)
        await self._streams.check_owner(stream_id)
        expires_at = time.time() + wanted.expires_in_seconds
        who = principal.get()
        if who.stream_id is not None and who.expires_at is not None:
            expires_at = min(expires_at, who.expires_at)
        expires_at = min(int(expires_at), self._given_tokens.tokens.last_moment(stream_id))
        token = self._given_tokens.tokens.token(stream_id, wanted.scopes, expires_at)
        granted = {"access_token": token, "token_type": "Bearer", "scopes": wanted.scopes, "expires_at": expires_at}
        answer = json_response(granted, 201)
        if wanted.cookie:
            answer.raw_headers.append(self._given_tokens.cookie(request.scope, stream_id, token, expires_at))
        return answer

    async def delete(self, stream_id: str) -> Response:
        """`DELETE /v1/streams/{id}`"""
        await self._streams.delete(stream_id)
        return Response(status_code=204, headers={"cache-control": "no-store"})


async def _whole_state(stream_id: str, history: History) -> bytes:
    return await made(history.size_bytes, lambda: orjson.dumps(history.state(stream_id)))


def _with_etag(body: bytes) -> tuple[bytes, bytes]:
    return body, etag_of_body(body)


async def _problem(request: Request, problem: Problem) -> Response:
    refused(problem.status)
    return problem.response()


async def _unexpected(request: Request, error: Exception) -> Response:
    refused(500)
    return Problem(500, "something went wrong in the gateway; its log has the details").response()
