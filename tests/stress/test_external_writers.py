"""A few external writers that are killed, frozen, doubled and stopped. The long run: `python -m tests.stress.external_writers`."""

from __future__ import annotations

import pytest

from tests.stress.external_writers import LEASE_SECONDS, ExternalWriters, p99

pytestmark = pytest.mark.long


@pytest.mark.timeout(90)
async def test_a_writer_that_dies_is_noticed_and_nothing_is_doubled() -> None:
    writers = ExternalWriters(seed=1, times=5, stops=8)
    await writers.run()
    assert writers.counts == {"killed": 5, "frozen": 5, "double": 5}
    assert min(writers.lost_seconds) > LEASE_SECONDS / 2
    assert max(writers.lost_seconds) < LEASE_SECONDS + 2, "the long run has a closer bound, on a machine of its own"
    assert p99(writers.stop_seconds) < 2
