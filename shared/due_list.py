"""A list in Redis of streams that somebody is to look at, each at its time: what is still to be done is lost with no process.

    entered before the log begins ──► due ──► handed out to one process, and put off ──► done: removed
                                       ▲                   │ nothing came of it, or the process died
                                       └───────────────────┘

Three lists are kept this way: of streams that are still to be archived (`shared.unkept`), that a webhook is still to be sent for
(`shared.webhooks`), and that are still to be counted (`shared.accounts`). Two processes may work on one stream all the same, after a
pause of one of them: the work must be repeatable.

What a fail-over of Redis takes back of a look or a removal does no harm: the stream is looked at again. Only an entry that is
lost would be missed, so whoever enters a stream may wait for replicas (`shared.replicas`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from shared.commands import Commands, Executes, Script, ignore
from shared.ids import is_stream_id
from shared.odd_replies import texts_of

LOOK_SECONDS = 60.0
"""How often a stream is looked at that has not ended, and when a look is handed out again that came to nothing."""


class DueList:
    """One sorted set: streams by the time (Unix ms) of the next look. The methods raise Disconnected and RedisRefused."""

    TAKE = Script("take_due", when_full=True)
    SCRIPTS = (TAKE.source,)

    def __init__(self, commands: Commands, key: bytes, *, ttl_seconds: int, replicated: Executes | None = None) -> None:
        """`ttl_seconds`: how long the list lives after its last change. With `replicated` a stream counts as entered when replicas
        have it in the list."""
        self._commands = commands
        self._replicated = replicated or commands
        self._key = key
        self._ttl_seconds = ttl_seconds

    async def enter(self, stream_id: str, in_seconds: float) -> None:
        """Enters a stream, unless it is there. May be repeated."""
        await self._replicated.execute("ZADD", self._key, "NX", _at(in_seconds), stream_id)
        await self._commands.execute("EXPIRE", self._key, self._ttl_seconds)

    def send_look(self, stream_id: str, in_seconds: float, condition: str = "") -> None:
        """Has a stream looked at. `condition`: `NX`, only if it is not in the list; `XX`, only if it is.

        Without a reply: what is lost is made up for by the look that was due before.
        """
        options = (condition,) if condition else ()
        self._commands.send(("ZADD", self._key, *options, _at(in_seconds), stream_id), ignore)
        self._commands.send(("EXPIRE", self._key, self._ttl_seconds), ignore)

    async def take(self, count: int, hold_seconds: float) -> list[str]:
        """Returns at most `count` streams whose time has come. Nobody else gets them for `hold_seconds`."""
        reply = await self.TAKE.run(self._commands, [self._key], count, int(hold_seconds * 1000), self._ttl_seconds)
        taken = texts_of(reply)
        await self.remove([stream_id for stream_id in taken if not is_stream_id(stream_id)])
        return [stream_id for stream_id in taken if is_stream_id(stream_id)]

    async def count(self) -> int:
        """Returns how many streams are in the list."""
        reply = await self._commands.execute("ZCARD", self._key)
        return reply if isinstance(reply, int) else 0

    async def remove(self, stream_ids: Sequence[str]) -> None:
        """Removes streams from the list."""
        if stream_ids:
            await self._commands.execute("ZREM", self._key, *stream_ids)

    async def listed(self, count: int) -> list[str]:
        """Returns at most `count` streams, those that are looked at last first."""
        return texts_of(await self._commands.execute("ZRANGE", self._key, 0, count - 1, "REV"))


def _at(seconds_from_now: float) -> int:
    """Returns a time as the lists have it, in Unix milliseconds. A clock that is wrong by seconds moves a look by seconds."""
    return int((time.time() + seconds_from_now) * 1000)
