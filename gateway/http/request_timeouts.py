"""Closes connections whose request does not arrive completely in time: each holds a socket, and perhaps half a body."""

from __future__ import annotations

import asyncio
from typing import Protocol

from shared.background import keep_running

_LOOK_SECONDS = 1.0
"""How often late connections are looked for."""


class Requesting(Protocol):
    """A connection that a request is awaited on."""

    def time_is_up(self) -> None:
        """Called when the request is not complete in time: the connection must end."""


class RequestTimeouts:
    """The time limits of all requests under way: from `begun` to `ended`. One that arrives in one piece has none."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since: dict[Requesting, float] = {}
        """When each began, in loop seconds, the oldest first: a look costs nothing while none is late."""

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = keep_running("request_timeouts", self._run)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def begun(self, connection: Requesting) -> None:
        """Starts the time limit, or starts it again."""
        self._since.pop(connection, None)
        self._since[connection] = self._loop.time()

    def ended(self, connection: Requesting) -> None:
        """Ends the time limit: the request is complete, or the connection is to end."""
        self._since.pop(connection, None)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(min(_LOOK_SECONDS, self.seconds / 4))
            for connection in self._late():
                self.ended(connection)
                connection.time_is_up()

    def _late(self) -> list[Requesting]:
        late, oldest = [], self._loop.time() - self.seconds
        for connection, since in self._since.items():
            if since > oldest:
                break
            late.append(connection)
        return late
