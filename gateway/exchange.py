"""What every API of the gateway needs of an HTTP exchange: its body within bounds, JSON back, and whether somebody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway.connection import Receive, Scope
from gateway.problems import Problem

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


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps(body), status, {"cache-control": "no-store", **(headers or {})}, media_type="application/json"
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
