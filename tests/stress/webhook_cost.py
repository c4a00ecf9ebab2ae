"""What webhooks cost: CPU of a worker, a gateway and Redis at 100 ended streams a second, each with a webhook and without.

python -m tests.stress.webhook_cost [SECONDS]
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.system import System
from tests.support.webhook_receiver import WebhookReceiver

_STREAMS_PER_SECOND = 100
_ROUNDS = 3
_TOKENS = 20
_SETTLE_SECONDS = 3.0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def run(system: System, seconds: float, *, is_told: bool) -> dict[str, float]:
    """Creates streams at the rate, and returns the CPU of each process, in percent of a core, while they end and are told of."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "x"}],
        "simulate": {"tokens": _TOKENS, "tokens_per_second": 100},
        "midstream": {} if is_told else {"webhook": False},
    }
    pids = {"worker": system.workers[0].pid, "gateway": system.gateways[0].pid, "redis": system.redis.pid}
    before, began_at = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
    creates = []
    for number in range(int(seconds * _STREAMS_PER_SECOND)):
        await asyncio.sleep(max(0.0, began_at + number / _STREAMS_PER_SECOND - time.monotonic()))
        creates.append(asyncio.create_task(system.http.post(f"{system.gateway_url()}/v1/streams", json=body)))
    for create in creates:
        assert (await create).status_code == 201
    await asyncio.sleep(_SETTLE_SECONDS)  # the last ones end, and are told of
    return {name: 100 * (cpu_seconds(pid) - before[name]) / seconds for name, pid in pids.items()}


async def main(seconds: float) -> None:
    async with WebhookReceiver() as receiver:
        settings = {**receiver.settings(), "webhook_url": receiver.url}
        async with System(settings=settings) as system:
            await run(system, 3.0, is_told=True)
            costs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
            for _ in range(_ROUNDS):
                for is_told in (False, True):
                    receiver.posts.clear()
                    costs[is_told].append(await run(system, seconds, is_told=is_told))
                    expected = int(seconds * _STREAMS_PER_SECOND) if is_told else 0
                    assert (len(receiver.posts), len(receiver.by_id)) == (expected, expected)
            for name in ("worker", "gateway", "redis"):
                told, quiet = ([cost[name] for cost in costs[is_told]] for is_told in (True, False))
                shown = [f"{statistics.median(all_):.1f} % ({min(all_):.1f}-{max(all_):.1f})" for all_ in (quiet, told)]
                print(f"{name}: {shown[0]} without, {shown[1]} with webhooks")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0))
