"""Appends the items of one attempt: at most one append is under way; items that come meanwhile share the next entry.

So an idle writer appends at once, and a busy one as many tokens as come in a round trip. One with a pace waits for that
between two entries, but not with the first token, nor at the end. The writer keeps a copy of the whole
log as it must be. After a lost reply, a restart of Redis, or a failover to a replica that lagged, the log's last id shows
which entries are missing; they are appended again, under the same ids and with the same bytes. Only what a later attempt has
fenced off stays refused.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any

from producer import metrics
from producer.log_copy import LogCopy
from producer.provider import Refused
from producer.ticks import TICK_SECONDS, tick_from
from shared.errors import Disconnected, Fenced, LogFull, MidstreamError, RedisRefused
from shared.event_log import Appended, EventLog
from shared.events import ACCEPTED, Entry, Item, encode_items
from shared.ids import EventId
from shared.outcomes import FailureCode
from shared.redis_retry import until_redis_answers
from shared.settings import Settings

logger = logging.getLogger(__name__)

_LOOK_AGAIN_SECONDS = 0.01
"""The pause between a repair and the next try of the append: without it a log that somebody edits would keep the loop busy."""
_TIMER_SECONDS = 0.001
"""A timer of uvloop may be early by this."""


class Writer:
    """Writes one stream's log for one worker. `on_trouble` gets, once, the error that ends the attempt, as Fenced or LogFull."""

    __slots__ = (
        "__weakref__",  # tests ask whether a writer is freed
        "_append_head",
        "_busy",
        "_bytes_max",
        "_copy",
        "_entries_max",
        "_kept_tokens",
        "_log",
        "_on_trouble",
        "_pace_seconds",
        "_pause",
        "_progress",
        "_repair",
        "_tokens_max",
        "_trouble",
        "_uncounted",
        "_under_way",
        "_unsent_bytes_max",
        "_waiting",
        "_waiting_bytes",
        "attempt",
        "may_recreate",
        "next_entry_at",
        "offset",
        "sent_at",
        "stream_id",
        "unheard_since",
        "was_heard",
    )

    def __init__(
        self,
        log: EventLog,
        stream_id: str,
        entries: list[Entry],
        settings: Settings,
        on_trouble: Callable[[MidstreamError], None],
        *,
        pace_ms: int | None = None,
    ) -> None:
        self.stream_id = stream_id
        self._log = log
        self._copy = LogCopy(entries)
        self._uncounted = 0
        """How many entries more than this copy Redis holds (negative: fewer, as after XTRIM by hand)."""
        self._tokens_max = settings.entry_tokens_max
        self._entries_max = settings.stream_entries_max - 1  # one place is kept for the terminal event
        self._bytes_max = settings.stream_bytes_max
        self._unsent_bytes_max = settings.worker_unsent_bytes_max
        pace_seconds = (settings.entry_milliseconds if pace_ms is None else pace_ms) / 1000
        self._pace_seconds = math.ceil(pace_seconds / TICK_SECONDS) * TICK_SECONDS
        self.next_entry_at = 0.0
        """When the stream's pace allows the next entry (monotonic seconds)."""
        self._pause: asyncio.TimerHandle | None = None
        """Runs until then."""
        self._on_trouble = on_trouble
        self._trouble: MidstreamError | None = None
        self._append_head = log.append_head(stream_id)
        self.attempt, self.offset = entries[-1].id
        """The id of the last entry that was made, whether sent or not. `offset`: how many increments stand, with those under way."""
        self._kept_tokens = 0
        """How many increments of earlier attempts this one keeps."""
        self._waiting: list[Item] = []
        self._waiting_bytes = 0
        self._under_way: tuple[bytes, bytes] | None = None
        """The field and the value of the append that has not been answered yet; its id is `attempt` and `offset`."""
        self._repair: asyncio.Task[None] | None = None
        self._busy = False
        """A repair, a beginning or an end is under way: no token may be sent, and a probe could not be interpreted."""
        self._progress: asyncio.Event | None = None
        """Set when something has come to its end, for those who wait; None: nobody has waited yet."""
        self.may_recreate = True
        """Whether a log that has vanished may be written again: not by a worker that was stopped for longer than its lease."""
        self.sent_at = 0.0
        self.unheard_since: float | None = None
        """Since when no gateway listens (monotonic seconds); None while one does, or before the first reply."""
        self.was_heard = False
        """Whether a gateway has listened."""

    @property
    def has_pace(self) -> bool:
        """Whether there is a least time between two entries."""
        return self._pace_seconds > 0

    # --- the hot path

    def push(self, items: list[Item]) -> bool:
        """Takes items to append, in order. They are sent at once, or, while an append is under way, with the next entry.

        Returns False when the writer is crowded.
        """
        may_send = self._under_way is None and not self._busy and self._trouble is None
        if may_send and not self._waiting and not self._pace_seconds and len(items) <= self._tokens_max:
            self._send(items)
            return True
        self._waiting += items
        self._waiting_bytes += sum(map(len, items))
        if may_send:
            self._send_at_its_pace()
        return not self.crowded

    def _send_at_its_pace(self) -> None:
        """Sends what waits, now or when the pause since the last entry is over; a full entry does not wait."""
        is_due = not self._pace_seconds or time.monotonic() >= self.next_entry_at - _TIMER_SECONDS
        if is_due or len(self._waiting) >= self._tokens_max:
            self._send_waiting()
        elif self._pause is None:
            self._pause = asyncio.get_running_loop().call_at(tick_from(self.next_entry_at), self._pause_is_over)

    def _pause_is_over(self) -> None:
        self._pause = None
        if self._waiting and self._under_way is None:
            self._send_at_its_pace()

    def _send_waiting(self) -> None:
        """Sends what waits, as much as one entry takes."""
        if self._busy or self._trouble is not None:
            return
        items, most = self._waiting, self._tokens_max
        if len(items) <= most:
            self._waiting, self._waiting_bytes = [], 0
        else:
            items, self._waiting = items[:most], items[most:]
            self._waiting_bytes -= sum(map(len, items))
        self._send(items)

    def _send(self, items: list[Item]) -> None:
        """Sends one entry with these items."""
        try:
            field, value = entry = encode_items(items)
        except (TypeError, ValueError):  # a bug in a provider; raised here it would break the connection to Redis
            self._fail(Refused("the provider's answer cannot be stored", code=FailureCode.PROVIDER_UNREADABLE))
            return
        self.offset += len(items)
        held = len(self._copy)
        if held >= self._entries_max or self._copy.value_bytes + len(value) > self._bytes_max:
            self._fail(
                LogFull(
                    f"the answer reached the bound of one stream: {self._entries_max + 1} entries "
                    f"or {self._bytes_max} bytes"
                )
            )
            return
        self._under_way = entry
        self.sent_at = time.monotonic()
        if self._pace_seconds:
            # Counted from when this one was due, unless it came at another time: else each entry would come a tick later.
            is_on_time = abs(self.sent_at - self.next_entry_at) < TICK_SECONDS
            self.next_entry_at = (self.next_entry_at if is_on_time else self.sent_at) + self._pace_seconds
        held += self._uncounted
        self._log.send_append(self._append_head, held, self.attempt, self.offset, field, value, self._on_reply)

    def _on_reply(self, reply: Any) -> None:
        if type(reply) is int:
            self._applied(reply)
            return
        assert self._under_way is not None
        entry = Entry(EventId(self.attempt, self.offset), *self._under_way)
        self._repair = asyncio.get_running_loop().create_task(self._settle(entry))

    def _applied(self, listeners: int) -> None:
        assert self._under_way is not None
        self._copy.append(self.attempt, self.offset, *self._under_way)
        self._under_way = None
        self._heard_by(listeners)
        if self._waiting:
            self._send_at_its_pace()
        self._note_progress()

    def _heard_by(self, listeners: int) -> None:
        if listeners:
            self.unheard_since, self.was_heard = None, True
        elif self.unheard_since is None:
            self.unheard_since = time.monotonic()

    def let_go(self) -> None:
        """Drops the references to the run and to its error: nothing may keep a run in memory that has ended."""
        self._on_trouble = lambda trouble: None
        if self._pause is not None:
            self._pause.cancel()
        self._trouble = self._repair = None

    def _fail(self, trouble: MidstreamError) -> None:
        if self._trouble is None:
            self._trouble = trouble.with_traceback(None)  # a traceback would hold this frame
            self._on_trouble(trouble)
        self._note_progress()

    # --- waiting

    @property
    def crowded(self) -> bool:
        """Whether so much waits, because Redis is slow or away, that no more should be read from the provider (backpressure)."""
        return self._waiting_bytes > self._unsent_bytes_max

    async def wait_for_room(self) -> None:
        """Waits while the writer is crowded. Raises the error that ends the attempt."""
        while self.crowded and self._trouble is None:
            await self._wait_for_progress()
        self._raise_trouble()

    async def drained(self) -> None:
        """Waits until all that was pushed is in the log, which it goes into at once. Raises the error that ends the attempt."""
        while (self._under_way is not None or self._waiting or self._busy) and self._trouble is None:
            if self._under_way is None:
                self._send_waiting()
            await self._wait_for_progress()
        self._raise_trouble()

    async def _wait_for_progress(self) -> None:
        if self._progress is None:
            self._progress = asyncio.Event()
        self._progress.clear()
        await self._progress.wait()

    def _note_progress(self) -> None:
        if self._progress is not None:
            self._progress.set()

    def _raise_trouble(self) -> None:
        if self._trouble is not None:
            raise self._trouble

    # --- the rare entries

    async def begin(self, attempt: int, field: bytes, value: bytes, kept_tokens: int) -> bool:
        """Fences off every earlier attempt with the entry `<attempt>-0`, and continues behind `kept_tokens` increments.

        Returns False when somebody else has written meanwhile: then the log must be read again.
        """
        await self.drained()
        entry = Entry(EventId(attempt, 0), field, value)
        self._busy = True
        try:
            outcome = await self._append_once_settled(entry)
            if outcome.status == "duplicate":
                # Our own, after a lost reply? Somebody else's names another worker or time.
                stored = await until_redis_answers(self._log.read_between, self.stream_id, entry.id, entry.id)
                if stored != [entry]:
                    return False
            elif outcome.status != "applied":
                return False
            self._copy.append(attempt, 0, field, value)
        finally:
            self._busy = False
        self._heard_by(outcome.listeners)
        self.attempt, self.offset = attempt, kept_tokens
        self._kept_tokens = kept_tokens
        return True

    async def finish(self, field: bytes, value: bytes) -> None:
        """Appends the terminal event and sets the log's expiry. Raises Fenced when somebody else has ended the stream."""
        if self._trouble is None or isinstance(self._trouble, Fenced):
            await self.drained()
        else:  # the log is full: the items that did not fit are given up
            self._waiting.clear()
            self.offset = max(self._kept_tokens, self._copy.last.offset)
        entry = Entry(EventId(self.attempt, self.offset + 1), field, value)
        self._busy = True
        try:
            outcome = await self._append_once_settled(entry, self._log.ended_ttl_seconds)
        finally:
            self._busy = False
        if outcome.status == "fenced":
            raise Fenced

    async def probe(self) -> None:
        """Compares the log with this copy while no token flows: to see a cancel, a takeover, lost entries, and whether a gateway listens."""
        if self._under_way is not None or self._busy or self._trouble is not None:
            return
        self.sent_at = time.monotonic()
        last = self._copy.last
        try:
            outcome = await self._log.probe(self.stream_id, len(self._copy) + self._uncounted, last)
        except (Disconnected, RedisRefused, LogFull):
            return
        if self._under_way is not None or self._busy or self._copy.last != last:
            return  # an append was sent meanwhile: its reply shows as much
        if outcome.status == "applied":
            self._heard_by(outcome.listeners)
        elif outcome.status == "fenced":
            self._fail(Fenced())
        elif outcome.status == "gap":
            self._busy = True
            self._repair = asyncio.get_running_loop().create_task(self._settle(None))

    # --- when the log is not what it should be

    async def _settle(self, entry: Entry | None) -> None:
        """Brings the append under way to its end after any reply but a plain success; with `entry` None, repairs the log."""
        try:
            if entry is None:
                await self._make_whole()
                self._busy = False
                if self._waiting:
                    self._send_waiting()
                self._note_progress()
                return
            outcome = await self._append_once_settled(entry)
            if outcome.status == "fenced":
                raise Fenced
            self._applied(outcome.listeners)
        except Exception as error:
            self._under_way, self._busy = None, False
            self._fail(error if isinstance(error, MidstreamError) else MidstreamError(f"{type(error).__name__}"))

    async def _append_once_settled(self, entry: Entry, ttl_seconds: int | None = None) -> Appended:
        """Appends, repairing the log if need be, until the outcome is known: applied, duplicate or fenced."""
        while True:
            held = len(self._copy) + self._uncounted
            outcome = await until_redis_answers(self._log.append, self.stream_id, held, entry, ttl_seconds)
            if outcome.status == "duplicate" and entry.id.attempt == self._copy.last.attempt:
                await self._raise_unless_ours(entry.id.attempt)
            if outcome.status != "gap":
                return outcome
            if self._copy.last.attempt < entry.id.attempt and outcome.last > self._copy.last:
                return outcome  # too late to fence off: others have written entries that this copy does not have
            await self._make_whole()
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    async def _make_whole(self) -> None:
        """Appends again the entries that Redis has lost. Raises Fenced, LogFull."""
        outcome = await until_redis_answers(self._log.probe, self.stream_id, -1, self._copy.last)
        last, entries = outcome.last, outcome.entries  # no log holds -1 entries, so the reply always has both
        missing = self._copy.later_than(last)
        if entries == 0 and not self.may_recreate:
            raise Fenced(
                "the log is gone, and this worker was stopped for longer than its lease: it may not write it again"
            )
        if last > self._copy.last:
            raise Fenced
        await self._raise_unless_ours(last.attempt)
        if missing:
            metrics.LOG_REPAIRS.inc()
            logger.warning(
                "stream %s: Redis has lost %d of %d entries; appending them again",
                self.stream_id,
                len(missing),
                len(self._copy),
            )
        self._uncounted = entries - (len(self._copy) - len(missing))
        for index in missing:
            entry = self._copy[index]
            ttl_seconds = self._log.log_ttl_seconds if entry.field == ACCEPTED else None
            held = index + self._uncounted
            outcome = await until_redis_answers(self._log.append, self.stream_id, held, entry, ttl_seconds)
            if outcome.status == "fenced":
                raise Fenced
            if outcome.status == "duplicate":
                await self._raise_unless_ours(entry.id.attempt)
            if outcome.status == "gap":
                return  # entries were lost again: the caller tries once more

    async def _raise_unless_ours(self, attempt: int) -> None:
        """Raises Fenced if another worker has begun the same attempt, in a log of which Redis had lost a part."""
        beginning = EventId(attempt, 0)
        stored = await until_redis_answers(self._log.read_between, self.stream_id, beginning, beginning)
        if stored and stored[0] not in self._copy:
            raise Fenced("another worker has begun the same attempt")
