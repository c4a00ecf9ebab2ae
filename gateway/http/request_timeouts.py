"""Connections whose request has not come whole. One that takes too long over it is cut off: it holds a socket, and maybe half a body."""

from __future__ import annotations

import asyncio
from typing import Protocol

from shared.background import keep_running

_LOOK_SECONDS = 1.0


class Asking(Protocol):
    """A connection that is to send a request."""

    def time_is_up(self) -> None:
        """Its request has not come whole in time: it must end."""


class RequestTimeouts:
    """Noted when a connection is made or a request begins, forgotten when it is whole: one that comes whole at once is not noted."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since: dict[Asking, float] = {}
        """Loop seconds; who has waited longest comes first, so that a look costs nothing where nobody is late."""

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = keep_running("request_timeouts", self._run)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def begun(self, asking: Asking) -> None:
        self._since.pop(asking, None)
        self._since[asking] = self._loop.time()

    def ended(self, asking: Asking) -> None:
        self._since.pop(asking, None)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(min(_LOOK_SECONDS, self.seconds / 4))
            for asking in self._late():
                self.ended(asking)
                asking.time_is_up()

    def _late(self) -> list[Asking]:
        late, oldest = [], self._loop.time() - self.seconds
        for asking, since in self._since.items():
            if since > oldest:
                break
            late.append(asking)
        return late
