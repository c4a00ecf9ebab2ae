"""Compares what is said of all streams of a run: by their receipts, by the archive's rows, by the usage. All must agree to the token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

_SHOWN = 5


class Counts(NamedTuple):
    """What is counted of one stream."""

    generated: int
    delivered: int
    prompt: int
    completion: int

    @classmethod
    def of_receipt(cls, receipt: Mapping[str, Any]) -> Counts:
        usage = receipt["generated"]["usage"] or {}
        counted = receipt["generated"]["tokens"], receipt["delivered"]["tokens"]
        return cls(*counted, usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)


def used(rows: list[dict[str, Any]]) -> Counter[str]:
    """Returns the sums of `GET /v1/usage`."""
    sums: Counter[str] = Counter()
    for row in rows:
        sums["streams"] += row["streams"]
        sums["generated"] += row["generated"]
        sums["delivered"] += row["delivered"]
        sums["prompt"] += row["prompt_tokens"]
        sums["completion"] += row["completion_tokens"]
    return sums


def disagreements(
    receipts: Mapping[str, Counts], archived: Mapping[str, Counts], usage: Mapping[str, int]
) -> list[str]:
    """Returns what does not agree. Deleted streams have no receipt any more: the other two still count them."""
    found = [
        f"stream {stream_id}: its receipt says {receipt}, its row {archived.get(stream_id)}"
        for stream_id, receipt in receipts.items()
        if archived.get(stream_id) != receipt
    ]
    sums = Counter(streams=len(archived))
    for counts in archived.values():
        sums.update(counts._asdict())
    found += [
        f"usage: {name} {usage.get(name, 0)}, in the archive {sums[name]}"
        for name in ("streams", *Counts._fields)
        if usage.get(name, 0) != sums[name]
    ]
    return [*found[:_SHOWN], *([f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else [])]
