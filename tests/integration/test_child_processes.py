"""Child processes: how their ends are described, when they are started again, and how they are ended together."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from shared.child_processes import PAUSE_SECONDS, PAUSE_SECONDS_MAX, Child, end_all, how_it_ended

_WAITS = "import signal; print('ready', flush=True); signal.pause()"
_IGNORES_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {_WAITS}"


def pause_seconds(child: Child) -> float:
    return child.due_at - time.monotonic()


def test_a_child_that_keeps_ending_early_waits_longer_each_time_up_to_a_maximum() -> None:
    child, process = Child(), subprocess.Popen(["true"])
    process.wait()
    pauses = []
    for _ in range(2000):  # more doublings than a float can hold
        child.started(process)
        child.ended()
        pauses.append(pause_seconds(child))
    assert PAUSE_SECONDS * 0.5 < pauses[0] <= PAUSE_SECONDS
    assert PAUSE_SECONDS * 1.5 < pauses[1] <= PAUSE_SECONDS * 2
    assert PAUSE_SECONDS_MAX * 0.9 < pauses[-1] <= PAUSE_SECONDS_MAX
    assert child.early_ends == 2000

    child.started(process)
    child.started_at -= 3600
    child.ended()
    assert pause_seconds(child) <= 0
    assert child.early_ends == 0

    child.started(process)
    child.started_at -= 3600
    child.ended(during_start=True)  # that took an hour, but it was never ready
    assert pause_seconds(child) > 0


def test_an_end_is_described_by_its_code_or_its_signal() -> None:
    assert how_it_ended(subprocess.run(["false"], check=False).returncode) == "ended with 1"
    assert how_it_ended(-signal.SIGKILL) == "was ended by SIGKILL"


def test_processes_are_ended_together_and_those_that_do_not_end_are_killed() -> None:
    willing, stubborn = (
        subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE)
        for program in (_WAITS, _IGNORES_SIGTERM)
    )
    try:
        for process in (willing, stubborn):
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        assert end_all([stubborn, willing], within_seconds=0.3, first_signal=signal.SIGTERM) == [stubborn]
        assert (willing.returncode, stubborn.returncode) == (-signal.SIGTERM, -signal.SIGKILL)
    finally:
        for process in (willing, stubborn):
            process.kill()
            process.communicate()
