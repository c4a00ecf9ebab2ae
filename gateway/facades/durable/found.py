"""From the path of a request to its stream.

A path is a name that its owner chose, and points to a stream's id; a stream's own id is a path, too. What was found is
remembered, so that an append costs one round trip to Redis. Another gateway may have deleted the stream since: its log is
gone then, whoever finds that looks once more (`Finder.until_found`).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from gateway.http.connection import Scope
from gateway.http.principal import principal
from gateway.http.problems import Problem, not_found
from gateway.streams.stream_logs import StreamLogs
from shared.errors import Unreadable
from shared.ids import is_stream_id
from shared.keys import name_digest
from shared.written_log import Names, WrittenLog, WrittenStream

PATH_HEAD = "/v1/stream/"
PATH_BYTES_MAX = 1024
_REMEMBERED_MAX = 10_000
"""Names of which a process remembers the stream: 10 MB."""
_GONE = (404, 410)

T = TypeVar("T")


@dataclass(slots=True)
class Found:
    """A stream that a path leads to."""

    stream_id: str
    written: WrittenStream | None
    """None: a worker writes it."""
    name: str = ""
    """The name that points to it; empty if the path is its id."""
    renewed_at: float = 0.0
    """When the name's expiry was renewed here last (monotonic seconds)."""
    noted_bytes: int = 0
    """Its size when it was last counted among all that its owner holds."""
    has_ended: bool = False


def path_of(scope: Scope) -> str:
    """Returns the part of the request's path that names the stream. Raises Problem 400."""
    path: str = scope["path"][len(PATH_HEAD) :]
    if len(path.encode(errors="replace")) > PATH_BYTES_MAX:
        raise Problem(400, f"the path of a stream may have {PATH_BYTES_MAX} bytes")
    return path


class Finder:
    """Finds streams by their paths."""

    def __init__(self, logs: StreamLogs, names: Names, log: WrittenLog) -> None:
        self._logs = logs
        self._names = names
        self._log = log
        self._known: OrderedDict[tuple[str, str], Found] = OrderedDict()

    async def until_found(self, path: str, use: Callable[[Found], Awaitable[T | None]]) -> T:
        """Returns what `use` makes of the stream of this path; called once more if it returns None: its log is gone.

        Raises Problem 404.
        """
        for fresh in (False, True):
            found = await self.find(path, fresh=fresh)
            if found is None:
                break
            try:
                await self._logs.check_owner(found.stream_id)  # a token may be for one stream only
                result = await use(found)
            except Problem as problem:
                if problem.status not in _GONE:
                    raise
                result = None
            if result is not None:
                return result
        self.forget(path)
        raise not_found()

    async def find(self, path: str, *, fresh: bool = False) -> Found | None:
        """Returns the stream of a path; None if there is none. `fresh`: what is remembered does not count."""
        owner = principal.get().name
        if not fresh:
            known = self._known.get((owner, path))
            if known is not None:
                self._known.move_to_end((owner, path))
                return known
        return (await self.look(path))[1]

    async def look(self, path: str, *, to_create: bool = False) -> tuple[str, Found | None]:
        """Looks in Redis and in the archive: returns the id that a path points to (empty: none), and the stream, if that is there.

        `to_create`: while the archive is away its names count as free, so that streams can be made.
        """
        stream_id, name = path, ""
        if not is_stream_id(path):
            name = path
            stream_id = await self._logs.answered(self._names.find, principal.get().name, path)
        found = await self._found(stream_id, name) if is_stream_id(stream_id) else None
        if found is None and name and not (to_create and self._logs.archive_state == "away"):
            found = await self._archived(name)
            if found is not None:
                await self._point_again(name, before=stream_id, found=found)
                stream_id = found.stream_id
        if found is not None:
            self.remember(path, found)
        return stream_id, found

    async def _found(self, stream_id: str, name: str) -> Found | None:
        try:
            accepted = await self._logs.accepted(stream_id)
            return Found(stream_id, WrittenStream.of(stream_id, accepted), name)
        except Problem as problem:
            if problem.status not in _GONE:
                raise
            return None
        except Unreadable:  # readers get its `failed`, as anywhere
            return Found(stream_id, None, name)

    async def _archived(self, name: str) -> Found | None:
        """Returns the archived stream of a name that points to none any more, which is in Redis again then."""
        stream_id = await self._logs.archived_as(name_digest(principal.get().name, name))
        return await self._found(stream_id, name) if stream_id else None

    async def _point_again(self, name: str, *, before: str, found: Found) -> None:
        owner, life_ms = principal.get().name, found.written.life_ms if found.written else 0
        point = self._names.point
        await self._logs.answered(point, owner, name, before=before, after=found.stream_id, life_ms=life_ms)

    def remember(self, path: str, found: Found) -> None:
        """Remembers where a path leads."""
        self._known[principal.get().name, path] = found
        if len(self._known) > _REMEMBERED_MAX:
            self._known.popitem(last=False)

    def forget(self, path: str) -> None:
        """Forgets where a path leads."""
        self._known.pop((principal.get().name, path), None)

    def renew(self, found: Found) -> bool:
        """Has a stream that was written or read live on, and its name. True if the name was renewed: once in half a life."""
        written = found.written
        if written is None or not written.life_ms:
            return False
        if found.has_ended and not written.has_own_life and self._logs.archive_state is not None:
            return False  # the archive has it: Redis may forget it in its time
        self._log.renew(written)
        now = time.monotonic()
        if not found.name or now - found.renewed_at < written.life_ms / 2000:
            return False
        found.renewed_at = now
        self._names.renew(written.owner, found.name, written.life_ms)
        return True
