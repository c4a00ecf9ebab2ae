"""What processes used, read from outside: /proc on Linux. A process stands for itself and its children."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU since its start, in seconds (to 10 ms), and memory now, in KB. `pss` shares shared pages among their users."""

    cpu_seconds: float = 0.0
    rss_kb: int = 0
    pss_kb: int = 0
    uss_kb: int = 0
    writes: int = 0
    """write() and writev() calls (/proc/PID/io syscw; send() is not among them)."""


def usage(pid: int) -> Usage:
    """Of a process and all its descendants. Raises OSError where /proc tells nothing."""
    total = Usage()
    for one in tree(pid):
        try:
            total = _add(total, _usage_of(one))
        except FileNotFoundError:
            if one == pid:
                raise
    return total


def tree(pid: int) -> list[int]:
    """A process and its descendants, oldest first."""
    found = [pid]
    for one in found:
        for children in sorted(_PROC.glob(f"{one}/task/*/children")):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found


def cpu_seconds(pid: int) -> float:
    """The cheap part of `usage`, for windows of time."""
    return sum(_cpu_of(one) for one in tree(pid) if (_PROC / str(one)).exists())


def _cpu_of(pid: int) -> float:
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def _usage_of(pid: int) -> Usage:
    home = _PROC / str(pid)
    rollup = _numbers((home / "smaps_rollup").read_text())
    try:
        writes = _numbers((home / "io").read_text()).get("syscw", 0)
    except PermissionError:
        writes = 0
    private = rollup.get("Private_Clean", 0) + rollup.get("Private_Dirty", 0)
    return Usage(_cpu_of(pid), rollup.get("Rss", 0), rollup.get("Pss", 0), private, writes)


def _numbers(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+)", text, re.MULTILINE)}


def _add(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.cpu_seconds + other.cpu_seconds,
        one.rss_kb + other.rss_kb,
        one.pss_kb + other.pss_kb,
        one.uss_kb + other.uss_kb,
        one.writes + other.writes,
    )


def pin(pid: int, cores: set[int] | None) -> None:
    """Let a process, all its threads and its children run on these cores alone. None: wherever they like."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        return
    for one in tree(pid):
        for thread in _PROC.glob(f"{one}/task/*"):
            try:
                os.sched_setaffinity(int(thread.name), cores)
            except ProcessLookupError:
                continue


def listener_of(port: int) -> int | None:
    """The process of this machine that listens on a TCP port, the oldest if there are several; None if that cannot be seen."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            rows = [line.split() for line in (_PROC / "net" / table).read_text().splitlines()[1:]]
        except OSError:
            continue
        inodes |= {
            f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port
        }
    pids = []
    for home in _PROC.glob("[0-9]*"):
        try:
            if inodes & {os.readlink(fd) for fd in (home / "fd").iterdir()}:
                pids.append(int(home.name))
        except OSError:
            continue
    return min(pids, default=None)


def machine() -> dict[str, object]:
    """What a figure cannot be read without."""
    try:
        model = re.findall(r"^model name\s*:\s*(.+)$", (_PROC / "cpuinfo").read_text(), re.MULTILINE)[:1]
    except OSError:
        model = []
    about = os.uname()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return {
        "system": f"{about.sysname} {about.release} {about.machine}",
        "processor": model[0] if model else "unknown",
        "cores": cores,
        "load_average": os.getloadavg(),
    }
