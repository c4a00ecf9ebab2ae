"""The limit on the connections that follow one stream at the same time, over all gateways.

Each process notes in Redis how many it has, not that one came or went: so a lost note is made good by the next, and the notes of
a process that was killed run out. A stream that nobody limits is not noted at all.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from gateway import metrics
from gateway.access.limits import OwnLimits
from gateway.http.principal import principal
from gateway.http.problems import too_many
from gateway.process_name import gateway_name
from shared.background import keep_running, pause
from shared.commands import Commands, Script, ignore
from shared.keys import readers_key

_HOLDS_SECONDS = 30.0
"""The life of a note that is not renewed: so long the readers of a killed gateway still count."""
_RENEWALS = 3
"""Renewals of a note within its life, so that two of them may be lost."""
_RENEWED_AT_ONCE = 200
"""Notes that are sent in one turn of the event loop: 2 ms."""
_RETRY_SECONDS = 5


class StreamReaders:
    """The readers of limited streams in this process."""

    READERS = Script("readers", when_full=True)
    SCRIPTS = (READERS.source,)

    def __init__(self, commands: Commands, own: OwnLimits) -> None:
        self._commands = commands
        self._own = own
        self._name = gateway_name()
        self._here: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = keep_running("stream_readers", self._renew)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def enter(self, stream_id: str) -> bool:
        """Takes a reader's place at a stream; false if there is no limit, and nothing to give back.

        Raises Problem 429, and Disconnected, RedisRefused.
        """
        limit = self._own.of(principal.get().name)["limit_readers"]
        if not limit:
            return False
        self._here[stream_id] += 1  # before it waits: others may come meanwhile
        try:
            is_noted = await self.READERS.run(*self._note(stream_id, limit))
        except BaseException:
            self.left(stream_id)
            raise
        if not is_noted:
            self._leave(stream_id)
            metrics.over_limit("readers", "stream")
            raise too_many(
                f"{limit} connections may follow one stream at the same time",
                *("readers", limit, "concurrent-requests", _RETRY_SECONDS),
            )
        return True

    def left(self, stream_id: str) -> None:
        """Gives a place back."""
        self._leave(stream_id)
        self._send(stream_id)

    def _leave(self, stream_id: str) -> None:
        self._here[stream_id] -= 1
        if not self._here[stream_id]:
            del self._here[stream_id]

    def _note(self, stream_id: str, limit: int) -> tuple[Any, ...]:
        keys = [readers_key(stream_id)]
        return self._commands, keys, self._name, self._here[stream_id], limit, int(_HOLDS_SECONDS * 1000)

    def _send(self, stream_id: str) -> None:
        """Sends how many readers there are, without a task; a note that is lost is sent again with the next renewal."""
        self.READERS.send(*self._note(stream_id, 0), on_reply=ignore)

    async def _renew(self) -> None:
        while True:
            await pause(_HOLDS_SECONDS / _RENEWALS)
            for number, stream_id in enumerate([*self._here], 1):
                self._send(stream_id)
                if number % _RENEWED_AT_ONCE == 0:
                    await asyncio.sleep(0)
