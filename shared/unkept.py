"""The streams that are still to be archived: a sorted set in Redis of stream ids by the time at which somebody is to look.

    created ──► looked at once a minute while it runs ──► ended ──► in the archive ──► removed
                                                            │ not everything was delivered
                                                            └──► looked at once more, before its log expires

A stream is entered before its log begins, and removed after its row in the archive is committed. So whatever dies in between, and
when, somebody finds it: a look is handed out to one process at a time, and handed out again if nothing comes of it.
Two processes may archive one stream; its id is the key of its row.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from shared.commands import Commands, Script
from shared.errors import OddReply
from shared.event_log import shown
from shared.ids import is_stream_id
from shared.keys import UNKEPT, deliveries_key, kept_key, log_key, writer_key

LOOK_SECONDS = 60.0
"""How often a stream is looked at that has not ended, and when a look is handed out again that came to nothing."""
_LISTED_MAX = 200_000
"""Streams that are read for the newest of them: 8 MB, a tenth of a second of Redis."""
SOON_SECONDS = 3.0
"""When a stream is looked at that somebody else than its worker has ended: its readers' last notes have come by then."""


class Unkept:
    """The list, over one connection to Redis. The methods raise Disconnected and RedisRefused."""

    TAKE = Script("take_due", when_full=True)
    SCRIPTS = (TAKE.source,)

    def __init__(self, commands: Commands, *, log_ttl_seconds: int, ended_ttl_seconds: int) -> None:
        self._commands = commands
        self._log_ttl_seconds = log_ttl_seconds
        self._ended_ttl_seconds = ended_ttl_seconds

    async def enter(self, stream_id: str) -> None:
        """Enters a stream whose log is about to begin. May be repeated."""
        await self._commands.execute("ZADD", UNKEPT, "NX", _at(LOOK_SECONDS), stream_id)
        await self._commands.execute("EXPIRE", UNKEPT, self._log_ttl_seconds)

    def send_soon(self, stream_id: str) -> None:
        """Has a stream looked at in some seconds. If that is lost, it is looked at a minute later."""
        self._send("ZADD", UNKEPT, _at(SOON_SECONDS), stream_id)
        self._send("EXPIRE", UNKEPT, self._log_ttl_seconds)

    def send_last_look(self, stream_id: str) -> None:
        """Has a stream, whose log was brought back, looked at shortly before that expires."""
        self._send("ZADD", UNKEPT, "NX", _at(self.last_look_seconds), stream_id)
        self._send("EXPIRE", UNKEPT, self._log_ttl_seconds)

    async def take(self, count: int) -> list[str]:
        """Returns at most `count` streams whose time has come. Nobody else gets them for `LOOK_SECONDS`."""
        reply = await self.TAKE.run(self._commands, [UNKEPT], count, int(LOOK_SECONDS * 1000), self._log_ttl_seconds)
        try:
            stream_ids = [member.decode() for member in reply]
        except (TypeError, ValueError, AttributeError):
            raise OddReply(f"ODDREPLY the streams to be archived were answered by {shown(reply)}") from None
        strange = [stream_id for stream_id in stream_ids if not is_stream_id(stream_id)]
        if strange:
            await self._commands.execute("ZREM", UNKEPT, *strange)
        return [stream_id for stream_id in stream_ids if is_stream_id(stream_id)]

    async def count(self) -> int:
        """Returns how many streams are in the list: those that run, and those that have ended and are not archived."""
        reply = await self._commands.execute("ZCARD", UNKEPT)
        return reply if isinstance(reply, int) else 0

    async def newest(self, count: int) -> list[str]:
        """Returns the newest streams of the list, at most `count`, the newest first.

        Of a list of more than `_LISTED_MAX`, as when the database is away for long, some may be left out.
        """
        reply = await self._commands.execute("ZRANGE", UNKEPT, 0, _LISTED_MAX - 1, "REV")
        try:
            stream_ids = {member.decode() for member in reply}
        except (TypeError, ValueError, AttributeError):
            raise OddReply(f"ODDREPLY the streams to be archived were answered by {shown(reply)}") from None
        return sorted(filter(is_stream_id, stream_ids), reverse=True)[:count]

    async def kept(self, stream_ids: Sequence[str], to_look_at_again: Sequence[str]) -> None:
        """Notes that streams are archived: their logs expire, and they leave the list.

        Those of `to_look_at_again`, which are among them, are looked at once more shortly before their logs expire.
        """
        # Sent in one write; in this order, since a stream that has left the list is not found again.
        for stream_id in stream_ids:
            for key in (log_key(stream_id), deliveries_key(stream_id), kept_key(stream_id), writer_key(stream_id)):
                self._send("EXPIRE", key, self._ended_ttl_seconds, "LT")
        again = set(to_look_at_again)
        for stream_id in again:
            self._send("ZADD", UNKEPT, "XX", _at(self.last_look_seconds), stream_id)
        await self.forget([stream_id for stream_id in stream_ids if stream_id not in again])

    async def forget(self, stream_ids: Sequence[str]) -> None:
        """Removes streams from the list."""
        if stream_ids:
            await self._commands.execute("ZREM", UNKEPT, *stream_ids)

    def _send(self, *command: bytes | str | int) -> None:
        """Sends a command whose reply does not matter: what was lost is done at the next look."""
        self._commands.send(command, lambda reply: None)

    @property
    def last_look_seconds(self) -> float:
        """How long after a stream is archived its receipt is looked at for the last time."""
        return max(self._ended_ttl_seconds - 30.0, self._ended_ttl_seconds * 0.75)


def _at(seconds_from_now: float) -> int:
    """Returns a time as the list has it, in Unix milliseconds. A clock that is wrong by seconds moves a look by seconds."""
    return int((time.time() + seconds_from_now) * 1000)
