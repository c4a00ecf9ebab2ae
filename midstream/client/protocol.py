"""What a client decides, without I/O: which request comes next, what its response means, how long to wait, when to give up.

    request ──► accepts ─── yes ──► receive … ──► end ───────► over
       ▲           │ no                │ lost       │ too early
       │           ▼                   ▼            │
       │        refusal ────────► pause_after ◄─────┘
       └───────── the pause is over ─┘└─► StreamError: no try can help, or `give_up_seconds` are over

`Following` (a stream's events) and `Call` (one answer) are driven in this way by `sync_client` and `async_client` alike.
"""

from __future__ import annotations

import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import orjson

from midstream.client.answer import Answer, is_end, known_fields
from midstream.client.events import Created, Lost, Receipt, State, StreamError, StreamEvent, WriterState
from shared.sse import Decoder, EventTooLong

STALL_SECONDS = 40.0
"""The gateway sends a comment every 15 s: when two have failed to come, the connection is dead."""
_RETRY_SECONDS = 1.0
"""Between two tries, until the server has sent `retry:`."""
_RETRY_SECONDS_MAX = 30.0
_RETRY_SECONDS_MIN = 0.1
"""Before a second try in a row that brings no event, even if the server says `retry: 0`: it must not be asked without a pause."""
_DOUBLINGS_MAX = 16
_JITTER = 0.5
"""A pause is longer by up to this share of it, so that readers who were cut off together do not come back together."""
_FOLLOW_SECONDS_MAX = 86_400.0
"""A log lives a day: when nobody has answered for so long, there is nothing left to follow."""
_CALL_SECONDS_MAX = 60.0
"""What a person waits for a button at most."""
_ANSWER_BYTES_MAX = 64 << 20
"""Of a call's answer: far above the state of the longest answer."""
REFUSAL_BYTES_MAX = 65_536
"""So much of a refusal is read."""
_DETAIL_CHARACTERS_MAX = 500
"""Of a refusal's text in an error: a proxy may answer with a page."""

_STREAM_PATH = re.compile(r"/v1/streams/[^/]+")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """What all requests of a client have in common."""

    server: str
    """The gateway's address."""
    renews_token: bool = False
    """Whether a refused token can be followed by another one."""
    headers: Mapping[str, str] = field(default_factory=dict)
    stall_seconds: float = STALL_SECONDS
    give_up_seconds: float | None = None
    """None: a day for a stream, a minute for a call."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as it is to be sent."""

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes
    silence_seconds_max: float
    """After so long without a byte the connection counts as dead."""


