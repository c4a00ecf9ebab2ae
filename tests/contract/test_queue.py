"""The queue's contract: every request goes to one worker, and to another one when the lease has expired."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from shared.commands import Commands
from shared.errors import Disconnected, LogFull, QueueFull
from shared.keys import GROUP, PROCESSES_UNTIL, REQUESTS
from shared.queue import Claim, QueueCounts, RequestQueue
from tests.contract.conftest import QUEUE_TTL_SECONDS, REAL_BACKENDS, Backend
from tests.support.waiting import wait_until

LONG_MILLISECONDS = 60_000
STREAMS = tuple(f"000{number}" + "0" * 32 for number in range(5))
STREAM, OTHER = STREAMS[:2]


async def owner_of(backend: Backend, claim: Claim) -> bytes | None:
    rows = await backend.commands.execute("XPENDING", REQUESTS, GROUP, claim.entry_id, claim.entry_id, 1)
    return bytes(rows[0][1]) if rows else None


async def idle_milliseconds(backend: Backend, claim: Claim) -> int:
    rows = await backend.commands.execute("XPENDING", REQUESTS, GROUP, claim.entry_id, claim.entry_id, 1)
    return int(rows[0][2])


async def one_claimed(backend: Backend, consumer: str = "ann", stream_id: str = STREAM) -> Claim:
    queue = backend.queue(consumer)
    await queue.open()
    await queue.enqueue(stream_id)
    [claim] = await queue.claim(backend.commands, 1, 1000)
    return claim


async def test_requests_are_claimed_in_order_each_by_one_worker(backend: Backend) -> None:
    ann, bob = backend.queue("ann"), backend.queue("bob")
    await ann.open()
    for number in range(5):
        await ann.enqueue(STREAMS[number])
    hers = await ann.claim(backend.commands, 2, 1000)
    his = await bob.claim(backend.commands, 10, 1000)
    assert [one.stream_id for one in hers] == list(STREAMS[:2])
    assert [one.stream_id for one in his] == list(STREAMS[2:])
    assert await ann.claim(backend.commands, 10, 1) == [], "an empty queue answers when the wait is over"
    assert (await bob.counts()).requests == 5, "until they are acknowledged, they count"


@pytest.mark.parametrize(
    ("score", "seconds"), [(8_000_000.0, 7993.0), (1000.0, None), ("inf", None), (1e300, None), (-5, None)]
)
async def test_the_last_heartbeat_of_a_worker(backend: Backend, score: float | str, seconds: float | None) -> None:
    """A score that another program has written is ignored, since the time would be written to logs."""
    assert await backend.queue("ann").last_heard_at("bob") is None
    await backend.commands.execute("ZADD", PROCESSES_UNTIL, score, "bob")
    await backend.commands.execute("EXPIRE", PROCESSES_UNTIL, 60)
    assert await backend.queue("ann").last_heard_at("bob") == seconds


@pytest.mark.parametrize("backend", ["valkey through redis-py"], indirect=True)
async def test_a_claim_waits_for_a_request(backend: Backend) -> None:
    queue = backend.queue("ann")
    await queue.open()
    waiting = asyncio.create_task(queue.claim(backend.commands, 1, 5000))

    async def blocked() -> bool:
        return int((await backend.client.info("clients"))["blocked_clients"]) == 1

    await wait_until(blocked)
    await queue.enqueue(STREAM)
    assert [one.stream_id for one in await waiting] == [STREAM]


async def test_a_request_enqueued_before_the_first_worker_came_is_claimed(backend: Backend) -> None:
    await backend.queue("").enqueue(STREAM)
    queue = backend.queue("ann")
    await queue.open()
    await queue.open()
    assert [one.stream_id for one in await queue.claim(backend.commands, 1, 1000)] == [STREAM]


async def test_a_lease_that_runs_out_goes_to_another_worker(backend: Backend) -> None:
    claim = await one_claimed(backend)
    bob = backend.queue("bob")
    assert await bob.claim_expired(10, LONG_MILLISECONDS) == []
    taken: list[Claim] = []

    async def expired() -> bool:
        taken.extend(await bob.claim_expired(10, 20))
        return bool(taken)

    await wait_until(expired)
    assert taken == [claim]
    assert await owner_of(backend, claim) == b"bob"


async def test_a_renewed_lease_does_not_run_out(backend: Backend) -> None:
    claim = await one_claimed(backend)

    async def older() -> bool:
        return await idle_milliseconds(backend, claim) >= 500

    await wait_until(older)
    assert await backend.queue("ann").renew([claim]) == []
    assert await idle_milliseconds(backend, claim) < 500
    assert await owner_of(backend, claim) == b"ann"


async def test_renewing_does_not_steal_a_lost_lease_back(backend: Backend) -> None:
    lost = await one_claimed(backend)
    assert await backend.queue("bob").claim_expired(10, 0) == [lost]
    kept = await one_claimed(backend, stream_id=OTHER)
    assert await backend.queue("ann").renew([lost, kept]) == [lost.entry_id]
    assert await owner_of(backend, lost) == b"bob"
    assert await owner_of(backend, kept) == b"ann"


async def test_renewing_an_acknowledged_claim_reports_it_as_lost(backend: Backend) -> None:
    claim = await one_claimed(backend)
    ann = backend.queue("ann")
    await ann.acknowledge(claim)
    assert await ann.renew([claim]) == [claim.entry_id]
    assert await owner_of(backend, claim) is None


async def test_a_claim_handed_back_goes_to_another_worker_at_once(backend: Backend) -> None:
    claim = await one_claimed(backend)
    await backend.queue("ann").hand_back([claim], LONG_MILLISECONDS)
    assert await backend.queue("bob").claim_expired(10, LONG_MILLISECONDS) == [claim]


async def test_a_claim_that_another_worker_took_over_cannot_be_handed_back(backend: Backend) -> None:
    claim = await one_claimed(backend)
    assert await backend.queue("bob").claim_expired(10, 0) == [claim]
    await backend.queue("ann").hand_back([claim], LONG_MILLISECONDS)
    assert await owner_of(backend, claim) == b"bob"
    assert await backend.queue("carl").claim_expired(10, LONG_MILLISECONDS) == []


async def test_an_acknowledged_request_is_deleted(backend: Backend) -> None:
    claim = await one_claimed(backend)
    ann = backend.queue("ann")
    await ann.acknowledge(claim)
    await ann.acknowledge(claim)
    assert (await ann.counts()).requests == 0
    assert await backend.queue("bob").claim_expired(10, 0) == []
    assert await owner_of(backend, claim) is None


@pytest.mark.parametrize("backend", REAL_BACKENDS, indirect=True)
async def test_a_half_done_acknowledgement_is_completed_later(backend: Backend) -> None:
    """The request is deleted but not acknowledged: the next search for expired leases removes the rest."""
    claim = await one_claimed(backend)
    done: list[str] = []

    class Dying(Commands):
        async def execute(self, *arguments: bytes | str | int | float) -> Any:
            if done:
                raise Disconnected
            done.append(str(arguments[0]))
            return await backend.commands.execute(*arguments)

        send, send_packed = backend.commands.send, backend.commands.send_packed

    dying = RequestQueue(Dying(), ttl_seconds=QUEUE_TTL_SECONDS, requests_max=10, consumer="ann")
    with pytest.raises(Disconnected):
        await dying.acknowledge(claim)
    bob = backend.queue("bob")
    assert await bob.claim_expired(10, 0) == []
    assert (await bob.counts()).requests == 0
    assert await owner_of(backend, claim) is None


async def test_a_restarted_worker_takes_over_its_own_claim(backend: Backend) -> None:
    claim = await one_claimed(backend)
    assert await backend.queue("ann").claim_expired(10, 0) == [claim]


async def test_a_full_queue_refuses_requests_until_one_is_done(backend: Backend) -> None:
    queue = backend.queue("ann", requests_max=2)
    await queue.open()
    await queue.enqueue(STREAMS[0])
    await queue.enqueue(STREAMS[1])
    with pytest.raises(QueueFull, match="2 requests"):
        await queue.enqueue(STREAMS[2])
    [claim] = await queue.claim(backend.commands, 1, 1000)
    with pytest.raises(QueueFull):
        await queue.enqueue(STREAMS[2])
    await queue.acknowledge(claim)
    await queue.enqueue(STREAMS[2])
    assert (await queue.counts()).requests == 2


@pytest.mark.parametrize("backend", REAL_BACKENDS, indirect=True)  # fakeredis has another text for this error
async def test_a_missing_queue_is_created(backend: Backend) -> None:
    queue = backend.queue("ann")
    assert await queue.claim(backend.commands, 1, 1) == []
    await queue.enqueue(STREAM)
    assert [one.stream_id for one in await queue.claim(backend.commands, 1, 1000)] == [STREAM]


async def test_a_queue_that_redis_lost_is_created_again(backend: Backend) -> None:
    claim = await one_claimed(backend)
    queue = backend.queue("ann")
    await backend.client.delete(REQUESTS)
    assert await queue.renew([claim]) == [claim.entry_id]
    await backend.client.delete(REQUESTS)
    assert await queue.claim_expired(10, 0) == []
    await backend.client.delete(REQUESTS)
    await queue.acknowledge(claim)
    await queue.enqueue(STREAM)
    assert await queue.claim(backend.commands, 1, 1) == []
    assert [one.stream_id for one in await queue.claim(backend.commands, 1, 1000)] == [STREAM]


async def test_consumers_without_claims_are_deleted(backend: Backend) -> None:
    claim = await one_claimed(backend)
    await one_claimed(backend, "bob", OTHER)
    await backend.queue("ann").acknowledge(claim)

    async def names() -> set[bytes]:
        rows = await backend.commands.execute("XINFO", "CONSUMERS", REQUESTS, GROUP)
        return {bytes(dict(zip(row[::2], row[1::2], strict=True))[b"name"]) for row in rows}

    queue = backend.queue("ann")
    await queue.forget_idle_consumers(LONG_MILLISECONDS)
    assert await names() == {b"ann", b"bob"}

    async def forgotten() -> bool:
        await queue.forget_idle_consumers(0)
        return await names() == {b"bob"}

    await wait_until(forgotten)


async def test_the_queue_expires_when_nobody_uses_it(backend: Backend) -> None:
    claim = await one_claimed(backend)
    await backend.client.expire(REQUESTS, 5)
    await backend.queue("ann").renew([claim])
    assert QUEUE_TTL_SECONDS - 5 < await backend.client.ttl(REQUESTS) <= QUEUE_TTL_SECONDS


@pytest.mark.parametrize("backend", REAL_BACKENDS, indirect=True)
async def test_a_full_redis_refuses_requests(backend: Backend) -> None:
    queue = backend.queue("ann")
    await queue.open()
    await backend.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(LogFull):
            await queue.enqueue(STREAM)
    finally:
        await backend.client.config_set("maxmemory", 0)
    assert (await queue.counts()).requests == 0


STRANGE: dict[str, list[bytes]] = {
    "no UTF-8": [b"id", b"\xff\xfe\x80"],
    "no id": [b"stream", STREAM.encode()],
    "several fields": [b"id", STREAM.encode(), b"more", b"1"],
    "no stream's id": [b"id", b"../../etc/passwd\r\nforged line"],
    "empty": [b"", b""],
    "large": [b"id", b"x" * 1_000_000],
    "another script's digits": [b"id", ("\u0661" * 36).encode()],
}


@pytest.mark.parametrize("how", ["claimed", "taken over"])
@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("backend", REAL_BACKENDS, indirect=True)
async def test_an_entry_without_a_stream_is_deleted_and_delays_no_other(
    backend: Backend, strange: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    ann, bob = backend.queue("ann"), backend.queue("bob")
    await ann.open()
    await backend.commands.execute("XADD", REQUESTS, "*", *STRANGE[strange])
    await ann.enqueue(STREAM)
    if how == "claimed":
        claims = await ann.claim(backend.commands, 10, 1000)
    else:  # as left by a worker that died
        await backend.commands.execute("XREADGROUP", "GROUP", GROUP, "ann", "STREAMS", REQUESTS, ">")
        await wait_until(lambda: idle_of_first(backend, 5))
        claims = await bob.claim_expired(10, 5)
    assert [claim.stream_id for claim in claims] == [STREAM]
    assert await backend.commands.execute("XLEN", REQUESTS) == 1
    assert (await backend.commands.execute("XPENDING", REQUESTS, GROUP))[0] == 1
    (line,) = [record.getMessage() for record in caplog.records if "name no stream" in record.getMessage()]
    assert len(line) < 500
    assert line.isprintable(), "nobody forges a line of the log"


async def idle_of_first(backend: Backend, milliseconds: int) -> bool:
    rows = await backend.commands.execute("XPENDING", REQUESTS, GROUP, "-", "+", 1)
    return bool(rows) and int(rows[0][2]) >= milliseconds


@pytest.mark.parametrize("backend", REAL_BACKENDS, indirect=True)
async def test_an_expired_lease_is_found_behind_many_valid_ones(backend: Backend) -> None:
    """XAUTOCLAIM looks at no more than ten entries for each that it may claim."""
    ann, bob = backend.queue("ann"), backend.queue("bob")
    await ann.open()
    for _ in range(65):
        await ann.enqueue(STREAM)
    claims = await ann.claim(backend.commands, 65, 1000)
    await ann.hand_back(claims[-1:], LONG_MILLISECONDS)
    assert await bob.claim_expired(1, LONG_MILLISECONDS // 2) == claims[-1:]
    assert await bob.claim_expired(1, LONG_MILLISECONDS // 2) == []
    await ann.hand_back(claims[:1], LONG_MILLISECONDS)
    assert await bob.claim_expired(1, LONG_MILLISECONDS // 2) == claims[:1]


@pytest.mark.parametrize("backend", REAL_BACKENDS, indirect=True)
async def test_an_entry_deleted_while_claimed_is_skipped(backend: Backend) -> None:
    claim = await one_claimed(backend)
    await backend.commands.execute("XDEL", REQUESTS, claim.entry_id)
    await wait_until(lambda: idle_of_first(backend, 5))
    assert await backend.queue("bob").claim_expired(10, 5) == []
    assert (await backend.commands.execute("XPENDING", REQUESTS, GROUP))[0] == 0


async def test_counts_leases_and_the_newest_requests(backend: Backend) -> None:
    queue, ann = backend.queue("looks"), backend.queue("ann")
    assert await queue.counts() == QueueCounts(0, 0, None)
    assert (await queue.newest(10), await queue.leases(b"-", 10)) == ([], {})
    await ann.open()
    assert await queue.counts() == QueueCounts(0, 0, None)
    before = time.time()
    for stream_id in STREAMS[:3]:
        await queue.enqueue(stream_id)
    oldest_at = (await queue.counts()).oldest_waiting_at
    assert oldest_at is not None
    assert abs(oldest_at - before) < 5
    claims = await ann.claim(backend.commands, 2, 10)
    counts = await queue.counts()
    assert (counts.requests, counts.claimed, counts.waiting) == (3, 2, 1)
    assert counts.oldest_waiting_at is not None
    assert counts.oldest_waiting_at >= oldest_at
    newest = await queue.newest(10)
    assert newest[1:] == claims[::-1]
    assert {entry_id: lease.worker for entry_id, lease in (await queue.leases(b"-", 10)).items()} == {
        claim.entry_id: "ann" for claim in claims
    }
    await ann.claim(backend.commands, 2, 10)
    assert await queue.counts() == QueueCounts(3, 3, None)
