"""Getting requests to workers: one Redis Stream with a consumer group.

A queue entry holds a stream's id and nothing else: the request is in the log. Claiming is a lease: a worker renews it
while it works; one that is not renewed goes to whoever looks first. That two workers run the same request is possible
by nature, and harmless by the log's fence.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from shared.errors import QueueFull, RedisRefused
from shared.keys import GROUP, REQUESTS
from shared.log import Commands, Script
from shared.presence import last_heard_at

logger = logging.getLogger(__name__)


class Claim(NamedTuple):
    """A worker's lease on one request: the queue entry's id, and the stream that it names."""

    entry_id: bytes
    stream_id: str


class RequestQueue:
    """The queue, as one side sees it. `consumer` names a worker process; gateways only enqueue."""

    ENQUEUE, RENEW = Script("enqueue"), Script("renew")
    SCRIPTS = (ENQUEUE.source, RENEW.source)

    def __init__(self, commands: Commands, *, ttl_seconds: int, requests_max: int, consumer: str = "") -> None:
        self._commands = commands
        self._ttl_seconds = ttl_seconds
        self._requests_max = requests_max
        self._consumer = consumer

    async def enqueue(self, stream_id: str) -> None:
        """Raises QueueFull."""
        reply = await self.ENQUEUE.run(self._commands, [REQUESTS], stream_id, self._requests_max, self._ttl_seconds)
        if reply is None:
            raise QueueFull(f"{self._requests_max} requests are waiting or running already")

    async def open(self) -> None:
        """Make the queue and its group where they are missing."""
        try:
            await self._commands.execute("XGROUP", "CREATE", REQUESTS, GROUP, "0", "MKSTREAM")
        except RedisRefused as error:
            if error.code != "BUSYGROUP":
                raise
        await self._commands.execute("EXPIRE", REQUESTS, self._ttl_seconds)

    async def claim(self, blocking: Commands, count: int, block_milliseconds: int) -> list[Claim]:
        """Take at most `count` new requests; wait for the first. `blocking` is a connection that nobody else uses."""
        try:
            reply = await blocking.execute(
                *("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", count, "BLOCK", block_milliseconds),
                *("STREAMS", REQUESTS, ">"),
            )
        except RedisRefused as error:
            if not await self._opened_anew(error):
                raise
            return []
        return [claim for _, entries in reply or [] for claim in _claims(entries)]

    async def claim_expired(self, count: int, lease_milliseconds: int) -> list[Claim]:
        """Take over at most `count` requests whose worker has not renewed its lease."""
        try:
            reply = await self._commands.execute(
                "XAUTOCLAIM", REQUESTS, GROUP, self._consumer, lease_milliseconds, "0-0", "COUNT", count
            )
        except RedisRefused as error:
            if not await self._opened_anew(error):
                raise
            return []
        return _claims(reply[1])

    async def renew(self, claims: list[Claim]) -> list[bytes]:
        """Renew these leases; the entry ids that this worker has lost to another, or to a Redis that forgot."""
        return await self._renewed(claims, 0)

    async def acknowledge(self, claim: Claim) -> None:
        """The request is done with, for every worker: its stream has ended."""
        # In this order: of a worker that dies in between, XAUTOCLAIM clears away the rest. An entry acknowledged and not
        # deleted would stay for ever, and count.
        await self._commands.execute("XDEL", REQUESTS, claim.entry_id)
        await self._commands.execute("XACK", REQUESTS, GROUP, claim.entry_id)

    async def hand_back(self, claims: list[Claim], lease_milliseconds: int) -> None:
        """Let these leases count as expired, where they are still ours: another worker takes the requests over at once."""
        await self._renewed(claims, lease_milliseconds)

    async def waiting(self) -> int:
        """How many requests wait or run."""
        return int(await self._commands.execute("XLEN", REQUESTS))

    async def last_heard_at(self, worker: str) -> float | None:
        """When another worker last said that it was there, in Unix seconds; None where that is not remembered."""
        return await last_heard_at(self._commands, worker)

    async def forget_idle_consumers(self, idle_milliseconds: int) -> None:
        """Drop the names of workers that are long gone and hold nothing."""
        for row in await self._commands.execute("XINFO", "CONSUMERS", REQUESTS, GROUP):
            about = dict(zip(row[::2], row[1::2], strict=True))
            if about[b"pending"] == 0 and about[b"idle"] > idle_milliseconds:
                await self._commands.execute("XGROUP", "DELCONSUMER", REQUESTS, GROUP, about[b"name"])

    async def _renewed(self, claims: list[Claim], idle_milliseconds: int) -> list[bytes]:
        entry_ids = [one.entry_id for one in claims]
        try:
            reply = await self.RENEW.run(
                self._commands, [REQUESTS], GROUP, self._consumer, self._ttl_seconds, idle_milliseconds, *entry_ids
            )
        except RedisRefused as error:
            if not await self._opened_anew(error):
                raise
            return entry_ids
        return list(reply)

    async def _opened_anew(self, error: RedisRefused) -> bool:
        """Whether the error was a missing queue or group (expired while idle, or forgotten), which is now there again."""
        if error.code != "NOGROUP":
            return False
        logger.warning("the request queue was missing; making it anew")
        await self.open()
        return True


def _claims(entries: Any) -> list[Claim]:
    return [Claim(entry_id, fields[1].decode()) for entry_id, fields in entries if fields]
