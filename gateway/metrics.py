"""What a gateway process counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

READERS = Gauge("midstream_readers", "Connections that follow a stream now")
CLOSED = Counter("midstream_reader_closes", "Connections that have ended, by how", ["outcome"])
CREATED = Counter("midstream_streams_created", "Streams that this gateway accepted")
FALLEN_OUT = Counter(
    "midstream_ring_fallouts", "Readers so slow that they fell out of the ring and went on from the log"
)
PAGES_SENT = Counter("midstream_pages_sent", "Pages of history sent to readers")
