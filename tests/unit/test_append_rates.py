"""How often a principal and a stream may be appended to."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from gateway.access import append_rates
from gateway.access.append_rates import AppendRates
from gateway.http.principal import ANONYMOUS, Principal, principal
from gateway.http.problems import Problem
from shared.settings import Settings


def taken(rates: AppendRates, stream_id: str, count: int) -> int:
    """Returns how many of so many appends are taken at once."""
    number = 0
    for _ in range(count):
        try:
            rates.take(stream_id)
        except Problem:
            continue
        number += 1
    return number


def test_without_limits_nothing_is_counted() -> None:
    rates = AppendRates(Settings())
    assert taken(rates, "a", 10_000) == 10_000
    assert not rates._full_at


def test_so_many_at_once_then_one_whenever_its_share_has_passed(wind: Callable[[float], None]) -> None:
    rates = AppendRates(Settings(limit_stream_appends_per_second=10))
    assert taken(rates, "a", 15) == 10
    assert taken(rates, "b", 15) == 10, "another stream has a bucket of its own"
    wind(0.1)
    assert taken(rates, "a", 15) == 1
    wind(0.55)
    assert taken(rates, "a", 15) == 5
    wind(100)
    assert taken(rates, "a", 15) == 10, "no more than a second is saved up"


def test_a_principal_has_one_bucket_for_all_streams(wind: Callable[[float], None]) -> None:
    rates = AppendRates(Settings(limit_appends_per_second=10, limit_stream_appends_per_second=8))
    assert (taken(rates, "a", 15), taken(rates, "b", 15)) == (8, 2)
    token = principal.set(Principal("key:other", ANONYMOUS.scopes))
    try:
        assert taken(rates, "b", 15) == 6, "the stream's bucket is everybody's, and what was refused took nothing of it"
    finally:
        principal.reset(token)


def test_the_refusal_says_which_limit_it_is(wind: Callable[[float], None]) -> None:
    rates = AppendRates(Settings(limit_stream_appends_per_second=2))
    taken(rates, "a", 2)
    with pytest.raises(Problem) as refused:
        rates.take("a")
    assert refused.value.status == 429
    assert refused.value.headers()["ratelimit-policy"] == '"appends";q=2;w=1;qu="requests"'
    assert "2 appends a second may be made to one stream" in refused.value.detail


async def test_a_long_body_waits() -> None:
    rates = AppendRates(Settings(limit_stream_appends_per_second=50))
    began_at = time.monotonic()
    for _ in range(60):
        await rates.wait("a")
    assert 0.15 < time.monotonic() - began_at < 3


def test_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_rates, "_BUCKETS_MAX", 5)
    rates = AppendRates(Settings(limit_stream_appends_per_second=2))
    for number in range(9):
        rates.take(f"stream {number}")
    assert [name for _, name in rates._full_at] == [f"stream {number}" for number in range(4, 9)]
