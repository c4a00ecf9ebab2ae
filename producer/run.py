"""One claimed request, from its lease to its terminal event: the attempts that this worker makes at it.

read the log ──ended──► acknowledge
     │
take over: fence off whoever was here (<attempt>-0), or end the stream where its policy or a bound says so
     │
generate ──► append ──► done
     │
     ├─ fenced: someone cancelled it or took it over. Close the provider's connection, write nothing
     ├─ the last reader has been gone for too long: cancelled, by disconnect
     ├─ the provider failed before the first token: ask it again; readers see nothing of it
     └─ it failed in mid-answer: by policy a new attempt (restart, continue), or failed with the partial text kept
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import traceback
from typing import Any

import orjson

from producer import metrics
from producer.chunk_shapes import storable
from producer.metrics import Meter
from producer.provider import Finish, Provider, ProviderError, Refused, Unavailable
from producer.writer import Writer
from shared import events
from shared.errors import Fenced, LogFull, MidstreamError, RedisRefused, Unreadable
from shared.event_log import EventLog, shown
from shared.events import Entry, Item
from shared.ids import created_at
from shared.lifecycle import History, fold
from shared.logs import outcome, request_id
from shared.outcomes import AttemptOutcome, CancelReason, FailureCode
from shared.queue import Claim
from shared.receipt import DeliveryNotes
from shared.redis_retry import until_redis_answers
from shared.settings import Settings

logger = logging.getLogger(__name__)

_BACKOFF_SECONDS_MAX = 30.0
_RETRY_AFTER_SECONDS_MAX = 120.0
"""A provider that asks for more patience than this is as good as gone: the reader is told."""
_FRAMES_SHOWN = 5
_PROBE_SECONDS = 0.4
"""A writer that is silent for so long compares its log: a cancel is to reach the provider within a second."""


_GARBAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What Python raises over a log that nobody of us has written."""


class LastReaderGone(MidstreamError):
    """Nobody has followed the stream for as long as its policy allows."""


class HandedBack(MidstreamError):
    """The worker is stopping: another one goes on."""


