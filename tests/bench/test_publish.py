"""The publisher's entries equal those of a worker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis.asyncio

from bench.processes.control import Gone, Helper
from bench.processes.parts import Cores, Parts
from bench.workloads import streams
from shared.event_log import EventLog
from shared.ids import EventId
from shared.lifecycle import fold
from tests.support.ordinary_commands import OrdinaryCommands


@pytest.mark.parametrize("tokens_per_entry", [1, 4])
async def test_the_logs_are_well_formed_and_gone_afterwards(tokens_per_entry: int) -> None:
    with Parts(Cores()) as parts:
        with streams.begun(parts.redis, 5) as names:
            plan = {"redis": parts.redis_url, "streams": names, "tokens_per_entry": tokens_per_entry}
            with parts.helper("bench.processes.publish", {**plan, "padding": 3, "held": streams.HELD}) as publisher:
                for rate, rounds in ((0, 3), (2000, 2)):
                    publisher.tell({"op": "run", "rate": rate, "seconds": 0, "rounds": rounds})
                    publisher.hear(within_seconds=10)
                    answer = publisher.hear(within_seconds=10)
            assert answer["last"] == 5 * tokens_per_entry
            client = redis.asyncio.Redis.from_url(str(parts.redis_url), protocol=2)
            log = EventLog(OrdinaryCommands(client), log_ttl_seconds=60, ended_ttl_seconds=60, tombstone_ttl_seconds=60)
            for number, name in enumerate(names):
                entries = await log.read_all(name)
                history = fold(entries)
                assert history.state(name)["status"] == "running"
                assert entries[-1].id == EventId(1, 5 * tokens_per_entry)
                assert len(history.items) == 5 * tokens_per_entry
                found = re.findall(r"~(\d{5}) (\d+) \d+~xxx", history.state(name)["text"])
                assert found == [(f"{number:05}", str(offset)) for offset in range(1, 5 * tokens_per_entry + 1)]
            await client.aclose()
        assert parts.redis.dbsize() == 0


def test_a_refused_append_is_reported(tmp_path: Path) -> None:
    with Parts(Cores()) as parts, streams.begun(parts.redis, 1) as names:
        plan = {"redis": parts.redis_url, "streams": names, "tokens_per_entry": 1, "padding": 0, "held": 7}
        with Helper("bench.processes.publish", plan, log=tmp_path / "log", cores=None) as publisher:
            publisher.hear(within_seconds=10)
            publisher.tell({"op": "run", "rate": 0, "seconds": 0, "rounds": 1})
            publisher.hear(within_seconds=10)
            with pytest.raises(Gone, match="gap"):
                publisher.hear(within_seconds=10)
