"""`midstream doctor --redis` with real servers that are wrong in one way each: it names the check and what to change."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from midstream.doctor.checks import Finding, Verdict
from midstream.doctor.redis import RedisReport, examined_redis
from shared.errors import Unusable
from tests.support.redis_cluster import RedisCluster, RedisWithSentinels
from tests.support.redis_server import USER_PASSWORD, USERS, RedisServer, free_port
from tests.support.waiting import wait_until

_GOOD = ("--maxmemory", "1gb", "--appendonly", "yes")
_DELAY_SECONDS = 0.01


NEARLY_FULL = "what is used, and a little more"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(tcp=True, arguments=_GOOD) as server:
        yield server


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster(kind="valkey") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def behind_sentinels() -> Iterator[RedisWithSentinels]:
    with RedisWithSentinels(kind="valkey") as servers:
        yield servers


async def examined(url: str, **options: Any) -> RedisReport:
    return await examined_redis(url, role=options.get("role"), progress=lambda activity: None)


def of(report: RedisReport, check: str) -> Finding:
    return next(finding for finding in report.findings if finding.check == check)


def wrong(report: RedisReport) -> list[str]:
    return [finding.check for finding in report.faults]


@pytest.fixture
def with_settings(server: RedisServer) -> Iterator[RedisServer]:
    """Yields the server; afterwards its configuration is as before."""
    yield server
    for name, value in (("maxmemory-policy", "noeviction"), ("maxmemory", "1gb"), ("appendonly", "yes")):
        configure(server, name, value)


def configure(server: RedisServer, name: str, value: str) -> None:
    async def run() -> None:
        client = server.client()
        used_bytes = (await client.info("memory"))["used_memory"]
        await client.config_set(name, str(used_bytes + 50_000) if value == NEARLY_FULL else value)
        await client.aclose()

    asyncio.run(run())


async def test_a_server_as_it_should_be(server: RedisServer) -> None:
    report = await examined(server.url)
    assert (report.exit_code, report.advice) == (0, []), report.as_text()
    assert [finding.verdict for finding in report.findings] == [Verdict.OK] * len(report.findings)
    assert {"topology", "version", "memory", "permissions", "pubsub", "latency", "persistence"} <= {
        finding.check for finding in report.findings
    }
    assert "\n\nMidstream can use it. (" in report.as_text()
    assert 0 < of(report, "latency").figures["p50_ms"] <= of(report, "latency").figures["p99_ms"]


@pytest.mark.parametrize(
    ("name", "value", "check", "verdict", "words"),
    [
        ("maxmemory-policy", "allkeys-lru", "memory", Verdict.FAULT, "Set maxmemory-policy to noeviction"),
        ("maxmemory", "0", "memory", Verdict.ADVICE, "Set maxmemory at"),
        ("maxmemory", NEARLY_FULL, "memory", Verdict.ADVICE, "Raise maxmemory at"),
        ("appendonly", "no", "persistence", Verdict.ADVICE, "Set appendonly to yes"),
    ],
)
def test_one_setting_that_is_wrong(
    with_settings: RedisServer, name: str, value: str, check: str, verdict: Verdict, words: str
) -> None:
    configure(with_settings, name, value)
    report = asyncio.run(examined(with_settings.url))
    finding = of(report, check)
    assert finding.verdict is verdict
    assert words in finding.problem
    assert wrong(report) == ([check] if verdict is Verdict.FAULT else [])
    assert [one.check for one in report.advice] == ([check] if verdict is Verdict.ADVICE else [])


async def test_a_user_that_may_not_do_all_of_it() -> None:
    rules = USERS["midstream-gateway"].replace("+spublish ", "").split()
    without_channels = [rule for rule in USERS["midstream"].split() if not rule.startswith("&")]
    users = [
        *("--user", "gateway", *rules, f">{USER_PASSWORD}", "--user", "deaf", *without_channels, f">{USER_PASSWORD}"),
        *("--user", "midstream-gateway", *USERS["midstream-gateway"].split(), f">{USER_PASSWORD}"),
    ]
    with RedisServer(tcp=True, arguments=[*_GOOD, *users]) as server:
        report = await examined(server.url_of("gateway"), role="gateway")
        assert wrong(report) == ["permissions", "pubsub"]
        assert "ACL SETUSER gateway +spublish" in of(report, "permissions").problem
        deaf = await examined(server.url_of("deaf"))
        assert wrong(deaf) == ["permissions", "pubsub"]
        assert "&midstream:*" in of(deaf, "permissions").problem
        shipped = await examined(server.url_of("midstream-gateway"), role="gateway")
        assert wrong(shipped) == [], shipped.as_text()
        both = await examined(server.url_of("midstream-gateway"))
        assert "what a worker needs" in of(both, "permissions").problem


async def test_a_disk_that_cannot_be_written_to() -> None:
    with RedisServer(tcp=True, arguments=("--maxmemory", "1gb")) as server:
        client = server.client()
        folder = (await client.config_get("dir"))["dir"]
        shutil.rmtree(folder)
        try:
            await client.bgsave()

            async def has_ended() -> bool:
                return not (await client.info("persistence"))["rdb_bgsave_in_progress"]

            await wait_until(has_ended, what="the snapshot has failed")
            report = await examined(server.url)
        finally:
            os.mkdir(folder)
            await client.aclose()
    assert "persistence" in wrong(report)
    assert "Look at the disk of" in of(report, "persistence").problem


async def test_a_server_that_is_far_away(server: RedisServer) -> None:
    async with delayed(server.port) as port:
        report = await examined(f"redis://127.0.0.1:{port}/0")
    finding = of(report, "latency")
    assert (wrong(report), finding.verdict) == ([], Verdict.ADVICE)
    assert finding.figures["p50_ms"] >= _DELAY_SECONDS * 1000


@asynccontextmanager
async def delayed(port: int) -> AsyncIterator[int]:
    """Yields the port of a proxy that passes everything on later."""

    async def passing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await asyncio.sleep(_DELAY_SECONDS)
            writer.write(data)
        writer.close()

    clients = set[asyncio.Task[None] | None]()

    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.add(asyncio.current_task())
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(passing(reader, to_server), passing(from_server, writer), return_exceptions=True)

    proxy = await asyncio.start_server(on_client, "127.0.0.1", 0)
    try:
        yield proxy.sockets[0].getsockname()[1]
    finally:
        proxy.close()
        await asyncio.wait_for(asyncio.gather(*filter(None, clients)), 5)


async def test_a_cluster(cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    report = await examined(cluster.url)
    assert wrong(report) == [], report.as_text()
    assert len(report.servers) == 3
    assert of(report, "replicas").figures["replicas"] == dict.fromkeys(report.servers, 1)
    assert of(report, "coverage").verdict is Verdict.OK
    assert wrong(await examined(cluster.nodes[0].url)) == ["topology"], "a node alone"
    monkeypatch.setenv("MIDSTREAM_MIN_REPLICAS", "1")
    assert of(await examined(cluster.url), "replicas").verdict is Verdict.ADVICE, "none of them may be away"
    monkeypatch.setenv("MIDSTREAM_MIN_REPLICAS", "2")
    report = await examined(cluster.url)
    assert wrong(report) == ["replicas"]
    assert "3 replicas, or lower MIDSTREAM_MIN_REPLICAS" in of(report, "replicas").problem


async def test_a_cluster_that_stops_as_a_whole_and_lacks_a_slot(cluster: RedisCluster) -> None:
    node = cluster.master_of(b"any")
    slots = cluster.slots_of(node)[:2]
    node.execute("CONFIG", "SET", "cluster-require-full-coverage", "yes")
    try:
        report = await examined(cluster.url)
        assert wrong(report) == []
        assert "Set cluster-require-full-coverage to no" in of(report, "coverage").problem
    finally:
        node.execute("CONFIG", "SET", "cluster-require-full-coverage", "no")
    for one in cluster.nodes[:3]:
        one.execute("CLUSTER", "DELSLOTS", *slots)

    async def lacks_slots() -> bool:  # the nodes tell each other of it
        report = await examined(cluster.url)
        return "slots" in wrong(report) and of(report, "slots").figures == {"slots": 16382}

    await wait_until(lacks_slots, what="all nodes know that two slots are nowhere")
    node.execute("CLUSTER", "ADDSLOTS", *slots)
    await asyncio.to_thread(cluster.until_whole)


async def test_a_primary_behind_sentinels(behind_sentinels: RedisWithSentinels) -> None:
    report = await examined(behind_sentinels.url)
    assert wrong(report) == [], report.as_text()
    assert of(report, "sentinels").figures == {"named": 3, "away": 0, "known": 3, "quorum": 2}
    assert report.servers == [f"127.0.0.1:{behind_sentinels.primary().port}"]
    replica = next(node for node in behind_sentinels.nodes if node is not behind_sentinels.primary())
    report = await examined(replica.url)
    assert wrong(report) == ["topology"]
    assert f"its primary, {report.servers and behind_sentinels.primary().url[8:-2]}" in of(report, "topology").problem
    behind_sentinels.sentinels[0].execute("SENTINEL", "SET", "mymaster", "down-after-milliseconds", 300)
    report = await examined(behind_sentinels.url)
    assert "Set down-after-milliseconds to 1000" in of(report, "sentinels").problem
    away = f"127.0.0.1:{free_port()}"
    report = await examined(behind_sentinels.url.replace("://", f"://{away},"))
    assert wrong(report) == ["sentinels"]
    assert away in of(report, "sentinels").problem


async def test_one_sentinel_is_too_few() -> None:
    with RedisWithSentinels(kind="valkey", replicas=0, sentinels=1) as servers:
        report = await examined(servers.url)
    assert wrong(report) == ["sentinels"]
    assert "Run at least three Sentinels" in of(report, "sentinels").problem
    assert of(report, "replicas").verdict is Verdict.ADVICE, "nothing can take its place"


async def test_a_url_that_names_no_cluster(server: RedisServer) -> None:
    report = await examined(f"redis+cluster://127.0.0.1:{server.port}")
    assert wrong(report) == ["topology"]
    assert "redis://" in of(report, "topology").problem


async def test_nobody_there() -> None:
    with pytest.raises(Unusable, match="cannot be reached"):
        await examined(f"redis://127.0.0.1:{free_port()}/0")


def test_the_command(server: RedisServer) -> None:
    def run(*arguments: str, url: str = "redis://127.0.0.1:1") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "midstream.cli", "doctor", *arguments]
        environment = {**os.environ, "MIDSTREAM_REDIS_URL": url}
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)

    ended = run("--redis", "--json", url=server.url)
    report = json.loads(ended.stdout)
    assert (ended.returncode, report["ok"], report["faults"]) == (0, True, [])
    assert report["checks"]["pubsub"]["verdict"] == "ok"
    ended = run("--redis")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "cannot be reached" in ended.stderr
    assert run("http://127.0.0.1:1", "--redis").returncode == 2, "one of the two"
