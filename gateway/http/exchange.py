"""What every API of the gateway needs of an HTTP exchange: its body within bounds, JSON back, and whether somebody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qs

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.http.connection import Receive, Scope
from gateway.http.problems import Problem
from gateway.http.whole_bodies import WholeResponse

ASGI = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
T = TypeVar("T")

_DISCARDED_BYTES_MAX = 64 << 20
"""Of a body that is too large, so much is read and dropped, so that its client hears why and not a reset."""


class Part(Protocol):
    """An API, or a piece of one, that is dispatched before FastAPI."""

    def route(self, scope: Scope) -> ASGI | None:
        """The handler for this request; None if it is somebody else's. A handler answers or raises Problem."""


async def body_of(request: Request, bytes_max: int) -> bytes:
    """The whole body. Raises Problem 400, 413."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size <= bytes_max:
                parts.append(part)
            elif size > _DISCARDED_BYTES_MAX:
                break
    except ClientDisconnect:
        raise Problem(400, "the connection ended before the body did") from None
    if size > bytes_max:
        raise Problem(413, f"the body has more than {bytes_max} bytes, which is the most that is taken")
    return b"".join(parts)


def query_of(scope: Scope) -> dict[str, str]:
    """The query's parameters, the last of each name. Raises Problem 400."""
    try:
        parsed = parse_qs(
            scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=64
        )
    except ValueError:  # UnicodeDecodeError is one
        raise Problem(400, "the query is not percent-encoded UTF-8") from None
    return {name: values[-1] for name, values in parsed.items()}


def last_event_id(scope: Scope, query: dict[str, str]) -> str:
    """Where a reader wants to go on: its header `Last-Event-ID`, else its parameter `last_event_id`; may be empty."""
    for name, value in scope["headers"]:
        if name == b"last-event-id" and value:
            return str(value.decode("latin-1")).strip()
    return query.get("last_event_id", "").strip()


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`body` as JSON, or what it is already encoded to."""
    encoded = body if isinstance(body, bytes) else orjson.dumps(body)
    return WholeResponse(
        encoded, status, {"cache-control": "no-store", **(headers or {})}, media_type="application/json"
    )


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` comes to, or None when the client has gone, which ends it. The request's body must have been read."""
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
