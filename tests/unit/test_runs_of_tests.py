"""Plugins of the test run, tried on small runs of pytest: processes left running, and tests marked `alone`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.needs import needs

_ROOT = Path(__file__).resolve().parents[2]
_RUN_SECONDS_MAX = 60.0
_CONFTEST = """
from tests.support import waiting
waiting.GO_SECONDS_MAX = 0.2
pytest_plugins = ["tests.support.left_running", "tests.support.alone", "tests.support.timed_out"]
"""
_LEAVES = """
import subprocess

def test_that_cleans_up():
    subprocess.Popen(["sleep", "60"]).kill()

def test_that_leaves_one_behind():
    subprocess.run("sleep 60 >/dev/null 2>&1 &", shell=True, check=True)  # whose parent is gone at once
"""
_HAS_NO_LINE = """
def fail():
    assert 1 == 2

fail.__code__ = fail.__code__.replace(co_linetable=b"")

def test_that_fails_nowhere():
    fail()
"""
_RECORDS = """
import os, pathlib, time, pytest

@pytest.mark.parametrize("number", range(4))
@pytest.mark.{mark}
def test_it(number):
    began = time.monotonic()
    while time.monotonic() < began + 0.1:
        pass
    path = pathlib.Path(__file__).with_name(f"{mark}-{{os.getpid()}}-{{number}}.times")
    path.write_text(f"{{began}} {{time.monotonic()}}")
"""


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the tests of a directory with the plugins of this test run."""
    (directory / "tests").mkdir(exist_ok=True)
    (directory / "conftest.py").write_text(_CONFTEST)
    (directory / "pytest.ini").write_text(f"[pytest]\npythonpath = {_ROOT}\nmarkers =\n    alone\n    ordinary\n")
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "no:cacheprovider", "--rootdir", str(directory)]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # the other plugins take a second to import
    return subprocess.run(
        [*command, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_RUN_SECONDS_MAX,
    )


@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_process_that_is_left_behind_fails_the_run(tmp_path: Path, processes: str) -> None:
    needs("/proc (Linux)", sys.platform == "linux")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_leaves.py").write_text(_LEAVES)
    done = run(tmp_path, "-n", processes, "--dist", "loadfile")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "(sleep 60), which tests/test_leaves.py::test_that_leaves_one_behind started, still ran" in done.stdout
    assert "2 passed, 1 error" in done.stdout.splitlines()[-1]
    found = re.search(r"process (\d+) \(sleep 60\)", done.stdout)
    assert found
    stat = Path(f"/proc/{found[1]}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z", "it was killed"


def test_a_failure_at_an_instruction_without_a_line_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_lines.py").write_text(_HAS_NO_LINE + "\ndef test_the_next():\n    pass\n")
    done = run(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout.splitlines()[-1]


def test_tests_marked_alone_run_last_and_alone(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for number in range(4):
        mark = "alone" if number < 2 else "ordinary"
        directory = tmp_path / "tests" / str(number)
        directory.mkdir()
        (directory / f"test_{number}.py").write_text(_RECORDS.format(mark=mark))
    done = run(tmp_path, "-n", "3", "--dist", "loadfile")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 passed" in done.stdout.splitlines()[-1]
    times: dict[str, list[tuple[float, float]]] = {"alone": [], "ordinary": []}
    assert len({path.name.split("-")[1] for path in tmp_path.rglob("alone-*.times")}) == 1, "one process has them all"
    for path in tmp_path.rglob("*.times"):
        began, ended = map(float, path.read_text().split())
        times[path.name.split("-")[0]].append((began, ended))
    alone = sorted(times["alone"])
    assert len(alone) == len(times["ordinary"]) == 8
    assert all(before[1] <= after[0] for before, after in pairwise(alone))
    assert max(ended for _, ended in times["ordinary"]) <= alone[0][0]
