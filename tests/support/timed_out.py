"""A time-out strikes at any instruction, also at one that belongs to no line: pytest cannot show that, and the whole run would end.

CPython 3.11 gives the frames of a coroutine such instructions, and `TracebackEntry.lineno` counts on a number.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[Any]) -> None:
    """Leave out of a failure's traceback, and of those of its causes, what has no line."""
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
    """This entry, or the next one that has a line."""
    while entry is not None and entry.tb_lineno is None:
        entry = entry.tb_next
    return entry
