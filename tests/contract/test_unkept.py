"""The list of what is still to be archived: each look is one process's, and nothing leaves it that is not archived."""

from __future__ import annotations

import pytest

from shared.due_list import LOOK_SECONDS
from shared.keys import UNKEPT, log_key
from shared.unkept import Unkept
from tests.contract.conftest import LOG_TTL_SECONDS, REAL_BACKENDS, Backend
from tests.support.waiting import wait_until

pytestmark = pytest.mark.parametrize("backend", REAL_BACKENDS, indirect=True)

ENDED_TTL_SECONDS = 40
STREAMS = [f"000{number}" + "0" * 32 for number in range(4)]


@pytest.fixture
def unkept(backend: Backend) -> Unkept:
    return Unkept(backend.commands, log_ttl_seconds=LOG_TTL_SECONDS, ended_ttl_seconds=ENDED_TTL_SECONDS)


async def make_due(backend: Backend, *stream_ids: str) -> None:
    await backend.client.zadd(UNKEPT, dict.fromkeys(stream_ids, 0), xx=True)


async def test_a_stream_is_handed_out_when_its_time_has_come_and_to_one(backend: Backend, unkept: Unkept) -> None:
    for stream_id in STREAMS:
        await unkept.enter(stream_id)
    assert await unkept.take(10) == [], "a stream that has just begun"
    await make_due(backend, *STREAMS[:3])
    first, second = await unkept.take(2), await unkept.take(10)
    assert sorted([*first, *second]) == STREAMS[:3]
    assert await unkept.take(10) == [], "they are handed out again in a minute"
    assert await unkept.count() == 4
    assert await unkept.newest(3) == STREAMS[:0:-1]
    scores = [score for _, score in await backend.client.zrange(UNKEPT, 0, -1, withscores=True)]
    assert max(scores) - min(scores) < LOOK_SECONDS * 1000


async def test_entering_again_does_not_put_a_look_off(backend: Backend, unkept: Unkept) -> None:
    await unkept.enter(STREAMS[0])
    await make_due(backend, STREAMS[0])
    await unkept.enter(STREAMS[0])
    assert await unkept.take(1) == STREAMS[:1]


async def test_what_is_archived_leaves_and_its_log_expires_sooner(backend: Backend, unkept: Unkept) -> None:
    for stream_id in STREAMS[:3]:
        await unkept.enter(stream_id)
        await backend.client.xadd(log_key(stream_id), {"f": "v"})
        await backend.client.expire(log_key(stream_id), LOG_TTL_SECONDS)
    await backend.client.expire(log_key(STREAMS[1]), 5)
    await unkept.kept({stream_id: [log_key(stream_id)] for stream_id in STREAMS[:2]}, STREAMS[1:2])
    assert await unkept.newest(10) == [STREAMS[2], STREAMS[1]], "one of them is looked at once more"
    assert await unkept.take(10) == []

    async def lifetimes() -> list[int]:
        return [await backend.client.ttl(log_key(stream_id)) for stream_id in STREAMS[:3]]

    async def are_set() -> bool:
        first, second, third = await lifetimes()
        return first <= ENDED_TTL_SECONDS and second <= 5 and third > ENDED_TTL_SECONDS

    await wait_until(are_set, what="the archived log expires soon, and none later than before")


async def test_somebody_elses_member(backend: Backend, unkept: Unkept) -> None:
    await unkept.enter(STREAMS[0])
    await backend.client.zadd(UNKEPT, {"no stream": 0})
    assert await unkept.take(10) == []
    assert await unkept.count() == 1
