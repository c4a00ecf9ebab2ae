"""Any OpenAI-compatible API, through the official SDK's raw streaming response.

The SDK does the connection, the key and the request; the chunks are read as JSON without typed objects, which would
cost 20 times as much per token. A chunk that is nothing but text becomes a token; whatever else a delta carries (tool
calls, refusals, reasoning, log probabilities, further choices) is kept as the provider sent it.
"""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import islice
from typing import Any, NoReturn

import httpx2
import openai
import orjson

from producer import chunk_shapes as shapes
from producer.bounded_transport import BoundedTransport, decoded
from producer.chunk_shapes import CHOICES_MAX, LEVELS_MAX, clean, json_text, storable
from producer.direct_transport import FOLLOW, DirectTransport, proxy_of
from producer.provider import Finish, Hearer, ProviderError, Refused, Unavailable
from shared.events import Item
from shared.outcomes import FailureCode
from shared.tracing import traceparent

_OWN_URL = "https://api.openai.com/v1"
"""Where no address is told."""
_CONNECT_SECONDS = 10.0
_LINE_BYTES_MAX = 8 << 20
"""A provider's line may carry an image or a long tool call; without any bound it could fill the worker's memory."""
_LARGE_LINE_BYTES = 64 << 10
_PLACES_MAX = 100_000
"""Values in one line: as Python objects they take 20 times the bytes of `[[],[],…`, and so much time that all others wait."""
_MESSAGE_CHARACTERS_MAX = 500
_ABOUT_BYTES_MAX = 16 << 10
"""What is kept of the fields beside an answer's text, or of an error object."""
_ABOUT_FIELDS_MAX = 100
_ENVELOPE = frozenset({"id", "object", "created", "choices", "usage", "obfuscation", "error"})
_CHOICE = frozenset({"index", "delta", "logprobs", "finish_reason"})
_RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})
_OURS = frozenset({"simulate", "stream", "stream_options"})


