"""Appends of external writers: programs that fill a stream over HTTP, in place of a worker.

A worker keeps a copy of its log and compares lengths (decision 7). Here the copy is at the writer's end of an HTTP connection,
so the last id is compared: an entry is appended only behind the entry that the writer believes to be the last. That alone makes
repetitions harmless and fences off an earlier writer; `scripts/write.lua` has the rules.

A writer's *lease* is a hash beside the log that expires: `midstream:{<id>}:lease`, with `ms` (how long a lease is), `alone_ms` (how
long no gateway may listen; -1: for ever), `alone_since` (since when none listens, ms) and `bytes` (of the values appended). The
sorted set `midstream:writers` holds the streams that have or had one, each with the time at which it is to be looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from shared.commands import Commands, Script
from shared.errors import Unreadable
from shared.event_log import EventLog
from shared.events import TERMINAL, Accepted, Entry
from shared.ids import BEGINNING, EventId
from shared.keys import WRITERS, kept_key, lease_key, live_channel, log_key, request_key
from shared.odd_replies import reading

Status = Literal["applied", "looked", "ended", "differs", "full", "cancelled", "unknown", "missing"]

_CLAIM_MILLISECONDS = 2000
"""How long a stream that one gateway looks at is left alone by the others: should that gateway die, they go on after it."""
_FIRST_READER_MILLISECONDS = 500
"""So long at least a stream waits for a reader, also with `cancel_after: 0`, as those that workers fill (`producer.run`)."""
_DUE_MAX = 128
"""Streams that are looked at in one go, each by a round trip: the others are due at the next one."""


class Written(NamedTuple):
    """The result of an append or a look.

    `applied`: appended and published to that many `listeners` (gateways that follow). `looked`: nothing was to be appended.
    `ended`: the stream has ended. `differs`: the last entry is another one than expected. `full`: the log is as long as it may be.
    `cancelled`: no gateway has listened for too long, so that the stream was ended now. `unknown`: the lease's values are not
    stored. `missing`: there is no log. `last`, `field`, `value`: the log's last entry; its value is empty where it was appended now.
    """

    status: Status
    last: EventId
    field: bytes
    value: bytes
    listeners: int

    @classmethod
    def of(cls, reply: Any) -> Written:
        """Returns the result that a reply of `write.lua` means. Raises OddReply."""
        with reading("an append", reply):
            status, last, field, value, listeners = reply
            return cls(status.decode(), EventId.of(last), bytes(field), bytes(value), int(listeners))


class WriterLease(NamedTuple):
    """How long a writer may be silent, and how long its stream may be without a reader (None: to its end)."""

    seconds: float
    alone_seconds: float | None

    @property
    def alone_milliseconds(self) -> int:
        """How long no gateway may listen, as the scripts take it; -1: for ever."""
        if self.alone_seconds is None:
            return -1
        return max(_FIRST_READER_MILLISECONDS, int(self.alone_seconds * 1000))


async def is_external(log: EventLog, stream_id: str) -> bool:
    """Returns whether an external writer fills the stream, by the request that it was made with. Raises Disconnected, RedisRefused."""
    first = await log.read(stream_id, BEGINNING, 1)
    try:
        return bool(first) and Accepted.load(first[0].value).policies.lease_seconds is not None
    except Unreadable:
        return False


class ExternalWrites:
    """The logs of external writers, over one connection."""

    WRITE, WRITE_LAST = Script("write"), Script("write", when_full=True)
    SCRIPTS = (WRITE.source, WRITE_LAST.source)

    def __init__(self, commands: Commands, *, ended_ttl_seconds: int, entries_max: int, bytes_max: int) -> None:
        self._commands = commands
        self._bounds = ended_ttl_seconds, entries_max, bytes_max

    async def append(
        self,
        stream_id: str,
        expected: EventId | None,
        entry: Entry,
        *,
        renew: bool,
        lease_seconds: float | None = None,
        lease: WriterLease | None = None,
        cancelled: bytes,
    ) -> Written:
        """Appends and publishes `entry` if the log's last id is `expected`; with None only looks.

        `lease_seconds`: the length of the lease from now on. `lease`: all values of one whose values are not stored (`unknown`).
        `cancelled`: the value of the terminal entry if no gateway has listened for too long. Atomic; after a lost reply it may be
        repeated. Raises Disconnected, RedisRefused, LogFull.
        """
        alone: bytes | int = b""
        if lease is not None:
            lease_seconds = lease.seconds if lease_seconds is None else lease_seconds
            alone = lease.alone_milliseconds
        ends = entry.field in TERMINAL
        script = self.WRITE_LAST if ends else self.WRITE
        reply = await script.run(
            self._commands,
            [
                log_key(stream_id),
                live_channel(stream_id),
                lease_key(stream_id),
                request_key(stream_id),
                kept_key(stream_id),
            ],
            *(b"" if expected is None else bytes(expected), bytes(entry.id), entry.field, entry.value),
            *(b"1" if ends else b"", b"1" if renew else b""),
            *(b"" if lease_seconds is None else int(lease_seconds * 1000), alone, cancelled, *self._bounds),
        )
        return Written.of(reply)

    async def look(self, stream_id: str, *, renew: bool = False, cancelled: bytes, **more: Any) -> Written:
        """Returns the log's last entry and the number of listeners, and with `renew` renews the lease."""
        return await self.append(stream_id, None, Entry(BEGINNING, b"", b""), renew=renew, cancelled=cancelled, **more)


