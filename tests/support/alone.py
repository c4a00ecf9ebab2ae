"""How a run of several pytest processes is spread, and what `@pytest.mark.alone` means: no other test runs meanwhile.

With `-n 5 --dist loadfile` each module is one process's, which starts its fixtures once. Tests marked `alone` measure
time, or the machine itself: one process has them all, after everything else, and waits until the others have finished. Each
holds a file's lock for as long as it has tests. Without `-n` nothing here does anything.
"""

from __future__ import annotations

import fcntl
import functools
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.left_running import RUN

_AT_WORK = pytest.StashKey[int]()
"""The lock that a process shares with the others while it has tests; to hold it by itself is to be alone."""
_LONGEST_FIRST = ("stress", "e2e", "bench", "integration", "contract", "unit")
"""Folders by how long their modules take: the run is over sooner when it does not end with a long one."""


class _ByModule(LoadScopeScheduling):
    """Runs in the process that hands out the tests, and knows no more of them than their names."""

    @functools.cached_property
    def _alone(self) -> set[str]:
        return set(_file("alone").read_text().split("\n"))

    def _split_scope(self, nodeid: str) -> str:
        return "alone" if nodeid in self._alone else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # the order is ours
    return _ByModule(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):
        return

    def place(item: pytest.Item) -> tuple[bool, int]:
        folder = item.path.relative_to(config.rootpath / "tests").parts[0]
        return _is_alone(item), _LONGEST_FIRST.index(folder) if folder in _LONGEST_FIRST else 0

    items.sort(key=place)
    # Each process writes the same, and it is read when all have collected.
    _file("alone").write_text("\n".join(item.nodeid for item in items if _is_alone(item)))


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.stash[_AT_WORK] = os.open(_file("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(config.stash[_AT_WORK], fcntl.LOCK_SH)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the timeout: waiting for one's turn is not part of a test
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    lock = item.config.stash.get(_AT_WORK, None)
    if lock is not None and _is_alone(item):
        fcntl.flock(lock, fcntl.LOCK_EX)  # nobody else is at work any more
    return (yield)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    lock = session.config.stash.get(_AT_WORK, None)
    if lock is not None:
        os.close(lock)  # long before the process ends


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        for kind in ("alone", "lock"):
            _file(kind).unlink(missing_ok=True)


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def _file(kind: Literal["alone", "lock"]) -> Path:
    """The names of the tests that are marked, and the lock: of this run, for its processes to share."""
    return Path(tempfile.gettempdir(), f"midstream-tests-{os.environ[RUN]}.{kind}")
