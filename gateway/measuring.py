"""Periodic measurements of a gateway process: its own numbers once a second, the queue and Redis every five seconds."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from gateway import metrics
from gateway.delivery.delivery import Delivery
from gateway.following.pages import Pages
from gateway.following.silence_checks import SilenceChecks
from gateway.following.tails import Tails
from shared.background import keep_running, pause
from shared.connections import RedisConnection
from shared.errors import Disconnected, RedisRefused
from shared.lanes import Lanes
from shared.metrics import (
    QUEUE_OLDEST_SECONDS,
    QUEUE_REQUESTS,
    REDIS_CLIENTS,
    REDIS_COMMANDS_PER_SECOND,
    REDIS_EVICTED_KEYS,
    REDIS_HEADROOM_BYTES,
    REDIS_KEYS,
    REDIS_MEMORY_BYTES,
)
from shared.self_measuring import Measuring
from shared.settings import Settings

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0
"""How often Redis is measured: five commands, 0.2 ms of its time."""


class GatewayMeasuring(Measuring):
    """Hands this process's numbers over, and measures the queue and Redis.

    Every gateway measures these shared things, so that they can be seen when no worker is left.
    """

    def __init__(
        self,
        delivery: Delivery,
        tails: Tails,
        silence_checks: SilenceChecks,
        pages: Pages,
        commands: RedisConnection,
        queue: Lanes,
        settings: Settings,
    ) -> None:
        handover = metrics.handover
        super().__init__(handover, commands, tails.subscriber)
        self._queue = queue
        self._database = f"db{commands.address.database}"
        handover.show(metrics.READERS, lambda: delivery.readers)
        handover.show(metrics.READERS_MAX, lambda: settings.connections_max)
        handover.show(metrics.FOLLOWED, lambda: len(tails))
        handover.show(metrics.TICK, lambda: delivery.tick_seconds)
        handover.show(metrics.PAGE_CACHE_BYTES, lambda: pages.kept_bytes)
        handover.count(metrics.FALLEN_OUT, lambda: delivery.fallen_out)
        handover.count(metrics.PAGES_SENT, lambda: delivery.pages_sent)
        handover.count(metrics.FLUSHES, lambda: delivery.flushes)
        handover.count(metrics.DELIVERED, lambda: delivery.ledger.tokens)
        handover.count(metrics.PUSHED, lambda: tails.pushed)
        handover.count(metrics.LOG_CHECKS, lambda: silence_checks.checks)
        handover.count(metrics.LOG_READS["page"], lambda: pages.reads)
        for reason in tails.reads:
            handover.count(metrics.LOG_READS[reason], lambda reason=reason: tails.reads[reason])  # type: ignore[misc]
        self._redis_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        super().start()
        self._redis_task = keep_running("look", self._measure_redis)

    async def close(self) -> None:
        if self._redis_task is not None:
            self._redis_task.cancel()
            await asyncio.gather(self._redis_task, return_exceptions=True)
        await super().close()

    async def _measure_redis(self) -> None:
        while True:
            for measure in (self._measure_queue, self._measure_server):
                try:
                    await measure()
                except (Disconnected, RedisRefused) as error:  # away, or the command is not allowed
                    logger.debug("Redis was not measured: %s", error)
                except (TypeError, ValueError, LookupError, AttributeError) as error:  # a proxy's reply
                    logger.debug("Redis's reply has an unknown form: %r", error)
            await pause(_LOOK_SECONDS)

    async def _measure_queue(self) -> None:
        counts = await self._queue.counts()
        QUEUE_REQUESTS.gauge().labels("waiting").set(counts.waiting)
        QUEUE_REQUESTS.gauge().labels("claimed").set(counts.claimed)
        added_at = counts.oldest_waiting_at
        QUEUE_OLDEST_SECONDS.gauge().set(0.0 if added_at is None else max(0.0, time.time() - added_at))

    async def _measure_server(self) -> None:
        """Measures all masters that answer: their sums, and the headroom of the one that has least."""
        replies = await self._commands.execute_everywhere("INFO", "memory", "stats", "clients", "keyspace")
        infos = [_parsed(reply) for reply in replies]

        def total(name: str) -> float:
            return sum(float(info.get(name, 0)) for info in infos)

        REDIS_MEMORY_BYTES.gauge().set(total("used_memory"))
        REDIS_HEADROOM_BYTES.gauge().set(min(map(_headroom_bytes, infos)))
        REDIS_CLIENTS.gauge().set(total("connected_clients"))
        REDIS_COMMANDS_PER_SECOND.gauge().set(total("instantaneous_ops_per_sec"))
        REDIS_EVICTED_KEYS.gauge().set(total("evicted_keys"))
        keys = (info.get(self._database, "keys=0").partition(",")[0] for info in infos)
        REDIS_KEYS.gauge().set(sum(float(count.removeprefix("keys=")) for count in keys))


def _headroom_bytes(info: dict[str, str]) -> float:
    bound = float(info.get("maxmemory", 0)) or float(info.get("total_system_memory", 0))
    return max(0.0, bound - float(info.get("used_memory", 0)))


def _parsed(reply: Any) -> dict[str, str]:
    """Returns the fields of the reply to INFO."""
    lines = (line.partition(":") for line in bytes(reply).decode().splitlines())
    return {name: value for name, colon, value in lines if colon}
