"""A fork of the tests' fork server behaves as the same `python -m` that is started anew."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.fork_server import Fork
from tests.support.needs import needs
from tests.support.system import Process


@pytest.fixture(autouse=True)
def _linux() -> None:
    needs("Linux, where the tests fork", sys.platform == "linux")


@pytest.mark.parametrize(
    ("module", "settings", "arguments", "code"),
    [
        ("gateway", {}, ["--version"], 0),
        ("producer", {}, ["--no-such-option"], 2),
        ("gateway", {"lease_seconds": "none"}, [], 1),
        ("tests.support.waiting", {}, [], 0),
    ],
)
async def test_output_and_exit_code(
    tmp_path: Path, module: str, settings: dict[str, object], arguments: Sequence[str], code: int
) -> None:
    printed = []
    for anew in (False, True):
        process = Process(module, settings, tmp_path / f"{anew}.log", arguments, anew=anew)
        process.start()
        assert isinstance(process._popen, Fork) is not anew
        assert await process.exit_code() == code
        printed.append(process.logged())
    assert printed[0] == printed[1]


async def test_its_end_by_a_signal_is_known(tmp_path: Path) -> None:
    waiting = {"redis_url": f"unix://{tmp_path}/nobody.sock", "redis_start_seconds": 60}
    worker = Process("producer", waiting, tmp_path / "worker.log")
    for number in (signal.SIGKILL, signal.SIGTERM):
        worker.start()
        assert worker.runs
        worker.send(number)
        assert await worker.exit_code() == -number
        assert not worker.runs
