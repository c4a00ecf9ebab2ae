"""A bad database under load for some seconds. Ten minutes: `python -m tests.stress.bad_database`."""

from __future__ import annotations

import pytest

from tests.stress.bad_database import Archive, BadDatabase, SmallDisk, Trouble
from tests.support.needs import needs
from tests.support.postgres import postgres_programs

pytestmark = pytest.mark.long


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("archive", "trouble"), [("sqlite", "full"), ("postgresql", "full"), ("postgresql", "slow")])
async def test_no_end_is_lost_or_doubled_and_answers_go_on(archive: Archive, trouble: Trouble) -> None:
    if archive == "postgresql":
        needs("PostgreSQL", postgres_programs())
    if trouble == "full":
        needs("the right to mount a small disk", SmallDisk.is_possible())
    run = BadDatabase(archive, trouble, 2.0)
    await run.run()
    assert not run.problems, [run.summary(), *run.problems]
    assert run.longest_seconds < 5.0
