"""A gateway that starts bears a connection to Redis that breaks off meanwhile."""

from __future__ import annotations

from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from gateway.api import readiness
from shared.errors import Disconnected
from shared.settings import Settings


async def test_a_start_asks_again_after_a_connection_that_broke_off(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = AsyncMock(side_effect=[Disconnected("lost"), "noeviction"])
    replaced: dict[str, Any] = {
        "until_up": AsyncMock(),
        "check_grants": AsyncMock(),
        "Subscription": Mock(),
        "eviction_policy": policy,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(readiness, name, value)
    await readiness.Readiness(Mock(), Settings()).start()
    assert policy.await_count == 2
