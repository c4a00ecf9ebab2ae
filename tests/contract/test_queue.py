"""The queue's contract: every request goes to one worker, and to another one when that one's lease has run out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.errors import Disconnected, LogFull, QueueFull
from shared.keys import GROUP, REQUESTS
from shared.queue import Claim, RequestQueue
from tests.contract.conftest import QUEUE_TTL_SECONDS, REAL_BACKENDS, Backend
from tests.support.waiting import wait_until

LONG_MILLISECONDS = 60_000


async def owner_of(backend: Backend, claim: Claim) -> bytes | None:
    rows = await backend.commands.execute("XPENDING", REQUESTS, GROUP, claim.entry_id, claim.entry_id, 1)
    return bytes(rows[0][1]) if rows else None


async def idle_milliseconds(backend: Backend, claim: Claim) -> int:
    rows = await backend.commands.execute("XPENDING", REQUESTS, GROUP, claim.entry_id, claim.entry_id, 1)
    return int(rows[0][2])


async def one_claimed(backend: Backend, consumer: str = "ann", stream_id: str = "stream") -> Claim:
    queue = backend.queue(consumer)
    await queue.open()
    await queue.enqueue(stream_id)
    [claim] = await queue.claim(backend.commands, 1, 1000)
    return claim


async def test_requests_are_claimed_in_order_each_by_one_worker(backend: Backend) -> None:
    ann, bob = backend.queue("ann"), backend.queue("bob")
    await ann.open()
    for number in range(5):
        await ann.enqueue(f"stream-{number}")
    hers = await ann.claim(backend.commands, 2, 1000)
    his = await bob.claim(backend.commands, 10, 1000)
    assert [one.stream_id for one in hers] == ["stream-0", "stream-1"]
    assert [one.stream_id for one in his] == ["stream-2", "stream-3", "stream-4"]
    assert await ann.claim(backend.commands, 10, 1) == [], "an empty queue answers when the wait is over"
    assert await bob.waiting() == 5, "until they are acknowledged, they count"


@pytest.mark.parametrize("backend", ["valkey through redis-py"], indirect=True)
async def test_a_claim_waits_for_a_request(backend: Backend) -> None:
    queue = backend.queue("ann")
    await queue.open()
    waiting = asyncio.create_task(queue.claim(backend.commands, 1, 5000))

    async def blocked() -> bool:
        return int((await backend.client.info("clients"))["blocked_clients"]) == 1

    await wait_until(blocked)
    await queue.enqueue("stream")
    assert [one.stream_id for one in await waiting] == ["stream"]


async def test_a_request_enqueued_before_the_first_worker_came_is_claimed(backend: Backend) -> None:
    await backend.queue("").enqueue("stream")
    queue = backend.queue("ann")
    await queue.open()
    await queue.open()
    assert [one.stream_id for one in await queue.claim(backend.commands, 1, 1000)] == ["stream"]


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
        return await idle_milliseconds(backend, claim) >= 200

    await wait_until(older)
    assert await backend.queue("ann").renew([claim]) == []
    assert await idle_milliseconds(backend, claim) < 200
    assert await owner_of(backend, claim) == b"ann"


async def test_renewing_does_not_steal_a_lost_lease_back(backend: Backend) -> None:
    lost = await one_claimed(backend)
    assert await backend.queue("bob").claim_expired(10, 0) == [lost]
    kept = await one_claimed(backend, stream_id="another")
    assert await backend.queue("ann").renew([lost, kept]) == [lost.entry_id]
    assert await owner_of(backend, lost) == b"bob"
    assert await owner_of(backend, kept) == b"ann"


async def test_renewing_what_is_done_with_tells_that_it_is_lost(backend: Backend) -> None:
    claim = await one_claimed(backend)
    ann = backend.queue("ann")
    await ann.acknowledge(claim)
    assert await ann.renew([claim]) == [claim.entry_id]
    assert await owner_of(backend, claim) is None


async def test_what_is_handed_back_goes_to_another_worker_at_once(backend: Backend) -> None:
    claim = await one_claimed(backend)
    await backend.queue("ann").hand_back([claim], LONG_MILLISECONDS)
    assert await backend.queue("bob").claim_expired(10, LONG_MILLISECONDS) == [claim]


async def test_what_another_has_taken_over_cannot_be_handed_back(backend: Backend) -> None:
    claim = await one_claimed(backend)
    assert await backend.queue("bob").claim_expired(10, 0) == [claim]
    await backend.queue("ann").hand_back([claim], LONG_MILLISECONDS)
    assert await owner_of(backend, claim) == b"bob"
    assert await backend.queue("carl").claim_expired(10, LONG_MILLISECONDS) == []


async def test_what_is_acknowledged_is_gone(backend: Backend) -> None:
    claim = await one_claimed(backend)
    ann = backend.queue("ann")
    await ann.acknowledge(claim)
    await ann.acknowledge(claim)
    assert await ann.waiting() == 0
    assert await backend.queue("bob").claim_expired(10, 0) == []
    assert await owner_of(backend, claim) is None


@pytest.mark.parametrize("backend", REAL_BACKENDS, indirect=True)
async def test_a_worker_that_dies_while_it_acknowledges_leaves_nothing(backend: Backend) -> None:
    """Deleted and not yet acknowledged: the next look for expired leases clears away the rest."""
    claim = await one_claimed(backend)
    done: list[str] = []

    class Dying:
        async def execute(self, *arguments: bytes | str | int | float) -> Any:
            if done:
                raise Disconnected
            done.append(str(arguments[0]))
            return await backend.commands.execute(*arguments)

        send = backend.commands.send

    dying = RequestQueue(Dying(), ttl_seconds=QUEUE_TTL_SECONDS, requests_max=10, consumer="ann")
    with pytest.raises(Disconnected):
        await dying.acknowledge(claim)
    bob = backend.queue("bob")
    assert await bob.claim_expired(10, 0) == []
    assert await bob.waiting() == 0
    assert await owner_of(backend, claim) is None


async def test_a_worker_that_died_and_came_back_takes_its_own_over(backend: Backend) -> None:
    claim = await one_claimed(backend)
    assert await backend.queue("ann").claim_expired(10, 0) == [claim]


async def test_a_full_queue_says_so_and_takes_requests_again_when_one_is_done(backend: Backend) -> None:
    queue = backend.queue("ann", requests_max=2)
    await queue.open()
    await queue.enqueue("one")
    await queue.enqueue("two")
    with pytest.raises(QueueFull, match="2 requests"):
        await queue.enqueue("three")
    [claim] = await queue.claim(backend.commands, 1, 1000)
    with pytest.raises(QueueFull):
        await queue.enqueue("three")
    await queue.acknowledge(claim)
    await queue.enqueue("three")
    assert await queue.waiting() == 2


@pytest.mark.parametrize("backend", REAL_BACKENDS, indirect=True)  # fakeredis words this error in its own way
async def test_a_queue_that_is_missing_is_made_anew(backend: Backend) -> None:
    queue = backend.queue("ann")
    assert await queue.claim(backend.commands, 1, 1) == []
    await queue.enqueue("stream")
    assert [one.stream_id for one in await queue.claim(backend.commands, 1, 1000)] == ["stream"]


async def test_a_queue_that_was_forgotten_in_mid_work_is_made_anew(backend: Backend) -> None:
    claim = await one_claimed(backend)
    queue = backend.queue("ann")
    await backend.client.delete(REQUESTS)
    assert await queue.renew([claim]) == [claim.entry_id]
    await backend.client.delete(REQUESTS)
    assert await queue.claim_expired(10, 0) == []
    await backend.client.delete(REQUESTS)
    await queue.acknowledge(claim)
    await queue.enqueue("stream")
    assert await queue.claim(backend.commands, 1, 1) == []
    assert [one.stream_id for one in await queue.claim(backend.commands, 1, 1000)] == ["stream"]


async def test_names_of_workers_that_hold_nothing_are_forgotten(backend: Backend) -> None:
    claim = await one_claimed(backend)
    await one_claimed(backend, "bob", "another")
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
async def test_a_redis_that_is_full_takes_no_request(backend: Backend) -> None:
    queue = backend.queue("ann")
    await queue.open()
    await backend.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(LogFull):
            await queue.enqueue("stream")
    finally:
        await backend.client.config_set("maxmemory", 0)
    assert await queue.waiting() == 0
