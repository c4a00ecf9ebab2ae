"""The streams that are still to be archived: a list in Redis (`shared.due_list`).

    created ──► looked at once a minute while it runs ──► ended ──► in the archive ──► removed
                                                            │ not everything was delivered
                                                            └──► looked at once more, before its log expires,
                                                                 and again when somebody has read it after that

A stream is entered before its log begins, and removed after its row in the archive is committed. So whatever dies in between, and
when, somebody finds it: a look is handed out to one process at a time, and handed out again if nothing comes of it. A worker that
leaves a stream to the list enters it once more, should Redis have lost it.
Two processes may archive one stream; its id is the key of its row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared.commands import Commands, Executes, ignore
from shared.due_list import LOOK_SECONDS, DueList
from shared.ids import is_stream_id
from shared.keys import ARCHIVE_TROUBLE, UNKEPT

_LISTED_MAX = 200_000
"""Streams that are read for the newest of them: 8 MB, a tenth of a second of Redis."""
_TROUBLE_SECONDS = 60
"""Longer than a worker leaves the archive alone after a failure."""
_LIVES_SECONDS_LEAST = 10
"""An archived log lives in Redis at least so long: a look that is due comes a second or two later, and must find it."""
_LAST_LOOK_SECONDS, _LAST_LOOK_PART = 30.0, 0.25
"""So long before its log expires a stream is looked at for the last time; a part of the log's life where that is short."""
SOON_SECONDS = 3.0
"""When a stream is looked at that somebody else than its worker has ended: its readers' last notes have come by then."""


class Unkept:
    """The list, over one connection to Redis. The methods raise Disconnected and RedisRefused."""

    SCRIPTS = DueList.SCRIPTS

    def __init__(
        self,
        commands: Commands,
        *,
        log_ttl_seconds: int,
        ended_ttl_seconds: int,
        replicated: Executes | None = None,
    ) -> None:
        """With `replicated` a stream counts as entered when replicas have it in the list."""
        self._commands = commands
        self._list = DueList(commands, UNKEPT, ttl_seconds=log_ttl_seconds, replicated=replicated)
        self.lives_seconds = max(ended_ttl_seconds, _LIVES_SECONDS_LEAST)
        """How long the log of an archived stream stays in Redis."""

    async def enter(self, stream_id: str) -> None:
        """Enters a stream whose log is about to begin. May be repeated."""
        await self._list.enter(stream_id, LOOK_SECONDS)

    def send_soon(self, stream_id: str) -> None:
        """Has a stream looked at in some seconds. If that is lost, it is looked at a minute later."""
        self._list.send_look(stream_id, SOON_SECONDS)

    def send_enter(self, stream_id: str) -> None:
        """Enters a stream that has ended and is left to the list, unless it is there."""
        self._list.send_look(stream_id, SOON_SECONDS, "NX")

    def send_last_look(self, stream_id: str) -> None:
        """Has a stream, whose log was brought back, looked at shortly before that expires."""
        self._list.send_look(stream_id, self.last_look_seconds, "NX")

    def noted_after_end(self, stream_id: str, lives_ms: int) -> None:
        """Has an ended stream looked at now if somebody got something of it when its last look may have been over.

        `lives_ms`: how long its log lives on.
        """
        if lives_ms <= (self.lives_seconds - self.last_look_seconds) * 1000:
            self._list.send_look(stream_id, 0.0)

    async def take(self, count: int) -> list[str]:
        """Returns at most `count` streams whose time has come. Nobody else gets them for `LOOK_SECONDS`."""
        return await self._list.take(count, LOOK_SECONDS)

    async def count(self) -> int:
        """Returns how many streams are in the list: those that run, and those that have ended and are not archived."""
        return await self._list.count()

    async def newest(self, count: int) -> list[str]:
        """Returns the newest streams of the list, at most `count`, the newest first.

        Of a list of more than `_LISTED_MAX`, as when the database is away for long, some may be left out.
        """
        stream_ids = set(await self._list.listed(_LISTED_MAX))
        return sorted(filter(is_stream_id, stream_ids), reverse=True)[:count]

    async def kept(self, keys: Mapping[str, Sequence[bytes]], to_look_at_again: Sequence[str]) -> None:
        """Notes that streams are archived: their keys expire, and they leave the list. `keys`: those that each stream has.

        Those of `to_look_at_again`, which are among them, are looked at once more shortly before their logs expire.
        """
        # Sent in one write; in this order, since a stream that has left the list is not found again.
        for keys_of_stream in keys.values():
            for key in keys_of_stream:
                self._send("EXPIRE", key, self.lives_seconds, "LT")
        again = set(to_look_at_again)
        for stream_id in again:
            self._list.send_look(stream_id, self.last_look_seconds, "XX")
        await self.forget([stream_id for stream_id in keys if stream_id not in again])

    async def forget(self, stream_ids: Sequence[str]) -> None:
        """Removes streams from the list."""
        await self._list.remove(stream_ids)

    def send_cannot_write(self) -> None:
        """Tells the gateways that the archive takes no rows."""
        self._send("HSET", ARCHIVE_TROUBLE, "write", "1")
        self._send("EXPIRE", ARCHIVE_TROUBLE, _TROUBLE_SECONDS)

    def send_can_write(self) -> None:
        """Tells the gateways that the archive takes rows again."""
        self._send("HDEL", ARCHIVE_TROUBLE, "write")

    async def can_write(self) -> bool:
        """Returns whether no worker has lately failed to write to the archive."""
        return not await self._commands.execute("HLEN", ARCHIVE_TROUBLE)

    def _send(self, *command: bytes | str | int) -> None:
        """Sends a command whose reply does not matter: what was lost is done at the next look."""
        self._commands.send(command, ignore)

    @property
    def last_look_seconds(self) -> float:
        """How long after a stream is archived its receipt is looked at for the last time, unless it is read after that."""
        return self.lives_seconds - min(_LAST_LOOK_SECONDS, self.lives_seconds * _LAST_LOOK_PART)
