"""The writer on a real Valkey that loses replies or entries, is killed, or is full: the log must not show it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from producer.writer import Writer
from shared import events
from shared.commands import Commands
from shared.errors import Fenced, LogFull, MidstreamError
from shared.event_log import EventLog
from shared.events import Entry, Item, events_of
from shared.ids import EventId
from shared.keys import live_channel, log_key
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from shared.settings import Settings
from tests.support.lossy import LossyCommands
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

STREAM = "s" * 36
KEY = log_key(STREAM)
ACCEPTED = Entry(EventId(0, 1), events.ACCEPTED, b"{}")
LOG_TTL_SECONDS, ENDED_TTL_SECONDS = 1000, 100


@pytest.fixture
def durable() -> Iterator[RedisServer]:
    with RedisServer("valkey", durable=True) as server:
        yield server


@pytest.fixture
def losing() -> Iterator[RedisServer]:
    """Yields a server that loses everything when it is killed, as in a failover to an empty replica."""
    with RedisServer("valkey") as server:
        yield server


@asynccontextmanager
async def connected(server: RedisServer) -> AsyncIterator[RespConnection]:
    connection = RespConnection(
        RedisAddress.parse(server.url),
        name="test",
        reply_seconds=5.0,
        reconnect_seconds_max=0.05,
        scripts=EventLog.SCRIPTS,
    )
    connection.start()
    try:
        await wait_until(lambda: connection.is_up)
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def redis(valkey_server: RedisServer) -> AsyncIterator[RespConnection]:
    """Yields a connection to the shared Valkey, emptied."""
    async with connected(valkey_server) as connection:
        await connection.execute("FLUSHALL")
        yield connection


def log_over(commands: Commands) -> EventLog:
    return EventLog(
        commands, log_ttl_seconds=LOG_TTL_SECONDS, ended_ttl_seconds=ENDED_TTL_SECONDS, tombstone_ttl_seconds=30
    )


async def accepted(log: EventLog) -> list[Entry]:
    await log.append(STREAM, 0, ACCEPTED, LOG_TTL_SECONDS)
    return [ACCEPTED]


async def begun(log: EventLog, troubles: list[MidstreamError] | None = None, **settings: Any) -> Writer:
    """Returns a writer that has begun the first attempt of a new stream."""
    troubles = [] if troubles is None else troubles
    writer = Writer(log, STREAM, await accepted(log), Settings(**settings), troubles.append)
    assert await writer.begin(1, events.STARTED, b"{}", 0)
    return writer


def _ignored(trouble: MidstreamError) -> None:
    """Ignores what ends the attempt; callers that wait get it as an exception."""


async def tokens_in(log: EventLog) -> list[tuple[EventId, bytes]]:
    """Returns every token of the log with its id."""
    return [
        (event.id, event.value)
        for entry in await log.read_all(STREAM)
        if entry.field in events.COUNTED
        for event in events_of(entry)
    ]


def numbered(count: int, attempt: int = 1, start: int = 1) -> list[tuple[EventId, bytes]]:
    return [(EventId(attempt, offset), b"t%d" % offset) for offset in range(start, count + 1)]


async def push_each(writer: Writer, first: int, last: int) -> None:
    """Pushes the tokens of these offsets one by one, with time for replies in between."""
    for offset in range(first, last + 1):
        writer.push([f"t{offset}"])
        await asyncio.sleep(0)


# --- the ordinary way


async def test_tokens_that_arrive_during_a_round_trip_share_the_next_entry(redis: RespConnection) -> None:
    log = log_over(redis)
    writer = await begun(log)
    for item in ("a", "b", "c"):
        writer.push([item])
    await writer.drained()
    assert (await log.read_all(STREAM))[2:] == [
        Entry(EventId(1, 1), events.TOKEN, b"a"),
        Entry(EventId(1, 3), events.BATCH, b'["b","c"]'),
    ]
    writer.push(["d"])
    await writer.drained()
    assert await log.newest(STREAM) == [Entry(EventId(1, 4), events.TOKEN, b"d")]


async def test_tokens_that_come_within_the_pace_share_an_entry(redis: RespConnection) -> None:
    log = log_over(redis)
    writer = Writer(log, STREAM, await accepted(log), Settings(), _ignored, pace_ms=200)
    assert await writer.begin(1, events.STARTED, b"{}", 0)
    writer.push(["t1"])
    await wait_until(lambda: log.newest(STREAM), what="the first token waits for nothing")
    began = time.monotonic()
    for offset in range(2, 21):
        writer.push([f"t{offset}"])
        await asyncio.sleep(0.01)
    took_seconds = time.monotonic() - began
    await writer.drained()
    entries = (await log.read_all(STREAM))[2:]
    assert entries[0].id == EventId(1, 1)
    assert 2 <= len(entries) <= 3 + took_seconds / 0.2
    assert await tokens_in(log) == numbered(20)


async def test_the_end_of_an_answer_and_a_full_entry_wait_for_no_pace(redis: RespConnection) -> None:
    log = log_over(redis)
    writer = Writer(log, STREAM, await accepted(log), Settings(entry_tokens_max=10), _ignored, pace_ms=5000)
    assert await writer.begin(1, events.STARTED, b"{}", 0)
    began = time.monotonic()
    writer.push([f"t{offset}" for offset in range(1, 36)])
    await wait_until(lambda: writer.offset == 30, what="full entries are sent")
    writer.push(["t36"])
    await writer.finish(events.DONE, b"{}")
    assert time.monotonic() - began < 5, "shorter than a pause of its pace"
    assert await tokens_in(log) == numbered(36)


async def test_an_entry_has_a_limited_number_of_tokens(redis: RespConnection) -> None:
    log = log_over(redis)
    writer = await begun(log, entry_tokens_max=10)
    writer.push([f"t{offset}" for offset in range(1, 36)])
    await writer.drained()
    assert [entry.id.offset for entry in await log.read_all(STREAM)][2:] == [10, 20, 30, 35]
    assert await tokens_in(log) == numbered(35)


async def test_deltas_keep_their_place_among_tokens(redis: RespConnection) -> None:
    log = log_over(redis)
    writer = await begun(log)
    items: list[Item] = ["a", b'{"delta":{"tool_calls":[]}}', "b"]
    writer.push(items[:1])
    writer.push(items[1:])
    await writer.drained()
    assert [value for _, value in await tokens_in(log)] == [b"a", b'{"delta":{"tool_calls":[]}}', b"b"]


async def test_the_writer_knows_since_when_nobody_listens(redis: RespConnection, valkey_server: RedisServer) -> None:
    log = log_over(redis)
    pushed: list[Any] = []
    subscriber = RespConnection(
        RedisAddress.parse(valkey_server.url), name="listener", reply_seconds=5, on_push=pushed.extend
    )
    subscriber.start()
    try:
        await wait_until(lambda: subscriber.is_up)
        writer = await begun(log)
        assert writer.unheard_since is not None
        since = writer.unheard_since
        writer.push(["t1"])
        await writer.drained()
        assert writer.unheard_since == since, "since the first time that nobody did"
        subscriber.push("SSUBSCRIBE", live_channel(STREAM))
        await wait_until(lambda: pushed)
        writer.push(["t2"])
        await writer.drained()
        assert writer.unheard_since is None
        subscriber.push("SUNSUBSCRIBE", live_channel(STREAM))
        await wait_until(lambda: len(pushed) == 3)
        await writer.probe()
        assert writer.unheard_since is not None
    finally:
        await subscriber.close()


async def test_after_the_end_the_log_expires_soon(redis: RespConnection) -> None:
    log = log_over(redis)
    writer = await begun(log)
    assert await redis.execute("TTL", KEY) > ENDED_TTL_SECONDS
    writer.push(["t1"])
    await writer.finish(events.DONE, b"{}")
    assert await log.newest(STREAM) == [Entry(EventId(1, 2), events.DONE, b"{}")]
    assert 0 < await redis.execute("TTL", KEY) <= ENDED_TTL_SECONDS


# --- lost replies and lost connections


@pytest.mark.parametrize("seed", range(8))
async def test_lost_replies_neither_double_nor_lose_tokens(redis: RespConnection, seed: int) -> None:
    lossy = LossyCommands(redis, seed=seed, share=0.0)
    log = log_over(lossy)
    writer = await begun(log, entry_tokens_max=3)
    lossy.share = 0.3
    dice = random.Random(seed)
    offset = 1
    while offset <= 150:
        writer.push([f"t{offset + more}" for more in range(dice.randint(1, 4))])
        offset = writer.offset + len(writer._waiting) + 1
        for _ in range(dice.randint(0, 30)):
            await asyncio.sleep(0)
    await writer.drained()
    await writer.finish(events.DONE, b"{}")
    assert lossy.lost > 3
    lossy.share = 0.0
    assert await tokens_in(log) == numbered(offset - 1), f"seed {seed}"
    assert [entry.field for entry in await log.read_all(STREAM)].count(events.DONE) == 1


async def test_a_killed_redis_with_a_durable_log_only_causes_a_pause(durable: RedisServer) -> None:
    async with connected(durable) as redis:
        log = log_over(redis)
        writer = await begun(log)
        for kill in range(3):
            await push_each(writer, kill * 40 + 1, kill * 40 + 20)
            durable.kill()
            await push_each(writer, kill * 40 + 21, kill * 40 + 40)
            durable.start()
        await writer.drained()
        assert await tokens_in(log) == numbered(120)
        await writer.finish(events.DONE, b"{}")
        assert [entry.field for entry in await log.read_all(STREAM)].count(events.DONE) == 1


async def test_a_log_that_a_killed_redis_lost_is_written_again(losing: RedisServer) -> None:
    async with connected(losing) as redis:
        log = log_over(redis)
        writer = await begun(log)
        await push_each(writer, 1, 20)
        await writer.drained()
        before = await log.read_all(STREAM)
        losing.kill()
        await push_each(writer, 21, 40)
        losing.start()
        await writer.drained()
        assert (await log.read_all(STREAM))[: len(before)] == before, "the same bytes under the same ids"
        assert await tokens_in(log) == numbered(40)
        assert 0 < await redis.execute("TTL", KEY) <= LOG_TTL_SECONDS


async def test_while_redis_is_down_the_writer_s_buffer_is_limited(durable: RedisServer) -> None:
    async with connected(durable) as redis:
        log = log_over(redis)
        writer = await begun(log, worker_unsent_bytes_max=1024)
        durable.freeze()
        offset = 0
        while not writer.crowded:
            offset += 1
            writer.push([f"t{offset}"])
        waiting = asyncio.create_task(writer.wait_for_room())
        await asyncio.sleep(0)
        assert not waiting.done()
        durable.thaw()
        await waiting
        await writer.drained()
        assert await tokens_in(log) == numbered(offset)


# --- a Redis that forgot


async def test_a_lost_log_is_written_again_with_the_same_ids_and_bytes(redis: RespConnection) -> None:
    log = log_over(redis)
    writer = await begun(log)
    await push_each(writer, 1, 20)
    await writer.drained()
    before = await log.read_all(STREAM)
    await redis.execute("DEL", KEY)
    writer.push(["t21"])
    await writer.drained()
    after = await log.read_all(STREAM)
    assert after == [*before, Entry(EventId(1, 21), events.TOKEN, b"t21")]
    assert 0 < await redis.execute("TTL", KEY) <= LOG_TTL_SECONDS


async def test_an_idle_writer_notices_lost_entries(redis: RespConnection) -> None:
    log = log_over(redis)
    writer = await begun(log)
    await push_each(writer, 1, 20)
    await writer.drained()
    before = await log.read_all(STREAM)
    await redis.execute("DEL", KEY)
    await writer.probe()

    async def whole() -> bool:
        return await log.read_all(STREAM) == before

    await wait_until(whole)


async def keep_first(redis: RespConnection, log: EventLog, count: int) -> list[Entry]:
    """Removes all but the log's first entries, as the promotion of a lagging replica does. Returns the former entries."""
    before = await log.read_all(STREAM)
    await redis.execute("DEL", KEY)
    for entry in before[:count]:
        await redis.execute("XADD", KEY, bytes(entry.id), entry.field, entry.value)
    if count:
        await redis.execute("EXPIRE", KEY, LOG_TTL_SECONDS)
    return before


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 10])
@pytest.mark.parametrize("by_probe", [True, False])
async def test_entries_that_a_lagging_replica_lacks_are_appended_again(
    redis: RespConnection, kept: int, by_probe: bool
) -> None:
    log = log_over(redis)
    writer = await begun(log, entry_tokens_max=3)
    await push_each(writer, 1, 40)
    await writer.drained()
    before = await keep_first(redis, log, kept)
    if by_probe:
        await writer.probe()
    await push_each(writer, 41, 45)
    await writer.drained()
    assert (await log.read_all(STREAM))[: len(before)] == before
    assert await tokens_in(log) == numbered(45)


