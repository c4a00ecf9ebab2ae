"""The memory of another process: its size, and a limit for it."""

from __future__ import annotations

import re
import resource
from pathlib import Path

ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
"""The environment of a process whose memory is to be limited: otherwise each of its threads maps 64 MB for small objects."""
_STACKS_MEGABYTES = 8 * 8
"""The stacks of threads that start later: name lookups have six."""


def resident_megabytes(pid: int) -> float:
    """Returns a process's resident memory in MB; 0 once it has ended."""
    return _megabytes(pid, "VmRSS")


def limit_memory(pid: int, megabytes: int) -> None:
    """Limits the memory that the process may use from now on, beside what its libraries map.

    RLIMIT_AS limits addresses. A Python process has far more of them than resident memory, so the difference is added. The
    process must have been started with `ONE_ARENA`.
    """
    mapped = _megabytes(pid, "VmSize") - resident_megabytes(pid) + _STACKS_MEGABYTES
    most = int(mapped + megabytes) << 20
    resource.prlimit(pid, resource.RLIMIT_AS, (most, most))


def _megabytes(pid: int, field: str) -> float:
    status = Path(f"/proc/{pid}/status")
    found = re.search(rf"{field}:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else 0.0
