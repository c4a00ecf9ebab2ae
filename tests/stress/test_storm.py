"""A small storm: 500 readers lose their gateway at once. The large one: `python -m tests.stress.storm`."""

from __future__ import annotations

import pytest

from tests.stress.storm import storm

pytestmark = pytest.mark.long


async def test_readers_who_lose_their_gateway_at_once_share_what_the_other_one_reads() -> None:
    figures = await storm(streams=100, readers_of_each=5, tokens=16, rate=4.0)
    assert figures.violations == [], figures
    assert figures.connections >= 2 * figures.readers, "each came back"
