"""The client for asyncio."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2

from midstream.client import protocol
from midstream.client.async_writer import AsyncWriter
from midstream.client.events import Created, Receipt, State, StreamError, StreamEvent
from midstream.client.outbox import WRITER_LEASE_SECONDS, Outbox
from midstream.client.protocol import STALL_SECONDS, Call, Exchange, Following, Options
from midstream.client.transport import ERRORS, LIMITS, stream_error, timeout_of

T = TypeVar("T")


class AsyncClient:
    """A client of one gateway, or of the load balancer before several, for one event loop. Cancelling a task ends its request."""

    def __init__(
        self,
        server: str = "http://127.0.0.1:8000",
        *,
        token: str | Callable[[bool], str | Awaitable[str | None] | None] | None = None,
        headers: Mapping[str, str] | None = None,
        stall_seconds: float = STALL_SECONDS,
        give_up_seconds: float | None = None,
        http: httpx2.AsyncClient | None = None,
    ) -> None:
        """Takes what `Client` takes. `token` may also be a coroutine function, which has `stall_seconds` to return."""
        self._options = Options(server, callable(token), headers or {}, stall_seconds, give_up_seconds)
        self._token = token
        self._http = http or httpx2.AsyncClient(limits=LIMITS)
        self._owns_http = http is None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections that are kept for the next request."""
        if self._owns_http:
            await self._http.aclose()

    async def create(self, request: str | Mapping[str, Any], *, idempotency_key: str | None = None) -> Created:
        """Requests an answer to a prompt, or to a Chat Completions request. However often it is tried, there is one generation.

        Raises StreamError, as all methods do, for a request that was refused or could not be sent until `give_up_seconds`.
        """
        return await self._call(protocol.create(self._options, request, idempotency_key))

    async def ask(
        self, request: str | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> AsyncGenerator[StreamEvent, None]:
        """Requests an answer and follows it: `create`, then `follow`."""
        created = await self.create(request, idempotency_key=idempotency_key)
        async with aclosing(self.follow(created.id)) as events:
            async for event in events:
                yield event

    async def follow(self, stream: str, *, after: str = "") -> AsyncGenerator[StreamEvent, None]:
        """Yields a stream's events, each once and in order, over as many connections as it takes; the last one is Done, Failed
        or Cancelled.

        `stream` is the id, or the URL. With `after`, an event's id, the events begin behind it, and so does their text. Raises
        StreamError where no try can help: 404, 410, a token that was refused twice.
        """
        following = Following(self._options, stream, after=after)
        while not following.over:
            try:
                async with self._response(following) as response:
                    async for part in response.aiter_bytes():
                        for event in following.receive(part):
                            yield event
                        if following.over:
                            return
                following.end()
                continue
            except ERRORS as error:
                lost = following.lost(stream_error(error, following.request()))
            yield lost
            await asyncio.sleep(lost.wait_seconds)

    async def cancel(self, stream: str) -> State:
        """Stops the answer, and returns its state. May be repeated; an ended stream stays as it is."""
        return await self._call(protocol.cancel(self._options, stream))

    async def receipt(self, stream: str) -> Receipt:
        """Returns what was generated, and what was delivered over which connection."""
        return await self._call(protocol.receipt(self._options, stream))

    async def state(self, stream: str, *, wait_seconds: float = 0.0) -> State:
        """Returns the state and the text; with `wait_seconds` (up to 600) when the stream has ended or the time is up."""
        return await self._call(protocol.state(self._options, stream, wait_seconds))

    def write(
        self,
        stream: str,
        *,
        lease_seconds: float = WRITER_LEASE_SECONDS,
        model: str | None = None,
        keep: int | None = None,
    ) -> AsyncWriter:
        """Returns a context manager that fills a stream which was made for an external writer (`create_external`).

        Whoever wrote it before is refused from then on; what stands already is kept, or the first `keep` events of it. The stream
        fails if nothing is heard of this program for `lease_seconds`; signs of life are sent by themselves.
        """
        return AsyncWriter(
            Outbox(self._options, stream, lease_seconds=lease_seconds, model=model, keep=keep), self._call
        )

    async def create_external(
        self,
        request: Mapping[str, Any] | None = None,
        *,
        lease_seconds: float = WRITER_LEASE_SECONDS,
        idempotency_key: str | None = None,
    ) -> Created:
        """Creates a stream that an external writer fills, such as this program (`write`). `request`: more fields of its body."""
        return await self.create(protocol.external(request, lease_seconds), idempotency_key=idempotency_key)

    async def _call(self, call: Call[T]) -> T:
        while True:
            try:
                async with self._response(call) as response:
                    async for part in response.aiter_bytes():
                        call.receive(part)
                return call.result()
            except ERRORS as error:
                seconds = call.pause_after(stream_error(error, call.request()))
            await asyncio.sleep(seconds)

    @asynccontextmanager
    async def _response(self, exchange: Exchange) -> AsyncIterator[httpx2.Response]:
        """Opens an accepted response. Raises StreamError for any other."""
        request = exchange.request(await self._bearer(exchange.token_refused))
        async with self._http.stream(
            request.method,
            request.url,
            headers=dict(request.headers),
            content=request.content or None,
            timeout=timeout_of(request),
        ) as response:
            if not exchange.accepts(response.status_code, response.headers):
                body = bytearray()
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > protocol.REFUSAL_BYTES_MAX:
                        break
                raise exchange.refusal(response.status_code, response.headers, bytes(body))
            yield response

    async def _bearer(self, refused: bool) -> str | None:
        if not callable(self._token):
            return self._token
        try:
            async with asyncio.timeout(self._options.stall_seconds):
                token = self._token(refused)
                return await token if inspect.isawaitable(token) else token
        except Exception as error:
            raise StreamError(f"the token function failed: {error!r}") from error
