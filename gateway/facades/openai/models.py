"""`GET /v1/models`: the provider's models, requested rarely and with a time limit; without a provider the default model."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import orjson

from gateway.facades.openai import operations
from gateway.http.connection import Scope
from gateway.http.exchange import json_response
from gateway.http.problems import Problem
from gateway.http.routes import ASGI, Route, handler_for
from shared.settings import Settings

if TYPE_CHECKING:
    import httpx2

_PATH = "/v1/models"
_OPENAI_URL = "https://api.openai.com/v1"
_FRESH_SECONDS = 60.0
"""A list is used for so long: models are added by the week, but SDKs and web pages ask at each start."""
_STALE_SECONDS = 3600.0
"""An older list is used for so long if the provider does not answer: it probably still has the same models."""
_ANSWER_SECONDS_MAX = 5.0
_ANSWER_BYTES_MAX = 4 << 20
"""The largest known catalogues have some hundred models of 1 KB each."""


class Models:
    """OpenAI's Models API. Requests that come while the provider is asked share the provider's answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.routes = (
            Route("GET", _PATH, self.list, operations.LIST_MODELS),
            Route("GET", _PATH + "/{model:path}", self.one, operations.ONE_MODEL),
        )
        configured = bool(settings.openai_api_key or settings.openai_base_url)
        self._url = ""
        if settings.provider == "openai" or (configured and not settings.provider):
            self._url = (settings.openai_base_url or _OPENAI_URL).rstrip("/") + "/models"
        self._known: dict[str, Any] | None = None
        self._known_at = 0.0
        self._request: asyncio.Task[dict[str, Any]] | None = None

    def route(self, scope: Scope) -> ASGI | None:
        return handler_for(self.routes, scope)

    async def list(self, scope: Scope, receive: Any, send: Any) -> None:
        """`GET /v1/models`"""
        await json_response(await self._models())(scope, receive, send)

    async def one(self, scope: Scope, receive: Any, send: Any) -> None:
        """`GET /v1/models/{id}`; an id may have slashes."""
        name = scope["path"][len(_PATH) + 1 :]
        for model in (await self._models())["data"]:
            if isinstance(model, dict) and model.get("id") == name:
                await json_response(model)(scope, receive, send)
                return
        raise Problem(404, f"the model {name[:200]!r} does not exist", param="model", code="model_not_found")

    async def _models(self) -> dict[str, Any]:
        if not self._url:
            name = self._settings.default_model
            only = {"id": name, "object": "model", "created": 0, "owned_by": "midstream"}
            return {"object": "list", "data": [only]}
        if self._known is not None and time.monotonic() - self._known_at < _FRESH_SECONDS:
            return self._known
        if self._request is None:
            self._request = asyncio.get_running_loop().create_task(self._fetch())
            self._request.add_done_callback(self._requested)
        try:
            return await asyncio.shield(self._request)
        except Problem:
            if self._known is not None and time.monotonic() - self._known_at < _STALE_SECONDS:
                return self._known
            raise

    def _requested(self, task: asyncio.Task[dict[str, Any]]) -> None:
        self._request = None
        if not task.cancelled() and task.exception() is None:
            self._known, self._known_at = task.result(), time.monotonic()

    async def _fetch(self) -> dict[str, Any]:
        """Returns the provider's list. Raises Problem with the provider's status, 502 or 504."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS_MAX):
                status, body = await self._get()
        except TimeoutError:
            raise Problem(504, f"the provider did not list its models within {_ANSWER_SECONDS_MAX:g} s") from None
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        if status != 200:
            message = f"the provider answered {status} when it was asked for its models"
            given = answer.get("error") if isinstance(answer, dict) else None
            error = (
                {"message": message, "type": None, "param": None, "code": None, **given}
                if isinstance(given, dict)
                else None
            )
            raise Problem(status if 400 <= status <= 599 else 502, message, error=error)
        if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
            raise Problem(502, "the provider's answer is not a list of models")
        return {**answer, "object": "list"}

    async def _get(self) -> tuple[int, bytes]:
        # In a thread: importing the client and making its TLS context would block the event loop for too long.
        client = await asyncio.to_thread(_client, self._settings.openai_api_key)
        import httpx2

        body = b""
        try:
            async with client, client.stream("GET", self._url) as response:
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > _ANSWER_BYTES_MAX:
                        raise Problem(502, f"the provider's list of models has more than {_ANSWER_BYTES_MAX} bytes")
                return response.status_code, body
        except httpx2.HTTPError as error:
            raise Problem(502, f"the provider could not be asked for its models: {error!r}") from None


def _client(key: str) -> httpx2.AsyncClient:
    import httpx2

    headers = {"accept": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    return httpx2.AsyncClient(headers=headers, timeout=_ANSWER_SECONDS_MAX)
