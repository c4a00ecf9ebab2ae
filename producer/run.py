"""Answers one claimed request, from its lease to its terminal event, in one or more attempts.

read the log ──ended──► acknowledge
     │
take over: fence off earlier workers (<attempt>-0), or end the stream where its policy or a limit says so (`producer.takeover`)
     │
generate ──► append ──► done
     │
     ├─ fenced: somebody cancelled it or took it over. Close the provider's connection, write nothing
     ├─ the last reader has been gone for too long: cancelled, by disconnect
     ├─ the provider failed before the first token: call it again; readers do not notice
     └─ the provider failed in mid-answer: by policy a new attempt (restart, continue), or failed with the partial text kept
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from producer import metrics, terminal_events
from producer.metrics import Meter
from producer.provider import Finish, Provider, ProviderError, Refused, SoFar, abilities_of, base_url_of
from producer.retry_policy import pause_before_next_call, time_limit_passed
from producer.takeover import Takeover
from producer.writer import Writer
from shared import events
from shared.errors import Fenced, LogFull, MidstreamError, NewerFormat, RedisRefused, Unreadable
from shared.event_log import EventLog
from shared.events import Item
from shared.ids import EventId
from shared.lifecycle import History
from shared.logs import outcome
from shared.metrics import PROVIDER_ODDITIES_TOLERATED
from shared.outcomes import AttemptOutcome, CancelReason, FailureCode
from shared.provider_address import hint_at, host_of
from shared.queue import Claim
from shared.receipt import DeliveryNotes
from shared.redis_retry import until_redis_answers
from shared.settings import Settings

logger = logging.getLogger(__name__)

_FRAMES_LOGGED = 5
_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
"""A provider's `error.code` or `error.type` that is a name, and no text that may repeat the prompt."""
_STOP_SECONDS = 2.0
"""How long a call of the provider that was cancelled may take to end: shorter than a worker waits to hand its answers back."""
_unstopped: set[asyncio.Task[Any]] = set()
"""Calls that were cancelled and have not ended in time. They are kept here because the event loop holds tasks only weakly."""
_FIRST_READER_SECONDS = 0.5
"""So long at least a stream waits for its first reader, also with `cancel_after: 0`: a request that creates a stream and follows
it subscribes while a worker may have begun already."""
_PROBE_SECONDS = 0.4
"""After so long without an append the writer compares the log, so that a cancel reaches the provider within a second."""


def patience_of(settings: Settings) -> float:
    """Returns how long workers have, after their Redis was away or was replaced, to show that they live (seconds)."""
    return settings.reconnect_seconds_max + settings.lease_seconds


class LastReaderGone(MidstreamError):
    """Nobody has followed the stream for as long as its policy allows."""


class HandedBack(MidstreamError):
    """The worker is stopping: another one continues the stream."""


