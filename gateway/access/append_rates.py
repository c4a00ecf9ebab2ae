"""Limits on appends a second: those that one principal makes, and those to one stream.

Each gateway process counts for itself: a round trip to Redis for each append would cost more than the append. Each principal and
stream has a bucket of one second: so many appends at once, then one whenever its share of the second has passed (GCRA, ITU-T I.371).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict

from gateway import metrics
from gateway.http.principal import principal
from gateway.http.problems import too_many
from shared.settings import Settings

_BUCKETS_MAX = 20_000
"""Buckets that are remembered, those that were used last: 4 MB. One that is forgotten is full again."""
_BURST_SECONDS = 1.0


class AppendRates:
    """The buckets of this process."""

    def __init__(self, settings: Settings) -> None:
        self._of_principal = settings.limit_appends_per_second
        self._of_stream = settings.limit_stream_appends_per_second
        self._full_at: OrderedDict[tuple[str, str], float] = OrderedDict()
        """When each bucket is full again (monotonic seconds), by what it is of."""

    def take(self, stream_id: str) -> None:
        """Takes an append to a stream from its bucket and from the principal's. Raises Problem 429."""
        pause_seconds, of = self._pause(stream_id)
        if pause_seconds:
            metrics.over_limit("appends", of)
            rate = self._of_principal if of == "principal" else self._of_stream
            whose = "by one principal" if of == "principal" else "to one stream"
            raise too_many(
                f"{rate} appends a second may be made {whose}: send several events with one",
                *("appends", rate, "requests", math.ceil(pause_seconds), 1),
            )

    async def wait(self, stream_id: str) -> None:
        """Takes an append as `take` does, but waits until there is one: the client of a long body is slowed down by TCP."""
        while True:
            pause_seconds, _ = self._pause(stream_id)
            if not pause_seconds:
                return
            await asyncio.sleep(pause_seconds)

    def _pause(self, stream_id: str) -> tuple[float, str]:
        """Takes an append from both buckets if both have one, and returns 0; else takes none, and returns how long to wait (seconds),
        and for which bucket: `principal` or `stream`."""
        limits = (("principal", principal.get().name, self._of_principal), ("stream", stream_id, self._of_stream))
        wanted = [((of, name), 1 / rate) for of, name, rate in limits if rate]
        if not wanted:
            return 0.0, ""
        now = time.monotonic()
        full_at = [max(self._full_at.get(key, now), now) + share for key, share in wanted]
        pause_seconds, (of, _) = max(
            (at - now - _BURST_SECONDS, key) for at, (key, _) in zip(full_at, wanted, strict=True)
        )
        if pause_seconds > 1e-6:
            return pause_seconds, of
        for (key, _), at in zip(wanted, full_at, strict=True):
            self._full_at[key] = at
            self._full_at.move_to_end(key)
        while len(self._full_at) > _BUCKETS_MAX:
            self._full_at.popitem(last=False)
        return 0.0, ""
