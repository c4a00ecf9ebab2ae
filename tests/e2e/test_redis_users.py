"""Redis users with exactly the documented permissions work; with fewer the missing ones are named."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from gateway.server import serve
from producer.__main__ import work
from shared.api_keys import ApiKeyTable, create
from shared.errors import RedisRefused, Unusable
from shared.grants import ROLES, Role, Subscription, refusals, until_up
from shared.ids import new_stream_id
from shared.keys import API_KEYS, PROCESSES_UNTIL, REQUESTS, log_key
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from shared.settings import Settings
from tests.support.needs import needs
from tests.support.ordinary_commands import ordinary_client
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import USER_PASSWORD, Kind, RedisServer, binary_of
from tests.support.system import Process, System, answer_of, environment_of
from tests.support.waiting import wait_until

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "run-with-your-own-redis.md"
KINDS: tuple[Kind, ...] = ("valkey", "redis")
_LIMITS = {
    "limit_creates_per_minute": 1000,
    "limit_streams": 1000,
    "limit_readers": 1000,
    "limit_request_bytes": 10_000_000,
    "limit_tokens_per_day": 1_000_000,
}
_OPTIONAL = {"+client|setname", "+info"}
"""Optional commands: without these everything works, as the documentation says."""
_OF_MANY_SERVERS = {"+asking", "+cluster|info", "+cluster|slots", "+role", "+wait"}
"""Commands that one server alone does not need; nor SET, for a worker."""


def documented(user: str) -> list[str]:
    """Returns the rules of this user's ACL SETUSER line in the documentation."""
    (line,) = re.findall(rf"^ACL SETUSER {user} (.+)$", _PAGE.read_text(), re.MULTILINE)
    return str(line).split()


def password_of(rules: Sequence[str]) -> str:
    (password,) = [rule[1:] for rule in rules if rule.startswith(">")]
    return password


def server_of(kind: Kind, *arguments: str, **options: Any) -> RedisServer:
    needs("redis-server (Debian: apt install redis-server)", binary_of(kind))
    return RedisServer(kind, arguments=arguments, **options)


