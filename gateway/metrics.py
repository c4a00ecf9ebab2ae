"""The metrics of a gateway, over all its processes.

With several processes a value is kept in a file that all of them can read (prometheus_client's multiprocess mode): `inc()`
then costs about 1.5 µs and `observe()` 4 µs. So what happens often (events, flushes, readers) is counted in plain numbers, at a
tenth of that cost, and copied to the metrics once a second (`handover`). Gauges with a function, Info and Enum do not work in
this mode; a gauge's `processes` states how the values of the processes become one.
"""

from __future__ import annotations

import os
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from shared import metrics
from shared.events import Event, control_of
from shared.metric_definition import bounded
from shared.metrics import APIS, FACES, LOG_READ_REASONS, REQUEST_STATUSES, STATUSES
from shared.outcomes import FailureCode, ReaderOutcome, Status
from shared.self_measuring import Handover

BUILD_INFO = metrics.BUILD_INFO.gauge()
PROCESSES = metrics.PROCESSES.gauge()
STARTS = metrics.PROCESS_STARTS.counter()
READERS = metrics.READERS.gauge()
READERS_MAX = metrics.READERS_MAX.gauge()
CREATED = metrics.STREAMS_CREATED.counter()
MESSAGES_WRITTEN = metrics.MESSAGES_WRITTEN.counter()
BYTES_WRITTEN = metrics.BYTES_WRITTEN.counter()
_REQUESTS = metrics.REQUESTS.counter()
_REQUEST_SECONDS = metrics.REQUEST_SECONDS.histogram()
_OPENED = {face: metrics.READER_OPENS.counter().labels(face) for face in FACES}
FOLLOWED = metrics.STREAMS_FOLLOWED.gauge()
DELIVERED = metrics.TOKENS_DELIVERED.counter()
FALLEN_OUT = metrics.RING_FALLOUTS.counter()
PAGES_SENT = metrics.PAGES_SENT.counter()
PAGE_CACHE_BYTES = metrics.PAGE_CACHE_BYTES.gauge()
GAPS = metrics.GAPS.counter()
PUSHES_PASSED_OVER = metrics.PUSHES_PASSED_OVER.counter()
FACE_FAILURES = metrics.FACE_FAILURES.counter()
PUSHED = metrics.ENTRIES_PUSHED.counter()
FLUSHES = metrics.FLUSHES.counter()
LOG_CHECKS = metrics.LOG_CHECKS.counter()
TICK = metrics.TICK_SECONDS.gauge()
_LAG = metrics.APPEND_TO_SOCKET.histogram()
_RESUME_EVENTS_BACK = metrics.RESUME_EVENTS_BACK.histogram()
_RESUMES = {place: metrics.RESUMES.counter().labels(place) for place in ("ring", "log", "ahead")}
_CLOSES: dict[str, Counter] = {outcome: metrics.READER_CLOSES.counter().labels(outcome) for outcome in ReaderOutcome}
_PROBLEMS = {status: metrics.PROBLEMS.counter().labels(status) for status in STATUSES}
_LIMIT_REFUSALS = metrics.LIMIT_REFUSALS.counter()
_ENDED = metrics.STREAMS_ENDED.counter()
_CANCELS = metrics.CANCELS.counter()
_FAILURES = metrics.FAILURES.counter()
ENTRIES_WRITTEN = metrics.ENTRIES_WRITTEN.counter()
EVENTS_KNOWN = metrics.EVENTS_KNOWN.counter()
ATTEMPTS_WRITTEN = metrics.ATTEMPTS_WRITTEN.counter()
WRITERS_LOST = metrics.WRITERS_LOST.counter()
ARCHIVE_UP = metrics.ARCHIVE_UP.gauge()
RESTORED = metrics.RESTORED.counter()
_RECEIPTS = metrics.RECEIPTS.counter()
_RECEIPT_TOKENS = metrics.RECEIPT_TOKENS.counter()
LOG_READS = {reason: metrics.LOG_READS.counter().labels(reason) for reason in LOG_READ_REASONS}

handover = Handover()
"""The plain numbers of this process. `gateway.measuring` registers them, and copies them to the metrics."""


def requested(method: str, route: str, status: int, seconds: float) -> None:
    """Counts a request whose answer has begun, or whose client has gone (status 0). `route` is a template, or `other`."""
    _REQUESTS.labels(method, route, bounded(status, REQUEST_STATUSES)).inc()
    _REQUEST_SECONDS.labels(method, route).observe(seconds)


def opened(face: str) -> None:
    """Counts a connection that begins to follow a stream."""
    _OPENED[bounded(face, FACES)].inc()


def closed(outcome: str) -> None:
    _CLOSES[outcome].inc()


def refused(status: int) -> None:
    _PROBLEMS[bounded(status, STATUSES)].inc()


def over_limit(limit: str, whose: str) -> None:
    """Counts a request that a limit refuses: `whose` is `principal`, `all`, `stream` or `address`."""
    _LIMIT_REFUSALS.labels(limit, whose).inc()


def created(api: str) -> None:
    """Counts a stream that this process has accepted."""
    CREATED.labels(bounded(api, APIS)).inc()


def appended(messages: int, size_bytes: int) -> None:
    """Counts what a program has appended to a written stream."""
    MESSAGES_WRITTEN.inc(messages)
    BYTES_WRITTEN.inc(size_bytes)


def completed() -> None:
    """Counts a stream to which this process has appended `done`, for an external writer."""
    _ENDED.labels(Status.COMPLETED).inc()


def cancelled(by: str) -> None:
    """Counts a stream to which this process has appended `cancelled`."""
    _ENDED.labels(Status.CANCELLED).inc()
    _CANCELS.labels(by).inc()


def failed(code: str) -> None:
    """Counts a stream to which this process has appended `failed`."""
    _ENDED.labels(Status.FAILED).inc()
    _FAILURES.labels(bounded(code, tuple(FailureCode))).inc()


def receipt_written(receipt: dict[str, Any]) -> None:
    _RECEIPTS.inc()
    _RECEIPT_TOKENS.labels("delivered").inc(receipt["delivered"]["tokens"])
    _RECEIPT_TOKENS.labels("undelivered").inc(receipt["undelivered_tokens"])


def resumed(place: str, events_back: int) -> None:
    """Counts a reader that resumes: its next event is in the `ring` or in the `log`, or the reader is `ahead` of this gateway."""
    _RESUMES[place].inc()
    _RESUME_EVENTS_BACK.observe(events_back)


def sent_at(event: Event) -> float:
    """Returns when a terminal event was sent, by its sender's clock; 0 if the event does not say."""
    return float(control_of(event.field, event.value).get("time") or 0.0)


def written(sent_at: float) -> None:
    """Observes the latency of a stream's end, sent at `sent_at` and now written to its readers' sockets."""
    _LAG.observe(max(0.0, time.time() - sent_at))


def exposition() -> bytes:
    """Returns all metrics of this gateway, of all its processes, in Prometheus's text format."""
    handover.hand_over()
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
