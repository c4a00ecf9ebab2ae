"""Fails a test run if a process that it has started still runs at its end.

All processes of a run inherit an environment variable with a value unique to the run, however often they fork and whichever
their parent is by then. At the end /proc is searched for it. A process that is found is killed, named with the test that
started it, and makes the run fail; a fork (tests/support/fork_server.py) is named with the first test that needed one. Not
covered: macOS, and processes started with an empty environment.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.waiting import what_stays

RUN = "TEST_RUN_OF_MIDSTREAM"
"""Not MIDSTREAM_...: such variables are settings, which tests remove from the environment of what they start."""
_PYTHONS_OWN = "from multiprocessing.resource_tracker import main"
"""Ends with the process that needed it, which without xdist is this one."""


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # else the value is inherited
        os.environ[RUN] = f"{os.getpid()}-{secrets.token_hex(8)}"


@pytest.hookimpl(trylast=True)  # after xdist has ended its processes
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput") or sys.platform != "linux":
        return
    left = what_stays(lambda: processes_of(os.environ[RUN]))
    if not left:
        return
    for process in left:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    report = pytest.TestReport(
        nodeid="no process is left behind",
        location=("tests/support/left_running.py", None, "no process is left behind"),
        keywords={},
        outcome="failed",
        longrepr="\n".join(f"{process} still ran at the end of the run" for process in left),
        when="teardown",
    )
    session.config.hook.pytest_runtest_logreport(report=report)
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@dataclass(frozen=True)
class Left:
    """A process that still runs."""

    pid: int
    command: str
    test: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command}), which {self.test or 'no test'} started,"


def processes_of(run: str) -> list[Left]:
    """Returns the processes whose environment has this run's value, without the caller."""
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdecimal() or int(directory.name) == os.getpid():
            continue
        with suppress(OSError):  # it has ended, or is another user's
            variables = dict(
                variable.split("=", 1)
                for variable in os.fsdecode((directory / "environ").read_bytes()).split("\0")
                if "=" in variable
            )
            if variables.get(RUN) != run:
                continue
            command = os.fsdecode((directory / "cmdline").read_bytes()).replace("\0", " ").strip()
            if _PYTHONS_OWN in command:
                continue
            test = variables.get("PYTEST_CURRENT_TEST", "").partition(" (")[0]
            found.append(Left(int(directory.name), command[:200], test))
    return found
