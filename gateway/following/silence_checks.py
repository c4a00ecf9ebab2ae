"""What is not said: silent tails are compared with their logs, since a lost last push has no successor that reveals it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from gateway import metrics
from gateway.following.tail import Tail
from gateway.following.tails import Tails
from shared import events
from shared.background import keep_running
from shared.errors import Disconnected, LogFull, RedisRefused
from shared.event_log import EventLog
from shared.events import Entry, Event
from shared.ids import EventId, created_at
from shared.outcomes import FailureCode
from shared.settings import Settings

logger = logging.getLogger(__name__)

_LOOKS = 20
"""How many parts a round is spread over, so that none is long."""
_PAUSE_SWEEPS_MAX = 4
"""Between two looks at the same tail: who has been silent for long is likely to stay so."""
_MISSING_MAX = 3
"""A log that is missing at so many looks in a row is gone. A worker that lives writes it anew within one."""


_ENDING_MAX = 1000
"""Ends that are being written; a log that cannot be read is ended by whoever reads it next, too."""


class Sweep:
    """Looks at every tail that has been silent for `sweep_seconds`, less and less often. `on_lost` is told of one whose log is gone.

    What is asked leaves in one write and is answered by callbacks: 10,000 silent tails cost about a percent of a core.
    """

    def __init__(self, tails: Tails, log: EventLog, settings: Settings, on_lost: Callable[[Tail], None]) -> None:
        self._tails = tails
        self._log = log
        self._settings = settings
        self._on_lost = on_lost
        self.on_ended: Callable[[str, str], None] = lambda stream_id, code: None
        """Told of a stream that was ended here as failed, and of its code. For who traces."""
        self._ending: set[asyncio.Task[None]] = set()
        self.checks = 0

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = keep_running("sweep", self._run)

    async def close(self) -> None:
        for task in (self._task, *self._ending):
            task.cancel()
        await asyncio.gather(self._task, *self._ending, return_exceptions=True)

    async def _run(self) -> None:
        sweep_seconds = self._settings.sweep_seconds
        while True:
            await asyncio.sleep(sweep_seconds / _LOOKS)
            if not self._tails.subscriber.is_up:
                continue
            now = self._loop.time()
            for tail in self._tails:
                if tail.check_at > now or tail.ended is not None:
                    continue
                silent_seconds = now - tail.heard_at
                if silent_seconds < sweep_seconds:
                    tail.check_at = tail.heard_at + sweep_seconds
                elif tail.ready.done() and not tail.reading:
                    pause_seconds = min(silent_seconds, _PAUSE_SWEEPS_MAX * sweep_seconds)
                    tail.check_at = now + pause_seconds * random.uniform(1.0, 1.2)  # so that they spread
                    self.checks += 1
                    self._log.send_newest(tail.stream_id, partial(self._checked, tail))

    def _checked(self, tail: Tail, newest: Entry | Exception | None) -> None:
        if isinstance(newest, Exception):
            logger.debug("stream %s: not checked: %s", tail.stream_id, newest)
        elif tail not in self._tails or tail.reading:
            pass
        elif newest is None:
            tail.missing += 1
            tail.check_at = self._loop.time() + self._settings.sweep_seconds
            if tail.missing >= _MISSING_MAX:
                self._on_lost(tail)
        else:
            tail.missing = 0
            if newest.id > tail.last:
                self._tails.read(tail, "check")
            elif newest.id == tail.last:
                self._end_if_orphaned(tail)

    def _end_if_orphaned(self, tail: Tail) -> None:
        """End a stream that has nobody left to speak for it."""
        settings, silent_seconds = self._settings, self._loop.time() - tail.heard_at
        if tail.attempt == 0:
            if time.time() - created_at(tail.stream_id) <= settings.queue_seconds:
                return
            code, message = FailureCode.QUEUE_TIMEOUT, f"no worker was free within {settings.queue_seconds:g} s"
        elif silent_seconds > settings.orphan_seconds:
            code, message = (
                FailureCode.WORKER_LOST,
                f"nothing was heard of the worker for {settings.orphan_seconds:g} s",
            )
        else:
            return
        failure = {"code": code, "message": message, "retryable": True}
        self._begin_to_end(tail.stream_id, failure, only_after=tail.last)

    def end_unreadable(self, stream_id: str, failed: Event) -> None:
        """Write `failed` to a log that cannot be read on, so that whoever writes it stops. For everybody who finds one."""
        if len(self._ending) < _ENDING_MAX:
            self._begin_to_end(stream_id, orjson.loads(failed.value))

    def _begin_to_end(self, stream_id: str, failure: dict[str, Any], only_after: EventId | None = None) -> None:
        task = self._loop.create_task(self._end(stream_id, failure, only_after))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, stream_id: str, failure: dict[str, Any], only_after: EventId | None) -> None:
        code, value = failure["code"], orjson.dumps({**failure, "time": time.time()})
        try:
            if await self._log.end(stream_id, events.FAILED, value, only_after=only_after):
                logger.warning("stream %s: failed: %s: %s", stream_id, code, failure["message"])
                metrics.failed(code)
                self.on_ended(stream_id, code)
        except (Disconnected, RedisRefused, LogFull) as error:
            logger.debug("stream %s: not ended: %s", stream_id, error)
