"""Finds streams: those that are archived, and those that still run or wait for the archive, as one list, the newest first.

A page goes on behind an id, and ids have their time: so a stream that is created or archived meanwhile moves no page. The live ids
are read before the archive is: a stream that changes over in between is found twice rather than not at all, and shown once.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import orjson

from shared.archive.store import Archive
from shared.archive.wanted import Wanted
from shared.commands import Commands, Script
from shared.errors import OddReply, RedisRefused, Unreadable
from shared.event_log import EventLog
from shared.events import DONE, FAILED, TERMINAL, Entry, control_of
from shared.ids import EventId, created_at
from shared.keys import log_key
from shared.lifecycle import status_after
from shared.unkept import Unkept

_LIVE_MAX = 100_000
"""Live streams that a list looks through: as many as may wait and run by default."""
_FRESH_SECONDS_PER_STREAM = 1e-5
"""For how long the list of the live streams is reused, for each stream in it: for a second where there are 100,000, which take a
tenth of a second to read. Where there are few, a stream is in the list as soon as it was created."""
_READ_AT_ONCE = 100
_LOOKED_AT_MAX = 5_000
"""Live streams that are looked at for one page: where few of very many are wanted, a page may have fewer than its limit."""
_HEADS_MAX = 20_000
_HEAD_BYTES = 64 << 10
"""Of `accepted`: the metadata stand before the request, and have 64 names and texts at most."""
_REQUEST = b',"request":'
"""The bytes behind the metadata in the value of `accepted`. They cannot be inside a JSON text, whose quotes have backslashes."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list. `after`: where the next one begins; None if there is none."""

    rows: list[Row]
    after: str | None


@dataclass(frozen=True, slots=True)
class _Head:
    """What never changes of a stream."""

    owner: str
    metadata: dict[str, str]


