"""Whether this process can serve: Redis answers, allows all commands that a gateway needs, and does not evict keys."""

from __future__ import annotations

import asyncio
import logging
import time

from shared.background import Complaints
from shared.connections import RedisConnection
from shared.errors import Disconnected
from shared.grants import Subscription, check_grants, refusals, until_up
from shared.redis_retry import until_redis_answers
from shared.redis_server import complaint_about, eviction_policy
from shared.settings import Settings

logger = logging.getLogger(__name__)

_FRESH_SECONDS = 1.0
"""How long a result is reused: a look takes 1 ms of Redis, so asking more often costs no more."""
AWAY = "Redis is away"


class Readiness:
    """The result of `/readyz`. One look at Redis serves all requests that come meanwhile."""

    def __init__(self, commands: RedisConnection, settings: Settings) -> None:
        self._commands = commands
        self._settings = settings
        self._subscription = Subscription(commands, reply_seconds=settings.redis_reply_seconds)
        self._complaints = Complaints(logger.error)
        self._complaint: str | None = None
        self._looked_at = -_FRESH_SECONDS
        self._was_up = False
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when Redis allows what a gateway needs. Raises Unusable that says what it refuses."""
        seconds = self._settings.redis_start_seconds
        await until_up(self._commands, within_seconds=seconds)
        self._subscription.start()
        await check_grants(
            self._commands,
            "gateway",
            within_seconds=seconds,
            subscription=self._subscription,
            min_replicas=self._settings.min_replicas,
        )
        complaint = await until_redis_answers(self._evicts)
        if complaint:
            self._complaints.say(complaint)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._subscription.close()

    async def complaint(self) -> str | None:
        """Why this process cannot serve; None if it can. At most a second old, and renewed when the connection comes or goes."""
        if time.monotonic() - self._looked_at >= _FRESH_SECONDS or self._commands.is_up != self._was_up:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.get_running_loop().create_task(self._look())
            await asyncio.shield(self._looking)
        return self._complaint

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(self._settings.redis_wait_seconds):
                found = await refusals(self._commands, "gateway", min_replicas=self._settings.min_replicas)
                await self._subscription.note_refusals(found)
                sentence = found.sentence("gateway", self._commands.address.username)
                if not found.lasts and self._serves_in_part():
                    sentence = None
                complaint = f"Redis {sentence}" if sentence else await self._evicts()
        except (Disconnected, TimeoutError):
            refusal = self._commands.refusal
            complaint = f"Redis does not let this process in: {refusal}" if refusal else AWAY
            if self._serves_in_part():
                complaint = None
        except Exception as error:  # the task's error would be seen nowhere else
            logger.exception("whether Redis can be used cannot be found out")
            complaint = f"whether Redis can be used cannot be found out: {type(error).__name__}"
        if complaint is not None and complaint != AWAY:
            self._complaints.say(complaint)
        self._complaint, self._looked_at, self._was_up = complaint, time.monotonic(), self._commands.is_up

    def _serves_in_part(self) -> bool:
        """Whether a part of a cluster can be reached: the streams whose keys are there go on."""
        return not self._commands.is_one_server and self._commands.is_up

    async def _evicts(self) -> str | None:
        return complaint_about(await eviction_policy(self._commands))