def test_the_user_for_all_has_the_permissions_of_each() -> None:
    def granted(user: str) -> set[str]:
        return {rule for rule in documented(user) if not rule.startswith(">")}

    each = granted("midstream-gateway") | granted("midstream-worker") | granted("midstream-keys")
    assert granted("midstream") == each - {"%R~midstream-access:*"}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_worker_cannot_touch_the_api_keys_and_a_gateway_can_only_read_them(kind: Kind) -> None:
    """As the users that are shipped: whoever takes over one of these processes must not be able to make a key."""
    stream = log_key(new_stream_id())
    reads: list[tuple[bytes | str | int, ...]] = [("HGET", API_KEYS, "version"), ("HGETALL", API_KEYS)]
    writes: list[tuple[bytes | str | int, ...]] = [
        ("HSET", API_KEYS, "0" * 64, "{}"),
        ("HDEL", API_KEYS, "0" * 64),
        ("EXPIRE", API_KEYS, 1),
        ("XADD", API_KEYS, "1-1", "a", "b"),
        ("DEL", API_KEYS),
        ("SET", API_KEYS, "x"),
        ("RENAME", stream, API_KEYS),
        ("EVAL", "return redis.call('HSET', KEYS[1], 'a', 'b')", 1, API_KEYS),
        ("EVAL", "return redis.call('HSET', ARGV[1], 'a', 'b')", 1, stream, API_KEYS),
    ]

    async def is_refused(connection: RespConnection, command: tuple[bytes | str | int, ...]) -> bool:
        try:
            await connection.execute(*command)
        except RedisRefused as refused:
            return refused.forbids
        return False

    with server_of(kind) as server:
        async with (
            connected(server, "worker", "midstream-worker", USER_PASSWORD) as (worker, _),
            connected(server, "worker", "midstream-gateway", USER_PASSWORD) as (gateway, _),
            connected(server, "worker", "midstream-keys", USER_PASSWORD) as (keys, _),
        ):
            assert await ApiKeyTable(keys).all() == {}
            _, about = await create(ApiKeyTable(keys), "shop", frozenset({"read"}), None, {})
            assert [await is_refused(worker, command) for command in (*reads, *writes)] == [True] * 11
            assert [await is_refused(gateway, command) for command in reads] == [False] * 2
            assert [await is_refused(gateway, command) for command in writes] == [True] * 9
            assert await is_refused(keys, ("HGETALL", b"midstream:{processes}:about"))
            assert await ApiKeyTable(gateway).find(about.digest) == about
            assert await ApiKeyTable(keys).delete(about.digest)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_documented_permissions_are_sufficient(kind: Kind) -> None:
    names = ("midstream-gateway", "midstream-worker")
    arguments: list[str] = []
    for name in names:
        arguments += ["--user", name, *documented(name)]
    server = server_of(kind, *arguments)
    gateway_url, worker_url = (server.url_of(name, password_of(documented(name))) for name in names)
    async with System(
        workers=2,
        redis=server,
        settings={"lease_seconds": 1, "provider_on_cancel": "drain", "delivery_report_seconds": 1},
        gateway_settings={"redis_url": gateway_url, "console": "on", "usage_seconds": 0.5, **_LIMITS},
        worker_settings={"redis_url": worker_url, "worker_drain_seconds": 0.1},
    ) as system:
        http, url = system.http, system.gateway_url()
        whole = await system.create(simulate={"tokens": 30}, headers={"idempotency-key": "once"})
        assert await system.create(simulate={"tokens": 30}, headers={"idempotency-key": "once"}) == whole
        first = system.follow(whole)
        await first.until_end()
        again = system.follow(whole, after="1-10")
        await again.until_end()
        assert [*first.tokens[:10], *again.tokens] == first.tokens

        slow = {"tokens": 40, "tokens_per_second": 20}
        cancelled = await system.create(simulate=slow)
        await system.follow(cancelled).until_tokens(3)
        assert (await http.post(f"{url}/v1/streams/{cancelled}/cancel")).json()["status"] == "cancelled"

        async def usage_is_known() -> bool:
            receipt = (await http.get(f"{url}/v1/streams/{cancelled}/receipt")).json()
            return receipt["generated"]["usage"] is not None and receipt["delivered"]["tokens"] > 0

        await wait_until(usage_is_known, what="a cancelled answer was read to its end")
        taken = await system.create(simulate=slow, midstream={"on_interrupt": "continue"})
        reader = system.follow(taken)
        await reader.until_tokens(3)
        killed = await system.worker_of(taken)
        killed.kill()
        await reader.until_end()
        answer = answer_of(reader.messages)
        assert (answer.end, len(answer.tokens)) == ("done", 40), reader
        assert answer.restarted
        await system.start_worker(system.workers.index(killed))

        handed_back = await system.create(simulate=slow, midstream={"on_interrupt": "continue"})
        reader = system.follow(handed_back)
        await reader.until_tokens(3)
        leaving = await system.worker_of(handed_back)
        leaving.send(signal.SIGTERM)
        assert await leaving.exit_code() == 0
        await reader.until_end()

        chat = {"id": "c1", "messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}]}
        assert (await http.post(f"{url}/api/chat", json={**chat, "simulate": {"tokens": 3}})).status_code == 200
        assert (await http.get(f"{url}/api/chat/c1/stream?ended=replay")).status_code == 200
        assert (await http.get(f"{url}/v1/overview")).json()["redis"]["up"] is True
        assert (await http.get(f"{url}/readyz")).status_code == 200
        assert (await http.get(f"{url}/metrics")).status_code == 200

        assert (await http.delete(f"{url}/v1/streams/{whole}")).status_code == 204
        assert (await http.get(f"{url}/v1/usage")).json()["usage"][0]["completed"] >= 1
        for process in (*system.gateways, *system.workers):
            if process.runs:
                process.send(signal.SIGTERM)
                assert await process.exit_code() == 0
        log = await system.commands.execute_command("ACL", "LOG")
        assert log == [], "something was tried that is not granted"


@asynccontextmanager
async def connected(
    server: RedisServer, role: Role, user: str = "u", password: str = "p"
) -> AsyncIterator[tuple[RespConnection, Subscription | None]]:
    address = RedisAddress.parse(server.url_of(user, password))
    connection = RespConnection(address, name="test", reply_seconds=5.0, reconnect_seconds_max=0.02)
    subscription = Subscription(connection, reply_seconds=5.0) if role == "gateway" else None
    connection.start()
    if subscription is not None:
        subscription.start()
    try:
        await until_up(connection, within_seconds=15.0)
        yield connection, subscription
    finally:
        await connection.close()
        if subscription is not None:
            await subscription.close()


async def sentence(connection: RespConnection, subscription: Subscription | None, role: Role) -> str | None:
    found = await refusals(connection, role)
    if subscription is not None:
        await subscription.note_refusals(found)
    return found.sentence(role, "u")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", KINDS)
async def test_each_missing_permission_is_named(kind: Kind, role: Role) -> None:
    rules = [rule for rule in documented(f"midstream-{role}") if not rule.startswith(">")]
    commands = [rule for rule in rules if rule.startswith("+")]
    others = {
        "~midstream:*": "the keys midstream:*",
        "%R~midstream-access:*": "to read the keys midstream-access:*",
        "&midstream:*": "the channels midstream:*",
    }
    with server_of(kind) as server:
        async with AsyncExitStack() as stack:
            admin: Any = redis.asyncio.Redis.from_url(server.url)
            stack.push_async_callback(admin.aclose)

            async def grant(*granted: str) -> None:
                await admin.execute_command("ACL", "SETUSER", "u", "reset", "on", ">p", *granted)

            await grant(*rules)
            connection, subscription = await stack.enter_async_context(connected(server, role))
            assert await sentence(connection, subscription, role) is None
            assert await admin.dbsize() == 0, "nothing is left behind"
            for missing in [*commands, *(rule for rule in others if rule in rules)]:
                if missing in _OPTIONAL | _OF_MANY_SERVERS or missing == "+ping":
                    continue
                if (role, missing) == ("worker", "+set"):
                    continue
                # The same user: open connections keep the permissions that are left.
                if missing in commands:
                    revoked = ["-" + missing[1:]]
                else:
                    left = [rule for rule in rules if rule in others and rule != missing]
                    revoked = ["resetkeys", "resetchannels", *left]
                await admin.execute_command("ACL", "SETUSER", "u", *revoked)
                await connection_up(connection)
                found = await sentence(connection, subscription, role)
                name = others.get(missing) or missing[1:].upper().replace("|", " ")
                assert found is not None, missing
                assert name in found, missing
                assert f"ACL SETUSER u {missing}" in found or f" {missing}" in found, missing
                await admin.execute_command("ACL", "SETUSER", "u", missing)
            await connection_up(connection)
            assert await sentence(connection, subscription, role) is None


@pytest.mark.parametrize("missing", sorted(_OF_MANY_SERVERS - {"+role"}))
@pytest.mark.parametrize("role", ROLES)
async def test_each_permission_that_a_cluster_needs_is_named(cluster: RedisCluster, role: Role, missing: str) -> None:
    (node,) = cluster.nodes
    node.execute("ACL", "SETUSER", "u", "reset", "on", ">p", *documented(f"midstream-{role}")[1:], f"-{missing[1:]}")
    url = cluster.url.replace("://", "://u:p@")
    settings = Settings(
        redis_url=url, redis_start_seconds=1.0, provider="simulated", auth="none", min_replicas=1, console="off"
    )
    with socket.socket() as listening, pytest.raises(Unusable) as refused:
        await (serve(settings, listening) if role == "gateway" else work(settings, None))
    assert missing[1:].replace("|", " ") in str(refused.value).lower().replace("|", " ")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    needs("redis-server (Debian: apt install redis-server)", binary_of("redis"))
    with RedisCluster(masters=1, replicas=False) as cluster:
        yield cluster


async def connection_up(connection: RespConnection) -> None:
    """Redis closes a user's connections when permissions for channels are removed."""

    async def answers() -> bool:
        return connection.is_up and await connection.execute("PING") == b"PONG"

    await wait_until(answers)


FAULTS: dict[str, tuple[list[str], list[str], str]] = {
    # fault: arguments of the server, commands to it, the expected sentence
    "no channels, as a new user of Redis 7": (
        [],
        ["ACL SETUSER u on >p ~* +@all resetchannels"],
        "the channels midstream:*",
    ),
    "another key prefix": ([], ["ACL SETUSER u on >p ~app:* &* +@all"], "the keys midstream:*"),
    "no SCRIPT": ([], ["ACL SETUSER u on >p ~* &* +@all -script|load"], "the command SCRIPT LOAD"),
    "no EVALSHA": ([], ["ACL SETUSER u on >p ~* &* +@all -evalsha"], "the command EVALSHA"),
    "no PING": ([], ["ACL SETUSER u on >p ~* &* +@all -ping"], "NOPERM"),
    "no command at all": ([], ["ACL SETUSER u on >p ~* &*"], "NOPERM"),
    "keys that may only be read": ([], ["ACL SETUSER u on >p %R~* &* +@all"], "the keys midstream:*"),
    "a wrong password": ([], ["ACL SETUSER u on >other ~* &* +@all"], "refuses the login"),
    "renamed": (["--rename-command", "EVALSHA", ""], ["ACL SETUSER u on >p ~* &* +@all"], "does not know EVALSHA"),
    "a read-only replica": (
        [],
        ["ACL SETUSER u on >p ~* &* +@all", "REPLICAOF 127.0.0.1 1"],
        "the address of its primary",
    ),
    "a queue that is none": (
        [],
        ["ACL SETUSER u on >p ~* &* +@all", f"SET {REQUESTS.decode()} x"],
        "midstream:requests is not the request queue",
    ),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_process_without_its_permissions_says_why_at_the_start(fault: str, role: Role) -> None:
    arguments, commands, words = FAULTS[fault]
    with server_of("redis" if binary_of("redis") else "valkey", *arguments) as server:
        admin: Any = redis.asyncio.Redis.from_url(server.url)
        for command in commands:
            await admin.execute_command(*command.split())
        await admin.aclose()
        settings = Settings(
            redis_url=server.url_of("u", "p"), redis_start_seconds=0.5, provider="simulated", auth="none"
        )
        with socket.socket() as listening, pytest.raises(Unusable) as refused:
            await (serve(settings, listening) if role == "gateway" else work(settings, None))
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("module", ["gateway", "producer"])
async def test_a_process_without_its_permissions_ends_with_that_sentence(module: str, tmp_path: Path) -> None:
    user = ["--user", "u", "on", ">p", "~*", "resetchannels", "+@all", "-script|load"]
    with server_of("redis" if binary_of("redis") else "valkey", *user) as server:
        settings: Mapping[str, object] = {"redis_url": server.url_of("u", "p"), "port": 0}
        process = Process(module, settings, tmp_path / "process.log")
        process.start()
        assert await process.exit_code(within_seconds=20.0) == 1
        (line,) = [line for line in process.logged().splitlines() if not line.startswith("{")]
        assert line.startswith(f"{module}: Redis at unix:///")
        assert "the command SCRIPT LOAD, the channels midstream:*" in line


@pytest.mark.parametrize("role", ROLES)
async def test_only_another_program_s_queue_key_prevents_the_start(role: Role) -> None:
    """If another key has a wrong type, only the feature that uses it fails: the process must still start."""
    with server_of(
        "redis" if binary_of("redis") else "valkey", "--user", "u", "on", ">p", "~*", "&*", "+@all"
    ) as server:
        admin: Any = redis.asyncio.Redis.from_url(server.url)
        await admin.set(PROCESSES_UNTIL, "x")
        async with connected(server, role) as (connection, subscription):
            assert await sentence(connection, subscription, role) is None
            await admin.set(REQUESTS, "x")
            assert "midstream:requests is not the request queue" in str(await sentence(connection, subscription, role))
        await admin.aclose()


async def test_without_client_and_info_everything_works() -> None:
    rules = "on >p ~midstream:* %R~midstream-access:* &midstream:* +@all -client -info".split()
    server = server_of("redis" if binary_of("redis") else "valkey", "--user", "u", *rules)
    async with System(redis=server, settings={"redis_url": server.url_of("u", "p")}) as system:
        stream_id = await system.create(simulate={"tokens": 10})
        assert len((await system.follow(stream_id).until_end()).tokens) == 10


@pytest.fixture
async def small(request: pytest.FixtureRequest) -> AsyncIterator[System]:
    server = server_of("redis" if binary_of("redis") else "valkey", "--user", "u", "on", ">p", "~*", "&*", "+@all")
    settings = {"redis_url": server.url_of("u", "p"), "redis_wait_seconds": 1.0, "console": "on"}
    async with System(redis=server, settings=settings) as system:
        yield system


async def test_permissions_removed_later_are_reported_by_every_route(small: System) -> None:
    system, http, url = small, small.http, small.gateway_url()
    ended = await system.create(simulate={"tokens": 3})
    await system.follow(ended).until_end()

    async def answer_to(method: str, path: str, **more: Any) -> tuple[int, str]:
        answer = await http.request(method, url + path, **more)
        return answer.status_code, answer.text

    async def ready(words: str) -> bool:
        status, text = await answer_to("GET", "/readyz")
        return words in text and status == (503 if "ready" not in words else 200)

    chat = {"id": "c1", "messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}]}
    asks = {"messages": [{"role": "user", "content": "hi"}]}
    writes: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/v1/streams", {"json": asks}),
        ("POST", "/v1/streams", {"json": asks, "headers": {"idempotency-key": "k"}}),
        ("POST", "/v1/chat/completions", {"json": {**asks, "model": "m"}}),
        ("POST", "/v1/responses", {"json": {"model": "m", "input": "hi"}}),
        ("POST", "/api/chat", {"json": chat}),
        ("GET", "/stream?prompt=hi", {}),
        ("POST", f"/v1/streams/{ended}/cancel", {}),
        ("DELETE", f"/v1/streams/{ended}", {}),
    ]
    reads: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", f"/v1/streams/{ended}", {}),
        ("GET", f"/v1/streams/{ended}/events", {}),
        ("GET", f"/v1/streams/{ended}/text", {}),
        ("GET", f"/v1/streams/{ended}/receipt", {}),
    ]
    admin = system.commands
    for revoke, restore, requests, words in (
        (["-evalsha", "-eval"], ["+evalsha", "+eval"], writes, "EVALSHA"),
        (["resetkeys"], ["~*"], [*writes, *reads], "the keys midstream:*"),
        (["-xrange", "-xrevrange"], ["+xrange", "+xrevrange"], reads, "XRANGE"),
        (["resetchannels"], ["&*"], reads[1:2], "the channels midstream:*"),
    ):
        await admin.execute_command("ACL", "SETUSER", "u", *revoke)
        await wait_until(lambda words=words: ready(words), what=words)  # type: ignore[misc]
        for method, path, more in requests:
            status, text = await answer_to(method, path, **more)
            assert status == 503, (revoke, method, path, status, text)
            assert "refuses" in text, (revoke, method, path, text)
            assert "away" not in text, (revoke, method, path, text)
        overview = (await http.get(f"{url}/v1/overview")).json()
        assert overview["redis"]["up"] or "refuses" in overview["redis"]["refusal"]
        await admin.execute_command("ACL", "SETUSER", "u", *restore)
        await wait_until(lambda: ready('"ready"'), what="ready again")
    system.gateways[0].assert_no_complaints()
    assert len((await system.follow(ended).until_end()).tokens) == 3


async def test_a_changed_password_is_reported_as_one(small: System) -> None:
    system, url = small, small.gateway_url()
    await system.commands.execute_command("ACL", "SETUSER", "u", "resetpass", ">other")
    await system.commands.execute_command("CLIENT", "KILL", "USER", "u")

    async def readyz(status: int, words: str) -> bool:
        answer = await system.http.get(f"{url}/readyz")
        return answer.status_code == status and words in answer.text

    await wait_until(lambda: readyz(503, "does not let this process in: WRONGPASS"), what="told as a wrong password")
    await system.commands.execute_command("ACL", "SETUSER", "u", ">p")
    await wait_until(lambda: readyz(200, "ready"), what="ready again")


async def test_midstream_up_reports_a_refusal_of_redis_once(tmp_path: Path) -> None:
    user = ["--user", "u", "on", ">p", "~*", "resetchannels", "+@all"]
    with server_of("redis" if binary_of("redis") else "valkey", *user) as server:
        command = [sys.executable, "-m", "midstream.cli", "up", "--port", "0", "--redis", server.url_of("u", "p")]
        output = await asyncio.to_thread(
            subprocess.run, command, env=environment_of({}), capture_output=True, timeout=30, check=False
        )
        assert output.returncode == 1
        lines = output.stderr.decode().strip().splitlines()
        assert [
            line for line in lines if "refuses the user u what a gateway needs: the channels midstream:*" in line
        ] == lines


async def test_a_redis_that_becomes_a_replica_is_reported_until_it_is_a_primary_again(small: System) -> None:
    system, http, url = small, small.http, small.gateway_url()

    async def readyz(status: int, words: str) -> bool:
        answer = await http.get(f"{url}/readyz")
        return answer.status_code == status and words in answer.text

    await system.commands.execute_command("CONFIG", "SET", "replica-serve-stale-data", "yes")
    await system.commands.execute_command("REPLICAOF", "127.0.0.1", "1")
    await wait_until(lambda: readyz(503, "read-only replica"), what="not ready, since it is a replica")
    body = {"messages": [{"role": "user", "content": "hi"}]}
    refused = await http.post(f"{url}/v1/streams", json=body)
    assert refused.status_code == 503
    assert "read-only replica" in refused.json()["detail"]
    assert refused.headers["retry-after"]
    await system.commands.execute_command("REPLICAOF", "NO", "ONE")
    await wait_until(lambda: readyz(200, "ready"), what="ready again")
    stream_id = await system.create(simulate={"tokens": 3})
    assert len((await system.follow(stream_id).until_end()).tokens) == 3


async def test_readyz_checks_redis_at_most_once_a_second(small: System) -> None:
    system, url = small, small.gateway_url()
    client = ordinary_client(system.redis.url, reply_seconds=5.0)

    async def looks() -> int:
        about = await client.info("commandstats")
        return int(about.get("cmdstat_ssubscribe", {"calls": 0})["calls"])

    try:
        before = await looks()
        answers = await asyncio.gather(*(system.http.get(f"{url}/readyz") for _ in range(200)))
        assert {answer.status_code for answer in answers} == {200}
        assert await looks() - before <= 3
    finally:
        await client.aclose()


async def test_garbage_in_the_queue_and_in_logs_delays_no_takeover() -> None:
    async with System(workers=2, settings={"lease_seconds": 1}) as system:
        for fields in (["id", b"\xff\xfe"], ["id", "nobody\nforged"], ["x", "y"], ["id", "a", "id", "b"]):
            await system.commands.execute_command("XADD", REQUESTS, "*", *fields)
        stream_id = await system.create(
            simulate={"tokens": 120, "tokens_per_second": 60}, midstream={"on_interrupt": "continue"}
        )
        reader = system.follow(stream_id)
        await reader.until_tokens(3)
        # As left by a foreign worker that died: claimed, never acknowledged.
        await system.commands.execute_command("XADD", REQUESTS, "*", "id", b"\xff")
        for entry in (("SET", "x", "EX", "60"), ("XADD", "0-1", "accepted", "{"), ("XADD", "0-1", "t", b"\xff")):
            strange = new_stream_id()
            await system.commands.execute_command(entry[0], log_key(strange), *entry[1:])
            await system.commands.execute_command("EXPIRE", log_key(strange), 60)
            await system.commands.execute_command("XADD", REQUESTS, "*", "id", strange)
        (await system.worker_of(stream_id)).kill()
        await reader.until_end()
        assert len(answer_of(reader.messages).tokens) == 120

        async def only_ours() -> bool:
            return int(await system.commands.xlen(REQUESTS)) == 0

        await wait_until(only_ours, what="the queue is empty")
        messages: list[str] = []
        failures: list[list[str]] = []
        for worker in system.workers:
            logged = [json.loads(line)["message"] for line in worker.logged().splitlines() if line.startswith("{")]
            messages += logged
            failures.append([message.split(":")[0] for message in logged if "failed: unreadable" in message])
        assert any("name no stream" in message for message in messages)
        assert len({stream for failed in failures for stream in failed}) == 3
        # What the killed worker had not acknowledged the other one looks at once more.
        assert all(len(failed) == len(set(failed)) for failed in failures), "each once by a worker"
