"""Closes connections on which no complete request comes: each holds a socket, and perhaps half a body.

begun ──► the request is complete in time ──► ended ──► it is answered ──► idle ──► begun
begun ──► too late: `time_is_up`          begun, idle ──► too many are waiting: `make_room`, the oldest first
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable
from operator import itemgetter
from typing import Protocol

from gateway import metrics
from shared.background import keep_running, pause

_LOOK_SECONDS = 1.0
"""How often late connections are looked for."""
_SETTLED_SECONDS = 2.0
"""A connection that has waited for less is not closed for others: when a gateway dies, all its readers come at once."""


class Requesting(Protocol):
    """A connection that a request is awaited on."""

    @property
    def peer(self) -> str:
        """The address of the other side; empty if it has none."""

    def time_is_up(self) -> None:
        """Called when the request is not complete in time: the connection must end."""

    def make_room(self) -> None:
        """Called when too many connections wait for a request: the connection must end."""


class RequestTimeouts:
    """The connections that wait for a request, and since when. A request that arrives in one piece has no time limit."""

    def __init__(
        self,
        seconds: float,
        *,
        waiting_max: int,
        waiting_of_address_max: int,
        new_max: int,
        counted: Callable[[str], str],
    ) -> None:
        """Sets how many connections may wait for a request: `waiting_max` in all, `waiting_of_address_max` of one address (0: any number).

        Beyond that the oldest are closed; beyond `waiting_max` and `new_max` together a new one is closed at once. `counted` returns
        the name under which a peer's address is counted, empty if it is not.
        """
        self.seconds = seconds
        self._waiting_max = waiting_max
        self._of_address_max = waiting_of_address_max
        self._new_max = new_max
        self._counted = counted
        self._since: dict[Requesting, float] = {}
        """When each began, in loop seconds, the oldest first: a look costs nothing while none is late."""
        self._idle: dict[Requesting, float] = {}
        """Since when each connection has been without a request, after one; the oldest first."""

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = keep_running("request_timeouts", self._run)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def has_room(self) -> bool:
        """Returns whether a new connection may come. One that may not is counted."""
        has_room = len(self._since) + len(self._idle) < self._waiting_max + self._new_max
        if not has_room:
            metrics.over_limit("idle_connections", "all")
        return has_room

    def begun(self, connection: Requesting) -> None:
        """Starts the time limit, or starts it again."""
        self.ended(connection)
        self._since[connection] = self._loop.time()

    def idle(self, connection: Requesting) -> None:
        """Counts a connection that waits for its next request. Its time limit is uvicorn's."""
        self._idle[connection] = self._loop.time()

    def ended(self, connection: Requesting) -> None:
        """Ends the time limit: the request is complete, or the connection is to end."""
        self._since.pop(connection, None)
        self._idle.pop(connection, None)

    async def _run(self) -> None:
        while True:
            await pause(min(_LOOK_SECONDS, self.seconds / 4))
            for connection in self._late():
                self.ended(connection)
                connection.time_is_up()
            for connection, whose in self._in_the_way():
                self.ended(connection)
                connection.make_room()
                metrics.over_limit("idle_connections", whose)

    def _late(self) -> list[Requesting]:
        late, oldest = [], self._loop.time() - self.seconds
        for connection, since in self._since.items():
            if since > oldest:
                break
            late.append(connection)
        return late

    def _in_the_way(self) -> list[tuple[Requesting, str]]:
        """Returns the connections that are to make room for others, each with whose limit it is beyond."""
        waiting = len(self._since) + len(self._idle)
        if waiting <= min(self._waiting_max, self._of_address_max or self._waiting_max):
            return []
        addresses = {connection: self._counted(connection.peer) for connection in (*self._since, *self._idle)}
        of_address = Counter(addresses.values())
        found, settled = [], self._loop.time() - _SETTLED_SECONDS
        for connection, since in heapq.merge(self._since.items(), self._idle.items(), key=itemgetter(1)):
            if since > settled:
                break
            address = addresses[connection]
            is_beyond_own = address != "" and 0 < self._of_address_max < of_address[address]
            if is_beyond_own or waiting > self._waiting_max:
                found.append((connection, "address" if is_beyond_own else "all"))
                waiting -= 1
                of_address[address] -= 1
        return found
