"""A small version of `python -m tests.stress.worker_memory`."""

from __future__ import annotations

from tests.stress.worker_memory import measure

_GROWTH_MEGABYTES_MAX = 20.0
"""Room for what the allocator keeps, in MB: 2 on a quiet machine, 14 beside busy tests. A worker that kept these answers would grow by 45 each time."""


async def test_a_worker_frees_ended_answers() -> None:
    small = {"tokens": 1000}
    large = {"tokens": 64, "token_characters": 16_384}
    _idle, warm, after_small, after_large = await measure([(24, small), (80, small), (12, large)])
    assert after_small - warm < _GROWTH_MEGABYTES_MAX, (warm, after_small)
    assert after_large - warm < _GROWTH_MEGABYTES_MAX, (warm, after_large)
