"""Opens attempts in a stream's log: fences off whoever wrote it before, or ends the stream where it must not go on."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from producer import metrics, terminal_events
from producer.metrics import Meter
from producer.provider import Provider, abilities_of
from producer.writer import Writer
from shared import events
from shared.errors import Fenced, LogFull, MidstreamError, NewerFormat, RedisRefused, Unreadable
from shared.event_log import EventLog
from shared.events import Entry
from shared.ids import EventId, created_at
from shared.lifecycle import History, fold
from shared.logs import request_id
from shared.odd_replies import shown
from shared.outcomes import AttemptOutcome, FailureCode
from shared.redis_retry import until_redis_answers
from shared.settings import Settings

logger = logging.getLogger(__name__)

_DAMAGED_LOG_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""The exceptions that a damaged log causes."""

_LOOKS_MAX = 100
"""The most reads of a log to which another process writes each time before the attempt can begin: then the lease decides."""
_MODEL_CHARACTERS_MAX = 64
"""The most characters of a model's name, which clients choose: a worker sends it to the console every two seconds."""


class Takeover:
    """Begins the attempts that one worker makes at one stream."""

    def __init__(
        self,
        stream_id: str,
        *,
        log: EventLog,
        provider: Provider,
        settings: Settings,
        worker: str,
        meter: Meter,
        last_heard_at: Callable[[str], Awaitable[float | None]] | None = None,
    ) -> None:
        self.stream_id = stream_id
        self._log = log
        self._provider = provider
        self._settings = settings
        self._worker = worker
        self._meter = meter
        self._last_heard_at = last_heard_at
        self._model: str | None = None
        self.principal = ""
        """Whose stream it is; empty until its log has been read."""
        self.failure: dict[str, Any] | None = None
        """How the stream was ended as failed, for the console: the code, never the provider's message."""
        self.ended_here = False
        """Whether the stream's terminal event was appended here."""

    async def open(
        self,
        on_trouble: Callable[[MidstreamError], None],
        until_silent: Callable[[EventId], Awaitable[None]] | None = None,
    ) -> tuple[Writer, History] | None:
        """Returns the writer of a new attempt and the log before it; None when the stream has ended or does not exist.

        `until_silent` waits for an attempt that the log already has, and whose worker may live. Raises Unreadable, NewerFormat,
        LogFull, RedisRefused.
        """
        for _ in range(_LOOKS_MAX):
            entries, history = await self.read()
            if history.ended or history.accepted is None:
                return None
            request_id.set(history.accepted.request_id)
            if history.attempt and until_silent is not None:
                await until_silent(history.last)
                until_silent = None
                continue
            self.principal = history.accepted.principal
            self._meter.accepted(history.accepted, bool(history.items))
            refusal = self._refusal(history)
            lost_worker = await self._lost_worker(entries)
            if refusal is not None:
                code, message = refusal
                failed = terminal_events.failed(code, message, retryable=True, **lost_worker)
                ended = await until_redis_answers(
                    self._log.end, self.stream_id, events.FAILED, failed, only_after=history.last
                )
                if ended:
                    self.ended_here = True
                    self.note_failure(history.attempt, len(history.items), code)
                    self._meter.failed_before(code)
                    logger.warning("stream %s: failed: %s: %s", self.stream_id, code, message)
                continue  # read the log again: it has ended now, or somebody still writes it
            pace_ms = history.accepted.policies.pace_ms
            writer = Writer(self._log, self.stream_id, entries, self._settings, on_trouble, pace_ms=pace_ms)
            if await self.begin(writer, history, history.attempt + 1, FailureCode.WORKER_LOST, **lost_worker):
                return writer, history
        raise Fenced("somebody else has written to the log at every look")

    async def read(self) -> tuple[list[Entry], History]:
        """Returns the log and its history. Raises Unreadable where no worker could continue it, NewerFormat where this one cannot."""
        entries = await until_redis_answers(self._log.read_all, self.stream_id)
        try:
            history = fold(entries)
            if entries and not history.ended:
                if history.accepted is None:
                    raise Unreadable("its first entry is no request")
                if history.accepted.format > events.FORMAT:
                    raise NewerFormat
                self._provider.model_of(history.accepted.request)
                _ = history.text if history.items else ""
        except _DAMAGED_LOG_ERRORS as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from None
        return entries, history

    async def _lost_worker(self, entries: list[Entry]) -> dict[str, float]:
        """Returns `last_heard_at` of the worker of the newest attempt, for the timeline; nothing if that is not known."""
        begun = [entry for entry in entries if entry.field in (events.STARTED, events.RESTARTED)]
        worker = events.control_of(begun[-1].field, begun[-1].value).get("worker") if begun else None
        if self._last_heard_at is None or not isinstance(worker, str):
            return {}
        try:
            seconds = await self._last_heard_at(worker)
        except MidstreamError as error:
            logger.debug("stream %s: when its worker was last heard is not known: %s", self.stream_id, error)
            return {}
        return {} if seconds is None else {"last_heard_at": seconds}

    def _refusal(self, history: History) -> tuple[FailureCode, str] | None:
        """Returns the failure code and message with which a stream must end instead of being continued, if so."""
        assert history.accepted is not None
        settings = self._settings
        if history.attempt == 0 and time.time() - created_at(self.stream_id) > settings.queue_seconds:
            return FailureCode.QUEUE_TIMEOUT, f"no worker was free within {settings.queue_seconds:g} s"
        if history.attempt >= settings.attempts_max:
            return (
                FailureCode.ATTEMPTS_EXHAUSTED,
                f"{history.attempt} attempts were broken off, the last by the death of its worker",
            )
        if history.attempt and history.items and history.accepted.policies.on_interrupt == "fail":
            return FailureCode.WORKER_LOST, "the worker died in mid-answer; what arrived is kept"
        return None

    async def begin(self, writer: Writer, history: History, attempt: int, reason: str, **lost_worker: float) -> bool:
        """Appends the entry that begins an attempt, and takes back from `history` what the attempt does not keep.

        False when somebody else has written to the log meanwhile.
        """
        assert history.accepted is not None
        kept_tokens = self._kept_tokens(history) if attempt > 1 else 0
        model = self._provider.model_of(history.accepted.request)
        value: dict[str, Any] = {"attempt": attempt, "model": model, "worker": self._worker, "time": time.time()}
        if attempt > 1:
            value |= {"base": kept_tokens, "reason": reason, **lost_worker}
        self._model = model
        field = events.STARTED if attempt == 1 else events.RESTARTED
        sent_at = time.monotonic()
        if not await writer.begin(attempt, field, orjson.dumps(value), kept_tokens):
            return False
        metrics.APPEND.observe(time.monotonic() - sent_at)
        self._meter.begun(attempt, kept_tokens, model, reason if attempt > 1 else "")
        del history.items[kept_tokens:]
        history.attempt = attempt
        return True

    async def end_full(self, error: LogFull) -> None:
        """Ends a stream whose log had no room for the beginning of an attempt."""
        failed = terminal_events.failed(FailureCode.LOG_FULL, str(error), retryable=False)
        await until_redis_answers(self._log.end, self.stream_id, events.FAILED, failed)
        logger.warning("stream %s: failed: log_full: %s", self.stream_id, error)
        self.note_failure(0, 0, FailureCode.LOG_FULL)
        self._meter.failed_before(FailureCode.LOG_FULL)
        self.ended_here = True

    async def end_unreadable(self, reason: str) -> None:
        """Ends a stream whose log cannot be read, if its key can be written at all: other workers could not read it either."""
        failed = terminal_events.failed(FailureCode.UNREADABLE, "the stream's log cannot be read", retryable=False)
        try:
            ended = await until_redis_answers(self._log.end, self.stream_id, events.FAILED, failed)
            note = "" if ended else " (it has ended already, or its end cannot be written)"
        except (RedisRefused, LogFull) as refusal:
            ended, note = False, f" (its end cannot be written: {shown(str(refusal))})"
        logger.error("stream %s: failed: unreadable: %s%s", self.stream_id, shown(reason), note)
        self._meter.ended(AttemptOutcome.FAILED, code=FailureCode.UNREADABLE)
        if ended:
            self.note_failure(0, 0, FailureCode.UNREADABLE)
            self._meter.failed_before(FailureCode.UNREADABLE)

    def note_failure(self, attempt: int, tokens: int, code: FailureCode, status: int | None = None) -> None:
        """Keeps how the stream has failed, with the provider's HTTP status if it sent one."""
        self.failure = {
            "id": self.stream_id,
            "attempt": attempt,
            "model": self._model and self._model[:_MODEL_CHARACTERS_MAX],
            "tokens": tokens,
            "code": code,
            "status": status,
            "ended_at": time.time(),
        }

    def _kept_tokens(self, history: History) -> int:
        """Returns how many increments a new attempt keeps: all where it is to continue them and the provider can, else none."""
        assert history.accepted is not None
        if history.accepted.policies.on_interrupt != "continue":
            return 0
        abilities = abilities_of(self._provider, history.accepted.request)
        plain = all(field == events.TOKEN for field, _ in history.items)
        continues = abilities.continues_text if plain else abilities.continues_all
        return len(history.items) if continues else 0
