"""Spreads a run over several pytest processes, and implements `@pytest.mark.alone`: no other test runs meanwhile.

With `-n 7 --dist loadfile` all tests of a module run in one process, which starts the module's fixtures once. Tests marked
`alone` measure time or the machine. One process runs all of them after everything else, and waits until the others have
finished: each process holds a lock on a file as long as it has tests. Without `-n` this plugin does nothing.
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
"""The lock that each process shares while it has tests; who holds it exclusively is alone."""
_LONGEST_FIRST = ("stress", "e2e", "bench", "integration", "contract", "unit")
"""Folders by the duration of their modules: a run takes longer if a long module comes last."""


class _ByModule(LoadScopeScheduling):
    """The scheduler. It runs in the process that distributes the tests, and knows only their names."""

    @functools.cached_property
    def _alone(self) -> set[str]:
        return set(_file("alone").read_text().split("\n"))

    def _split_scope(self, nodeid: str) -> str:
        return "alone" if nodeid in self._alone else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # keeps our order
    return _ByModule(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):
        return

    def place(item: pytest.Item) -> tuple[bool, int]:
        folder = item.path.relative_to(config.rootpath / "tests").parts[0]
        return _is_alone(item), _LONGEST_FIRST.index(folder) if folder in _LONGEST_FIRST else 0

    items.sort(key=place)
    # Each process writes the same text. It is read after all have collected their tests.
    _file("alone").write_text("\n".join(item.nodeid for item in items if _is_alone(item)))


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.stash[_AT_WORK] = os.open(_file("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(config.stash[_AT_WORK], fcntl.LOCK_SH)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the timeout: waiting for the lock is not part of a test
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    lock = item.config.stash.get(_AT_WORK, None)
    if lock is not None and _is_alone(item):
        fcntl.flock(lock, fcntl.LOCK_EX)  # no other process has tests any more
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
    """Returns the path of a file that this run's processes share: the names of the marked tests, or the lock."""
    return Path(tempfile.gettempdir(), f"midstream-tests-{os.environ[RUN]}.{kind}")
