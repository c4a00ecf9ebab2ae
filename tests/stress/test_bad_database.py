"""A bad database under load for some seconds. Ten minutes: `python -m tests.stress.bad_database`."""

from __future__ import annotations

import asyncio

import pytest

from tests.stress.bad_database import Archive, BadDatabase, SmallDisk, Trouble
from tests.support.needs import needs
from tests.support.postgres import postgres_programs

_TROUBLES: dict[Archive, tuple[Trouble, ...]] = {"sqlite": ("full",), "postgresql": ("full", "slow")}
"""A killed one takes longer to be there again; and `tests.stress.run` kills it, too."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("archive", list(_TROUBLES))
async def test_no_end_is_lost_or_doubled_and_answers_go_on(archive: Archive) -> None:
    """Processes mostly wait: so the troubles of one kind of database come at the same time."""
    if archive == "postgresql":
        needs("PostgreSQL", postgres_programs())
    needs("the right to mount a small disk", SmallDisk.is_possible())
    runs = [BadDatabase(archive, trouble, 2.0) for trouble in _TROUBLES[archive]]
    await asyncio.gather(*(run.run() for run in runs))
    for run in runs:
        assert not run.problems, [run.summary(), *run.problems]
        assert run.longest_seconds < 5.0