class Run:
    """The work on one claim. `acknowledge` says at its end whether the request is done with, for every worker."""

    def __init__(
        self,
        claim: Claim,
        *,
        log: EventLog,
        deliveries: DeliveryNotes,
        provider: Provider,
        settings: Settings,
        worker: str,
        meter: Meter | None = None,
    ) -> None:
        self.claim = claim
        self.stream_id = claim.stream_id
        self._log = log
        self._deliveries = deliveries
        self._provider = provider
        self._settings = settings
        self._worker = worker
        self.ended_here = False
        """Whether it was this run that appended the terminal event: then its process writes the receipt's line."""
        self._writer: Writer | None = None
        self._pump: asyncio.Task[Finish] | None = None
        self._stopped: MidstreamError | None = None
        self._halted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unread: asyncio.Task[Finish] | None = None
        """What is left of a cancelled answer, where it is read to its end for the usage."""
        self._cancel_after_seconds: float | None = None
        self._began_at = self._heard_at = time.monotonic()
        self._first_token_came = False
        self._oddities: set[str] = set()
        """The kinds that are logged already."""
        self._probing: asyncio.Task[None] | None = None
        self.meter = meter or Meter(provider.name)

    async def run(self) -> bool:
        """Bring the request to its end. True when it is done with; False when another worker has it, or is to have it."""
        try:
            writer_and_history = await self._take_over()
            if writer_and_history is None:
                return True
            await self._answer(*writer_and_history)
            self.ended_here = True
            await self._drain_for_usage()
            return True
        except HandedBack:
            self.tally()
            self.meter.ended(AttemptOutcome.HANDED_BACK)
            return False
        except Fenced:
            newest = await until_redis_answers(self._log.newest, self.stream_id)
            ended = not newest or newest[-1].field in events.TERMINAL
            self.tally()
            self.meter.ended(
                AttemptOutcome.FENCED, fenced_by=newest[-1].field.decode() if ended and newest else "another attempt"
            )
            how = "ended by another" if ended else "taken over by another"
            logger.info(
                "stream %s: %s",
                self.stream_id,
                how,
                extra=outcome("attempt", self.stream_id, outcome=AttemptOutcome.FENCED),
            )
            if ended:
                await self._drain_for_usage()
            return ended
        except Unreadable as error:
            await self._end_unreadable(str(error))
            return True
        except RedisRefused as error:
            if error.code != "WRONGTYPE":
                raise
            await self._end_unreadable(str(error))
            return True
        except LogFull as error:  # before the attempt could begin
            told = self._failed(FailureCode.LOG_FULL, str(error), retryable=False)
            await until_redis_answers(self._log.end, self.stream_id, events.FAILED, told)
            logger.warning("stream %s: failed: log_full: %s", self.stream_id, error)
            self.meter.failed_before(FailureCode.LOG_FULL)
            self.ended_here = True
            return True
        finally:
            unread, self._unread = self._unread, None
            if unread is not None:
                await self._closed(unread)
            self._let_go()

    def _let_go(self) -> None:
        """Give up what leads back here, so that the last reference to this run frees it, and its copy of the log.

        The collector is set to come once in a million objects. Exceptions lead back by the frames in their tracebacks.
        """
        self.tally()
        if self._writer is not None:
            self._writer.let_go()
        self._writer = self._stopped = self._probing = None

    def stop(self, why: MidstreamError) -> None:
        """Stop generating, for the first reason that comes."""
        if self._stopped is None and not self._halted.done():
            self._stopped = why
            self._halted.set_result(None)

    def tally(self) -> None:
        """Count the tokens that were appended since this was last asked."""
        if self._writer is not None:
            self.meter.tally(self._writer.attempt, self._writer.offset)

    def watch(self, now: float) -> None:
        """Look, a few times a second, at what no token would tell: time limits, the last reader, the log's own end."""
        writer = self._writer
        if writer is None or self._stopped is not None:
            return
        settings = self._settings
        silent_seconds = now - self._heard_at
        if self._pump is not None and not writer.crowded:
            if now - self._began_at > settings.attempt_seconds:
                message = f"the answer was not complete within {settings.attempt_seconds:g} s"
                self.stop(Unavailable(message, code=FailureCode.PROVIDER_TIMEOUT))
            elif not self._first_token_came and silent_seconds > settings.first_token_seconds:
                message = f"no token came within {settings.first_token_seconds:g} s"
                self.stop(Unavailable(message, code=FailureCode.PROVIDER_TIMEOUT))
            elif self._first_token_came and silent_seconds > settings.between_tokens_seconds:
                message = f"the provider fell silent for {settings.between_tokens_seconds:g} s in mid-answer"
                self.stop(Unavailable(message, code=FailureCode.PROVIDER_STALLED))
        patience, unheard_since = self._cancel_after_seconds, writer.unheard_since
        if patience is not None and unheard_since is not None and now - unheard_since >= patience:
            self.stop(LastReaderGone())
        if now - writer.sent_at > _PROBE_SECONDS and (self._probing is None or self._probing.done()):
            self._probing = asyncio.get_running_loop().create_task(writer.probe())

    def slept_through_its_lease(self) -> None:
        """The process was stopped for longer than its lease: others may have ended, even deleted, the stream."""
        if self._writer is not None:
            self._writer.may_recreate = False

    # --- taking over

    async def _take_over(self) -> tuple[Writer, History] | None:
        """The writer of a new attempt and what stands before it; None when there is nothing (more) to do."""
        while True:
            entries, history = await self._read()
            if history.ended or history.accepted is None:
                return None
            request_id.set(history.accepted.request_id)
            self.meter.accepted(history.accepted, bool(history.items))
            refusal = self._refusal(history)
            if refusal is not None:
                code, message = refusal
                failed = self._failed(code, message, retryable=True)
                ended = await until_redis_answers(
                    self._log.end, self.stream_id, events.FAILED, failed, only_after=history.last
                )
                if ended:
                    self.ended_here = True
                    self.meter.failed_before(code)
                    logger.warning("stream %s: failed: %s: %s", self.stream_id, code, message)
                continue  # read once more: ended now, or still alive
            self._cancel_after_seconds = history.accepted.policies.cancel_after_seconds
            writer = Writer(self._log, self.stream_id, entries, self._settings, self.stop)
            if await self._begin(writer, history, history.attempt + 1, FailureCode.WORKER_LOST):
                self._writer = writer
                return writer, history

    async def _read(self) -> tuple[list[Entry], History]:
        """The log, and what it tells. Raises Unreadable where that is nothing that could be gone on with."""
        entries = await until_redis_answers(self._log.read_all, self.stream_id)
        try:
            history = fold(entries)
            if entries and not history.ended:
                if history.accepted is None:
                    raise Unreadable("its first entry is no request")
                self._provider.model_of(history.accepted.request)
                _ = history.text if history.items else ""
        except _GARBAGE as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from None
        return entries, history

    async def _end_unreadable(self, reason: str) -> None:
        """End the stream, where that can be written: another worker would read its log no better."""
        failed = self._failed(FailureCode.UNREADABLE, "the stream's log cannot be read", retryable=False)
        try:
            ended = await until_redis_answers(self._log.end, self.stream_id, events.FAILED, failed)
            how = "" if ended else " (it has an end already, or none can be written)"
        except (RedisRefused, LogFull) as refusal:
            ended, how = False, f" (none can be written: {shown(str(refusal))})"
        logger.error("stream %s: failed: unreadable: %s%s", self.stream_id, shown(reason), how)
        self.tally()
        self.meter.ended(AttemptOutcome.FAILED, code=FailureCode.UNREADABLE)
        if ended:
            self.meter.failed_before(FailureCode.UNREADABLE)

    def _refusal(self, history: History) -> tuple[FailureCode, str] | None:
        """The code and message with which a stream ends instead of being taken over, if so."""
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

    async def _begin(self, writer: Writer, history: History, attempt: int, reason: str) -> bool:
        """Open an attempt in the log. False when the log has moved on."""
        assert history.accepted is not None
        base = self._base(history) if attempt > 1 else 0
        about: dict[str, Any] = {
            "attempt": attempt,
            "model": self._provider.model_of(history.accepted.request),
            "worker": self._worker,
            "time": time.time(),
        }
        if attempt > 1:
            about |= {"base": base, "reason": reason}
        field = events.STARTED if attempt == 1 else events.RESTARTED
        sent_at = time.monotonic()
        if not await writer.begin(attempt, field, orjson.dumps(about), base):
            return False
        metrics.APPEND.observe(time.monotonic() - sent_at)
        self.meter.begun(attempt, base, about["model"], about.get("reason", ""))
        del history.items[base:]
        history.attempt = attempt
        return True

    @staticmethod
    def _base(history: History) -> int:
        """How many deltas a new attempt keeps: all where it is to continue plain text, else none."""
        assert history.accepted is not None
        plain = all(field == events.TOKEN for field, _ in history.items)
        return len(history.items) if history.accepted.policies.on_interrupt == "continue" and plain else 0

    # --- answering

    async def _answer(self, writer: Writer, history: History) -> None:
        try:
            finish = await self._generate_with_tries(writer, history)
            done = {"finish_reason": finish.reason, "usage": finish.usage, **finish.about, "time": time.time()}
            await self._finish(writer, events.DONE, _terminal(done))
            metrics.completed(finish.reason)
            self._tell(
                logging.INFO, AttemptOutcome.COMPLETED, f"done: {finish.reason}", writer, finish_reason=finish.reason
            )
        except (Fenced, HandedBack):
            raise
        except LastReaderGone:
            await self._finish(
                writer, events.CANCELLED, orjson.dumps({"by": CancelReason.DISCONNECT, "time": time.time()})
            )
            metrics.cancelled(CancelReason.DISCONNECT)
            reason = CancelReason.DISCONNECT
            self._tell(logging.INFO, AttemptOutcome.CANCELLED, "cancelled: the last reader has gone", writer, by=reason)
        except LogFull as error:
            await self._fail(writer, error, FailureCode.LOG_FULL, retryable=False)
        except ProviderError as error:
            await self._fail(writer, error, error.code, retryable=error.retryable, **error.about())
        except (
            Exception
        ) as error:  # Redis refuses, or a bug: another attempt would meet it again, and be paid for again
            logger.error("stream %s: the attempt broke: %s", self.stream_id, _place_of(error))
            code, message = FailureCode.INTERNAL_ERROR, f"the worker could not go on: {type(error).__name__}"
            await self._fail(writer, MidstreamError(message), code, retryable=True)

    async def _generate_with_tries(self, writer: Writer, history: History) -> Finish:
        tries = 0
        while True:
            tries += 1
            try:
                return await self._generate(writer, history)
            except ProviderError as error:
                if self._stopped is not None and self._stopped is not error:
                    raise self._stopped from None
                self.meter.provider_failed(error.code)
                self._stopped = None
                self._halted = asyncio.get_running_loop().create_future()
                in_mid_answer = self._first_token_came
                if not await self._try_again(writer, history, error, tries):
                    raise
                if in_mid_answer:
                    tries = 0

    async def _generate(self, writer: Writer, history: History) -> Finish:
        """One call of the provider, with everything that it says appended. Raises what stopped it."""
        assert history.accepted is not None
        self._began_at = self._heard_at = time.monotonic()
        self._first_token_came = False
        if self._stopped is not None:
            raise self._stopped
        began_at = writer.offset
        self.meter.asked(self._provider.model_of(history.accepted.request))
        self._pump = pump = asyncio.get_running_loop().create_task(
            self._provider.generate(history.accepted.request, history.text, self)
        )
        try:
            await self._until_done_or_halted(pump)
            # Once it is stopped it passes over what it still reads: then its end is not the end of the answer.
            if self._stopped is None:
                finish = pump.result()
                await writer.drained()
                self.meter.answered(writer.offset - began_at, self._heard_at, finish.usage)
                return finish
            if self._settings.provider_on_cancel == "drain" and isinstance(self._stopped, Fenced | LastReaderGone):
                self._unread = pump
            if isinstance(self._stopped, ProviderError | LastReaderGone | HandedBack):
                await writer.drained()
            raise self._stopped
        except MidstreamError:
            raise
        except Exception as error:
            logger.error("stream %s: the provider's answer could not be read: %s", self.stream_id, _place_of(error))
            message = f"the provider's answer could not be read: {type(error).__name__}"
            raise Refused(message, code=FailureCode.PROVIDER_UNREADABLE) from None
        finally:
            self._pump = None
            if self._unread is not pump:
                await self._closed(pump)
            del pump  # its exception leads to this frame, which must not lead back

    async def _until_done_or_halted(self, task: asyncio.Task[Any]) -> None:
        await asyncio.wait({task, self._halted}, return_when=asyncio.FIRST_COMPLETED)

    @staticmethod
    async def _closed(task: asyncio.Task[Any]) -> None:
        """Cancel a task and see it end: with the provider's answer, its connection is closed."""
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # known already, or of no interest any more

    async def _drain_for_usage(self) -> None:
        """Read a cancelled answer to its end, writing none of it: some bill it whole, and only the end tells how much."""
        if self._unread is None:
            return
        try:
            async with asyncio.timeout(self._settings.attempt_seconds):
                finish = await self._unread
            if finish.usage is not None:
                await self._deliveries.note_usage(self.stream_id, finish.usage)
        except (MidstreamError, TimeoutError) as error:
            shown = self._shown(error) if isinstance(error, MidstreamError) else "it did not end in time"
            logger.info("stream %s: the usage of what was cancelled is not known: %s", self.stream_id, shown)
        except Exception as error:
            logger.error("stream %s: what was cancelled could not be read: %s", self.stream_id, _place_of(error))

    # --- Hearer

    def accept(self, items: list[Item]) -> bool:
        """Append what the provider said; once stopped, pass over it."""
        assert self._writer is not None
        self._heard_at = time.monotonic()
        if not self._first_token_came:
            self._first_token_came = True
            self.meter.first_token()
        if self._stopped is not None:
            return True
        self._writer.push(items)
        return not self._writer.crowded

    def odd(self, kind: str) -> None:
        """Count what the provider said in a shape that it should not have, and log each kind once."""
        metrics.odd(kind)
        if kind not in self._oddities:
            self._oddities.add(kind)
            logger.info(
                "stream %s: the provider sent something odd as %s; left out, or made text", self.stream_id, kind
            )

    async def wait_for_room(self) -> None:
        assert self._writer is not None
        await self._writer.wait_for_room()
        self._heard_at = time.monotonic()

    # --- when it broke off

    async def _try_again(self, writer: Writer, history: History, error: ProviderError, tries: int) -> bool:
        """Make ready for another try, after a pause: the same attempt where no token came, else a new one by policy."""
        assert history.accepted is not None
        settings, policy = self._settings, history.accepted.policies.on_interrupt
        if not error.retryable:
            return False
        in_mid_answer = self._first_token_came
        if in_mid_answer and (policy == "fail" or writer.attempt >= settings.attempts_max):
            return False
        if not in_mid_answer and tries >= settings.provider_tries_max:
            return False
        pause_seconds = error.retry_after_seconds
        if pause_seconds is None:
            pause_seconds = min(_BACKOFF_SECONDS_MAX, settings.provider_backoff_seconds * 2 ** (tries - 1))
            pause_seconds *= random.uniform(0.5, 1.0)
        elif pause_seconds > _RETRY_AFTER_SECONDS_MAX:
            return False
        logger.info("stream %s: %s; trying again in %.1f s", self.stream_id, self._shown(error), pause_seconds)
        await self._pause(pause_seconds)
        if not in_mid_answer:
            return True
        await writer.drained()
        _, history_now = await self._read()
        if history_now.ended or history_now.attempt != history.attempt:
            raise Fenced
        history.items = history_now.items
        self.tally()
        if not await self._begin(writer, history, writer.attempt + 1, error.code):
            raise Fenced
        return True

    async def _pause(self, seconds: float) -> None:
        """Wait, unless something stops the run meanwhile. Raises what stopped it."""
        pause = asyncio.get_running_loop().create_task(asyncio.sleep(seconds))
        try:
            await self._until_done_or_halted(pause)
        finally:
            await self._closed(pause)
        if self._stopped is not None:
            raise self._stopped

    # --- ends

    @staticmethod
    def _failed(code: FailureCode, message: str, *, retryable: bool, **more: Any) -> bytes:
        return _terminal({"code": str(code), "message": message, "retryable": retryable, **more, "time": time.time()})

    async def _fail(
        self, writer: Writer, error: MidstreamError, code: FailureCode, *, retryable: bool, **more: Any
    ) -> None:
        await self._finish(writer, events.FAILED, self._failed(code, str(error), retryable=retryable, **more))
        metrics.failed(code)
        self._tell(logging.WARNING, AttemptOutcome.FAILED, f"failed: {code}: {self._shown(error)}", writer, code=code)

    @staticmethod
    async def _finish(writer: Writer, field: bytes, value: bytes) -> None:
        sent_at = time.monotonic()
        await writer.finish(field, value)
        metrics.APPEND.observe(time.monotonic() - sent_at)

    def _shown(self, error: MidstreamError) -> str:
        """An error as the log may show it. The provider's own words may hold the prompt's."""
        said_by_provider = isinstance(error, ProviderError) and (error.error is not None or error.status is not None)
        if not said_by_provider or self._settings.log_texts:
            return str(error)
        return f"the provider said so, with status {getattr(error, 'status', None)}"

    def _tell(self, level: int, how: AttemptOutcome, message: str, writer: Writer, **more: str) -> None:
        """The line of an attempt's end, and its count."""
        self.tally()
        self.meter.ended(how, **more)
        about = outcome("attempt", self.stream_id, attempt=writer.attempt, outcome=how, tokens=writer.offset, **more)
        logger.log(level, "stream %s: %s, %d tokens", self.stream_id, message, writer.offset, extra=about)


def _terminal(value: dict[str, Any]) -> bytes:
    """The JSON of a terminal event. It can always be made: what cannot be stored is null in it."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(storable(value, lambda: None))


def _place_of(error: BaseException) -> str:
    """An unexpected exception as the log may show it: kind and place, not the message, which may hold an answer's text."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_SHOWN:]
    return " < ".join([type(error).__name__, *(f"{it.name}:{it.lineno}" for it in reversed(frames))])
