"""The supervisor, with real child processes that die or do not stop."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from gateway.listening import CAN_SHARE, listen, reserve
from gateway.supervisor import Supervisor
from shared.errors import Unusable
from shared.settings import Settings
from tests.support.needs import needs
from tests.support.system import environment_of
from tests.support.waiting import wait_until

_ROOT = Path(__file__).resolve().parents[2]
_SUPERVISOR = """
import os, sys
from gateway import supervisor
from gateway.listening import reserve
from shared import child_processes
from shared.settings import Settings
from shared.logs import set_up_logging

child_processes.PAUSE_SECONDS_MAX, supervisor._KILL_SECONDS = 0.4, 0.3
set_up_logging("info", "text")
settings = Settings.from_environment(os.environ)
child = [sys.executable, "-S", "-c", sys.argv[1]]
sys.exit(supervisor.Supervisor(settings, 2, reserve(settings), child).run())
"""
_CHILD = """
import os, signal, socket, sys, threading
number, listening, lifeline = int(sys.argv[4]), socket.socket(fileno=int(sys.argv[2])), int(sys.argv[6])
threading.Thread(target=lambda: (os.read(lifeline, 1), os._exit(0)), daemon=True).start()
{before}
listening.listen()
{after}
signal.pause()
"""
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a supervisor of two children that run this program, and end with it as real ones do."""
    needs("a system that spreads connections over processes (Linux)", CAN_SHARE)
    started: list[subprocess.Popen[bytes]] = []

    def start(program: str, drain_seconds: float = 0.1) -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("wb") as log:
            command = [sys.executable, "-c", _SUPERVISOR, program]
            environment = environment_of({"port": 0, "drain_seconds": drain_seconds})
            started.append(subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=log, stderr=log))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()


def logged(tmp_path: Path) -> str:
    return (tmp_path / "log").read_text()


def test_a_child_that_keeps_dying_ends_the_supervisor(start: Start, tmp_path: Path) -> None:
    running = start(_CHILD.format(before="", after="if number == 2: sys.exit(7)"))
    assert running.wait(30) == 1
    output = logged(tmp_path)
    ends = re.findall(r"^\S+ (\S+) ERROR .*process 2 \(pid \d+\) ended with 7$", output, re.MULTILINE)
    assert len(ends) == 10
    assert output.count("process 2 ended 10 times as it started") == 1
    assert "process 1 (pid" not in output
    times = [datetime.strptime(one, "%H:%M:%S,%f").replace(year=2000) for one in ends]
    pauses = [(later - earlier).total_seconds() % 86400 for earlier, later in itertools.pairwise(times)]
    assert pauses[0] >= 0.1
    assert all(pause >= 0.4 for pause in pauses[2:]), pauses


def test_a_child_that_dies_before_any_is_ready_ends_the_supervisor_at_once(start: Start, tmp_path: Path) -> None:
    assert start(_CHILD.format(before="sys.exit(7)", after="")).wait(30) == 1
    assert logged(tmp_path).count("ended with 7") == 1
    assert "is up" not in logged(tmp_path)


def cpu_seconds(pid: int) -> float:
    spent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, spent)) / os.sysconf("SC_CLK_TCK")


async def test_the_supervisor_uses_no_cpu_while_it_waits_for_the_first_child(start: Start, tmp_path: Path) -> None:
    needs("/proc (Linux)", sys.platform == "linux")
    slow_seconds = 3.0
    running = start(_CHILD.format(before=f"import time; time.sleep({slow_seconds} if number == 1 else 0)", after=""))
    await wait_until(lambda: logged(tmp_path).count(" is up ") == 2, within_seconds=20)
    assert cpu_seconds(running.pid) < slow_seconds / 2  # its own imports; else it was busy waiting


@pytest.mark.alone("distinguishes 1.5 s from 3 s")
async def test_all_children_are_stopped_at_the_same_time(start: Start, tmp_path: Path) -> None:
    drains = "import time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1.5), sys.exit(0)))"
    running = start(_CHILD.format(before=drains, after=""), drain_seconds=5)
    await wait_until(lambda: logged(tmp_path).count(" is up ") == 2, within_seconds=20)
    began = time.monotonic()
    running.send_signal(signal.SIGTERM)
    assert running.wait(20) == 0
    assert 1.5 <= time.monotonic() - began < 2.9  # one after the other would take 3 s
    assert "killed" not in logged(tmp_path)


async def test_a_child_that_does_not_stop_is_killed(start: Start, tmp_path: Path) -> None:
    ignores = "if number == 2: signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    running = start(_CHILD.format(before=ignores, after=""))
    await wait_until(lambda: logged(tmp_path).count(" is up ") == 2, within_seconds=20)
    began = time.monotonic()
    running.send_signal(signal.SIGINT)
    assert running.wait(20) == 0
    assert time.monotonic() - began >= 0.4
    assert re.findall(r"process (\d) \(pid \d+\) did not end, and is killed", logged(tmp_path)) == ["2"]


def test_a_socket_that_listens_cannot_be_shared() -> None:
    settings = Settings(port=0)
    with listen(settings) as listening, pytest.raises(Unusable, match="MIDSTREAM_GATEWAY_PROCESSES=1"):
        Supervisor(settings, 2, listening, [])


def test_a_reserved_port_cannot_be_taken_by_another_program() -> None:
    needs("a system that spreads connections over processes (Linux)", CAN_SHARE)
    with reserve(Settings(port=0)) as reserved:
        settings = Settings(port=reserved.getsockname()[1])
        for take in (listen, reserve):
            with pytest.raises(Unusable, match=f"cannot listen on 127.0.0.1:{settings.port}"):
                take(settings)
    listen(settings).close()
