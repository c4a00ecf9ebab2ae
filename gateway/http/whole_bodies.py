"""Responses that are given whole: a state, a receipt, a completion. One may have 16 MB, and its client may not read it.

Work on a long one is done in pieces or in a thread, so that readers of other streams do not wait for it. The bytes of long
ones are counted while they are in this process's memory; what exceeds the limit is refused with 503.
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
"""The limit of one process: eight streams of the largest size, in a container of 768 MiB."""
UNCOUNTED_BYTES = 64 << 10
"""Shorter bodies are not counted: any connection may have as much in its write buffer before it counts as full. Long bodies
are sent in pieces of this size, each when the socket has taken the one before."""
_SHORT_BYTES = 256 << 10
"""Work on fewer bytes is done at once, without a thread: it takes about 1 ms."""
_RETRY_SECONDS = 2


class Room:
    """The memory that long bodies may take in one process. `contents` completes the sentence of the refusal."""

    def __init__(self, bytes_max: int, contents: str) -> None:
        self._bytes_max = bytes_max
        self._contents = contents
        self.bytes = 0

    def take(self, count: int) -> None:
        """Takes so many bytes. Raises Problem 503 if they are not free; while nothing is taken, any number is accepted."""
        if self.bytes and self.bytes + count > self._bytes_max:
            raise Problem(
                503,
                f"this gateway has as many bytes {self._contents} in memory as it may have; try again",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self.bytes += count

    def give(self, count: int) -> None:
        self.bytes -= count


ROOM = Room(WHOLE_BYTES_MAX, "of long answers, which can also be followed by their events,")
"""The one of this process."""


class Held:
    """The bytes of the room that an object takes, given back when the object is freed."""

    def __init__(self, owner: object) -> None:
        self._bytes = 0
        weakref.finalize(owner, self._release).atexit = False

    def grow_to(self, count: int) -> None:
        """Raises the bytes that are taken to this number. Raises Problem 503."""
        if count > max(UNCOUNTED_BYTES, self._bytes):
            ROOM.take(count - self._bytes)
            self._bytes = count

    def _release(self) -> None:
        ROOM.give(self._bytes)


_LONG_WORK = ThreadPoolExecutor(1, thread_name_prefix="long-work")
"""Only one thread: the event loop gets the interpreter lock back from a thread after 5 ms, and would wait for each of several."""


async def made(count: int, make: Callable[[], T]) -> T:
    """The result of `make`, which works on `count` bytes: called in a thread if these are many."""
    if count <= _SHORT_BYTES:
        return make()
    return await asyncio.get_running_loop().run_in_executor(_LONG_WORK, make)


class WholeResponse(Response):
    """A response with its body in memory. A long body is counted, and sent in pieces as the client takes them.

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
