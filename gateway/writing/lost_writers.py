"""Ends streams whose external writer has fallen silent for longer than its lease, or that live for too long.

Every gateway process looks at the leases that are due. What one process looks at, the others leave alone for two seconds; so a
process that dies at it leaves the work to them. While Redis or all gateways are away no writer can renew its lease: after such a
silence all writers are given time to come back, before any is taken for dead.
"""

from __future__ import annotations

import asyncio
import logging
import time

import orjson

from gateway import metrics
from gateway.streams.streams import Streams
from shared import events
from shared.background import keep_running, pause
from shared.errors import Disconnected, LogFull, RedisRefused
from shared.event_log import EventLog
from shared.external_writes import WriterLeases
from shared.ids import created_at, is_stream_id
from shared.outcomes import FailureCode
from shared.settings import Settings

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""How often leases are looked at: a stream ends so long after its lease, at most."""
_NO_LEASES_SECONDS = 0.6
"""How often they are looked for where there are none. A lease lasts for a second at least."""
_SILENCE_SECONDS = 1.0
"""Redis was away if a look comes so late. A lease is one second at least, and is renewed several times in that."""
_RETRY_MILLISECONDS = 1000


class LostWriters:
    """The watch over the leases, for one gateway process."""

    def __init__(self, streams: Streams, log: EventLog, leases: WriterLeases, settings: Settings) -> None:
        self._streams = streams
        self._log = log
        self._leases = leases
        self._stream_seconds = settings.external_stream_seconds
        self._patience_seconds = settings.reconnect_seconds_max + 2.0
        """The time that a writer gets to renew its lease after a silence: a connection anew, and the pause between two tries."""

    def start(self) -> None:
        self._task = keep_running("lost_writers", self._run)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        answered_at = time.monotonic()
        leases_count_from = answered_at + self._patience_seconds  # writers may have waited for this very process
        writers = 1
        while True:
            await pause(LOOK_SECONDS if writers else _NO_LEASES_SECONDS)
            try:
                writers = await self._leases.count()
                now = time.monotonic()
                if now - answered_at > _SILENCE_SECONDS:
                    leases_count_from = now + self._patience_seconds
                answered_at = now
                if writers and now >= leases_count_from:
                    await self._look()
            except (Disconnected, RedisRefused, LogFull) as error:
                logger.debug("the leases of external writers could not be looked at: %s", error)

    async def _look(self) -> None:
        """Looks at the leases that are due now."""
        now, stream_ids = await self._leases.due()
        dues = await asyncio.gather(
            *(self._checked(stream_id, now) for stream_id in stream_ids), return_exceptions=True
        )
        due_at = {}
        for stream_id, due in zip(stream_ids, dues, strict=True):
            if isinstance(due, BaseException):
                logger.debug("stream %s: its lease could not be looked at: %s", stream_id, due)
            elif due is not None:
                due_at[stream_id] = due
        await self._leases.look_again(now, due_at)

    async def _checked(self, stream_id: str, now: int) -> int | None:
        """Looks at one lease. Returns when to look again (ms, by Redis's clock); None if the stream has ended."""
        newest = await self._log.newest(stream_id) if is_stream_id(stream_id) else []
        if not newest or newest[-1].field in events.TERMINAL:
            await self._leases.forget(stream_id)
            return None
        remaining = await self._leases.remaining_milliseconds(stream_id)
        ends_at = int((created_at(stream_id) + self._stream_seconds) * 1000)
        if remaining and now < ends_at:
            return min(now + remaining, ends_at)
        if remaining:
            code, message, retryable = (
                FailureCode.LOG_FULL,
                f"the stream ran for {self._stream_seconds} s, which is the longest",
                False,
            )
        else:
            code, retryable = FailureCode.WRITER_LOST, True
            message = "nothing was heard of the program that writes this answer for longer than its lease"
        failed = orjson.dumps({"code": code, "message": message, "retryable": retryable, "time": time.time()})
        if not await self._log.end(stream_id, events.FAILED, failed, only_after=newest[-1].id):
            return now + _RETRY_MILLISECONDS  # it has been written to meanwhile
        logger.warning("stream %s: failed: %s: %s", stream_id, code, message)
        metrics.failed(code)
        if code is FailureCode.WRITER_LOST:
            metrics.WRITERS_LOST.inc()
        self._streams.write_receipt(stream_id)
        await self._leases.forget(stream_id)
        return None