class Finding:
    """The lists of a gateway. Raises ArchiveAway, Disconnected, RedisRefused."""

    ABOUT = Script("about")

    def __init__(self, archive: Archive, unkept: Unkept, log: EventLog, commands: Commands) -> None:
        self._archive = archive
        self._unkept = unkept
        self._log = log
        self._commands = commands
        self._live: list[str] = []
        self._live_at = float("-inf")
        self._lock = asyncio.Lock()
        self._heads: OrderedDict[str, _Head] = OrderedDict()

    async def page(self, wanted: Wanted, limit: int) -> Page:
        """Returns the newest streams that are wanted, at most `limit`."""
        live = [stream_id for stream_id in await self._live_ids() if not wanted.before or stream_id < wanted.before]
        archived = [_archived_row(row) for row in await self._archive.find(wanted, limit + 1)]
        rows = {row["id"]: row for row in archived}
        oldest = archived[-1]["id"] if len(archived) > limit else ""  # behind it the archive has more
        looked_at_to = ""
        for start in range(0, len(live), _READ_AT_ONCE):
            part = [stream_id for stream_id in live[start : start + _READ_AT_ONCE] if stream_id > oldest]
            if not part or _has_enough(rows, part[0], limit):
                break
            rows |= {row["id"]: row for row in await self._live_rows(part, wanted) if row["id"] not in rows}
            if start + _READ_AT_ONCE >= _LOOKED_AT_MAX and start + _READ_AT_ONCE < len(live):
                looked_at_to = part[-1]
                break
        newest = sorted((row for row in rows.values() if row["id"] >= looked_at_to), key=_id_of, reverse=True)
        more = len(newest) > limit
        page = newest[:limit]
        return Page(page, page[-1]["id"] if more else looked_at_to or None)

    async def _live_ids(self) -> list[str]:
        """Returns the streams that are not archived, the newest first."""
        async with self._lock:
            if time.monotonic() - self._live_at > len(self._live) * _FRESH_SECONDS_PER_STREAM:
                self._live = await self._unkept.newest(_LIVE_MAX)
                self._live_at = time.monotonic()
            return self._live

    async def _live_rows(self, stream_ids: list[str], wanted: Wanted) -> list[Row]:
        rows = await asyncio.gather(*(self._live_row(stream_id, wanted) for stream_id in stream_ids))
        return [row for row in rows if row is not None and _is_wanted(row, wanted)]

    async def _live_row(self, stream_id: str, wanted: Wanted) -> Row | None:
        """Returns what is known of a stream in Redis; None if it is not there, or certainly not wanted."""
        head = self._heads.get(stream_id)
        if head is None:
            head = await self._head(stream_id)
        if head is None or (wanted.owner is not None and head.owner != wanted.owner):
            return None
        newest = await self._log.newest(stream_id)
        if not newest or newest[-1].field == b"deleted":
            return None
        row = _live_row(stream_id, head, newest[-1])
        attempt = newest[-1].id.attempt
        if attempt:
            row["model"] = await self._model(
                stream_id, attempt - (newest[-1].id.offset == 0 and row["ended_at"] is not None)
            )
        return row

    async def _head(self, stream_id: str) -> _Head | None:
        beginning, _ = await self._about(stream_id, 0)
        before, found, _ = beginning.partition(_REQUEST)
        try:
            stored = orjson.loads(before + b"}" if found else beginning)
            head = _Head(str(stored["principal"]), {str(key): str(value) for key, value in stored["metadata"].items()})
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return None
        self._heads[stream_id] = head
        while len(self._heads) > _HEADS_MAX:
            self._heads.popitem(last=False)
        return head

    async def _model(self, stream_id: str, attempt: int) -> str | None:
        _, begun = await self._about(stream_id, attempt)
        try:
            model = orjson.loads(begun)["model"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return None
        return model if isinstance(model, str) else None

    async def _about(self, stream_id: str, attempt: int) -> tuple[bytes, bytes]:
        try:
            reply = await self.ABOUT.run(self._commands, [log_key(stream_id)], _HEAD_BYTES, f"{attempt}-0")
            beginning, begun = reply
        except (RedisRefused, TypeError, ValueError) as error:  # the key is not a stream's log
            if isinstance(error, RedisRefused) and error.forbids:
                raise
            return b"", b""
        if not (isinstance(beginning, bytes) and isinstance(begun, bytes)):
            raise OddReply("ODDREPLY the script `about` was answered by something else than texts")
        return beginning, begun


def _id_of(row: Row) -> str:
    return str(row["id"])


def _has_enough(rows: dict[str, Row], newest_left: str, limit: int) -> bool:
    """Whether more rows than a page has are newer than all that is left."""
    return sum(stream_id > newest_left for stream_id in rows) > limit


def _is_wanted(row: Row, wanted: Wanted) -> bool:
    return (
        (not wanted.status or row["status"] == wanted.status)
        and (not wanted.model or row["model"] == wanted.model)
        and (wanted.from_time is None or row["created_at"] >= wanted.from_time)
        and (wanted.to_time is None or row["created_at"] < wanted.to_time)
        and all(row["metadata"].get(key) == value for key, value in wanted.metadata.items())
    )


def _archived_row(row: Row) -> Row:
    counts = {name: row[name] for name in ("prompt_tokens", "completion_tokens")}
    return {
        **{name: row[name] for name in ("id", "status", "owner", "model", "api", "metadata")},
        **{name: row[name] for name in ("created_at", "started_at", "ended_at", "finish_reason", "error_code")},
        **{name: row[name] for name in ("attempts", "generated_tokens", "delivered_tokens")},
        "usage": None if counts == dict.fromkeys(counts) else counts,
        "archived": True,
    }


def _live_row(stream_id: str, head: _Head, newest: Entry) -> Row:
    ended: dict[str, Any] = {}
    if newest.field in TERMINAL:
        try:
            ended = control_of(newest.field, newest.value)
        except Unreadable:
            ended = {"code": "unreadable"}
    event_id: EventId = newest.id
    usage = ended.get("usage") if newest.field == DONE else None
    is_own_end = newest.field in TERMINAL and event_id.offset > 0
    return {
        "id": stream_id,
        "status": str(status_after(newest.field)),
        "owner": head.owner,
        "model": None,
        "api": None,
        "metadata": head.metadata,
        "created_at": created_at(stream_id),
        "started_at": None,
        "ended_at": ended.get("time"),
        "finish_reason": ended.get("finish_reason"),
        "error_code": ended.get("code") if newest.field == FAILED else None,
        "attempts": event_id.attempt - (newest.field in TERMINAL and not is_own_end),
        "generated_tokens": (event_id.offset - is_own_end) if event_id.attempt else 0,
        "delivered_tokens": None,
        "usage": usage and {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")},
        "archived": False,
    }
