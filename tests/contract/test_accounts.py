"""The accounts' contract: limits hold for one and for all, and a stream is counted once, whoever counts it and how often."""

from __future__ import annotations

import time
from typing import Any

import pytest

from shared.accounts import COUNTS, MODELS_MAX, OTHER_MODELS, Accounts, Allowance, Refusal, account_of, day_of
from shared.ids import new_stream_id
from shared.keys import ACCOUNT_ENTRIES, ACCOUNT_LOOKS, account_key
from shared.settings import Settings
from tests.contract.conftest import Backend

SETTINGS = Settings(log_ttl_seconds=1000, usage_seconds=60)
ENDED: dict[str, Any] = {"ended_at": 1.0, "attempts": [[1, 0, 5]]}


def allowances(whose: str, **limits: int) -> dict[str, Any]:
    return {whose: Allowance(**limits)}


def counts(**more: int) -> dict[str, int]:
    return {**dict.fromkeys(COUNTS, 0), "streams": 1, **more}


async def admitted(accounts: Accounts, principal: str = "ann", **limits: Any) -> str:
    stream_id = new_stream_id()
    assert await accounts.admit(stream_id, principal, 10, 0, **limits) is None
    return stream_id


async def refused(accounts: Accounts, principal: str, size: int = 10, **limits: Any) -> Refusal:
    refusal = await accounts.admit(new_stream_id(), principal, size, 0, **limits)
    assert refusal is not None
    return refusal


async def bytes_of(backend: Backend, account: str) -> int:
    return int(await backend.client.hget(account_key(account, "state"), "bytes"))


@pytest.mark.parametrize("whose", ["own", "for_all"])
async def test_creates_per_minute_are_a_token_bucket(backend: Backend, whose: str) -> None:
    accounts, limits = Accounts(backend.commands, SETTINGS), allowances(whose, creates_per_minute=3)
    first = await admitted(accounts, **limits)
    assert await accounts.admit(first, "ann", 10, 0, **limits) is None, "repeated, it takes nothing"
    for _ in range(2):
        await admitted(accounts, **limits)
    refusal = await refused(accounts, "ann", **limits)
    assert (refusal.limit, refusal.is_own) == ("creates", whose == "own")
    assert 15 < refusal.seconds <= 20, "a third of a minute, less what has passed since"
    if whose == "own":
        await admitted(accounts, "bob", **limits)
    else:
        await refused(accounts, "bob", **limits)
    state = account_key(account_of("ann") if whose == "own" else "all", "state")
    level, at = (await backend.client.hget(state, "bucket")).split()
    await backend.client.hset(state, "bucket", b"%b %d" % (level, int(at) - 20_000))
    await admitted(accounts, **limits)
    assert (await refused(accounts, "ann", **limits)).limit == "creates"


@pytest.mark.parametrize("whose", ["own", "for_all"])
async def test_streams_at_once_count_until_their_end(backend: Backend, whose: str) -> None:
    accounts, limits = Accounts(backend.commands, SETTINGS), allowances(whose, streams=2)
    first, second = await admitted(accounts, **limits), await admitted(accounts, **limits)
    assert (await refused(accounts, "ann", **limits)).limit == "streams"
    assert set(await accounts.running("ann", 10)) == set(await accounts.running(None, 10)) == {first, second}
    await accounts.ended("ann" if whose == "own" else None, [first])
    await admitted(accounts, **limits)
    assert (await refused(accounts, "ann", **limits)).limit == "streams"
    await accounts.settle(second, "ann", "m", counts(), ENDED, 60)
    await admitted(accounts, **limits)


@pytest.mark.parametrize("whose", ["own", "for_all"])
async def test_bytes_of_requests_are_given_back_at_the_end_and_with_the_log(backend: Backend, whose: str) -> None:
    accounts, limits = Accounts(backend.commands, SETTINGS), allowances(whose, request_bytes=100)
    stream_id = new_stream_id()
    assert await accounts.admit(stream_id, "ann", 30, 50, **limits) is None
    assert (await refused(accounts, "ann", 21, **limits)).limit == "bytes"
    account = account_of("ann") if whose == "own" else "all"
    assert await bytes_of(backend, account) == 80
    for closed, left in ((False, 30), (False, 30), (True, 0), (True, 0)):
        about = {**ENDED, "closed": True} if closed else ENDED
        await accounts.settle(stream_id, "ann", "m", counts(), about, 60)
        assert await bytes_of(backend, account) == left


