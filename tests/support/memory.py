"""The memory of another process: its size, and a limit for it."""

from __future__ import annotations

import re
import resource
from pathlib import Path


def resident_megabytes(pid: int) -> float:
    """Returns the process's resident memory; 0 once it has ended."""
    return _megabytes(pid, "VmRSS")


def limit_memory(pid: int, megabytes: int) -> None:
    """Have it ask for so much at most: what its libraries map and do not use is allowed for.

    RLIMIT_AS counts addresses, of which a Python process that has just started has far more than memory.
    """
    mapped = _megabytes(pid, "VmSize") - resident_megabytes(pid)
    most = int(mapped + megabytes) << 20
    resource.prlimit(pid, resource.RLIMIT_AS, (most, most))


def _megabytes(pid: int, field: str) -> float:
    status = Path(f"/proc/{pid}/status")
    found = re.search(rf"{field}:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else 0.0
