"""What is given whole: a state, a receipt, a completion. An answer may have 200,000 tokens and 16 MB, and its client may not read.

Work on a long one is done in pieces or in a thread, so that the readers of other streams do not wait for it. And its bytes are
counted for as long as they are in this process: what is too much is refused with 503.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.responses import Response

from gateway.http.problems import Problem

T = TypeVar("T")

WHOLE_BYTES_MAX = 128 << 20
"""In one process: eight answers of the most bytes that a stream may have, in a container of 768 MiB."""
UNCOUNTED_BYTES = 64 << 10
"""What is shorter is not counted. It is what a connection may have waiting before it counts as full, whatever it is used for; and so
the pieces in which a long body is sent, each when the socket has taken what came before."""
_SHORT_BYTES = 256 << 10
"""Work on less than this is done at once: about 1 ms."""
_RETRY_SECONDS = 2


class Room:
    """The memory that long answers may have in one process."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.bytes = 0

    def take(self, count: int) -> None:
        """Raises Problem 503 where there is no room. What is larger than all of it is let in where nothing else is."""
        if self.bytes and self.bytes + count > self._bytes_max:
            raise Problem(
                503,
                "this gateway has as much of long answers in memory as it may have; try again, or follow the stream's events",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self.bytes += count

    def give(self, count: int) -> None:
        self.bytes -= count


ROOM = Room(WHOLE_BYTES_MAX)
"""Of this process."""


class Held:
    """What an object takes of the room for as long as it lives."""

    def __init__(self, owner: object) -> None:
        self._bytes = 0
        weakref.finalize(owner, self._release).atexit = False

    def grow_to(self, count: int) -> None:
        """Raises Problem 503."""
        if count > max(UNCOUNTED_BYTES, self._bytes):
            ROOM.take(count - self._bytes)
            self._bytes = count

    def _release(self) -> None:
        ROOM.give(self._bytes)


_LONG_WORK = ThreadPoolExecutor(1, thread_name_prefix="long-work")
"""One thread: the loop gets the interpreter back from it after 5 ms; from several in turns it would wait for each."""


async def made(count: int, make: Callable[[], T]) -> T:
    """What `make` returns; it works on so many bytes, and so in a thread where these are many."""
    if count <= _SHORT_BYTES:
        return make()
    return await asyncio.get_running_loop().run_in_executor(_LONG_WORK, make)


class WholeResponse(Response):
    """A response that has its body in memory. A long one is counted, and sent in pieces as the client takes them.

    Raises Problem 503 before anything is sent.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = bytes(self.body)
        if len(body) <= UNCOUNTED_BYTES:
            await super().__call__(scope, receive, send)
            return
        ROOM.take(len(body))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, len(body), UNCOUNTED_BYTES):
                piece = body[start : start + UNCOUNTED_BYTES]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})  # when the socket has taken the last piece
        finally:
            ROOM.give(len(body))
