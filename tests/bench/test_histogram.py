"""Latencies in buckets: the loss of precision is limited, and counts are exact."""

from __future__ import annotations

import random

import orjson
import pytest

from bench.histogram import Histogram, bucket_of, top_of


def test_buckets_follow_each_other_and_are_narrow() -> None:
    before = -1
    for value in [*range(2000), *(1 << power for power in range(11, 36)), (1 << 36) - 1]:
        bucket = bucket_of(value)
        assert bucket >= before
        assert value <= top_of(bucket) <= value * (1 + 1 / 128) + 1
        before = bucket
    assert before < 4096


def test_values_out_of_range_count_in_the_outermost_bucket() -> None:
    assert bucket_of(-5) == 0
    assert bucket_of(1 << 60) == bucket_of((1 << 36) - 1)


@pytest.mark.parametrize("seed", range(5))
def test_quantiles_are_those_of_the_sorted_values_to_within_a_bucket(seed: int) -> None:
    dice = random.Random(seed)
    values = sorted(int(dice.lognormvariate(6, 2)) for _ in range(5000))
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    for share in (0.01, 0.5, 0.9, 0.99, 0.999, 1.0):
        exact = values[max(0, -int(-share * len(values) // 1) - 1)]
        assert exact <= histogram.quantile(share) <= exact * (1 + 1 / 128) + 1, f"seed {seed}, {share}"
    assert histogram.most == values[-1] == histogram.quantile(1.0)


def test_merged_histograms_equal_one_of_all_values() -> None:
    one, other, both = Histogram(), Histogram(), Histogram()
    for value in range(0, 100_000, 7):
        (one if value % 2 else other).record(value)
        both.record(value)
    sent = orjson.loads(orjson.dumps(other.stored()))
    one.merge(Histogram.load(sent))
    assert one.stored() == both.stored()
    assert one.count == both.count


def test_adding_many_values_at_once_and_an_empty_histogram() -> None:
    histogram = Histogram()
    assert histogram.milliseconds()["p99_ms"] == 0
    counted = {1000: 99, 250_000: 1}
    histogram.take(counted)
    assert counted == {}
    assert histogram.milliseconds() == {
        "p50_ms": pytest.approx(1.0, rel=0.01),
        "p90_ms": pytest.approx(1.0, rel=0.01),
        "p99_ms": pytest.approx(1.0, rel=0.01),
        "p999_ms": 250.0,
        "max_ms": 250.0,
    }
