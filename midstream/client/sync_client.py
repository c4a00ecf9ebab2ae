"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2

from midstream.client import protocol
from midstream.client.events import Created, Receipt, State, StreamError, StreamEvent
from midstream.client.outbox import WRITER_LEASE_SECONDS, Outbox
from midstream.client.protocol import STALL_SECONDS, Call, Exchange, Following, Options
from midstream.client.sync_writer import Writer
from midstream.client.transport import ERRORS, LIMITS, stream_error, timeout_of

T = TypeVar("T")


class Client:
    """A client of one gateway, or of the load balancer before several. May be shared by threads."""

    def __init__(
        self,
        server: str = "http://127.0.0.1:8000",
        *,
        token: str | Callable[[bool], str | None] | None = None,
        headers: Mapping[str, str] | None = None,
        stall_seconds: float = STALL_SECONDS,
        give_up_seconds: float | None = None,
        http: httpx2.Client | None = None,
    ) -> None:
        """`token` is an API key, or `token(refused)` returns the bearer token of the next try; `refused`: the last one got a 401
        or 403, and a second refusal in a row is final. `headers` are sent with each request. A request to which nothing comes for `stall_seconds` is
        tried again. After `give_up_seconds` without an accepted request the last error is raised; None: after a day in
        `follow`, after a minute in the other calls. `http`: a client of your own (proxies, certificates), which you close.
        """
        self._options = Options(server, callable(token), headers or {}, stall_seconds, give_up_seconds)
        self._token = token
        self._http = http or httpx2.Client(limits=LIMITS)
        self._owns_http = http is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections that are kept for the next request."""
        if self._owns_http:
            self._http.close()

    def create(self, request: str | Mapping[str, Any], *, idempotency_key: str | None = None) -> Created:
        """Requests an answer to a prompt, or to a Chat Completions request. However often it is tried, there is one generation.

        Raises StreamError, as all methods do, for a request that was refused or could not be sent until `give_up_seconds`.
        """
        return self._call(protocol.create(self._options, request, idempotency_key))

    def ask(
        self, request: str | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> Generator[StreamEvent, None, None]:
        """Requests an answer and follows it: `create`, then `follow`."""
        yield from self.follow(self.create(request, idempotency_key=idempotency_key).id)

    def follow(self, stream: str, *, after: str = "") -> Generator[StreamEvent, None, None]:
        """Yields a stream's events, each once and in order, over as many connections as it takes; the last one is Done, Failed
        or Cancelled.

        `stream` is the id, or the URL. With `after`, an event's id, the events begin behind it, and so does their text. Raises
        StreamError where no try can help: 404, 410, a token that was refused twice.
        """
        following = Following(self._options, stream, after=after)
        while not following.over:
            try:
                with self._response(following) as response:
                    for part in response.iter_bytes():
                        yield from following.receive(part)
                        if following.over:
                            return
                following.end()
                continue
            except ERRORS as error:
                lost = following.lost(stream_error(error, following.request()))
            yield lost
            time.sleep(lost.wait_seconds)

    def cancel(self, stream: str) -> State:
        """Stops the answer, and returns its state. May be repeated; an ended stream stays as it is."""
        return self._call(protocol.cancel(self._options, stream))

    def receipt(self, stream: str) -> Receipt:
        """Returns what was generated, and what was delivered over which connection."""
        return self._call(protocol.receipt(self._options, stream))

    def state(self, stream: str, *, wait_seconds: float = 0.0) -> State:
        """Returns the state and the text; with `wait_seconds` (up to 600) when the stream has ended or the time is up."""
        return self._call(protocol.state(self._options, stream, wait_seconds))

    def write(
        self,
        stream: str,
        *,
        lease_seconds: float = WRITER_LEASE_SECONDS,
        model: str | None = None,
        keep: int | None = None,
    ) -> Writer:
        """Returns a context manager that fills a stream which was made for an external writer (`create_external`).

        Whoever wrote it before is refused from then on; what stands already is kept, or the first `keep` events of it. The stream
        fails if nothing is heard of this program for `lease_seconds`; signs of life are sent by themselves.
        """
        return Writer(Outbox(self._options, stream, lease_seconds=lease_seconds, model=model, keep=keep), self._call)

    def create_external(
        self,
        request: Mapping[str, Any] | None = None,
        *,
        lease_seconds: float = WRITER_LEASE_SECONDS,
        idempotency_key: str | None = None,
    ) -> Created:
        """Creates a stream that an external writer fills, such as this program (`write`). `request`: more fields of its body."""
        return self.create(protocol.external(request, lease_seconds), idempotency_key=idempotency_key)

    def _call(self, call: Call[T]) -> T:
        while True:
            try:
                with self._response(call) as response:
                    for part in response.iter_bytes():
                        call.receive(part)
                return call.result()
            except ERRORS as error:
                seconds = call.pause_after(stream_error(error, call.request()))
            time.sleep(seconds)

    @contextmanager
    def _response(self, exchange: Exchange) -> Iterator[httpx2.Response]:
        """Opens an accepted response. Raises StreamError for any other."""
        request = exchange.request(self._bearer(exchange.token_refused))
        with self._http.stream(
            request.method,
            request.url,
            headers=dict(request.headers),
            content=request.content or None,
            timeout=timeout_of(request),
        ) as response:
            if not exchange.accepts(response.status_code, response.headers):
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    if len(body) > protocol.REFUSAL_BYTES_MAX:
                        break
                raise exchange.refusal(response.status_code, response.headers, bytes(body))
            yield response

    def _bearer(self, refused: bool) -> str | None:
        if not callable(self._token):
            return self._token
        try:
            return self._token(refused)
        except Exception as error:
            raise StreamError(f"the token function failed: {error!r}") from error
