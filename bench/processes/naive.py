"""`python -m bench.processes.naive PORT`: the peer to compare with: FastAPI, sse-starlette, one blocking XREAD per reader.

It serves the logs that a gateway would, and is well tuned: uvloop, httptools, orjson, up to 100 entries per read.
Only this process may import sse-starlette, which patches uvicorn's shutdown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.responses import Response

from bench.processes import procs
from shared.events import BATCH, TOKEN
from shared.keys import log_key
from shared.settings import Settings

_READ_ENTRIES = 100
_BLOCK_MILLISECONDS = 15_000
_CONNECTIONS_MAX = 30_000


def make_app(redis_url: str) -> Any:
    import redis.asyncio
    from sse_starlette import EventSourceResponse, ServerSentEvent

    client = redis.asyncio.Redis.from_url(redis_url, socket_timeout=None, max_connections=_CONNECTIONS_MAX, protocol=2)
    app = FastAPI()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/streams/{stream_id}/events")
    async def events(stream_id: str, request: Request) -> Response:
        key, begin = log_key(stream_id), request.headers.get("last-event-id") or "0-0"

        async def follow() -> AsyncIterator[ServerSentEvent]:
            last: bytes | str = begin
            while True:
                reply: Any = await client.xread({key: last}, count=_READ_ENTRIES, block=_BLOCK_MILLISECONDS)
                for entry_id, fields in reply[0][1] if reply else ():
                    last = entry_id
                    for event_id, text in tokens(entry_id, fields):
                        yield ServerSentEvent(data=orjson.dumps({"token": text}).decode(), id=event_id, sep="\n")

        return EventSourceResponse(follow(), sep="\n")

    return app


def tokens(entry_id: bytes, fields: dict[bytes, bytes]) -> list[tuple[str, str]]:
    """Returns the id and text of each token in an entry."""
    if TOKEN in fields:
        return [(entry_id.decode(), fields[TOKEN].decode())]
    if BATCH in fields:
        attempt, _, last = entry_id.partition(b"-")
        texts = orjson.loads(fields[BATCH])
        first = int(last) - len(texts) + 1
        return [(f"{attempt.decode()}-{first + index}", text) for index, text in enumerate(texts)]
    return []


def main() -> None:
    import uvicorn

    procs.raise_open_files_limit()
    app = make_app(Settings.from_environment(os.environ).redis_url)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        backlog=8192,
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
