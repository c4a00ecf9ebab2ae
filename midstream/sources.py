"""The source files of generators of the user's own, and whether they have changed: for `midstream up --reload`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

_LOOK_SECONDS = 0.5
_FILES_MAX = 2000
"""To look at more would take longer than a look may."""
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})


class Sources:
    """The `.py` files beside and below the modules of these generators (`package.module:object`), as far as they lie below the
    working directory."""

    def __init__(self, kinds: Iterable[str]) -> None:
        packages = {kind.partition(":")[0].partition(".")[0] for kind in kinds}
        self._roots = [Path(name) if Path(name).is_dir() else Path() for name in sorted(packages)]
        self._looked_at = time.monotonic()
        self._changed_at = self._read()

    def changed(self) -> str:
        """Returns the name of a file that has changed, come or gone since the last call; empty if there is none."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_SECONDS:
            return ""
        self._looked_at = now
        before, self._changed_at = self._changed_at, self._read()
        names = (name for name, at in self._changed_at.items() ^ before.items())
        return min(names, default="")

    def _read(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for root in self._roots:
            for path in _files(root):
                if len(found) >= _FILES_MAX:
                    return found
                try:
                    found[path] = os.stat(path).st_mtime_ns
                except OSError:
                    continue  # it has gone meanwhile, as when an editor replaces it
        return found


def _files(root: Path) -> Iterator[str]:
    for directory, below, names in os.walk(root):
        below[:] = sorted(name for name in below if name not in _SKIPPED and not name.startswith("."))
        yield from (os.path.join(directory, name) for name in sorted(names) if name.endswith(".py"))