class OpenAIProvider:
    name = "openai"

    def __init__(self, *, api_key: str, base_url: str, default_model: str, connections_max: int) -> None:
        self._default_model = default_model
        transport: httpx2.AsyncBaseTransport
        proxy = proxy_of(base_url or _OWN_URL)
        if proxy is not None:
            limits = httpx2.Limits(max_connections=connections_max, max_keepalive_connections=100)
            transport = httpx2.AsyncHTTPTransport(proxy=proxy, limits=limits)
        else:
            transport = DirectTransport(connections_max=connections_max)
        self._client = openai.AsyncOpenAI(
            api_key=api_key or "none",  # local servers want no key, the SDK wants one
            base_url=base_url or None,
            max_retries=0,  # the attempt decides what is tried again
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
        rest = {key: value for key, value in request.items() if key not in _OURS and key not in ("model", "messages")}
        try:
            async with self._client.chat.completions.with_streaming_response.create(
                model=self.model_of(request),
                messages=[],  # they go by extra_body, which wins: the SDK would rebuild each of them by its type
                stream=True,
                extra_headers={"traceparent": traceparent.get()} if traceparent.get() else None,
                extra_body={**rest, "messages": messages, "stream_options": options},
            ) as response:
                reader = _ChunkReader(hearer.odd)

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
            _raise_for_status(error)
        except openai.APITimeoutError as error:
            raise Unavailable(
                f"the provider did not answer in time: {error}", code=FailureCode.PROVIDER_TIMEOUT
            ) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            raise _lost(error) from None
        if reader.finish_reason is None:
            raise Unavailable("the provider ended its stream without a finish_reason")
        return Finish(reader.finish_reason, reader.usage, {name: it for name, it in reader.about.items() if it})

    async def close(self) -> None:
        await self._client.close()


def _lost(error: Exception) -> Unavailable:
    """In a function of its own: an exception in a variable of the frame that caught it would hold itself."""
    cause = error.__cause__ or error
    words = str(cause)[:_MESSAGE_CHARACTERS_MAX] or type(cause).__name__
    return Unavailable(f"the connection to the provider failed: {words}")


def _following(response: httpx2.Response) -> Callable[[Callable[[bytes], bool]], Awaitable[bool]]:
    """What tells of the body as it comes: straight from the connection (`Connection.follow`), unless it must be decoded."""
    straight: Callable[[Callable[[bytes], bool]], Awaitable[bool]] | None = response.extensions.get(FOLLOW)
    if straight is not None and "content-encoding" not in response.headers:
        return straight
    parts = decoded(response)

    async def follow(take: Callable[[bytes], bool]) -> bool:
        async for part in parts:
            if not take(part):
                return False
        return True

    return follow


class _ChunkReader:
    """The provider's SSE bytes in, items out; holds at most one unfinished line.

    What it gives has the shapes of `chunk_shapes`. `odd` is called with the kind of each value that had another one.
    """

    def __init__(self, odd: Callable[[str], None] = lambda kind: None) -> None:
        self._odd = odd
        self._found: set[str] = set()
        """The kinds of odd values in the chunk that is being read."""
        self._rest = bytearray()
        self.finish_reason: str | None = None
        self._usage: Any = None
        self.about: dict[str, dict[str, Any]] = {}
        """`Finish.about`, from the first chunk and those that end something: the others repeat it."""
        self.complete = False
        """`[DONE]` was read: nothing more will come."""
        self.error: ProviderError | None = None
        """An error chunk, or what is no chunk, was read: to be raised when what came before it is told."""

    @property
    def ended(self) -> bool:
        """Nothing more may be fed."""
        return self.complete or self.error is not None

    @property
    def usage(self) -> dict[str, Any] | None:
        """The last that was said. Looked at once, at the end: some providers say it with each token."""
        shaped = shapes.usage(self._usage, self._odd_at("usage")) if self._usage else None
        usage = None if shaped is None or shaped is shapes.LEFT_OUT else _fitting(shaped, self._odd_at("usage"))
        self._report()
        return usage

    def take_error(self) -> ProviderError:
        """The error, to be raised: kept here it would hold, by its traceback, the answer that it ended."""
        error, self.error = self.error, None
        assert error is not None
        self.complete = True
        return error.with_traceback(None)

    def feed(self, data: bytes) -> list[Item]:
        """What the next bytes say, up to an error or the end."""
        lines = data.split(b"\n")
        rest = self._rest
        if rest and len(lines) > 1:
            lines[0] = bytes(rest) + lines[0]
            rest.clear()
        rest += lines.pop()
        items: list[Item] = []
        found = self._found
        try:
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                payload = line[5:].strip()
                if payload == b"[DONE]":
                    self.complete = True
                    return items
                if payload:
                    self._chunk(self._json(payload), payload, items)
                    if found:
                        self._report()
            if len(rest) > _LINE_BYTES_MAX:
                raise Unavailable(f"the provider sent a line of more than {_LINE_BYTES_MAX} bytes")
        except ProviderError as error:
            self.error = error.with_traceback(None)  # which leads back here
            self._report()
        return items

    def _chunk(self, chunk: Any, payload: bytes, items: list[Item]) -> None:
        if type(chunk) is not dict:
            raise Unavailable("the provider sent a chunk that is not an object")
        if chunk.get("error"):
            _raise_for_error_chunk(chunk["error"])
        if chunk.get("usage"):
            if type(chunk["usage"]) is dict or self._usage is None:
                self._usage = chunk["usage"]
            self._note("provider", chunk, _ENVELOPE)
        elif not self.about:
            self._note("provider", chunk, _ENVELOPE)
        choices = chunk.get("choices")
        if type(choices) is not list:
            if choices:
                self._found.add("choices")
            return
        if len(choices) > CHOICES_MAX:
            self._found.add("choices")
            choices = choices[:CHOICES_MAX]
        for choice in choices:
            if (
                type(choice) is dict
                and type(delta := choice.get("delta")) is dict
                and len(delta) == 1
                and type(content := delta.get("content")) is str
                and content
                and not choice.get("index")
                and not choice.get("logprobs")
            ):
                items.append(content if content.isascii() else clean(content))
                if choice.get("finish_reason"):
                    self._end(chunk, choice)
            elif type(choice) is dict:
                self._unusual(chunk, choices, choice, payload, items)
            elif choice is not None:
                self._found.add("choice")

    def _end(self, chunk: dict[str, Any], choice: dict[str, Any]) -> None:
        """The first choice has said how it ended."""
        reason = shapes.finish_reason(choice["finish_reason"], self._odd_at("finish_reason"))
        if reason is not None:
            self.finish_reason = reason
            self._note("provider", chunk, _ENVELOPE)
            self._note("choice", choice, _CHOICE)

    def _unusual(
        self, chunk: dict[str, Any], choices: list[Any], choice: dict[str, Any], payload: bytes, items: list[Item]
    ) -> None:
        """A choice that is more, or less, than a piece of plain text."""
        index = 0
        if choice.get("index"):
            index = shapes.INDEX(choice["index"], self._odd_at("index"))
            if index is shapes.LEFT_OUT:
                index = next(place for place, it in enumerate(choices) if it is choice)
        delta = self._shaped(choice.get("delta") or {})
        more: dict[str, Any] = {}
        if choice.get("logprobs"):
            logprobs = shapes.LOGPROBS(choice["logprobs"], self._odd_at("logprobs"))
            if logprobs is not shapes.LEFT_OUT:
                more["logprobs"] = logprobs
        if index:
            more["index"] = index
            reason = shapes.finish_reason(choice.get("finish_reason"), self._odd_at("finish_reason"))
            if reason is not None:
                beside = {key: value for key, value in choice.items() if key not in _CHOICE and value is not None}
                more = {**_fitting(beside, self._odd_at("unstorable")), **more, "finish_reason": reason}
        elif choice.get("finish_reason"):
            self._end(chunk, choice)
        if not more and len(delta) == 1 and type(delta.get("content")) is str:
            items.append(clean(delta["content"]))
        elif delta or "logprobs" in more or "finish_reason" in more:
            items.append(self._dump({"delta": delta, **more}, payload))

    def _shaped(self, delta: Any) -> dict[str, Any]:
        """What a delta says, without what says nothing: each field in its documented shape."""
        if type(delta) is not dict:
            self._found.add("delta")
            return {}
        kept: dict[str, Any] = {}
        for name, value in delta.items():
            if name == "role" or value in (None, "", []):
                continue
            shape = shapes.DELTA.get(name)
            if shape is not None:
                value = shape(value, self._odd_at(name))
                if value is shapes.LEFT_OUT or value in ("", []):
                    continue
            kept[name] = value
        return kept

    def _note(self, name: str, said: dict[str, Any], known: frozenset[str]) -> None:
        """Keep what has no place of its own."""
        noted = self.about.get(name, {})
        fields = {key: value for key, value in said.items() if key not in known and value not in (None, "", [], {})}
        if any(noted.get(key) != value for key, value in fields.items()):
            for key in fields.keys() & shapes.CHUNK.keys():
                if shapes.CHUNK[key](fields[key], self._odd_at(key)) is shapes.LEFT_OUT:
                    del fields[key]
            noted = _fitting(noted | fields, self._odd_at("unstorable"))
        self.about[name] = noted

    def _odd_at(self, kind: str) -> Callable[[], None]:
        return partial(self._found.add, kind)

    def _report(self) -> None:
        """Tell each kind once per chunk: a list may have a hundred thousand odd elements."""
        for kind in sorted(self._found):
            self._odd(kind)
        self._found.clear()

    def _json(self, payload: bytes) -> Any:
        try:
            if len(payload) > _LARGE_LINE_BYTES and _places_in(payload) > _PLACES_MAX:
                raise Unavailable(f"the provider sent a chunk of more than {_PLACES_MAX} values")
            return orjson.loads(payload)
        except orjson.JSONDecodeError:
            pass
        try:  # half of a surrogate pair, NaN, bytes that are no UTF-8: wrong, and sent all the same
            text = payload.decode("utf-8", "replace")
            return json.loads(text, parse_constant=lambda _: None, parse_int=_finite, parse_float=_finite)
        except RecursionError:
            self._found.add("unstorable")
            return {}
        except ValueError:
            raise Unavailable("the provider sent what is not JSON") from None

    def _dump(self, value: dict[str, Any], payload: bytes) -> bytes:
        """The item's JSON: of bounded depth, and without what JSON libraries cannot read back."""
        if payload.count(b"{") + payload.count(b"[") <= LEVELS_MAX:  # so it cannot be deeper
            try:
                return orjson.dumps(value)
            except TypeError:
                pass  # half of a surrogate pair, a number of more than 64 bits
        return orjson.dumps(storable(value, self._odd_at("unstorable")))


def _places_in(payload: bytes) -> int:
    """At least as many as there are values in this JSON; what stands in texts counts as well."""
    return payload.count(b",") + payload.count(b"[") + payload.count(b"{")


def _finite(digits: str) -> int | float | None:
    """A JSON number as Python has it; None for one that is infinite as a float."""
    if len(digits) < 20 and digits.lstrip("-").isdecimal():
        return int(digits)
    number = float(digits)
    return number if math.isfinite(number) else None


def _raise_for_status(error: openai.APIStatusError) -> NoReturn:
    status = error.status_code
    body = error.body if isinstance(error.body, dict) else {}
    words = _words(body.get("message")) or str(error.message or "")[:_MESSAGE_CHARACTERS_MAX]
    message = f"the provider answered {status}: {clean(words)}"
    kind = {str(body.get(name)) for name in ("code", "type") if isinstance(body.get(name), str)}
    own = _own_error(body, words)
    if kind & {"content_filter", "content_policy_violation"}:
        raise Refused(message, code=FailureCode.CONTENT_FILTERED, status=status, error=own) from None
    retry_after = _retry_after(error.response.headers)
    if (status in _RETRYABLE_STATUSES or status >= 500) and "insufficient_quota" not in kind:
        raise Unavailable(message, retry_after_seconds=retry_after, status=status, error=own) from None
    raise Refused(message, status=status, error=own, retry_after_seconds=retry_after) from None


def _raise_for_error_chunk(error: Any) -> NoReturn:
    """An error inside a response that began with 200 (overload, a filter, a crash behind a proxy)."""
    about = error if isinstance(error, dict) else {"message": error}
    words = _words(about.get("message") or about)
    message = f"the provider broke off: {words}"
    kind = {str(about.get(name)) for name in ("code", "type") if isinstance(about.get(name), str | int)}
    own = _own_error(about, message)
    code = about.get("code")
    status = code if type(code) is int and 100 <= code <= 599 else None
    if kind & {"content_filter", "content_policy_violation"}:
        raise Refused(message, code=FailureCode.CONTENT_FILTERED, status=status, error=own)
    if kind & {"invalid_request_error", "authentication_error", "permission_error", "400", "401", "403", "404"}:
        raise Refused(message, status=status, error=own)
    raise Unavailable(message, status=status, error=own)


def _words(message: Any) -> str:
    """A provider's message, of bounded length; of what is no text its JSON."""
    words = message if isinstance(message, str) else "" if message is None else json_text(message)
    return clean(words[:_MESSAGE_CHARACTERS_MAX])


def _own_error(error: dict[str, Any], message: str) -> dict[str, Any]:
    """The provider's error object, as it is but for its length, and with OpenAI's four fields in their shapes."""
    own = {"message": None, "type": None, "param": None, "code": None} | error
    own["message"] = _words(own["message"]) or clean(message[:_MESSAGE_CHARACTERS_MAX])
    for name in ("type", "param", "code"):
        is_text = isinstance(own[name], str) and len(own[name]) <= _MESSAGE_CHARACTERS_MAX
        if not is_text and not (name == "code" and type(own[name]) is int and abs(own[name]) < 1 << 63):
            own[name] = None
    return _fitting(own)


def _fitting(fields: dict[str, Any], odd: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The fields that can be stored and fit into the bound."""
    room = _ABOUT_BYTES_MAX
    fitting: dict[str, Any] = {}
    for name, value in islice(fields.items(), _ABOUT_FIELDS_MAX):
        try:
            size = len(orjson.dumps({name: value}))
        except TypeError:  # half of a surrogate pair, a number of more than 64 bits
            odd()
            continue
        if size > room:
            odd()
            continue
        room -= size
        fitting[name] = storable(value, odd)
    return fitting


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Retry-After in seconds: a number or an HTTP date (RFC 9110, section 10.2.3), or OpenAI's own in milliseconds."""
    try:
        if "retry-after-ms" in headers:
            return _seconds(headers["retry-after-ms"]) / 1000
        value = headers.get("retry-after", "")
        if value.strip().replace(".", "", 1).isdecimal():
            return _seconds(value)
        return _seconds(email.utils.parsedate_to_datetime(value).timestamp() - time.time()) if value else None
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def _seconds(value: float | str) -> float:
    """A time to wait. Raises ValueError for one that is not finite."""
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError("no time to wait")
    return max(0.0, seconds)
