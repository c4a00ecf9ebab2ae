"""Quantiles of the last 30 s, from a histogram that counts since the process began."""

from __future__ import annotations

from collections import deque

from prometheus_client import Histogram

WINDOW_SECONDS = 30.0


class Lately:
    """Quantiles over the last half minute, from the difference of two looks. About 30 µs per look."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._looks: deque[tuple[float, list[float]]] = deque()
        self._bounds: list[float] = []

    def told(self, now: float) -> dict[str, float] | None:
        """`p50_ms`, `p99_ms`, each the upper bound of its bucket at most, and `samples`; None if there are none.

        To be asked every few seconds, with a clock's time.
        """
        self._looks.append((now, self._buckets()))
        while len(self._looks) > 1 and self._looks[1][0] <= now - WINDOW_SECONDS:
            self._looks.popleft()
        first, last = self._looks[0][1], self._looks[-1][1]
        counts = [after - before for before, after in zip(first, last, strict=True)]  # cumulative
        samples = counts[-1]
        if samples <= 0:
            return None
        p50, p99 = (round(self._quantile(counts, share) * 1000, 3) for share in (0.5, 0.99))
        return {"p50_ms": p50, "p99_ms": p99, "samples": int(samples)}

    def _buckets(self) -> list[float]:
        (metric,) = self._histogram.collect()
        buckets = [one for one in metric.samples if one.name.endswith("_bucket")]
        self._bounds = [float(one.labels["le"]) for one in buckets]
        return [one.value for one in buckets]

    def _quantile(self, counts: list[float], share: float) -> float:
        """As Prometheus' histogram_quantile: evenly spread within a bucket; the last finite bound for what is beyond it."""
        wanted, below, lower = share * counts[-1], 0.0, 0.0
        for bound, count in zip(self._bounds, counts, strict=True):
            if count >= wanted:
                if bound == float("inf"):
                    return lower
                return lower + (bound - lower) * (wanted - below) / (count - below)
            below, lower = count, bound
        return lower