async def test_redis_may_lose_entries_repeatedly(redis: RespConnection) -> None:
    log = log_over(redis)
    writer = await begun(log)
    dice = random.Random(7)
    for offset in range(1, 60):
        writer.push([f"t{offset}"])
        if dice.random() < 0.3:
            await writer.drained()
            await keep_first(redis, log, dice.randint(0, 5))
    await writer.drained()
    assert await tokens_in(log) == numbered(59)


async def test_repaired_entries_are_published(redis: RespConnection, valkey_server: RedisServer) -> None:
    log = log_over(redis)
    pushed: list[Any] = []
    subscriber = RespConnection(
        RedisAddress.parse(valkey_server.url), name="listener", reply_seconds=5, on_push=pushed.extend
    )
    subscriber.start()
    try:
        await wait_until(lambda: subscriber.is_up)
        writer = await begun(log)
        await push_each(writer, 1, 3)
        await writer.drained()
        subscriber.push("SSUBSCRIBE", live_channel(STREAM))
        await wait_until(lambda: pushed)
        before = await keep_first(redis, log, 2)
        await writer.probe()
        await wait_until(lambda: len(pushed) == 1 + len(before) - 2)
        assert [message[2] for message in pushed[1:]] == [
            b"%b %b %b" % (bytes(entry.id), entry.field, entry.value) for entry in before[2:]
        ]
    finally:
        await subscriber.close()


