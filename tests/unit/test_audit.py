"""How many audit lines refused requests may make: so many of one address, so many of all, and what is left out is counted."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable

import pytest

from gateway.http.addresses import client_address
from gateway.http.audit import Refusals
from shared.logs import set_up_logging


def test_a_stranger_cannot_fill_the_log(wind: Callable[[float], None], capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    refusals = Refusals()

    def refused(address: str, times: int) -> list[int]:
        """Returns the numbers of refusals left out, of each line that is written."""
        before = client_address.set(ipaddress.ip_address(address))
        for _ in range(times):
            refusals.note("credential_refused", route="GET /")
        client_address.reset(before)
        written = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        assert all(line["address"] == address for line in written)
        return [line.get("left_out", 0) for line in written]

    assert refused("192.0.2.1", 1000) == [0] * 10
    assert refused("192.0.2.2", 1) == [990], "one address leaves room for another"
    for host in range(3, 200):
        refused(f"192.0.2.{host}", 10)
    assert refused("198.51.100.1", 5) == [], "all together have a limit, too"
    wind(59)
    assert refused("198.51.100.1", 1) == []
    wind(2)
    assert refused("192.0.2.1", 1) == [197 * 10 + 6 - (60 - 11)]
