"""Quantiles of the last 30 s, from a histogram that counts since the process began."""

from __future__ import annotations

from collections import deque

from prometheus_client import Histogram

WINDOW_SECONDS = 30.0


class RecentQuantiles:
    """Quantiles over the last 30 s, from the difference of two readings of a histogram. A reading takes about 30 µs."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._readings: deque[tuple[float, list[float]]] = deque()
        self._bounds: list[float] = []

    def current(self, now: float) -> dict[str, float] | None:
        """Returns `p50_ms`, `p99_ms`, each at most the upper bound of its bucket, and `samples`; None if there are no samples.

        Must be called every few seconds, with the time of a clock in seconds.
        """
        self._readings.append((now, self._buckets()))
        while len(self._readings) > 1 and self._readings[1][0] <= now - WINDOW_SECONDS:
            self._readings.popleft()
        first, last = self._readings[0][1], self._readings[-1][1]
        counts = [after - before for before, after in zip(first, last, strict=True)]  # cumulative
        samples = counts[-1]
        if samples <= 0:
            return None
        p50, p99 = (round(self._quantile(counts, share) * 1000, 3) for share in (0.5, 0.99))
        return {"p50_ms": p50, "p99_ms": p99, "samples": int(samples)}

    def _buckets(self) -> list[float]:
        (metric,) = self._histogram.collect()
        buckets = [sample for sample in metric.samples if sample.name.endswith("_bucket")]
        self._bounds = [float(bucket.labels["le"]) for bucket in buckets]
        return [bucket.value for bucket in buckets]

    def _quantile(self, counts: list[float], share: float) -> float:
        """Computes a quantile as Prometheus' histogram_quantile: values are evenly spread within a bucket; beyond the last bound it is that."""
        wanted, below, lower = share * counts[-1], 0.0, 0.0
        for bound, count in zip(self._bounds, counts, strict=True):
            if count >= wanted:
                if bound == float("inf"):
                    return lower
                return lower + (bound - lower) * (wanted - below) / (count - below)
            below, lower = count, bound
        return lower
