"""The log's contract: which entries are appended, which are refused and why, what is published, and when a log expires."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from shared import events
from shared.errors import LogFull, RedisRefused
from shared.event_log import READ_ENTRIES_MAX, Appended, EventLog
from shared.events import Entry
from shared.ids import EventId
from shared.keys import log_key
from shared.large_fields import KEPT, UNTIL_THE_END, Beside, key_of
from tests.contract.conftest import (
    ENDED_TTL_SECONDS,
    LOG_TTL_SECONDS,
    REAL_BACKENDS,
    TOMBSTONE_TTL_SECONDS,
    Backend,
    keys_that_never_expire,
)
from tests.support.waiting import wait_until

STREAM = "s" * 36
ACCEPTED = Entry(EventId(0, 1), events.ACCEPTED, b"{}")
STARTED = Entry(EventId(1, 0), events.STARTED, b"{}")


def token(attempt: int, offset: int, text: str = "word") -> Entry:
    return Entry(EventId(attempt, offset), events.TOKEN, text.encode())


async def written(log: EventLog, *entries: Entry) -> list[Entry]:
    """Writes a log with these entries behind its first two, and returns all its entries."""
    everything = [ACCEPTED, STARTED, *entries]
    for held, entry in enumerate(everything):
        outcome = await log.append(STREAM, held, entry, LOG_TTL_SECONDS if entry is ACCEPTED else None)
        assert outcome.status == "applied"
    return everything


# --- large fields of a request

LARGE = {"messages": b'[{"role":"user","content":"a photo"}]', "x": b"1"}
SPLIT = ACCEPTED._replace(value=b'{"request":{"messages":[],"n":1},"beside":"request"}')
WHOLE = b'{"request":{"messages":[{"role":"user","content":"a photo"}],"n":1,"x":1}}'


async def begun(log: EventLog, place: str) -> None:
    entry = SPLIT._replace(value=SPLIT.value.replace(b'"request"}', b'"%b"}' % place.encode()))
    for _ in range(2):  # the second append is a duplicate, and changes nothing
        await log.append(STREAM, 0, entry, LOG_TTL_SECONDS, Beside(place, LARGE))
    assert (await log.append(STREAM, 1, STARTED)).status == "applied"


@pytest.mark.parametrize("place", [UNTIL_THE_END, KEPT])
@pytest.mark.parametrize("by", ["worker", "gateway", "deletion"])
async def test_large_fields_go_when_they_are_not_needed(backend: Backend, place: str, by: str) -> None:
    log, client, key = backend.log(), backend.client, key_of(STREAM, place)
    await begun(log, place)
    assert await client.ttl(key) in (LOG_TTL_SECONDS, LOG_TTL_SECONDS - 1)
    assert [entry.value for entry in await log.read_all(STREAM)] == [WHOLE, STARTED.value]
    assert b"photo" not in (await log.read(STREAM))[0].value
    if by == "worker":
        await log.append(STREAM, 2, Entry(EventId(1, 1), events.DONE, b"{}"), ENDED_TTL_SECONDS)
    elif by == "gateway":
        assert await log.end(STREAM, events.CANCELLED, b"{}")
    else:
        assert await log.delete(STREAM)
    kept = place == KEPT and by != "deletion"
    assert await client.exists(key) == kept
    if kept:
        assert await client.ttl(key) in (ENDED_TTL_SECONDS, ENDED_TTL_SECONDS - 1)
        accepted = (await log.read(STREAM))[0]
        assert (await log.with_large_fields(STREAM, accepted)).value == WHOLE
    await log.append(STREAM, 0, SPLIT, LOG_TTL_SECONDS, Beside(UNTIL_THE_END, LARGE))  # a late repetition
    assert await client.exists(key) == kept, "they do not come back"


async def test_without_its_large_fields_a_request_cannot_be_read(backend: Backend) -> None:
    log = backend.log()
    await begun(log, UNTIL_THE_END)
    await backend.client.delete(key_of(STREAM, UNTIL_THE_END))
    assert [entry.field for entry in await log.read_all(STREAM)] == [events.UNREADABLE, events.STARTED]
    await log.append(STREAM, 2, Entry(EventId(1, 1), events.DONE, b"{}"), ENDED_TTL_SECONDS)
    assert (await log.read_all(STREAM))[0].field == events.ACCEPTED, "of a log that has ended nobody needs them"


# --- append


async def test_appended_entries_are_read_back(backend: Backend) -> None:
    log = backend.log()
    everything = await written(log, token(1, 1), token(1, 2, "zwei"), Entry(EventId(1, 5), events.BATCH, b'["a","b"]'))
    assert await log.read_all(STREAM) == everything
    assert await log.read(STREAM, EventId(1, 0), count=2) == everything[2:4]
    assert await log.read(STREAM, EventId(1, 3)) == everything[4:], "an entry is given whole"
    assert await log.read_between(STREAM, EventId(1, 0), EventId(1, 1)) == everything[1:3]
    assert await log.newest(STREAM) == everything[-1:]
    assert await log.newest(STREAM, 2) == everything[-2:]


async def test_a_missing_log_is_empty(backend: Backend) -> None:
    log = backend.log()
    assert await log.read_all(STREAM) == await log.newest(STREAM) == []


@pytest.mark.parametrize("value", [b"", b"\x00", b"a\r\nb\n\n", bytes(range(256)), "ÿ€😀".encode(), b" " * 100_000])
async def test_any_bytes_are_kept_and_published(backend: Backend, value: bytes) -> None:
    log = backend.log()
    async with backend.listening(STREAM) as listener:
        everything = await written(log, Entry(EventId(1, 1), events.TOKEN, value))
        assert await log.read_all(STREAM) == everything
        assert (await listener.received())[-1] == b"1-1 t " + value


async def test_an_append_that_is_repeated_is_a_duplicate(backend: Backend) -> None:
    log = backend.log()
    everything = await written(log, token(1, 1), token(1, 2))
    again = await log.append(STREAM, 3, token(1, 2))
    assert again == Appended("duplicate", 0, EventId(1, 2), 4)
    earlier = await log.append(STREAM, 2, token(1, 1))
    assert earlier == Appended("duplicate", 0, EventId(1, 2), 4)
    assert await log.read_all(STREAM) == everything


async def test_an_append_that_is_repeated_after_a_count_that_fits_is_a_duplicate(backend: Backend) -> None:
    log = backend.log()
    everything = await written(log, token(1, 1))
    assert (await log.append(STREAM, 3, token(1, 1, "other"))).status == "duplicate"
    assert await log.read_all(STREAM) == everything


async def test_an_append_behind_missing_entries_is_a_gap(backend: Backend) -> None:
    log = backend.log()
    everything = await written(log, token(1, 1))
    assert await log.append(STREAM, 4, token(1, 3)) == Appended("gap", 0, EventId(1, 1), 3)
    assert await log.read_all(STREAM) == everything


async def test_an_append_to_a_missing_log_is_a_gap(backend: Backend) -> None:
    assert await backend.log().append(STREAM, 4, token(1, 3)) == Appended("gap", 0, EventId(0, 0), 0)
    assert await backend.client.dbsize() == 0


async def test_an_append_that_does_not_know_of_a_later_entry_is_refused(backend: Backend) -> None:
    log = backend.log()
    everything = await written(log, token(1, 1))
    assert (await log.append(STREAM, 2, token(1, 2))).status == "gap", "the writer has not seen 1-1"
    assert await log.read_all(STREAM) == everything


async def test_after_a_later_attempt_every_append_is_fenced(backend: Backend) -> None:
    log = backend.log()
    everything = await written(log, token(1, 1), Entry(EventId(2, 0), events.RESTARTED, b"{}"))
    for held in (2, 3, 4, 5):
        assert await log.append(STREAM, held, token(1, 2)) == Appended("fenced", 0, EventId(2, 0), 4)
    assert await log.read_all(STREAM) == everything


async def test_ids_of_many_digits_are_compared_as_numbers(backend: Backend) -> None:
    log = backend.log()
    await written(log, token(1, 9))
    assert (await log.append(STREAM, 99, token(1, 10))).status == "gap"
    assert (await log.append(STREAM, 3, token(1, 10))).status == "applied"
    far = 10**15
    assert (await log.append(STREAM, 4, token(1, far))).status == "applied"
    assert (await log.append(STREAM, 0, token(1, far + 1))).status == "gap"
    assert (await log.append(STREAM, 0, token(1, far))).status == "duplicate"


async def test_one_of_two_takeovers_succeeds(backend: Backend) -> None:
    log = backend.log()
    await written(log, token(1, 1))
    takeovers = [Entry(EventId(2, 0), events.RESTARTED, b'{"worker":"%d"}' % number) for number in range(8)]
    outcomes = await asyncio.gather(*(log.append(STREAM, 3, one) for one in takeovers))
    assert sorted(one.status for one in outcomes) == ["applied"] + ["duplicate"] * 7
    winner = takeovers[[one.status for one in outcomes].index("applied")]
    assert await log.newest(STREAM) == [winner]


# --- listeners


async def test_an_append_returns_the_number_of_listeners(backend: Backend) -> None:
    log = backend.log()
    await written(log)
    assert (await log.append(STREAM, 2, token(1, 1))).listeners == 0
    async with backend.listening(STREAM), backend.listening("other"):
        assert (await log.append(STREAM, 3, token(1, 2))).listeners == 1
        async with backend.listening(STREAM):
            assert (await log.append(STREAM, 4, token(1, 3))).listeners == 2
            assert (await log.probe(STREAM, 5, EventId(1, 3))).listeners == 2

    async def nobody() -> bool:
        return (await log.probe(STREAM, 5, EventId(1, 3))).listeners == 0

    await wait_until(nobody)


async def test_exactly_the_appended_entries_are_published(backend: Backend) -> None:
    log = backend.log()
    async with backend.listening(STREAM) as listener:
        await written(log, token(1, 1, "Hel"), token(1, 2, " lo"))
        assert await listener.received() == [b"0-1 accepted {}", b"1-0 started {}", b"1-1 t Hel", b"1-2 t  lo"]


async def test_refused_entries_are_not_published(backend: Backend) -> None:
    log = backend.log()
    await written(log, token(1, 1), Entry(EventId(2, 0), events.RESTARTED, b"{}"))
    async with backend.listening(STREAM) as listener:
        assert (await log.append(STREAM, 4, token(1, 2))).status == "fenced"
        assert (await log.append(STREAM, 4, Entry(EventId(2, 0), events.RESTARTED, b"x"))).status == "duplicate"
        assert (await log.append(STREAM, 9, token(2, 2))).status == "gap"
        assert (await log.probe(STREAM, 4, EventId(2, 0))).status == "applied"
        assert await log.end(STREAM, events.FAILED, b"{}", only_after=EventId(1, 1)) is False
        assert await listener.received() == []


# --- probe


async def test_a_probe_has_the_result_of_an_append_and_writes_nothing(backend: Backend) -> None:
    log = backend.log()
    everything = await written(log, token(1, 1), token(1, 2))
    assert (await log.probe(STREAM, 4, EventId(1, 2))).status == "applied"
    assert await log.probe(STREAM, 5, EventId(1, 3)) == Appended("gap", 0, EventId(1, 2), 4)
    assert await log.probe(STREAM, -1, EventId(1, 2)) == Appended("duplicate", 0, EventId(1, 2), 4)
    await log.end(STREAM, events.CANCELLED, b"{}")
    assert await log.probe(STREAM, 4, EventId(1, 2)) == Appended("fenced", 0, EventId(2, 0), 5)
    assert (await log.read_all(STREAM))[:-1] == everything


# --- the end


async def test_end_appends_one_terminal_event_that_fences_and_is_published(backend: Backend) -> None:
    log = backend.log()
    everything = await written(log, token(1, 1))
    async with backend.listening(STREAM) as listener:
        assert await log.end(STREAM, events.CANCELLED, b'{"by":"client"}') is True
        assert await log.end(STREAM, events.FAILED, b"{}") is False
        assert (await log.append(STREAM, 3, token(1, 2))).status == "fenced"
        assert await listener.received() == [b'2-0 cancelled {"by":"client"}']
    cancelled = Entry(EventId(2, 0), events.CANCELLED, b'{"by":"client"}')
    assert await log.read_all(STREAM) == [*everything, cancelled]


@pytest.mark.parametrize("field", sorted(events.TERMINAL - {events.DELETED}))
async def test_a_stream_that_has_ended_is_not_ended_again(backend: Backend, field: bytes) -> None:
    log = backend.log()
    await written(log, Entry(EventId(1, 1), field, b"{}"))
    assert await log.end(STREAM, events.CANCELLED, b"{}") is False


async def test_a_missing_log_cannot_be_ended(backend: Backend) -> None:
    assert await backend.log().end(STREAM, events.CANCELLED, b"{}") is None
    assert await backend.client.dbsize() == 0


async def test_only_one_of_many_ends_a_stream(backend: Backend) -> None:
    log = backend.log()
    everything = await written(log)
    did = await asyncio.gather(*(log.end(STREAM, events.CANCELLED, b"%d" % number) for number in range(10)))
    assert sorted(map(bool, did)) == [False] * 9 + [True]
    assert await log.read_all(STREAM) == [
        *everything,
        Entry(EventId(2, 0), events.CANCELLED, b"%d" % did.index(True)),
    ]


async def test_end_is_refused_if_the_last_id_is_another(backend: Backend) -> None:
    log = backend.log()
    everything = await written(log, token(1, 1))
    assert await log.end(STREAM, events.FAILED, b"{}", only_after=EventId(1, 0)) is False
    assert await log.read_all(STREAM) == everything
    assert await log.end(STREAM, events.FAILED, b"{}", only_after=EventId(1, 1)) is True


# --- delete


async def test_a_deleted_stream_s_tombstone_refuses_every_write(backend: Backend) -> None:
    log = backend.log()
    everything = await written(log, token(1, 1))
    assert await log.delete(STREAM, "ann") is True
    tombstone = Entry(EventId(2, 0), events.DELETED, b'{"principal":"ann"}')
    assert await log.read_all(STREAM) == [tombstone]
    for held in range(len(everything) + 1):
        assert (await log.append(STREAM, held, token(1, 2))).status == "fenced"
    assert await log.delete(STREAM) is False
    assert await log.end(STREAM, events.CANCELLED, b"{}") is False
    assert await log.read_all(STREAM) == [tombstone]


async def test_a_stream_that_was_deleted_before_it_began_cannot_begin(backend: Backend) -> None:
    log = backend.log()
    await log.append(STREAM, 0, ACCEPTED, LOG_TTL_SECONDS)
    await log.delete(STREAM)
    assert (await log.append(STREAM, 1, STARTED)).status != "applied"
    assert await log.read_all(STREAM) == [Entry(EventId(1, 0), events.DELETED, b"")]


async def test_a_missing_log_cannot_be_deleted(backend: Backend) -> None:
    assert await backend.log().delete(STREAM) is False
    assert await backend.client.dbsize() == 0


# --- expiry


async def ttl(backend: Backend) -> int:
    return int(await backend.client.ttl(log_key(STREAM)))


async def test_a_log_expires_from_its_start_and_sooner_from_its_end(backend: Backend) -> None:
    log = backend.log()
    await written(log, token(1, 1))
    assert LOG_TTL_SECONDS - 5 < await ttl(backend) <= LOG_TTL_SECONDS
    done = Entry(EventId(1, 2), events.DONE, b"{}")
    assert (await log.append(STREAM, 3, done, ENDED_TTL_SECONDS)).status == "applied"
    assert ENDED_TTL_SECONDS - 5 < await ttl(backend) <= ENDED_TTL_SECONDS
    await log.delete(STREAM)
    assert TOMBSTONE_TTL_SECONDS - 5 < await ttl(backend) <= TOMBSTONE_TTL_SECONDS


async def test_a_cancelled_log_expires_soon(backend: Backend) -> None:
    log = backend.log()
    await written(log, token(1, 1))
    await log.end(STREAM, events.CANCELLED, b"{}")
    assert ENDED_TTL_SECONDS - 5 < await ttl(backend) <= ENDED_TTL_SECONDS


async def test_a_refused_append_does_not_prolong_a_log(backend: Backend) -> None:
    log = backend.log()
    await written(log, token(1, 1))
    await log.end(STREAM, events.CANCELLED, b"{}")
    await log.append(STREAM, 3, token(1, 2), 10 * LOG_TTL_SECONDS)
    assert await ttl(backend) <= ENDED_TTL_SECONDS


async def test_a_key_that_never_expires_is_found(backend: Backend) -> None:
    """Proves that the check at the end of every test of this module can fail."""
    await backend.log().append(STREAM, 0, ACCEPTED)
    assert await keys_that_never_expire(backend.client) == [log_key(STREAM)]
    await backend.client.delete(log_key(STREAM))


# --- what Redis may answer


async def test_scripts_that_redis_has_lost_are_sent_again(backend: Backend) -> None:
    log = backend.log()
    await backend.client.script_flush()
    everything = await written(log)
    await backend.client.script_flush()
    assert await log.end(STREAM, events.CANCELLED, b"{}") is True
    await backend.client.script_flush()
    assert len(await log.read_all(STREAM)) == len(everything) + 1
    assert await log.delete(STREAM) is True


@pytest.mark.parametrize("is_lost", [False, True], ids=["", "the script is lost"])
async def test_the_newest_ids_of_many_logs_are_read_at_once(backend: Backend, is_lost: bool) -> None:
    log, no_stream, other = backend.log(), "n" * 36, "t" * 36
    await written(log, token(1, 1), token(1, 2))
    await log.append(other, 0, ACCEPTED, LOG_TTL_SECONDS)
    await backend.client.set(log_key(no_stream), "not a stream", ex=60)
    expected = {STREAM: EventId(1, 2), other: ACCEPTED.id, no_stream: EventId(0, 1), "m" * 36: None}
    if is_lost:
        await backend.client.script_flush()
    stream_ids, together = list(expected), len(expected) if log.is_one_server else 1
    for first in range(0, len(stream_ids), together):
        group = stream_ids[first : first + together]
        read: list[list[EventId | None] | Exception] = []
        log.send_newest_ids(group, read.append)
        await wait_until(partial(len, read))
        assert read == [[expected[stream_id] for stream_id in group]]


async def test_send_append_passes_on_the_reply_and_a_missing_script(backend: Backend) -> None:
    log = backend.log()
    await written(log)
    head = log.append_head(STREAM)
    replies: list[Any] = []

    async def append(held: int, entry: Entry) -> Any:
        replies.clear()
        log.send_append(head, held, *entry.id, entry.field, entry.value, replies.append)
        assert replies == [], "never before it returns"
        await wait_until(lambda: replies)
        return replies[0]

    await log.append(STREAM, 2, token(1, 1))
    assert await append(3, token(1, 2)) == 0
    async with backend.listening(STREAM):
        assert await append(4, token(1, 3)) == 1
    assert Appended.of(await append(4, token(1, 3))) == Appended("duplicate", 0, EventId(1, 3), 5)
    await backend.client.script_flush()
    refused = await append(5, token(1, 4))
    assert isinstance(refused, RedisRefused)
    assert refused.code == "NOSCRIPT"
    assert not refused.passing


async def test_a_key_of_another_type_is_an_error_and_not_a_status(backend: Backend) -> None:
    await backend.client.set(log_key(STREAM), "not a stream", ex=60)
    with pytest.raises(RedisRefused) as refused:
        await backend.log().append(STREAM, 0, ACCEPTED, LOG_TTL_SECONDS)
    assert not refused.value.passing


@pytest.mark.parametrize("backend", REAL_BACKENDS, indirect=True)
async def test_a_full_redis_refuses_tokens_but_accepts_an_end(backend: Backend) -> None:
    log = backend.log()
    everything = await written(log, token(1, 1))
    async with backend.listening(STREAM) as listener:
        await backend.client.config_set("maxmemory", 1)
        try:
            with pytest.raises(LogFull):
                await log.append(STREAM, 3, token(1, 2))
            assert await log.read_all(STREAM) == everything, "what is there can still be read"
            failed = Entry(EventId(1, 2), events.FAILED, b"{}")
            assert (await log.append(STREAM, 3, failed, ENDED_TTL_SECONDS)).status == "applied"
            assert await log.end(STREAM, events.CANCELLED, b"{}") is False
        finally:
            await backend.client.config_set("maxmemory", 0)
        assert await listener.received() == [b"1-2 failed {}"]
    assert await log.read_all(STREAM) == [*everything, failed]


@pytest.mark.parametrize("backend", REAL_BACKENDS, indirect=True)
async def test_a_full_redis_accepts_cancel_and_delete(backend: Backend) -> None:
    log = backend.log()
    everything = await written(log, token(1, 1))
    await backend.client.config_set("maxmemory", 1)
    try:
        assert await log.end(STREAM, events.CANCELLED, b"{}") is True
        assert len(await log.read_all(STREAM)) == len(everything) + 1
        assert await log.delete(STREAM) is True
    finally:
        await backend.client.config_set("maxmemory", 0)
    assert [entry.field for entry in await log.read_all(STREAM)] == [events.DELETED]


async def test_a_long_log_is_read_in_bounded_reads_without_loss(backend: Backend) -> None:
    log = backend.log()
    await written(log)
    count = 2 * READ_ENTRIES_MAX + 3
    async with backend.client_of(log_key(STREAM)).pipeline(transaction=False) as pipeline:
        for offset in range(1, count + 1):
            pipeline.xadd(log_key(STREAM), {"t": b"x"}, id=f"1-{offset}")
        await pipeline.execute()
    entries = await log.read_all(STREAM)
    assert [entry.id for entry in entries[2:]] == [EventId(1, offset) for offset in range(1, count + 1)]
