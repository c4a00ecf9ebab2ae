"""One HTTP exchange: the request's query, an answer in JSON, and whether the client still waits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from starlette.responses import Response

from gateway.http.connection import Receive, Scope
from gateway.http.problems import Problem
from gateway.http.whole_bodies import WholeResponse

T = TypeVar("T")

HEADERS_OF_ALL = {
    "x-content-type-options": "nosniff",  # no browser may take an answer for a script or a page
    "referrer-policy": "no-referrer",  # a page's address may have an access token
}
"""The headers of every answer."""


def query_of(scope: Scope) -> dict[str, str]:
    """The query's parameters; of several with one name the last, in its place. Raises Problem 400."""
    try:
        parsed = parse_qsl(
            scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=64
        )
    except ValueError:  # UnicodeDecodeError is one
        raise Problem(400, "the query is not percent-encoded UTF-8") from None
    query: dict[str, str] = {}
    for name, value in parsed:
        query.pop(name, None)
        query[name] = value
    return query


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with `body` as JSON; bytes are JSON already."""
    encoded = body if isinstance(body, bytes) else orjson.dumps(body)
    return WholeResponse(
        encoded, status, {"cache-control": "no-store", **(headers or {})}, media_type="application/json"
    )


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None, with `work` cancelled, when the client has gone. The request's body must have been read."""
    loop = asyncio.get_running_loop()
    working = loop.create_task(work)
    watching = loop.create_task(_disconnected(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
