"""Any OpenAI-compatible API, through the official SDK's raw streaming response.

The SDK does the connection, the key and the request; the chunks are read as JSON without typed objects, which would
cost 20 times as much per token. A chunk that is nothing but text becomes a token; whatever else a delta carries (tool
calls, refusals, reasoning, log probabilities, further choices) is kept as the provider sent it.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import httpx2
import openai
import orjson

from producer.direct_transport import FOLLOW, DirectTransport, is_proxied
from producer.provider import Finish, Hearer, ProviderError, Refused, Unavailable
from shared.events import Item
from shared.tracing import traceparent

_CONNECT_SECONDS = 10.0
_LINE_BYTES_MAX = 8 << 20
"""A provider's line may carry an image or a long tool call; without any bound it could fill the worker's memory."""
_MESSAGE_CHARACTERS_MAX = 500
_ABOUT_BYTES_MAX = 16 << 10
"""What is kept of the fields beside an answer's text, or of an error object."""
_ENVELOPE = frozenset({"id", "object", "created", "choices", "usage", "obfuscation", "error"})
_CHOICE = frozenset({"index", "delta", "logprobs", "finish_reason"})
_RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})
_OURS = frozenset({"simulate", "stream", "stream_options"})


class OpenAIProvider:
    name = "openai"

    def __init__(self, *, api_key: str, base_url: str, default_model: str, connections_max: int) -> None:
        self._default_model = default_model
        self._client = openai.AsyncOpenAI(
            api_key=api_key or "none",  # local servers want no key, the SDK wants one
            base_url=base_url or None,
            max_retries=0,  # the attempt decides what is tried again
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS, pool=_CONNECT_SECONDS),
                limits=httpx2.Limits(max_connections=connections_max, max_keepalive_connections=100),
                transport=None if is_proxied(base_url) else DirectTransport(connections_max=connections_max),
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
                reader = _ChunkReader()

                def take(part: bytes) -> bool:
                    items = reader.feed(part)
                    has_room = hearer.take(items) if items else True
                    return has_room and not reader.ended

                follow = _following(response.http_response)
                while not await follow(take) and not reader.ended:
                    await hearer.room()
                if reader.error is not None:
                    raise reader.error
        except openai.APIStatusError as error:
            _raise_for_status(error)
        except openai.APITimeoutError as error:
            raise Unavailable(f"the provider did not answer in time: {error}", code="provider_timeout") from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            raise Unavailable(f"the connection to the provider failed: {cause or type(cause).__name__}") from None
        if reader.finish_reason is None:
            raise Unavailable("the provider ended its stream without a finish_reason")
        return Finish(reader.finish_reason, reader.usage, _bounded(reader.about))

    async def close(self) -> None:
        await self._client.close()


def _following(response: httpx2.Response) -> Callable[[Callable[[bytes], bool]], Awaitable[bool]]:
    """What tells of the body as it comes: straight from the connection (`Connection.follow`), unless it must be decoded."""
    straight: Callable[[Callable[[bytes], bool]], Awaitable[bool]] | None = response.extensions.get(FOLLOW)
    if straight is not None and "content-encoding" not in response.headers:
        return straight
    parts = response.aiter_bytes()

    async def follow(take: Callable[[bytes], bool]) -> bool:
        async for part in parts:
            if not take(part):
                return False
        return True

    return follow


