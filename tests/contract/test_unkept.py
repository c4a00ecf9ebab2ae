"""The list of what is still to be archived: each look is one process's, and nothing leaves it that is not archived."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from shared.due_list import LOOK_SECONDS
from shared.ids import FIRST_ID, EventId
from shared.keys import UNKEPT, log_key
from shared.receipt import DeliveryNote, DeliveryNotes
from shared.unkept import Unkept
from tests.contract.conftest import LOG_TTL_SECONDS, REAL_BACKENDS, Backend
from tests.support.waiting import wait_until

pytestmark = pytest.mark.parametrize("backend", REAL_BACKENDS, indirect=True)

ENDED_TTL_SECONDS = 40
STREAMS = [f"000{number}" + "0" * 32 for number in range(4)]


@pytest.fixture
def unkept(backend: Backend) -> Unkept:
    return Unkept(backend.commands, log_ttl_seconds=LOG_TTL_SECONDS, ended_ttl_seconds=ENDED_TTL_SECONDS)


def _has(items: list[Any], count: int) -> bool:
    return len(items) == count


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


@pytest.mark.parametrize(("lives_ms", "is_due"), [(30_001, False), (10_001, False), (10_000, True), (1, True)])
async def test_what_is_read_after_the_last_look_is_looked_at_once_more(
    backend: Backend, unkept: Unkept, lives_ms: int, is_due: bool
) -> None:
    """Of a log that lives for 40 s the last look is due after 30."""
    unkept.noted_after_end(STREAMS[0], lives_ms)
    unkept.noted_after_end(STREAMS[1], 1)  # commands without a reply: it is there after the other, if that comes at all

    async def are_due() -> bool:
        return list(await backend.client.zrange(UNKEPT, 0, -1)) == [
            stream.encode() for stream in STREAMS[not is_due : 2]
        ]

    await wait_until(are_due, what="what is to be looked at is in the list")
    assert await unkept.take(10) == STREAMS[not is_due : 2]


@pytest.mark.parametrize(("ended_ttl_seconds", "lives_seconds"), [(1, 10), (9, 10), (300, 300)])
async def test_an_archived_log_lives_long_enough_for_its_last_look(
    backend: Backend, ended_ttl_seconds: int, lives_seconds: int
) -> None:
    unkept = Unkept(backend.commands, log_ttl_seconds=LOG_TTL_SECONDS, ended_ttl_seconds=ended_ttl_seconds)
    await backend.client.xadd(log_key(STREAMS[0]), {"f": "v"})
    await backend.client.expire(log_key(STREAMS[0]), LOG_TTL_SECONDS)
    await unkept.kept({STREAMS[0]: [log_key(STREAMS[0])]}, [])

    async def is_set() -> bool:
        return lives_seconds - 5 < int(await backend.client.ttl(log_key(STREAMS[0]))) <= lives_seconds

    await wait_until(is_set, what="the archived log expires")
    assert lives_seconds - unkept.last_look_seconds >= 2.5, "a look comes up to a second late"


async def test_a_note_says_how_long_the_log_of_an_ended_stream_lives_on(backend: Backend) -> None:
    noted: list[tuple[str, int]] = []
    notes = DeliveryNotes(backend.commands, lambda *about: noted.append(about))
    replies: list[Any] = []
    connection = DeliveryNote("c", "g", FIRST_ID, EventId(1, 1), 1.0)
    for count, field in enumerate(("token", "done"), 1):
        await backend.client.xadd(log_key(STREAMS[0]), {field: "v"})
        await backend.client.expire(log_key(STREAMS[0]), 20)
        await notes.note(STREAMS[0], connection)
        await backend.client.script_flush()  # then the script is sent whole
        notes.send_note(STREAMS[0], connection, replies.append)
        await wait_until(partial(_has, replies, count), what="the note is stored")
    await notes.note(STREAMS[1], connection)  # there is no such log
    assert [stream_id for stream_id, _ in noted] == [STREAMS[0]] * 2, "not while it runs"
    assert all(10_000 < lives_ms <= 20_000 for _, lives_ms in noted)


async def test_somebody_elses_member(backend: Backend, unkept: Unkept) -> None:
    await unkept.enter(STREAMS[0])
    await backend.client.zadd(UNKEPT, {"no stream": 0})
    assert await unkept.take(10) == []
    assert await unkept.count() == 1
