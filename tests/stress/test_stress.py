"""A few short seeds of the stress run. The long ones: `make stress SEED=... MINUTES=10`."""

from __future__ import annotations

import pytest

from tests.stress.run import Stress

_SECONDS = 8.0
_SETTLING_SECONDS_MAX = 120.0


@pytest.mark.timeout(_SECONDS + _SETTLING_SECONDS_MAX)
@pytest.mark.parametrize("seed", [1, 2])
async def test_faults_lose_no_token_double_none_and_leave_no_reader_waiting(seed: int) -> None:
    stress = Stress(seed, _SECONDS, at_once=16)
    assert await stress.run(), f"seed {seed}: {stress.report}"
    assert stress.counts["readers"]
    assert stress.faults