@pytest.mark.parametrize("whose", ["own", "for_all"])
async def test_tokens_per_day_are_those_of_today(backend: Backend, whose: str) -> None:
    accounts, limits = Accounts(backend.commands, SETTINGS), allowances(whose, tokens_per_day=100)
    yesterday = new_stream_id(time.time() - 86_400)
    await accounts.settle(yesterday, "ann", "m", counts(generated=1000), ENDED, 60)
    first, second = await admitted(accounts, **limits), await admitted(accounts, **limits)
    await accounts.settle(first, "ann", "m", counts(generated=60), ENDED, 60)
    await admitted(accounts, **limits)
    await accounts.settle(second, "ann", "other-model", counts(generated=40), ENDED, 60)
    assert (await refused(accounts, "ann", **limits)).limit == "tokens"


async def test_counting_again_replaces_until_the_entry_is_closed(backend: Backend) -> None:
    accounts = Accounts(backend.commands, SETTINGS)
    stream_id, other = await admitted(accounts), await admitted(accounts)
    day = day_of(stream_id)
    await accounts.settle(other, "ann", "m", counts(generated=7, delivered=7), ENDED, 60)
    for delivered in (3, 3, 5):
        changed = counts(generated=5, delivered=delivered, undelivered=5 - delivered)
        await accounts.settle(stream_id, "ann", "m", changed, ENDED, 60)
        usage = await accounts.usage(day, "ann")
        assert usage == {
            "m": {**counts(generated=12, delivered=7 + delivered, undelivered=5 - delivered), "streams": 2}
        }
    await accounts.settle(stream_id, "ann", "m", counts(generated=5, delivered=5), {**ENDED, "closed": True}, 0)
    before = await accounts.usage(day, "ann")
    await accounts.settle(stream_id, "ann", "m", counts(generated=99), ENDED, 60)
    assert await accounts.usage(day, "ann") == before, "somebody was late"
    assert await accounts.principals(day, "", 10) == ["ann"]


async def test_a_deletion_that_is_repeated_counts_what_came_meanwhile(backend: Backend) -> None:
    """The first one could not delete the log, to which a reader's last note came later."""
    accounts = Accounts(backend.commands, SETTINGS)
    stream_id = await admitted(accounts)
    for delivered in (0, 5, 5):
        counted = counts(generated=5, delivered=delivered, undelivered=5 - delivered)
        await accounts.settle(stream_id, "ann", "m", counted, {**ENDED, "closed": True}, 0)
        assert (await accounts.usage(day_of(stream_id), "ann"))["m"] == counted
    await accounts.settle(stream_id, "ann", "", {}, {**ENDED, "closed": True}, 0)
    assert (await accounts.usage(day_of(stream_id), "ann"))["m"] == counts(generated=5, delivered=5)


async def test_a_closed_entry_that_is_looked_at_early_is_not_forgotten(backend: Backend) -> None:
    """A reader who got the end just before a delete has it looked at; whoever is late then must not count the stream again."""
    accounts = Accounts(backend.commands, SETTINGS)
    stream_id = await admitted(accounts)
    await accounts.settle(stream_id, "ann", "m", counts(generated=5), {**ENDED, "closed": True}, 0)
    await backend.client.zadd(ACCOUNT_LOOKS, {stream_id: 1})
    assert await accounts.looks(10) == []
    await accounts.settle(stream_id, "ann", "m", counts(generated=5), ENDED, 60)
    assert (await accounts.usage(day_of(stream_id), "ann"))["m"] == counts(generated=5)


