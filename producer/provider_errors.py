"""Turns what an OpenAI-compatible provider answers instead of an answer into `Refused` and `Unavailable`.

Whether a request is tried again depends on whose fault the error is: an overload passes, an invalid request does not. The
provider's own error object is kept, in bounds, for clients that know it.
"""

from __future__ import annotations

import email.utils
import math
import time
from typing import Any, NoReturn

import httpx2
import openai

from producer.chunk_shapes import clean, fitting, json_text
from producer.provider import Refused, Unavailable
from shared.outcomes import FailureCode

_MESSAGE_CHARACTERS_MAX = 500
_RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})
_FILTERED = frozenset({"content_filter", "content_policy_violation"})
_REQUEST_AT_FAULT = frozenset(
    {"invalid_request_error", "authentication_error", "permission_error", "400", "401", "403", "404"}
)


def raise_for_status(error: openai.APIStatusError) -> NoReturn:
    """Raises Refused or Unavailable for an answer whose status is an error."""
    status = error.status_code
    body = error.body if isinstance(error.body, dict) else {}
    words = _words(body.get("message")) or str(error.message or "")[:_MESSAGE_CHARACTERS_MAX]
    message = f"the provider answered {status}: {clean(words)}"
    kinds = {str(body.get(name)) for name in ("code", "type") if isinstance(body.get(name), str)}
    own = own_error(body, words)
    if kinds & _FILTERED:
        raise Refused(message, code=FailureCode.CONTENT_FILTERED, status=status, error=own) from None
    wait_seconds = retry_after_seconds(error.response.headers)
    if (status in _RETRYABLE_STATUSES or status >= 500) and "insufficient_quota" not in kinds:
        raise Unavailable(message, retry_after_seconds=wait_seconds, status=status, error=own) from None
    raise Refused(message, status=status, error=own, retry_after_seconds=wait_seconds) from None


def raise_for_error_chunk(error: Any) -> NoReturn:
    """Raises for an error inside a response that began with 200 (overload, a filter, a crash behind a proxy)."""
    fields = error if isinstance(error, dict) else {"message": error}
    words = _words(fields.get("message") or fields)
    message = f"the provider broke off: {words}"
    kinds = {str(fields.get(name)) for name in ("code", "type") if isinstance(fields.get(name), str | int)}
    own = own_error(fields, message)
    code = fields.get("code")
    status = code if type(code) is int and 100 <= code <= 599 else None
    if kinds & _FILTERED:
        raise Refused(message, code=FailureCode.CONTENT_FILTERED, status=status, error=own)
    if kinds & _REQUEST_AT_FAULT:
        raise Refused(message, status=status, error=own)
    raise Unavailable(message, status=status, error=own)


def _words(message: Any) -> str:
    """Returns a provider's message, cut to the limit; the JSON of one that is no text."""
    words = message if isinstance(message, str) else "" if message is None else json_text(message)
    return clean(words[:_MESSAGE_CHARACTERS_MAX])


def own_error(error: dict[str, Any], message: str) -> dict[str, Any]:
    """Returns the provider's own error object, cut to the limits, with OpenAI's four fields in their documented shapes."""
    own = {"message": None, "type": None, "param": None, "code": None} | error
    own["message"] = _words(own["message"]) or clean(message[:_MESSAGE_CHARACTERS_MAX])
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
