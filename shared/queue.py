"""The queue that brings requests to workers: one Redis Stream with a consumer group.

A queue entry holds a stream's id and nothing else: the request is in the log. A claim is a lease: a worker renews it while it
works, and any worker may take over one that was not renewed. So two workers can run the same request at once; the log's fence
makes that harmless. An entry that names no stream was added by somebody else; the worker that claims it removes it.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple, Protocol

from shared import metrics
from shared.commands import Commands, Executes, Script
from shared.errors import Disconnected, OddReply, QueueFull, RedisRefused
from shared.ids import created_at, is_stream_id
from shared.keys import GROUP, REQUESTS
from shared.odd_replies import odd_reply, reading, shown
from shared.presence import last_heard_at

logger = logging.getLogger(__name__)

_SOUGHT_MAX = 2000
"""The most entries among which one request is looked for, from the time of its stream on: 2 ms of Redis."""
_CLOCKS_SECONDS = 1.0
"""How far the clocks of a gateway and of Redis may differ: a stream's id has the time of the one, a queue entry's that of the other."""
_LOOKS_MAX = 32
"""How many calls, at most, look for expired leases: each XAUTOCLAIM examines ten entries for one that it may return."""


class Blocking(Protocol):
    """A connection for commands that block."""

    async def execute(self, *arguments: bytes | str | int | float) -> Any:
        """Returns the reply. Raises Disconnected, RedisRefused."""


class Claim(NamedTuple):
    """A worker's lease on one request: the queue entry's id, the stream that it names, and the queue's key."""

    entry_id: bytes
    stream_id: str
    queue: bytes = REQUESTS


class Lease(NamedTuple):
    """A worker's claim on a request, as the console sees it."""

    worker: str
    age_seconds: float
    """The time since the lease was taken or renewed."""


class QueueCounts(NamedTuple):
    """Numbers of requests in the queue."""

    requests: int
    """Requests that wait for a worker or that a worker has claimed."""
    claimed: int
    oldest_waiting_at: float | None
    """When the oldest request that waits was added (Unix seconds, by Redis's clock); None if none waits."""

    @property
    def waiting(self) -> int:
        return self.requests - self.claimed


