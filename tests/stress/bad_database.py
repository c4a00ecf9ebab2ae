"""A bad database under load: `python -m tests.stress.bad_database --archive postgresql --trouble away --seconds 600`. Exit code 1: broken.

A real gateway and worker answer all the time. Meanwhile the archive's disk is full, its database is killed (SQLite: another program
holds the file's lock), or each of its answers comes two seconds late. Every answer must come whole, memory must stay bounded, `/readyz` and the metrics must say what is wrong;
afterwards every stream must be archived once, with all its tokens. A full disk needs root, to mount a small one.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, Literal

import asyncpg
import uvloop

from shared.keys import UNKEPT
from tests.stress.proxy import Proxy
from tests.support.memory import resident_megabytes
from tests.support.postgres import PostgresServer
from tests.support.redis_server import free_port
from tests.support.system import System
from tests.support.waiting import wait_until

Archive = Literal["sqlite", "postgresql"]
Trouble = Literal["full", "slow", "away"]
TROUBLES: dict[Archive, tuple[Trouble, ...]] = {"sqlite": ("full", "away"), "postgresql": ("full", "slow", "away")}
"""A file is not behind a network: it is never slow by seconds."""
TOKENS = 40
_SLOW_SECONDS = 2.0 / 2
"""In each direction."""
_SMALL_MEGABYTES = 48
_BEFORE_AND_AFTER_SECONDS = 1.0
_SAMPLE_SECONDS = 1.0
_MORE_MEGABYTES_MAX = 64.0
"""By so much each process may grow: what a worker holds for the database is bounded by 32 MB."""
_ARCHIVED_SECONDS_MAX = 180.0
_WORDS: dict[tuple[Archive, Trouble], str] = {
    ("sqlite", "full"): "read-only",
    ("sqlite", "away"): "read-only",
    ("postgresql", "full"): "read-only",
    ("postgresql", "away"): "away",
}
"""What `/readyz` must say under each trouble. A slow database may be in time."""


class SmallDisk:
    """A small file system in memory."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="midstream-small-disk-"))

    @classmethod
    def is_possible(cls) -> bool:
        """Whether this user may mount one."""
        try:
            with closing(cls()) as disk:
                disk.mount()
        except (OSError, subprocess.CalledProcessError):
            return False
        return True

    def mount(self) -> None:
        self._run("mount", "-t", "tmpfs", "-o", f"size={_SMALL_MEGABYTES}m,mode=0777", "midstream", str(self.folder))

    def fill(self) -> None:
        """Leaves no room at all."""
        with suppress(OSError), open(self.folder / "filling", "ab", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)

    def make_room(self) -> None:
        (self.folder / "filling").unlink()

    def close(self) -> None:
        subprocess.run(["umount", str(self.folder)], capture_output=True, check=False)
        self.folder.rmdir()

    @staticmethod
    def _run(*command: str) -> None:
        subprocess.run(command, capture_output=True, check=True)


