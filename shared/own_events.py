"""Own events: what a generator reports beside its text, such as the steps of an agent, under a name of its own.

An own event is an increment of the answer: it has an offset, and is stored as the JSON object `{"event": name, "data": …}`, in
an `e` entry or as an object in a `b` entry. Readers get it under its name, so a name must not be one of Midstream's events.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from shared.deltas import EMPTY_DELTA, NESTED_MAX, loaded, too_deep
from shared.errors import Unreadable

NAME_CHARACTERS_MAX = 64
BYTES_MAX = 64 << 10
"""Of one event's JSON: 64 of them may share an entry, which Redis sends to each gateway at once. Larger data belongs where the
event can name it, such as an object store."""
RESERVED = frozenset(
    "accepted cancelled deleted done end error failed gap history live message open probe restarted retry started".split()
)
"""Midstream's own events on any face, and what browsers give a meaning to: `message`, `open` and `error` of an EventSource."""
_NAME = re.compile(rf"[A-Za-z][A-Za-z0-9_.-]{{0,{NAME_CHARACTERS_MAX - 1}}}", re.ASCII)
_HEAD, _BETWEEN = b'{"event":"', b'","data":'


class OwnEvent(bytes):
    """The JSON of an own event, made by `own_event`: a type of its own, since an item's type tells what it is."""

    __slots__ = ()


def own_event(name: Any, data: Any) -> OwnEvent:
    """Returns an own event as the log has it. Raises ValueError with a sentence that says what is wrong."""
    complaint = complaint_about_name(name)
    if complaint:
        raise ValueError(complaint)
    try:
        value = orjson.dumps({"event": name, "data": data})
    except TypeError as error:  # JSONEncodeError is one
        raise ValueError(f"the data of the event {name!r} cannot be written as JSON: {error}") from None
    if len(value) > BYTES_MAX:
        raise ValueError(f"the event {name!r} has {len(value)} bytes as JSON; {BYTES_MAX} are the most")
    if value.count(b"{") + value.count(b"[") > NESTED_MAX and too_deep(orjson.loads(value)):
        raise ValueError(f"the data of the event {name!r} is nested too deeply: {NESTED_MAX} levels are the most")
    return OwnEvent(value)


def complaint_about_name(name: Any) -> str:
    """Returns why an own event cannot have this name, as a sentence; empty if it can."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return (
            f"the name of an event must be a letter and then up to {NAME_CHARACTERS_MAX - 1} letters, digits, "
            f"'_', '.' or '-', not {str(name)[:NAME_CHARACTERS_MAX]!r}"
        )
    if name in RESERVED or name.startswith("midstream"):
        return (
            f"the event's name {name!r} is reserved: readers would take it for one of Midstream's own or the browser's"
        )
    return ""


def is_own_event(stored: dict[str, Any]) -> bool:
    """Returns whether an object in a `b` entry is an own event; the others are deltas."""
    return "event" in stored and "delta" not in stored


def checked_own_event(stored: Any) -> bytes:
    """Returns an own event as readers get it, from the JSON object in the log: on one line, its fields in their order.

    One that cannot be shown, because another writer gave it a reserved name or none, becomes `EMPTY_DELTA`, an empty delta. Raises
    Unreadable for what is no object.
    """
    if type(stored) is not dict:
        raise Unreadable("an own event is not a JSON object")
    if complaint_about_name(stored.get("event")) or too_deep(stored.get("data")):
        return EMPTY_DELTA
    return orjson.dumps({"event": stored["event"], "data": stored.get("data")})


def loaded_own_event(value: bytes) -> bytes:
    """Returns the value of an `e` entry as readers get it, or `EMPTY_DELTA`. Raises Unreadable."""
    return checked_own_event(loaded(value))


def name_and_data(value: bytes) -> tuple[bytes, bytes]:
    """Returns the name and the data's JSON of an own event that has been checked."""
    name, _, data = value[len(_HEAD) : -1].partition(_BETWEEN)
    return name, data
