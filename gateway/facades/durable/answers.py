"""Answers of the Durable Streams protocol: their headers, and how they leave."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response

from gateway.facades.durable.found import PATH_HEAD
from gateway.facades.durable.offsets import offset_of
from gateway.facades.durable.reading import Chunk
from gateway.http.connection import Scope
from gateway.http.problems import Problem
from gateway.http.whole_bodies import WholeResponse
from shared.ids import EventId

NO_STORE = {"cache-control": "no-store"}
CLOSED = {"stream-closed": "true"}

HeaderFields = dict[str, str]


def place_headers(reached: EventId, outcome: str = "") -> HeaderFields:
    """Returns the headers that say how far a stream is known, and, with an outcome, that nothing follows."""
    headers = {"stream-next-offset": offset_of(reached)}
    return headers if not outcome else {**headers, **CLOSED, "stream-outcome": outcome}


def chunk_headers(chunk: Chunk) -> HeaderFields:
    """Returns the headers of a read."""
    headers = place_headers(chunk.reached, chunk.outcome)
    return {**headers, "stream-up-to-date": "true"} if chunk.is_newest else headers


def empty(status: int, headers: Mapping[str, str]) -> Response:
    """Returns an answer without a body."""
    return Response(status_code=status, headers={**NO_STORE, **headers})


def whole(body: bytes, content_type: str, headers: Mapping[str, str]) -> Response:
    """Returns an answer with a body of the stream's own content type, as it was given: no charset is added."""
    response = WholeResponse(body, headers=dict(headers))
    response.headers["content-type"] = content_type
    return response


def closed(reached: EventId, outcome: str) -> Problem:
    """Returns the error of an append to a stream that has ended."""
    how = {"cancelled": "was cancelled", "failed": "has failed"}.get(outcome, "is closed")
    return Problem(409, f"the stream {how}: nothing can be appended", headers=place_headers(reached, outcome))


def location_of(scope: Scope, path_prefix: str) -> str:
    """Returns the absolute address of the stream that a request names, as its client sees it."""
    headers = dict(scope["headers"])
    host = headers.get(b"host", b"").decode("latin-1")
    # Only upwards: whoever lies about it gets an address that does not work.
    is_https = scope["scheme"] == "https" or headers.get(b"x-forwarded-proto", b"").lower() == b"https"
    raw_path = scope["raw_path"].decode("latin-1")
    return f"{'https' if is_https else 'http'}://{host}{path_prefix}{raw_path[raw_path.index(PATH_HEAD) :]}"
