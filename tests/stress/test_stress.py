"""A few short seeds of the stress run. The long ones: `make stress SEED=... MINUTES=10`."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest

from tests.stress.fleet import RedisKind
from tests.stress.run import Stress

pytestmark = pytest.mark.long

_SECONDS, _FAILOVER_SECONDS = 8.0, 5.0
_SETTLING_SECONDS_MAX = 120.0


@pytest.fixture(autouse=True)
def closed_clients() -> Iterator[None]:
    """Ends what redis-py's clients have left open of servers that failed over: else the next test is told of it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.timeout(_SECONDS + _SETTLING_SECONDS_MAX)
@pytest.mark.parametrize(("redis", "seed"), [("one", 1), ("one", 2), ("cluster", 5), ("sentinel", 4)])
async def test_faults_lose_no_token_double_none_and_leave_no_reader_waiting(redis: RedisKind, seed: int) -> None:
    stress = Stress(seed, _SECONDS if redis == "one" else _FAILOVER_SECONDS, at_once=16, redis=redis)
    assert await stress.run(), f"seed {seed}: {stress.report}"
    assert stress.counts["readers"]
    assert stress.faults
