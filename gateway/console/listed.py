"""Reads what the console's list shows of a stream besides numbers: the model that answers, and the client's metadata.

Both are read once per stream and attempt, and without the request, which may have a megabyte.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NamedTuple

import orjson

from shared.commands import Commands, Script
from shared.errors import RedisRefused
from shared.events import TIME_MAX
from shared.ids import is_stream_id
from shared.keys import log_key
from shared.odd_replies import shown

logger = logging.getLogger(__name__)

_BEGINNING_BYTES = 8192
"""Only so many bytes of `accepted`, and of an attempt's first entry, are read. Metadata that does not end within them is not shown."""
_METADATA_MAX = 8
_TEXT_CHARACTERS_MAX = 64
"""The limit of a model's name, and of each name and text of the metadata: each second 100 streams are sent to up to 32 watchers."""
_REQUEST = b',"request":'
"""The bytes behind the metadata in the value of `accepted`. They cannot be inside a JSON text, whose quotes have backslashes."""


class Listed(NamedTuple):
    """The model of a stream's attempt, and the stream's metadata."""

    attempt: int
    model: str | None
    metadata: dict[str, str]


UNKNOWN = Listed(-1, None, {})


class ListedStreams:
    """Reads and caches models and metadata of the streams in the list; streams that leave the list leave the cache."""

    ABOUT = Script("about")

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._known: dict[str, Listed] = {}

    async def read(self, attempts: dict[str, int]) -> dict[str, Listed]:
        """Returns model and metadata of each stream. `attempts` has each stream's present attempt (0: it waits).

        Reads from Redis only those whose attempt has changed.
        """
        changed = [stream_id for stream_id, attempt in attempts.items() if self._of(stream_id).attempt != attempt]
        replies = await asyncio.gather(*(self._about(stream_id, attempts[stream_id]) for stream_id in changed))
        known = dict(zip(changed, replies, strict=True))
        self._known = {stream_id: known.get(stream_id, self._of(stream_id)) for stream_id in attempts}
        return self._known

    def _of(self, stream_id: str) -> Listed:
        return self._known.get(stream_id, UNKNOWN)

    async def _about(self, stream_id: str, attempt: int) -> Listed:
        keys, nothing = [log_key(stream_id)], Listed(attempt, None, {})
        try:
            reply = await self.ABOUT.run(self._commands, keys, _BEGINNING_BYTES, f"{attempt}-0")
        except RedisRefused as error:  # the key is not a stream's log
            if error.forbids:
                raise
            return nothing
        if not isinstance(reply, list) or len(reply) != 2 or not all(isinstance(value, bytes) for value in reply):
            logger.debug("stream %s: the script `about` was answered with %s", stream_id, shown(reply))
            return nothing
        beginning, begun = reply
        return Listed(attempt, model_of(begun), metadata_of(beginning))


def model_of(begun: bytes) -> str | None:
    """Returns the model that the value of a `started` or `restarted` names; None if it names none."""
    model = _object(begun).get("model")
    return cut(model, _TEXT_CHARACTERS_MAX) if isinstance(model, str) else None


def metadata_of(beginning: bytes) -> dict[str, str]:
    """Returns the metadata from the first bytes of an `accepted`; empty if those bytes do not hold all of it."""
    before, found, _ = beginning.partition(_REQUEST)
    metadata = _object(before + b"}" if found else beginning).get("metadata")
    if not isinstance(metadata, dict):
        return {}
    return {
        cut(name, _TEXT_CHARACTERS_MAX): cut(text, _TEXT_CHARACTERS_MAX)
        for name, text in list(metadata.items())[:_METADATA_MAX]
        if isinstance(text, str)
    }


def failure_of(failed: bytes) -> dict[str, Any]:
    """Returns the code of a `failed` event, and the provider's status if it has one. The message may repeat the prompt: it is left out."""
    return _code_and_status(_object(failed))


def _code_and_status(failure: dict[str, Any]) -> dict[str, Any]:
    code, status = failure.get("code"), failure.get("status")
    return {
        "code": cut(code, _TEXT_CHARACTERS_MAX) if isinstance(code, str) else "",
        "status": status if type(status) is int else None,
    }


def failures_of(process: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the streams that failed lately, from a worker's heartbeat (`shared.presence`). Ignores entries of another shape."""
    failures = process.get("failures")
    return [
        {
            "id": failure["id"],
            "attempt": failure["attempt"],
            "tokens": failure["tokens"],
            "model": cut(failure["model"], _TEXT_CHARACTERS_MAX) if isinstance(failure.get("model"), str) else None,
            "error": _code_and_status(failure),
            "ended_at": failure["ended_at"],
        }
        for failure in (failures if isinstance(failures, list) else [])
        if isinstance(failure, dict)
        and isinstance(failure.get("id"), str)
        and is_stream_id(failure["id"])
        and all(type(failure.get(name)) is int for name in ("attempt", "tokens"))
        and type(failure.get("ended_at")) in (int, float)
        and 0 <= failure["ended_at"] <= TIME_MAX
    ]


def cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _object(value: bytes) -> dict[str, Any]:
    """Parses a JSON object; returns an empty one for anything else."""
    try:
        loaded = orjson.loads(value)
    except orjson.JSONDecodeError:
        return {}
    return loaded if isinstance(loaded, dict) else {}