async def test_a_stream_that_comes_back_after_its_entry_was_forgotten_is_not_counted_again(backend: Backend) -> None:
    accounts, stream_id = Accounts(backend.commands, SETTINGS), new_stream_id()
    for is_last_look_over in (False, True):
        await accounts.settle(stream_id, "ann", "m", counts(), ENDED, 60, is_last_look_over=is_last_look_over)
        assert (await accounts.usage(day_of(stream_id), "ann"))["m"] == counts()
        await backend.client.hdel(ACCOUNT_ENTRIES, stream_id)


async def test_entries_are_handed_out_again_and_removed_when_closed(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.accounts._CLOSED_SECONDS", 0.0)
    accounts = Accounts(backend.commands, SETTINGS)
    stream_id, vanished = await admitted(accounts), await admitted(accounts, 'a "closed":true name')
    assert await accounts.looks(10) == [], "both are looked at in a minute"

    async def due() -> None:
        for one in await backend.client.zrange(ACCOUNT_LOOKS, 0, -1):
            await backend.client.zadd(ACCOUNT_LOOKS, {one: 1})

    await due()
    assert {entry.stream_id for entry in await accounts.looks(10)} == {stream_id, vanished}
    assert await accounts.looks(10) == [], "somebody has them"
    await accounts.settle(vanished, 'a "closed":true name', "", {}, {"closed": True}, 0)
    assert await backend.client.hkeys(ACCOUNT_ENTRIES) == [stream_id.encode()], "nothing of it was counted"
    await accounts.settle(stream_id, "ann", "m", counts(), {**ENDED, "closed": True}, 0)
    await due()
    assert await accounts.looks(10) == []
    assert await backend.client.hlen(ACCOUNT_ENTRIES) == await backend.client.zcard(ACCOUNT_LOOKS) == 0


async def test_a_log_that_is_gone_keeps_what_was_counted(backend: Backend) -> None:
    accounts = Accounts(backend.commands, SETTINGS)
    stream_id = await admitted(accounts)
    await accounts.settle(stream_id, "ann", "m", counts(generated=5), ENDED, 60)
    await accounts.settle(stream_id, "ann", "", {}, {"closed": True}, 0)
    await accounts.settle(stream_id, "ann", "m", counts(generated=9), ENDED, 60)
    assert (await accounts.usage(day_of(stream_id), "ann"))["m"]["generated"] == 5


async def test_the_models_of_a_day_are_bounded(backend: Backend) -> None:
    accounts = Accounts(backend.commands, SETTINGS)
    stream_ids = [new_stream_id() for _ in range(MODELS_MAX + 5)]
    for number, stream_id in enumerate(stream_ids):
        for _ in range(2):
            await accounts.settle(stream_id, "ann", f"model {number}" + "x" * 100, counts(generated=1), ENDED, 60)
    usage = await accounts.usage(day_of(stream_ids[0]), "ann")
    assert len(usage) == MODELS_MAX + 1
    assert usage[OTHER_MODELS]["streams"] == 5
    assert sum(model["generated"] for model in usage.values()) == len(stream_ids)


async def test_an_absurd_count_of_a_provider_stays_a_number(backend: Backend) -> None:
    accounts, stream_id = Accounts(backend.commands, SETTINGS), new_stream_id()
    for _ in range(2):
        await accounts.settle(stream_id, "ann", "m", counts(prompt_tokens=1 << 53, generated=-4), ENDED, 60)
    usage = await accounts.usage(day_of(stream_id), "ann")
    assert (usage["m"]["prompt_tokens"], usage["m"]["generated"]) == ((1 << 31) - 1, 0)


async def test_principals_are_listed_in_pages(backend: Backend) -> None:
    accounts = Accounts(backend.commands, SETTINGS)
    names = ["a", "b", "user:ä", "z"]
    stream_id = ""
    for name in names:
        stream_id = new_stream_id()
        await accounts.settle(stream_id, name, "m", counts(), ENDED, 60)
    day = day_of(stream_id)
    assert await accounts.principals(day, "", 3) == names[:3]
    assert await accounts.principals(day, names[2], 3) == names[3:]
