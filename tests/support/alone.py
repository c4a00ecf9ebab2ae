"""How a run of several pytest processes is spread, and what `@pytest.mark.alone` means: no other test runs meanwhile.

With `-n 5 --dist loadgroup` each module is one process's, which starts its fixtures once. Tests marked `alone` measure
time, or the machine itself: one process has them all, after everything else, and waits until the others have finished. Each
holds a file's lock for as long as it has tests. Without `-n` nothing here does anything.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.left_running import RUN

_GROUP = "alone"
_AT_WORK = pytest.StashKey[int]()
"""The lock that a process shares with the others while it has tests; to hold it by itself is to be alone."""
_LONGEST_FIRST = ("stress", "e2e", "bench", "integration", "contract", "unit")
"""Folders by how long their modules take: the run is over sooner when it does not end with a long one."""


class _ByModule(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return _GROUP if nodeid.endswith(f"@{_GROUP}") else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    if config.getoption("dist") != "loadgroup":
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
    for item in items:
        if _is_alone(item):
            item.add_marker(pytest.mark.xdist_group(_GROUP))  # which puts @alone behind its name


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.stash[_AT_WORK] = os.open(_lock_path(), os.O_RDWR | os.O_CREAT, 0o600)
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
        _lock_path().unlink(missing_ok=True)


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def _lock_path() -> Path:
    return Path(tempfile.gettempdir(), f"midstream-tests-{os.environ[RUN]}.lock")
