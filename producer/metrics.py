"""The metrics of a worker. Updating a counter costs 0.5 µs and a histogram 1.5 µs; no metric is updated per token.

A `Meter` belongs to one run, which reports its steps to it. Tokens are computed from the offsets, once a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from shared import metrics
from shared.connections import RedisConnection
from shared.events import Accepted
from shared.metric_definition import OTHER, bounded
from shared.metrics import FINISH_REASONS, MODELS_MAX, PROVIDER_ODDITY_KINDS
from shared.outcomes import PROVIDER_CODES, AttemptOutcome, CancelReason, FailureCode, Status
from shared.self_measuring import Handover, Measuring
from shared.settings import Settings

TAKEOVERS = metrics.TAKEOVERS.counter()
LEASES_LOST = metrics.LEASES_LOST.counter()
QUEUE_UNREADABLE = metrics.QUEUE_UNREADABLE.counter()
LOG_REPAIRS = metrics.LOG_REPAIRS.counter()
APPEND = metrics.APPEND_SECONDS.histogram()
_FENCED = metrics.FENCED_WRITES.counter()
_TOKENS = metrics.TOKENS_GENERATED.counter()
_QUEUE = metrics.QUEUE_SECONDS.histogram()
_FIRST_TOKEN = metrics.TIME_TO_FIRST_TOKEN.histogram()
_ATTEMPTS = metrics.ATTEMPTS.counter()
_ANSWERS = metrics.ANSWERS.counter()
_CALLS = metrics.PROVIDER_CALLS.counter()
_ERRORS = metrics.PROVIDER_ERRORS.counter()
_ODDITIES = metrics.PROVIDER_ODDITIES.counter()
_ENDED = metrics.STREAMS_ENDED.counter()
_CANCELS = metrics.CANCELS.counter()
_FAILURES = metrics.FAILURES.counter()
_RECEIPTS = metrics.RECEIPTS.counter()
_RECEIPT_TOKENS = metrics.RECEIPT_TOKENS.counter()
ARCHIVED = metrics.ARCHIVED.counter()
ARCHIVE_WRITE = metrics.ARCHIVE_WRITE_SECONDS.histogram()
ARCHIVE_FAILURES = metrics.ARCHIVE_FAILURES.counter()
ARCHIVE_UP = metrics.ARCHIVE_UP.gauge()
UNKEPT = metrics.UNKEPT.gauge()
WEBHOOKS_DELIVERED = metrics.WEBHOOKS_DELIVERED.counter()
WEBHOOK_FAILURES = metrics.WEBHOOK_FAILURES.counter()
WEBHOOKS_DEAD = metrics.WEBHOOKS_DEAD.counter()
WEBHOOKS_WAITING = metrics.WEBHOOKS_WAITING.gauge()
WEBHOOKS_DEAD_KEPT = metrics.WEBHOOKS_DEAD_KEPT.gauge()
WEBHOOK_OLDEST = metrics.WEBHOOK_OLDEST.gauge()
WEBHOOK_SECONDS = metrics.WEBHOOK_SECONDS.histogram()
_GEN_AI_DURATION = metrics.GEN_AI_DURATION.histogram()
_GEN_AI_FIRST_CHUNK = metrics.GEN_AI_FIRST_CHUNK.histogram()
_GEN_AI_PER_TOKEN = metrics.GEN_AI_PER_TOKEN.histogram()
_GEN_AI_USAGE = metrics.GEN_AI_USAGE.histogram()

_models: set[str] = set()
"""The models that have a label of their own."""


class Meter:
    """Counts the steps of one run, which reports them in their order. Times are `time.monotonic()`; `created_at` is Unix time."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._accepted_at = 0.0
        self._shown_tokens = False
        self._attempt = self._counted = 0
        self._open = False
        self._model = OTHER
        self._asked_at = self._first_at = 0.0

    def accepted(self, accepted: Accepted, has_tokens: bool) -> None:
        """Notes that the run has read its request. `has_tokens`: earlier attempts have already produced tokens."""
        self._accepted_at, self._shown_tokens = accepted.created_at, has_tokens

    def begun(self, attempt: int, kept_tokens: int, model: str, reason: str) -> None:
        """Counts an attempt that has begun. It keeps `kept_tokens` tokens of earlier ones; `reason` is empty for the first attempt."""
        if self._open:
            self.ended(AttemptOutcome.RESTARTED)
        if attempt == 1:
            _QUEUE.observe(max(0.0, time.time() - self._accepted_at))
        self._attempt, self._counted, self._open = attempt, kept_tokens, True

    def tally(self, attempt: int, offset: int) -> None:
        """Counts the increments up to this offset of this attempt."""
        if attempt == self._attempt and offset > self._counted:
            _TOKENS.inc(offset - self._counted)
            self._counted = offset

    def ended(self, outcome: AttemptOutcome, **details: str) -> None:
        """Counts the end of the attempt, if one is open. `details` are for traces: finish_reason, code, by, fenced_by."""
        if self._open:
            self._open = False
            _ATTEMPTS.labels(outcome).inc()
            if outcome == AttemptOutcome.FENCED:
                _FENCED.inc()

    def failed_before(self, code: FailureCode) -> None:
        """Counts a stream that was ended as failed before an attempt could begin."""
        failed(code)

    # --- the provider

    def call_begun(self, model: str) -> None:
        """Counts a call of the provider that begins."""
        _CALLS.inc()
        self._model, self._asked_at, self._first_at = model, time.monotonic(), 0.0

    def first_token(self) -> None:
        self._first_at = time.monotonic()
        if self._model not in _models and len(_models) < MODELS_MAX:
            _models.add(self._model)
        _GEN_AI_FIRST_CHUNK.labels(*self._labels()).observe(self._first_at - self._asked_at)
        if not self._shown_tokens:
            self._shown_tokens = True
            _FIRST_TOKEN.observe(max(0.0, time.time() - self._accepted_at))

    def call_answered(self, tokens: int, last_at: float, usage: dict[str, Any] | None) -> None:
        """Counts a call whose answer is complete: its number of tokens, and the time of the last one."""
        labels = self._labels()
        _GEN_AI_DURATION.labels(*labels, "").observe(time.monotonic() - self._asked_at)
        if tokens > 1 and self._first_at:
            _GEN_AI_PER_TOKEN.labels(*labels).observe((last_at - self._first_at) / (tokens - 1))
        for kind, name in (("input", "prompt_tokens"), ("output", "completion_tokens")):
            count = (usage or {}).get(name)
            if isinstance(count, int):
                _GEN_AI_USAGE.labels(*labels, kind).observe(count)

    def provider_failed(self, code: FailureCode) -> None:
        label = bounded(code, PROVIDER_CODES)
        _ERRORS.labels(label).inc()
        _GEN_AI_DURATION.labels(*self._labels(), label).observe(time.monotonic() - self._asked_at)

    def _labels(self) -> tuple[str, str, str]:
        return "chat", self._provider, self._model if self._model in _models else OTHER


