"""Errors as clients see them (RFC 9457, `application/problem+json`): what was wrong, and what would be right."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

from shared.background import Complaints
from shared.errors import ArchiveAway, LogFull, RedisRefused

PROBLEM_MEDIA_TYPE = "application/problem+json"
_complaints = Complaints(logging.getLogger(__name__).error)

_SDK_WAITS_SECONDS_MAX = 60
"""OpenAI's SDKs ignore a longer `Retry-After`, and would try again at once; `x-should-retry` tells them not to."""


class Problem(Exception):
    """An error answer. Raised anywhere in a request, turned into a response by the app."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        retry_after_seconds: int | None = None,
        param: str | None = None,
        code: str | None = None,
        error: dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.param = param
        """The parameter that is wrong. `param`, `code` and `error` appear in OpenAI's shape only."""
        self.code = code
        self.error = error
        """The provider's own error object, if there is one."""
        self._headers = headers or {}
        self.members = members or {}
        """Further members of the document, for programs (RFC 9457, section 3.2)."""

    def body(self) -> bytes:
        title = HTTPStatus(self.status).phrase if self.status in set(HTTPStatus) else "Error"
        document = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}
        return orjson.dumps({**document, **self.members})

    def status_headers(self) -> dict[str, str]:
        """The headers that belong to the status, whatever the shape of the body: `Allow` of a 405, `Retry-After`."""
        headers = dict(self._headers)
        if self.retry_after_seconds is not None:
            headers["retry-after"] = str(self.retry_after_seconds)
        return headers

    def headers(self) -> dict[str, str]:
        return {"content-type": PROBLEM_MEDIA_TYPE, "cache-control": "no-store", **self.status_headers()}

    def response(self) -> Response:
        return Response(self.body(), self.status, self.headers())


def not_found() -> Problem:
    return Problem(404, "there is no such stream, or it is not yours")


def expired() -> Problem:
    return Problem(410, "the stream's log has expired; streams can be read again for a limited time after their end")


def away() -> Problem:
    return Problem(503, "the log (Redis) is away at the moment; try again", retry_after_seconds=1)


def no_log(error: BaseException) -> Problem:
    """The answer to a request whose command to Redis failed: `away` if waiting may help, else what Redis refused."""
    if not isinstance(error, RedisRefused) or (error.passing and error.code != "READONLY"):
        return away()
    _complaints.say(f"a request was answered 503, since Redis refuses it: {error}")
    if error.code == "READONLY":
        detail = "Redis is a read-only replica now: nothing can be stored until it, or another, is made the primary"
        return Problem(503, detail, retry_after_seconds=5)
    if error.code == "OOM":
        return full()
    if error.forbids:
        return Problem(503, "Redis refuses this gateway a permission that it needs; GET /readyz says which")
    return Problem(503, f"Redis refuses this ({error.code[:32]}); the gateway's log says more", retry_after_seconds=5)


@contextlib.contextmanager
def archive_in_time() -> Iterator[None]:
    """A context in which the archive is asked. Raises Problem 503 if it is away."""
    try:
        yield
    except ArchiveAway as error:
        _complaints.say(f"a request was answered 503, since {error}")
        raise Problem(503, "the archive is away at the moment; try again", retry_after_seconds=5) from None
    except LogFull:
        raise full() from None


def full() -> Problem:
    return Problem(503, "Redis has reached its maxmemory: no new stream can be stored now", retry_after_seconds=10)


def stopping() -> Problem:
    return Problem(503, "this gateway is about to stop; try again", retry_after_seconds=1)


_RATE_LIMIT_UNITS = ("requests", "content-bytes", "concurrent-requests")


def too_many(detail: str, name: str, quota: int, unit: str, seconds: int, window_seconds: int = 0) -> Problem:
    """Returns a 429 that names the limit: so many (`quota`) units within a window, or at the same time where that is 0.

    (draft-ietf-httpapi-ratelimit-headers-11; its section 3.1.2 allows registered units only, and a policy without one is in requests)
    """
    window = f";w={window_seconds}" if window_seconds else ""
    policy = {"ratelimit-policy": f'"{name}";q={quota}{window};qu="{unit}"'} if unit in _RATE_LIMIT_UNITS else {}
    headers = {
        **policy,
        "ratelimit": f'"{name}";r=0;t={seconds}',
        **({"x-should-retry": "false"} if seconds > _SDK_WAITS_SECONDS_MAX else {}),
    }
    return Problem(429, detail, retry_after_seconds=seconds, code="rate_limit_exceeded", headers=headers)
