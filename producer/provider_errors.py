"""Turns what an OpenAI-compatible provider answers instead of an answer into `Refused` and `Unavailable`.

Whether a request is tried again depends on whose fault the error is: an overload passes, an invalid request does not. The
provider's own error object is kept, in bounds, for clients that know it. An error is the same error in whatever way it is sent: as a
status, in a stream or a body that began with 200, as an object, a list, a text or a page of HTML.
"""

from __future__ import annotations

import email.utils
import html
import math
import re
import time
from typing import Any, NoReturn

import httpx2
import openai
import orjson

from producer.chunk_shapes import clean, fitting, json_text
from producer.provider import ProviderError, Refused, Unavailable
from shared.outcomes import FailureCode

_MESSAGE_CHARACTERS_MAX = 500
_BODY_CHARACTERS_MAX = 64 << 10
_RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})
_FILTERED = frozenset(
    {"content_filter", "content_policy_violation", "content_filtered", "responsibleaipolicyviolation"}
)
_USED_UP = frozenset(
    {"insufficient_quota", "billing_not_active", "billing_hard_limit_reached", "billing_error", "insufficient_balance"}
)
"""Kinds of errors that no later try mends, whatever their status."""
_STATUS_OF_KIND = {
    400: "invalid_request_error invalid_argument badrequesterror bad_request_error bad_request validation_error "
    "context_length_exceeded exceed_context_size_error failed_precondition out_of_range invalid_prompt string_above_max_length",
    401: "authentication_error authenticationerror unauthenticated invalid_api_key unauthorized invalid_authentication_error",
    402: "billing_error insufficient_balance insufficient_credits payment_required",
    403: "permission_error permission_denied permissiondeniederror forbidden",
    404: "not_found_error notfounderror not_found model_not_found",
    413: "request_too_large",
    422: "validation unprocessableentityerror unprocessable_entity",
    429: "rate_limit_error rate_limit_exceeded ratelimiterror resource_exhausted insufficient_quota billing_not_active "
    "billing_hard_limit_reached tokens requests too_many_requests",
    500: "server_error internal internal_server_error internalservererror internal_error api_error",
    501: "not_supported_error",
    503: "unavailable unavailable_error service_unavailable serviceunavailableerror overloaded",
    504: "timeout_error deadline_exceeded gatewaytimeout timeout",
    529: "overloaded_error",
}
"""The HTTP status that an error of this kind has, where it comes without one. OpenAI, Anthropic, Google, vLLM, TGI, llama.cpp."""
_STATUSES = {kind: status for status, kinds in _STATUS_OF_KIND.items() for kind in kinds.split()}
_WORDS_FIELDS = (
    "message", "msg", "error_message", "error_msg", "status_msg", "error_description", "detail", "details", "description", "reason", "title"
)  # fmt: skip
"""Where providers put an error's words, most telling first."""
_LEVELS_MAX = 4
_TITLE = re.compile(r"<title[^>]*>([^<]+)", re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")
_MARKUP = re.compile(r"\s*<(?:!doctype|html|head|body|\?xml)\b", re.IGNORECASE)


def raise_for_status(error: openai.APIStatusError) -> NoReturn:
    """Raises Refused or Unavailable for an answer whose status is an error."""
    status = error.status_code
    fields, words = error_in(_loaded(error.response.content, error.body))
    message = f"the provider answered {status}: {words or 'without a message'}"
    wait_seconds = retry_after_seconds(error.response.headers)
    raise _error(message, fields, words, status=status, retry_after_seconds=wait_seconds) from None


def raise_for_error(error: Any) -> NoReturn:
    """Raises for an error inside a response that began with 200: an overload, a filter, a crash behind a proxy.

    `error`: the JSON value that was sent in place of a chunk, or a text.
    """
    fields, words = error_in(error)
    raise _error(f"the provider broke off: {words or 'without a message'}", fields, words)


def raise_for_page(text: str) -> NoReturn:
    """Raises for a whole body that is neither a stream nor JSON."""
    fields, words = error_in(text)
    message = f"the provider sent no answer, but: {words}"
    if _MARKUP.match(text):  # an address that is none of an API, or something before it that blocks: it stays so
        raise Refused(message, error=own_error(fields, words))
    raise Unavailable(message, error=own_error(fields, words))


def broke_off(words: str) -> Unavailable:
    """Returns the error for an answer that ended before its end. `words`: lines of its body that were no events; may be empty."""
    if not words:
        return Unavailable("the provider ended its stream without a finish_reason")
    fields, shown = error_in(words)
    return Unavailable(f"the provider broke off: {shown}", error=own_error(fields, shown))


def is_error(chunk: dict[str, Any]) -> bool:
    """Returns whether an object without choices is an error without a field `error`."""
    if chunk.get("errors") or "error" in (chunk.get("object"), chunk.get("type"), chunk.get("status")):
        return True
    if chunk.get("usage") or "choices" in chunk:
        return False
    return any(chunk.get(name) for name in _WORDS_FIELDS if name not in ("reason", "title", "description"))


def speaks_of_stream_options(error: openai.APIStatusError) -> bool:
    """Returns whether an error is about the request's `stream_options`, which some servers do not know."""
    content = error.response.content
    return error.status_code not in (401, 403, 429) and (b"stream_options" in content or b"include_usage" in content)


def error_in(value: Any) -> tuple[dict[str, Any], str]:
    """Returns the error object in whatever a provider sent, and its words, cut to the limit."""
    fields = _fields_of(value)
    words = next((words for name in _WORDS_FIELDS if (words := _words(fields.get(name)))), "")
    return fields, words or _words({name: it for name, it in fields.items() if it is not None} or None)


def _fields_of(value: Any) -> dict[str, Any]:
    around: dict[str, Any] = {}
    for _ in range(_LEVELS_MAX):
        if type(value) is list:
            value = next((it for it in value if it), None)
        elif type(value) is dict and (inner := value.get("error") or value.get("errors")) and inner is not True:
            around |= {
                name: value[name]
                for name in ("code", "status", "type", "error_type", "param")
                if type(value.get(name)) in (str, int) and value[name] != "error"
            }
            value = inner
        else:
            break
    fields = value if type(value) is dict else {} if value in (None, "") else {"message": value}
    if "error_type" in around or "error_type" in fields:  # as TGI names it
        around.setdefault("type", fields.get("error_type") or around.get("error_type"))
    return {**around, **{name: it for name, it in fields.items() if it is not None or name not in around}}


def _error(
    message: str,
    fields: dict[str, Any],
    words: str,
    *,
    status: int | None = None,
    retry_after_seconds: float | None = None,
) -> ProviderError:
    """Returns the error: Refused if the request or the account is at fault, else Unavailable."""
    inner = fields.get("innererror")
    codes = [fields.get(name) for name in ("code", "type", "status")]
    codes.append(inner.get("code") if type(inner) is dict else None)
    kinds = [str(it).lower() for it in codes if type(it) in (str, int)]
    if status is None:
        status = next(
            (int(kind) for kind in kinds if len(kind) == 3 and kind.isdecimal() and 400 <= int(kind) <= 599), None
        )
    if status is None:
        status = next((_STATUSES[kind] for kind in kinds if kind in _STATUSES), None)
    own = own_error(fields, words or message)
    if not _FILTERED.isdisjoint(kinds):
        return Refused(message, code=FailureCode.CONTENT_FILTERED, status=status, error=own)
    may_pass = status is None or status in _RETRYABLE_STATUSES or status >= 500
    if may_pass and _USED_UP.isdisjoint(kinds):
        return Unavailable(message, status=status, error=own, retry_after_seconds=retry_after_seconds)
    return Refused(message, status=status, error=own, retry_after_seconds=retry_after_seconds)


def _loaded(content: bytes, otherwise: Any) -> Any:
    """Returns a body as JSON, or as text."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return content.decode("utf-8", "replace") or otherwise


def _words(message: Any) -> str:
    """Returns a provider's message, cut to the limit: of HTML the title or the text, of what is no text the JSON."""
    words = message if isinstance(message, str) else "" if message is None else json_text(message)
    words = words[:_BODY_CHARACTERS_MAX]
    if _MARKUP.match(words):
        title = _TITLE.search(words)
        words = html.unescape(title[1] if title else _TAG.sub(" ", words))
    return clean(" ".join(words.split())[:_MESSAGE_CHARACTERS_MAX])


def own_error(error: dict[str, Any], message: str) -> dict[str, Any]:
    """Returns the provider's own error object, cut to the limits, with OpenAI's four fields in their documented shapes."""
    own = {"message": None, "type": None, "param": None, "code": None} | error
    own["message"] = _words(own["message"]) or _words(message)
    for name in ("type", "param", "code"):
        is_text = isinstance(own[name], str) and len(own[name]) <= _MESSAGE_CHARACTERS_MAX
        if not is_text and not (name == "code" and type(own[name]) is int and abs(own[name]) < 1 << 63):
            own[name] = None
    return fitting(own)


def connection_lost(error: Exception) -> Unavailable:
    """Returns the error to raise for a connection that could not be made or broke off.

    A function of its own: an exception in a variable of the frame that caught it would keep itself alive.
    """
    cause = error.__cause__ or error
    words = str(cause)[:_MESSAGE_CHARACTERS_MAX] or type(cause).__name__
    return Unavailable(f"the connection to the provider failed: {words}")


def retry_after_seconds(headers: httpx2.Headers) -> float | None:
    """Returns how long a provider asks to wait: Retry-After, a number or an HTTP date (RFC 9110, section 10.2.3), or OpenAI's
    retry-after-ms. None where there is none, or it cannot be read."""
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
    """Returns a time to wait. Raises ValueError for one that is not finite."""
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError("not a finite time")
    return max(0.0, seconds)
