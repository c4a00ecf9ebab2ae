"""What an EventSource is answered that cannot be served now.

A browser's EventSource gives up for good at any status but 200, and shows its page nothing of a `Retry-After`. An event
stream that ends has it come back by itself, after the time in `retry:` (WHATWG HTML, section 9.2.3).
"""

from __future__ import annotations

import random

from starlette.responses import Response

from gateway.http.accept import SSE
from gateway.http.problems import Problem
from shared import sse

_RETRY_SECONDS = 5
"""Where the problem names no time."""


def empty_stream(problem: Problem) -> Response:
    """A stream without events that says why in a comment, and when to come back: not all clients at the same moment."""
    seconds = problem.retry_after_seconds or _RETRY_SECONDS
    why = " ".join(problem.detail.split())
    body = f": {why}\n".encode() + sse.retry(int(1000 * seconds * random.uniform(1.0, 2.0)))
    return Response(body, headers={"content-type": f"{SSE}; charset=utf-8", "cache-control": "no-store"})
