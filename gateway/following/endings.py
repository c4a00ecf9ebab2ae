"""Ends streams as failed: those whose worker is lost, and those whose log cannot be read on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import orjson

from gateway import metrics
from shared import events
from shared.errors import Disconnected, LogFull, RedisRefused
from shared.event_log import EventLog
from shared.events import Event
from shared.external_writes import WriterLeases, is_external
from shared.ids import EventId

logger = logging.getLogger(__name__)

_UNDER_WAY_MAX = 1000
"""Ends of unreadable logs that are being written. Beyond that the next gateway that reads such a log ends it."""


def _not_traced(stream_id: str, code: str) -> None:
    pass


class Endings:
    """Writes `failed` to logs. `on_ended` is called with each stream that was ended here, and with the failure's code.

    A silent stream of an external writer is not ended here: `leases` get it.
    """

    def __init__(
        self,
        log: EventLog,
        on_ended: Callable[[str, str], None] = _not_traced,
        leases: WriterLeases | None = None,
    ) -> None:
        self._log = log
        self._leases = leases
        self._on_ended = on_ended
        self._under_way: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def end_unreadable(self, stream_id: str, failed: Event) -> None:
        """Begins to write `failed` to a log that cannot be read on, so that its worker stops."""
        if len(self._under_way) < _UNDER_WAY_MAX:
            self.begin(stream_id, orjson.loads(failed.value))

    def begin(self, stream_id: str, failure: dict[str, Any], only_after: EventId | None = None) -> None:
        """Begins to end a stream with this failure; with `only_after`, only if that is still its last id."""
        task = asyncio.get_running_loop().create_task(self._end(stream_id, failure, only_after))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _end(self, stream_id: str, failure: dict[str, Any], only_after: EventId | None) -> None:
        code, value = failure["code"], orjson.dumps({**failure, "time": time.time()})
        try:
            if only_after is not None and self._leases is not None and await is_external(self._log, stream_id):
                await self._leases.enlist(stream_id)  # whose lease decides, also if Redis has forgotten the list
                return
            if await self._log.end(stream_id, events.FAILED, value, only_after=only_after):
                logger.warning("stream %s: failed: %s: %s", stream_id, code, failure["message"])
                metrics.failed(code)
                self._on_ended(stream_id, code)
        except (Disconnected, RedisRefused, LogFull) as error:
            logger.debug("stream %s: not ended: %s", stream_id, error)