class Run:
    """The work on one claim."""

    __slots__ = (
        "__weakref__",  # tests ask whether a run is freed
        "_began_at",
        "_call_goes_on",
        "_cancel_after_seconds",
        "_deliveries",
        "_first_token_at",
        "_first_token_came",
        "_generating",
        "_halted",
        "_heard_at",
        "_history",
        "_is_doubtful",
        "_log",
        "_odd_kinds",
        "_probing",
        "_provider",
        "_settings",
        "_stopped",
        "_takeover",
        "_unread",
        "_waits_for_log",
        "_writer",
        "claim",
        "ended_here",
        "lease_is_lost",
        "meter",
        "noted_usage",
        "stream_id",
    )

    def __init__(
        self,
        claim: Claim,
        *,
        log: EventLog,
        deliveries: DeliveryNotes,
        provider: Provider,
        settings: Settings,
        worker: str,
        last_heard_at: Callable[[str], Awaitable[float | None]] | None = None,
        meter: Meter | None = None,
        is_doubtful: bool = False,
    ) -> None:
        """`is_doubtful`: the claim does not show that the worker of an attempt that the log may have is dead."""
        self.claim = claim
        self.lease_is_lost = False
        """Whether Redis has said that another worker has the request, or that nobody has."""
        self._is_doubtful = is_doubtful
        self.stream_id = claim.stream_id
        self._log = log
        self._deliveries = deliveries
        self._provider = provider
        self._settings = settings
        self.meter = meter or Meter(provider.name)
        self._takeover = Takeover(
            self.stream_id,
            log=log,
            provider=provider,
            settings=settings,
            worker=worker,
            meter=self.meter,
            last_heard_at=last_heard_at,
        )
        self.ended_here = False
        """Whether this run appended the terminal event: then its process logs the receipt."""
        self.noted_usage = False
        """Whether the usage came after the stream's end: then it is to be counted anew."""
        self._writer: Writer | None = None
        self._history: History | None = None
        """The log as it was when the provider was called."""
        self._generating: asyncio.Task[Finish] | None = None
        self._stopped: MidstreamError | None = None
        """What stopped the generation."""
        self._halted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._call_goes_on = False
        """A call of the provider was cancelled and has not ended: there must be no other one."""
        self._unread: asyncio.Task[Finish] | None = None
        """A cancelled answer that is read to its end for its usage."""
        self._cancel_after_seconds: float | None = None
        self._began_at = self._heard_at = time.monotonic()
        self._first_token_came = False
        self._first_token_at: float | None = None
        """When the newest call's first token came (Unix seconds)."""
        self._waits_for_log = False
        """The provider waits until what it gave is in the log: it is not silent."""
        self._odd_kinds: set[str] = set()
        """Kinds of odd values that have been logged."""
        self._probing: asyncio.Task[None] | None = None

    @property
    def principal(self) -> str:
        """Whose stream it is; empty until its log has been read."""
        return self._takeover.principal

    @property
    def failure(self) -> dict[str, Any] | None:
        """How this run ended its stream as failed, for the console: the code, never the provider's message."""
        return self._takeover.failure

    async def run(self) -> bool:
        """Answers the request to its end. Returns True when the stream has ended; False when another worker has it or is to take it."""
        try:
            opened = await self._takeover.open(self.stop, self._until_silent if self._is_doubtful else None)
            if opened is None:
                self.ended_here = self._takeover.ended_here
                return True
            self._writer, history = opened
            assert history.accepted is not None
            self._cancel_after_seconds = history.accepted.policies.cancel_after_seconds
            await self._answer(self._writer, history)
            self.ended_here = True
            await self._drain_for_usage()
            return True
        except HandedBack:
            self.tally()
            self.meter.ended(AttemptOutcome.HANDED_BACK)
            return False
        except NewerFormat as error:  # its lease runs out, and a worker that knows the format may claim it
            logger.warning("stream %s: left to another worker: %s", self.stream_id, error)
            return False
        except Fenced:
            return await self._was_fenced()
        except Unreadable as error:
            await self._end_unreadable(str(error))
            return True
        except RedisRefused as error:
            if error.code != "WRONGTYPE":
                raise
            await self._end_unreadable(str(error))
            return True
        except LogFull as error:  # before the attempt could begin
            await self._takeover.end_full(error)
            self.ended_here = True
            return True
        finally:
            unread, self._unread = self._unread, None
            if unread is not None:
                await self._closed(unread)
            self._let_go()

    async def _until_silent(self, last: EventId) -> None:
        """Returns when nobody has written behind `last`, or behind what came then, for as long as workers have to show that they
        live, or when the log has ended. Raises HandedBack.

        A server that has become the master may not know of a claim, and gives the request out a second time.
        """
        logger.info("stream %s: another worker may still write it; waiting until it falls silent", self.stream_id)
        pause_seconds = self._settings.lease_seconds / 4
        written_at = time.monotonic()
        while self._stopped is None:
            asked_at = time.monotonic()
            newest = await until_redis_answers(self._log.newest, self.stream_id)
            now = time.monotonic()
            if not newest or newest[-1].field in events.TERMINAL:
                return
            if newest[-1].id != last or now - asked_at > pause_seconds:  # while Redis is silent nobody can write
                last, written_at = newest[-1].id, now
            elif now - written_at >= patience_of(self._settings):
                return
            await asyncio.sleep(pause_seconds)
        raise self._stopped

    async def _was_fenced(self) -> bool:
        """Returns whether the stream has ended; False when another worker writes it now."""
        newest = await until_redis_answers(self._log.newest, self.stream_id)
        ended = not newest or newest[-1].field in events.TERMINAL
        self.tally()
        fenced_by = newest[-1].field.decode() if ended and newest else "another attempt"
        self.meter.ended(AttemptOutcome.FENCED, fenced_by=fenced_by)
        fields = outcome("attempt", self.stream_id, outcome=AttemptOutcome.FENCED)
        logger.info("stream %s: %s by another", self.stream_id, "ended" if ended else "taken over", extra=fields)
        if ended:
            await self._drain_for_usage()
        return ended

    async def _end_unreadable(self, reason: str) -> None:
        self.tally()
        await self._takeover.end_unreadable(reason)

    def _let_go(self) -> None:
        """Drops the references that lead back here, so that the last one to this run frees it and its copy of the log.

        The garbage collector runs only once in a million objects. Exceptions lead back by the frames in their tracebacks.
        """
        self.tally()
        if self._writer is not None:
            self._writer.let_go()
        self._writer = self._stopped = self._probing = self._history = None

    def stop(self, reason: MidstreamError) -> None:
        """Stops generating, for the first reason that is given."""
        if self._stopped is None and not self._halted.done():
            self._stopped = reason
            self._halted.set_result(None)

    def tally(self) -> None:
        """Counts the tokens that were appended since the last call."""
        if self._writer is not None:
            self.meter.tally(self._writer.attempt, self._writer.offset)

    def watch(self, now: float) -> None:
        """Checks, a few times a second, the time limits, whether anybody follows, and (with a probe) the log."""
        writer = self._writer
        if writer is None or self._stopped is not None:
            return
        if self._generating is not None and not writer.crowded and not self._waits_for_log:
            too_long = time_limit_passed(
                self._settings,
                calling_seconds=now - self._began_at,
                silent_seconds=now - self._heard_at,
                first_token_came=self._first_token_came,
            )
            if too_long is not None:
                self.stop(too_long)
        limit_seconds, unheard_since = self._cancel_after_seconds, writer.unheard_since
        if limit_seconds is not None and unheard_since is not None:
            if not writer.was_heard:
                limit_seconds = max(limit_seconds, _FIRST_READER_SECONDS)
            if now - unheard_since >= limit_seconds:
                self.stop(LastReaderGone())
        if now - writer.sent_at > _PROBE_SECONDS and (self._probing is None or self._probing.done()):
            self._probing = asyncio.get_running_loop().create_task(writer.probe())

    def slept_through_its_lease(self) -> None:
        """Notes that the process was suspended for longer than its lease: others may have ended or deleted the stream."""
        if self._writer is not None:
            self._writer.may_recreate = False

    # --- answering

    async def _answer(self, writer: Writer, history: History) -> None:
        try:
            finish = await self._generate_with_tries(writer, history)
            await self._finish(writer, events.DONE, terminal_events.done(finish, self._first_token_at))
            metrics.completed(finish.reason)
            self._report_end(AttemptOutcome.COMPLETED, f"done: {finish.reason}", writer, finish_reason=finish.reason)
        except (Fenced, HandedBack):
            raise
        except LastReaderGone:
            reason = CancelReason.DISCONNECT
            await self._finish(writer, events.CANCELLED, terminal_events.cancelled(reason, self._first_token_at))
            metrics.cancelled(reason)
            self._report_end(AttemptOutcome.CANCELLED, "cancelled: the last reader has gone", writer, by=reason)
        except LogFull as error:
            await self._fail(writer, error, FailureCode.LOG_FULL, retryable=False)
        except ProviderError as error:
            await self._fail(writer, error, error.code, retryable=error.retryable, **error.about())
        except Exception as error:  # Redis refuses, or a bug: another attempt would cost money and fail in the same way
            logger.error("stream %s: the attempt broke: %s", self.stream_id, _place_of(error))
            message = f"the worker could not go on: {type(error).__name__}"
            await self._fail(writer, MidstreamError(message), FailureCode.INTERNAL_ERROR, retryable=True)

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
                if self._call_goes_on:
                    raise  # what that call still yields must not get into another attempt
                self._stopped = None
                self._halted = asyncio.get_running_loop().create_future()
                in_mid_answer = self._first_token_came
                if not await self._try_again(writer, history, error, tries):
                    raise
                if in_mid_answer:
                    tries = 0

    async def _generate(self, writer: Writer, history: History) -> Finish:
        """Calls the provider once and appends its answer. Raises the reason if it was stopped."""
        assert history.accepted is not None
        self._began_at = self._heard_at = time.monotonic()
        self._first_token_came = False
        self._first_token_at = None
        if self._stopped is not None:
            raise self._stopped
        self._history = history
        offset_before = writer.offset
        self.meter.call_begun(self._provider.model_of(history.accepted.request))
        self._generating = call = asyncio.get_running_loop().create_task(
            self._provider.generate(history.accepted.request, history.text, self)
        )
        try:
            await self._until_done_or_halted(call)
            # After a stop the rest of the answer is ignored: then the end of the call is not the end of the answer.
            if self._stopped is None:
                if call.cancelled():
                    raise Refused("the call of the provider cancelled itself", code=FailureCode.PROVIDER_UNREADABLE)
                finish = call.result()
                await writer.drained()
                self.meter.call_answered(writer.offset - offset_before, self._heard_at, finish.usage)
                return finish
            if self._settings.provider_on_cancel == "drain" and isinstance(self._stopped, Fenced | LastReaderGone):
                reads_on = abilities_of(self._provider, history.accepted.request).reads_on
                self._unread = call if reads_on else None
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
            self._generating = None
            if self._unread is not call:
                await self._closed(call)
            del call  # the task's exception refers to this frame, which must not refer back to the task

    async def _until_done_or_halted(self, task: asyncio.Task[Any]) -> None:
        await asyncio.wait({task, self._halted}, return_when=asyncio.FIRST_COMPLETED)

    async def _closed(self, task: asyncio.Task[Any]) -> None:
        """Cancels a task and waits until it has ended. Ending a call of the provider closes its connection.

        One that does not end is left alone: this run takes nothing from it any more.
        """
        task.cancel()
        await asyncio.wait({task}, timeout=_STOP_SECONDS)
        if not task.done():
            self._call_goes_on = True
            _unstopped.add(task)
            task.add_done_callback(_has_stopped)
            logger.error(
                "stream %s: what generates it has not stopped within %g s of its cancellation; nothing that it still yields is taken",
                self.stream_id,
                _STOP_SECONDS,
            )
        elif not task.cancelled():
            task.exception()  # marks it as retrieved: it is known already, or no longer matters

    async def _drain_for_usage(self) -> None:
        """Reads a cancelled answer to its end without writing it: some providers bill all of it, and send the usage last."""
        if self._unread is None:
            return
        try:
            async with asyncio.timeout(self._settings.attempt_seconds):
                finish = await self._unread
            if finish.usage is not None:
                await self._deliveries.note_usage(self.stream_id, finish.usage)
                self.noted_usage = True
        except (MidstreamError, TimeoutError) as error:
            reason = self._shown(error) if isinstance(error, MidstreamError) else "it did not end in time"
            logger.info("stream %s: the usage of the cancelled answer is not known: %s", self.stream_id, reason)
        except Exception as error:
            logger.error("stream %s: the cancelled answer could not be read: %s", self.stream_id, _place_of(error))

    # --- Hearer

    @property
    def so_far(self) -> SoFar:
        assert self._history is not None
        return SoFar(self.stream_id, self._history)

    def progress(self) -> None:
        self._heard_at = time.monotonic()

    async def stored(self) -> None:
        if self._writer is None or self._stopped is not None:
            raise Fenced
        self._waits_for_log = True
        try:
            await self._writer.drained()
        finally:
            self._waits_for_log = False
            self._heard_at = time.monotonic()

    def accept(self, items: list[Item]) -> bool:
        """Appends items of the provider's answer; ignores them after a stop. Returns False when the caller must wait for room.

        Raises Fenced when the run has ended.
        """
        if self._writer is None:
            raise Fenced
        self._heard_at = time.monotonic()
        if not self._first_token_came:
            self._first_token_came = True
            self._first_token_at = time.time()
            self.meter.first_token()
        if self._stopped is not None:
            return True
        return self._writer.push(items)

    @property
    def has_pace(self) -> bool:
        return self._writer is not None and self._writer.has_pace

    def wants_at(self) -> float:
        return 0.0 if self._writer is None else self._writer.next_entry_at

    def odd(self, kind: str) -> None:
        """Counts what is not as documented, and logs each kind once per run."""
        metrics.odd(kind)
        if kind not in self._odd_kinds:
            self._odd_kinds.add(kind)
            oddity = PROVIDER_ODDITIES_TOLERATED.get(kind, "something that is not as documented")
            logger.info("stream %s: the provider sent %s (%s)", self.stream_id, oddity, kind)

    async def wait_for_room(self) -> None:
        if self._writer is None:
            raise Fenced
        await self._writer.wait_for_room()
        self._heard_at = time.monotonic()

    # --- after a provider's error

    async def _try_again(self, writer: Writer, history: History, error: ProviderError, tries: int) -> bool:
        """Waits, then prepares another call of the provider: in the same attempt if no token came, else in a new one.

        Returns False if there is to be no further call.
        """
        assert history.accepted is not None
        in_mid_answer = self._first_token_came
        pause_seconds = pause_before_next_call(
            self._settings,
            error,
            on_interrupt=history.accepted.policies.on_interrupt,
            attempt=writer.attempt,
            tries=tries,
            in_mid_answer=in_mid_answer,
        )
        if pause_seconds is None:
            return False
        logger.info("stream %s: %s; trying again in %.1f s", self.stream_id, self._shown(error), pause_seconds)
        await self._pause(pause_seconds)
        if not in_mid_answer:
            return True
        await writer.drained()
        _, history_now = await self._takeover.read()
        if history_now.ended or history_now.attempt != history.attempt:
            raise Fenced
        history.items = history_now.items
        self.tally()
        if not await self._takeover.begin(writer, history, writer.attempt + 1, error.code):
            raise Fenced
        return True

    async def _pause(self, seconds: float) -> None:
        """Waits. If the run is stopped meanwhile, raises the reason."""
        pause = asyncio.get_running_loop().create_task(asyncio.sleep(seconds))
        try:
            await self._until_done_or_halted(pause)
        finally:
            await self._closed(pause)
        if self._stopped is not None:
            raise self._stopped

    # --- ends

    async def _fail(
        self, writer: Writer, error: MidstreamError, code: FailureCode, *, retryable: bool, **more: Any
    ) -> None:
        more["first_token_at"] = self._first_token_at
        await self._finish(writer, events.FAILED, terminal_events.failed(code, str(error), retryable=retryable, **more))
        self._takeover.note_failure(writer.attempt, writer.offset, code, getattr(error, "status", None))
        metrics.failed(code)
        message = f"failed: {code}: {self._shown(error)}"
        self._report_end(AttemptOutcome.FAILED, message, writer, code=code)

    @staticmethod
    async def _finish(writer: Writer, field: bytes, value: bytes) -> None:
        sent_at = time.monotonic()
        await writer.finish(field, value)
        metrics.APPEND.observe(time.monotonic() - sent_at)

    def _shown(self, error: MidstreamError) -> str:
        """Returns an error's text for the log: a provider's with its host, without its own message, which may repeat the prompt."""
        request = None if self._history is None or self._history.accepted is None else self._history.accepted.request
        url = "" if request is None else base_url_of(self._provider, request)
        if not isinstance(error, ProviderError):
            return str(error)
        host = host_of(url) if url else f"the {self._provider.name} provider"
        if (error.error is None and error.status is None) or self._settings.log_texts:
            return f"{host}: {error}{hint_at(url, error.status)}" if url else str(error)
        code = str((error.error or {}).get("code") or (error.error or {}).get("type") or "")
        shown_code = f" ({code})" if _CODE.fullmatch(code) else ""
        answered = f"answered with status {error.status}" if error.status is not None else "sent an error"
        return f"{host} {answered}{shown_code}{hint_at(url, error.status)}"

    def _report_end(self, how: AttemptOutcome, message: str, writer: Writer, **more: str) -> None:
        """Logs and counts the end of an attempt."""
        self.tally()
        self.meter.ended(how, **more)
        level = logging.WARNING if how == AttemptOutcome.FAILED else logging.INFO
        fields = outcome("attempt", self.stream_id, attempt=writer.attempt, outcome=how, tokens=writer.offset, **more)
        logger.log(level, "stream %s: %s, %d tokens", self.stream_id, message, writer.offset, extra=fields)


def unstopped() -> int:
    """Returns how many calls of the provider still run although they were cancelled."""
    return len(_unstopped)


def _has_stopped(task: asyncio.Task[Any]) -> None:
    _unstopped.discard(task)
    if not task.cancelled():
        task.exception()  # of no interest, but it must have been read


def _place_of(error: BaseException) -> str:
    """Returns an unexpected exception's type and place for the log; not its message, which may hold a part of the answer."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_LOGGED:]
    return " < ".join([type(error).__name__, *(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))])
