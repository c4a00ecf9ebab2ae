"""`python -m tests.stress.masters`: what a token costs with one Redis, with clusters of one to three masters, and with replicas
that are waited for (MIDSTREAM_MIN_REPLICAS); and what a worker and a gateway cost that have nothing to do.

The load is the same for all; what each process has used of the CPU is read from /proc, so that it does not matter on how many
cores they ran. One worker with simulated answers, one gateway, one reader for each stream. The machine's speed changes from one
case to the next: so cases that are compared are better measured `--together`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.processes.procs import tree
from tests.support.redis_cluster import RedisCluster, RedisWithSentinels
from tests.support.redis_server import RedisServer, binary_of
from tests.support.system import System
from tests.support.waiting import wait_until

_WARM_UP_SECONDS, _IDLE_SECONDS = 2.0, 4.0
_CREATES, _CREATES_AT_ONCE = 200, 4
HEAD = (
    "| Redis | worker µs | gateway µs | Redis µs | sum | tokens/s | create p50 ms | p99 ms "
    "| idle worker ms/s | idle gateway ms/s |\n|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass
class Case:
    """One form of Redis, and the settings of all processes."""

    name: str
    redis: Callable[[], Any]
    settings: dict[str, object]


def _one() -> RedisServer:
    return RedisServer("redis" if binary_of("redis") else "valkey", tcp=True)


CASES = (
    Case("one", _one, {}),
    Case("a cluster of 1 master", lambda: RedisCluster(masters=1, replicas=False), {}),
    Case("of 2 masters", lambda: RedisCluster(masters=2, replicas=False), {}),
    Case("of 3 masters", lambda: RedisCluster(masters=3, replicas=False), {}),
    Case("a primary and a replica, behind Sentinels", RedisWithSentinels, {}),
    Case("with `MIDSTREAM_MIN_REPLICAS=1`", RedisWithSentinels, {"min_replicas": 1}),
)


class _Counting(asyncio.Protocol):
    """A reader that counts the events that it gets."""

    def __init__(self, stream_id: str) -> None:
        self._stream_id = stream_id
        self.events = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.write(f"GET /v1/streams/{self._stream_id}/events HTTP/1.1\r\nHost: here\r\n\r\n".encode())  # type: ignore[union-attr]

    def data_received(self, data: bytes) -> None:
        self.events += data.count(b"\nid: ")


def _cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process and its descendants. `stat` counts it in 10 ms: too coarse for one that is idle."""
    threads = [thread for member in tree(pid) for thread in Path(f"/proc/{member}/task").glob("*/schedstat")]
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def _pids(redis: Any) -> list[int]:
    return [node.pid for node in getattr(redis, "nodes", [redis])]


@dataclass
class Load:
    """What is measured of each case. `together`: where the cases that are measured at the same time wait for each other."""

    streams: int
    rate: float
    seconds: float
    together: asyncio.Barrier


async def measure(case: Case, load: Load) -> str:
    """Returns the case's row: CPU time per token that was delivered, how long a create took, and CPU time per second while idle."""
    streams, rate, seconds = load.streams, load.rate, load.seconds
    settings = {"worker_concurrency": 2 * streams, "redis_start_seconds": 15, **case.settings}
    async with System(redis=case.redis(), settings=settings) as system:
        parts = {
            "worker": [system.workers[0].pid],
            "gateway": [system.gateways[0].pid],
            "redis": _pids(system.redis),
        }

        def used() -> dict[str, float]:
            return {name: sum(map(_cpu_seconds, pids)) for name, pids in parts.items()}

        await load.together.wait()
        await asyncio.sleep(_WARM_UP_SECONDS)
        before = used()
        await asyncio.sleep(_IDLE_SECONDS)
        after = used()
        idle = {name: 1000 * (after[name] - before[name]) / _IDLE_SECONDS for name in parts}
        tokens = int(rate * (seconds + 60))
        readers = []
        loop = asyncio.get_running_loop()
        for _ in range(streams):
            stream_id = await system.create(simulate={"tokens": tokens, "tokens_per_second": rate})
            reader = _Counting(stream_id)
            await loop.create_connection(lambda reader=reader: reader, "127.0.0.1", system.gateway_port())  # type: ignore[misc]
            readers.append(reader)
        await wait_until(lambda: all(reader.events for reader in readers), within_seconds=30, what="all tokens flow")
        await load.together.wait()
        await asyncio.sleep(_WARM_UP_SECONDS)
        before, events, began = used(), sum(reader.events for reader in readers), time.monotonic()
        await asyncio.sleep(seconds)
        after, events = used(), sum(reader.events for reader in readers) - events
        elapsed = time.monotonic() - began
        for reader in readers:
            assert reader.transport is not None
            reader.transport.abort()
        costs = {name: 1e6 * (after[name] - before[name]) / events for name in parts}
        await load.together.wait()
        creates = await _creates(system)
    each = " | ".join(f"{costs[name]:.1f}" for name in parts)
    return (
        f"| {case.name} | {each} | {sum(costs.values()):.1f} | {events / elapsed:,.0f} | "
        f"{1000 * statistics.median(creates):.1f} | {1000 * creates[int(0.99 * len(creates))]:.1f} | {idle['worker']:.1f} | {idle['gateway']:.1f} |"
    )


async def _creates(system: System) -> list[float]:
    """Returns how long each of some creates took, in order of length (seconds)."""
    limit, took = asyncio.Semaphore(_CREATES_AT_ONCE), []

    async def create() -> None:
        async with limit:
            began = time.monotonic()
            await system.create(simulate={"tokens": 1})
            took.append(time.monotonic() - began)

    await asyncio.gather(*(create() for _ in range(_CREATES)))
    return sorted(took)


async def run(cases: list[Case], options: argparse.Namespace) -> None:
    print(HEAD, flush=True)
    at_once = len(cases) if options.together else 1
    for _ in range(options.rounds):  # in turn, so that a busy time of the machine does not strike one case alone
        for start in range(0, len(cases), at_once):
            part = cases[start : start + at_once]
            load = Load(options.streams, options.rate, options.seconds, asyncio.Barrier(len(part)))
            for row in await asyncio.gather(*(measure(case, load) for case in part)):
                print(row, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.masters", description=__doc__)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, default=20.0, help="tokens per second of each stream (default 20)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each case is measured (default 10)")
    parser.add_argument("--rounds", type=int, default=1, help="how often each case is measured (default 1)")
    parser.add_argument("--together", action="store_true", help="measure all cases at the same time: two, on two cores")
    parser.add_argument(
        "case", nargs="*", metavar="case", help="only these: " + ", ".join(repr(case.name) for case in CASES)
    )
    options = parser.parse_args()
    unknown = set(options.case) - {case.name for case in CASES}
    if unknown:
        parser.error(f"there is no case {min(unknown)!r}")
    uvloop.run(run([case for case in CASES if not options.case or case.name in options.case], options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
