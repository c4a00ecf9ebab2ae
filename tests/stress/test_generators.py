"""A few short runs with generators of a user's own. The long ones: `python -m tests.stress.tool_loop`, `…stop_generators`."""

from __future__ import annotations

import pytest

from tests.stress.stop_generators import SECONDS_MAX, Stops
from tests.stress.tool_loop import ToolLoops


@pytest.mark.timeout(90)
async def test_no_tool_runs_again_once_its_result_is_noted() -> None:
    loops = ToolLoops(seed=1, times=10)
    await loops.run()
    assert loops.counts["streams"] == 10
    assert loops.counts["kills"]
    assert loops.counts["restarts"]


@pytest.mark.timeout(60)
async def test_a_stop_reaches_the_generator_within_a_second() -> None:
    stops = Stops(seed=1, times=20)
    await stops.run()
    assert all(stops.seconds.values())
    assert stops.p99_seconds <= SECONDS_MAX + 2, "the long run has a closer bound, on a machine of its own"
