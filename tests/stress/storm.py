"""`python -m tests.stress.storm`: all readers lose their gateway at once (SIGKILL), and come back to one other, from the middle.

With `--redis cluster` a master of Redis may be killed in the same moment (`--failover`). Prints what the readers and the gateway
saw. Exit code 1 if a token was lost, doubled or out of order, if a reader did not reach the end, if readers of one stream did not
share the reads of its log, or if the gateway took more memory than it may.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import uvloop

from tests.support.memory import resident_megabytes
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import RedisServer, binary_of
from tests.support.system import System
from tests.support.waiting import wait_until

_CREATES_AT_ONCE = 32
_PAUSE_SECONDS_MAX = 0.2
"""A reader whose connection is refused or cut tries again after up to so long."""
_BEFORE_SECONDS = 2.0
_LOOK_SECONDS = 0.05
_END_SECONDS_MAX = 120.0
READS_PER_STREAM_MAX = 3.0
"""When all readers come back: the first read of the log, one more if something is pushed meanwhile, and a check of those that are silent."""
KILOBYTES_PER_READER_MAX = 40.0
"""The growth of the other gateway: a reader takes 10 KB at most, and its request and what is encoded for it come on top for a moment."""


class StormReader(asyncio.Protocol):
    """One reader over any number of connections. Only whole lines are looked at: a chunk of HTTP holds whole events."""

    def __init__(self, storm: Storm, stream_id: str) -> None:
        self._storm = storm
        self.stream_id = stream_id
        self.ids: list[bytes] = []
        self.data: list[bytes] = []
        self.ended_as = b""
        self.connections = 0
        self.came_back_after: float | None = None
        """Seconds from the gateway's death to the first new event."""
        self.longest_pause = 0.0
        self._heard_at = 0.0
        self._event = self._value = b""
        self._rest = b""
        self._last_id = b""
        self._is_head = True
        self._done: asyncio.Future[None] = storm.loop.create_future()

    async def read(self) -> None:
        """Returns when the stream has ended."""
        while not self.ended_as:
            self._done = self._storm.loop.create_future()
            self._rest, self._is_head, self._event = b"", True, b""
            self.connections += 1
            try:
                transport, _ = await self._storm.loop.create_connection(lambda: self, "127.0.0.1", self._storm.port)
            except OSError:
                await asyncio.sleep(self._storm.pause())
                continue
            after = b"Last-Event-ID: %b\r\n" % self._last_id if self._last_id else b""
            path = f"/v1/streams/{self.stream_id}/events".encode()
            transport.write(b"GET %b HTTP/1.1\r\nHost: here\r\n%b\r\n" % (path, after))
            await self._done
            transport.abort()
            if not self.ended_as:
                await asyncio.sleep(self._storm.pause())

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def data_received(self, received: bytes) -> None:
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            if self._is_head:
                if line.startswith(b"HTTP/") and b" 200 " not in line:
                    self._storm.refused += 1
                    self.connection_lost(None)
                    return
                self._is_head = line != b"\r"
            elif line.startswith(b"id: "):
                self._take(line[4:])
            elif line.startswith(b"event: "):
                self._event = line[7:]
            elif line.startswith(b"data: "):
                self._value = line[6:]
            elif not line:
                self._event = b""

    def _take(self, event_id: bytes) -> None:
        """Takes an event; its id is its last line."""
        now = self._storm.loop.time()
        if self._heard_at:
            self.longest_pause = max(self.longest_pause, now - self._heard_at)
        self._heard_at = now
        if self._storm.killed_at and self.came_back_after is None and self.connections > 1:
            self.came_back_after = now - self._storm.killed_at
        if self._event in (b"", b"message"):
            self.ids.append(event_id)
            self.data.append(self._value)
        elif self._event not in (b"started", b"live"):
            self.ended_as = self._event
            self.connection_lost(None)
        self._last_id = event_id


