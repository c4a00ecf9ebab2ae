"""Tells of ended streams by webhooks: each at least once, whoever ended it and whatever dies (`shared.webhooks`).

    this worker ended it ──► its receipt is logged ──┐
                                                     ├──► waiting, by host (bounded) ──► claimed ──► POST ──► noted
    a look: somebody else ended it, died, or failed ─┘           │ there is no room
                                                                 └──► dropped: the list in Redis has it

Nothing that answers waits for a receiver, and no receiver for another: a host has a few places, and all have some more.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import logging
import random
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from producer import metrics
from producer.webhook_post import AT_ONCE_MAX, NotDelivered, Poster
from shared.background import Complaints, keep_running
from shared.due_list import LOOK_SECONDS
from shared.errors import Disconnected, MidstreamError, RedisRefused
from shared.event_log import EventLog
from shared.events import DELETED, TERMINAL, UNREADABLE, Webhook
from shared.ids import created_at
from shared.receipt import DeliveryNotes, EndedLog, read_ended
from shared.redis_retry import until_redis_answers
from shared.settings import Settings
from shared.webhook_target import BadTarget
from shared.webhooks import WAITING_MAX, Pending, Secrets, WebhookStore, body_of

logger = logging.getLogger(__name__)

_PER_HOST_MAX = 8
"""POSTs to one host at a time: with a receiver that takes a tenth of a second, 80 a second from each worker."""
_QUEUED_MAX, _QUEUED_OF_HOST_MAX, _QUEUED_BYTES_MAX = 1000, 250, 16 << 20
"""Webhooks that wait here for a place, of one host and in all. What comes more is found in Redis later."""
_QUEUED_SECONDS = 10.0
"""What has waited longer is left to the list, so that nobody sends what another process has sent meanwhile."""
_CLAIM_MARGIN_SECONDS = 5.0
_PAUSE_FACTOR, _PAUSE_SECONDS_MAX, _RETRY_AFTER_SECONDS_MAX = 4.0, 10_800.0, 3_600.0
_LOOKS_AT_ONCE, _LOOK_PAUSE_SECONDS = 50, 1.0
_COUNT_SECONDS = 5.0
_NOTE_SECONDS = 30.0
"""How long what came of a try waits for Redis to be noted."""
_CLOSE_SECONDS = 3.0
_GONE_STATUS = 410


class _Queued(NamedTuple):
    pending: Pending
    at: float
    """Monotonic seconds."""


class Webhooks:
    """A worker's part of the webhooks."""

    def __init__(
        self,
        store: WebhookStore,
        poster: Poster,
        secrets: Secrets,
        log: EventLog,
        deliveries: DeliveryNotes,
        settings: Settings,
    ) -> None:
        self._store = store
        self._poster = poster
        self._secrets = secrets
        self._log = log
        self._deliveries = deliveries
        self._settings = settings
        self._queued: OrderedDict[str, deque[_Queued]] = OrderedDict()
        """By host; the host whose turn it is comes first."""
        self._queued_bytes = 0
        self._sending: dict[str, int] = {}
        """POSTs under way by host."""
        self._held: set[str] = set()
        """Streams that wait here or are being sent."""
        self._posts: set[asyncio.Task[None]] = set()
        self._waiting = 0
        """How many webhooks had failed and were to be tried again, when they were last counted."""
        self._counted_at = 0.0
        self._complaints = Complaints(logger.warning)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = keep_running("webhooks", self._look)

    async def close(self) -> None:
        """Ends, with some seconds for the POSTs under way. What waits is left to other workers."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for queue in self._queued.values():
            for queued in queue:
                self._store.due.send_look(queued.pending.stream_id, 0.0, "XX")
        self._queued.clear()
        if self._posts:
            await asyncio.wait(self._posts, timeout=_CLOSE_SECONDS)
        for post in self._posts:
            post.cancel()
        await asyncio.gather(*self._posts, return_exceptions=True)
        await self._poster.close()

    def take(self, ended: EndedLog) -> None:
        """Takes a stream that has ended, to be told of if it has a webhook. Without room it is left to the list."""
        webhook = _webhook_of(ended)
        if webhook is None or ended.stream_id in self._held:
            return
        if self._has_room:
            self._add(_first(ended, webhook))
        if ended.stream_id not in self._held:
            self._store.send_enter(ended.stream_id)

    # --- what waits

    @property
    def _has_room(self) -> bool:
        return len(self._held) < _QUEUED_MAX and self._queued_bytes < _QUEUED_BYTES_MAX

    def _add(self, pending: Pending) -> None:
        """Takes a webhook, unless its host has too many that wait."""
        queue = self._queued.setdefault(pending.host, deque())
        if len(queue) < _QUEUED_OF_HOST_MAX:
            queue.append(_Queued(pending, time.monotonic()))
            self._queued_bytes += len(pending.body)
            self._held.add(pending.stream_id)
            self._begin_posts()

    def _begin_posts(self) -> None:
        """Begins as many POSTs as there are places, the hosts in turn."""
        while len(self._posts) < AT_ONCE_MAX:
            hosts = (host for host in self._queued if self._sending.get(host, 0) < _PER_HOST_MAX)
            host = next(hosts, None)
            if host is None:
                return
            queue = self._queued[host]
            queued = queue.popleft()
            self._queued.move_to_end(host)
            if not queue:
                del self._queued[host]
            self._queued_bytes -= len(queued.pending.body)
            self._sending[host] = self._sending.get(host, 0) + 1
            post = asyncio.get_running_loop().create_task(
                self._send(queued, host),
                context=contextvars.Context(),  # another request's would be named in its log lines
            )
            self._posts.add(post)
            post.add_done_callback(self._posts.discard)

    async def _send(self, queued: _Queued, host: str) -> None:
        stream_id = queued.pending.stream_id
        try:
            if time.monotonic() - queued.at < _QUEUED_SECONDS and await self._store.claim(
                stream_id, self._settings.webhook_seconds + _CLAIM_MARGIN_SECONDS
            ):
                await self._try(queued.pending)
        except (Disconnected, RedisRefused) as error:
            logger.debug("stream %s: its webhook is looked at again: %s", stream_id, error)
        except MidstreamError as error:
            logger.warning("stream %s: its webhook cannot be sent: %s", stream_id, error)
        except Exception:  # a bug with one must not end the others' places
            logger.exception("stream %s: its webhook broke", stream_id)
        finally:
            self._held.discard(stream_id)
            self._sending[host] -= 1
            if not self._sending[host]:
                del self._sending[host]
            task = asyncio.current_task()
            assert task is not None
            self._posts.discard(task)
            if not task.cancelling():
                self._begin_posts()

    # --- one try

    async def _try(self, pending: Pending) -> None:
        """Sends a webhook that was claimed, and notes what came of it."""
        now = time.time()
        pending = dataclasses.replace(pending, tries=pending.tries + 1, first_at=pending.first_at or now)
        if await self._store.is_gone(pending.url):
            await self._give_up(pending, "gone", "the receiver has answered 410 to another one")
            return
        secrets = self._secrets.for_principal(pending.signer) if pending.signer else self._secrets
        headers = secrets.headers(pending.stream_id, int(now), pending.body)
        began_at = time.monotonic()
        try:
            reply = await self._poster.post(pending.url, headers, pending.body)
        except BadTarget as error:
            metrics.WEBHOOK_FAILURES.labels("refused").inc()
            await self._give_up(pending, "refused", str(error))
            return
        except NotDelivered as error:
            metrics.WEBHOOK_FAILURES.labels(error.kind).inc()
            await self._failed(pending, str(error), 0.0)
            return
        finally:
            metrics.WEBHOOK_SECONDS.observe(time.monotonic() - began_at)
        if 200 <= reply.status < 300:
            metrics.WEBHOOKS_DELIVERED.inc()
            logger.info(
                "stream %s: its webhook has arrived at %s, try %d", pending.stream_id, pending.host, pending.tries
            )
            await self._note(self._store.delivered, pending)
        elif reply.status == _GONE_STATUS:
            metrics.WEBHOOK_FAILURES.labels("status").inc()
            await self._note(self._store.gone, pending.url)
            await self._give_up(pending, "gone", "the receiver answered 410: nothing is sent there for a day")
        else:
            metrics.WEBHOOK_FAILURES.labels("status").inc()
            await self._failed(pending, f"the receiver answered {reply.status}", reply.retry_after_seconds)

    async def _failed(self, pending: Pending, error: str, retry_after_seconds: float) -> None:
        """Has a webhook tried again after a pause, or gives it up."""
        remaining_seconds = pending.first_at + self._settings.webhook_retry_seconds - time.time()
        if remaining_seconds <= 0:
            await self._give_up(pending, "expired", error)
            return
        if pending.tries == 1 and self._waiting >= WAITING_MAX:
            await self._give_up(pending, "full", f"{error}; {WAITING_MAX} webhooks wait already, and no more may")
            return
        pause_seconds = self._settings.webhook_backoff_seconds * _PAUSE_FACTOR ** min(pending.tries - 1, 20)
        pause_seconds = min(pause_seconds, _PAUSE_SECONDS_MAX) * random.uniform(0.75, 1.25)
        pause_seconds = max(pause_seconds, min(retry_after_seconds, _RETRY_AFTER_SECONDS_MAX))
        pause_seconds = min(pause_seconds, remaining_seconds)  # the last try is at the end of the time
        self._complaints.say(f"webhooks to {pending.host} fail: {error}")
        await self._note(self._store.again, dataclasses.replace(pending, error=error), pause_seconds)

    async def _give_up(self, pending: Pending, why: str, error: str) -> None:
        metrics.WEBHOOKS_DEAD.labels(why).inc()
        logger.warning(
            "stream %s: its webhook to %s is given up after %d tries: %s",
            *(pending.stream_id, pending.host, pending.tries, error),
        )
        await self._note(self._store.dead, dataclasses.replace(pending, error=error, dead_at=time.time()))

    async def _note(self, call: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Notes what came of a try, also if Redis is away for a while: else it would be sent once more."""
        try:
            async with asyncio.timeout(_NOTE_SECONDS):
                await until_redis_answers(call, *arguments)
        except TimeoutError:
            raise Disconnected(f"Redis has not answered for {_NOTE_SECONDS:g} s") from None

    # --- looks

    async def _look(self) -> None:
        """Looks for streams of whose end nobody was told, and for webhooks that are to be tried again."""
        while True:
            found = 0
            try:
                await self._count()
                found = await self._look_at_some()
            except Disconnected as error:
                logger.debug("no look at webhooks: %s", error)
            except RedisRefused as error:
                self._complaints.say(f"webhooks cannot be read: {error}")
            if found < _LOOKS_AT_ONCE:
                await asyncio.sleep(_LOOK_PAUSE_SECONDS * random.uniform(0.5, 1.0))

    async def _count(self) -> None:
        now = time.monotonic()
        if now - self._counted_at > _COUNT_SECONDS:
            self._counted_at = now
            self._waiting, dead = await self._store.counts()
            metrics.WEBHOOKS_WAITING.set(self._waiting)
            metrics.WEBHOOKS_DEAD_KEPT.set(dead)
            metrics.WEBHOOK_OLDEST.set(await self._store.oldest_seconds() if self._waiting else 0.0)

    async def _look_at_some(self) -> int:
        """Looks at the streams whose time has come, one after the other: so one log at a time is in memory."""
        if not self._has_room:
            return 0
        stream_ids = await self._store.due.take(_LOOKS_AT_ONCE, LOOK_SECONDS)
        for stream_id in stream_ids:
            if not self._has_room:  # the others are handed out again in a minute
                return 0
            if stream_id not in self._held:
                try:
                    await self._look_at(stream_id)
                except (Disconnected, RedisRefused):
                    raise
                except MidstreamError as error:
                    logger.warning("stream %s: its webhook cannot be sent: %s", stream_id, error)
        return len(stream_ids)

    async def _look_at(self, stream_id: str) -> None:
        pending = await self._store.pending(stream_id)
        if pending is not None:
            if pending.dead_at:  # Redis has lost that it was given up, but for this
                await self._store.dead(pending)
            else:
                self._add(pending)
            return
        newest = await self._log.newest(stream_id)
        if newest and newest[-1].field in TERMINAL - {DELETED}:
            ended = await read_ended(self._log, self._deliveries, stream_id)
            webhook = _webhook_of(ended)
            if webhook is not None:
                self._add(_first(ended, webhook))
                return
        elif newest and newest[-1].field not in (DELETED, UNREADABLE):
            return  # it runs: the next look is in a minute
        elif not newest and time.time() - created_at(stream_id) > self._settings.ended_ttl_seconds:
            metrics.WEBHOOKS_DEAD.labels("lost").inc()
            logger.warning("stream %s: its log is gone, and nobody was told of its end", stream_id)
        elif not newest and time.time() - created_at(stream_id) < LOOK_SECONDS:
            return  # its log is about to begin
        await self._store.due.remove([stream_id])


def _webhook_of(ended: EndedLog) -> Webhook | None:
    """Returns the webhook of a stream that has ended; None if nobody is to be told."""
    history = ended.generated.history
    return history.accepted.policies.webhook if history.accepted is not None and history.ended else None


def _first(ended: EndedLog, webhook: Webhook) -> Pending:
    return Pending(ended.stream_id, webhook.url, webhook.signer, body_of(ended, with_text=webhook.with_text))