class BadDatabase:
    """One run. `problems` has what did not hold."""

    def __init__(self, archive: Archive, trouble: Trouble, seconds: float, *, per_second: float = 5.0) -> None:
        self._archive = archive
        self._trouble = trouble
        self._seconds = seconds
        self._per_second = per_second
        self._readers: set[asyncio.Task[None]] = set()
        self._postgres: PostgresServer | None = None
        self._proxy: Proxy | None = None
        self._disk: SmallDisk | None = None
        self._lock: sqlite3.Connection | None = None
        self._url = ""
        self.problems: list[str] = []
        self.streams: list[str] = []
        self.longest_seconds = 0.0
        """From the request of an answer to its end, at most."""
        self.grown_megabytes: dict[str, float] = {}
        """By how much each process has grown at most."""
        self.ready: set[str] = set()
        """What `/readyz` said of the archive during the trouble."""
        self.metrics: list[tuple[float, float]] = []
        """The worker's `midstream_archive_up` and `midstream_unarchived_streams`, second by second."""
        self.archived_after_seconds = 0.0

    async def run(self) -> None:
        """Runs the load for a moment, through the trouble, and for a moment after it; then compares."""
        async with self._database():
            settings = {"archive_url": self._url, "archive_seconds": 6, "ended_ttl_seconds": 3600}
            metrics = {"metrics_port": free_port()}
            async with System(settings=settings, worker_settings=metrics) as system:
                self._system = system
                self._metrics_url = await self._shown_at()
                await self._load(_BEFORE_AND_AFTER_SECONDS)
                await self._until_archived("before the trouble")
                sizes = self._megabytes()
                watching = asyncio.create_task(self._watch(sizes))
                await self._begin()
                await self._load(self._seconds)
                await self._check_words()
                watching.cancel()
                (stopped,) = await asyncio.gather(watching, return_exceptions=True)
                if not isinstance(stopped, asyncio.CancelledError):
                    self.problems.append(f"watching ended early: {stopped!r}")
                await self._end()
                await self._load(_BEFORE_AND_AFTER_SECONDS)
                ended_at = time.monotonic()
                await self._until_archived("after the trouble")
                self.archived_after_seconds = time.monotonic() - ended_at

    # --- the load

    async def _load(self, seconds: float) -> None:
        """Creates answers at an even pace, and reads each of them."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            task = asyncio.create_task(self._answer())
            self._readers.add(task)
            task.add_done_callback(self._readers.discard)
            await asyncio.sleep(1 / self._per_second)
        await asyncio.gather(*self._readers)

    async def _answer(self) -> None:
        began_at = time.monotonic()
        stream_id = await self._system.create(simulate={"tokens": TOKENS, "tokens_per_second": 100})
        self.streams.append(stream_id)
        reader = await self._system.follow(stream_id).until_end()
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - began_at)
        if len(reader.tokens) != TOKENS or not reader.named("done"):
            self.problems.append(f"stream {stream_id}: a reader got {len(reader.tokens)} tokens")

    # --- what is watched

    def _megabytes(self) -> dict[str, float]:
        processes = {"gateway": self._system.gateways[0], "worker": self._system.workers[0]}
        return {name: resident_megabytes(process.pid) for name, process in processes.items()}

    async def _watch(self, sizes: dict[str, float]) -> None:
        while True:
            for name, size in self._megabytes().items():
                self.grown_megabytes[name] = max(self.grown_megabytes.get(name, 0.0), size - sizes[name])
            self.ready.add(await self._says())
            self.metrics.append(
                (await self._metric("midstream_archive_up"), await self._metric("midstream_unarchived_streams"))
            )
            await asyncio.sleep(_SAMPLE_SECONDS)

    async def _says(self) -> str:
        answer = await self._system.http.get(f"{self._system.gateway_url()}/readyz")
        if answer.status_code != 200:
            self.problems.append(f"/readyz answered {answer.status_code}")
        return str(answer.json().get("archive"))

    async def _shown_at(self) -> str:
        """Returns where the worker shows its metrics: another port than it was told if that is taken."""
        found: re.Match[str] | None = None

        def is_logged() -> bool:
            nonlocal found
            found = re.search(r"metrics: (http://[0-9.:]+/metrics)", self._system.workers[0].logged())
            return found is not None

        await wait_until(is_logged, what="the worker has logged where its metrics are")
        assert found is not None
        return found[1]

    async def _metric(self, name: str) -> float:
        """Returns what the worker says."""
        text = (await self._system.http.get(self._metrics_url)).text
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))

    async def _check_words(self) -> None:
        for name, grown in self.grown_megabytes.items():
            if grown > _MORE_MEGABYTES_MAX:
                self.problems.append(f"{name} has grown by {grown:.0f} MB")
        word = _WORDS.get((self._archive, self._trouble))
        if word is None:
            return

        async def is_said() -> bool:
            return await self._says() == word and await self._metric("midstream_archive_up") == 0

        try:
            await wait_until(is_said, within_seconds=30, what="/readyz and the metrics name the trouble")
        except AssertionError as error:
            self.problems.append(f"{error}: {self.ready}, {self.metrics[-5:]}")

    async def _until_archived(self, when: str) -> None:
        """Waits until every stream is archived, once and whole."""
        wanted = dict.fromkeys(self.streams, ("completed", TOKENS, TOKENS))
        found: dict[str, tuple[str, int, int]] = {}

        async def all_are_there() -> bool:
            await self._look_now()
            found.clear()
            found.update(await self._rows())
            await asyncio.sleep(0.5)
            return found == wanted

        try:
            await wait_until(all_are_there, within_seconds=_ARCHIVED_SECONDS_MAX, what="every stream is archived")
        except AssertionError:
            missing = [stream_id for stream_id in wanted if found.get(stream_id) != wanted[stream_id]]
            shown = [(stream_id, found.get(stream_id)) for stream_id in missing[:3]]
            self.problems.append(
                f"{when}: of {len(wanted)} streams {len(missing)} are not archived as they ended: {shown}"
            )

    async def _look_now(self) -> None:
        """Has what waits in Redis looked at now, and not within a minute."""
        waiting = await self._system.commands.zrange(UNKEPT, 0, -1)
        if waiting:
            await self._system.commands.zadd(UNKEPT, dict.fromkeys(waiting, 0), xx=True)

    async def _rows(self) -> dict[str, tuple[str, int, int]]:
        """Returns what the archive has, read without any code of it."""
        query = "SELECT id, status, generated_tokens, delivered_tokens FROM streams"
        if self._postgres is None:
            with closing(sqlite3.connect(self._url.removeprefix("sqlite:///"), timeout=10)) as database:
                return {row[0]: tuple(row[1:]) for row in database.execute(query)}
        connection = await asyncpg.connect(self._postgres.url)
        try:
            return {row[0]: (row[1], row[2], row[3]) for row in await connection.fetch(query)}
        finally:
            await connection.close()

    # --- the trouble

    @asynccontextmanager
    async def _database(self) -> AsyncIterator[None]:
        with tempfile.TemporaryDirectory(prefix="midstream-bad-database-") as folder:
            if self._trouble == "full":
                self._disk = SmallDisk()
                self._disk.mount()
            try:
                if self._archive == "sqlite":
                    place = self._disk.folder if self._disk is not None else folder
                    self._url = f"sqlite:///{place}/archive.sqlite"
                    yield
                    return
                with PostgresServer() as self._postgres:
                    await self._prepare(self._postgres)
                    async with Proxy(self._postgres.port) as self._proxy:
                        self._url = self._postgres.url_at(self._proxy.port)
                        yield
            finally:
                if self._disk is not None:
                    self._disk.close()

    async def _prepare(self, postgres: PostgresServer) -> None:
        """Puts the table on the small disk: PostgreSQL's own log has a disk of its own, as it should."""
        if self._disk is None:
            return
        place = self._disk.folder / "tables"
        place.mkdir()
        postgres.own(place)
        connection: Any = await asyncpg.connect(postgres.url)
        await connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
        await connection.execute("ALTER DATABASE postgres SET default_tablespace = small")
        await connection.close()

    async def _begin(self) -> None:
        if self._trouble == "slow" and self._proxy is not None:
            self._proxy.delay_seconds = _SLOW_SECONDS
        elif self._disk is not None:
            self._disk.fill()
        elif self._postgres is not None:
            await asyncio.to_thread(self._postgres.kill)
        else:
            self._lock = sqlite3.connect(self._url.removeprefix("sqlite:///"), isolation_level=None, timeout=10)
            self._lock.execute("BEGIN IMMEDIATE")

    async def _end(self) -> None:
        if self._trouble == "slow" and self._proxy is not None:
            self._proxy.calm()
        elif self._disk is not None:
            self._disk.make_room()
        elif self._postgres is not None:
            await asyncio.to_thread(self._postgres.start)
        elif self._lock is not None:
            self._lock.close()

    def summary(self) -> str:
        """Returns the figures of the run."""
        unarchived = max((waiting for _, waiting in self.metrics), default=0.0)
        grown = ", ".join(f"{name} {megabytes:+.0f} MB" for name, megabytes in self.grown_megabytes.items())
        return (
            f"{self._archive}, {self._trouble} for {self._seconds:g} s: {len(self.streams)} streams, none lost or doubled: "
            f"{not self.problems}; longest answer {self.longest_seconds:.2f} s; memory {grown}; /readyz {sorted(self.ready)}; "
            f"up to {unarchived:.0f} waited in Redis, all archived {self.archived_after_seconds:.1f} s after the last"
        )


async def _run(archive: Archive, trouble: Trouble, seconds: float, per_second: float) -> bool:
    run = BadDatabase(archive, trouble, seconds, per_second=per_second)
    await run.run()
    print(run.summary(), *run.problems, sep="\n  ", flush=True)
    return not run.problems


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress.bad_database", description="A bad archive under load."
    )
    parser.add_argument("--archive", choices=tuple(TROUBLES), default="postgresql")
    parser.add_argument("--trouble", choices=("full", "slow", "away"), default="away")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long it lasts (default 600)")
    parser.add_argument("--per-second", type=float, default=5.0, help="answers that begin each second (default 5)")
    arguments = parser.parse_args()
    if arguments.trouble not in TROUBLES[arguments.archive]:
        parser.error("a file is never slow")
    holds = uvloop.run(_run(arguments.archive, arguments.trouble, arguments.seconds, arguments.per_second))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