async def test_an_entry_removed_by_hand_does_not_stop_the_rest(redis: RespConnection) -> None:
    log = log_over(redis)
    writer = await begun(log)
    for offset in (1, 2, 3):
        writer.push([f"t{offset}"])
        await writer.drained()
    await redis.execute("XDEL", KEY, "1-2")
    await push_each(writer, 4, 6)
    await writer.drained()
    assert await tokens_in(log) == [one for one in numbered(6) if one[0].offset != 2]


async def test_a_worker_suspended_past_its_lease_does_not_recreate_a_log(redis: RespConnection) -> None:
    troubles: list[MidstreamError] = []
    log = log_over(redis)
    writer = await begun(log, troubles)
    await push_each(writer, 1, 5)
    await writer.drained()
    writer.may_recreate = False
    await redis.execute("DEL", KEY)
    writer.push(["t6"])
    with pytest.raises(Fenced):
        await writer.drained()
    assert [type(one) for one in troubles] == [Fenced]
    assert await redis.execute("EXISTS", KEY) == 0


async def test_a_worker_suspended_past_its_lease_still_repairs_an_existing_log(redis: RespConnection) -> None:
    log = log_over(redis)
    writer = await begun(log)
    await push_each(writer, 1, 20)
    await writer.drained()
    writer.may_recreate = False
    await keep_first(redis, log, 3)
    writer.push(["t21"])
    await writer.drained()
    assert await tokens_in(log) == numbered(21)


