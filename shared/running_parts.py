"""The parts of a process that is running: what was started is closed again in the reverse order, whatever fails meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Protocol, TypeVar

logger = logging.getLogger(__name__)


class Part(Protocol):
    """A part of a process that has something to close."""

    async def close(self) -> None: ...


_Part = TypeVar("_Part", bound=Part)


class RunningParts:
    """A context: on exit it closes the parts, the newest first. One whose `close` fails is logged; the others follow."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> RunningParts:
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self._stack.__aexit__(*exception)

    def add(self, part: _Part) -> _Part:
        """Returns `part`, to be started: also one that does not start completely is closed."""
        self._stack.push_async_callback(_close, part)
        return part

    def add_together(self, *parts: Part) -> None:
        """Adds parts that are closed at the same time: each may wait for a server that does not answer."""

        async def close() -> None:
            await asyncio.gather(*map(_close, parts))

        self._stack.push_async_callback(close)


async def _close(part: Part) -> None:
    try:
        await part.close()
    except Exception:
        logger.exception("%s could not be closed", type(part).__name__)
