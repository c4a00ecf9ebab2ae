"""A provider for trials and tests that needs no network: its answers are made-up text.

The answer is decided by the messages and the seed. The request's `simulate` object (docs/how-to/connect-a-provider.md) sets the
number of tokens, their rate, the finish_reason, and after how many tokens the provider fails or falls silent. A token is a word.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import orjson

from producer.provider import Finish, Hearer, Unavailable

DEFAULT_TOKENS = 80
DEFAULT_TOKENS_PER_SECOND = 40.0
_FLAT_OUT_BATCH = 64
_OPENING = ("This", " is", " a", " simulated", " answer", ":")
_WORDS = (
    "a the of and to in that it is was as with for on by river stone light morning letter garden window paper harbour "
    "signal bridge winter orchard copper lantern meadow thread compass echo marble cedar tide canvas engine quiet "
    "bright slowly almost between toward beneath carries opens gathers returns follows remembers turns waits keeps"
).split()


class SimulatedProvider:
    name = "simulated"
    base_url = ""

    def model_of(self, request: dict[str, Any]) -> str:
        return "simulated"

    async def generate(self, request: dict[str, Any], partial: str, hearer: Hearer) -> Finish:
        """Generates the answer that the request's `simulate` object describes. Raises Unavailable if it is to fail."""
        simulate = {name: value for name, value in (request.get("simulate") or {}).items() if value is not None}
        total = int(simulate.get("tokens", DEFAULT_TOKENS))
        limits = (request.get("max_completion_tokens"), request.get("max_tokens"))
        limit = next((limit for limit in limits if type(limit) is int and limit > 0), total)  # others mean: no limit
        count = min(total, limit)
        pace = float(simulate.get("tokens_per_second", DEFAULT_TOKENS_PER_SECOND))
        fail_after, stall_after = simulate.get("fail_after"), simulate.get("stall_after")

        words = _words(request)
        done = 0
        while partial and done < count:  # the request continues an answer: skip the words that it has
            partial = partial.removeprefix(next(words))
            done += 1

        loop = asyncio.get_running_loop()
        began, produced = loop.time(), 0
        while True:
            if fail_after is not None and produced >= fail_after:
                raise Unavailable(f"the simulated provider broke off after {fail_after} tokens, as it was asked to")
            if stall_after is not None and produced >= stall_after:
                await asyncio.Event().wait()
            if done >= count:
                break
            due = count - done
            if pace:
                due = min(due, max(1, int((loop.time() - began) * pace) - produced))
            else:
                due = min(due, _FLAT_OUT_BATCH)
            for bound in (fail_after, stall_after):
                if bound is not None:
                    due = min(due, bound - produced)
            await asyncio.sleep(max(0.0, began + (produced + 1) / pace - loop.time()) if pace else 0)
            if not hearer.accept([next(words) for _ in range(due)]):
                await hearer.wait_for_room()
            done += due
            produced += due

        reason = simulate.get("finish_reason") or ("length" if limit < total else "stop")
        prompt_tokens = sum(len(str(message.get("content", "")).split()) for message in request["messages"])
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count, "total_tokens": prompt_tokens + count}
        return Finish(reason, usage)

    async def close(self) -> None:
        """Does nothing: there is no connection."""


def _words(request: dict[str, Any]) -> Iterator[str]:
    """Yields the words of the answer without end; only the request's messages and seed decide them."""
    seed = hashlib.sha256(orjson.dumps([request["messages"], request.get("seed", 0)])).digest()
    generator = random.Random(seed)
    yield from _OPENING
    while True:
        yield " " + generator.choice(_WORDS)
