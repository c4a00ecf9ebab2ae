"""How often to flush: less often while the processor is short. Merged writes cost less per event, and nobody sees 50 ms."""

from __future__ import annotations

import time

from shared.background import TICK_SECONDS, pause

_LOOK_SECONDS = 0.1
"""The pause between two looks at the load of a busy process. A calm one looks each TICK_SECONDS: it wakes up then for its background tasks."""
_TICK_SECONDS_LEAST, _TICK_SECONDS_MOST = 0.004, 0.05
"""The bounds of a pause: 4 ms merge something, 50 ms are not yet seen by a person who reads."""
_BUSY, _CALM = 0.85, 0.60
"""The shares of a core above which it flushes less often, and below which more often."""


class FlushPace:
    """The pause between two flushes, by the load of this process."""

    def __init__(self) -> None:
        self.tick_seconds = 0.0
        """The pause; 0 while there is processor time enough."""

    async def run(self) -> None:
        """Adapts the pause to the share of a core that this process uses, for ever.

        A pause in proportion to the last flush would be metastable: long flushes make long pauses make long flushes.
        """
        cpu, wall = time.process_time(), time.monotonic()
        share = 0.0
        while True:
            await pause(_LOOK_SECONDS if share > _CALM or self.tick_seconds else TICK_SECONDS)
            cpu_now, wall_now = time.process_time(), time.monotonic()
            share = (cpu_now - cpu) / (wall_now - wall)
            cpu, wall = cpu_now, wall_now
            if share > _BUSY:
                self.tick_seconds = min(_TICK_SECONDS_MOST, max(_TICK_SECONDS_LEAST, self.tick_seconds * 1.5))
            else:
                shrink = (
                    0.75 if share < _CALM else 0.97
                )  # in between slowly: the pause of a burst must not stay for good
                self.tick_seconds = self.tick_seconds * shrink if self.tick_seconds > _TICK_SECONDS_LEAST else 0.0
