"""A few seconds of `python -m tests.stress.fuzz_provider`."""

from __future__ import annotations

import pytest

from tests.stress.fuzz_provider import Fuzz

pytestmark = pytest.mark.long

_SECONDS = 5.0


@pytest.mark.timeout(150)
@pytest.mark.parametrize("seed", [1])
async def test_a_hostile_provider_affects_only_its_own_answers(seed: int) -> None:
    fuzz = Fuzz(seed, _SECONDS)
    assert await fuzz.run(), f"seed {seed}: {fuzz.report}"
    assert sum(fuzz.ends.values()) >= 8
    assert set(fuzz.ends) == {"done", "failed"}
