"""What a client may rely on, once with each kind of server in each of its forms: what is stored there works the same on all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.needs import needs
from tests.support.redis_cluster import RedisCluster, RedisWithSentinels
from tests.support.redis_server import KINDS, Kind, RedisServer, binary_of
from tests.support.system import System, answer_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

FORMS: dict[str, Any] = {
    "one": lambda kind: RedisServer(kind),
    "cluster": lambda kind: RedisCluster(kind=kind, replicas=False),
    "sentinel": lambda kind: RedisWithSentinels(kind=kind, replicas=0, sentinels=1),
}
CONTINUE: dict[str, Any] = {"on_disconnect": "continue"}
SLOW = {"tokens": 10_000, "tokens_per_second": 100}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_streams(kind: Kind, form: str, tmp_path: Path) -> None:
    needs(KINDS[kind], binary_of(kind))
    settings = {"archive_url": f"sqlite:///{tmp_path}/archive.sqlite", "ended_ttl_seconds": 1}
    async with System(redis=FORMS[form](kind), settings=settings) as system:
        await asyncio.gather(
            _one_key_is_one_answer_which_is_resumed(system),
            _a_cancel_ends_a_stream_for_its_readers(system),
            _a_deleted_stream_is_gone(system),
            _a_program_writes_a_stream(system),
            _a_program_writes_a_named_stream(system),
            _an_ended_stream_comes_back_from_the_archive(system),
        )


async def _one_key_is_one_answer_which_is_resumed(system: System) -> None:
    simulate, headers = {"tokens": 60, "tokens_per_second": 100}, {"idempotency-key": "one"}
    creates = [system.create(simulate=simulate, headers=headers, midstream=CONTINUE) for _ in range(3)]
    created = await asyncio.gather(*creates)
    assert len(set(created)) == 1
    first, other = system.follow(created[0]), system.follow(created[0])
    await first.until_tokens(10)
    await first.leave()
    second = await system.follow(created[0], after=first.last_id).until_end()
    answer = answer_of(first.messages, second.messages)
    assert (answer.end, len(answer.tokens)) == ("done", 60)
    assert answer_of((await other.until_end()).messages).tokens == answer.tokens


async def _a_cancel_ends_a_stream_for_its_readers(system: System) -> None:
    stream_id = await system.create(simulate=SLOW)
    reader = system.follow(stream_id)
    await reader.until_tokens(2)
    response = await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")
    assert response.status_code == 200
    assert answer_of((await reader.until_end()).messages).end == "cancelled"
    assert (await system.state(stream_id))["status"] == "cancelled"


async def _a_deleted_stream_is_gone(system: System) -> None:
    stream_id = await system.create(simulate=SLOW)
    reader = system.follow(stream_id)
    await reader.until_tokens(2)
    url = f"{system.gateway_url()}/v1/streams/{stream_id}"
    assert (await system.http.delete(url)).status_code == 204
    await reader.until_end()
    assert (await system.http.get(url)).status_code in (404, 410)


async def _a_program_writes_a_stream(system: System) -> None:
    body = {"midstream": {"writer": "external", **CONTINUE}}
    created = await system.http.post(f"{system.gateway_url()}/v1/streams", json=body)
    stream_id = created.json()["id"]
    reader = system.follow(stream_id)
    for events in ([{"token": "It "}, {"token": "rains."}], {"end": "done"}):
        assert (await system.http.post(system.events_url(stream_id), json=events)).status_code == 200
    answer = answer_of((await reader.until_end()).messages)
    assert (answer.text, answer.end) == ("It rains.", "done")


async def _a_program_writes_a_named_stream(system: System) -> None:
    url, headers = f"{system.gateway_url()}/v1/stream/by/name", {"content-type": "text/plain"}
    assert (await system.http.put(url, content=b"a", headers=headers)).status_code == 201
    assert (await system.http.put(url, headers=headers)).status_code in (200, 409), "the name is taken"
    assert (await system.http.post(url, content=b"b", headers=headers)).status_code in (200, 204)
    assert (await system.http.get(url)).content == b"ab"


async def _an_ended_stream_comes_back_from_the_archive(system: System) -> None:
    stream_id = await system.create(simulate={"tokens": 20, "tokens_per_second": 0}, midstream=CONTINUE)
    before = answer_of((await system.follow(stream_id).until_end()).messages)
    assert len(before.tokens) == 20

    async def was_brought_back() -> bool:
        assert answer_of((await system.follow(stream_id).until_end()).messages) == before
        return await system.metric("midstream_restored_streams_total") > 0

    await wait_until(was_brought_back, within_seconds=15, what="the log has expired, and is read from the archive")
    listed = (await system.http.get(f"{system.gateway_url()}/v1/streams")).json()
    assert stream_id in [row["id"] for row in listed["streams"]]
