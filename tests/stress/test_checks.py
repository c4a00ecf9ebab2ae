"""The checks of a stress run notice a lost, doubled or reordered token."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.stress.agreement import Counts, disagreements
from tests.stress.history import Shown, check_answer, check_reader, history_of

_Entries = list[tuple[bytes, dict[bytes, bytes]]]


def _log(policy: str = "restart") -> _Entries:
    """Returns a log of two attempts: five tokens, then all again, two of them in one entry."""
    started = {"attempt": 1, "model": "m", "worker": "w", "time": 1.0}
    restarted = {**started, "attempt": 2, "base": 0, "reason": "worker_lost"}
    done = {"finish_reason": "stop", "usage": {"completion_tokens": 5}, "time": 2.0}
    entries: list[tuple[str, str, Any]] = [
        ("0-1", "accepted", {"policies": {"on_interrupt": policy}}),
        ("1-0", "started", started),
        *((f"1-{at}", "t", f"{at} ") for at in (1, 2, 3)),
        ("2-0", "restarted", restarted),
        *((f"2-{at}", "t", f"{at} ") for at in (1, 2, 3)),
        ("2-5", "b", ["4 ", "5 "]),
        ("2-6", "done", done),
    ]
    return [(at.encode(), {name.encode(): _value(value)}) for at, name, value in entries]


def _value(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def _kinds(seen: list[Shown], *, complete: bool = True, from_now: bool = False) -> set[str]:
    return {one.kind for one in check_reader(history_of(_log()).shown, seen, from_now=from_now, complete=complete)}


def test_an_undamaged_history_passes() -> None:
    history = history_of(_log())
    assert history.broken == []
    assert history.items == ["1 ", "2 ", "3 ", "4 ", "5 "]
    assert (history.generated, history.end) == (8, "done")
    assert _kinds(history.shown) == set()
    assert _kinds(history.shown[:4], complete=False) == set()
    assert _kinds(history.shown[6:], from_now=True) == set()


def _lose(seen: list[Shown]) -> None:
    del seen[7]


def _double(seen: list[Shown]) -> None:
    seen.insert(7, seen[6])


def _swap(seen: list[Shown]) -> None:
    seen[6], seen[7] = seen[7], seen[6]


def _alter(seen: list[Shown]) -> None:
    seen[6] = seen[6]._replace(data={"token": "another "})


def _cut_off(seen: list[Shown]) -> None:
    seen.pop()


@pytest.mark.parametrize(
    ("damage", "kind"),
    [(_lose, "lost"), (_double, "doubled"), (_swap, "out of order"), (_alter, "other"), (_cut_off, "lost")],
)
def test_damage_to_what_a_reader_saw_is_noticed(damage: Callable[[list[Shown]], None], kind: str) -> None:
    seen = list(history_of(_log()).shown)
    damage(seen)
    assert kind in _kinds(seen)


def test_a_hole_in_the_log_is_noticed() -> None:
    log = [entry for entry in _log() if entry[0] != b"2-2"]
    assert [one.invariant for one in history_of(log).broken] == ["offsets have no holes", "generated = appended"]


def test_a_violated_policy_is_noticed() -> None:
    assert history_of(_log("fail")).broken
    assert history_of(_log("continue")).broken


def test_an_answer_that_differs_from_the_provider_s_is_noticed() -> None:
    answer = ["1 ", "2 ", "3 "]
    assert check_answer(answer, answer, whole=True) == []
    assert check_answer(answer, answer[:2], whole=False) == []
    assert check_answer(answer, answer[:2], whole=True)[0].kind == "lost"
    assert check_answer(answer, ["1 ", "3 "], whole=False)


_COUNTS = Counts(generated=5, delivered=4, prompt=2, completion=5)
_USAGE = {"streams": 2, "generated": 10, "delivered": 8, "prompt": 4, "completion": 10}


@pytest.mark.parametrize(
    ("webhook_counts", "usage", "count"),
    [
        ({"a": _COUNTS, "b": _COUNTS}, _USAGE, 0),
        ({"a": _COUNTS._replace(delivered=1)}, _USAGE, 0),  # sent before all was read; and the deleted stream is untold
        ({"a": _COUNTS._replace(delivered=5)}, _USAGE, 1),
        ({"a": _COUNTS._replace(generated=6)}, _USAGE, 1),
        ({"b": _COUNTS}, _USAGE, 1),
        ({"a": _COUNTS, "c": _COUNTS}, _USAGE, 1),
        ({"a": _COUNTS}, {**_USAGE, "streams": 3, "generated": 15}, 2),
    ],
)
def test_what_does_not_agree_is_noticed(webhook_counts: dict[str, Counts], usage: dict[str, int], count: int) -> None:
    """Stream b is deleted: it has no receipt."""
    assert len(disagreements({"a": _COUNTS}, {"a": _COUNTS, "b": _COUNTS}, usage, webhook_counts)) == count


def test_a_receipt_that_differs_from_the_archive_is_noticed() -> None:
    receipts = {"a": _COUNTS._replace(delivered=5)}
    assert len(disagreements(receipts, {"a": _COUNTS, "b": _COUNTS}, _USAGE, {"a": _COUNTS})) == 1
