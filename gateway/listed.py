"""What the console says of a listed stream beside its numbers: the model that answers, and the client's metadata.

Both are read once per stream and attempt, and without the request, which may have a megabyte.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import orjson

from shared.errors import RedisRefused
from shared.ids import is_stream_id
from shared.keys import log_key
from shared.log import Commands, Script

_BEGINNING_BYTES = 8192
"""So much of `accepted` is read. Metadata that does not end within it is not shown."""
_METADATA_MAX = 8
_TEXT_CHARACTERS_MAX = 64
"""Of a model's name, and of each name and text of the metadata: 100 streams are sent each second to 32 watchers."""
_REQUEST = b',"request":'
"""What follows the metadata in the value of `accepted`. Within a JSON text its quotes would have a backslash before them."""


class Listed(NamedTuple):
    attempt: int
    model: str | None
    metadata: dict[str, str]


UNKNOWN = Listed(-1, None, {})


class ListedStreams:
    """What is known of the streams that are listed; of others nothing is kept."""

    ABOUT = Script("about")

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._known: dict[str, Listed] = {}

    async def read(self, attempts: dict[str, int]) -> dict[str, Listed]:
        """For each stream what is known of its attempt with this number (0: it waits); what is new is asked of Redis."""
        news = [stream_id for stream_id, attempt in attempts.items() if self._of(stream_id).attempt != attempt]
        replies = await asyncio.gather(*(self._about(stream_id, attempts[stream_id]) for stream_id in news))
        known = dict(zip(news, replies, strict=True))
        self._known = {stream_id: known.get(stream_id, self._of(stream_id)) for stream_id in attempts}
        return self._known

    def _of(self, stream_id: str) -> Listed:
        return self._known.get(stream_id, UNKNOWN)

    async def _about(self, stream_id: str, attempt: int) -> Listed:
        try:
            beginning, begun = await self.ABOUT.run(
                self._commands, [log_key(stream_id)], _BEGINNING_BYTES, f"{attempt}-0"
            )
        except RedisRefused:  # a key of that name that is no log of ours
            return Listed(attempt, None, {})
        return Listed(attempt, model_of(begun), metadata_of(beginning))


def model_of(begun: bytes) -> str | None:
    """The model that the value of a `started` or `restarted` names; None where it names none."""
    model = _object(begun).get("model")
    return cut(model, _TEXT_CHARACTERS_MAX) if isinstance(model, str) else None


def metadata_of(beginning: bytes) -> dict[str, str]:
    """The metadata in the beginning of the value of an `accepted`; empty where the beginning does not hold all of it."""
    before, found, _ = beginning.partition(_REQUEST)
    metadata = _object(before + b"}" if found else beginning).get("metadata")
    if not isinstance(metadata, dict):
        return {}
    return {
        cut(str(name), _TEXT_CHARACTERS_MAX): cut(str(text), _TEXT_CHARACTERS_MAX)
        for name, text in list(metadata.items())[:_METADATA_MAX]
    }


def failure_of(failed: bytes) -> dict[str, Any]:
    """The code of a `failed`, and the provider's status if it has one, by its value. The message may repeat the prompt."""
    failure = _object(failed)
    status = failure.get("status")
    return {
        "code": cut(str(failure.get("code", "")), _TEXT_CHARACTERS_MAX),
        "status": status if isinstance(status, int) else None,
    }


def failures_of(process: dict[str, Any]) -> list[dict[str, Any]]:
    """The streams that failed lately, as a worker tells in its word to `shared.presence`; without what is none of ours."""
    failures = process.get("failures")
    return [
        {
            "id": failure["id"],
            "attempt": failure["attempt"],
            "tokens": failure["tokens"],
            "model": cut(failure["model"], _TEXT_CHARACTERS_MAX) if isinstance(failure.get("model"), str) else None,
            "error": failure_of(orjson.dumps(failure)),
            "ended_at": failure["ended_at"],
        }
        for failure in (failures if isinstance(failures, list) else [])
        if isinstance(failure, dict)
        and isinstance(failure.get("id"), str)
        and is_stream_id(failure["id"])
        and all(type(failure.get(name)) is int for name in ("attempt", "tokens"))
        and type(failure.get("ended_at")) in (int, float)
    ]


def cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _object(value: bytes) -> dict[str, Any]:
    """A JSON object; an empty one for anything else."""
    try:
        loaded = orjson.loads(value)
    except orjson.JSONDecodeError:
        return {}
    return loaded if isinstance(loaded, dict) else {}
