"""Brings the log of an archived stream back into Redis, where every face reads it, under the same ids, as if it had never been gone.

The log expires there again after MIDSTREAM_ENDED_TTL_SECONDS (`Unkept.lives_seconds`). It becomes visible at once and whole (`restore.lua`), and ends with its
terminal event: nobody can append to it. Before it expires its receipt is looked at once more, since it was read meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Iterator

from gateway import metrics
from shared.archive.record import hash_beside
from shared.archive.store import Archive, Archived
from shared.background import keep_running
from shared.commands import Commands, Script
from shared.errors import ArchiveAway, Disconnected, RedisRefused
from shared.events import Entry
from shared.keys import deliveries_key, log_key, part_key
from shared.unkept import Unkept

logger = logging.getLogger(__name__)

_ASK_SECONDS = 5.0
_AT_ONCE_MAX, _WAITING_MAX = 4, 200
"""Logs that are brought back at once, of up to 16 MB each, and those that may wait for that."""
_PART_ENTRIES_MAX, _PART_BYTES_MAX = 256, 256 << 10
"""Of one call of the script: about a millisecond of Redis."""


class Restoring:
    """Archived logs, for a gateway."""

    RESTORE = Script("restore")
    SCRIPTS = (RESTORE.source,)

    def __init__(self, archive: Archive, commands: Commands, unkept: Unkept) -> None:
        self.archive = archive
        self._commands = commands
        self._unkept = unkept
        self._turns = asyncio.Semaphore(_AT_ONCE_MAX)
        self._under_way: dict[str, asyncio.Task[str | None]] = {}
        self.is_up = False
        """Whether the database answered when it was last asked."""
        self.can_write = True
        """Whether the workers can write to it, as far as they have said."""

    def start(self) -> None:
        self._asking = keep_running("archive", self._ask)

    async def _ask(self) -> None:
        """Asks the database now and then whether it is there, for `/readyz` and the metrics."""
        while True:
            try:
                await self.archive.ping()
                self.is_up = True
            except ArchiveAway as error:
                self.is_up = False
                logger.debug("%s", error)
            with contextlib.suppress(Disconnected, RedisRefused):
                self.can_write = await self._unkept.can_write()
            metrics.ARCHIVE_UP.set(self.is_up)
            await asyncio.sleep(_ASK_SECONDS * random.uniform(0.8, 1.0))

    async def close(self) -> None:
        self._asking.cancel()
        await asyncio.gather(self._asking, return_exceptions=True)
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        await self.archive.close()

    async def restore(self, stream_id: str) -> str | None:
        """Returns the owner of an archived stream, whose log is in Redis then; None if it is not archived, or deleted.

        One restoration serves all who ask meanwhile. Raises ArchiveAway, Disconnected, RedisRefused, LogFull.
        """
        task = self._under_way.get(stream_id)
        if task is None:
            if len(self._under_way) >= _WAITING_MAX:
                raise ArchiveAway("too many archived streams are asked for at once")
            task = asyncio.get_running_loop().create_task(self._restore(stream_id))
            self._under_way[stream_id] = task
            task.add_done_callback(lambda done: self._has_ended(stream_id, done))
        return await asyncio.shield(task)

    def _has_ended(self, stream_id: str, task: asyncio.Task[str | None]) -> None:
        self._under_way.pop(stream_id, None)
        if not task.cancelled():
            task.exception()  # raised to those who wait for it, who may all have left meanwhile

    async def _restore(self, stream_id: str) -> str | None:
        async with self._turns:
            archived = await self.archive.read(stream_id)
            if archived is None:
                return None
            await self._write(stream_id, archived)
            return str(archived.row["owner"])

    async def _write(self, stream_id: str, archived: Archived) -> None:
        keys = [
            log_key(stream_id),
            part_key(stream_id, secrets.token_hex(4)),
            deliveries_key(stream_id),
            hash_beside(stream_id, archived.row["api"]),
        ]
        *parts, last = _parts(archived.entries)
        for part in parts:
            if await self.RESTORE.run(self._commands, keys, 0, len(part), *_arguments(part)) == 0:
                return  # it is there already
        beside = [item for fields in (archived.notes, archived.beside) for pair in fields.items() for item in pair]
        arguments: list[bytes | int] = [
            self._seconds_of(archived),
            len(last),
            *_arguments(last),
            len(archived.notes),
            *beside,
        ]
        restored = await self.RESTORE.run(self._commands, keys, *arguments)
        if restored:
            metrics.RESTORED.inc()
            self._unkept.send_last_look(stream_id)

    def _seconds_of(self, archived: Archived) -> int:
        """Returns how long the log stays in Redis: not longer than its creator said."""
        expires_at = archived.row["expires_at"]
        if expires_at is None:
            return self._unkept.lives_seconds
        return max(1, min(self._unkept.lives_seconds, int(expires_at - time.time())))


def _parts(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Yields the entries in parts of bounded size; at least one."""
    part: list[Entry] = []
    size_bytes = 0
    for entry in entries:
        if part and (len(part) == _PART_ENTRIES_MAX or size_bytes > _PART_BYTES_MAX):
            yield part
            part, size_bytes = [], 0
        part.append(entry)
        size_bytes += len(entry.value)
    yield part


def _arguments(entries: list[Entry]) -> list[bytes]:
    return [argument for entry in entries for argument in (bytes(entry.id), entry.field, entry.value)]
