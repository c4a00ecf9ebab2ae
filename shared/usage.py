"""Usage: counts each stream once in its principal's account, from its receipt, whoever ends it and whatever dies.

    created ──► running ──► ended ──────────────────────────────► shortly before its log expires ──► closed
                   │          │ counted, a second after the end       │ counted anew: who has read it since?
                   └──────────┴── looked at now and then: is it running, ended, gone? ─┘

Whoever ends a stream counts it with the receipt that it logs. If that process dies before, a look of any gateway does it. What
readers get later changes the receipt: then it is counted anew. Counting again replaces what was counted before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from shared.accounts import Accounts, Entry
from shared.background import Complaints, keep_running, pause
from shared.errors import Disconnected, MidstreamError, RedisRefused
from shared.event_log import EventLog
from shared.events import DELETED, TERMINAL
from shared.ids import EventId, created_at
from shared.outcomes import Status
from shared.receipt import RECEIPT_LINE_SECONDS, DeliveryNotes, EndedLog, Generated, delivered_tokens, read_ended
from shared.settings import Settings

logger = logging.getLogger(__name__)

_ENTRIES_AT_ONCE = 50
"""Entries that a process takes at a time: one read of a log each, in the worst case a hundred milliseconds of work in all."""
_PAUSE_SECONDS = 1.0
_MARGIN_SECONDS_MAX, _MARGIN_PART = 60.0, 0.25
"""So long before a log expires, at most, its stream is counted for the last time; a part of the log's time where that is short."""
_READ_SECONDS = 2 * RECEIPT_LINE_SECONDS
"""How long after it was read an ended stream is counted anew: the process that ended it counts it before that."""
_UNKNOWN_MODEL = "unknown"


def _count_in(usage: Mapping[str, Any], name: str) -> int:
    """Returns a count of a provider's usage; 0 for what is no count, as in a damaged log."""
    value = usage.get(name)
    return value if type(value) is int else 0


