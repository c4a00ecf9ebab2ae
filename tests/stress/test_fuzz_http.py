"""A few seconds of mutated HTTP. The long run: `python -m tests.stress.fuzz_http --seconds 1800 --seed 7`."""

from __future__ import annotations

from tests.stress.fuzz_http import fuzz

_SEED = 1


async def test_hostile_bytes_affect_only_their_own_connection() -> None:
    wrong = await fuzz(4.0, _SEED)
    assert not wrong, f"seed {_SEED}: {wrong}"
