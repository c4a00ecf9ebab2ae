"""Lets pytest report a time-out at an instruction that has no line number, which would otherwise end the whole run.

CPython 3.11 gives the frames of a coroutine such instructions, and `TracebackEntry.lineno` counts on a number.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[Any]) -> None:
    """Removes entries without a line from a failure's traceback, and from those of its causes."""
    error = call.excinfo.value if call.excinfo is not None else None
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        entry = error.__traceback__
        while entry is not None:
            entry.tb_next = _with_line(entry.tb_next)
            entry = entry.tb_next
        error = error.__cause__ or error.__context__


def _with_line(entry: TracebackType | None) -> TracebackType | None:
    """Returns this entry, or the next one that has a line."""
    while entry is not None and entry.tb_lineno is None:
        entry = entry.tb_next
    return entry
