"""All processes and the proxies between them, and checks for what they leave behind."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import sqlite3
import tempfile
import time
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, cast

import asyncpg
import httpx2
import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from shared.keys import ACCOUNT_ENTRIES, ACCOUNT_LOOKS, GROUP, UNKEPT, WEBHOOKS_DUE, lane_keys, log_key
from shared.lanes import LANES_OF_CLUSTER
from tests.stress.history import LogEntry
from tests.stress.proxy import Proxy
from tests.support.postgres import PostgresServer
from tests.support.redis_cluster import RedisCluster, RedisWithSentinels
from tests.support.redis_server import RedisServer, binary_of, free_port
from tests.support.system import Process
from tests.support.waiting import wait_until
from tests.support.webhook_receiver import WebhookReceiver

LEASE_SECONDS = 1.5
_GATEWAYS, _WORKERS = 2, 3
_LEFT_OVER_SECONDS = 20.0
_END_SECONDS = 12.0
_ARCHIVE_SECONDS = 60.0
_SHOWN_LINES = 200
_READER_BUFFER_BYTES = 8_192
_SETTINGS: dict[str, object] = {
    "hosts": "stress",  # the host name that readers use for the gateways
    "lease_seconds": LEASE_SECONDS,
    "usage_seconds": 2,
    "tombstone_ttl_seconds": 7200,  # deleted streams are checked once more at the end, also of a long run
    "ended_ttl_seconds": 7200,
    "redis_start_seconds": 30,
    "redis_reply_seconds": 2,
    "redis_wait_seconds": 8,
    "reconnect_seconds_max": 0.3,
    "attempts_max": 6,
    "provider_backoff_seconds": 0.05,
    "first_token_seconds": 4,
    "between_tokens_seconds": 2,
    "worker_drain_seconds": 1,
    "ring_events": 32,
    "page_events": 32,
    "sweep_seconds": 1,
    "keepalive_seconds": 1,
    "connection_seconds": 15,
    "send_buffer_bytes": 4096,
    "dead_peer_seconds": 5,
    "retry_milliseconds": 100,
    "webhook_seconds": 2,
    "webhook_backoff_seconds": 0.5,
}
"""Settings with short times and small limits, so that each is reached many times."""


class ArchivedRow(NamedTuple):
    """What the archive says of a stream. `receipt` is JSON."""

    status: str
    generated: int
    delivered: int
    prompt: int | None
    completion: int | None
    receipt: str | None


ArchiveKind = Literal["sqlite", "postgresql"]
ARCHIVES: tuple[ArchiveKind, ...] = ("sqlite", "postgresql")
_COLUMNS = "id, status, generated_tokens, delivered_tokens, prompt_tokens, completion_tokens, receipt"
RedisKind = Literal["one", "cluster", "sentinel"]
KINDS: tuple[RedisKind, ...] = ("one", "cluster", "sentinel")


class Member:
    """One gateway or worker with its proxies, and whether it is meant to run."""

    def __init__(self, name: str, process: Process, to_redis: Proxy | None, other: Proxy) -> None:
        self.name = name
        self.process = process
        self.to_redis = to_redis
        self.other = other
        """The proxy between readers and a gateway, or between a worker and the provider."""
        self.busy = False
        """A fault is being done to it: no other one may be."""

    async def start(self) -> None:
        self.process.start()
        await wait_until(self._is_up, within_seconds=60, what=f"{self.name} is up")

    async def _is_up(self) -> bool:
        assert self.process.runs, f"{self.name} ended by itself\n{self.process.tail()}"
        if " is up: " not in self.process.logged():
            return False
        if self.process.module == "gateway":  # it answers, so it also handles SIGTERM
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", int(str(self.process.settings["port"])))
                writer.close()
                return True
            return False
        return True


class Fleet:
    """Redis, a provider, gateways and workers, with a proxy on every way between them."""

    def __init__(self, previous: Path | None = None, kind: RedisKind = "one", archive: ArchiveKind = "sqlite") -> None:
        """`previous`: a checkout of an earlier release, of which the first gateway is. Workers are upgraded before gateways."""
        self._previous = previous
        self.kind = kind
        self._directory = Path(tempfile.mkdtemp(prefix="midstream-stress-"))
        self._stack = AsyncExitStack()
        self._archive_file = self._directory / "archive.sqlite"
        """The archive's database (`has_archive`)."""
        self.postgres = PostgresServer() if archive == "postgresql" else None
        """The archive's database instead of the file, with a proxy before it."""
        self.to_postgres: Proxy | None = None
        self.receiver = WebhookReceiver()
        """Is told of each end, where there is an archive."""
        self.to_receiver: Proxy | None = None
        self.redis: Any
        if kind == "one":
            self.redis = RedisServer("redis" if binary_of("redis") else "valkey", tcp=True, durable=True)
        elif kind == "cluster":  # without durability: a node that is back takes its data from the others
            self.redis = RedisCluster(can_be_cut=True)
        else:  # with one replica a Sentinel might promote a node that has just restarted empty: no WAIT could help then
            self.redis = RedisWithSentinels(replicas=2)
        self._provider_port = free_port()
        arguments = ["--port", str(self._provider_port)]
        self.provider = Process("tests.support.openai_server", {}, self._directory / "provider.log", arguments)
        self.gateways: list[Member] = []
        self.workers: list[Member] = []

    @property
    def has_archive(self) -> bool:
        """Whether streams are archived, and told of. Not where a gateway is of an earlier release, which would enter no stream."""
        return self._previous is None

    @property
    def members(self) -> list[Member]:
        return [*self.gateways, *self.workers]

    @property
    def proxies(self) -> dict[str, list[Proxy]]:
        return {
            "reader-gateway": [one.other for one in self.gateways],
            **(
                {
                    "gateway-redis": [one.to_redis for one in self.gateways if one.to_redis is not None],
                    "worker-redis": [one.to_redis for one in self.workers if one.to_redis is not None],
                }
                if self.kind == "one"
                else {}
            ),
            "worker-provider": [one.other for one in self.workers],
            **({"archive": [self.to_postgres]} if self.to_postgres is not None else {}),
            **({"worker-receiver": [self.to_receiver]} if self.to_receiver is not None else {}),
        }

    async def __aenter__(self) -> Self:
        self.http = httpx2.AsyncClient(timeout=12.0, limits=httpx2.Limits(max_connections=None), trust_env=False)
        retry = Retry(ConstantBackoff(0.1), 100)  # Redis is killed under it, too
        self.commands: Any = None
        try:
            await asyncio.to_thread(self.redis.start)
            if self.postgres is not None:
                await asyncio.to_thread(self.postgres.start)
                self.to_postgres = await self._stack.enter_async_context(Proxy(self.postgres.port))
            if self.has_archive:
                await self._stack.enter_async_context(self.receiver)
                self.to_receiver = await self._stack.enter_async_context(Proxy(self.receiver.port))
            if self.kind == "one":
                self.commands = redis.asyncio.Redis.from_url(self.redis.url, protocol=2, client_name="stress", retry=retry, socket_timeout=3)  # fmt: skip
            else:
                self.commands = self.redis.client()
            self.provider.start()
            for index in range(_GATEWAYS):
                port = free_port()
                self.gateways.append(
                    await self._member("gateway", index, port, {"port": port}, buffer_bytes=_READER_BUFFER_BYTES)
                )
            for index in range(_WORKERS):
                self.workers.append(await self._member("producer", index, self._provider_port, {"provider": "openai"}))
            await asyncio.gather(*(one.start() for one in self.members))
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _member(
        self, module: str, index: int, other_port: int, settings: dict[str, object], *, buffer_bytes: int = 0
    ) -> Member:
        to_redis, url = None, self.redis.url_of("midstream-gateway" if module == "gateway" else "midstream-worker")
        if self.kind == "one":
            to_redis = await self._stack.enter_async_context(Proxy(self.redis.port))
            url = f"redis://127.0.0.1:{to_redis.port}/0"  # as the user who may do all
        other = await self._stack.enter_async_context(Proxy(other_port, buffer_bytes=buffer_bytes))
        settings = {**_SETTINGS, **settings, "redis_url": url}
        if self.kind != "one":
            settings["min_replicas"] = 1
        if self.to_receiver is not None:
            settings |= {
                "archive_url": f"sqlite:///{self._archive_file}",
                **self.receiver.settings(),
                "webhook_url": f"http://127.0.0.1:{self.to_receiver.port}/ended",
            }
            if self.postgres is not None and self.to_postgres is not None:
                settings |= {"archive_url": self.postgres.url_at(self.to_postgres.port), "archive_seconds": 2}
        if module == "producer":
            settings["openai_base_url"] = f"http://127.0.0.1:{other.port}/v1"
        log = self._directory / f"{module}-{index}.log"
        checkout = self._previous if module == "gateway" and index == 0 else None
        return Member(f"{module}-{index}", Process(module, settings, log, checkout=checkout), to_redis, other)

    def reader_ports(self) -> list[int]:
        """The addresses of the gateways for readers."""
        return [one.other.port for one in self.gateways]

    def complaint(self) -> str | None:
        """Returns forbidden log lines since the last call."""
        for process in (*(one.process for one in self.members), self.provider):
            try:
                process.assert_no_complaints()
            except AssertionError as error:
                return str(error)
        return None

    def logged(self) -> str:
        """Returns the end of each process's log, without receipts."""
        parts = []
        for log in sorted(self._directory.glob("*.log")):
            lines = [line for line in log.read_text().splitlines() if '"receipt"' not in line]
            parts += [f"--- {log.stem}", *lines[-_SHOWN_LINES:]]
        return "\n".join(parts)

    async def log_of(self, stream_id: str) -> list[LogEntry]:
        while True:
            try:
                return await read_log(self.commands, stream_id)
            except (redis.exceptions.RedisError, OSError, RuntimeError):  # the last: uvloop's, for a closed connection
                await asyncio.sleep(0.1)  # it is killed or frozen now; the run limits the time

    async def execute_in_redis(self, *command: str | int | bytes) -> None:
        await self.commands.execute_command(*command)

    async def metric(self, name: str) -> list[float]:
        """Returns a gauge or counter of each gateway, read directly and not through its proxy."""
        values = []
        for one in self.gateways:
            text = (await self.http.get(f"http://127.0.0.1:{one.process.settings['port']}/metrics")).text
            values.append(sum(map(float, re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))))
        return values

    async def archived(self, stream_ids: set[str]) -> dict[str, ArchivedRow] | None:
        """Returns the archive's rows by id, when it has all of these streams or the time is up; None if there is no archive."""
        if not self.has_archive:
            return None
        deadline = time.monotonic() + _ARCHIVE_SECONDS
        while True:
            await self.have_all_looked_at()
            await asyncio.sleep(1.0)
            rows = await self.rows()
            if stream_ids <= rows.keys() or time.monotonic() > deadline:
                return rows

    async def have_all_looked_at(self) -> None:
        """Has the workers look at once at all streams that are to be archived, or told of."""
        await self._have_looked_at(UNKEPT)
        await self._have_looked_at(WEBHOOKS_DUE)

    async def have_all_counted_anew(self) -> None:
        """Has the gateways count anew what was read after its end, where the hint to do so was lost."""
        await self._have_looked_at(ACCOUNT_LOOKS)

    async def _have_looked_at(self, due_list: bytes) -> None:
        stream_ids = await self.commands.zrange(due_list, 0, -1)
        for start in range(0, len(stream_ids), 1000):
            await self.commands.zadd(due_list, dict.fromkeys(stream_ids[start : start + 1000], 0), xx=True)

    async def counted(self) -> dict[str, int]:
        """Returns how many tokens count as delivered for each stream whose entry in the accounts is not forgotten."""
        stored = await self.commands.hgetall(ACCOUNT_ENTRIES)
        abouts = {stream_id.decode(): json.loads(about) for stream_id, about in stored.items()}
        return {stream_id: (about.get("counts") or {}).get("delivered", 0) for stream_id, about in abouts.items()}

    async def rows(self) -> dict[str, ArchivedRow]:
        """Returns the archive's rows by id. Read without any code of the archive."""
        query = f"SELECT {_COLUMNS} FROM streams"  # no value of it comes from outside
        if self.postgres is None:
            return await asyncio.to_thread(self._rows_of_file, query)
        connection = await asyncpg.connect(self.postgres.url)
        try:
            return {row[0]: ArchivedRow(*row[1:]) for row in map(tuple, await connection.fetch(query))}
        finally:
            await connection.close()

    def _rows_of_file(self, query: str) -> dict[str, ArchivedRow]:
        with closing(sqlite3.connect(self._archive_file, timeout=10)) as database:
            return {row[0]: ArchivedRow(*row[1:]) for row in database.execute(query)}

    async def usage(self) -> list[dict[str, Any]]:
        """Returns the rows of `GET /v1/usage`."""
        port = self.gateways[0].process.settings["port"]
        rows: list[dict[str, Any]] = (await self.http.get(f"http://127.0.0.1:{port}/v1/usage")).json()["usage"]
        return rows

    # --- what is left over

    async def left_over(self, known: set[str]) -> list[str]:
        """Returns what should be gone some time after everything has ended, but is not."""
        looks: dict[str, tuple[Any, Any]] = {
            "readers of each gateway": (lambda: self.metric("midstream_readers"), [0.0] * _GATEWAYS),
            "queue entries": (self._queued, 0),
            "pending queue entries": (self._pending, 0),
            "streams that no client created": (lambda: self._unknown(known), []),
            "keys without an expiry": (self._immortal, []),
        }
        if self.kind == "one":
            looks["connections to Redis"] = (self._connections, self._expected_connections())
        found = []
        for what, (look, wanted) in looks.items():
            got: Any = None

            async def settled(look: Any = look, wanted: Any = wanted) -> bool:
                nonlocal got
                got = await look()
                return bool(got == wanted)

            try:
                await wait_until(settled, within_seconds=_LEFT_OVER_SECONDS, what=what)
            except AssertionError:
                found.append(f"{what}: {got} and not {wanted}")
        return found

    def _expected_connections(self) -> dict[str, int]:
        return {
            "midstream-gateway": _GATEWAYS,
            "midstream-subscriber": _GATEWAYS,
            "midstream-readiness": _GATEWAYS - (self._previous is not None),  # earlier releases had none
            "midstream-worker": _WORKERS,
            "midstream-claims": _WORKERS,
        }

    async def _connections(self) -> dict[str, int]:
        """Returns how many connections Redis has of each name, without this process's own."""
        counts: dict[str, int] = {}
        for client in await self.commands.client_list():
            if client["name"] != "stress":
                counts[client["name"]] = counts.get(client["name"], 0) + 1
        return counts

    async def _pending(self) -> int:
        return sum([int((await self.commands.xpending(key, GROUP))["pending"]) for key in self._lanes])

    async def _queued(self) -> int:
        return sum([await self.commands.xlen(key) for key in self._lanes])

    @property
    def _lanes(self) -> tuple[bytes, ...]:
        return lane_keys(LANES_OF_CLUSTER if self.kind == "cluster" else 1)

    async def _unknown(self, known: set[str]) -> list[str]:
        return [key async for key in self._keys("midstream:{*}:log") if key.split("{")[1].split("}")[0] not in known]

    async def _immortal(self) -> list[str]:
        return [key async for key in self._keys("*") if await self.commands.ttl(key) == -1]

    async def _keys(self, pattern: str) -> Any:
        async for key in self.commands.scan_iter(match=pattern, count=1000):
            yield key.decode()

    async def stop(self) -> list[str]:
        """Stops every process; returns those that do not end properly."""
        found = []
        for one in self.members:
            one.process.send(signal.SIGTERM)
        for one in self.members:
            try:
                code = await one.process.exit_code(within_seconds=_END_SECONDS)
            except AssertionError as error:
                found.append(str(error))
            else:
                if code:
                    found.append(f"{one.name} ended with {code}\n{one.process.tail()}")
        return found

    async def _close(self) -> None:
        await self.http.aclose()
        if self.commands is not None:
            await self.commands.aclose()
        for process in (*(one.process for one in self.members), self.provider):
            if process.runs:
                process.kill()
        self.redis.close()
        if self.postgres is not None:
            self.postgres.close()
        await self._stack.aclose()
        shutil.rmtree(self._directory, ignore_errors=True)


async def read_log(commands: redis.asyncio.Redis, stream_id: str) -> list[LogEntry]:
    """Returns the whole log of a stream from Redis."""
    return cast(list[LogEntry], await commands.xrange(log_key(stream_id)))
