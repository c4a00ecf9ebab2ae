"""A cluster and a primary with Sentinels, as real processes: streams go on while masters die, freeze and give slots away."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from shared.keys import lane_keys
from tests.stress.failover import SETTINGS
from tests.support.failover import Report, read_through
from tests.support.redis_cluster import RedisCluster, RedisWithSentinels
from tests.support.system import System
from tests.support.waiting import wait_until

_STREAMS, _SLOTS = 24, 100
_PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "run-on-a-cluster.md"


def check(report: Report, system: System, *, within_seconds: float) -> None:
    assert report.violations == []
    assert report.refused_creates == 0, "a create waits for the fail-over"
    assert report.pause(1.0) < within_seconds, report
    assert system.redis.refused() == [], "the users that are shipped have all permissions"


async def test_a_cluster_moves_slots_and_loses_a_master() -> None:
    cluster = RedisCluster()
    async with System(gateways=2, workers=2, redis=cluster, settings=SETTINGS) as system:

        async def both() -> None:
            source, target = cluster.primaries()[:2]
            await asyncio.to_thread(cluster.move_slots, cluster.slots_of(source)[:_SLOTS], source, target)
            source.kill()
            await asyncio.to_thread(cluster.until_replaced, source)

        report = await read_through(system, both, streams=_STREAMS, tokens=30)
        check(report, system, within_seconds=10.0)
        groups = [cluster.master_of(key).execute("XINFO", "GROUPS", key)[0] for key in lane_keys(16)]
        assert sum(group[group.index(b"last-delivered-id") + 1] > b"0-0" for group in groups) > 4, (
            "many lanes were used"
        )
        assert await system.metric("midstream_redis_up") == 1


async def test_a_primary_that_was_frozen_is_not_believed() -> None:
    (rules,) = re.findall(r"^user (midstream on >secret .+)$", _PAGE.read_text(), re.MULTILINE)
    servers = RedisWithSentinels(sentinel_user=rules, replicas=2)
    login = {"sentinel_username": "midstream", "sentinel_password": "secret"}
    settings = {**SETTINGS, **login, "min_replicas": 1}
    async with System(gateways=2, workers=2, redis=servers, settings=settings) as system:
        before = servers.primary()

        async def freeze() -> None:
            before.freeze()
            await wait_until(lambda: servers.primary() is not before, within_seconds=15, what="another is the primary")
            before.thaw()

        report = await read_through(system, freeze, streams=_STREAMS, tokens=30)
        check(report, system, within_seconds=12.0)


async def test_an_end_is_told_when_replicas_have_it_and_not_before() -> None:
    servers = RedisWithSentinels(replicas=1)
    settings = {**SETTINGS, "min_replicas": 1}
    async with System(redis=servers, settings=settings) as system:
        stream_id = await system.create(simulate={"tokens": 8, "tokens_per_second": 4})
        reader = system.follow(stream_id)
        await reader.until_tokens(2)
        _, replica = servers.nodes
        replica.freeze()
        try:
            await reader.until_tokens(8)
            with pytest.raises(AssertionError, match="the end of the response"):
                await reader.until_end(within_seconds=1.0)
        finally:
            replica.thaw()
        await reader.until_end()
        assert reader.named("done")
