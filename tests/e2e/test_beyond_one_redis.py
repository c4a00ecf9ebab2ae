"""A cluster and a primary with Sentinels, as real processes: streams go on while masters die, freeze and give slots away."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx2
import pytest

from shared.keys import ACCOUNT_LOOKS, UNKEPT, lane_keys, log_key
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

        report = await read_through(system, freeze, streams=_STREAMS, tokens=20, tokens_per_second=10.0)
        check(report, system, within_seconds=12.0)


async def test_beginnings_and_ends_are_told_when_replicas_have_them_and_not_before(tmp_path: Path) -> None:
    cluster = RedisCluster()
    archive = {"archive_url": f"sqlite:///{tmp_path}/archive.sqlite"}
    settings = {**SETTINGS, **archive, "min_replicas": 1, "redis_wait_seconds": 1}
    body = {"messages": [{"role": "user", "content": "hello"}], "simulate": {"tokens": 3}}
    async with System(redis=cluster, settings=settings) as system:

        async def create(number: int) -> httpx2.Response:
            headers = {"Idempotency-Key": f"key {number}"}
            return await system.http.post(f"{system.gateway_url()}/v1/streams", json=body, headers=headers)

        stream_id = await system.create(simulate={"tokens": 8, "tokens_per_second": 4})
        reader = system.follow(stream_id)
        await reader.until_tokens(2)
        master = cluster.master_of(log_key(stream_id))
        replica = cluster.replica_of(master)
        replica.freeze()
        try:
            first = await asyncio.gather(*(create(number) for number in range(12)))
            waiting = [number for number, answer in enumerate(first) if answer.status_code == 503]
            assert waiting, "some have their first entry, their place in the queue or their key at this master"
            again = [answer for answer in await asyncio.gather(*map(create, waiting)) if answer.status_code == 201]
            written = [answer.json()["id"] for answer in again]
            assert all(cluster.master_of(log_key(one)) is not master for one in written), "replicas lack what was told"
            await reader.until_tokens(8)
            with pytest.raises(AssertionError, match="the end of the response"):
                await reader.until_end(within_seconds=1.0)
            state = await system.http.get(f"{system.gateway_url()}/v1/streams/{stream_id}")
            assert state.status_code == 503, f"the end is in the log, and replicas lack it: {state.text}"
        finally:
            replica.thaw()
        await reader.until_end()
        assert reader.named("done")
        assert (await system.state(stream_id))["status"] == "completed"
        for number in waiting:
            answers: list[httpx2.Response] = []

            async def is_created(number: int = number, answers: list[httpx2.Response] = answers) -> bool:
                answers.append(await create(number))
                return answers[-1].status_code == 201

            await wait_until(is_created, what="the replica has what the master wrote")
            assert {answer.status_code for answer in answers} <= {201, 503}
            assert (await system.follow(answers[-1].json()["id"]).until_end()).named("done")

        replica = cluster.replica_of(cluster.master_of(UNKEPT))
        replica.freeze()
        try:
            unlisted = await asyncio.gather(*(create(number) for number in range(20, 32)))
            assert {answer.status_code for answer in unlisted} == {503}, "replicas lack that they are to be archived"
        finally:
            replica.thaw()
        assert (await create(20)).status_code == 201


async def test_without_one_master_the_streams_of_the_others_go_on_and_begin() -> None:
    """A master without a replica is killed: that of the accounts. No other one serves its slots."""
    cluster = RedisCluster(masters=3, replicas=False)
    settings = {**SETTINGS, "redis_wait_seconds": 1, "console": "on"}
    async with System(redis=cluster, settings=settings) as system:
        lost = cluster.master_of(ACCOUNT_LOOKS)
        simulate = {"tokens": 40, "tokens_per_second": 10}
        ids = [await system.create(simulate=simulate) for _ in range(12)]
        elsewhere = [stream_id for stream_id in ids if cluster.master_of(log_key(stream_id)) is not lost]
        readers = [system.follow(stream_id) for stream_id in elsewhere]
        for reader in readers:
            await reader.until_tokens(1)
        lost.kill()
        for reader in readers:
            await reader.until_end()
            assert (len(reader.tokens), bool(reader.named("done"))) == (40, True), reader

        http, url = system.http, system.gateway_url()
        body = {"messages": [{"role": "user", "content": "hello"}], "simulate": {"tokens": 3}}
        answers = [await http.post(f"{url}/v1/streams", json=body) for _ in range(12)]
        created = [answer.json()["id"] for answer in answers if answer.status_code == 201]
        assert {answer.status_code for answer in answers} <= {201, 503}, "503 for those whose own slot is there"
        assert len(created) >= 4
        for stream_id in created:
            assert (await system.follow(stream_id).until_end()).named("done"), "its lane is read"
        assert (await http.get(f"{url}/readyz")).status_code == 200
        assert (await http.get(f"{url}/v1/overview")).status_code == 200
        assert (await http.get(f"{url}/metrics")).status_code == 200
        assert (await http.get(f"{url}/v1/usage")).status_code == 503, "the accounts are there"
        gone = next(stream_id for stream_id in ids if stream_id not in elsewhere)
        assert (await http.get(f"{url}/v1/streams/{gone}")).status_code == 503
