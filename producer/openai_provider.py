"""Any OpenAI-compatible API, through the raw streaming response of the official SDK.

The SDK makes the request and sends the key, `producer.direct_transport` carries it, `producer.chunk_reader` reads the answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai

from producer.bounded_transport import BoundedTransport, decoded
from producer.chunk_reader import ChunkReader
from producer.direct_transport import FOLLOW, DirectTransport, proxy_of
from producer.provider import Finish, Hearer, Unavailable
from producer.provider_errors import connection_lost, raise_for_status
from shared.outcomes import FailureCode
from shared.provider_address import OWN_URL
from shared.tracing import traceparent

_CONNECT_SECONDS = 10.0
_NOT_PASSED_ON = frozenset({"simulate", "stream", "stream_options"})
"""Fields of a request that are ours, or that this provider sets itself."""


class OpenAIProvider:
    """An OpenAI-compatible API. `connections_max`: how many answers it generates at once."""

    name = "openai"

    def __init__(self, *, api_key: str, base_url: str, default_model: str, connections_max: int) -> None:
        self._default_model = default_model
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
        messages = list(request["messages"])
        if partial:
            messages.append({"role": "assistant", "content": partial})
        options = {**(request.get("stream_options") or {}), "include_usage": True}
        rest = {
            key: value
            for key, value in request.items()
            if key not in _NOT_PASSED_ON and key not in ("model", "messages")
        }
        try:
            async with self._client.chat.completions.with_streaming_response.create(
                model=self.model_of(request),
                messages=[],  # sent in extra_body, which wins: the SDK would rebuild each of them as a typed object
                stream=True,
                extra_headers={"traceparent": traceparent.get()} if traceparent.get() else None,
                extra_body={**rest, "messages": messages, "stream_options": options},
            ) as response:
                reader = ChunkReader(hearer.odd)

                def take(part: bytes) -> bool:
                    items = reader.feed(part)
                    has_room = hearer.accept(items) if items else True
                    return has_room and not reader.ended

                follow = _following(response.http_response)
                while not await follow(take) and not reader.ended:
                    await hearer.wait_for_room()
                if reader.error is not None:
                    raise reader.take_error()
        except openai.APIStatusError as error:
            raise_for_status(error)
        except openai.APITimeoutError as error:
            raise Unavailable(
                f"the provider did not answer in time: {error}", code=FailureCode.PROVIDER_TIMEOUT
            ) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            raise connection_lost(error) from None
        if reader.finish_reason is None:
            raise Unavailable("the provider ended its stream without a finish_reason")
        return Finish(reader.finish_reason, reader.usage, {name: it for name, it in reader.about.items() if it})

    async def close(self) -> None:
        await self._client.close()


def _following(response: httpx2.Response) -> Callable[[Callable[[bytes], bool]], Awaitable[bool]]:
    """Returns a function that passes on the body as it comes: the connection's own, unless the body must be decoded."""
    direct: Callable[[Callable[[bytes], bool]], Awaitable[bool]] | None = response.extensions.get(FOLLOW)
    if direct is not None and "content-encoding" not in response.headers:
        return direct
    parts = decoded(response)

    async def follow(take: Callable[[bytes], bool]) -> bool:
        async for part in parts:
            if not take(part):
                return False
        return True

    return follow
