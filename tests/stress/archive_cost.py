"""Measures what the archive costs a worker: `python -m tests.stress.archive_cost`. Run it on an idle machine.

One worker answers a hundred small requests each second, without an archive, with SQLite, and with a real PostgreSQL. The difference of
its CPU time is the archive's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from shared.archive.store import Archive
from shared.archive.wanted import Wanted
from shared.settings import Settings
from tests.support.postgres import PostgresServer
from tests.support.system import System
from tests.support.waiting import wait_until

_TICKS = os.sysconf("SC_CLK_TCK")
_WARM_SECONDS = 4.0


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def _database(kind: str) -> Iterator[str]:
    if kind == "postgresql":
        with PostgresServer() as server:
            yield server.url
    elif kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/archive.sqlite"
    else:
        yield ""


async def share_of_a_core(kind: str, seconds: float, per_second: float, tokens: int) -> tuple[float, int]:
    """Returns the CPU time of a worker as a share of one core, and how many streams it has answered meanwhile."""
    with _database(kind) as url:
        async with System(settings={"archive_url": url} if url else {}) as system:
            pid = system.workers[0].pid

            async def load(seconds: float) -> int:
                requests, began_at, due = [], time.monotonic(), 0.0
                while due < seconds:
                    create = system.create(
                        simulate={"tokens": tokens, "tokens_per_second": 0}, midstream={"on_disconnect": "continue"}
                    )
                    requests.append(asyncio.create_task(create))
                    due += 1 / per_second
                    await asyncio.sleep(began_at + due - time.monotonic())
                await asyncio.gather(*requests)
                return len(requests)

            warm = await load(_WARM_SECONDS)
            began, began_at = _cpu_seconds(pid), time.monotonic()
            count = await load(seconds)
            share = (_cpu_seconds(pid) - began) / (time.monotonic() - began_at)
            if url:
                await _until_archived(url, warm + count)
            return share, count


async def _until_archived(url: str, count: int) -> None:
    """Waits until so many streams are archived: else it was not the archive that was measured."""
    archive = Archive(Settings(archive_url=url))

    async def are_archived() -> bool:
        return len(await archive.find(Wanted(), 2 * count)) == count

    await wait_until(are_archived, within_seconds=30, what=f"{count} streams are archived")
    await archive.close()


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.archive_cost")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--per-second", type=float, default=100.0)
    parser.add_argument("--tokens", type=int, default=50)
    arguments = parser.parse_args()
    without = 0.0
    for kind in ("none", "sqlite", "postgresql"):
        share, count = await share_of_a_core(kind, arguments.seconds, arguments.per_second, arguments.tokens)
        without = without or share
        print(f"{kind:10}  {count} streams, {share:6.1%} of a core, the archive {share - without:6.1%}", flush=True)


if __name__ == "__main__":
    uvloop.run(main())
