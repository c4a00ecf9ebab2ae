"""`/healthz`, `/readyz` and `/metrics`: at the gateway's port, or at one of their own (MIDSTREAM_METRICS_PORT), or at both.

Strangers learn there whether the gateway is well, and nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from gateway.api.readiness import Readiness
from gateway.delivery.delivery import Delivery
from gateway.http.connection import Scope
from gateway.http.exchange import json_response
from gateway.http.principal import principal
from gateway.http.problems import PROBLEM_MEDIA_TYPE, Problem
from gateway.http.routes import OperationsOf, Route, route_for
from gateway.metrics import exposition
from shared.metrics_server import Answer
from shared.version import VERSION

operations = OperationsOf("gateway.api.operations")

_JSON = "application/json"


class Health:
    """How this process is."""

    def __init__(
        self, delivery: Delivery, readiness: Readiness, archive_state: Callable[[], str | None] = lambda: None
    ) -> None:
        """`archive_state` returns `up`, `read-only` or `away`, or None without an archive."""
        self._delivery = delivery
        self._readiness = readiness
        self._archive_state = archive_state
        self.routes = (
            Route("GET", "/healthz", self.healthz, operations.HEALTH, "open"),
            Route("GET", "/readyz", self.readyz, operations.READINESS, "open"),
            Route("GET", "/metrics", self.metrics, operations.METRICS, "admin"),
        )

    def route(self, scope: Scope) -> Route | None:
        """The route of a request of these paths; None for everything else."""
        return route_for(self.routes, scope)

    def answers(self) -> dict[str, Callable[[], Awaitable[Answer]]]:
        """Returns what a port of its own serves, in full."""
        return {"/metrics": self._metrics_in_full, "/healthz": self._healthz_in_full, "/readyz": self._readyz_in_full}

    async def healthz(self, scope: Scope, receive: Any, send: Any) -> None:
        """`GET /healthz`: the process lives."""
        await json_response(_alive() if _tells_all() else {"status": "ok"})(scope, receive, send)

    async def readyz(self, scope: Scope, receive: Any, send: Any) -> None:
        """`GET /readyz`: 200 if this process can serve. Raises Problem 503, which says why it cannot."""
        try:
            ready = await self._ready()
        except Problem as problem:
            raise problem if _tells_all() else Problem(503, "this gateway cannot serve now") from None
        await json_response(ready if _tells_all() else {"status": "ready"})(scope, receive, send)

    async def metrics(self, scope: Scope, receive: Any, send: Any) -> None:
        """`GET /metrics`: of all processes of this gateway, whichever of them answers."""
        headers = {"cache-control": "no-store"}
        await Response(exposition(), headers=headers, media_type=CONTENT_TYPE_LATEST)(scope, receive, send)

    async def _ready(self) -> dict[str, Any]:
        if self._delivery.draining:
            raise Problem(503, "this gateway is about to stop")
        complaint = await self._readiness.complaint()
        if complaint:
            raise Problem(503, complaint)
        archive = self._archive_state()
        ready = {"status": "ready", "readers": self._delivery.readers}
        return ready if archive is None else {**ready, "archive": archive}

    async def _healthz_in_full(self) -> Answer:
        return Answer(orjson.dumps(_alive()), content_type=_JSON)

    async def _readyz_in_full(self) -> Answer:
        try:
            return Answer(orjson.dumps(await self._ready()), content_type=_JSON)
        except Problem as problem:
            return Answer(problem.body(), problem.status, PROBLEM_MEDIA_TYPE)

    async def _metrics_in_full(self) -> Answer:
        return Answer(exposition(), content_type=CONTENT_TYPE_LATEST)


def _alive() -> dict[str, Any]:
    return {"status": "ok", "version": VERSION}


def _tells_all() -> bool:
    """Returns whether the client is no stranger."""
    return "admin" in principal.get().scopes
