"""Archiving: what has ended goes from Redis into the archive, exactly once, whoever ended it and whatever dies.

    this worker ended it ──► its receipt is logged ──┐
                                                     ├──► waiting (bounded) ──► one transaction for many ──► Redis may forget
    a look: somebody else ended it, or died ─────────┘            │ the database is away, or there is no room
                                                                  └──► dropped: the list in Redis has it (`shared.unkept`)

Nothing that answers waits for the database.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time

import orjson

from producer import metrics
from shared.archive.record import Record, hash_beside, record_of
from shared.archive.store import Archive
from shared.background import Complaints, keep_running
from shared.commands import Commands
from shared.due_list import LOOK_SECONDS
from shared.errors import ArchiveAway, Disconnected, MidstreamError, RedisRefused
from shared.event_log import EventLog
from shared.events import DELETED, FAILED, TERMINAL
from shared.ids import EventId, created_at
from shared.keys import deliveries_key, log_key, writer_key
from shared.large_fields import KEPT, place_in
from shared.outcomes import ENDED, FailureCode
from shared.receipt import DeliveryNotes, EndedLog, read_ended
from shared.settings import Settings
from shared.unkept import Unkept
from shared.written_log import API as WRITTEN_API

logger = logging.getLogger(__name__)

_WAITING_MAX, _WAITING_BYTES_MAX = 1000, 32 << 20
"""Streams, and their size, that wait here for the database: ten seconds of work at 100 a second. What comes more waits in Redis."""
_AT_ONCE_MAX, _GATHER_SECONDS = 500, 1.0
"""Streams of one transaction, and how long those are gathered that end meanwhile. A commit costs some milliseconds, and over a slow
network seconds: then many share one."""
_LOOKS_AT_ONCE, _LOOK_PAUSE_SECONDS = 20, 1.0
_AWAY_SECONDS_MIN, _AWAY_SECONDS_MAX = 0.5, 10.0
"""How long a database that was away is left alone: the first time, and at most."""
_EXPIRES_SOON_SECONDS = 2.5 * LOOK_SECONDS
"""A written stream that nobody has ended is looked at twice within this time before its log expires."""
_PRUNE_SECONDS = 900.0
_COUNT_SECONDS = 5.0


class Archiving:
    """A worker's part of the archive."""

    def __init__(
        self,
        archive: Archive,
        unkept: Unkept,
        commands: Commands,
        log: EventLog,
        deliveries: DeliveryNotes,
        settings: Settings,
    ) -> None:
        self._archive = archive
        self._unkept = unkept
        self._commands = commands
        self._log = log
        self._deliveries = deliveries
        self._settings = settings
        self._waiting: dict[str, Record] = {}
        self._waiting_bytes = 0
        self._came = asyncio.Event()
        self._away_until = self._away_seconds = 0.0
        self._is_up = False
        """Whether the database answered when it was last asked."""
        self._can_write = True
        """Whether it took the rows when it was last given some."""
        self._counted_at = 0.0
        self._complaints = Complaints(logger.error)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        work = {"archive": self._write, "archive_looks": self._look, "archive_prune": self._prune}
        self._tasks = [keep_running(name, loop) for name, loop in work.items()]

    async def close(self) -> None:
        """Writes what waits, if the database answers, and stops."""
        if self._waiting and not self._is_away:
            await self._write_batch()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._archive.close()

    async def take(self, ended: EndedLog) -> None:
        """Takes a stream that has ended, to be archived. Without room it is left to the list. Raises nothing."""
        if self._is_away or not self._has_room:
            self._unkept.send_enter(ended.stream_id)
            return
        try:
            await self._add_ended(ended)
        except (Disconnected, RedisRefused) as error:
            logger.debug("stream %s: not archived yet: %s", ended.stream_id, error)

    # --- what waits

    @property
    def _is_away(self) -> bool:
        return time.monotonic() < self._away_until

    @property
    def _has_room(self) -> bool:
        return len(self._waiting) < _WAITING_MAX and self._waiting_bytes < _WAITING_BYTES_MAX

    async def _add_ended(self, ended: EndedLog) -> None:
        """Takes a stream, unless its log has gone or was deleted meanwhile."""
        history = ended.generated.history
        if ended.entries and history.status in ENDED:
            self._add(await self._record(ended))

    def _add(self, record: Record) -> None:
        before = self._waiting.pop(record.stream_id, None)
        self._waiting_bytes += record.size_bytes - (before.size_bytes if before else 0)
        self._waiting[record.stream_id] = record
        self._came.set()

    async def _record(self, ended: EndedLog) -> Record:
        """Returns what is stored of a stream, with the hashes that lie beside its log."""
        notes = await self._hash(deliveries_key(ended.stream_id)) if ended.receipt["delivered"]["connections"] else {}
        history = ended.generated.history
        api = (history.accepted.facade if history.accepted else {}).get("api") or ""
        has_beside = api == WRITTEN_API or place_in(ended.entries[0].value) == KEPT
        beside = await self._hash(hash_beside(ended.stream_id, api)) if has_beside else {}
        return record_of(ended.stream_id, ended.entries, history, ended.receipt, notes=notes, beside=beside)

    async def _hash(self, key: bytes) -> dict[bytes, bytes]:
        flat = await self._commands.execute("HGETALL", key)
        return dict(zip(flat[::2], flat[1::2], strict=False)) if isinstance(flat, list) else {}

    # --- writing

    async def _write(self) -> None:
        while True:
            await self._came.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            await self._write_batch()

    async def _write_batch(self) -> None:
        records = list(self._waiting.values())[:_AT_ONCE_MAX]
        began_at = time.monotonic()
        try:
            refused = set(await self._archive.keep(records))
        except ArchiveAway as error:
            self._can_write = False
            self._unkept.send_cannot_write()
            self._note_away(error)
            self._drop_waiting()
            return
        metrics.ARCHIVE_WRITE.observe(time.monotonic() - began_at)
        self._note_written()
        for record in records:
            if self._waiting.get(record.stream_id) is record:  # else it came anew meanwhile
                del self._waiting[record.stream_id]
                self._waiting_bytes -= record.size_bytes
        if not self._waiting:
            self._came.clear()
        metrics.ARCHIVED.inc(len(records) - len(refused))
        metrics.ARCHIVE_FAILURES.labels("refused").inc(len(refused))
        kept = [record for record in records if record.stream_id not in refused]
        try:
            again = [record.stream_id for record in kept if not record.is_final]
            await self._unkept.kept({record.stream_id: record.keys for record in kept}, again)
        except (Disconnected, RedisRefused) as error:  # they are looked at again, and found in the archive
            logger.debug("archived streams are still in the list: %s", error)

    def _drop_waiting(self) -> None:
        """Leaves what waits to the list."""
        for stream_id in self._waiting:
            self._unkept.send_enter(stream_id)
        self._waiting.clear()
        self._waiting_bytes = 0
        self._came.clear()

    def _note_away(self, error: ArchiveAway) -> None:
        metrics.ARCHIVE_FAILURES.labels("away").inc()
        self._is_up = False
        metrics.ARCHIVE_UP.set(0)
        self._away_seconds = min(max(_AWAY_SECONDS_MIN, self._away_seconds * 2), _AWAY_SECONDS_MAX)
        self._away_until = time.monotonic() + self._away_seconds * random.uniform(0.5, 1.0)
        self._complaints.say(f"ended streams wait in Redis: {error}")

    def _note_there(self) -> None:
        """Notes that the database answers. After a write that has failed, only another write tells whether it takes rows."""
        self._is_up = True
        if self._can_write:
            self._away_seconds = 0.0
            metrics.ARCHIVE_UP.set(1)

    def _note_written(self) -> None:
        if not self._can_write:
            self._can_write = True
            self._unkept.send_can_write()
        self._note_there()

    # --- looks

    async def _look(self) -> None:
        """Looks for streams that nobody has archived, also at the start, when the database may have been away for long."""
        while True:
            try:
                await self._count()
                if self._is_away:
                    found = 0
                elif not self._is_up:
                    await self._archive.ping()
                    self._note_there()
                    found = 0
                else:
                    found = await self._look_at_some()
            except ArchiveAway as error:
                self._note_away(error)
                found = 0
            except Disconnected as error:
                logger.debug("no look at what is to be archived: %s", error)
                found = 0
            except RedisRefused as error:
                self._complaints.say(f"what is to be archived cannot be read: {error}")
                found = 0
            if found < _LOOKS_AT_ONCE:
                await asyncio.sleep(_LOOK_PAUSE_SECONDS * random.uniform(0.5, 1.0))

    async def _count(self) -> None:
        now = time.monotonic()
        if now - self._counted_at > _COUNT_SECONDS:
            self._counted_at = now
            metrics.UNKEPT.set(await self._unkept.count())

    async def _look_at_some(self) -> int:
        """Looks at the streams whose time has come, one after the other: so one log at a time is in memory."""
        if not self._has_room:
            return 0
        stream_ids = await self._unkept.take(_LOOKS_AT_ONCE)
        for stream_id in stream_ids:
            if not self._has_room:  # the others are handed out again in a minute
                return 0
            try:
                await self._look_at(stream_id)
            except (Disconnected, RedisRefused, ArchiveAway):
                raise
            except MidstreamError as error:
                logger.warning("stream %s: it cannot be archived: %s", stream_id, error)
        return len(stream_ids)

    async def _look_at(self, stream_id: str) -> None:
        newest = await self._log.newest(stream_id)
        if not newest:
            await self._give_up(stream_id)
        elif newest[-1].field == DELETED:  # the archive was told before
            await self._unkept.forget([stream_id])
        elif newest[-1].field in TERMINAL:
            await self._add_ended(await read_ended(self._log, self._deliveries, stream_id))
        elif await self._commands.execute("HLEN", writer_key(stream_id)):
            await self._end_if_left_alone(stream_id, newest[-1].id)
        elif self._has_outlived_its_log(stream_id):  # a key that is no log, and never expires
            await self._unkept.forget([stream_id])

    async def _end_if_left_alone(self, stream_id: str, newest: EventId) -> None:
        """Ends a stream of another program whose log is about to expire, since nobody has written or read it: it is archived then."""
        lives_ms = await self._commands.execute("PTTL", log_key(stream_id))
        soon_seconds = min(_EXPIRES_SOON_SECONDS, self._settings.log_ttl_seconds * 0.25)
        if not isinstance(lives_ms, int) or not 0 <= lives_ms <= soon_seconds * 1000:
            return
        message = "nothing was written to it or read from it for as long as its log lives"
        failed = {"code": FailureCode.WRITER_LOST, "message": message, "retryable": True, "time": time.time()}
        if await self._log.end(stream_id, FAILED, orjson.dumps(failed), only_after=newest, also_written=True):
            self._unkept.send_soon(stream_id)

    async def _give_up(self, stream_id: str) -> None:
        """Removes a stream without a log from the list: its log has never begun, or has expired."""
        if self._has_outlived_its_log(stream_id) and not await self._archive.has(stream_id):
            metrics.ARCHIVE_FAILURES.labels("lost").inc()
            logger.warning("stream %s: its log is gone, and it was not archived", stream_id)
        await self._unkept.forget([stream_id])

    def _has_outlived_its_log(self, stream_id: str) -> bool:
        return time.time() - created_at(stream_id) > self._settings.log_ttl_seconds

    # --- bounds

    async def _prune(self) -> None:
        while True:
            await asyncio.sleep(_PRUNE_SECONDS * random.uniform(0.5, 1.0))
            try:
                await self._prune_in_steps()
            except ArchiveAway as error:
                logger.debug("the archive was not pruned: %s", error)

    async def _prune_in_steps(self) -> None:
        days, bytes_max, removed = self._settings.archive_days, self._settings.archive_bytes_max, 1
        while removed:
            removed = await self._archive.prune(days=days, bytes_max=bytes_max)
            await asyncio.sleep(_GATHER_SECONDS)  # others write, too
