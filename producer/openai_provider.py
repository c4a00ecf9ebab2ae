"""Any OpenAI-compatible API, through the raw streaming response of the official SDK.

The SDK makes the request and sends the key, `producer.direct_transport` carries it, `producer.chunk_reader` reads the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai

from producer.bounded_transport import BoundedTransport, decoded
from producer.chunk_reader import ChunkReader
from producer.direct_transport import FOLLOW, DirectTransport, proxy_of
from producer.provider import Finish, Hearer, Unavailable
from producer.provider_errors import connection_lost, raise_for_status, speaks_of_stream_options
from shared.outcomes import FailureCode
from shared.provider_address import OWN_URL
from shared.tracing import traceparent

_CONNECT_SECONDS = 10.0
_NOT_PASSED_ON = frozenset({"simulate", "stream", "stream_options"})
"""Fields of a request that are ours, or that this provider sets itself."""
_MODELS_MAX = 1000
"""Remembered at most: a client may name any model it likes."""

Follow = Callable[[Callable[[bytes], bool], Callable[[], float] | None], Awaitable[bool]]
"""Passes on a body as it comes: `producer.direct_transport` has the terms."""


class OpenAIProvider:
    """An OpenAI-compatible API. `connections_max`: how many answers it generates at once."""

    name = "openai"

    def __init__(self, *, api_key: str, base_url: str, default_model: str, connections_max: int) -> None:
        self._default_model = default_model
        self._without_stream_options: set[str] = set()
        """The models for which the provider has refused a request with `stream_options` and answered one without."""
        self.base_url = base_url or OWN_URL
        transport: httpx2.AsyncBaseTransport
        proxy = proxy_of(base_url or OWN_URL)
        if proxy is not None:
            limits = httpx2.Limits(max_connections=connections_max, max_keepalive_connections=100)
            transport = httpx2.AsyncHTTPTransport(proxy=proxy, limits=limits)
        else:
            transport = DirectTransport(connections_max=connections_max)
        self._client = openai.AsyncOpenAI(
            api_key=api_key or "none",  # local servers need no key, but the SDK does
            base_url=base_url or None,
            max_retries=0,  # the run decides what is tried again
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS, pool=_CONNECT_SECONDS),
                follow_redirects=False,  # BoundedTransport does
                headers={"accept-encoding": "gzip, deflate"},  # what `decoded` knows
                transport=BoundedTransport(transport),
            ),
        )

    def model_of(self, request: dict[str, Any]) -> str:
        return str(request.get("model") or self._default_model)

    async def generate(self, request: dict[str, Any], partial: str, hearer: Hearer) -> Finish:
        model = self.model_of(request)
        try:
            return await self._answer(request, partial, hearer, asks_usage=model not in self._without_stream_options)
        except _StreamOptionsRefused:
            hearer.odd("stream_options")
        finish = await self._answer(request, partial, hearer, asks_usage=False)
        if len(self._without_stream_options) < _MODELS_MAX:
            self._without_stream_options.add(model)
        return finish

    async def _answer(self, request: dict[str, Any], partial: str, hearer: Hearer, *, asks_usage: bool) -> Finish:
        """Calls the provider once. Raises _StreamOptionsRefused, and what `generate` raises."""
        messages = list(request["messages"])
        if partial:
            messages.append({"role": "assistant", "content": partial})
        body = {
            key: value
            for key, value in request.items()
            if key not in _NOT_PASSED_ON and key not in ("model", "messages")
        }
        body["messages"] = messages
        if asks_usage:
            body["stream_options"] = {**(request.get("stream_options") or {}), "include_usage": True}
        choices = request.get("n")
        reader = ChunkReader(hearer.odd, choices=choices if type(choices) is int else 1)
        try:
            async with self._client.chat.completions.with_streaming_response.create(
                model=self.model_of(request),
                messages=[],  # sent in extra_body, which wins: the SDK would rebuild each of them as a typed object
                stream=True,
                extra_headers={"traceparent": traceparent.get()} if traceparent.get() else None,
                extra_body=body,
            ) as response:
                await _read(_following(response.http_response), reader, hearer)
        except openai.APIStatusError as error:
            if asks_usage and speaks_of_stream_options(error):
                raise _StreamOptionsRefused from None
            raise_for_status(error)
        except openai.APITimeoutError as error:
            raise Unavailable(
                f"the provider did not answer in time: {error}", code=FailureCode.PROVIDER_TIMEOUT
            ) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            _read_end(reader, hearer)
            if reader.error is None and reader.finish() is None:
                raise connection_lost(error) from None
            hearer.odd("cut_after_finish")
        if reader.error is not None:
            raise reader.take_error()
        finish = reader.finish()
        if finish is None:
            raise reader.broken_off()
        return finish

    async def close(self) -> None:
        await self._client.close()


class _Grace:
    """The time in which a usage may come late, behind an answer's finish_reason: then the reading ends with TimeoutError."""

    def __init__(self) -> None:
        self.timeout: asyncio.Timeout | None = None
        """Knows its task. To be forgotten at the end: in an error's traceback it would keep the error alive."""

    @property
    def has_begun(self) -> bool:
        return self.timeout is not None and self.timeout.when() is not None

    @property
    def is_over(self) -> bool:
        return self.timeout is not None and self.timeout.expired()

    def begin(self, seconds: float | None) -> None:
        """Begins it anew, or (None) ends it."""
        if self.timeout is not None and not self.timeout.expired():
            self.timeout.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


async def _read(follow: Follow, reader: ChunkReader, hearer: Hearer) -> None:
    """Passes the body on to the hearer, up to its end, an error, or the end of the time for a usage that comes late."""
    grace = _Grace()

    def take(part: bytes) -> bool:
        items = reader.feed(part)
        if reader.grace_seconds is not None and (items or not grace.has_begun):
            grace.begin(reader.grace_seconds)
        has_room = hearer.accept(items) if items else True
        return has_room and not reader.ended

    def wants_at() -> float:
        # What is unfinished, and what may come behind the end, is read at once.
        return 0.0 if reader.has_unfinished_line or reader.grace_seconds is not None else hearer.wants_at()

    try:
        async with asyncio.timeout(None) as grace.timeout:
            while not await follow(take, wants_at if hearer.has_pace else None) and not reader.ended:
                grace.begin(None)  # while Redis is away, what the provider sends is not read
                await hearer.wait_for_room()
                grace.begin(reader.grace_seconds)
    except TimeoutError:
        if not grace.is_over:
            raise
        hearer.odd("left_open")
    finally:
        grace.timeout = None
    _read_end(reader, hearer)


def _read_end(reader: ChunkReader, hearer: Hearer) -> None:
    """Passes on what the end of the body completes."""
    items = [] if reader.ended else reader.end()
    if items:
        hearer.accept(items)


class _StreamOptionsRefused(Exception):
    """The provider refuses a request because of its `stream_options`, which some servers do not know."""


def _following(response: httpx2.Response) -> Follow:
    """Returns a function that passes on the body as it comes: the connection's own, unless the body must be decoded."""
    direct: Follow | None = response.extensions.get(FOLLOW)
    if direct is not None and "content-encoding" not in response.headers:
        return direct
    parts = decoded(response)

    async def follow(take: Callable[[bytes], bool], wants_at: Callable[[], float] | None) -> bool:
        async for part in parts:
            if not take(part):
                return False
        return True

    return follow
