"""Large fields of a request, as photos make them: they lie beside the log, and not in it.

Whoever reads a log would read them too, and a log outlives its answer. Only the worker needs them, until the answer ends;
and an API that goes on from an earlier request (`previous_response_id`). docs/decisions/0012-large-requests-beside-the-log.md
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from shared.keys import kept_key, request_key

LARGE_BYTES = 16 << 10
"""From this size on a field's JSON lies beside the log. A text of this length is a long prompt of 3,000 words."""
_IN_THE_LOG = ("tools", "response_format")
"""Fields that every reader of a response gets (OpenAI Responses), whatever their size."""

UNTIL_THE_END, KEPT = "request", "kept"
"""How long they are needed: until the answer ends, or as long as the log. The last part of their key's name."""


class Beside(NamedTuple):
    """Large fields, and how long they are needed."""

    place: str
    fields: dict[str, bytes]
    """By name, as JSON."""

    def key(self, stream_id: str) -> bytes:
        return key_of(stream_id, self.place)


def key_of(stream_id: str, place: str) -> bytes:
    return kept_key(stream_id) if place == KEPT else request_key(stream_id)


def split(request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Returns a request with its small fields, which orjson can write, and the large ones by name, as JSON.

    Of large messages an empty list is left.
    """
    encoded = {name: orjson.dumps(value) for name, value in request.items()}
    large = {name: json for name, json in encoded.items() if len(json) >= LARGE_BYTES and name not in _IN_THE_LOG}
    small = {name: orjson.Fragment(json) for name, json in encoded.items() if name not in large}
    if "messages" in large:
        small["messages"] = []  # type: ignore[assignment]
    return small, large


def place_in(accepted: bytes) -> str:
    """Returns where the large fields of a request lie, from the value of its `accepted`; empty if there are none."""
    if b'"beside"' not in accepted:
        return ""
    try:
        stored = orjson.loads(accepted)
    except orjson.JSONDecodeError:
        return ""
    place = stored.get("beside") if isinstance(stored, dict) else None
    return place if isinstance(place, str) and place in (UNTIL_THE_END, KEPT) else ""


def joined(accepted: bytes, fields: dict[bytes, bytes]) -> bytes | None:
    """Returns the value of an `accepted` with its large fields; None if they are gone, or are not JSON."""
    if not fields:
        return None
    try:
        stored = orjson.loads(accepted)
        for name, json in fields.items():
            stored["request"][name.decode()] = orjson.loads(json)
        del stored["beside"]
        return orjson.dumps(stored)
    except (orjson.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError):
        return None