# --- fences


@pytest.mark.parametrize("by_probe", [True, False])
@pytest.mark.parametrize("how", ["cancelled", "taken over", "deleted"])
async def test_a_fence_ends_the_attempt_and_is_reported_once(redis: RespConnection, how: str, by_probe: bool) -> None:
    troubles: list[MidstreamError] = []
    log = log_over(redis)
    writer = await begun(log, troubles)
    await push_each(writer, 1, 5)
    await writer.drained()
    if how == "cancelled":
        assert await log.end(STREAM, events.CANCELLED, b"{}")
    elif how == "deleted":
        assert await log.delete(STREAM)
    else:
        other = Writer(log, STREAM, await log.read_all(STREAM), Settings(), _ignored)
        assert await other.begin(2, events.RESTARTED, b"{}", 0)
    before = await log.read_all(STREAM)
    if by_probe:
        await writer.probe()
        assert [type(one) for one in troubles] == [Fenced]
    else:
        writer.push(["t6"])
    with pytest.raises(Fenced):
        await writer.drained()
    writer.push(["t7"])
    with pytest.raises(Fenced):
        await writer.drained()
    with pytest.raises(Fenced):
        await writer.finish(events.DONE, b"{}")
    await writer.probe()
    assert [type(one) for one in troubles] == [Fenced]
    assert await log.read_all(STREAM) == before


