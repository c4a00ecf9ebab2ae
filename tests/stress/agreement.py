"""Compares what is said of all streams of a run: by their receipts, the archive's rows, the usage, the webhooks. All must agree to the token."""

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

    @classmethod
    def of_webhook(cls, body: Mapping[str, Any]) -> Counts:
        data = body["data"]
        generated = {"tokens": data["receipt"]["generated"]["tokens"], "usage": data["usage"]}
        return cls.of_receipt({"generated": generated, "delivered": data["receipt"]["delivered"]})


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
    receipts: Mapping[str, Counts],
    archived: Mapping[str, Counts],
    usage: Mapping[str, int],
    webhook_counts: Mapping[str, Counts],
) -> list[str]:
    """Returns what does not agree. `webhook_counts`: those of the last webhook of each stream.

    Deleted streams have no receipt any more: archive and usage still count them, and whoever was to be told of them may not be.
    A webhook is sent at the end: what is delivered later is not in it.
    """
    found = [
        f"stream {stream_id}: its receipt says {receipt}, its row {archived.get(stream_id)}"
        for stream_id, receipt in receipts.items()
        if archived.get(stream_id) != receipt
    ]
    found += [
        f"stream {stream_id}: nobody was told of its end" for stream_id in receipts.keys() - webhook_counts.keys()
    ]
    for stream_id, counts in webhook_counts.items():
        row = archived.get(stream_id)
        if row is None or counts._replace(delivered=row.delivered) != row:
            found.append(f"stream {stream_id}: its webhook says {counts}, its row {row}")
        elif stream_id in receipts and counts.delivered > row.delivered:
            found.append(f"stream {stream_id}: {counts.delivered} delivered in its webhook, {row.delivered} in its row")
    sums = Counter(streams=len(archived))
    for counts in archived.values():
        sums.update(counts._asdict())
    found += [
        f"usage: {name} {usage.get(name, 0)}, in the archive {sums[name]}"
        for name in ("streams", *Counts._fields)
        if usage.get(name, 0) != sums[name]
    ]
    return [*found[:_SHOWN], *([f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else [])]
