"""Keeps the overview's numbers of the last two minutes in memory, for the beginning of the console's charts."""

from __future__ import annotations

from collections import deque
from typing import Any

SAMPLES_SECONDS = 120.0
_SAMPLES_MAX = 240
"""Room for two samples a second; fewer are taken."""

Row = dict[str, Any]


class Samples:
    """The samples of the last two minutes, oldest first. Each is a part of a snapshot: about 200 bytes."""

    def __init__(self) -> None:
        self._samples: deque[Row] = deque(maxlen=_SAMPLES_MAX)

    def add(self, snapshot: Row) -> None:
        """Keeps the numbers of a snapshot, and drops samples that are too old."""
        streams, per_second = snapshot["streams"], snapshot["per_second"]
        sample = {
            "time": snapshot["time"],
            "readers": snapshot["readers"],
            "streams": {"running": streams["running"], "waiting": streams["waiting"]},
            "per_second": {name: per_second.get(name, 0.0) for name in ("tokens_generated", "tokens_delivered")},
            "lag": {
                name: {"p99_ms": snapshot["lag"][name]["p99_ms"]}
                for name in ("append_to_socket", "event_loop", "redis")
                if name in snapshot["lag"]
            },
        }
        # If the clock was set back, samples may be in the future: they are dropped, too.
        while self._samples and not 0 <= sample["time"] - self._samples[0]["time"] <= SAMPLES_SECONDS:
            self._samples.popleft()
        self._samples.append(sample)

    def all(self) -> list[Row]:
        return list(self._samples)
