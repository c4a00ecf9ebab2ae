"""W6: what a token costs Redis, in CPU and memory, at several numbers of tokens per entry."""

from __future__ import annotations

from contextlib import ExitStack

from bench.processes.parts import Parts
from bench.progress import Show
from bench.sizes import Sizes
from bench.workloads import streams
from bench.workloads.follow import Figures
from bench.workloads.streams import HELD, RedisCounts
from shared.keys import log_key

TOKENS_PER_ENTRY = (1, 4, 16)
_TOKENS = 500
_WORD = " word"
"""Five bytes: about an English token."""


def w6(parts: Parts, sizes: Sizes, show: Show, *, units: tuple[int, ...] = TOKENS_PER_ENTRY) -> Figures:
    result: Figures = {"void": False, "generators": False}
    for unit in units:
        show(f"W6: {unit} tokens per entry")
        for subscribed in (True, False):
            name = f"us_per_token_{unit}" + ("" if subscribed else "_unheard")
            result[name] = _time(parts, sizes, unit, subscribed=subscribed)
        result[f"bytes_per_token_{unit}"] = _memory(parts, unit)
    return result


def _time(parts: Parts, sizes: Sizes, unit: int, *, subscribed: bool) -> float:
    """Returns Redis's CPU in µs per token appended and published, pipelined, with one subscriber or none."""
    with ExitStack() as stack:
        names = stack.enter_context(streams.begun(parts.redis, sizes.w6_streams))
        plan = {"redis": parts.redis_url, "streams": names, "tokens_per_entry": unit, "padding": 0, "held": HELD}
        publisher = stack.enter_context(parts.helper("bench.processes.publish", {**plan, "plain": _WORD}))
        if subscribed:
            stack.enter_context(parts.helper("bench.processes.channels", {"redis": parts.redis_url, "streams": names}))
        rounds = max(1, sizes.w6_tokens // unit // sizes.w6_streams)
        counts = RedisCounts(parts.redis)
        publisher.tell({"op": "run", "rate": 0, "seconds": 0, "rounds": rounds})
        publisher.hear(within_seconds=10)
        tokens: int = publisher.hear(within_seconds=300)["tokens"]
        return 1e6 * counts.since()[0] / tokens


def _memory(parts: Parts, unit: int) -> float:
    """Returns Redis's memory in bytes per token of a stream of 500 tokens, including the request."""
    with streams.begun(parts.redis, 10) as names:
        plan = {"redis": parts.redis_url, "streams": names, "tokens_per_entry": unit, "padding": 0, "held": HELD}
        with parts.helper("bench.processes.publish", {**plan, "plain": _WORD}) as publisher:
            publisher.tell({"op": "run", "rate": 0, "seconds": 0, "rounds": _TOKENS // unit})
            publisher.hear(within_seconds=10)
            publisher.hear(within_seconds=60)
        sizes = [int(parts.redis.memory_usage(log_key(name), samples=0) or 0) for name in names]
    return sum(sizes) / len(sizes) / (_TOKENS // unit * unit)
