"""The definition of one metric, and its Prometheus object."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

OTHER = "other"
"""The value of a label for everything that is not in its closed set."""

_made: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    `where`: who exposes it (gateway, worker, both). `cost`: how often it is updated, for the documentation. `processes`: how
    the values of a gateway's several processes become one (prometheus_client's `multiprocess_mode`).
    """

    name: str
    kind: str
    help: str
    where: str
    cost: str
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The values of each label. An empty tuple: the values are limited by the code that sets them."""
    buckets: tuple[float, ...] = ()
    processes: str = "all"

    @property
    def exposed(self) -> str:
        """The name under which Prometheus sees the metric."""
        return self.name + "_total" if self.kind == "counter" else self.name

    def counter(self) -> Counter:
        return self._once(Counter)  # type: ignore[no-any-return]

    def gauge(self) -> Gauge:
        return self._once(Gauge, multiprocess_mode=self.processes)  # type: ignore[no-any-return]

    def histogram(self) -> Histogram:
        return self._once(Histogram, buckets=self.buckets)  # type: ignore[no-any-return]

    def _once(self, kind: Any, **more: Any) -> Any:
        """Returns the Prometheus object, made at the first call: gateway and worker share some metrics, and tests import both."""
        if self.name not in _made:
            disable_created_metrics()  # type: ignore[no-untyped-call]  # `_created` would be a second series for each, which nothing uses
            assert kind.__name__.lower() == self.kind, self.name
            made = _made[self.name] = kind(self.name, self.help, list(self.labels), **more)
            for values in product(*self.labels.values()) if self.labels else ():
                made.labels(*values)
        return _made[self.name]


def bounded(value: Any, allowed: tuple[str, ...]) -> str:
    """Returns a label's value: the given one, or `other` if it is not among the allowed."""
    return str(value) if str(value) in allowed else OTHER
