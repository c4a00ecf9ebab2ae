"""A progress line on standard error; nothing if that is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

_WIDTH = 24

Show = Callable[[str], None]
"""Shows what is being measured now."""


class Progress:
    def __init__(self, steps: int) -> None:
        self._steps = max(1, steps)
        self._done = 0
        self._shown = sys.stderr.isatty()
        self._began = time.monotonic()

    def show(self, activity: str) -> None:
        """Draws the line, with what is being measured now."""
        if not self._shown:
            return
        filled = _WIDTH * self._done // self._steps
        seconds = int(time.monotonic() - self._began)
        bar = "█" * filled + "·" * (_WIDTH - filled)
        sys.stderr.write(f"\r\033[K{bar} {self._done}/{self._steps}  {seconds // 60}:{seconds % 60:02}  {activity}")
        sys.stderr.flush()

    def step(self) -> None:
        self._done += 1
        self.show("")

    def close(self) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
