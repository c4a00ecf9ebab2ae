"""The invariants between a stream's history and what its readers got. No I/O, and none of the gateway's code.

The history is the log up to its first terminal event, as `GET /v1/streams/{id}/events` shows it. A reader's events, over all its
connections, are compared with it one by one: ids, kinds and payloads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

ENDS = ("done", "failed", "cancelled")
_SHOWN = {
    "started": ("attempt", "model"),
    "restarted": ("attempt", "base", "reason"),
    "failed": ("code", "message", "retryable"),
    "cancelled": ("by",),
}

Id = tuple[int, int]
LogEntry = tuple[bytes, dict[bytes, bytes]]


class Shown(NamedTuple):
    """One event as a reader sees it: its id, its name (`message` for tokens and deltas), its data."""

    id: Id
    name: str
    data: Any


def id_of(text: str) -> Id:
    attempt, offset = text.split("-")
    return int(attempt), int(offset)


@dataclass
class Broken:
    """An invariant that does not hold."""

    invariant: str
    kind: str
    """`lost`, `doubled`, `out of order` or `other`, for the table."""
    detail: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.invariant}: {self.detail}"


@dataclass
class History:
    """A log, decoded and folded by this file's own rules."""

    shown: list[Shown] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    """The items of the present answer: a token's text, or the JSON of a delta."""
    generated: int = 0
    """All items that were ever appended, by any attempt."""
    last_attempt_items: int = 0
    accepted: dict[str, Any] = field(default_factory=dict)
    end: str = ""
    """The name of the terminal event; `deleted` for a tombstone."""
    end_data: dict[str, Any] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(item for item in self.items if not item.startswith("{"))


def history_of(entries: Sequence[LogEntry]) -> History:
    """Returns the history of a log, and the invariants that the log itself breaks."""
    history, reached = History(), (0, 0)
    for raw_id, fields in entries:
        at = id_of(raw_id.decode())
        ((name, value),) = [(name.decode(), value) for name, value in fields.items()]
        if history.end:
            break  # entries behind the first terminal event are not read
        if name in ("t", "d", "b"):
            items = [value.decode()] if name != "b" else [_item(one) for one in json.loads(value)]
            first = (at[0], at[1] - len(items) + 1)
            if first != (reached[0], reached[1] + 1):
                history.broken.append(Broken("offsets have no holes", "other", f"{first} after {reached} in the log"))
            for offset, item in enumerate(items, first[1]):
                data = json.loads(item) if name == "d" or item.startswith("{") else {"token": item}
                history.shown.append(Shown((at[0], offset), "message", data))
                history.items.append(item)
            history.generated += len(items)
            history.last_attempt_items += len(items)
            reached = at
            continue
        data = json.loads(value) if value else {}
        if name == "accepted":
            history.accepted, reached = data, at
        elif name in ("started", "restarted"):
            reached = _begun(history, at, name, data, reached)
        else:
            _ended(history, at, name, data, reached)
    return history


def _item(one: Any) -> str:
    return one if isinstance(one, str) else json.dumps(one)


def _begun(history: History, at: Id, name: str, data: dict[str, Any], reached: Id) -> Id:
    base, policy = data.get("base", 0), history.accepted["policies"]["on_interrupt"]
    plain = not any(item.startswith("{") for item in history.items)
    wanted = len(history.items) if policy == "continue" and plain else 0
    if at != (reached[0] + 1, 0) or (name == "started") != (at[0] == 1):
        history.broken.append(Broken("attempts follow each other", "other", f"{name} {at} after {reached}"))
    if base != wanted or (policy == "fail" and history.items):
        detail = f"{at} keeps {base} of {len(history.items)} items under on_interrupt {policy}"
        history.broken.append(Broken("a new attempt keeps what its policy says", "other", detail))
    history.shown.append(Shown(at, name, _shown(name, data)))
    del history.items[base:]
    history.last_attempt_items = 0
    return at[0], base


