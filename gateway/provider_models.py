"""The provider's models: asked rarely and with a time limit, and which of them answers a request that names none."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from gateway.http.problems import Problem
from shared.provider_address import OWN_URL, USUAL_MODEL, check_base_url, hint_at
from shared.settings import Settings

if TYPE_CHECKING:
    import httpx2

_NO_CHAT = re.compile("embed|whisper|tts|dall-e|moderation|transcribe|image|rerank|realtime|sora", re.IGNORECASE)
"""In the names of models that answer no chat; the page /chat leaves out the same."""
_FRESH_SECONDS = 60.0
"""A list is used for so long: models are added by the week, but SDKs and web pages ask at each start."""
_STALE_SECONDS = 3600.0
"""An older list is used for so long if the provider does not answer: it probably still has the same models."""
_ANSWER_SECONDS_MAX = 5.0
_ANSWER_BYTES_MAX = 4 << 20
"""The largest known catalogues have some hundred models of 1 KB each."""


class ProviderModels:
    """The models of one provider. Requests that come while it is asked share its answer."""

    def __init__(self, settings: Settings) -> None:
        """Raises Unusable if the provider's address is wrong."""
        self._settings = settings
        self._base_url = ""
        """Empty without a provider."""
        configured = bool(settings.openai_api_key or settings.openai_base_url)
        if settings.provider == "openai" or (configured and not settings.provider):
            check_base_url(settings.openai_base_url)
            self._base_url = settings.openai_base_url or OWN_URL
        self._known: dict[str, Any] | None = None
        self._known_at = 0.0
        self._request: asyncio.Task[dict[str, Any]] | None = None
        self._default = ""

    async def default_for(self, request: Mapping[str, Any]) -> str:
        """Returns the default model; nothing for a request that names one, for which nobody is asked."""
        return "" if "model" in request else await self.default()

    async def default(self) -> str:
        """Returns the model for requests that name none.

        While the provider does not say which it has, the one that was chosen before, or the usual one: then the stream ends
        as failed with the provider's reason, which every client shows, also one that sees no status, as an EventSource.
        """
        if self._settings.default_model or not self._base_url or not self._settings.openai_base_url:
            return self._settings.default_model or USUAL_MODEL
        try:
            models = (await self.listed())["data"]
        except Problem:
            return self._default or USUAL_MODEL
        names = [model["id"] for model in models if isinstance(model, dict) and isinstance(model.get("id"), str)]
        if self._default not in names:  # what was chosen once stays, however the provider sorts its list
            usual = [name for name in names if name == USUAL_MODEL]
            answers_chats = [name for name in names if not _NO_CHAT.search(name)]
            self._default = next(iter([*usual, *answers_chats, *names]), USUAL_MODEL)
        return self._default

    async def listed(self) -> dict[str, Any]:
        """Returns OpenAI's list of models. Raises Problem with the provider's status, 502 or 504."""
        if not self._base_url:
            name = await self.default()
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
            hint = hint_at(self._base_url, status)
            message = f"the provider answered {status} when it was asked for its models{hint}"
            given = answer.get("error") if isinstance(answer, dict) else None
            error = (
                {"message": message, "type": None, "param": None, "code": None, **given}
                if isinstance(given, dict)
                else None
            )
            raise Problem(status if 400 <= status <= 599 else 502, message, error=error)
        if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
            hint = hint_at(self._base_url, 404)
            raise Problem(502, f"the provider's answer is not a list of models{hint}")
        return {**answer, "object": "list"}

    async def _get(self) -> tuple[int, bytes]:
        # In a thread: importing the client and making its TLS context would block the event loop for too long.
        client = await asyncio.to_thread(_client, self._settings.openai_api_key)
        import httpx2

        body = b""
        try:
            async with client, client.stream("GET", self._base_url.rstrip("/") + "/models") as response:
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > _ANSWER_BYTES_MAX:
                        raise Problem(502, f"the provider's list of models has more than {_ANSWER_BYTES_MAX} bytes")
                return response.status_code, body
        except httpx2.HTTPError as error:
            words = str(error) or type(error).__name__
            raise Problem(502, f"the provider could not be asked for its models: {words}") from None


def _client(key: str) -> httpx2.AsyncClient:
    import httpx2

    headers = {"accept": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    return httpx2.AsyncClient(headers=headers, timeout=_ANSWER_SECONDS_MAX)
