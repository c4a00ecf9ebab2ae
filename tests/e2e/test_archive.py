"""Ended streams are archived, leave Redis, and are read as before: over every face, from any place, whoever died meanwhile."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect

from midstream import archive as archive_commands
from shared.archive.store import Archive
from shared.archive.wanted import Wanted
from shared.errors import Unusable
from shared.ids import new_stream_id
from shared.keys import ACCOUNT_ENTRIES, UNKEPT, deliveries_key, kept_key, log_key, name_key, writer_key
from shared.settings import Settings
from tests.support.needs import needs
from tests.support.postgres import PostgresServer, postgres_programs
from tests.support.system import System, environment_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIMULATED: dict[str, Any] = {"simulate": {"tokens": 40, "tokens_per_second": 1000}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    url = f"sqlite:///{tmp_path_factory.mktemp('archive')}/archive.sqlite"
    async with System(gateways=2, settings={"archive_url": url, "ended_ttl_seconds": 1}) as system:
        yield system


@asynccontextmanager
async def archive_of(system: System) -> AsyncIterator[Archive]:
    archive = Archive(Settings(archive_url=str(system.workers[0].settings["archive_url"])))
    try:
        yield archive
    finally:
        await archive.close()


async def out_of_redis(system: System, *stream_ids: str, within_seconds: float = 15.0) -> None:
    """Waits until the streams are archived, and deletes what Redis has of them, as their expiry would soon."""
    async with archive_of(system) as archive:

        async def are_archived() -> bool:
            return all([await archive.has(stream_id) for stream_id in stream_ids])

        await wait_until(are_archived, within_seconds=within_seconds, what=f"{stream_ids} are archived")
    for stream_id in stream_ids:
        await system.commands.delete(log_key(stream_id), deliveries_key(stream_id), kept_key(stream_id))


async def due_now(system: System, *stream_ids: str) -> None:
    """Has streams looked at for the archive at once. The list expires, as one that a gateway has made."""
    await system.commands.zadd(UNKEPT, dict.fromkeys(stream_ids, 0))
    await system.commands.expire(UNKEPT, 600)


async def got(
    system: System, path: str, headers: dict[str, str] | None = None, *, gateway: int = 0
) -> tuple[int, str | None, bytes]:
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
    before = [await got(system, path, headers) for path, headers in requests]
    frames = await over_websocket(system, stream_id)
    for (path, headers), answer in zip(requests, before, strict=True):
        await out_of_redis(system, stream_id)
        assert answer[0] == 200
        assert await got(system, path, headers, gateway=1) == answer, (path, headers)
    await out_of_redis(system, stream_id)
    assert await over_websocket(system, stream_id) == frames
    await out_of_redis(system, stream_id)
    etag = before[0][1] or ""
    assert (await got(system, f"{stream}/events", {"if-none-match": etag}))[0] == 304
    await out_of_redis(system, stream_id)
    last = json.loads(before[1][2].splitlines()[-1])["id"]
    assert (await got(system, f"{stream}/events", {"last-event-id": last}))[0] == 204
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
        assert len(reader.tokens) == 40, reader
    await noted(system, stream_id, 20)
    await due_now(system, stream_id)  # the last look, shortly before its log expires
    await counted(system, stream_id, 20)


async def test_who_reads_it_after_the_last_look_counts(system: System) -> None:
    stream_id = await system.create(**SIMULATED)
    await system.state(stream_id, wait_seconds=10)
    await out_of_redis(system, stream_id)
    await got(system, f"/v1/streams/{stream_id}/receipt")
    await system.commands.zrem(UNKEPT, stream_id)  # it was the last look
    await system.commands.pexpire(log_key(stream_id), 2400)
    await system.follow(stream_id).until_end()
    await noted(system, stream_id, 1)
    for key in (log_key(stream_id), deliveries_key(stream_id)):
        await system.commands.expire(key, 60)  # however long a look takes on a busy machine
    await counted(system, stream_id, 1)


async def noted(system: System, stream_id: str, connections: int) -> None:
    async def are_noted() -> bool:
        return int(await system.commands.hlen(deliveries_key(stream_id))) == connections

    await wait_until(are_noted, what=f"{connections} connections are noted")


async def counted(system: System, stream_id: str, connections: int) -> None:
    """Waits until the archive has a stream as delivered, over so many connections."""
    async with archive_of(system) as archive:

        async def is_counted() -> bool:
            archived = await archive.read(stream_id)
            assert archived is not None
            return (archived.row["delivered_tokens"], len(archived.notes)) == (40, connections)

        await wait_until(is_counted, what="what was read of the archive is in its receipt")


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


async def test_a_stream_of_an_external_writer(system: System) -> None:
    stream_id = await system.create("Hello", midstream={"writer": "external"})
    url = f"{system.gateway_url()}/v1/streams/{stream_id}/events"
    written = await system.http.post(url, json=[{"token": "Once"}, {"event": "tool", "data": 1}, {"end": "done"}])
    assert written.status_code == 200, written.text
    before = [await got(system, f"/v1/streams/{stream_id}{face}") for face in ("/events", "")]
    await out_of_redis(system, stream_id)
    assert [await got(system, f"/v1/streams/{stream_id}{face}", gateway=1) for face in ("/events", "")] == before


@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream"])
async def test_a_stream_that_another_program_wrote(system: System, content_type: str) -> None:
    """Through its name and its id, the same offsets and ETags; closed to writers as before, and its name is free after a delete."""
    kind = content_type.partition("/")[2]
    path, headers = f"/v1/stream/archived/{kind}", {"content-type": content_type}
    producer = {"producer-id": "p", "producer-epoch": "0", "producer-seq": "0"}
    url = system.gateway_url() + path
    made = await system.http.put(url, headers=headers, content=b"[1,2]")
    stream_id = made.headers["x-stream-id"]
    await system.http.post(url, headers=headers | producer, content=b"[3]")
    ended = await system.http.post(url, headers={"stream-closed": "true"})
    listed = f"/v1/streams?limit=100&after={new_stream_id(time.time() + 60)}"

    async def answers() -> list[Any]:
        read = []
        first = await system.http.get(url)
        offset = ended.headers["stream-next-offset"]
        for query in ("", "?offset=-1", "?offset=now", f"?offset={offset}", f"?offset={offset}&live=long-poll"):
            for base in (path, f"/v1/stream/{stream_id}"):
                answer = await system.http.get(system.gateway_url(1) + base + query)
                kept = {
                    name: value
                    for name, value in answer.headers.items()
                    if name not in ("date", "stream-cursor", "x-request-id")
                }
                read.append((answer.status_code, kept, answer.content))
        known = await system.http.get(url, headers={"if-none-match": first.headers["etag"]})
        head = await system.http.head(url)
        late = await system.http.post(url, headers=headers, content=b"[4]")
        repeated = await system.http.post(url, headers=headers | producer, content=b"[3]")
        again = await system.http.put(url, headers=headers)
        sse = await system.http.get(f"{url}?offset=-1&live=sse")
        statuses = [answer.status_code for answer in (known, head, late, repeated, again, sse)]
        assert late.headers["stream-closed"] == "true"
        events = [line for line in sse.text.splitlines() if "streamCursor" not in line]
        return [*read, statuses, head.headers["etag"], events, await got(system, f"/v1/streams/{stream_id}/events")]

    before = await answers()
    assert before[-4] == [304, 200, 409, 204, 409, 200]
    await out_of_redis(system, stream_id)
    await system.commands.delete(writer_key(stream_id), name_key("anonymous", f"archived/{kind}"))
    assert await answers() == before
    rows = {row["id"]: row for row in json.loads((await got(system, listed))[2])["streams"]}
    assert (rows[stream_id]["api"], rows[stream_id]["status"]) == ("durable", "completed")
    await out_of_redis(system, stream_id)
    await system.commands.delete(writer_key(stream_id), name_key("anonymous", f"archived/{kind}"))
    assert (await system.http.delete(url)).status_code == 204
    assert (await got(system, path))[0] == 404
    assert (await system.http.put(url, headers=headers)).status_code == 201


async def test_a_written_stream_s_own_life_holds_for_the_archive(system: System) -> None:
    url = f"{system.gateway_url()}/v1/stream/archived/short"
    ends = {"content-type": "text/plain", "stream-ttl": "3", "stream-closed": "true"}
    made = await system.http.put(url, headers=ends, content=b"text")
    stream_id = made.headers["x-stream-id"]
    await due_now(system, stream_id)
    await out_of_redis(system, stream_id)
    assert (await got(system, "/v1/stream/archived/short"))[2] == b"text"
    assert await system.commands.pttl(log_key(stream_id)) <= 3000

    async def is_gone() -> bool:
        return (await system.http.head(url)).status_code == 404  # HEAD is no read, after which it would live longer

    await wait_until(is_gone, what="its three seconds are over")
    assert (await got(system, f"/v1/streams/{stream_id}"))[0] == 410
    assert (await system.http.put(url, headers=ends)).status_code == 201, "its name is free"


async def test_a_written_stream_that_is_left_alone_is_ended_and_archived(system: System) -> None:
    url = f"{system.gateway_url()}/v1/stream/archived/left"
    stream_id = (await system.http.put(url, headers={"content-type": "text/plain"}, content=b"left")).headers[
        "x-stream-id"
    ]
    await due_now(system, stream_id)
    await system.commands.pexpire(log_key(stream_id), 60_000)  # nearly a day later
    await due_now(system, stream_id)
    await system.until_status(stream_id, "failed")
    await out_of_redis(system, stream_id)
    answer = await system.http.get(url)
    assert (answer.content, answer.headers["stream-outcome"]) == (b"left", "failed")
    assert (await system.state(stream_id))["error"]["code"] == "writer_lost"


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
        if stream_id != running:  # whose worker would write its log again, if it has not seen the tombstone yet
            await system.commands.delete(log_key(stream_id))  # its tombstone
        for path in (f"/v1/streams/{stream_id}", f"/v1/streams/{stream_id}/events"):
            assert (await got(system, path))[0] in (404, 410)


async def test_a_delete_of_an_archived_stream_does_not_count_it_again(system: System) -> None:
    stream_id = await system.create(**SIMULATED)

    async def is_counted() -> bool:
        return b"counts" in (await system.commands.hget(ACCOUNT_ENTRIES, stream_id) or b"")

    await wait_until(is_counted, what="the stream counts")
    await out_of_redis(system, stream_id)
    await system.commands.hdel(ACCOUNT_ENTRIES, stream_id)  # some minutes later
    assert (await system.http.delete(f"{system.gateway_url()}/v1/streams/{stream_id}")).status_code == 204
    assert not await is_counted()


async def test_an_id_that_is_nowhere(system: System) -> None:
    stream_id = await system.create(**SIMULATED)
    made_up = f"01k{stream_id[3:]}"  # an older one
    for path in ("", "/events", "/text", "/receipt"):
        assert (await got(system, f"/v1/streams/{made_up}{path}"))[0] == 410


async def test_streams_are_found_live_and_archived_as_one(system: System) -> None:
    """Those that run, have just ended, or have left Redis: one list, in which nothing moves while they change over."""
    chat = {"metadata": {"chat": "found", "user": 'a"]b'}}
    stream_ids = [await system.create(**SIMULATED, midstream=chat) for _ in range(5)]
    running = await system.create(simulate={"tokens": 500, "tokens_per_second": 20}, midstream=chat)
    newest_first = [running, *reversed(stream_ids)]

    async def found(query: str) -> tuple[list[str], str | None, list[dict[str, Any]]]:
        response = await system.http.get(f"{system.gateway_url(1)}/v1/streams?metadata.chat=found&{query}")
        assert response.status_code == 200, response.text
        page = response.json()
        return [stream["id"] for stream in page["streams"]], page["after"], page["streams"]

    async def pages_of(limit: int) -> list[str]:
        listed: list[str] = []
        after: str | None = ""
        while after is not None:
            ids, after, _ = await found(f"limit={limit}" + (f"&after={after}" if after else ""))
            assert len(ids) <= limit
            listed += ids
        return listed

    async def all_are_listed() -> bool:
        return await pages_of(100) == newest_first

    await wait_until(all_are_listed, what="each stream is listed")
    await out_of_redis(system, *stream_ids[:2])
    for limit in (1, 2, 4, 100):
        assert await pages_of(limit) == newest_first
    _, _, streams = await found("")
    assert streams[0]["status"] == "running"
    assert streams[0]["model"] == "simulated"
    assert not streams[0]["archived"]
    assert streams[-1] | {"archived": True, "generated_tokens": 40, "status": "completed"} == streams[-1]
    assert streams[-1]["usage"]["completion_tokens"] == 40
    ended = newest_first[1:]
    assert (await found("status=completed"))[0] == ended
    assert (await found("status=running"))[0] == [running]
    assert (await found("metadata.user=a%22%5Db"))[0] == newest_first
    assert (await found("metadata.user=b"))[0] == []
    assert (await found("model=none"))[0] == []
    assert (await found(f"from={streams[1]['created_at']}"))[0][-1] == ended[0]
    assert (await found("to=2020-01-01T00:00:00Z"))[0] == []
    await system.http.post(f"{system.gateway_url()}/v1/streams/{running}/cancel")
    assert (await found("status=cancelled"))[0] == [running]


def _environment(system: System) -> dict[str, str]:
    archive_url = system.workers[0].settings["archive_url"]
    return environment_of({"archive_url": archive_url, "redis_url": system.redis.url, "ended_ttl_seconds": 1})


async def command(system: System, *arguments: str) -> str:
    """Runs `midstream` with the system's settings, and returns what it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "midstream.cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**_environment(system), "MIDSTREAM_URL": system.gateway_url()},
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_the_commands(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = {"metadata": {"chat": "commands", "name": "=1+1"}}
    stream_ids = [await system.create(**SIMULATED, midstream=chat) for _ in range(3)]
    await system.follow(stream_ids[0]).until_end()
    await out_of_redis(system, *stream_ids)
    deleted = stream_ids.pop()
    await system.http.delete(f"{system.gateway_url()}/v1/streams/{deleted}")
    listed = await command(system, "list", "--json", "--metadata", "chat=commands")
    assert [json.loads(line)["id"] for line in listed.splitlines()] == stream_ids[::-1]
    table = await command(system, "list", "--metadata", "chat=commands", "--count", "1")
    assert table.splitlines()[1].startswith(stream_ids[1])
    shown = await command(system, "show", stream_ids[0])
    assert "ended: completed" in shown
    assert "40 tokens" in shown
    ids = (*stream_ids, deleted)  # those of other tests may still come into the archive
    exported = [json.loads(line) for line in (await command(system, "export")).splitlines()]
    exported = [row for row in exported if row["id"] in ids]
    of_test = {row["id"]: row["generated_tokens"] for row in exported}
    assert of_test == dict.fromkeys((*stream_ids, deleted), 40), "what is deleted was generated all the same"
    rows = list(csv.DictReader((await command(system, "export", "--format", "csv")).splitlines()))
    assert [row["id"] for row in rows if row["id"] in ids] == [row["id"] for row in exported]
    parquet = tmp_path / "streams.parquet"
    await command(system, "export", "--format", "parquet", "--output", str(parquet))
    table_of = [row for row in pyarrow.parquet.read_table(parquet).to_pylist() if row["id"] in ids]
    assert [row["id"] for row in table_of] == [row["id"] for row in exported]
    assert sum(row["generated_tokens"] for row in table_of) == sum(row["generated_tokens"] for row in exported)
    running = await system.create(simulate={"tokens": 500, "tokens_per_second": 20})
    with monkeypatch.context() as patch:  # of more streams than it can look at, it forgets none and says so
        patch.setattr(archive_commands, "_LIVE_MAX", 0)
        with pytest.raises(Unusable, match="more than 0 streams"):
            await archive_commands._forget(Settings.from_environment(_environment(system)), "anonymous")
    line, printed = (await command(system, "forget", "anonymous")).splitlines()
    audited = json.loads(line)
    assert (audited["logger"], audited["event"], audited["owner"]) == ("midstream.audit", "forgotten", "anonymous")
    assert (
        printed == f"forgotten: {audited['archived_streams']} archived streams, {audited['streams_in_redis']} in Redis"
    )
    assert (await command(system, "list")).count("\n") == 1, "nothing is left but the heading"
    for stream_id in (running, *stream_ids):
        assert (await got(system, f"/v1/streams/{stream_id}"))[0] in (404, 410)


@pytest.mark.parametrize(
    "query",
    [
        "status=odd",
        "limit=0",
        "limit=101",
        "limit=000001000000",  # the first digits alone would do
        "limit=x",
        "after=x",
        "from=yesterday",
        "from=2026-01-01T00:00:00",
        "user=x",
    ],
)
async def test_a_list_that_cannot_be(system: System, query: str) -> None:
    response = await system.http.get(f"{system.gateway_url()}/v1/streams?{query}")
    assert response.status_code == 400
    assert query.partition("=")[0] in response.json()["detail"]


async def test_whoever_dies_or_is_away_no_end_is_lost_and_none_is_doubled() -> None:
    """PostgreSQL is killed, and then the worker; answers go on. Later both are there again, and everything is archived once."""
    needs("PostgreSQL", postgres_programs())
    with PostgresServer() as postgres:
        settings = {"archive_url": postgres.url, "archive_seconds": 1, "ended_ttl_seconds": 1}
        async with System(gateways=1, workers=2, settings=settings) as system, archive_of(system) as archive:
            stream_ids = [await system.create(**SIMULATED) for _ in range(5)]
            await asyncio.gather(*(system.state(stream_id, wait_seconds=10) for stream_id in stream_ids))
            await out_of_redis(system, *stream_ids)
            postgres.kill()
            away = [await system.create(**SIMULATED) for _ in range(20)]
            states = await asyncio.gather(*(system.state(stream_id, wait_seconds=10) for stream_id in away))
            assert {state["status"] for state in states} == {"completed"}

            async def is_said() -> bool:
                ready = await system.http.get(f"{system.gateway_url()}/readyz")
                return ready.status_code == 200 and ready.json()["archive"] == "away"

            await wait_until(is_said, what="/readyz names the archive")
            assert (await got(system, f"/v1/streams/{stream_ids[0]}"))[0] == 503
            lives_ms = await system.commands.pttl(log_key(away[0]))
            assert lives_ms > 3_600_000, "what is not archived stays in Redis"
            assert await system.state(away[0]) == states[0]
            postgres.start()
            ending = [await system.create(**SIMULATED) for _ in range(5)]
            for stream_id in ending:
                await system.follow(stream_id).until_end()
            for worker in system.workers:
                worker.kill()
            await system.start_worker(0)
            await due_now(system, *away, *ending)  # a minute later
            everything = {*stream_ids, *away, *ending}

            async def all_are_there() -> bool:
                return {row["id"] for row in await archive.find(Wanted(), 100)} == everything

            await wait_until(all_are_there, within_seconds=30, what="every end is in the archive")
            rows = await archive.find(Wanted(), 100)
            assert sum(row["generated_tokens"] for row in rows) == 40 * len(everything)
            await out_of_redis(system, away[0])
            assert await system.state(away[0]) == states[0]
