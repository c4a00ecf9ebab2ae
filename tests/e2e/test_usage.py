"""Usage is the sum of all receipts, each stream once, whatever dies in between."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
import pytest_asyncio

from shared.accounts import COUNTS, account_of
from shared.keys import ACCOUNT_ENTRIES, ACCOUNT_LOOKS, account_key, log_key
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
SETTINGS = {"usage_seconds": 0.5, "delivery_report_seconds": 0.2, "lease_seconds": 1}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system() -> AsyncIterator[System]:
    async with System(settings=SETTINGS) as system:
        yield system


async def usage(system: System, *, gateway: int = 0) -> dict[str, int]:
    """Returns the counts of all days, principals and models."""
    response = await system.http.get(f"{system.gateway_url(gateway)}/v1/usage")
    assert response.status_code == 200, response.text
    sums = dict.fromkeys(COUNTS, 0)
    for row in response.json()["usage"]:
        for name in COUNTS:
            sums[name] += row[name]
    return sums


async def receipts(system: System, stream_ids: Iterable[str], *, gateway: int = 0) -> dict[str, int]:
    """Returns the counts to which these streams' receipts add up."""
    sums = dict.fromkeys(COUNTS, 0)
    for stream_id in stream_ids:
        url = f"{system.gateway_url(gateway)}/v1/streams/{stream_id}/receipt"
        receipt = (await system.http.get(url)).json()
        sums["streams"] += 1
        if receipt["status"] in sums:
            sums[receipt["status"]] += 1
        sums["cut_off"] += receipt["finish_reason"] == "length"
        sums["generated"] += receipt["generated"]["tokens"]
        sums["delivered"] += receipt["delivered"]["tokens"]
        sums["undelivered"] += receipt["undelivered_tokens"]
        for name in ("prompt_tokens", "completion_tokens"):
            sums[name] += (receipt["generated"]["usage"] or {}).get(name, 0)
    return sums


async def until_counted(system: System, stream_ids: list[str], before: dict[str, int] | None = None) -> dict[str, int]:
    """Waits until the usage has grown by what the receipts of these streams add up to, and returns the growth."""
    found: list[dict[str, int]] = []

    async def equal() -> bool:
        now = await usage(system)
        found[:] = [
            {name: now[name] - (before or {}).get(name, 0) for name in COUNTS},
            await receipts(system, stream_ids),
        ]
        return found[0] == found[1]

    try:
        await wait_until(equal, within_seconds=20.0, what="the usage is what the receipts add up to")
    except AssertionError as error:
        raise AssertionError(f"{error}: {found}") from None
    return found[0]


async def test_usage_adds_up_when_workers_and_gateways_are_killed() -> None:
    async with System(gateways=3, workers=3, settings=SETTINGS) as system:
        kinds: list[dict[str, Any]] = [
            {"simulate": {"tokens": 30, "tokens_per_second": 30}},
            {"simulate": {"tokens": 40, "tokens_per_second": 30}, "midstream": {"on_interrupt": "continue"}},
            {"simulate": {"tokens": 50, "tokens_per_second": 25}, "midstream": {"on_interrupt": "fail"}},
            {"simulate": {"tokens": 10, "finish_reason": "length"}},
            {"simulate": {"tokens": 20, "fail_after": 7}, "midstream": {"on_interrupt": "fail"}},
            {"simulate": {"tokens": 1000, "tokens_per_second": 50}},
        ]
        stream_ids, readers = [], []
        for number in range(24):
            gateway = number % 3
            stream_ids.append(await system.create(gateway=gateway, **kinds[number % len(kinds)]))
            if number % 4:
                readers.append(system.follow(stream_ids[-1], gateway=gateway))
        long_ones = stream_ids[5::6]
        await readers[0].until_tokens(5)
        system.workers[0].kill()
        system.gateways[2].kill()
        for stream_id in long_ones[:2]:
            cancelled = await system.http.post(f"{system.gateway_url(1)}/v1/streams/{stream_id}/cancel")
            assert cancelled.json()["status"] == "cancelled"
        system.gateways[1].kill()  # within the second after which it would have counted them
        for stream_id in stream_ids:
            if stream_id not in long_ones:
                await system.until_status(stream_id, "completed", "failed", within_seconds=30)
        for worker in system.workers[1:]:
            worker.kill()  # some of its streams have ended within the last second
        await system.start_worker(0)
        for stream_id in long_ones[2:]:
            await system.http.post(f"{system.gateway_url(0)}/v1/streams/{stream_id}/cancel")
        counted = await until_counted(system, stream_ids)
        assert counted["streams"] == len(stream_ids) == counted["completed"] + counted["failed"] + counted["cancelled"]
        assert counted["cancelled"] == len(long_ones)
        assert counted["cut_off"] == 4
        assert counted["failed"] >= 4
        assert counted["delivered"] > 0 < counted["undelivered"]
        await asyncio.sleep(2 * SETTINGS["usage_seconds"])  # looks that find nothing to do change nothing
        assert (await usage(system)) == counted