class RequestQueue:
    """The queue, or one lane of it, over one connection. `consumer` names a worker process; gateways only enqueue and read."""

    ENQUEUE, RENEW = Script("enqueue"), Script("renew")
    SCRIPTS = (ENQUEUE.source, RENEW.source)

    def __init__(
        self,
        commands: Commands,
        *,
        ttl_seconds: int,
        requests_max: int,
        consumer: str = "",
        key: bytes = REQUESTS,
        replicated: Executes | None = None,
    ) -> None:
        self._replicated = replicated or commands
        self._commands = commands
        self.key = key
        self._ttl_seconds = ttl_seconds
        self._requests_max = requests_max
        self._consumer = consumer
        self._looked_to: bytes | str = "0-0"
        """The entry id at which the next search for expired leases begins."""

    async def enqueue(self, stream_id: str) -> None:
        """Adds a request. Raises QueueFull, LogFull, Disconnected, RedisRefused."""
        reply = await self.ENQUEUE.run(self._replicated, [self.key], stream_id, self._requests_max, self._ttl_seconds)
        if reply is None:
            raise QueueFull(f"{self._requests_max} requests are waiting or running already")

    async def open(self) -> None:
        """Creates the queue and its group if they are missing."""
        try:
            await self._commands.execute("XGROUP", "CREATE", self.key, GROUP, "0", "MKSTREAM")
        except RedisRefused as error:
            if error.code != "BUSYGROUP":
                raise
        await self._commands.execute("EXPIRE", self.key, self._ttl_seconds)

    async def claim(self, blocking: Blocking, count: int, block_milliseconds: int) -> list[Claim]:
        """Claims at most `count` new requests; waits for the first. `blocking` is a connection that nobody else uses."""
        try:
            reply = await blocking.execute(
                *("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", count, "BLOCK", block_milliseconds),
                *("STREAMS", self.key, ">"),
            )
        except RedisRefused as error:
            if not await self._opened_anew(error):
                raise
            return []
        if reply is None:
            return []
        with reading("XREADGROUP", reply):
            entries = [entry for _, entries in reply for entry in entries or ()]
        return await self._claims(entries)

    async def claim_expired(self, count: int, lease_milliseconds: int) -> list[Claim]:
        """Takes over at most `count` requests whose leases have run out."""
        claims: list[Claim] = []
        for _ in range(_LOOKS_MAX):
            wanted = count - len(claims)
            try:
                reply = await self._commands.execute(
                    *("XAUTOCLAIM", self.key, GROUP, self._consumer, lease_milliseconds),
                    *(self._looked_to, "COUNT", wanted),
                )
            except RedisRefused as error:
                self._looked_to = "0-0"
                if not claims and not await self._opened_anew(error):
                    raise
                break
            if not isinstance(reply, list) or len(reply) < 2 or not isinstance(reply[1], list):
                raise odd_reply("XAUTOCLAIM", reply)
            # The first entries often belong to live workers, more of them than one call examines: the next call begins behind them.
            self._looked_to = reply[0]
            claims += await self._claims(reply[1])
            if self._looked_to == b"0-0" or len(claims) >= count:
                break
        return claims

    @property
    def server(self) -> object:
        """What is another one when another server has the queue, or when the connection to it was made anew."""
        return self._commands.server_of(self.key)

    async def ping(self) -> None:
        """Returns when Redis has answered. Raises Disconnected, RedisRefused."""
        await self._commands.execute("XLEN", self.key)

    async def renew(self, claims: list[Claim]) -> list[bytes]:
        """Renews these leases; returns the ids of the entries that this worker no longer holds."""
        return await self._renewed(claims, 0)

    async def acknowledge(self, claim: Claim) -> None:
        """Removes a request from the queue: its stream has ended."""
        # In this order: if the worker dies in between, XAUTOCLAIM clears away the claim. An entry that was acknowledged but
        # not deleted would stay for ever, and count.
        await self._commands.execute("XDEL", self.key, claim.entry_id)
        await self._commands.execute("XACK", self.key, GROUP, claim.entry_id)

    async def hand_back(self, claims: list[Claim], lease_milliseconds: int) -> None:
        """Makes these leases expire at once, if they are still ours, so that another worker takes the requests over."""
        await self._renewed(claims, lease_milliseconds)

    async def counts(self) -> QueueCounts:
        """Returns how many requests wait and run now. Three short commands. Raises Disconnected, RedisRefused."""
        requests = await self._commands.execute("XLEN", self.key)
        if not isinstance(requests, int):
            raise odd_reply("XLEN", requests)
        if not requests:
            return QueueCounts(0, 0, None)
        claimed, first_waiting = 0, b"-"
        reply = await self._unless_missing("XINFO", "GROUPS", self.key)
        with reading("XINFO GROUPS", reply):
            for group in _objects(reply):
                if group.get(b"name") == GROUP:
                    claimed, first_waiting = min(requests, group[b"pending"]), b"(" + group[b"last-delivered-id"]
        if claimed == requests:
            return QueueCounts(requests, claimed, None)
        reply = await self._commands.execute("XRANGE", self.key, first_waiting, "+", "COUNT", 1)
        with reading("XRANGE", reply):
            return QueueCounts(requests, claimed, int(reply[0][0].split(b"-")[0]) / 1000 if reply else None)

    async def holds(self, stream_id: str) -> bool:
        """Returns whether the queue has a request, waiting or claimed; with `replicated` as replicas have it, too.

        True also where too many came at that time to look at all of them. Raises Disconnected, RedisRefused.
        """
        first = max(0, int((created_at(stream_id) - _CLOCKS_SECONDS) * 1000))
        entries = await self._commands.execute("XRANGE", self.key, first, "+", "COUNT", _SOUGHT_MAX)
        if not isinstance(entries, list):
            raise odd_reply("XRANGE", entries)
        claims = (claim_of(entry, self.key) for entry in entries)
        if len(entries) == _SOUGHT_MAX:
            return True
        is_there = any(claim is not None and claim.stream_id == stream_id for claim in claims)
        if is_there and self._replicated is not self._commands:
            await self._replicated.execute("XLEN", self.key)  # answered when replicas have what was read before
        return is_there

    async def newest(self, count: int) -> list[Claim]:
        """Returns the newest requests, at most `count`, whoever has them. Raises Disconnected, RedisRefused."""
        entries = await self._commands.execute("XREVRANGE", self.key, "+", "-", "COUNT", count)
        if not isinstance(entries, list):
            raise odd_reply("XREVRANGE", entries)
        return [claim for entry in entries if (claim := claim_of(entry, self.key)) is not None]

    async def leases(self, first: bytes, count: int) -> dict[bytes, Lease]:
        """Returns the leases on at most `count` requests from the entry with the id `first` on. Raises Disconnected, RedisRefused."""
        rows = await self._unless_missing("XPENDING", self.key, GROUP, first, "+", count)
        with reading("XPENDING", rows):
            return {
                entry_id: Lease(worker.decode(errors="replace"), idle_milliseconds / 1000)
                for entry_id, worker, idle_milliseconds, _ in rows
            }

    async def last_heard_at(self, worker: str) -> float | None:
        """Returns when another worker last said that it was there, in Unix seconds; None where that is not remembered."""
        return await last_heard_at(self._commands, worker)

    async def forget_idle_consumers(self, idle_milliseconds: int) -> None:
        """Deletes the consumers of workers that have been idle for so long and hold no claim."""
        reply = await self._commands.execute("XINFO", "CONSUMERS", self.key, GROUP)
        with reading("XINFO CONSUMERS", reply):
            gone = [
                consumer[b"name"]
                for consumer in _objects(reply)
                if consumer[b"pending"] == 0 and consumer[b"idle"] > idle_milliseconds
            ]
        for name in gone:
            await self._commands.execute("XGROUP", "DELCONSUMER", self.key, GROUP, name)

    async def _renewed(self, claims: list[Claim], idle_milliseconds: int) -> list[bytes]:
        entry_ids = [claim.entry_id for claim in claims]
        try:
            reply = await self.RENEW.run(
                self._commands, [self.key], GROUP, self._consumer, self._ttl_seconds, idle_milliseconds, *entry_ids
            )
        except RedisRefused as error:
            if not await self._opened_anew(error):
                raise
            return entry_ids
        if not isinstance(reply, list):
            raise odd_reply("the script renew", reply)
        return reply

    async def _claims(self, entries: list[Any]) -> list[Claim]:
        """Returns the claims among these entries; removes the other entries, which would come back for ever."""
        claims, strange, gone = [], [], []
        for entry in entries:
            claim = claim_of(entry, self.key)
            if claim is not None:
                claims.append(claim)
            elif isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], bytes):
                gone.append(entry[0])
                if entry[1] is not None:  # else deleted while it was claimed
                    strange.append(entry)
        if strange:
            metrics.QUEUE_UNREADABLE.counter().inc(len(strange))
            logger.error(
                "%d entries of %s name no stream and are removed; the first: %s",
                *(len(strange), self.key.decode(), shown(strange[0])),
            )
        if gone:
            try:  # in the order of `acknowledge`
                await self._commands.execute("XDEL", self.key, *gone)
                await self._commands.execute("XACK", self.key, GROUP, *gone)
            except (Disconnected, RedisRefused) as error:  # they come back when their lease has run out
                logger.debug("entries that name no stream could not be removed: %s", error)
        return claims

    async def _unless_missing(self, *command: bytes | str | int) -> Any:
        """Returns the reply; nothing if the queue does not exist yet, or its key has another type."""
        try:
            return await self._commands.execute(*command)
        except RedisRefused as error:
            if error.forbids or isinstance(error, OddReply):
                raise
            logger.debug("the queue cannot be read: %s", error)
            return []

    async def _opened_anew(self, error: RedisRefused) -> bool:
        """Returns whether the error was a missing queue or group (it expires when idle), which has now been created again."""
        if error.code != "NOGROUP":
            return False
        logger.warning("the request queue was missing; creating it again")
        await self.open()
        return True


def _objects(reply: Any) -> list[dict[bytes, Any]]:
    """Returns the objects that Redis sends as flat lists of names and values."""
    return [dict(zip(row[::2], row[1::2], strict=True)) for row in reply]


def claim_of(entry: Any, queue: bytes = REQUESTS) -> Claim | None:
    """Returns the claim on an entry as Redis sent it: `[id, [b"id", stream id]]`; None for an entry of any other form."""
    try:
        entry_id, (field, value) = entry
        stream_id = value.decode()
        known = type(entry_id) is bytes and field == b"id" and is_stream_id(stream_id)
    except (TypeError, ValueError, AttributeError):  # also bytes that are no UTF-8
        return None
    return Claim(entry_id, stream_id, queue) if known else None
