"""A principal's own limits take the place of the settings'; nonsense in a key's record has no effect."""

from __future__ import annotations

import pytest

from gateway.access.limits import OwnLimits
from shared.accounts import OWN_LIMITS
from shared.settings import Settings

SETTINGS = Settings(**dict.fromkeys(OWN_LIMITS, 7))  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", OWN_LIMITS)
@pytest.mark.parametrize(
    ("own", "counts"),
    [(3, 3), (3.0, 3), (0, 0), (None, 7), (-1, 7), ("3", 7), (float("inf"), 7), (float("nan"), 7), ([], 7)],
)
def test_own_limits_win(limit: str, own: object, counts: int) -> None:
    limits = OwnLimits(SETTINGS, lambda name: {limit: own} if name == "ann" else {})
    assert limits.of("ann")[limit] == counts
    assert limits.of("bob")[limit] == 7
    assert [limits.of("ann")[other] for other in OWN_LIMITS if other != limit] == [7] * 4
