"""New ends of streams that replicas may lack: with MIDSTREAM_MIN_REPLICAS nobody is shown one before they have it.

Whoever wrote the end may still wait for replicas, or have died meanwhile; and its server may have been replaced by one that lacks it.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from typing import Any

import orjson

from shared.commands import Executes
from shared.errors import Disconnected
from shared.events import TERMINAL, entry_of
from shared.keys import log_key
from shared.odd_replies import ODD_SHAPES

_KNOWN_MAX = 10_000
"""Streams whose ends replicas are known to have: 1 MB. Of others they are asked once more."""
_NEW_SECONDS = 60.0
"""An end that is older is shown without asking: a fail-over takes seconds, and while no replica is there old answers can be read."""


class NewEnds:
    """The ends that a process has found in logs or written. Entries are as Redis sent them: `[id, [field, value]]`."""

    def __init__(self, replicated: Executes | None) -> None:
        """Without `replicated` (`shared.replicas`) no end is doubtful."""
        self._replicated = replicated
        self._known: OrderedDict[str, bytes] = OrderedDict()
        """The ids of ends that replicas have, by stream; the newest last."""

    def note(self, stream_id: str, end_id: bytes) -> None:
        """Notes that replicas have the end with this id."""
        if self._replicated is not None:
            self._known[stream_id] = end_id
            if len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)

    def doubtful(self, stream_id: str, entries: list[Any]) -> bytes | None:
        """Returns the id of the last of these entries if it is a new end that replicas may lack, else None."""
        if self._replicated is None or not entries:
            return None
        try:
            end_id, fields = entries[-1]
            _, field, value = entry_of(end_id, fields)
        except ODD_SHAPES:
            return None
        if field not in TERMINAL or self._known.get(stream_id) == end_id:
            return None
        with contextlib.suppress(*ODD_SHAPES):  # a tombstone has no time, and what is damaged no JSON
            if time.time() - orjson.loads(value)["time"] > _NEW_SECONDS:
                return None
        return bytes(end_id)

    async def until_at_replicas(self, stream_id: str, entries: list[Any]) -> None:
        """Returns when replicas have the end of the stream, if the last of these entries is one.

        Raises Disconnected, RedisRefused: the log may then be read again.
        """
        end_id = self.doubtful(stream_id, entries)
        if end_id is None or self._replicated is None:
            return
        newest = await self._replicated.execute("XREVRANGE", log_key(stream_id), "+", "-", "COUNT", 1)
        if not isinstance(newest, list) or [entry[:1] for entry in newest] != [[end_id]]:
            raise Disconnected("another server has the log now, and it lacks the end")
        self.note(stream_id, end_id)