@dataclass
class Figures:
    """What one storm has shown. Seconds count from the gateway's death; MB are resident memory."""

    streams: int
    readers: int
    came_back: list[float] = field(default_factory=list)
    longest_pauses: list[float] = field(default_factory=list)
    refused: int = 0
    connections: int = 0
    log_reads: dict[str, int] = field(default_factory=dict)
    redis_reads: int | None = None
    """None where a master was killed, and its count with it."""
    megabytes_before: float = 0.0
    megabytes_most: float = 0.0
    megabytes_after: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        back, pauses = _quantiles(self.came_back), _quantiles(self.longest_pauses)
        growth = 1024 * (self.megabytes_most - self.megabytes_before) / max(1, self.readers)
        return "\n".join(
            f"  {name:<52} {value}"
            for name, value in (
                ("streams, readers", f"{self.streams}, {self.readers}"),
                ("back with the next token, s: p50, p99, longest", back),
                ("longest pause between two tokens, s: p50, p99, longest", pauses),
                ("connections, answers other than 200", f"{self.connections}, {self.refused}"),
                ("reads of logs until all were back, by reason", self.log_reads),
                ("XRANGE and XREVRANGE that Redis has executed", self.redis_reads),
                ("the gateway's memory before, at most, after, MB", f"{self.megabytes_before:.0f}, {self.megabytes_most:.0f}, {self.megabytes_after:.0f}"),
                ("its growth for each reader, KB", f"{growth:.1f}"),
                ("violations", len(self.violations)),
            )
        )  # fmt: skip


def _quantiles(values: list[float]) -> str:
    ordered = sorted(values) or [0.0]
    return ", ".join(f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.2f}" for share in (0.5, 0.99, 1.0))