class Exchange:
    """A request that is repeated until it succeeds or no repetition can help."""

    def __init__(
        self,
        options: Options,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        give_up_seconds: float,
        content: bytes = b"",
        waits_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`waits_seconds`: how long the server may take by agreement."""
        self.token_refused = False
        """Whether the last token got a 401 or 403, so that a cached one will not do."""
        self._options = options
        self._method, self._url, self._content = method, url, content
        self._headers = {"cache-control": "no-store", "accept-encoding": "identity", **options.headers, **headers}
        self._silence_seconds_max = options.stall_seconds + waits_seconds
        self._give_up_seconds = give_up_seconds if options.give_up_seconds is None else options.give_up_seconds
        self._clock = clock
        self._heard_at = clock()
        """Since then nobody has been heard; of a call: its beginning."""
        self._retry_seconds = _RETRY_SECONDS
        self._failures = 0
        """Since the last event."""

    def retry_soon(self, seconds: float) -> None:
        """Makes the first pause between two tries this long, if it is shorter than usual."""
        self._retry_seconds = min(self._retry_seconds, seconds)

    def request(self, bearer: str | None = None) -> Request:
        """Returns the request to send now, with this bearer token."""
        headers = {**self._headers, **({"authorization": f"Bearer {bearer}"} if bearer else {})}
        return Request(self._method, self._url, headers, self._content, self._silence_seconds_max)

    def accepts(self, status: int, headers: Mapping[str, str]) -> bool:
        """Takes the head of a response; False: call `refusal` with the body. Raises StreamError."""
        if not 200 <= status < 300:
            return False
        self.token_refused = False
        return True

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> StreamError:
        """Returns the error that a refused response means, in the server's words."""
        words = body.decode("utf-8", "replace").strip() or headers.get("location", "")
        try:
            problem = orjson.loads(body)
        except orjson.JSONDecodeError:
            problem = None
        if isinstance(problem, dict):
            error = problem.get("error")
            found = (problem.get("detail"), error.get("message") if isinstance(error, dict) else None)
            words = next((value for value in found if isinstance(value, str)), words)
        detail = f"{status}: {words}"[:_DETAIL_CHARACTERS_MAX]
        return StreamError(
            detail,
            status=status,
            retry_after_seconds=_retry_after(headers.get("retry-after", "")),
            problem=problem if isinstance(problem, dict) else None,
        )

    def pause_after(self, error: StreamError) -> float:
        """Returns the seconds until the next try. Raises what ends the tries."""
        if error.status in (401, 403) and self._options.renews_token and not self.token_refused:
            self.token_refused = True
            return 0.0  # at once, with a fresh token; the second time it is final
        back_off_seconds = self._retry_seconds
        if self._failures:
            doubled = max(self._retry_seconds, _RETRY_SECONDS_MIN) * 2 ** min(self._failures, _DOUBLINGS_MAX)
            back_off_seconds = max(self._retry_seconds, min(_RETRY_SECONDS_MAX, doubled))
        self._failures += 1
        seconds = max(back_off_seconds, error.retry_after_seconds) * (1 + random.random() * _JITTER)
        left_seconds = self._heard_at + self._give_up_seconds - self._clock()
        if not error.retryable or left_seconds <= 0 or error.retry_after_seconds > left_seconds:
            raise error
        return min(seconds, left_seconds)  # the last try is at the very end


class Following(Exchange):
    """Follows a stream from its beginning, or from behind an event, to its end."""

    def __init__(
        self, options: Options, stream: str, *, after: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`stream`: an id, or the URL of a stream, of its events, or of another event stream of the server."""
        url = address(options.server, stream)
        self._is_native = _STREAM_PATH.search(urlsplit(url).path) is not None
        if self._is_native:
            url = below(url, "/events")
        # Not event streams alone: so asks an `EventSource`, which a full gateway answers with an empty one instead of 503.
        headers = {"accept": "text/event-stream, application/problem+json"}
        super().__init__(options, "GET", url, headers=headers, give_up_seconds=_FOLLOW_SECONDS_MAX, clock=clock)
        self.over = False
        self._answer = Answer(after)
        self._decoder = Decoder()
        self._was_heard = False
        self._at_end = False
        """A 204 has said that the cursor is at the end: what is missing is the terminal event."""
        self._goes_on = False

    def request(self, bearer: str | None = None) -> Request:
        request = super().request(bearer)
        if self._at_end:
            return replace(request, url=with_query(request.url, "from=now"))
        if self._answer.cursor:
            return replace(request, headers={**request.headers, "last-event-id": self._answer.cursor})
        return request

    def accepts(self, status: int, headers: Mapping[str, str]) -> bool:
        if not super().accepts(status, headers):
            return False
        self._heard_at = self._clock()
        self._goes_on = status == 204 and not self._at_end
        if self._goes_on:
            self._at_end = self._is_native
            self.over = not self._is_native  # only a stream can be asked for the terminal event again
            return True
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "text/event-stream":
            # Behind a lost connection it may be a hotel's login page, which goes away.
            retryable = self._was_heard and not self._at_end
            words = f"{self._url} answers with {media_type or 'no media type'}, not with an event stream"
            raise StreamError(words, retryable=retryable)
        self._was_heard = True
        self._decoder = Decoder()
        self._answer.connected()
        return True

    def receive(self, part: bytes) -> Iterator[StreamEvent]:
        """Takes bytes of the body, and yields the events that they complete. Raises StreamError for what cannot be read."""
        try:
            for message in self._decoder.feed(part):
                event = self._answer.event(message)
                if event is None:
                    continue
                if event.id is not None or event.type == "event":
                    self._failures = 0
                self.over = is_end(event)
                yield event
                if self.over:
                    return
        except EventTooLong as error:
            raise StreamError(str(error), retryable=False) from None
        finally:
            self._heard_at = self._clock()  # now, since the reader may have taken its time with the events
            if self._decoder.retry_milliseconds is not None:
                self._retry_seconds = self._decoder.retry_milliseconds / 1000

    def end(self) -> None:
        """Takes the end of the body. Raises StreamError if it came before the end of the stream."""
        if not self._goes_on:
            raise StreamError("the response ended before its stream")

    def lost(self, error: StreamError) -> Lost:
        """Returns the loss of a connection, with the time until the next try. Raises what ends the tries."""
        return Lost(error, self.pause_after(error), so_far=self._answer.text())


class Call(Exchange, Generic[T]):
    """A request with one answer. `read` makes of its JSON what the caller gets."""

    def __init__(
        self,
        options: Options,
        method: str,
        url: str,
        read: Callable[[dict[str, Any]], T],
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        waits_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            options,
            method,
            url,
            headers=headers or {},
            give_up_seconds=_CALL_SECONDS_MAX + waits_seconds,
            content=content,
            waits_seconds=waits_seconds,
            clock=clock,
        )
        self._read = read
        self._body = bytearray()

    def accepts(self, status: int, headers: Mapping[str, str]) -> bool:
        self._body.clear()
        return super().accepts(status, headers)

    def receive(self, part: bytes) -> None:
        """Takes bytes of the answer. Raises StreamError if it is too long."""
        self._body += part
        if len(self._body) > _ANSWER_BYTES_MAX:
            raise StreamError(f"the answer of {self._url} is longer than {_ANSWER_BYTES_MAX} bytes", retryable=False)

    def result(self) -> T:
        """Returns the whole answer. Raises StreamError if it is none of a gateway's."""
        try:
            return self._read(orjson.loads(self._body))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise StreamError(f"{self._url} did not answer as a gateway does: {error!r}", retryable=False) from None


def external(request: Mapping[str, Any] | None, lease_seconds: float) -> dict[str, Any]:
    """Returns the request of a stream that an external writer fills."""
    body = dict(request or {})
    return {**body, "midstream": {**body.get("midstream", {}), "writer": "external", "lease_seconds": lease_seconds}}


def create(options: Options, request: str | Mapping[str, Any], idempotency_key: str | None) -> Call[Created]:
    """Returns the call that requests an answer. All its tries have one key, so that there is one generation."""
    body = {"messages": [{"role": "user", "content": request}]} if isinstance(request, str) else dict(request)
    headers = {"content-type": "application/json", "idempotency-key": idempotency_key or str(uuid.uuid4())}
    url = address(options.server, "")

    def read(body: dict[str, Any]) -> Created:
        return Created(**{**known_fields(Created, body), "url": f"{url}/{body['id']}"})

    return Call(options, "POST", url, read, headers=headers, content=orjson.dumps(body))


def cancel(options: Options, stream: str) -> Call[State]:
    return Call(options, "POST", below(address(options.server, stream), "/cancel"), _state)


def state(options: Options, stream: str, wait_seconds: float) -> Call[State]:
    url = address(options.server, stream)
    if wait_seconds:
        url = with_query(url, f"wait={wait_seconds:g}")
    return Call(options, "GET", url, _state, waits_seconds=wait_seconds)


def receipt(options: Options, stream: str) -> Call[Receipt]:
    url = below(address(options.server, stream), "/receipt")
    return Call(options, "GET", url, lambda body: Receipt(**known_fields(Receipt, body)))


def write_call(
    options: Options, url: str, headers: Mapping[str, str], content: bytes, retry_seconds: float
) -> Call[WriterState]:
    """Returns a request of an external writer; a lost one is repeated so much later."""
    call = Call(
        options,
        "POST",
        url,
        lambda body: WriterState(**known_fields(WriterState, body)),
        headers=headers,
        content=content,
    )
    call.retry_soon(retry_seconds)
    return call


def _state(body: dict[str, Any]) -> State:
    return State(**known_fields(State, body))


def address(server: str, stream: str) -> str:
    """Returns the URL of a stream, without `/events`; for "" that of all streams. Raises StreamError for what is none."""
    base = server.rstrip("/")
    url = urljoin(base, stream) if "/" in stream else f"{base}/v1/streams/{quote(stream, safe='')}".rstrip("/")
    for given in (base, url):
        if not _is_http(given):
            raise StreamError(f"{given!r} must begin with http:// or https://, and name a host", retryable=False)
    server_parts, parts = urlsplit(base), urlsplit(url)
    if server_parts.query or server_parts.fragment:
        raise StreamError(f"{base!r} must end with a path: a query belongs to the stream's URL", retryable=False)
    if (parts.scheme, parts.netloc.lower()) != (server_parts.scheme, server_parts.netloc.lower()):
        raise StreamError(f"{url} is not on {base}: a token goes to its own server only", retryable=False)
    if _STREAM_PATH.search(parts.path):
        parts = parts._replace(path=parts.path.removesuffix("/events"))
    return urlunsplit(parts._replace(fragment=""))


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def below(url: str, path: str) -> str:
    """Returns a URL with this at the end of its path; a query stays."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path + path))


def with_query(url: str, parameter: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query="&".join(filter(None, (parameter, parts.query)))))


def _retry_after(value: str) -> float:
    """Returns the seconds that `Retry-After` names: a number, or a date (RFC 9110, section 10.2.3). 0 for anything else."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if seconds < float("inf") else 0.0
