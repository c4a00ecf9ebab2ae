"""Checks streams that have gone quiet: pub/sub may lose a stream's last message, and no later one would show it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from gateway.following.endings import Endings
from gateway.following.tail import Tail
from gateway.following.tails import Tails
from shared.background import keep_running, pause
from shared.errors import RedisRefused
from shared.event_log import EventLog
from shared.ids import EventId, created_at
from shared.outcomes import FailureCode
from shared.settings import Settings

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""A round lasts `sweep_seconds`, and is spread over looks about so far apart, so that none takes long."""
_PAUSE_SWEEPS_MAX = 4
"""The longest pause between two checks of a tail, in rounds: a stream that has been silent for long is likely to stay so."""
_TAILS_AT_ONCE = 100
"""How many tails are looked at before readers get what is new: 0.3 ms. One command asks for all their logs: 0.1 ms of Redis."""
_MISSING_MAX = 3
"""A log that is missing at so many checks in a row is gone. A live worker writes it anew within one."""


class SilenceChecks:
    """Compares every tail that has been silent for `sweep_seconds` with its log, less and less often.

    `on_lost` is called with a tail whose log is gone. One command asks for the newest ids of up to a hundred logs, in a cluster of
    one, and is answered by a callback: a check costs 3 µs.
    """

    def __init__(
        self, tails: Tails, log: EventLog, endings: Endings, settings: Settings, on_lost: Callable[[Tail], None]
    ) -> None:
        self._tails = tails
        self._log = log
        self._endings = endings
        self._settings = settings
        self._on_lost = on_lost
        self._looks = max(1, round(settings.sweep_seconds / _LOOK_SECONDS))
        self._pause_seconds = settings.sweep_seconds / self._looks
        self._asks_together = log.is_one_server
        self._missing: dict[Tail, int] = {}
        """At how many checks in a row a tail's log has been missing."""
        self.checks = 0

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = keep_running("silence_checks", self._run)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            for tails in self._next_round():
                await pause(self._pause_seconds)
                for first in range(0, len(tails), _TAILS_AT_ONCE):
                    if self._tails.subscriber.is_up:
                        self._look(tails[first : first + _TAILS_AT_ONCE])
                    await asyncio.sleep(0)
            self._missing = {tail: count for tail, count in self._missing.items() if tail in self._tails}

    def _next_round(self) -> list[list[Tail]]:
        """Returns the tails that are to be looked at in the next round, by look. All others have been heard of since, or are
        new: they are not due before the round after that."""
        now = self._loop.time()
        round_ends_at = now + self._settings.sweep_seconds
        looks: list[list[Tail]] = [[] for _ in range(self._looks)]
        for tail in self._tails:
            if tail.check_at < round_ends_at and tail.heard_at < now and tail.ended is None:
                due_seconds = max(tail.check_at, tail.heard_at + self._settings.sweep_seconds) - now
                looks[min(max(0, int(due_seconds / self._pause_seconds)), self._looks - 1)].append(tail)
        return looks

    def _look(self, tails: list[Tail]) -> None:
        """Asks for the newest ids of the logs whose tails are silent still."""
        now, sweep_seconds = self._loop.time(), self._settings.sweep_seconds
        silent_seconds_least = sweep_seconds - self._pause_seconds  # a look may be that early
        silent = []
        for tail in tails:
            silent_seconds = now - tail.heard_at
            if (
                silent_seconds >= silent_seconds_least
                and tail.ended is None
                and tail.is_ready
                and not tail.reading
                and tail in self._tails
            ):
                pause_seconds = min(2 * silent_seconds, _PAUSE_SWEEPS_MAX * sweep_seconds)
                tail.check_at = now + pause_seconds * random.uniform(1.0, 1.2)  # so that they spread
                silent.append(tail)
        self.checks += len(silent)
        for group in [silent] if silent and self._asks_together else [[tail] for tail in silent]:
            self._log.send_newest_ids([tail.stream_id for tail in group], partial(self._checked, group))

    def _checked(self, tails: list[Tail], newest: list[EventId | None] | Exception) -> None:
        if isinstance(newest, Exception):
            logger.debug("%d silent streams, %s among them: not checked: %s", len(tails), tails[0].stream_id, newest)
            if isinstance(newest, RedisRefused) and newest.code == "CROSSSLOT":  # of a proxy before a cluster
                self._asks_together = False
            return
        for tail, newest_id in zip(tails, newest, strict=True):
            try:
                if tail not in self._tails or tail.reading:
                    continue
                if newest_id is None:
                    self._miss(tail)
                else:
                    self._compare(tail, newest_id)
            except Exception:  # a bug; this is one stream of many
                logger.exception("stream %s: its silence could not be looked into", tail.stream_id)

    def _miss(self, tail: Tail) -> None:
        """Counts a check at which the log was missing; the last that a log is given loses it."""
        missing = self._missing[tail] = self._missing.get(tail, 0) + 1
        tail.check_at = self._loop.time() + self._settings.sweep_seconds
        if missing >= _MISSING_MAX:
            self._on_lost(tail)

    def _compare(self, tail: Tail, newest: EventId) -> None:
        """Reads a log that has more than its tail, and ends a stream that nobody writes any more."""
        self._missing.pop(tail, None)
        last = tail.last
        if newest > last:
            self._tails.read(tail, "check")
        elif newest == last:
            self._end_if_orphaned(tail)

    def _end_if_orphaned(self, tail: Tail) -> None:
        """Ends a stream that no worker has claimed in time, or whose worker is lost."""
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
        failure: dict[str, Any] = {"code": code, "message": message, "retryable": True}
        if code == "worker_lost":
            failure["last_heard_at"] = time.time() - silent_seconds
        self._endings.begin(tail.stream_id, failure, only_after=tail.last)