def _ended(history: History, at: Id, name: str, data: dict[str, Any], reached: Id) -> None:
    history.end, history.end_data = name, data
    if name == "deleted":
        return
    history.shown.append(Shown(at, name, _shown(name, data)))
    if at not in ((reached[0], reached[1] + 1), (reached[0] + 1, 0)):
        history.broken.append(Broken("the end follows what was written", "other", f"{name} {at} after {reached}"))
    if name == "done":
        usage = data.get("usage") or {}
        counts = (
            history.last_attempt_items,
            len(history.items),
        )  # of an answer that was continued, some count all of it
        if usage and usage.get("completion_tokens") not in counts:
            detail = f"the provider says {usage}, the last attempt has {history.last_attempt_items}"
            history.broken.append(Broken("generated = appended", "lost", detail))


def _shown(name: str, data: dict[str, Any]) -> dict[str, Any]:
    if name == "done":
        reason = data["finish_reason"]
        return {"finish_reason": reason, "truncated": reason == "length", "usage": data["usage"]}
    return {key: data[key] for key in _SHOWN[name]}


# --- readers


def check_reader(history: Sequence[Shown], seen: Sequence[Shown], *, from_now: bool, complete: bool) -> list[Broken]:
    """Returns the invariants that a reader's events break. `complete`: it saw the end. `from_now`: it may begin anywhere."""
    broken: list[Broken] = []
    ids = [one.id for one in seen]
    doubled = [at for at, count in Counter(ids).items() if count > 1]
    if doubled:
        broken.append(Broken("no event is doubled", "doubled", f"{doubled[:5]} came again", len(doubled)))
    disorder = [(before, after) for before, after in pairwise(ids) if after < before]
    if disorder:
        broken.append(Broken("events are in order", "out of order", f"{disorder[:5]}", len(disorder)))
    wanted = {one.id: one for one in history}
    first = ids[0] if from_now and ids else (0, 0)
    last = max(ids, default=(0, 0)) if not complete else max(wanted, default=(0, 0))
    got = set(ids)
    lost = [at for at in wanted if first <= at <= last and at not in got]
    if lost:
        broken.append(Broken("no event is lost", "lost", f"{len(lost)}, the first at {lost[0]}", len(lost)))
    for one in seen:
        if wanted.get(one.id) != one:
            broken.append(
                Broken("readers see the history", "other", f"{one} was seen, the log has {wanted.get(one.id)}")
            )
            break
    ends = [one for one in seen if one.name in ENDS]
    if complete and (len(ends) != 1 or seen[-1] is not ends[0]):
        broken.append(Broken("one terminal event, and it is the last", "other", f"{ends}, the last is {seen[-1:]}"))
    return broken


def answer_of(seen: Sequence[Shown]) -> list[str]:
    """Returns the items of a client that follows docs/reference/http.md: a `restarted` keeps the first `base`."""
    items: list[str] = []
    for one in seen:
        if one.name == "restarted":
            del items[one.data["base"] :]
        elif one.name == "message":
            items.append(one.data["token"] if "token" in one.data else json.dumps(one.data))
    return items


def check_answer(answer: Sequence[str], items: Sequence[str], *, whole: bool) -> list[Broken]:
    """Compares a client's items with the provider's answer: they must be its beginning, or all of it if `whole`."""
    expected = list(answer) if whole else list(answer[: len(items)])
    if [_plain(item) for item in items] == [_plain(item) for item in expected]:
        return []
    place = next((at for at, pair in enumerate(zip(items, expected, strict=False)) if pair[0] != pair[1]), len(items))
    kind = "lost" if len(items) < len(expected) else "other"
    detail = (
        f"{len(items)} items, {len(expected)} are expected, they differ at {place}: {list(items[place : place + 3])}"
    )
    return [Broken("the answer is the provider's", kind, detail)]


def _plain(item: str) -> str:
    """Returns a delta's JSON in one spelling."""
    return json.dumps(json.loads(item), sort_keys=True) if item.startswith("{") else item
