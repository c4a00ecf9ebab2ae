"""A clock that tests wind by hand."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest


@pytest.fixture
def wind(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the monotonic clock, which stands still else, forward by so many seconds."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def wind(seconds: float) -> None:
        nonlocal now
        now += seconds

    return wind
