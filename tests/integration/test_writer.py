"""The writer on a real Valkey that loses replies, is killed, forgets, or is full: the log must be as if nothing had been."""

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
def forgetful() -> Iterator[RedisServer]:
    """It forgets everything when it is killed, as a failover to an empty replica does."""
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
    """A connection to the run's Valkey, emptied."""
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
    """A writer that has opened the first attempt of a new stream."""
    troubles = [] if troubles is None else troubles
    writer = Writer(log, STREAM, await accepted(log), Settings(**settings), troubles.append)
    assert await writer.begin(1, events.STARTED, b"{}", 0)
    return writer


def _unheeded(trouble: MidstreamError) -> None:
    """What ends the attempt is of no interest here; whoever waits gets it raised."""


async def tokens_in(log: EventLog) -> list[tuple[EventId, bytes]]:
    """Every token of the log with its id."""
    return [
        (event.id, event.value)
        for entry in await log.read_all(STREAM)
        if entry.field in events.COUNTED
        for event in events_of(entry)
    ]


def numbered(count: int, attempt: int = 1, start: int = 1) -> list[tuple[EventId, bytes]]:
    return [(EventId(attempt, offset), b"t%d" % offset) for offset in range(start, count + 1)]


async def push_each(writer: Writer, first: int, last: int) -> None:
    """Push the tokens of these offsets one by one, letting replies come in between."""
    for offset in range(first, last + 1):
        writer.push([f"t{offset}"])
        await asyncio.sleep(0)


# --- the ordinary way


async def test_tokens_that_come_during_a_round_trip_gather_into_the_next_entry(redis: RespConnection) -> None:
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
    writer = Writer(log, STREAM, await accepted(log), Settings(), _unheeded, pace_ms=200)
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
    writer = Writer(log, STREAM, await accepted(log), Settings(entry_tokens_max=10), _unheeded, pace_ms=5000)
    assert await writer.begin(1, events.STARTED, b"{}", 0)
    began = time.monotonic()
    writer.push([f"t{offset}" for offset in range(1, 36)])
    await wait_until(lambda: writer.offset == 30, what="full entries are sent")
    writer.push(["t36"])
    await writer.finish(events.DONE, b"{}")
    assert time.monotonic() - began < 2
    assert await tokens_in(log) == numbered(36)


async def test_an_entry_holds_a_bounded_number_of_tokens(redis: RespConnection) -> None:
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


async def test_it_knows_since_when_nobody_listens(redis: RespConnection, valkey_server: RedisServer) -> None:
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


async def test_the_end_lets_the_log_expire_soon(redis: RespConnection) -> None:
    log = log_over(redis)
    writer = await begun(log)
    assert await redis.execute("TTL", KEY) > ENDED_TTL_SECONDS
    writer.push(["t1"])
    await writer.finish(events.DONE, b"{}")
    assert await log.newest(STREAM) == [Entry(EventId(1, 2), events.DONE, b"{}")]
    assert 0 < await redis.execute("TTL", KEY) <= ENDED_TTL_SECONDS


# --- lost replies and lost connections


@pytest.mark.parametrize("seed", range(8))
async def test_lost_replies_double_nothing_and_lose_nothing(redis: RespConnection, seed: int) -> None:
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


async def test_a_killed_redis_that_kept_everything_is_a_pause(durable: RedisServer) -> None:
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


async def test_a_killed_redis_that_forgot_everything_is_written_anew(forgetful: RedisServer) -> None:
    async with connected(forgetful) as redis:
        log = log_over(redis)
        writer = await begun(log)
        await push_each(writer, 1, 20)
        await writer.drained()
        before = await log.read_all(STREAM)
        forgetful.kill()
        await push_each(writer, 21, 40)
        forgetful.start()
        await writer.drained()
        assert (await log.read_all(STREAM))[: len(before)] == before, "the same bytes under the same ids"
        assert await tokens_in(log) == numbered(40)
        assert 0 < await redis.execute("TTL", KEY) <= LOG_TTL_SECONDS


async def test_while_redis_is_away_a_writer_takes_only_so_much(durable: RedisServer) -> None:
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


async def test_a_deleted_log_is_written_anew_with_the_same_ids_and_bytes(redis: RespConnection) -> None:
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


async def test_a_silent_writer_notices_what_was_forgotten(redis: RespConnection) -> None:
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
    """Leave the log's first entries only, as the promotion of a replica that lagged does; what it was."""
    before = await log.read_all(STREAM)
    await redis.execute("DEL", KEY)
    for entry in before[:count]:
        await redis.execute("XADD", KEY, bytes(entry.id), entry.field, entry.value)
    if count:
        await redis.execute("EXPIRE", KEY, LOG_TTL_SECONDS)
    return before


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 10])
@pytest.mark.parametrize("by_probe", [True, False])
async def test_what_a_lagging_replica_lacks_is_appended_again(redis: RespConnection, kept: int, by_probe: bool) -> None:
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