async def test_a_fence_during_an_append_comes_before_or_after_it(redis: RespConnection) -> None:
    for round_number in range(30):
        await redis.execute("DEL", KEY)
        troubles: list[MidstreamError] = []
        log = log_over(redis)
        writer = await begun(log, troubles)
        pushing = asyncio.create_task(push_each(writer, 1, 30))
        for _ in range(round_number * 2):
            await asyncio.sleep(0)
        assert await log.end(STREAM, events.CANCELLED, b"{}")
        await pushing
        if not troubles:
            await writer.probe()
        await wait_until(lambda troubles=troubles: troubles)  # type: ignore[misc]
        entries = await log.read_all(STREAM)
        assert entries[-1].field == events.CANCELLED
        kept = await tokens_in(log)
        assert kept == numbered(len(kept))


async def test_a_takeover_of_a_log_that_has_grown_is_refused(redis: RespConnection) -> None:
    log = log_over(redis)
    stale = await accepted(log)
    assert await log.end(STREAM, events.CANCELLED, b"{}")
    before = await log.read_all(STREAM)
    late = Writer(log, STREAM, stale, Settings(), _ignored)
    assert not await late.begin(1, events.STARTED, b"{}", 0)
    assert await log.read_all(STREAM) == before


async def test_a_takeover_does_not_wait_for_unknown_tokens(redis: RespConnection) -> None:
    log = log_over(redis)
    first = await begun(log)
    stale = await log.read_all(STREAM)
    first.push(["t1"])
    await first.drained()
    second = Writer(log, STREAM, stale, Settings(), _ignored)
    assert not await second.begin(2, events.RESTARTED, b'{"base":0}', 0), "what it read is not all"
    first.push(["t2"])
    await first.drained()
    assert await tokens_in(log) == numbered(2)


async def test_only_one_of_two_workers_begins_the_same_attempt(redis: RespConnection) -> None:
    log = log_over(redis)
    entries = await accepted(log)
    writers = [Writer(log, STREAM, list(entries), Settings(), _ignored) for _ in range(4)]
    begins = [writer.begin(1, events.STARTED, b'{"worker":%d}' % n, 0) for n, writer in enumerate(writers)]
    assert sorted(await asyncio.gather(*begins)) == [False, False, False, True]


@pytest.mark.parametrize("seed", range(10))
async def test_a_late_reply_to_an_attempt_s_first_entry_is_not_a_fence(redis: RespConnection, seed: int) -> None:
    lossy = LossyCommands(redis, seed=seed, share=0.6)
    log = log_over(lossy)
    writer = Writer(log, STREAM, await accepted(log_over(redis)), Settings(), _ignored)
    assert await writer.begin(1, events.STARTED, b'{"worker":"me"}', 0)
    writer.push(["t1"])
    await writer.finish(events.DONE, b"{}")
    assert [entry.field for entry in await log_over(redis).read_all(STREAM)] == [
        events.ACCEPTED,
        events.STARTED,
        events.TOKEN,
        events.DONE,
    ]


async def test_a_later_attempt_continues_after_the_tokens_it_keeps(redis: RespConnection) -> None:
    log = log_over(redis)
    first = await begun(log)
    await push_each(first, 1, 3)
    await first.drained()
    second = Writer(log, STREAM, await log.read_all(STREAM), Settings(), _ignored)
    assert await second.begin(2, events.RESTARTED, orjson.dumps({"base": 3}), 3)
    second.push(["t4"])
    await second.finish(events.DONE, b"{}")
    assert [entry.id for entry in await log.newest(STREAM, 3)] == [EventId(2, 0), EventId(2, 4), EventId(2, 5)]


