"""What a worker counts. It is one process, where a counter costs 0.5 µs and a histogram 1.5; still nothing is done per token.

A `Meter` belongs to one run and is told of its turns. Tokens are worked out of the offsets, once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from shared import metrics
from shared.errors import Unusable
from shared.events import Accepted
from shared.metric_definition import OTHER, bounded
from shared.metrics import FINISH_REASONS, MODELS_MAX, PROVIDER_ODDITY_KINDS
from shared.outcomes import PROVIDER_CODES, AttemptOutcome, CancelReason, FailureCode, Status
from shared.resp import RespConnection
from shared.self_measuring import Handover, Measuring
from shared.settings import Settings

logger = logging.getLogger(__name__)

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
_GEN_AI_DURATION = metrics.GEN_AI_DURATION.histogram()
_GEN_AI_FIRST_CHUNK = metrics.GEN_AI_FIRST_CHUNK.histogram()
_GEN_AI_PER_TOKEN = metrics.GEN_AI_PER_TOKEN.histogram()
_GEN_AI_USAGE = metrics.GEN_AI_USAGE.histogram()

_models: set[str] = set()
"""Those that have a label of their own."""


class Meter:
    """The turns of one run, in their order. Times are `time.monotonic()` where not said otherwise."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._accepted_at = 0.0
        self._shown_tokens = False
        self._attempt = self._counted = 0
        self._open = False
        self._model = OTHER
        self._asked_at = self._first_at = 0.0

    def accepted(self, accepted: Accepted, has_tokens: bool) -> None:
        """The run knows its request."""
        self._accepted_at, self._shown_tokens = accepted.created_at, has_tokens

    def begun(self, attempt: int, base: int, model: str, reason: str) -> None:
        """An attempt stands in the log; of one that is not the first, with the reason for it."""
        if self._open:
            self.ended(AttemptOutcome.RESTARTED)
        if attempt == 1:
            _QUEUE.observe(max(0.0, time.time() - self._accepted_at))
        self._attempt, self._counted, self._open = attempt, base, True

    def tally(self, attempt: int, offset: int) -> None:
        """So many deltas stand in this attempt now."""
        if attempt == self._attempt and offset > self._counted:
            _TOKENS.inc(offset - self._counted)
            self._counted = offset

    def ended(self, outcome: AttemptOutcome, **about: str) -> None:
        """The attempt, if one is open; `about` is for traces: finish_reason, code, by, fenced_by."""
        if self._open:
            self._open = False
            _ATTEMPTS.labels(outcome).inc()
            if outcome == AttemptOutcome.FENCED:
                _FENCED.inc()

    def failed_before(self, code: FailureCode) -> None:
        """The stream was ended as failed before an attempt could begin."""
        failed(code)

    # --- the provider

    def asked(self, model: str) -> None:
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

    def answered(self, tokens: int, last_at: float, usage: dict[str, Any] | None) -> None:
        """The call came to its end with so many tokens, the last one at that time."""
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
    """The provider said something of a shape that nothing documents."""
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

_PORTS_TRIED = 16
"""Workers of one machine share one setting: each takes the next free port."""
_ASKING_SECONDS_MAX = 5.0
_HEAD_BYTES_MAX = 8192


class WorkerMeasuring(Measuring):
    """The handover of the worker's numbers, and the port at which they can be had.

    The answers are made in the event loop, about 2 ms each: a thread of prometheus_client's own server would hold the
    interpreter for up to 5 ms at a time.
    """

    def __init__(self, connection: RespConnection, settings: Settings, running: Callable[[], int]) -> None:
        self.handover = Handover()
        super().__init__(self.handover, connection)
        self._settings = settings
        self._server: asyncio.Server | None = None
        metrics.ATTEMPT_SLOTS.gauge().set(settings.worker_concurrency)
        self.handover.show(metrics.ATTEMPTS_RUNNING.gauge(), running)

    async def serve(self) -> str | None:
        """Open the port; its URL, None where no port is wanted. Raises Unusable when none is free."""
        settings = self._settings
        if not settings.metrics_port:
            return None
        for port in range(settings.metrics_port, settings.metrics_port + _PORTS_TRIED):
            with contextlib.suppress(OSError):
                self._server = await asyncio.start_server(
                    self._answer, settings.metrics_host, port, limit=_HEAD_BYTES_MAX
                )
                host = f"[{settings.metrics_host}]" if ":" in settings.metrics_host else settings.metrics_host
                return f"http://{host}:{port}/metrics"
        raise Unusable(
            f"no port for /metrics is free on {settings.metrics_host} from MIDSTREAM_METRICS_PORT={settings.metrics_port} on"
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await super().close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer, the end: enough for Prometheus and for a health check."""
        try:
            async with asyncio.timeout(_ASKING_SECONDS_MAX):
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].partition(b"?")[0] if head.startswith(b"GET ") else b""
                status, kind, body = "404 Not Found", "text/plain; charset=utf-8", b"GET /metrics or /healthz\n"
                if path == b"/metrics":
                    self.handover.now()
                    status, kind, body = "200 OK", CONTENT_TYPE_LATEST, generate_latest()
                elif path == b"/healthz":
                    status, body = "200 OK", b"ok\n"
                told = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
                writer.write(told.encode() + body)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError) as error:
            logger.debug("a request for metrics was not answered: %s", error)
        finally:
            writer.close()
