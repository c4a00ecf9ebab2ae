"""What a gateway counts, over all its processes.

With several processes a value lies in a file that they can all read (prometheus_client's multiprocess mode), and `inc()`
costs about 1.5 µs, twice what it costs in one. What happens for every event or flush is counted in a plain number, at a
tenth of that, and handed over now and then. Gauges with a function, Info and Enum do not work in this mode.
A gauge says by its `multiprocess_mode` how the processes' values become one.
"""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

PROCESSES = Gauge("midstream_gateway_processes", "Processes of this gateway that run now", multiprocess_mode="livesum")
STARTS = Counter("midstream_gateway_process_starts", "Processes of this gateway that were started, also again")
READERS = Gauge("midstream_readers", "Connections that follow a stream now", multiprocess_mode="livesum")
CLOSED = Counter("midstream_reader_closes", "Connections that have ended, by how", ["outcome"])
CREATED = Counter("midstream_streams_created", "Streams that this gateway accepted")
FALLEN_OUT = Counter(
    "midstream_ring_fallouts", "Readers so slow that they fell out of the ring and went on from the log"
)
PAGES_SENT = Counter("midstream_pages_sent", "Pages of history sent to readers")


def exposition() -> bytes:
    """All metrics of this gateway, whichever of its processes is asked, as Prometheus' text."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
