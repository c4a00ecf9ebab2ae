"""The request queue in lanes: several queues whose keys are spread over the masters of a cluster.

A gateway puts a request into the lane that its stream's id names, or into the next one whose master can be reached; workers
read all lanes. So no lane is a hot key, and while a master is away the requests in the other lanes go on. With one server there
is one lane.
"""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from shared.commands import Commands, Executes
from shared.errors import Disconnected, RedisRefused
from shared.keys import lane_keys
from shared.queue import Claim, Lease, QueueCounts, RequestQueue
from shared.settings import Settings

T = TypeVar("T")

LANES_OF_CLUSTER = 16
"""With up to eight masters each has a lane or more. A worker has a connection for claims to each lane."""


def lanes_of(
    commands: Commands, settings: Settings, *, consumer: str = "", replicated: Executes | None = None
) -> tuple[RequestQueue, ...]:
    """Returns each lane as a queue of its own."""
    count = settings.queue_lanes or (1 if commands.is_one_server else LANES_OF_CLUSTER)
    return tuple(
        RequestQueue(
            commands,
            ttl_seconds=settings.log_ttl_seconds,
            requests_max=-(-settings.queue_requests_max // count),
            consumer=consumer,
            key=key,
            replicated=replicated,
        )
        for key in lane_keys(count)
    )


class Lanes:
    """All lanes, as a gateway uses them."""

    def __init__(self, commands: Commands, lanes: Sequence[RequestQueue]) -> None:
        self._commands = commands
        self._lanes = lanes

    async def enqueue(self, stream_id: str) -> None:
        """Adds a request to one lane. Raises QueueFull, LogFull, Disconnected, RedisRefused."""
        first = crc_hqx(stream_id.encode(), 0) % len(self._lanes)
        lanes = (*self._lanes[first:], *self._lanes[:first])
        reachable = (lane for lane in lanes if self._commands.can_reach(lane.key))
        await next(reachable, lanes[0]).enqueue(stream_id)

    async def counts(self) -> QueueCounts:
        """Returns how many requests wait and run now, in the lanes that answer. Raises Disconnected, RedisRefused if none does."""
        if len(self._lanes) == 1:
            return await self._lanes[0].counts()
        counts = await self._answers([lane.counts() for lane in self._lanes])
        waiting_since = [count.oldest_waiting_at for count in counts if count.oldest_waiting_at is not None]
        return QueueCounts(
            sum(count.requests for count in counts),
            sum(count.claimed for count in counts),
            min(waiting_since, default=None),
        )

    async def holds(self, stream_id: str) -> bool:
        """Returns whether a request is in one of the lanes, waiting or claimed. Raises Disconnected, RedisRefused unless all lanes answer."""
        return any(await asyncio.gather(*(lane.holds(stream_id) for lane in self._lanes)))

    async def newest(self, count: int) -> list[Claim]:
        """Returns the newest requests, at most `count`, whoever has them, in the lanes that answer.

        Raises Disconnected, RedisRefused if none does.
        """
        if len(self._lanes) == 1:
            return await self._lanes[0].newest(count)
        answers = await self._answers([lane.newest(count) for lane in self._lanes])
        return sorted((claim for answer in answers for claim in answer), key=_age, reverse=True)[:count]

    async def leases(self, claims: Sequence[Claim], count: int) -> dict[str, Lease]:
        """Returns the leases on these requests, by their streams; at most `count` of each lane. Raises Disconnected, RedisRefused."""
        oldest: dict[bytes, bytes] = {}
        for claim in claims:  # the newest first
            oldest[claim.queue] = claim.entry_id
        lanes = [lane for lane in self._lanes if lane.key in oldest]
        if not lanes:
            return {}
        answers = await self._answers([_leases(lane, oldest[lane.key], count) for lane in lanes])
        leases = {place: lease for answer in answers for place, lease in answer.items()}
        return {
            claim.stream_id: leases[claim.queue, claim.entry_id]
            for claim in claims
            if (claim.queue, claim.entry_id) in leases
        }

    @staticmethod
    async def _answers(reads: Sequence[Awaitable[T]]) -> list[T]:
        """Returns what the lanes answer whose master is there. Raises what one answers if none is."""
        replies = await asyncio.gather(*reads, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, Disconnected | RedisRefused):
                raise reply
        answers: list[Any] = [reply for reply in replies if not isinstance(reply, BaseException)]
        if not answers:
            raise next(reply for reply in replies if isinstance(reply, BaseException))
        return answers


async def _leases(lane: RequestQueue, first: bytes, count: int) -> dict[tuple[bytes, bytes], Lease]:
    return {(lane.key, entry_id): lease for entry_id, lease in (await lane.leases(first, count)).items()}


def _age(claim: Claim) -> tuple[int, int]:
    milliseconds, _, number = claim.entry_id.partition(b"-")
    return int(milliseconds), int(number or 0)