class Usage:
    """Counts streams, over one connection to Redis."""

    def __init__(self, accounts: Accounts, log: EventLog, deliveries: DeliveryNotes, settings: Settings) -> None:
        self.accounts = accounts
        self._log = log
        self._deliveries = deliveries
        self._ended_ttl_seconds = settings.ended_ttl_seconds
        self._margin_seconds = min(_MARGIN_SECONDS_MAX, settings.ended_ttl_seconds * _MARGIN_PART)
        self._begins_seconds = settings.redis_wait_seconds + settings.usage_seconds
        """A stream without a log that is younger may still begin: its create waits for Redis."""
        self._task: asyncio.Task[None] | None = None
        self._complaints = Complaints(logger.warning)

    def start(self) -> None:
        """Begins to look at streams that nobody has counted, or that are to be counted anew."""
        self._task = keep_running("usage", self._run)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def count(
        self, generated: Generated, receipt: Mapping[str, Any], *, closed: bool = False, principal: str = ""
    ) -> None:
        """Counts a stream that has ended as its receipt says. `closed`: for the last time.

        `principal` is for a log whose request cannot be read. Raises Disconnected, RedisRefused.
        """
        history = generated.history
        accepted = history.accepted
        if not history.ended and not history.unreadable:
            return
        if accepted is None and not principal:
            return  # a tombstone: its stream was counted before the delete
        requested = None if accepted is None else accepted.request.get("model")
        model = history.model or (requested if isinstance(requested, str) else "") or _UNKNOWN_MODEL
        usage = receipt["generated"]["usage"] or {}
        ended_at = history.ended_at or time.time()
        counts = {
            "streams": 1,
            "completed": int(history.status == Status.COMPLETED),
            "failed": int(history.status == Status.FAILED),
            "cancelled": int(history.status == Status.CANCELLED),
            "cut_off": int(receipt["finish_reason"] == "length"),
            "generated": receipt["generated"]["tokens"],
            "delivered": receipt["delivered"]["tokens"],
            "undelivered": receipt["undelivered_tokens"],
            "prompt_tokens": _count_in(usage, "prompt_tokens"),
            "completion_tokens": _count_in(usage, "completion_tokens"),
        }
        about = {"ended_at": ended_at, "attempts": generated.spans()}
        await self._settle(
            receipt["id"], principal if accepted is None else accepted.principal, model, counts, about, closed=closed
        )

    async def count_now(self, stream_id: str, *, closed: bool = False, principal: str = "") -> EndedLog:
        """Reads a stream's log and counts it, if it has ended. Returns what it has read. Raises Disconnected, RedisRefused."""
        ended = await read_ended(self._log, self._deliveries, stream_id)
        await self.count(ended.generated, ended.receipt, closed=closed, principal=principal)
        return ended

    def ended_without_receipt(self, stream_id: str) -> None:
        """Has a stream counted, soon, that was ended by somebody who writes no receipt."""
        self.accounts.send_look(stream_id, RECEIPT_LINE_SECONDS)

    def read_after_its_end(self, stream_id: str) -> None:
        """Has a stream counted anew, soon: it has ended, and a connection has got something of it.

        If whoever ended it counts it for the first time meanwhile, that is enough.
        """
        self.accounts.send_look(stream_id, _READ_SECONDS)

    async def _settle(
        self,
        stream_id: str,
        principal: str,
        model: str,
        counts: Mapping[str, int],
        about: Mapping[str, Any],
        *,
        closed: bool,
    ) -> None:
        last_look_in_seconds = max(
            0.0, about["ended_at"] + self._ended_ttl_seconds - self._margin_seconds - time.time()
        )
        about = {**about, "closed": True} if closed else about
        is_over = not last_look_in_seconds
        await self.accounts.settle(
            stream_id, principal, model, counts, about, last_look_in_seconds, is_last_look_over=is_over
        )

    # --- looks

    async def _run(self) -> None:
        while True:
            goes_on = False
            try:
                goes_on = await self._look()
            except Disconnected as error:
                logger.debug("usage: %s", error)
            except RedisRefused as error:
                self._complaints.say(f"usage cannot be counted: {error}")
            await pause(0 if goes_on else _PAUSE_SECONDS)

    async def _look(self) -> bool:
        """Looks at the streams whose time has come; returns whether there may be more."""
        entries = await self.accounts.looks(_ENTRIES_AT_ONCE)
        for entry in entries:
            try:
                await self._look_at(entry)
            except (Disconnected, RedisRefused):
                raise
            except MidstreamError as error:
                logger.warning("stream %s: its usage cannot be counted: %s", entry.stream_id, error)
        return len(entries) == _ENTRIES_AT_ONCE

    async def _look_at(self, entry: Entry) -> None:
        newest = await self._log.newest(entry.stream_id)
        field = newest[-1].field if newest else DELETED
        if field == DELETED:
            await self._close_without_log(entry, deleted=bool(newest))
        elif entry.about.get("counts") is not None:
            await self._count_anew(entry)
        elif field in TERMINAL:
            await self.count_now(entry.stream_id, principal=entry.principal)

    async def _close_without_log(self, entry: Entry, *, deleted: bool) -> None:
        """Closes the entry of a stream whose log is gone, or has never begun. What was counted stays."""
        if deleted or time.time() - created_at(entry.stream_id) > self._begins_seconds:
            about = {"closed": True}
            await self.accounts.settle(entry.stream_id, entry.principal, "", {}, about, 0.0)

    async def _count_anew(self, entry: Entry) -> None:
        """Counts what was delivered since the stream was counted: its end and what was generated stay."""
        about = entry.about
        attempts, counts = about.get("attempts") or [], about["counts"]
        notes = await self._deliveries.read(entry.stream_id)
        highest = max((EventId.parse(note["to"]) for note in notes.connections), default=EventId(0, 0))
        delivered = delivered_tokens(
            highest, {number: (kept, reached) for number, kept, reached in attempts}, counts["generated"]
        )
        usage = notes.late_usage or {}
        counts = {
            **counts,
            "delivered": delivered,
            "undelivered": counts["generated"] - delivered,
            "prompt_tokens": counts["prompt_tokens"] or _count_in(usage, "prompt_tokens"),
            "completion_tokens": counts["completion_tokens"] or _count_in(usage, "completion_tokens"),
        }
        closed = time.time() >= about["ended_at"] + self._ended_ttl_seconds - 2 * self._margin_seconds
        unchanged = {"ended_at": about["ended_at"], "attempts": attempts}
        await self._settle(entry.stream_id, entry.principal, about["model"], counts, unchanged, closed=closed)