@pytest.mark.parametrize("forgotten", [1, 2])
async def test_an_attempt_of_the_same_number_by_another_worker_is_a_fence(
    redis: RespConnection, forgotten: int
) -> None:
    """Redis has lost this worker's first entry, and another worker has begun the same attempt before the repair."""
    troubles: list[MidstreamError] = []
    log = log_over(redis)
    writer = await begun(log, troubles)
    writer.push(["mine 1"])
    await writer.drained()
    await keep_first(redis, log, 1)
    other = Writer(log, STREAM, await log.read_all(STREAM), Settings(), _ignored)
    assert await other.begin(1, events.STARTED, b'{"worker":"other"}', 0)
    if forgotten == 2:
        other.push(["theirs 1"])
        await other.drained()
        other.push(["theirs 2"])
        await other.drained()
    before = await log.read_all(STREAM)
    writer.push(["mine 2"])
    with pytest.raises(Fenced):
        await writer.drained()
    assert await log.read_all(STREAM) == before, "two answers must not be mixed into one"


# --- a log that is full


async def test_a_log_of_too_many_entries_ends_with_room_for_its_end(redis: RespConnection) -> None:
    troubles: list[MidstreamError] = []
    log = log_over(redis)
    writer = await begun(log, troubles, stream_entries_max=10)
    for offset in range(1, 20):
        writer.push([f"t{offset}"])
        if troubles:
            break
        await writer.drained()
    assert [type(one) for one in troubles] == [LogFull]
    with pytest.raises(LogFull):
        await writer.drained()
    await writer.finish(events.FAILED, b"{}")
    entries = await log.read_all(STREAM)
    assert len(entries) == 10
    assert await tokens_in(log) == numbered(7)
    assert entries[-1] == Entry(EventId(1, 8), events.FAILED, b"{}")


async def test_a_log_of_too_many_bytes_ends(redis: RespConnection) -> None:
    troubles: list[MidstreamError] = []
    log = log_over(redis)
    writer = await begun(log, troubles, stream_bytes_max=2000)
    for _ in range(5):
        if not troubles:
            writer.push(["x" * 500])
    with pytest.raises(LogFull, match="2000 bytes"):
        await writer.drained()
    await writer.finish(events.FAILED, b"{}")
    last = (await log.read_all(STREAM))[-1]
    assert last.field == events.FAILED
    assert last.id == EventId(1, len(await tokens_in(log)) + 1)


async def test_a_full_redis_ends_the_attempt_without_a_hole(redis: RespConnection) -> None:
    troubles: list[MidstreamError] = []
    log = log_over(redis)
    writer = await begun(log, troubles)
    await push_each(writer, 1, 5)
    await writer.drained()
    await redis.execute("CONFIG", "SET", "maxmemory", 1)
    try:
        writer.push(["t6"])
        with pytest.raises(LogFull):
            await writer.drained()
    finally:
        await redis.execute("CONFIG", "SET", "maxmemory", 0)
    assert [type(one) for one in troubles] == [LogFull]
    writer.push(["t7"])  # tokens of a provider that is not closed yet, while Redis has room again
    with pytest.raises(LogFull):
        await writer.drained()
    await redis.execute("CONFIG", "SET", "maxmemory", 1)
    try:
        await writer.finish(events.FAILED, b"{}")
    finally:
        await redis.execute("CONFIG", "SET", "maxmemory", 0)
    assert await tokens_in(log) == numbered(5)
    assert await log.newest(STREAM) == [Entry(EventId(1, 6), events.FAILED, b"{}")]


@pytest.mark.parametrize("steps", range(8))
async def test_a_probe_during_a_restart_does_not_take_the_new_attempt_for_a_fence(
    redis: RespConnection, steps: int
) -> None:
    troubles: list[MidstreamError] = []
    log = log_over(redis)
    writer = await begun(log, troubles)
    await push_each(writer, 1, 3)
    await writer.drained()
    beginning = asyncio.create_task(writer.begin(2, events.RESTARTED, b'{"base":0}', 0))
    for _ in range(steps):
        await asyncio.sleep(0)
    await writer.probe()
    assert await beginning
    assert troubles == []
    writer.push(["t1"])
    await writer.finish(events.DONE, b"{}")
    assert [entry.id for entry in await log.newest(STREAM, 3)] == [EventId(2, 0), EventId(2, 1), EventId(2, 2)]
