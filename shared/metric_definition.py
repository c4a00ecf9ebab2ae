"""One metric as it is defined, and made."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

OTHER = "other"
"""The label of what is not in a closed set."""

_made: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `where`: who exposes it. `processes`: how a gateway's several processes become one value."""

    name: str
    kind: str
    help: str
    where: str
    cost: str
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Each with its values; without any, they are bounded in another way, which the help tells."""
    buckets: tuple[float, ...] = ()
    processes: str = "all"

    @property
    def exposed(self) -> str:
        """Its name as Prometheus has it."""
        return self.name + "_total" if self.kind == "counter" else self.name

    def counter(self) -> Counter:
        return self._once(Counter)  # type: ignore[no-any-return]

    def gauge(self) -> Gauge:
        return self._once(Gauge, multiprocess_mode=self.processes)  # type: ignore[no-any-return]

    def histogram(self) -> Histogram:
        return self._once(Histogram, buckets=self.buckets)  # type: ignore[no-any-return]

    def _once(self, kind: Any, **more: Any) -> Any:
        """Made at the first call: the test run and `midstream` import both processes."""
        if self.name not in _made:
            disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of which nobody makes anything
            assert kind.__name__.lower() == self.kind, self.name
            made = _made[self.name] = kind(self.name, self.help, list(self.labels), **more)
            for values in product(*self.labels.values()) if self.labels else ():
                made.labels(*values)
        return _made[self.name]


def bounded(value: Any, allowed: tuple[str, ...]) -> str:
    """A label's value: the given one, or `other` if it is not among the allowed."""
    return str(value) if str(value) in allowed else OTHER