class _ChunkReader:
    """The provider's SSE bytes in, items out; holds at most one unfinished line."""

    def __init__(self) -> None:
        self._rest = b""
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
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

    def feed(self, data: bytes) -> list[Item]:
        """What the next bytes say, up to an error or the end."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        items: list[Item] = []
        try:
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                payload = line[5:].strip()
                if payload == b"[DONE]":
                    self.complete = True
                    return items
                if payload:
                    self._chunk(_json(payload), items)
            if len(self._rest) > _LINE_BYTES_MAX:
                raise Unavailable(f"the provider sent a line of more than {_LINE_BYTES_MAX} bytes")
        except ProviderError as error:
            self.error = error
        return items

    def _chunk(self, chunk: Any, items: list[Item]) -> None:
        if not isinstance(chunk, dict):
            raise Unavailable("the provider sent a chunk that is not an object")
        if chunk.get("error"):
            _raise_for_error_chunk(chunk["error"])
        if chunk.get("usage"):
            self.usage = chunk["usage"]
            self._note("provider", chunk, _ENVELOPE)
        elif not self.about:
            self._note("provider", chunk, _ENVELOPE)
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            index = choice.get("index") or 0
            content = delta.get("content")
            if len(delta) == 1 and content and type(content) is str and not index and not choice.get("logprobs"):
                items.append(_clean(content))
            else:
                self._unusual(choice, delta, index, items)
            if choice.get("finish_reason") and not index:
                self.finish_reason = choice["finish_reason"]
                self._note("provider", chunk, _ENVELOPE)
                self._note("choice", choice, _CHOICE)

    def _note(self, name: str, said: dict[str, Any], known: frozenset[str]) -> None:
        """Keep what has no place of its own."""
        noted = self.about.setdefault(name, {})
        noted |= {key: value for key, value in said.items() if key not in known and value not in (None, "", [], {})}

    @staticmethod
    def _unusual(choice: dict[str, Any], delta: dict[str, Any], index: int, items: list[Item]) -> None:
        """A choice that is more, or less, than a piece of plain text."""
        said = {key: value for key, value in delta.items() if key != "role" and value not in (None, "", [])}
        more: dict[str, Any] = {}
        if choice.get("logprobs"):
            more["logprobs"] = choice["logprobs"]
        if index:
            more["index"] = index
            if choice.get("finish_reason"):
                more["finish_reason"] = choice["finish_reason"]
                more |= {key: value for key, value in choice.items() if key not in _CHOICE and value is not None}
        if not more and set(said) == {"content"} and isinstance(said["content"], str):
            items.append(_clean(said["content"]))
        elif said or "logprobs" in more or "finish_reason" in more:
            items.append(_dump({"delta": said, **more}))


def _json(payload: bytes) -> Any:
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError:
        try:
            return json.loads(
                payload, parse_constant=lambda _: None
            )  # half of a surrogate pair, NaN: wrong, and sent all the same
        except ValueError:
            raise Unavailable(f"the provider sent what is not JSON: {payload[:80]!r}") from None


def _clean(text: str) -> str:
    """Text that can be encoded: half of a surrogate pair becomes the replacement character."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _dump(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except (orjson.JSONEncodeError, TypeError):
        return _clean(json.dumps(value, ensure_ascii=False)).encode()  # what readers can parse, however they do it


def _raise_for_status(error: openai.APIStatusError) -> NoReturn:
    status = error.status_code
    body = error.body if isinstance(error.body, dict) else {}
    told = str(body.get("message") or error.message or "")[:_MESSAGE_CHARACTERS_MAX]
    message = f"the provider answered {status}: {told}"
    kind = {str(body.get("code")), str(body.get("type"))}
    own = _own_error(body, told)
    if kind & {"content_filter", "content_policy_violation"}:
        raise Refused(message, code="content_filtered", status=status, error=own) from None
    retry_after = _retry_after(error.response.headers)
    if (status in _RETRYABLE_STATUSES or status >= 500) and "insufficient_quota" not in kind:
        raise Unavailable(message, retry_after_seconds=retry_after, status=status, error=own) from None
    raise Refused(message, status=status, error=own, retry_after_seconds=retry_after) from None


def _raise_for_error_chunk(error: Any) -> NoReturn:
    """An error inside a response that began with 200 (overload, a filter, a crash behind a proxy)."""
    about = error if isinstance(error, dict) else {"message": error}
    message = f"the provider broke off: {str(about.get('message') or about)[:_MESSAGE_CHARACTERS_MAX]}"
    kind = {str(about.get("code")), str(about.get("type"))}
    own = _own_error(about, message)
    status = about["code"] if isinstance(about.get("code"), int) else None
    if kind & {"content_filter", "content_policy_violation"}:
        raise Refused(message, code="content_filtered", status=status, error=own)
    if kind & {"invalid_request_error", "authentication_error", "permission_error", "400", "401", "403", "404"}:
        raise Refused(message, status=status, error=own)
    raise Unavailable(message, status=status, error=own)


def _own_error(said: dict[str, Any], message: str) -> dict[str, Any]:
    """The provider's error object, as it is but for its length."""
    own = {"message": message, "type": None, "param": None, "code": None} | said
    own["message"] = _clean(str(own["message"] or message)[:_MESSAGE_CHARACTERS_MAX])
    return _fitting(own)


def _bounded(about: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: fitting for name, said in about.items() if (fitting := _fitting(said))}


def _fitting(said: dict[str, Any]) -> dict[str, Any]:
    """The fields that can be stored and fit into the bound."""
    room = _ABOUT_BYTES_MAX
    fitting: dict[str, Any] = {}
    for name, value in said.items():
        try:
            size = len(orjson.dumps({name: value}))
        except TypeError:  # half of a surrogate pair, a number of more than 64 bits
            continue
        if size <= room:
            room -= size
            fitting[name] = value
    return fitting


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Retry-After in seconds: a number or an HTTP date (RFC 9110, section 10.2.3), or OpenAI's own in milliseconds."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after", "")
        if value.strip().replace(".", "", 1).isdecimal():
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time()) if value else None
    except (ValueError, TypeError):
        return None
