"""Ended streams are archived, leave Redis, and are read as before: over every face, from any place, whoever died meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect

from shared.archive.store import Archive, Wanted
from shared.keys import UNKEPT, deliveries_key, kept_key, log_key
from shared.settings import Settings
from tests.support.needs import needs
from tests.support.postgres import PostgresServer, postgres_programs
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIMULATED: dict[str, Any] = {"simulate": {"tokens": 40, "tokens_per_second": 1000}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    url = f"sqlite:///{tmp_path_factory.mktemp('archive')}/archive.sqlite"
    async with System(gateways=2, settings={"archive_url": url, "ended_ttl_seconds": 1}) as system:
        yield system


async def out_of_redis(system: System, *stream_ids: str, within_seconds: float = 15.0) -> None:
    """Waits until the streams are archived, and deletes what Redis has of them, as their expiry would soon."""
    archive = Archive(Settings(archive_url=str(system.workers[0].settings["archive_url"])))

    async def are_archived() -> bool:
        return all([await archive.has(stream_id) for stream_id in stream_ids])

    await wait_until(are_archived, within_seconds=within_seconds, what=f"{stream_ids} are archived")
    await archive.close()
    for stream_id in stream_ids:
        await system.commands.delete(log_key(stream_id), deliveries_key(stream_id), kept_key(stream_id))


async def got(system: System, path: str, gateway: int = 0, **headers: str) -> tuple[int, str | None, bytes]:
    response = await system.http.get(system.gateway_url(gateway) + path, headers=headers)
    return response.status_code, response.headers.get("etag"), response.content


async def over_websocket(system: System, stream_id: str) -> list[str | bytes]:
    url = f"{system.gateway_url(1)}/v1/streams/{stream_id}/ws".replace("http", "ws", 1)
    async with connect(url) as connection:
        return [message async for message in connection]


async def test_every_face_from_the_archive(system: System) -> None:
    made = await system.http.post(
        f"{system.gateway_url()}/v1/responses",
        json={"model": "m", "input": "x" * 20_000},  # it lies beside the log
    )
    response_id = made.json()["id"]
    stream_id = response_id.removeprefix("resp_")
    stream, response = f"/v1/streams/{stream_id}", f"/v1/responses/{response_id}"
    requests: list[tuple[str, dict[str, str]]] = [
        (f"{stream}/events", {}),
        (f"{stream}/events", {"accept": "application/x-ndjson"}),
        (f"{stream}/text", {}),
        (f"{stream}/events", {"last-event-id": "1-3"}),
        (f"{stream}/events", {"last-event-id": "0-1"}),
        (stream, {}),
        (response, {}),
        (f"{response}?stream=true&starting_after=4", {}),
    ]
    before = [await got(system, path, **headers) for path, headers in requests]
    frames = await over_websocket(system, stream_id)
    for (path, headers), answer in zip(requests, before, strict=True):
        await out_of_redis(system, stream_id)
        assert answer[0] == 200
        assert await got(system, path, 1, **headers) == answer, (path, headers)
    await out_of_redis(system, stream_id)
    assert await over_websocket(system, stream_id) == frames
    await out_of_redis(system, stream_id)
    etag = before[0][1] or ""
    assert (await got(system, f"{stream}/events", **{"if-none-match": etag}))[0] == 304
    await out_of_redis(system, stream_id)
    last = json.loads(before[1][2].splitlines()[-1])["id"]
    assert (await got(system, f"{stream}/events", **{"last-event-id": last}))[0] == 204
    await out_of_redis(system, stream_id)
    body = {"model": "m", "input": "and then?", "previous_response_id": response_id}
    assert (await system.http.post(f"{system.gateway_url()}/v1/responses", json=body)).status_code == 200


async def test_many_readers_bring_it_back_once_and_count(system: System) -> None:
    stream_id = await system.create(**SIMULATED)
    await system.state(stream_id, wait_seconds=10)
    await out_of_redis(system, stream_id)
    receipt = json.loads((await got(system, f"/v1/streams/{stream_id}/receipt"))[2])
    assert (receipt["generated"]["tokens"], receipt["delivered"]["tokens"]) == (40, 0)
    await out_of_redis(system, stream_id)
    readers = [system.follow(stream_id, gateway=index % 2) for index in range(20)]
    for reader in readers:
        await reader.until_end()
        assert len(reader.tokens) == 40
    archive = Archive(Settings(archive_url=str(system.workers[0].settings["archive_url"])))

    async def is_counted() -> bool:
        await system.commands.zadd(UNKEPT, {stream_id: 0})  # the last look, shortly before its log expires
        archived = await archive.read(stream_id)
        return archived is not None and archived.row["delivered_tokens"] == 40 and len(archived.notes) == 20

    await wait_until(is_counted, what="what was read of the archive is in its receipt")
    await archive.close()


@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_other_ends(system: System, end: str) -> None:
    simulated = {"tokens": 500, "tokens_per_second": 50} | ({"fail_after": 3} if end == "failed" else {})
    stream_id = await system.create(simulate=simulated, midstream={"on_interrupt": "fail"})
    reader = system.follow(stream_id)
    await reader.until_tokens(3)
    if end == "cancelled":
        await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")
    state = await system.until_status(stream_id, end)
    await out_of_redis(system, stream_id)
    assert await system.state(stream_id) == state


async def test_a_delete_reaches_the_archive(system: System) -> None:
    archived, ended, running = [await system.create(**SIMULATED) for _ in range(2)] + [
        await system.create(simulate={"tokens": 500, "tokens_per_second": 20})
    ]
    await system.state(ended, wait_seconds=10)
    await out_of_redis(system, archived)
    for stream_id in (archived, ended, running):
        response = await system.http.delete(f"{system.gateway_url()}/v1/streams/{stream_id}")
        assert response.status_code == 204
    for stream_id in (archived, ended, running):
        await system.commands.delete(log_key(stream_id))  # its tombstone
        for path in (f"/v1/streams/{stream_id}", f"/v1/streams/{stream_id}/events"):
            assert (await got(system, path))[0] in (404, 410)


async def test_an_id_that_is_nowhere(system: System) -> None:
    stream_id = await system.create(**SIMULATED)
    made_up = f"01k{stream_id[3:]}"  # an older one
    for path in ("", "/events", "/text", "/receipt"):
        assert (await got(system, f"/v1/streams/{made_up}{path}"))[0] == 410


async def test_whoever_dies_or_is_away_no_end_is_lost_and_none_is_doubled() -> None:
    """PostgreSQL is killed, and then the worker; answers go on. Later both are there again, and everything is archived once."""
    needs("PostgreSQL", postgres_programs())
    with PostgresServer() as postgres:
        settings = {"archive_url": postgres.url, "archive_seconds": 1, "ended_ttl_seconds": 1}
        async with System(gateways=1, workers=2, settings=settings) as system:
            archive = Archive(Settings(archive_url=postgres.url))
            stream_ids = [await system.create(**SIMULATED) for _ in range(5)]
            await asyncio.gather(*(system.state(stream_id, wait_seconds=10) for stream_id in stream_ids))
            await out_of_redis(system, stream_ids[0])
            postgres.kill()
            away = [await system.create(**SIMULATED) for _ in range(20)]
            states = await asyncio.gather(*(system.state(stream_id, wait_seconds=10) for stream_id in away))
            assert {state["status"] for state in states} == {"completed"}

            async def is_said() -> bool:
                ready = await system.http.get(f"{system.gateway_url()}/readyz")
                return ready.status_code == 200 and ready.json()["archive"] == "away"

            await wait_until(is_said, what="/readyz names the archive")
            assert (await got(system, f"/v1/streams/{stream_ids[0]}"))[0] == 503
            await asyncio.sleep(2.0)  # longer than an ended log would live in Redis
            assert await system.state(away[0]) == states[0]
            postgres.start()
            ending = [await system.create(**SIMULATED) for _ in range(5)]
            for stream_id in ending:
                await system.follow(stream_id).until_end()
            for worker in system.workers:
                worker.kill()
            await system.start_worker(0)
            await system.commands.zadd(UNKEPT, dict.fromkeys([*away, *ending], 0))  # a minute later
            everything = {*stream_ids, *away, *ending}

            async def all_are_there() -> bool:
                return {row["id"] for row in await archive.find(Wanted(), 100)} == everything

            await wait_until(all_are_there, within_seconds=30, what="every end is in the archive")
            rows = await archive.find(Wanted(), 100)
            assert sum(row["generated_tokens"] for row in rows) == 40 * len(everything)
            await out_of_redis(system, away[0])
            assert await system.state(away[0]) == states[0]
            await archive.close()
