"""`python -m tests.stress.failover`: each fault of a cluster, or of a primary with Sentinels, under streams that are read.

Prints one row for each fault: what readers lost (it must be nothing), and how long they waited. Exit code 1 if anything was lost,
doubled, out of order or hanging.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from tests.support.failover import HEAD, Report, read_through
from tests.support.redis_cluster import Node, RedisCluster, RedisWithSentinels
from tests.support.redis_server import RedisServer
from tests.support.system import System

FROZEN_SECONDS = 4.0
"""Past the node time-out, so that the replica takes over meanwhile."""
_CUT_SECONDS = 4.0
_CUT_EACH_SECONDS = 0.01
_MOVED_SLOTS = 400
SETTINGS: dict[str, object] = {
    "redis_start_seconds": 15,
    "redis_reply_seconds": 2,
    "worker_concurrency": 2000,
    "orphan_seconds": 60,
}

Fault = Callable[[Any], Awaitable[None]]


async def _until_whole(cluster: RedisCluster) -> None:
    await asyncio.to_thread(cluster.until_whole)


async def master_killed(cluster: RedisCluster) -> None:
    """SIGKILL to a master: its replica is promoted; later it is back as a replica."""
    node = cluster.primaries()[0]
    node.kill()
    await asyncio.to_thread(cluster.until_replaced, node)
    await asyncio.to_thread(node.start)
    await _until_whole(cluster)


async def master_frozen(cluster: RedisCluster) -> None:
    """SIGSTOP to a master past its time-out: its replica is promoted; it is back as a replica that thinks it is the master."""
    node = cluster.primaries()[0]
    node.freeze()
    await asyncio.sleep(FROZEN_SECONDS)
    node.thaw()
    await _until_whole(cluster)


async def slots_moved(cluster: RedisCluster) -> None:
    """A range of slots moved to another master, with its keys."""
    source, target = cluster.primaries()[:2]
    await asyncio.to_thread(cluster.move_slots, cluster.slots_of(source)[:_MOVED_SLOTS], source, target)
    await _until_whole(cluster)


async def node_added(cluster: RedisCluster) -> None:
    """A further master, which gets slots of another one."""
    node = await asyncio.to_thread(cluster.add_node)
    source = cluster.primaries()[0]
    await asyncio.to_thread(cluster.move_slots, cluster.slots_of(source)[:_MOVED_SLOTS], source, node)
    await _until_whole(cluster)


async def node_removed(cluster: RedisCluster) -> None:
    """A master of few slots gives them up, is forgotten, and ends."""
    if all(len(cluster.slots_of(node)) > _MOVED_SLOTS for node in cluster.primaries()):
        await node_added(cluster)
    node = min(cluster.primaries(), key=lambda one: len(cluster.slots_of(one)))
    await asyncio.to_thread(cluster.remove_node, node)
    await _until_whole(cluster)


async def replica_cut_off(cluster: RedisCluster) -> None:
    """A master's links to its replica are cut, again and again (CLIENT KILL TYPE replica); the cluster bus stays."""
    node, until = cluster.primaries()[0], time.monotonic() + _CUT_SECONDS
    while time.monotonic() < until:
        await asyncio.to_thread(node.execute, "CLIENT", "KILL", "TYPE", "replica")
        await asyncio.sleep(_CUT_EACH_SECONDS)
    await _until_whole(cluster)


async def _partition(cluster: RedisCluster, *, from_clients: bool) -> None:
    node, network = cluster.primaries()[0], cluster.network
    assert network is not None
    network.isolate(node.address, from_clients=from_clients)
    await asyncio.sleep(_CUT_SECONDS)
    network.heal()
    await _until_whole(cluster)


async def partition_from_nodes(cluster: RedisCluster) -> None:
    """A master and all other nodes do not hear each other past the node time-out; clients reach both sides."""
    await _partition(cluster, from_clients=False)


async def partition_from_all(cluster: RedisCluster) -> None:
    """Neither nodes nor clients reach a master past the node time-out: what is sent is not refused, it does not arrive."""
    await _partition(cluster, from_clients=True)


async def all_masters_restarted(cluster: RedisCluster) -> None:
    """SIGTERM to all masters, which start again from their append-only files."""
    nodes: list[Node] = cluster.primaries()
    for node in nodes:
        node.terminate()
    for node in nodes:
        await asyncio.to_thread(node.start)
    await _until_whole(cluster)


CLUSTER: dict[str, Fault] = {
    "a master killed": master_killed,
    "a master frozen and back": master_frozen,
    "slots moved": slots_moved,
    "a node added": node_added,
    "a node removed": node_removed,
    "a master cut off from its replica": replica_cut_off,
    "a partition: a master and the other nodes": partition_from_nodes,
    "a partition: a master and all others, clients, too": partition_from_all,
    "all masters restarted": all_masters_restarted,
}


PARTITIONS: tuple[Fault, ...] = (partition_from_nodes, partition_from_all)


def cluster_for(fault: Fault) -> RedisCluster:
    """Returns a cluster, not started, to which this fault can be done."""
    return RedisCluster(durable=fault is all_masters_restarted, can_be_cut=fault in PARTITIONS)


async def primary_killed(servers: RedisWithSentinels) -> None:
    """SIGKILL to the primary; later it is back as a replica."""
    node: RedisServer = servers.primary()
    node.kill()
    await asyncio.to_thread(servers.until_replicated)
    await asyncio.to_thread(node.start)
    await asyncio.to_thread(servers.until_replicated, seconds=40.0)


async def primary_frozen(servers: RedisWithSentinels) -> None:
    """SIGSTOP to the primary until another is promoted; it is back as one that thinks it is the primary."""
    node = servers.primary()
    node.freeze()
    await asyncio.sleep(FROZEN_SECONDS)
    node.thaw()
    await asyncio.to_thread(servers.until_replicated, seconds=40.0)


SENTINEL: dict[str, Fault] = {"the primary killed": primary_killed, "the primary frozen and back": primary_frozen}


async def run(kind: str, names: list[str], streams: int, settings: dict[str, object]) -> bool:
    print(HEAD, flush=True)
    fine = True
    faults = CLUSTER if kind == "cluster" else SENTINEL
    for name, fault in faults.items():
        if names and name not in names:
            continue
        redis: Any = cluster_for(fault) if kind == "cluster" else RedisWithSentinels()
        async with System(gateways=2, workers=2, redis=redis, settings={**SETTINGS, **settings}) as system:
            report: Report = await read_through(system, lambda fault=fault, redis=redis: fault(redis), streams=streams)  # type: ignore[misc]
            if report.violations:
                fine = False
        print(report.row(name), flush=True)
        for violation in report.violations[:10]:
            print(f"  {violation}", flush=True)
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.failover", description=__doc__)
    parser.add_argument("--redis", choices=("cluster", "sentinel"), default="cluster")
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--min-replicas", type=int, default=0)
    parser.add_argument("fault", nargs="*", help="only these")
    options = parser.parse_args()
    settings: dict[str, object] = {"min_replicas": options.min_replicas} if options.min_replicas else {}
    return 0 if uvloop.run(run(options.redis, options.fault, options.streams, settings)) else 1


if __name__ == "__main__":
    sys.exit(main())
