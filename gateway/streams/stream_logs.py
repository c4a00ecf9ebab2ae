"""Reads the logs of streams: only their owner's, in bounded time, and also those that have left Redis for the archive."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import orjson

from gateway.access.owners import Owners
from gateway.following.tails import Tails
from gateway.http.problems import Problem, archive_in_time, away, expired, no_log, not_found
from gateway.http.whole_bodies import Held
from shared import events
from shared.errors import Disconnected, RedisRefused, Unreadable
from shared.event_log import READ_ENTRIES_MAX, EventLog
from shared.events import Accepted, Entry, Event, owner_of
from shared.ids import BEGINNING, EventId, created_at, is_stream_id
from shared.lifecycle import Folding, History
from shared.redis_retry import answered_within
from shared.settings import Settings

if TYPE_CHECKING:
    from gateway.restoring import Restoring

P = ParamSpec("P")
T = TypeVar("T")

_ENTRIES_AT_ONCE = 50
"""Entries that are folded in one turn of the event loop: 3,200 tokens at most, 3 ms."""
_LONG_READS_MAX = 4
"""Logs that take more than one read, and are read at once."""


class StreamLogs:
    """The logs as the principal of the current request may read them. Methods raise Problem for what is not to be read."""

    def __init__(
        self, log: EventLog, tails: Tails, settings: Settings, owners: Owners, restoring: Restoring | None
    ) -> None:
        self._log = log
        self._tails = tails
        self._settings = settings
        self._owners = owners
        self._restoring = restoring
        self._long_reads = asyncio.Semaphore(_LONG_READS_MAX)

    async def history(self, stream_id: str) -> History:
        """Reads and folds the whole log. Raises Problem 404, 410, 503."""
        self._check_id(stream_id)

        async def read() -> History:
            history = History()
            await self._read_all(stream_id, history, history)
            self._check_history(stream_id, history)
            return history

        return await self._also_archived(stream_id, read)

    async def read(self, stream_id: str, after: EventId = BEGINNING, count: int = READ_ENTRIES_MAX) -> list[Entry]:
        """Reads the next entries of the log after an id; fewer than `count` are all. Raises Problem 404, 503."""
        await self.check_owner(stream_id)
        entries = await self.answered(self._log.read, stream_id, after, count)
        if not entries and after == BEGINNING and await self.brought_back(stream_id):
            entries = await self.answered(self._log.read, stream_id, after, count)
        return entries

    async def newest(self, stream_id: str, count: int) -> list[Entry]:
        """Reads the newest entries of the log, at most `count`, oldest first. Raises Problem 404, 503."""
        await self.check_owner(stream_id)
        return await self.answered(self._log.newest, stream_id, count)

    async def accepted(self, stream_id: str, *, large_fields: bool = False) -> Accepted:
        """Returns the request as it was accepted, without large fields that lie beside the log unless they are asked for.

        Raises Problem 404, 410, 503, and Unreadable.
        """
        self._check_id(stream_id)
        first = await self.answered(self._log.read, stream_id, BEGINNING, 1)
        if not first and await self.brought_back(stream_id):
            first = await self.answered(self._log.read, stream_id, BEGINNING, 1)
        if not first or first[0].field == events.DELETED:
            raise self.missing(stream_id)
        entry = first[0]
        owner = owner_of(entry.value) if entry.field == events.ACCEPTED else None
        if not self._owners.allows_owner(stream_id, owner):
            raise self.missing(stream_id)
        if large_fields:
            entry = await self.answered(self._log.with_large_fields, stream_id, entry)
        if entry.field != events.ACCEPTED:
            raise Unreadable
        return Accepted.load(entry.value)

    async def check_owner(self, stream_id: str) -> None:
        """Raises Problem 404, 410 for a stream that is not there, or not the principal's; 503 if Redis is away.

        Both take one look at the log, so that the time does not tell them apart. A stream whose owner is remembered takes none.
        """
        self._check_id(stream_id)
        if not self._owners.allows(stream_id):
            first = await self.answered(self._log.read, stream_id, BEGINNING, 1)
            owner = owner_of(first[0].value) if first and first[0].field == events.ACCEPTED else None
            if not self._owners.allows_owner(stream_id, owner) and (first or not await self.brought_back(stream_id)):
                raise self.missing(stream_id)

    def missing(self, stream_id: str) -> Problem:
        """Returns why a stream with a well-formed id cannot be asked for: the id says when the stream was made.

        The same whether the stream is not there or is somebody else's.
        """
        lived_seconds = time.time() - created_at(stream_id)
        shortest_seconds = min(self._settings.ended_ttl_seconds, self._settings.log_ttl_seconds)
        return expired() if lived_seconds >= shortest_seconds else not_found()

    async def brought_back(self, stream_id: str) -> bool:
        """Brings the log of an archived stream back into Redis. True if it is there now, and the principal's. Raises Problem 503."""
        if self._restoring is None or not self._may_be_archived(stream_id):
            return False
        with archive_in_time():
            owner = await self.answered(self._restoring.restore, stream_id)
        return owner is not None and self._owners.allows_owner(stream_id, owner)

    async def archived_as(self, name_digest: str) -> str:
        """Returns the id of the archived stream with this name (`shared.keys.name_digest`); empty if there is none.

        Raises Problem 503.
        """
        if self._restoring is None:
            return ""
        with archive_in_time():
            return await self._restoring.archive.named(name_digest) or ""

    @property
    def archive_state(self) -> str | None:
        """Returns `up`, `read-only` or `away`; None if there is no archive.

        While it is `read-only`, as with a full disk, ended streams wait in Redis; while it is `away`, what has left Redis cannot
        be read either.
        """
        if self._restoring is None:
            return None
        return "away" if not self._restoring.is_up else "up" if self._restoring.can_write else "read-only"

    async def answered(self, call: Callable[P, Awaitable[T]], *arguments: P.args, **options: P.kwargs) -> T:
        """Returns what Redis answers within MIDSTREAM_REDIS_WAIT_SECONDS; a call that may be repeated is, until then.

        Raises Problem 503.
        """
        try:
            return await answered_within(self._settings.redis_wait_seconds, call, *arguments, **options)
        except (Disconnected, RedisRefused) as error:
            raise no_log(error) from None

    @contextlib.asynccontextmanager
    async def log_read_in_time(self, stream_id: str) -> AsyncIterator[None]:
        """A context in which a log is read. Raises Problem 503 if that takes longer than MIDSTREAM_REDIS_WAIT_SECONDS."""
        try:
            async with asyncio.timeout(self._settings.redis_wait_seconds):
                yield
        except TimeoutError:
            raise await self.why_not_read(stream_id) from None

    async def why_not_read(self, stream_id: str) -> Problem:
        """Returns why the log of a stream has not been read in time."""
        if self._tails.refusal is not None:
            return no_log(self._tails.refusal)
        try:
            async with asyncio.timeout(self._settings.redis_wait_seconds):
                await self._log.newest(stream_id)
        except (TimeoutError, Disconnected, RedisRefused) as error:
            return no_log(error)
        return away()

    async def _also_archived(self, stream_id: str, read: Callable[[], Awaitable[T]]) -> T:
        """Returns what `read` returns; if it finds no log, once more after an archived one was brought back."""
        try:
            return await read()
        except Problem as problem:
            if problem.status not in (404, 410) or not await self.brought_back(stream_id):
                raise
        return await read()

    def _may_be_archived(self, stream_id: str) -> bool:
        """Whether a stream is old enough to have left Redis: so ids that are made up do not trouble the database, mostly."""
        return time.time() - created_at(stream_id) >= self._settings.ended_ttl_seconds

    def _check_history(self, stream_id: str, history: History) -> None:
        """Raises Problem 404, 410 for a stream without a log, or with somebody else's."""
        if history.accepted is None and not history.unreadable:
            raise self.missing(stream_id)
        owner = None if history.accepted is None else history.accepted.principal
        if not self._owners.allows_owner(stream_id, owner):
            raise self.missing(stream_id)

    async def _read_all(self, stream_id: str, folding: Folding, history: History) -> None:
        """Gives the whole log to `folding`, which makes `history`, without holding up the event loop.

        A log that cannot be read on has failed. Raises Problem 503.
        """
        held, after = Held(history), BEGINNING
        async with contextlib.AsyncExitStack() as long:
            while True:
                entries = await self.answered(self._log.read, stream_id, after)
                for index, entry in enumerate(entries, 1):
                    try:
                        folding.apply(entry)
                    except Unreadable as error:
                        folding.break_off(entry.id, error)
                        if not any(later.field in events.TERMINAL for later in entries[index - 1 :]):
                            failed = Event(history.last, events.FAILED, orjson.dumps(history.terminal))
                            self._tails.followed.found_unreadable(stream_id, failed)
                        return
                    if index % _ENTRIES_AT_ONCE == 0:
                        await asyncio.sleep(0)
                held.grow_to(history.size_bytes)
                if len(entries) < READ_ENTRIES_MAX:
                    return
                if after == BEGINNING:
                    await long.enter_async_context(self._turn())
                after = entries[-1].id

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Waits for a place among the few long logs that are read at once, so that the memory for their entries is bounded."""
        try:
            async with asyncio.timeout(self._settings.redis_wait_seconds):
                await self._long_reads.acquire()
        except TimeoutError:
            raise Problem(503, "too many long answers are being read; try again", retry_after_seconds=5) from None
        try:
            yield
        finally:
            self._long_reads.release()

    @staticmethod
    def _check_id(stream_id: str) -> None:
        """Raises Problem 404 for what cannot be a stream's id."""
        if not is_stream_id(stream_id):
            raise not_found()
