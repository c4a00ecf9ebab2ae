"""What processes use, read from /proc (Linux). A pid stands for the process and its descendants."""

from __future__ import annotations

import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time since the start in seconds (to 10 ms), and memory now in KB. `pss` divides shared pages among their users."""

    cpu_seconds: float = 0.0
    rss_kb: int = 0
    pss_kb: int = 0
    uss_kb: int = 0
    writes: int = 0
    """write() and writev() calls (/proc/PID/io syscw; send() is not among them)."""


def usage(pid: int) -> Usage:
    """Returns the usage of a process and its descendants. Raises OSError if /proc does not show it."""
    total = Usage()
    for member in tree(pid):
        try:
            total = _add(total, _usage_of(member))
        except FileNotFoundError:
            if member == pid:
                raise
    return total


def tree(pid: int) -> list[int]:
    """Returns a process and its descendants, oldest first."""
    found = [pid]
    for parent in found:
        for children in sorted(_PROC.glob(f"{parent}/task/*/children")):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process and its descendants, in seconds; cheaper than `usage`."""
    return sum(_cpu_of(member) for member in tree(pid) if (_PROC / str(member)).exists())


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
    """Binds a process, its threads and its descendants to these cores. None: leaves them as they are."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        return
    for member in tree(pid):
        for thread in _PROC.glob(f"{member}/task/*"):
            try:
                os.sched_setaffinity(int(thread.name), cores)
            except ProcessLookupError:
                continue


def raise_open_files_limit() -> None:
    """Lets this process and its children open as many files as the system allows: each reader is one."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def listener_of(port: int) -> int | None:
    """Returns the local process that listens on a TCP port (the lowest pid of several); None if /proc does not show it."""
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
    """Returns what a reader of the figures must know of this machine."""
    try:
        model = re.findall(r"^model name\s*:\s*(.+)$", (_PROC / "cpuinfo").read_text(), re.MULTILINE)[:1]
    except OSError:
        model = []
    system = os.uname()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return {
        "system": f"{system.sysname} {system.release} {system.machine}",
        "processor": model[0] if model else "unknown",
        "cores": cores,
        "load_average": os.getloadavg(),
    }
