"""W6: what a token costs Redis, in time and in memory, at several tokens per entry."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from bench.processes.parts import Parts
from bench.sizes import Sizes
from bench.workloads import streams
from bench.workloads.follow import Figures
from bench.workloads.streams import HELD, RedisCounts
from shared.keys import log_key

TOKENS_PER_ENTRY = (1, 4, 16)
_TOKENS = 500
_WORD = " word"
"""Five bytes: about an English token."""


def w6(
    parts: Parts, sizes: Sizes, tell: Callable[[str], None], *, units: tuple[int, ...] = TOKENS_PER_ENTRY
) -> Figures:
    told: Figures = {"void": False, "generators": False}
    for unit in units:
        tell(f"W6: {unit} tokens per entry")
        for heard in (True, False):
            name = f"us_per_token_{unit}" + ("" if heard else "_unheard")
            told[name] = _time(parts, sizes, unit, heard=heard)
        told[f"bytes_per_token_{unit}"] = _memory(parts, unit)
    return told


def _time(parts: Parts, sizes: Sizes, unit: int, *, heard: bool) -> float:
    """Microseconds of Redis's CPU per token appended and published, pipelined; heard by one subscriber, or by none."""
    with ExitStack() as stack:
        names = stack.enter_context(streams.begun(parts.redis, sizes.w6_streams))
        plan = {"redis": parts.redis_url, "streams": names, "tokens_per_entry": unit, "padding": 0, "held": HELD}
        publisher = stack.enter_context(parts.helper("bench.processes.publish", {**plan, "plain": _WORD}))
        if heard:
            stack.enter_context(parts.helper("bench.processes.channels", {"redis": parts.redis_url, "streams": names}))
        rounds = max(1, sizes.w6_tokens // unit // sizes.w6_streams)
        counts = RedisCounts(parts.redis)
        publisher.tell({"op": "run", "rate": 0, "seconds": 0, "rounds": rounds})
        publisher.hear(within_seconds=10)
        tokens: int = publisher.hear(within_seconds=300)["tokens"]
        return 1e6 * counts.since()[0] / tokens


def _memory(parts: Parts, unit: int) -> float:
    """Bytes of Redis per token of a stream of 500, its request and its beginning included."""
    with streams.begun(parts.redis, 10) as names:
        plan = {"redis": parts.redis_url, "streams": names, "tokens_per_entry": unit, "padding": 0, "held": HELD}
        with parts.helper("bench.processes.publish", {**plan, "plain": _WORD}) as publisher:
            publisher.tell({"op": "run", "rate": 0, "seconds": 0, "rounds": _TOKENS // unit})
            publisher.hear(within_seconds=10)
            publisher.hear(within_seconds=60)
        sizes = [int(parts.redis.memory_usage(log_key(name), samples=0) or 0) for name in names]
    return sum(sizes) / len(sizes) / (_TOKENS // unit * unit)