async def test_what_is_read_later_is_counted_and_what_is_deleted_stays(system: System) -> None:
    before = await usage(system)
    stream_ids = [await system.create(simulate={"tokens": 12}) for _ in range(2)]
    for stream_id in stream_ids:
        await system.state(stream_id, wait_seconds=10)
    counted = await until_counted(system, stream_ids, before)
    assert (counted["streams"], counted["delivered"], counted["undelivered"]) == (2, 0, 24)
    await system.follow(stream_ids[0]).until_end()
    counted = await until_counted(system, stream_ids, before)
    assert (counted["delivered"], counted["undelivered"]) == (12, 12), "of a late reader"
    assert (await system.http.delete(f"{system.gateway_url()}/v1/streams/{stream_ids[0]}")).status_code == 204
    running = await system.create(simulate={"tokens": 1000, "tokens_per_second": 100})
    await system.follow(running).until_tokens(3)
    assert (await system.http.delete(f"{system.gateway_url()}/v1/streams/{running}")).status_code == 204
    after = await usage(system)
    changed = {name: after[name] - before[name] - counted[name] for name in COUNTS}
    assert (changed["streams"], changed["cancelled"], changed["completed"]) == (1, 1, 0)
    assert changed["generated"] == changed["delivered"] + changed["undelivered"] >= 3


async def test_an_account_forgets_a_stream_whose_log_expires() -> None:
    async with System(settings={**SETTINGS, "ended_ttl_seconds": 4}) as system:
        stream_id = await system.create(simulate={"tokens": 12})
        running = await system.create(simulate={"tokens": 1000, "tokens_per_second": 50})
        await system.follow(stream_id).until_end()
        state = account_key(account_of("anonymous"), "state")
        assert int(await system.commands.hget(state, "bytes")) > 200

        async def forgotten() -> bool:
            return not await system.commands.exists(log_key(stream_id))

        await wait_until(forgotten, what="the log has expired")
        entries = {
            key.decode(): json.loads(value) for key, value in (await system.commands.hgetall(ACCOUNT_ENTRIES)).items()
        }
        assert entries[stream_id]["closed"]
        assert entries[stream_id]["counts"]["delivered"] == 12
        assert int(await system.commands.hget(state, "bytes")) == entries[running]["bytes"]
        assert await system.commands.zrange(account_key("all", "running"), 0, -1) == [running.encode()]
        assert await system.commands.zscore(ACCOUNT_LOOKS, stream_id) is not None
        assert (await usage(system))["streams"] == 1


async def test_the_command_line_prints_usage(system: System) -> None:
    before = await usage(system)
    await until_counted(system, [await system.create(simulate={"tokens": 3})], before)
    counted = await usage(system)

    async def printed(*options: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "midstream.cli", "usage", "--server", system.gateway_url(), *options]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, env=os.environ)
        return done.returncode, done.stdout, done.stderr

    code, table, _ = await printed()
    assert code == 0
    head, row, total = (line.split() for line in table.splitlines())
    assert head[:3] == ["principal", "model", "streams"]
    shown = [
        str(counted[name])
        for name in ("streams", "failed", "cancelled", "cut_off", "generated", "delivered", "undelivered")
    ]
    assert row == ["anonymous", "simulated", *shown]
    assert total == ["total", *shown]
    [listed] = [json.loads(line) for line in (await printed("--json"))[1].splitlines()]
    assert {name: listed[name] for name in COUNTS} == counted
    assert f"{listed['day']},anonymous,simulated,{counted['streams']}," in (await printed("--csv"))[1]
    assert (await printed("--from", "2020-01-01", "--to", "2020-01-31"))[:2] == (0, "nothing was used\n")
    code, _, complaint = await printed("--from", "yesterday")
    assert code == 1
    assert "from must be a day (UTC), as in 2026-11-28, not 'yesterday'" in complaint


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("from=2026-1-1", "from must be a day"),
        ("from=2026-02-30", "from must be a day"),
        ("from=2026-03-01&to=2026-02-01", "from is after to"),
        ("from=2020-01-01&to=2026-02-01", "more than 366 days"),
        ("after=x", "after must be a day"),
        (f"principal={'x' * 2000}", "principal must have at most 1024 characters"),
    ],
)
async def test_what_cannot_be_asked(system: System, query: str, detail: str) -> None:
    response = await system.http.get(f"{system.gateway_url()}/v1/usage?{query}")
    assert response.status_code == 400
    assert detail in response.json()["detail"]
