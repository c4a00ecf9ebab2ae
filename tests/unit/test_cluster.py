"""A cluster's map and its redirects, lanes, and the forms of the URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shared.cluster import ClusterConnection, key_of, slot_of, tag_of
from shared.connections import address_of
from shared.errors import Disconnected, RedisRefused, Unusable
from shared.lanes import Lanes, lanes_of
from shared.redis_retry import until_redis_answers
from shared.redis_server import RedisAddress
from shared.resp import pack
from shared.sentinel import SentinelAddress
from shared.settings import Settings
from tests.support.scripted_redis import ScriptedCluster
from tests.support.waiting import wait_until

LOW, HIGH = b"{b}", b"{a}"
"""Keys with slots 3300 and 15495: at the first and at the last master."""


@asynccontextmanager
async def connected(cluster: ScriptedCluster) -> AsyncIterator[ClusterConnection]:
    seed = RedisAddress("127.0.0.1", cluster.nodes[0].port)
    connection = ClusterConnection((seed,), name="test", reply_seconds=2.0, reconnect_seconds_max=0.05)
    connection.start()
    try:
        async with asyncio.timeout(5):
            await connection.wait_until_up()
        yield connection
    finally:
        await connection.close()


# --- slots


@pytest.mark.parametrize(
    ("key", "tag"),
    [(b"a", b"a"), (b"{a}b", b"a"), (b"x{a}{b}", b"a"), (b"{}a", b"{}a"), (b"{a", b"{a"), (b"a}{", b"a}{")],
)
def test_the_tag_decides_the_slot(key: bytes, tag: bytes) -> None:
    assert tag_of(key) == tag
    assert slot_of(key) == slot_of(tag)


def test_slots_are_those_of_the_specification() -> None:
    assert (slot_of(b"123456789"), slot_of(LOW), slot_of(HIGH)) == (0x31C3, 3300, 15495)


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", b"k"), b"k"),
        (("EVALSHA", "d", 2, b"k", b"l", b"argument"), b"k"),
        (("EVAL", "return 1", 0), None),
        (("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", b"k", ">"), b"k"),
        (("XGROUP", "CREATE", b"k", "g", "0"), b"k"),
        (("XINFO", "GROUPS", b"k"), b"k"),
        (("PUBSUB", "SHARDNUMSUB", b"k"), b"k"),
        (("SPUBLISH", b"k", b""), b"k"),
        (("TIME",), None),
        (("CLUSTER", "SLOTS"), None),
    ],
)
def test_a_command_s_key(command: tuple[Any, ...], key: bytes | None) -> None:
    assert key_of(command) == key


# --- redirects


async def test_commands_go_to_the_masters_of_their_keys() -> None:
    async with ScriptedCluster(3) as cluster, connected(cluster) as connection:
        await asyncio.gather(connection.execute("GET", LOW), connection.execute("GET", HIGH))
        assert [node.commands for node in cluster.nodes] == [[[b"GET", LOW]], [], [[b"GET", HIGH]]]


async def test_moved_is_followed_and_remembered_at_once() -> None:
    async with ScriptedCluster(2) as cluster, connected(cluster) as connection:
        moved = RedisRefused(f"MOVED {slot_of(LOW)} 127.0.0.1:{cluster.nodes[1].port}")
        cluster.script(0, lambda command: moved if command[0] == b"GET" else None)
        cluster.script(1, lambda command: b"there" if command[0] == b"GET" else None)
        cluster.owners = [1, 1]
        maps = cluster.maps
        assert await connection.execute("GET", LOW) == b"there"
        assert await connection.execute("GET", LOW) == b"there"
        assert len(cluster.nodes[0].commands) == 1, "the second goes to the right one"
        await wait_until(lambda: cluster.maps > maps, what="the map is read again")


@pytest.mark.parametrize("kind", ["MOVED", "ASK"])
async def test_a_redirect_of_a_command_with_its_key_is_the_caller_s_who_then_executes_it(kind: str) -> None:
    async with ScriptedCluster(2) as cluster, connected(cluster) as connection:
        redirect = f"{kind} {slot_of(LOW)} 127.0.0.1:{cluster.nodes[1].port}"
        cluster.script(0, lambda command: RedisRefused(redirect) if command[0] == b"SET" else None)
        replies: list[Any] = []
        connection.send_packed(pack(("SET", LOW, b"")), LOW, replies.append)
        await wait_until(lambda: replies, what="an answer")
        assert str(replies[0]) == redirect
        assert cluster.nodes[1].commands == []
        await connection.execute("SET", LOW, b"")
        assert cluster.nodes[1].commands[-1] == [b"SET", LOW, b""]


async def test_ask_is_followed_once_and_not_remembered() -> None:
    async with ScriptedCluster(2) as cluster, connected(cluster) as connection:
        ask = RedisRefused(f"ASK {slot_of(LOW)} 127.0.0.1:{cluster.nodes[1].port}")
        cluster.script(0, lambda command: ask if command[0] == b"GET" else None)
        for _ in range(2):
            await connection.execute("GET", LOW)
        assert cluster.nodes[0].commands == [[b"GET", LOW]] * 2
        assert cluster.nodes[1].commands == [[b"ASKING"], [b"GET", LOW]] * 2


async def test_the_map_counts_again_after_a_wrong_redirect_although_it_is_as_before() -> None:
    async with ScriptedCluster(2) as cluster, connected(cluster) as connection:
        wrong = RedisRefused(f"MOVED {slot_of(LOW)} 127.0.0.1:{cluster.nodes[1].port}")
        cluster.script(0, lambda command: wrong if command[0] == b"GET" else None)
        maps = cluster.maps
        await connection.execute("GET", LOW)
        assert connection.place_of(LOW) == cluster.nodes[1].place
        await wait_until(lambda: cluster.maps > maps and connection.place_of(LOW) == cluster.nodes[0].place)


@pytest.mark.parametrize("last", [16384, 10**12, -1])
async def test_a_map_of_slots_that_do_not_exist_is_none(last: int) -> None:
    async with ScriptedCluster(2) as cluster, connected(cluster) as connection:
        rows = [[0, last, [b"127.0.0.1", cluster.nodes[1].port, b"id"]]]
        for node in cluster.nodes:
            node.answer = lambda command: rows if command[:2] == [b"CLUSTER", b"SLOTS"] else cluster.about(command)
        assert await connection._read_map() is False
        assert connection.place_of(LOW) == cluster.nodes[0].place


async def test_a_cluster_with_a_slot_that_nobody_has_is_not_whole() -> None:
    async with ScriptedCluster(2) as cluster, connected(cluster) as connection:
        rows = [[0, 8190, [b"127.0.0.1", cluster.nodes[0].port]], [8192, 16383, [b"127.0.0.1", cluster.nodes[1].port]]]
        for node in cluster.nodes:
            node.answer = lambda command: rows if command[:2] == [b"CLUSTER", b"SLOTS"] else cluster.about(command)
        connection.look_soon()
        await wait_until(lambda: not connection.is_whole, what="a slot is missing")
        assert await connection.execute("GET", LOW) == b"OK"
        for node in cluster.nodes:
            node.answer = cluster.about
        async with asyncio.timeout(5):
            await connection.wait_until_up()


@pytest.mark.parametrize(
    "error",
    [
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "CLUSTERDOWN Hash slot not served",
        "LOADING",
        "MASTERDOWN",
    ],
)
async def test_what_passes_is_the_caller_s_and_succeeds_when_repeated(error: str) -> None:
    async with ScriptedCluster(1) as cluster, connected(cluster) as connection:
        errors = [RedisRefused(error)] * 2
        cluster.script(0, lambda command: errors.pop() if command[0] == b"GET" and errors else None)
        with pytest.raises(RedisRefused, match=error.split()[0]) as refused:
            await connection.execute("GET", LOW)
        assert refused.value.passing
        assert await until_redis_answers(connection.execute, "GET", LOW) == b"OK"


async def test_clusterdown_has_the_map_read_again() -> None:
    async with ScriptedCluster(1) as cluster, connected(cluster) as connection:
        cluster.script(0, lambda command: RedisRefused("CLUSTERDOWN") if command[0] == b"GET" else None)
        maps = cluster.maps
        with pytest.raises(RedisRefused):
            await connection.execute("GET", LOW)
        await wait_until(lambda: cluster.maps > maps, what="the map is read again")


async def test_nodes_that_send_a_command_in_a_circle_are_not_followed_for_ever() -> None:
    async with ScriptedCluster(2) as cluster, connected(cluster) as connection:
        for index, other in enumerate(reversed(cluster.nodes)):
            moved = RedisRefused(f"MOVED {slot_of(LOW)} 127.0.0.1:{other.port}")
            cluster.script(index, lambda command, moved=moved: moved if command[0] == b"GET" else None)  # type: ignore[misc]
        with pytest.raises(Disconnected, match="do not agree"):
            await connection.execute("GET", LOW)
        assert 5 <= sum(len(node.commands) for node in cluster.nodes) <= 6


@pytest.mark.parametrize("error", ["MOVED", "MOVED x y", "MOVED 1 host:port", "ASK 1 :7000", "MOVED 5 nowhere"])
async def test_a_redirect_that_cannot_be_read_is_the_caller_s(error: str) -> None:
    async with ScriptedCluster(1) as cluster, connected(cluster) as connection:
        cluster.script(0, lambda command: RedisRefused(error) if command[0] == b"GET" else None)
        with pytest.raises(RedisRefused, match=error):
            await connection.execute("GET", LOW)


async def test_commands_together_are_not_split_by_a_redirect() -> None:
    async with ScriptedCluster(2) as cluster, connected(cluster) as connection:
        ask = RedisRefused(f"ASK {slot_of(LOW)} 127.0.0.1:{cluster.nodes[1].port}")
        cluster.script(0, lambda command: ask if command[0] == b"SET" else None)
        refused, answered = await connection.execute_together(LOW, ("SET", LOW, b""), ("WAIT", 1, 1))
        assert (type(refused), answered) == (Disconnected, b"OK")
        assert cluster.nodes[1].commands == []


async def test_while_a_master_is_away_the_others_answer() -> None:
    async with ScriptedCluster(2) as cluster, connected(cluster) as connection:
        await cluster.nodes[0].__aexit__()
        await wait_until(lambda: not connection.can_reach(LOW), what="its loss was seen")
        with pytest.raises(Disconnected):
            await connection.execute("GET", LOW)
        assert await connection.execute("GET", HIGH) == b"OK"
        assert await connection.execute_everywhere("TIME") == [b"OK"], "the one that answers"
        assert (connection.is_up, connection.is_whole) == (True, False)


async def test_a_subscription_follows_its_slot() -> None:
    async with ScriptedCluster(2) as cluster, connected(cluster) as connection:
        for index in range(2):
            cluster.script(
                index, lambda command: [b"ssubscribe", command[1], 1] if command[0] == b"SSUBSCRIBE" else b"x"
            )
        pushed: list[Any] = []
        subscriber = connection.subscriber(name="test", on_push=pushed.extend)
        subscriber.start()
        try:
            subscriber.push(b"SSUBSCRIBE", LOW)
            await wait_until(lambda: [b"ssubscribe", LOW, 1] in pushed, what="confirmed by the first master")
            cluster.owners = [1, 1]
            cluster.nodes[0].push(b"sunsubscribe", LOW, 0)
            await wait_until(lambda: pushed.count([b"ssubscribe", LOW, 1]) == 2, what="confirmed by the second one")
            assert [b"sunsubscribe", LOW, 0] not in pushed, "its reader need not know"
            cluster.nodes[1].push(b"smessage", LOW, b"hello")
            await wait_until(lambda: [b"smessage", LOW, b"hello"] in pushed)
        finally:
            await subscriber.close()


# --- lanes


async def test_a_request_goes_into_the_lane_of_its_id_or_the_next_that_can_be_reached() -> None:
    async with ScriptedCluster(2) as cluster, connected(cluster) as connection:
        lanes = lanes_of(connection, Settings(queue_lanes=8, queue_requests_max=80))
        assert {connection.place_of(lane.key) for lane in lanes} == {node.place for node in cluster.nodes}
        for index in range(2):
            cluster.script(index, lambda command: 1 if command[0] == b"EVALSHA" else None)
        queue = Lanes(connection, lanes)
        ids = [f"{number:036d}" for number in range(64)]

        def used() -> set[bytes]:
            return {command[3] for node in cluster.nodes for command in node.commands if command[0] == b"EVALSHA"}

        for stream_id in ids:
            await queue.enqueue(stream_id)
        assert used() == {lane.key for lane in lanes}, "all are used"
        await cluster.nodes[0].__aexit__()
        away = {lane.key for lane in lanes if connection.place_of(lane.key) == cluster.nodes[0].place}
        await wait_until(lambda: not any(map(connection.can_reach, away)), what="its loss was seen")
        cluster.nodes[0].commands.clear()
        cluster.nodes[1].commands.clear()
        for stream_id in ids:
            await queue.enqueue(stream_id)
        assert used() == {lane.key for lane in lanes} - away, "and none is lost"


# --- the URL


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis+cluster://a", (RedisAddress("a"),)),
        ("redis+cluster://a:7000,b:7001/", (RedisAddress("a", 7000), RedisAddress("b", 7001))),
        ("redis+cluster://[::1]:7000,b/0", (RedisAddress("::1", 7000), RedisAddress("b"))),
        ("rediss+cluster://u:p%2Fw@a", (RedisAddress("a", username="u", password="p/w", tls=True),)),
        ("rediss+cluster://a?ssl_ca_certs=/etc/ca.pem", (RedisAddress("a", tls=True, ca_file="/etc/ca.pem"),)),
        (
            "redis+sentinel://a,b:27000/main/2",
            SentinelAddress(
                (RedisAddress("a", 26379, "", 0, "su", "sp"), RedisAddress("b", 27000, "", 0, "su", "sp")),
                "main",
                RedisAddress("", 0, database=2),
            ),
        ),
        (
            "rediss+sentinel://u:p@a/main?ssl_ca_certs=/ca.pem",
            SentinelAddress(
                (RedisAddress("a", 26379, "", 0, "su", "sp", tls=True, ca_file="/ca.pem"),),
                "main",
                RedisAddress("", 0, username="u", password="p", tls=True, ca_file="/ca.pem"),
            ),
        ),
    ],
)
def test_a_url_of_several_servers(url: str, address: Any) -> None:
    assert address_of(url, sentinel_username="su", sentinel_password="sp") == address


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis+cluster://", "names no host"),
        ("redis+cluster://:hunter2@", "names no host"),
        ("redis+cluster:a", "cannot be used"),
        ("redis+clusters://a", "cannot be used"),
        ("valkey+cluster://a", "cannot be used"),
        ("redis+cluster://:hunter2@a:port", "cannot be read"),
        ("redis+cluster://:hunter2@a:99999,b", "cannot be read"),
        ("redis+cluster://:hunter2@a,b/1", "only the database 0"),
        ("redis+cluster://:hunter2@a?ssl_ca_certs=/ca.pem", "with rediss://"),
        ("rediss+cluster://:hunter2@a?ssl_keyfile=/key", "without ssl_certfile"),
        ("redis+sentinel://", "names no host"),
        ("redis+sentinel://a", "does not name a primary"),
        ("redis+sentinel://:hunter2@a/", "does not name a primary"),
        ("redis+sentinel://:hunter2@a/main/x", "database must be a number"),
        ("redis+sentinel://:12/hunter2@a:port/main", "cannot be read"),
    ],
)
def test_a_wrong_url_of_several_servers_is_told_in_one_sentence(url: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason) as error:
        address_of(url)
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)
    if "with" not in reason:
        assert "redis+cluster://host:6379,host:6379" in str(error.value), "and says how it must look"
