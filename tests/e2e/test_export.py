"""What is exported for billing sums to the usage, to the token: for each principal, model and day, in each format."""

from __future__ import annotations

import asyncio
import csv
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pyarrow.parquet
import pytest
import pytest_asyncio

from tests.support.guarded_gateway import MODULE, TOKEN_KEYS
from tests.support.system import System, environment_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRINCIPALS = ("alice", "bob", "root")
COUNTS = {"generated": "generated_tokens", "delivered": "delivered_tokens"} | {
    name: name for name in ("prompt_tokens", "completion_tokens")
}
"""The names of the counts in the usage, and in an export."""
Sums = dict[tuple[str, str, str], Counter[str]]
"""By principal, model and day."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    url = f"sqlite:///{tmp_path_factory.mktemp('archive')}/archive.sqlite"
    settings = {"archive_url": url, "delivery_report_seconds": 0.2, "usage_seconds": 0.5}
    guarded = {"auth": "required", "token_keys": TOKEN_KEYS}
    async with System(settings=settings, gateway_settings=guarded, gateway_module=MODULE) as system:
        yield system


def as_(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer tk_{name}"}


async def made(system: System, name: str, number: int) -> str:
    """Makes a stream of one principal, and reads all of it, a part, or nothing; some fail, some are cancelled, some deleted."""
    url = f"{system.gateway_url()}/v1/streams"
    simulated: dict[str, Any] = {"tokens": 10 + number, "tokens_per_second": 200}
    if number % 4 == 1:
        simulated["fail_after"] = 5
    if number % 4 == 2:
        simulated |= {"tokens": 500, "tokens_per_second": 20}
    body = {
        "messages": [{"role": "user", "content": "Hello " * number}],
        "simulate": simulated,
        "midstream": {"on_interrupt": "fail", "on_disconnect": "continue"},
    }
    if number % 4 == 3 and name != "root":  # who may not write
        body |= {"model": "own", "midstream": {"writer": "external", "on_disconnect": "continue"}}
    created = (await system.http.post(url, json=body, headers=as_(name))).json()
    stream = f"{url}/{created['id']}"
    if body.get("model") == "own":
        tokens = [{"token": "own "} for _ in range(number)]
        end = {"end": "done", "usage": {"prompt_tokens": number, "completion_tokens": 2 * number}}
        await system.http.post(f"{stream}/events", json=[*tokens, end], headers=as_(name))
    if (
        number % 3 or number % 4 == 2
    ):  # one that is cancelled before its worker began has another model: what was asked for
        async with system.http.stream("GET", f"{stream}/events", headers=as_(name)) as events:
            async for line in events.aiter_lines():
                if number % 4 == 2 and "data" in line and "token" in line:
                    break
    if number % 4 == 2:
        await system.http.post(f"{stream}/cancel", headers=as_(name))
    await system.http.get(f"{stream}?wait=20", headers=as_(name))
    return str(created["id"])


def summed(rows: Iterable[tuple[str, str, str, dict[str, int]]]) -> Sums:
    sums: Sums = {}
    for principal, model, day, counts in rows:
        sums.setdefault((principal, model, day), Counter()).update(counts)
    return sums


def exported(rows: Iterable[dict[str, Any]]) -> Sums:
    return summed(
        (
            row["owner"],
            row["model"],
            time.strftime("%Y-%m-%d", time.gmtime(float(row["ended_at"]))),
            {"streams": 1, **{name: int(row[column] or 0) for name, column in COUNTS.items()}},
        )
        for row in rows
    )


def used(rows: Iterable[dict[str, Any]]) -> Sums:
    return summed(
        (row["principal"], row["model"], row["day"], {name: int(row[name]) for name in ("streams", *COUNTS)})
        for row in rows
    )


async def command(system: System, *arguments: str) -> bytes:
    """Runs `midstream` with the system's settings and an administrator's key, and returns what it prints."""
    environment = environment_of({"archive_url": system.workers[0].settings["archive_url"]})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "midstream.cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        env={**environment, "MIDSTREAM_URL": system.gateway_url(), "MIDSTREAM_API_KEY": "tk_root"},
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output


async def test_an_export_sums_to_the_usage(system: System, tmp_path: Path) -> None:
    numbers = [(name, number) for number in range(8) for name in PRINCIPALS]
    stream_ids = await asyncio.gather(*(made(system, name, number) for name, number in numbers))
    deleted = [stream_id for (_, number), stream_id in zip(numbers, stream_ids, strict=True) if number in (4, 5)]
    written = f"{system.gateway_url()}/v1/stream/no/tokens"
    closed: httpx2.Response = await system.http.put(
        written, content=b"[1]", headers={**as_("alice"), "content-type": "application/json", "stream-closed": "true"}
    )
    assert closed.status_code in (201, 403), "messages of a written stream are no tokens"
    for stream_id in deleted:  # some of these are archived by then
        answer = await system.http.delete(f"{system.gateway_url()}/v1/streams/{stream_id}", headers=as_("root"))
        assert answer.status_code == 204

    async def of_export() -> list[dict[str, Any]]:
        rows = [orjson.loads(line) for line in (await command(system, "export")).splitlines()]
        return [row for row in rows if row["api"] != "durable"]

    async def all_are_archived() -> bool:
        return {row["id"] for row in await of_export()} == set(stream_ids)

    await wait_until(all_are_archived, within_seconds=30, what="each stream is archived")
    of_usage: list[Sums] = []

    async def are_equal() -> bool:
        page = await system.http.get(f"{system.gateway_url()}/v1/usage", headers=as_("root"))
        of_usage[:] = [used(page.json()["usage"]), exported(await of_export())]
        return of_usage[0] == of_usage[1]

    await wait_until(are_equal, within_seconds=30, what="the export is the usage")
    sums = of_usage[0]
    assert {principal for principal, _, _ in sums} == {f"key:{name}" for name in PRINCIPALS}
    assert {model for _, model, _ in sums} == {"simulated", "own"}
    assert sum((counts for counts in sums.values()), Counter())["streams"] == len(stream_ids)
    assert all(counts["delivered"] > 0 for counts in sums.values())
    assert any(counts["delivered"] < counts["generated"] for counts in sums.values())
    files = {form: tmp_path / f"streams.{form}" for form in ("csv", "parquet")}
    for form, path in files.items():
        await command(system, "export", "--format", form, "--output", str(path))
    rows = {
        "csv": list(csv.DictReader(files["csv"].read_text().splitlines())),
        "parquet": pyarrow.parquet.read_table(files["parquet"]).to_pylist(),
    }
    for form, of_form in rows.items():
        assert exported(row for row in of_form if row["api"] != "durable") == sums, form
    printed = [orjson.loads(line) for line in (await command(system, "usage", "--json")).splitlines()]
    assert used(printed) == sums
