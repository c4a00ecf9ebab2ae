"""A histogram with log-linear buckets: bounded memory and a bounded relative error for any value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_SUB_BITS = 7
_SUB = 1 << _SUB_BITS
"""Buckets per power of two: a value is known to within 1/128 of itself, 0.8 %."""
_MOST = (1 << 36) - 1
"""19 hours in microseconds; a larger value counts as this."""


def bucket_of(value: int) -> int:
    """Returns the bucket of a value. Values below 128 have one each; above, each power of two has 128 of equal width."""
    if value < _SUB:
        return max(0, value)
    value = min(value, _MOST)
    shift = value.bit_length() - _SUB_BITS - 1
    return (shift << _SUB_BITS) + (value >> shift)


def top_of(bucket: int) -> int:
    """Returns the largest value of a bucket, so that quantiles are rounded up."""
    if bucket < 2 * _SUB:
        return bucket
    shift = (bucket >> _SUB_BITS) - 1
    return (((bucket & (_SUB - 1)) + _SUB + 1) << shift) - 1


class Histogram:
    """Counts of whole numbers (microseconds). At most 4,000 buckets."""

    def __init__(self, counts: Mapping[int, int] | None = None, most: int = 0) -> None:
        self._counts: dict[int, int] = dict(counts or {})
        self.count = sum(self._counts.values())
        self.most = most

    def record(self, value: int, times: int = 1) -> None:
        bucket = bucket_of(value)
        self._counts[bucket] = self._counts.get(bucket, 0) + times
        self.count += times
        self.most = max(self.most, value)

    def take(self, counted: dict[int, int]) -> None:
        """Records each value as often as `counted` says, and empties the dictionary."""
        for value, times in counted.items():
            self.record(value, times)
        counted.clear()

    def quantile(self, share: float) -> int:
        """Returns the least value that at least this share of all values does not exceed; 0 if there are none."""
        rank, seen = share * self.count, 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= rank:
                return min(top_of(bucket), self.most)
        return 0

    def stored(self) -> dict[str, object]:
        return {"most": self.most, "counts": sorted(self._counts.items())}

    @classmethod
    def load(cls, stored: Mapping[str, object]) -> Histogram:
        counts: Iterable[tuple[int, int]] = stored["counts"]  # type: ignore[assignment]
        most = stored["most"]
        assert isinstance(most, int)
        return cls(dict(counts), most)

    def merge(self, other: Histogram) -> None:
        for bucket, times in other._counts.items():
            self._counts[bucket] = self._counts.get(bucket, 0) + times
        self.count += other.count
        self.most = max(self.most, other.most)

    def milliseconds(self) -> dict[str, float]:
        """Returns the usual quantiles, recorded in microseconds, in milliseconds."""
        shares = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999}
        quantiles = {name: self.quantile(share) / 1000 for name, share in shares.items()}
        return {**quantiles, "max_ms": self.most / 1000}
