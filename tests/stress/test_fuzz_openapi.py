"""Some seconds of requests made from /openapi.json. The long run: `python -m tests.stress.fuzz_openapi --seconds 600 --seed 7`."""

from __future__ import annotations

import pytest

from tests.stress.fuzz_openapi import PROGRAM, fuzz, program
from tests.support.needs import needs

pytestmark = pytest.mark.long

_SEED = 1


async def test_no_answer_that_the_document_does_not_have() -> None:
    needs(f"{PROGRAM} (pip install {PROGRAM}, in an environment of its own)", program())
    wrong = await fuzz(60.0, _SEED)
    assert not wrong, f"seed {_SEED}: {wrong}"
