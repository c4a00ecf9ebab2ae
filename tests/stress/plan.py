"""The plan of a run, drawn from the seed: for each stream its request and its readers."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

_ENDINGS = (" ", "é ", "— ", "\n", "\r\n", "字", "🌊 ", '" ')
_FAULTS = ("break_after", "error_chunk_after", "stall_after", "fail_status", "no_finish", "refused")


@dataclass
class ReaderOrder:
    """The behaviour of one reader. Counts are events since its last connection began."""

    starts_after_seconds: float = 0.0
    from_now: bool = False
    bytes_per_second: int = 0
    """0: reads events as fast as they come."""
    leaves_after: list[int] = field(default_factory=list)
    """For each number: closes the connection after so many events, and reconnects."""
    away_seconds: float = 0.1
    abandons_after: int | None = None
    """Closes the connection after so many events for good."""


@dataclass
class StreamOrder:
    body: dict[str, Any]
    answer: list[str]
    """The answer, item by item, as `history` has items."""
    readers: list[ReaderOrder]
    ends_by: str = ""
    """`cancel` or `delete`, after so many seconds."""
    ends_after_seconds: float = 0.0

    @property
    def policies(self) -> dict[str, Any]:
        policies: dict[str, Any] = self.body.get("midstream", {})
        return policies


def order(seed: int, number: int, *, short: bool = False) -> StreamOrder:
    """Returns the order of one stream: equal for equal seed and number. `short`: at most 200 tokens, so that more streams end."""
    dice = random.Random(f"{seed}/{number}")
    big = dice.random() < 0.15 and not short
    tokens = dice.randrange(2000, 6000) if big else dice.randrange(0, 200)
    text = [f"{at}{dice.choice(_ENDINGS)}" for at in range(tokens)]
    pace = dice.choice((0, 2000)) if big else dice.choice((0, 20, 60, 150, 400))
    script: dict[str, Any] = {"text": text, "tokens_per_second": pace, "key": f"{seed}/{number}"}
    answer = list(text)
    if dice.random() < 0.15:
        script["reasoning"] = [f"thought {at} " for at in range(dice.randrange(1, 8))]
        answer = [json.dumps({"delta": {"reasoning_content": piece}}) for piece in script["reasoning"]] + answer
    if dice.random() < 0.2:
        script["finish_reason"] = "length"
    if dice.random() < 0.35:
        _order_fault(dice, script, len(answer))
    short = dice.random() < 0.25
    midstream = {
        "on_interrupt": dice.choice(("fail", "restart", "continue")),
        "on_disconnect": {"cancel_after": dice.uniform(0.5, 2.0)}
        if short
        else dice.choice(("continue", {"cancel_after": 60})),
        "metadata": {"number": str(number)},
    }
    body = {"messages": [{"role": "user", "content": f"order {number}"}], "script": script, "midstream": midstream}
    ends_by = dice.choices(("", "cancel", "delete"), (8, 1, 1))[0]
    readers = [_reader_order(dice, len(answer)) for _ in range(dice.choice((1, 1, 2, 2, 3, 4)))]
    return StreamOrder(body, answer, readers, ends_by, dice.uniform(0.0, 2.5))


def _order_fault(dice: random.Random, script: dict[str, Any], items: int) -> None:
    """Returns a fault of the provider at any token, once or a few times."""
    kind = dice.choice(_FAULTS)
    script["times"] = dice.choice((1, 1, 2, 3))
    if kind == "fail_status":
        script["fail_status"] = dice.choice((429, 500, 503))
        script["retry_after"] = dice.choice((None, 0.1))
    elif kind == "refused":
        script["fail_status"], script["times"] = 400, None
    elif kind == "no_finish":
        script["no_finish"] = True
    else:
        script[kind] = dice.randrange(0, items + 1)


def _reader_order(dice: random.Random, items: int) -> ReaderOrder:
    one = ReaderOrder(from_now=dice.random() < 0.1, away_seconds=dice.choice((0.0, 0.05, 0.3, 1.0)))
    if dice.random() < 0.3:
        one.starts_after_seconds = dice.uniform(0.0, 3.0)
    if dice.random() < 0.3:
        one.bytes_per_second = dice.choice((25_000, 80_000))
    if dice.random() < 0.4:
        one.leaves_after = [dice.randrange(1, items // 2 + 2) for _ in range(dice.randrange(1, 4))]
    if dice.random() < 0.15:
        one.abandons_after = dice.randrange(0, items + 1)
    return one