class Storm:
    """Streams with readers at one gateway, which is killed; then all are at the other one."""

    def __init__(self, system: System, *, streams: int, readers_of_each: int, tokens: int, rate: float) -> None:
        self._system = system
        self._streams, self._readers_of_each = streams, readers_of_each
        self._tokens, self._rate = tokens, rate
        self.loop = asyncio.get_running_loop()
        self.port = system.gateway_port(0)
        self.killed_at = 0.0
        self.refused = 0
        self._paused = 0
        self._readers: list[StormReader] = []

    def pause(self) -> float:
        """Returns the pause before the next try of a reader, spread evenly over the readers."""
        self._paused += 1
        return _PAUSE_SECONDS_MAX * (self._paused % 64) / 64

    async def run(self, kill_master: bool = False) -> Figures:
        system, figures = self._system, Figures(self._streams, self._streams * self._readers_of_each)
        tasks = await self._begin()
        await asyncio.sleep(_BEFORE_SECONDS)
        other = system.gateways[1].pid
        figures.megabytes_before = figures.megabytes_most = resident_megabytes(other)
        reads_before, redis_before = await self._log_reads(), await self._redis_reads()
        for reader in self._readers:
            reader.longest_pause = 0.0
        self.port = system.gateway_port(1)
        self.killed_at = self.loop.time()
        system.gateways[0].kill()
        if kill_master:
            system.redis.primaries()[0].kill()
        deadline = self.killed_at + _END_SECONDS_MAX
        while any(reader.came_back_after is None for reader in self._readers) and self.loop.time() < deadline:
            figures.megabytes_most = max(figures.megabytes_most, resident_megabytes(other))
            await asyncio.sleep(_LOOK_SECONDS)
        reads = await self._log_reads()
        figures.log_reads = {
            reason: int(reads[reason] - reads_before[reason])
            for reason in reads
            if reads[reason] - reads_before[reason]
        }
        figures.redis_reads = None if kill_master else await self._redis_reads() - redis_before
        while not all(task.done() for task in tasks) and self.loop.time() < deadline:
            figures.megabytes_most = max(figures.megabytes_most, resident_megabytes(other))
            await asyncio.sleep(_LOOK_SECONDS)
        figures.megabytes_after = resident_megabytes(other)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        figures.came_back = [reader.came_back_after for reader in self._readers if reader.came_back_after is not None]
        figures.longest_pauses = [reader.longest_pause for reader in self._readers]
        figures.refused, figures.connections = self.refused, sum(reader.connections for reader in self._readers)
        figures.violations = self._violations(figures, kill_master)
        return figures

    async def _begin(self) -> list[asyncio.Task[None]]:
        limit = asyncio.Semaphore(_CREATES_AT_ONCE)

        async def create(number: int) -> str:
            async with limit:
                return await self._system.create(
                    f"question {number}", simulate={"tokens": self._tokens, "tokens_per_second": self._rate}
                )

        tasks = []
        for created in asyncio.as_completed([create(number) for number in range(self._streams)]):
            stream_id = await created
            for _ in range(self._readers_of_each):
                reader = StormReader(self, stream_id)
                self._readers.append(reader)
                tasks.append(self.loop.create_task(reader.read()))
        await wait_until(lambda: all(reader.ids for reader in self._readers), within_seconds=60, what="all tokens flow")
        return tasks

    async def _log_reads(self) -> dict[str, float]:
        """Returns the other gateway's reads of logs by their reasons."""
        url = f"{self._system.gateway_url(1)}/metrics"
        async with httpx2.AsyncClient(timeout=30.0, trust_env=False) as http:
            lines = (await http.get(url)).text.splitlines()
        name = 'midstream_log_reads_total{reason="'
        return {
            line[len(name) :].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)
        }

    async def _redis_reads(self) -> int:
        calls = 0
        for client in self._system.redis.clients():
            about: Any = await client.info("commandstats")
            await client.aclose()
            calls += sum(int(about.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("xrange", "xrevrange"))
        return calls

    def _violations(self, figures: Figures, kill_master: bool) -> list[str]:
        wanted = [b"1-%d" % offset for offset in range(1, self._tokens + 1)]
        found, answers = [], dict[str, list[bytes]]()
        for reader in self._readers:
            if reader.ids != wanted:
                missing, doubled = set(wanted) - set(reader.ids), len(reader.ids) - len(set(reader.ids))
                what = f"{len(missing)} lost, {doubled} doubled" if missing or doubled else "out of order"
                found.append(f"{reader.stream_id}: {what}")
            elif reader.ended_as != b"done":
                found.append(f"{reader.stream_id}: it ended as {reader.ended_as!r}")
            elif reader.data != answers.setdefault(reader.stream_id, reader.data):
                found.append(f"{reader.stream_id}: its readers differ")
        if not kill_master and sum(figures.log_reads.values()) > READS_PER_STREAM_MAX * figures.streams:
            found.append(f"the reads of logs are not shared: {figures.log_reads}")
        most_kilobytes = KILOBYTES_PER_READER_MAX * figures.readers + 8192
        if 1024 * (figures.megabytes_most - figures.megabytes_before) > most_kilobytes:
            found.append(f"the gateway grew from {figures.megabytes_before:.0f} to {figures.megabytes_most:.0f} MB")
        return found


async def storm(
    *, streams: int, readers_of_each: int, tokens: int, rate: float, cluster: bool = False, kill_master: bool = False
) -> Figures:
    """Runs one storm with processes of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    redis: Any = RedisCluster() if cluster else RedisServer("redis" if binary_of("redis") else "valkey")
    settings: dict[str, object] = {
        "worker_concurrency": 2 * streams,
        "redis_reply_seconds": 2,
        "redis_start_seconds": 15,
    }
    try:
        async with System(gateways=2, workers=1, redis=redis, settings=settings) as system:
            runs = Storm(system, streams=streams, readers_of_each=readers_of_each, tokens=tokens, rate=rate)
            return await runs.run(kill_master)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.storm", description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--readers", type=int, default=5, help="of each stream (default 5)")
    parser.add_argument("--tokens", type=int, default=40, help="of each stream (default 40)")
    parser.add_argument("--rate", type=float, default=1.0, help="tokens per second of each stream (default 1)")
    parser.add_argument("--redis", choices=("one", "cluster"), default="one")
    parser.add_argument(
        "--failover", action="store_true", help="a master is killed in the same moment (--redis cluster)"
    )
    options = parser.parse_args(arguments)
    if options.failover and options.redis != "cluster":
        parser.error("--failover needs --redis cluster")
    figures = uvloop.run(
        storm(
            streams=options.streams,
            readers_of_each=options.readers,
            tokens=options.tokens,
            rate=options.rate,
            cluster=options.redis == "cluster",
            kill_master=options.failover,
        )
    )
    print(figures)
    print("\n".join(figures.violations[:20]))
    return 1 if figures.violations else 0


if __name__ == "__main__":
    sys.exit(main())
