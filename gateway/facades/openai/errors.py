"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`, under its statuses.

OpenAI's SDKs choose the exception by the status, and retry 408, 409, 429 and 5xx by themselves. So the provider's own
status is passed on, and a request that must not be retried gets none of these.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from gateway.http.exchange import json_response
from gateway.http.problems import Problem

_NATIVE = ("streams", "stream", "overview", "probe", "usage")
"""What stands below /v1 of the native API."""
_RESOURCES = ("openai", "completions", "embeddings", "models", "responses")
CANCELLED_STATUS = 499
"""Not 409, which the SDKs retry: that would generate again the answer that somebody has cancelled."""

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_STATUSES = {
    "provider_unavailable": 502,
    "provider_unreadable": 502,
    "provider_timeout": 504,
    "provider_stalled": 504,
    "provider_refused": 400,
    "content_filtered": 400,
    "generator_error": 424,  # a status that no SDK retries: the generator's tools may have done what must not be done twice
    "log_full": 507,
    "queue_timeout": 503,
    "worker_lost": 502,
    "writer_lost": 424,  # a status that no SDK retries: the program that wrote is not started again by that
    "attempts_exhausted": 502,
    "unreadable": 424,  # a status that no SDK retries: the log would be as unreadable
    "internal_error": 502,
}
"""The statuses of failures for which the provider gave none, by failure code."""


def openai_error(problem: Problem) -> Response:
    """Returns the response for a problem, in OpenAI's shape."""
    error = problem.error or {
        "message": problem.detail,
        "type": _KINDS.get(problem.status, "server_error" if problem.status >= 500 else "invalid_request_error"),
        "param": problem.param,
        "code": problem.code,
    }
    headers = problem.status_headers()
    if problem.status == CANCELLED_STATUS:
        headers["x-should-retry"] = "false"  # the SDKs' own header
    return json_response({"error": error}, problem.status, headers)


def is_openai_path(path: str) -> bool:
    """Whether a client of OpenAI's API, or of an API like it, may have meant this path: its errors have OpenAI's shape.

    That is all below /v1 but the native API, and OpenAI's resources where a client's base URL lacks the /v1, or is Azure's.
    """
    first, _, rest = path.lstrip("/").partition("/")
    if first != "v1":
        return first in _RESOURCES or (first == "chat" and rest.startswith("completions"))
    return rest.lstrip("/").partition("/")[0] not in _NATIVE


def failure(failed: dict[str, Any]) -> dict[str, Any]:
    """Returns the error object for the value of a `failed` event: the provider's own where it gave one."""
    status = failure_status(failed)
    error = {
        "message": failed["message"],
        "type": _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        "param": None,
        "code": failed["code"],
    }
    return error | (failed.get("provider_error") or {})


def failure_status(failed: dict[str, Any]) -> int:
    """Returns the HTTP status for the value of a `failed` event: the provider's own if it gave one that is an error."""
    status = failed.get("status")
    if isinstance(status, int) and 400 <= status <= 599:
        return status
    return _STATUSES.get(failed["code"], 502)


def failure_problem(failed: dict[str, Any]) -> Problem:
    """Returns the error for a client that waited for a stream which failed."""
    retry_after = failed.get("retry_after")
    return Problem(
        failure_status(failed),
        failed["message"],
        retry_after_seconds=None if retry_after is None else max(1, round(retry_after)),
        error=failure(failed),
    )


def cancelled(by: str) -> dict[str, Any]:
    """Returns the error object for a stream that was cancelled."""
    who = {"disconnect": "because its last reader had gone"}.get(by, f"by the {by}")
    return {"message": f"the answer was cancelled {who}", "type": "cancelled", "param": None, "code": "cancelled"}


def cancelled_problem(by: str) -> Problem:
    """Returns the error for a client that waited for a stream which was cancelled."""
    error = cancelled(by)
    return Problem(CANCELLED_STATUS, error["message"], error=error)
