"""A worker process: claims requests, runs many at once, renews their leases, takes over from dead workers, stops in order."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from producer import metrics
from producer.metrics import Meter
from producer.provider import Provider
from producer.run import HandedBack, Run, patience_of
from producer.tracing import TracedMeter
from shared.background import Complaints, keep_running
from shared.errors import Disconnected, RedisRefused
from shared.event_log import EventLog
from shared.outcomes import AttemptOutcome
from shared.queue import Blocking, Claim, RequestQueue
from shared.receipt import RECEIPT_LINE_SECONDS, DeliveryNotes, write_line
from shared.redis_retry import until_redis_answers
from shared.settings import Settings
from shared.usage import Usage

if TYPE_CHECKING:
    from producer.archiving import Archiving
    from producer.webhooks import Webhooks
    from shared.spans import Tracing

logger = logging.getLogger(__name__)

BLOCK_SECONDS = 1.0
"""How long a claim waits for a request: the longest time in which an idle worker notices that it has to stop."""
_SOONEST_SECONDS = 0.01
"""A moment that is nearer counts as over: a timer may be early by a millisecond."""
_SHARED_BLOCK_SECONDS = 0.02
"""The shortest wait for a request in one lane, while other lanes wait for a place."""
_CLAIM_AT_ONCE_MAX = 64
_RENEWALS_PER_LEASE = 4
"""So a worker may be late by three quarters of a lease, 1.5 s by default, before others take it for dead."""
_LOOKS_PER_LEASE = 10
_TAKE_OVER_AT_ONCE_MAX = 128
_NEXT_LOOK_SECONDS = 0.01
"""The pause after a look that found as many expired leases as it may take: the worker that died had more. In the pause other
workers look, too, and so share them."""
_WATCH_SECONDS = 0.2
_CONSUMER_IDLE_MILLISECONDS = 3_600_000
_FORGET_SECONDS = 600.0
_HAND_BACK_SECONDS = 3.0
_FAILURES_MAX = 5
"""Reported to the console with each heartbeat, at about 150 bytes each."""
_FAILURES_SECONDS = 120.0


class Lane:
    """One lane of the queue as one worker sees it."""

    def __init__(self, queue: RequestQueue, blocking: Blocking) -> None:
        self.queue = queue
        self.blocking = blocking
        self.answered_at = time.monotonic()
        """When the newest look for expired leases was answered."""
        self.server = queue.server
        self.claims: set[Claim] = set()
        """Those on which this worker works."""
        self.leases_count_from = 0.0
        """From when on an expired lease shows again that its worker is dead (monotonic seconds)."""


class Worker:
    """Claims requests and runs them. `lanes` are the queues from which it does, each with a connection for its claims alone."""

    def __init__(
        self,
        *,
        name: str,
        log: EventLog,
        lanes: Sequence[tuple[RequestQueue, Blocking]],
        deliveries: DeliveryNotes,
        usage: Usage,
        provider: Provider,
        settings: Settings,
        tracing: Tracing | None = None,
        archiving: Archiving | None = None,
        webhooks: Webhooks | None = None,
    ) -> None:
        self._name = name
        self._log = log
        self._lanes = [Lane(queue, blocking) for queue, blocking in lanes]
        self._lane_of = {lane.queue.key: lane for lane in self._lanes}
        self._phase = random.random()
        """Where the moments at which this worker turns to its lanes lie between those of others."""
        self._deliveries = deliveries
        self._usage = usage
        self._archiving = archiving
        self._webhooks = webhooks
        self._receipts: set[asyncio.Task[None]] = set()
        self._provider = provider
        self._settings = settings
        self._tracing = tracing
        self._runs: dict[Claim, Run] = {}
        self._tasks: dict[Claim, asyncio.Task[None]] = {}
        self._places_asked = 0
        """How many requests the claims that wait now may bring."""
        self._lanes_without_place = 0
        self._complaints = Complaints(logger.error)
        self._failures: deque[dict[str, Any]] = deque(maxlen=_FAILURES_MAX)
        self._changed = asyncio.Event()
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Claims nothing more. Called a second time, hands back at once what is unfinished."""
        if self._draining.is_set():
            self._stop_runs()
        self._draining.set()

    @property
    def draining(self) -> bool:
        return self._draining.is_set()

    def tally(self) -> int:
        """Counts the tokens that were appended since the last call, and returns how many answers are under way."""
        for run in self._runs.values():
            run.tally()
        return len(self._runs)

    def failures(self) -> list[dict[str, Any]]:
        """The newest streams of the last two minutes that ended as failed here."""
        return [failure for failure in self._failures if time.time() - failure["ended_at"] < _FAILURES_SECONDS]

    async def run(self) -> None:
        """Works until it is drained: then every claim is finished or handed back."""
        loops = [
            keep_running(name, partial(self._repeat, loop, pause_seconds))
            for lane in self._lanes  # each by itself: the server of one may be away
            for name, loop, pause_seconds in (
                ("renew", partial(self._renew, lane), self._settings.lease_seconds / _RENEWALS_PER_LEASE),
                ("take_over", partial(self._take_over, lane), self._settings.lease_seconds / _LOOKS_PER_LEASE),
                ("forget", partial(self._forget, lane), _FORGET_SECONDS),
            )
        ]
        loops.append(keep_running("watch", self._watch))
        try:
            await asyncio.gather(*(self._claim_until_drained(lane) for lane in self._lanes))
            await self._finish_runs()
            if self._receipts:
                await asyncio.wait(self._receipts, timeout=2 * RECEIPT_LINE_SECONDS)
        finally:
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    # --- claiming

    async def _claim_until_drained(self, lane: Lane) -> None:
        try:
            await lane.queue.open()
        except (Disconnected, RedisRefused) as error:
            logger.debug("the queue is not open yet: %s", error)  # the first claim opens it
        while not self._draining.is_set():
            count = await self._places()
            block_seconds = self._seconds_to_next(BLOCK_SECONDS)
            if self._lanes_without_place:  # the claims of other lanes wait until this one has returned
                block_seconds = max(_SHARED_BLOCK_SECONDS, BLOCK_SECONDS / len(self._lanes))
            claims: list[Claim] = []
            try:
                if count:
                    claims = await lane.queue.claim(lane.blocking, count, int(block_seconds * 1000))
            except (Disconnected, RedisRefused) as error:
                if isinstance(error, RedisRefused) and not error.passing:
                    self._complaints.say(f"no request can be claimed: {error}")
                logger.debug("no claim: %s", error)
                await asyncio.sleep(random.uniform(0.1, 0.5))
                continue
            finally:
                self._places_asked -= count
                self._changed.set()
            for claim in claims:
                if claim not in self._runs:  # else a server that has lost this worker's claim has given it out again
                    self._start(claim, is_doubtful=True)
            if self._lanes_without_place:
                await asyncio.sleep(_NEXT_LOOK_SECONDS)

    async def _places(self) -> int:
        """Returns how many requests one lane may claim now, once there is room for any; 0 when the worker is drained."""
        while not self._draining.is_set():
            free = self._settings.worker_concurrency - len(self._runs) - self._places_asked
            if free > 0:
                count = min(_CLAIM_AT_ONCE_MAX, max(1, free // len(self._lanes)))
                self._places_asked += count
                return count
            self._changed.clear()
            self._lanes_without_place += 1
            await self._first_of(self._changed, self._draining)
            self._lanes_without_place -= 1
        return 0

    async def _take_over(self, lane: Lane) -> None:
        """Takes over the requests of dead workers."""
        lease_milliseconds = int(self._settings.lease_seconds * 1000)
        if not await self._leases_count(lane):
            return
        while not self._draining.is_set():
            count = min(self._settings.worker_concurrency - len(self._runs), _TAKE_OVER_AT_ONCE_MAX)
            if count <= 0:
                return
            asked_at, server = time.monotonic(), lane.queue.server
            claims = await lane.queue.claim_expired(count, lease_milliseconds)
            lane.answered_at = time.monotonic()
            # The server stood still over this command, or another one has carried it out: the workers may live.
            is_doubtful = lane.answered_at - asked_at > self._settings.lease_seconds / 2 or lane.queue.server != server
            for claim in claims:
                if claim not in self._runs:  # else it is this worker's own, renewed a little late
                    logger.info("stream %s: its worker's lease has expired; taking it over", claim.stream_id)
                    metrics.TAKEOVERS.inc()
                    self._start(claim, is_doubtful=is_doubtful)
            if len(claims) < count:
                return
            await asyncio.sleep(_NEXT_LOOK_SECONDS)

    async def _leases_count(self, lane: Lane) -> bool:
        """Whether an expired lease shows that its worker is dead. Raises Disconnected.

        While a lane's Redis was away or stood still, or all of this machine did, no worker could renew its leases. So after a
        silence of half a lease all workers are given the time to connect again, and then a lease anew: it has the time between
        two renewals, and by how much a worker may be late: many are now. So they are when another server has the lane: it
        may lack the newest renewals, and may have become known here first.
        """
        await lane.queue.ping()
        now, lease_seconds = time.monotonic(), self._settings.lease_seconds
        silent_seconds, lane.answered_at = now - lane.answered_at, now
        is_elsewhere, lane.server = lane.queue.server != lane.server, lane.queue.server
        if silent_seconds > lease_seconds / 2 or is_elsewhere:
            patience_seconds = patience_of(self._settings)
            lane.leases_count_from = now + patience_seconds
            logger.info(
                "Redis was silent for %.1f s, or another server has its place: no lease counts as expired for %.1f s",
                *(silent_seconds, patience_seconds),
            )
        return now >= lane.leases_count_from

    def _start(self, claim: Claim, *, is_doubtful: bool) -> None:
        provider, tracing = self._provider.name, self._tracing
        run = Run(
            claim,
            log=self._log,
            deliveries=self._deliveries,
            provider=self._provider,
            settings=self._settings,
            worker=self._name,
            last_heard_at=self._lane_of[claim.queue].queue.last_heard_at,
            is_doubtful=is_doubtful,
            meter=Meter(provider) if tracing is None else TracedMeter(provider, claim.stream_id, tracing),
        )
        self._runs[claim] = run
        self._lane_of[claim.queue].claims.add(claim)
        self._tasks[claim] = asyncio.create_task(self._run(run))

    async def _run(self, run: Run) -> None:
        claim = run.claim
        try:
            is_over = await run.run()
            if run.ended_here and run.principal:
                self._usage.accounts.send_ended(run.principal, run.stream_id)
            if is_over:
                await until_redis_answers(self._lane_of[claim.queue].queue.acknowledge, claim)
            if run.failure is not None:
                self._failures.append(run.failure)
            if run.noted_usage:
                self._usage.accounts.send_look(run.stream_id)
            if run.ended_here:
                task = asyncio.create_task(self._account_for(run.stream_id))
                self._receipts.add(task)
                task.add_done_callback(self._receipts.discard)
        except asyncio.CancelledError:
            raise
        except (
            RedisRefused
        ) as error:  # as when a permission was taken away: the lease runs out, and a worker that has it continues
            logger.error("stream %s: the attempt broke off: Redis refuses it: %s", claim.stream_id, error)
            run.meter.ended(AttemptOutcome.ERROR)
        except Exception:  # a bug must not end the worker; the lease runs out, and attempts_max bounds the rest
            logger.exception("stream %s: the attempt broke", claim.stream_id)
            run.meter.ended(AttemptOutcome.ERROR)
        finally:
            run.tally()
            self._runs.pop(claim, None)
            self._lane_of[claim.queue].claims.discard(claim)
            self._tasks.pop(claim, None)
            self._changed.set()

    async def _account_for(self, stream_id: str) -> None:
        """Logs the receipt of a stream that has ended here, and has it told of and archived."""
        ended = await write_line(
            self._log,
            self._deliveries,
            stream_id,
            after_seconds=RECEIPT_LINE_SECONDS,
            count=self._usage.count,
            on_receipt=metrics.receipt_written,
            with_texts=bool(self._settings.log_texts),
        )
        if ended is not None and self._webhooks is not None:
            self._webhooks.take(ended)
        if ended is not None and self._archiving is not None:
            await self._archiving.take(ended)

    # --- leases and limits

    async def _renew(self, lane: Lane) -> None:
        if lane.claims:
            held = {claim.entry_id: claim for claim in lane.claims}
            lost = []
            for entry_id in await lane.queue.renew(list(held.values())):
                run = self._runs.get(held[entry_id]) if entry_id in held else None
                if run is not None and not run.lease_is_lost:  # others are done, or known
                    run.lease_is_lost = True
                    lost.append(entry_id)
            metrics.LEASES_LOST.inc(len(lost))
            if lost:  # the next append or probe shows, by the log's fence, who may continue
                logger.warning("%d leases were lost: other workers took them, or Redis lost them", len(lost))

    async def _watch(self) -> None:
        checked_at = time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            now = time.monotonic()
            if now - checked_at > self._settings.lease_seconds:
                logger.warning("this process was stopped for %.1f s, longer than its leases", now - checked_at)
                for run in self._runs.values():
                    run.slept_through_its_lease()
            checked_at = now
            for run in list(self._runs.values()):
                try:
                    run.watch(now)
                except Exception:  # a bug in one run must not keep the others from being watched
                    logger.exception("stream %s: its time limits cannot be checked", run.stream_id)
                    run.stop(HandedBack())

    async def _forget(self, lane: Lane) -> None:
        await lane.queue.forget_idle_consumers(_CONSUMER_IDLE_MILLISECONDS)

    # --- leaving

    async def _finish_runs(self) -> None:
        logger.info("stopping: %d answers to finish within %g s", len(self._runs), self._settings.worker_drain_seconds)
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=self._settings.worker_drain_seconds)
        claims = [run.claim for run in self._runs.values()]
        tasks = list(self._tasks.values())
        self._stop_runs()
        if tasks:
            await asyncio.wait(tasks, timeout=_HAND_BACK_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(_HAND_BACK_SECONDS):
                await asyncio.gather(*(self._hand_back(lane.queue, claims) for lane in self._lanes))
        except (Disconnected, RedisRefused, TimeoutError) as error:
            logger.warning("could not hand back %d answers, their leases will run out: %s", len(claims), error)
        else:
            logger.info("stopped: %d answers handed back", len(claims))

    async def _hand_back(self, queue: RequestQueue, claims: list[Claim]) -> None:
        own = [claim for claim in claims if claim.queue == queue.key]
        if own:
            await queue.hand_back(own, int(self._settings.lease_seconds * 1000))

    def _stop_runs(self) -> None:
        for run in list(self._runs.values()):
            run.stop(HandedBack())

    # --- helpers

    async def _repeat(self, once: partial[Coroutine[Any, Any, None]], pause_seconds: float) -> None:
        complaints = Complaints(logger.warning)
        while True:
            await asyncio.sleep(self._seconds_to_next(pause_seconds))
            try:
                await once()
            except Disconnected as error:
                logger.debug("%s", error)
            except RedisRefused as error:
                complaints.say(f"{once.func.__name__.strip('_')}: {error}")

    def _seconds_to_next(self, pause_seconds: float) -> float:
        """Returns how long it is to the next of this worker's moments that lie a pause apart.

        All lanes share them: what is sent for them leaves in one write, and is answered together. To wake up for each of sixteen
        lanes by itself costs more than all that is then done. Other workers have other moments.
        """
        earliest = asyncio.get_running_loop().time() + _SOONEST_SECONDS
        return _SOONEST_SECONDS + (self._phase * pause_seconds - earliest) % pause_seconds

    @staticmethod
    async def _first_of(*events: asyncio.Event) -> None:
        """Returns when one of the events is set."""
        waits = [asyncio.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