def odd(kind: str) -> None:
    """Counts something that the provider sent and that is not as documented."""
    _ODDITIES.labels(bounded(kind, PROVIDER_ODDITY_KINDS)).inc()


# --- ends of streams


def completed(finish_reason: str) -> None:
    _ENDED.labels(Status.COMPLETED).inc()
    _ANSWERS.labels(bounded(finish_reason, FINISH_REASONS)).inc()


def cancelled(by: CancelReason) -> None:
    _ENDED.labels(Status.CANCELLED).inc()
    _CANCELS.labels(by).inc()


def failed(code: FailureCode) -> None:
    _ENDED.labels(Status.FAILED).inc()
    _FAILURES.labels(code).inc()


def receipt_written(receipt: dict[str, Any]) -> None:
    _RECEIPTS.inc()
    _RECEIPT_TOKENS.labels("delivered").inc(receipt["delivered"]["tokens"])
    _RECEIPT_TOKENS.labels("undelivered").inc(receipt["undelivered_tokens"])


# --- the process


class WorkerMeasuring(Measuring):
    """Copies the worker's plain numbers to its metrics, once a second."""

    def __init__(self, connection: RedisConnection, settings: Settings, running: Callable[[], int]) -> None:
        self.handover = Handover()
        super().__init__(self.handover, connection)
        metrics.ATTEMPT_SLOTS.gauge().set(settings.worker_concurrency)
        self.handover.show(metrics.ATTEMPTS_RUNNING.gauge(), running)
