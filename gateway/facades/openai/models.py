"""`GET /v1/models`: the provider's models; without a provider the default model."""

from __future__ import annotations

from typing import Any

from gateway.http.connection import Scope
from gateway.http.exchange import json_response
from gateway.http.problems import Problem
from gateway.http.routes import OperationsOf, Route, route_for
from gateway.provider_models import ProviderModels

operations = OperationsOf("gateway.facades.openai.operations")

_PATH = "/v1/models"


class Models:
    """OpenAI's Models API."""

    def __init__(self, models: ProviderModels) -> None:
        self._models = models
        self.routes = (
            Route("GET", _PATH, self.list, operations.LIST_MODELS, "read"),
            Route("GET", _PATH + "/{model:path}", self.one, operations.ONE_MODEL, "read"),
        )

    def route(self, scope: Scope) -> Route | None:
        return route_for(self.routes, scope)

    async def list(self, scope: Scope, receive: Any, send: Any) -> None:
        """`GET /v1/models`"""
        await json_response(await self._models.listed())(scope, receive, send)

    async def one(self, scope: Scope, receive: Any, send: Any) -> None:
        """`GET /v1/models/{id}`; an id may have slashes."""
        name = scope["path"][len(_PATH) + 1 :]
        for model in (await self._models.listed())["data"]:
            if isinstance(model, dict) and model.get("id") == name:
                await json_response(model)(scope, receive, send)
                return
        raise Problem(404, f"the model {name[:200]!r} does not exist", param="model", code="model_not_found")