class WriterLeases:
    """The leases of external writers, and the list of the streams that have one."""

    DUE, LOOK_AGAIN = Script("due"), Script("look_again")
    SCRIPTS = (DUE.source, LOOK_AGAIN.source)

    def __init__(self, commands: Commands, *, ttl_seconds: int) -> None:
        self._commands = commands
        self._ttl_seconds = ttl_seconds

    async def begin(self, stream_id: str, lease: WriterLease) -> None:
        """Begins the lease of a stream that was made just now. May be repeated."""
        key, milliseconds = lease_key(stream_id), int(lease.seconds * 1000)
        await self._commands.execute("HSET", key, "ms", milliseconds, "alone_ms", lease.alone_milliseconds)
        await self._commands.execute("PEXPIRE", key, milliseconds)
        await self.enlist(stream_id)

    async def enlist(self, stream_id: str, *, now: bool = False) -> None:
        """Lists a stream, so that its lease is looked at. One that is listed stays as it is, unless it is to be looked at `now`."""
        condition = () if now else ("NX",)
        await self._commands.execute("ZADD", WRITERS, *condition, 0, stream_id)
        await self._commands.execute("EXPIRE", WRITERS, self._ttl_seconds)

    async def count(self) -> int:
        """Returns how many streams are listed."""
        reply = await self._commands.execute("ZCARD", WRITERS)
        return reply if isinstance(reply, int) else 0

    async def due(self) -> tuple[int, list[str]]:
        """Returns Redis's time (ms) and the streams that are to be looked at now, which it leaves to the caller for a while."""
        reply = await self.DUE.run(self._commands, [WRITERS], _DUE_MAX, _CLAIM_MILLISECONDS)
        with reading("the script due", reply):
            now_ms, *stream_ids = reply
            return int(now_ms), [stream_id.decode(errors="replace") for stream_id in stream_ids]

    async def remaining_milliseconds(self, stream_id: str) -> int:
        """Returns how long a lease still lasts; 0 if there is none, or none any more."""
        reply = await self._commands.execute("PTTL", lease_key(stream_id))
        return max(0, reply) if isinstance(reply, int) else 0

    async def look_again(self, taken_at: int, due_at: Mapping[str, int]) -> None:
        """Has streams that `due` gave at `taken_at` looked at again at these times (ms, by Redis's clock).

        Not those that were enlisted meanwhile to be looked at now: their lease is another one.
        """
        pairs = [part for stream_id, at in due_at.items() for part in (at, stream_id)]
        if pairs:
            await self.LOOK_AGAIN.run(self._commands, [WRITERS], taken_at + _CLAIM_MILLISECONDS, *pairs)

    async def forget(self, stream_id: str) -> None:
        """Takes a stream off the list."""
        await self._commands.execute("ZREM", WRITERS, stream_id)
