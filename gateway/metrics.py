"""What a gateway counts, over all its processes.

With several processes a value lies in a file that they can all read (prometheus_client's multiprocess mode): `inc()` then
costs about 1.5 µs and `observe()` 4. So what happens for every event, flush or reader on the way is counted in a plain
number, at a tenth of that, and handed over once a second (`handover`). Gauges with a function, Info and Enum do not work
in this mode; a gauge says by its `processes` how the processes' values become one.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import orjson
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from shared import metrics
from shared.events import Event
from shared.ids import EventId
from shared.metric_definition import bounded
from shared.metrics import LOG_READ_REASONS, STATUSES
from shared.outcomes import FailureCode, ReaderOutcome, Status
from shared.self_measuring import Handover

if TYPE_CHECKING:
    from gateway.delivery.delivery import Reader
    from gateway.following.tail import Tail

PROCESSES = metrics.PROCESSES.gauge()
STARTS = metrics.PROCESS_STARTS.counter()
READERS = metrics.READERS.gauge()
READERS_MAX = metrics.READERS_MAX.gauge()
CREATED = metrics.STREAMS_CREATED.counter()
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
_ENDED = metrics.STREAMS_ENDED.counter()
_CANCELS = metrics.CANCELS.counter()
_FAILURES = metrics.FAILURES.counter()
_RECEIPTS = metrics.RECEIPTS.counter()
_RECEIPT_TOKENS = metrics.RECEIPT_TOKENS.counter()
LOG_READS = {reason: metrics.LOG_READS.counter().labels(reason) for reason in LOG_READ_REASONS}

handover = Handover()
"""Of this process; `gateway.measuring` says what is in it, and calls it."""


def closed(outcome: str) -> None:
    _CLOSES[outcome].inc()


def refused(status: int) -> None:
    _PROBLEMS[bounded(status, STATUSES)].inc()


def cancelled(by: str) -> None:
    """This process has appended `cancelled`."""
    _ENDED.labels(Status.CANCELLED).inc()
    _CANCELS.labels(by).inc()


def failed(code: str) -> None:
    """This process has appended `failed`."""
    _ENDED.labels(Status.FAILED).inc()
    _FAILURES.labels(bounded(code, tuple(FailureCode))).inc()


def receipt_written(receipt: dict[str, Any]) -> None:
    _RECEIPTS.inc()
    _RECEIPT_TOKENS.labels("delivered").inc(receipt["delivered"]["tokens"])
    _RECEIPT_TOKENS.labels("undelivered").inc(receipt["undelivered_tokens"])


def came_back(reader: Reader) -> None:
    """A reader that had something already, as it is attached."""
    last, cursor = reader.tail.last, reader.cursor
    place = "ahead" if cursor > last else "ring" if cursor >= reader.ring.base else "log"
    _RESUMES[place].inc()
    _RESUME_EVENTS_BACK.observe(max(0, last.offset - (cursor.offset if cursor.attempt == last.attempt else 0)))


def sent_at(event: Event) -> float:
    """When a terminal event left its worker or gateway, by its own clock; 0 where it does not say."""
    return float(orjson.loads(event.value).get("time") or 0.0) if event.value else 0.0


def written(sent_at: float) -> None:
    """The end of a stream, sent at that time, has been written to its readers' sockets."""
    _LAG.observe(max(0.0, time.time() - sent_at))


def tokens_between(noted: EventId, reached: EventId, tail: Tail) -> int:
    """How many tokens a connection was sent between two ids, in all attempts that this gateway has seen."""
    tokens = 0
    for attempt, base, end in (*tail.overtaken, (tail.attempt, tail.base, tail.offset)):
        if noted.attempt <= attempt <= reached.attempt and attempt:
            first = noted.offset if attempt == noted.attempt and noted.offset else base
            last = reached.offset if attempt == reached.attempt else end
            if tail.ended == (attempt, last) and last:
                last -= 1  # the terminal event is no token
            tokens += max(0, last - first)
    return tokens


def exposition() -> bytes:
    """All metrics of this gateway, whichever of its processes is asked, as Prometheus' text."""
    handover.now()
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
