"""What the end-to-end tests share: a system per module where no test breaks it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.system import System


@pytest.fixture
def system(running: System) -> Iterator[System]:
    """The module's system (its own fixture `running`); after each test, no process may have logged a trace."""
    yield running
    print(running.tails())  # shown when the test fails
    running.assert_no_complaints()