async def test_redis_may_forget_again_and_again(redis: RespConnection) -> None:
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


async def test_what_is_repaired_is_published_to_whoever_listens(
    redis: RespConnection, valkey_server: RedisServer
) -> None:
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


async def test_a_worker_that_slept_through_its_lease_does_not_write_a_log_anew(redis: RespConnection) -> None:
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


async def test_a_worker_that_slept_still_repairs_a_log_that_is_there(redis: RespConnection) -> None:
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
async def test_a_fence_ends_the_attempt_and_is_told_once(redis: RespConnection, how: str, by_probe: bool) -> None:
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
        other = Writer(log, STREAM, await log.read_all(STREAM), Settings(), _unheeded)
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


async def test_a_fence_that_falls_while_an_append_is_under_way_wins_or_comes_after(redis: RespConnection) -> None:
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


async def test_a_takeover_of_what_has_moved_on_is_refused(redis: RespConnection) -> None:
    log = log_over(redis)
    stale = await accepted(log)
    assert await log.end(STREAM, events.CANCELLED, b"{}")
    before = await log.read_all(STREAM)
    late = Writer(log, STREAM, stale, Settings(), _unheeded)
    assert not await late.begin(1, events.STARTED, b"{}", 0)
    assert await log.read_all(STREAM) == before


async def test_a_takeover_waits_for_no_tokens_that_it_does_not_know(redis: RespConnection) -> None:
    log = log_over(redis)
    first = await begun(log)
    stale = await log.read_all(STREAM)
    first.push(["t1"])
    await first.drained()
    second = Writer(log, STREAM, stale, Settings(), _unheeded)
    assert not await second.begin(2, events.RESTARTED, b'{"base":0}', 0), "what it read is not all"
    first.push(["t2"])
    await first.drained()
    assert await tokens_in(log) == numbered(2)


async def test_of_two_workers_that_begin_the_same_attempt_one_does(redis: RespConnection) -> None:
    log = log_over(redis)
    entries = await accepted(log)
    writers = [Writer(log, STREAM, list(entries), Settings(), _unheeded) for _ in range(4)]
    begins = [writer.begin(1, events.STARTED, b'{"worker":%d}' % n, 0) for n, writer in enumerate(writers)]
    assert sorted(await asyncio.gather(*begins)) == [False, False, False, True]


@pytest.mark.parametrize("seed", range(10))
async def test_an_attempt_whose_beginning_was_answered_late_is_still_its_own(redis: RespConnection, seed: int) -> None:
    lossy = LossyCommands(redis, seed=seed, share=0.6)
    log = log_over(lossy)
    writer = Writer(log, STREAM, await accepted(log_over(redis)), Settings(), _unheeded)
    assert await writer.begin(1, events.STARTED, b'{"worker":"me"}', 0)
    writer.push(["t1"])
    await writer.finish(events.DONE, b"{}")
    assert [entry.field for entry in await log_over(redis).read_all(STREAM)] == [
        events.ACCEPTED,
        events.STARTED,
        events.TOKEN,
        events.DONE,
    ]


async def test_a_later_attempt_goes_on_behind_what_it_keeps(redis: RespConnection) -> None:
    log = log_over(redis)
    first = await begun(log)
    await push_each(first, 1, 3)
    await first.drained()
    second = Writer(log, STREAM, await log.read_all(STREAM), Settings(), _unheeded)
    assert await second.begin(2, events.RESTARTED, orjson.dumps({"base": 3}), 3)
    second.push(["t4"])
    await second.finish(events.DONE, b"{}")
    assert [entry.id for entry in await log.newest(STREAM, 3)] == [EventId(2, 0), EventId(2, 4), EventId(2, 5)]


@pytest.mark.parametrize("forgotten", [1, 2])
async def test_an_attempt_of_the_same_number_by_another_worker_is_a_fence(
    redis: RespConnection, forgotten: int
) -> None:
    """Redis forgot that this worker had begun, and another one began the same attempt before this one came to repair it."""
    troubles: list[MidstreamError] = []
    log = log_over(redis)
    writer = await begun(log, troubles)
    writer.push(["mine 1"])
    await writer.drained()
    await keep_first(redis, log, 1)
    other = Writer(log, STREAM, await log.read_all(STREAM), Settings(), _unheeded)
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


async def test_a_redis_that_is_full_ends_the_attempt_and_leaves_no_hole(redis: RespConnection) -> None:
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
    writer.push(["t7"])  # said by a provider that was not closed yet, to a Redis that has room again
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
async def test_a_probe_during_a_new_beginning_does_not_take_it_for_a_fence(redis: RespConnection, steps: int) -> None:
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
