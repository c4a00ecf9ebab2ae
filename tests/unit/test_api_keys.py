"""The form of API keys, how lists of them are read, and what a gateway knows of them while Redis changes or is away."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.api_keys import ApiKeys
from gateway.http.problems import Problem
from shared import api_keys
from shared.api_keys import ApiKey, ApiKeyTable, BadKey, digest_of, is_key, keys_in, new_key
from shared.errors import Disconnected, Unusable
from shared.settings import Settings
from tests.support.waiting import wait_until


class Table:
    """Redis, with one hash."""

    def __init__(self) -> None:
        self.fields: dict[bytes, bytes] = {}
        self.is_away = False
        self.commands: list[str] = []

    async def execute(self, *arguments: Any) -> Any:
        if self.is_away:
            raise Disconnected
        name, _, *rest = arguments
        self.commands.append(name)
        given = [it.encode() if isinstance(it, str) else it for it in rest]
        if name == "HSET":
            self.fields |= dict(zip(given[::2], given[1::2], strict=True))
            return 1
        if name == "HGET":
            return self.fields.get(given[0])
        if name == "HDEL":
            return int(self.fields.pop(given[0], None) is not None)
        assert name == "HGETALL"
        return [part for field in self.fields.items() for part in field]


async def made(redis: Table, name: str = "backend", scopes: str = "create", **options: Any) -> tuple[str, ApiKey]:
    expires_seconds, limits = options.get("expires_seconds"), options.get("limits", {})
    return await api_keys.create(ApiKeyTable(redis), name, frozenset(scopes.split(",")), expires_seconds, limits)


def test_a_key_has_a_prefix_and_a_checksum() -> None:
    key = new_key()
    assert key.startswith("msk_")
    assert is_key(key)
    assert len({new_key() for _ in range(1000)}) == 1000
    for place in range(4, len(key)):
        other = "a" if key[place] != "a" else "b"
        assert not is_key(key[:place] + other + key[place + 1 :]), place


@given(st.text())
def test_no_other_text_is_a_key(text: str) -> None:
    assert not is_key(text)
    assert not is_key(f"msk_{text}")


async def test_a_key_is_known_by_its_digest_alone() -> None:
    redis = Table()
    key, _ = await made(redis)
    assert key.encode() not in b"".join([*redis.fields, *redis.fields.values()])
    assert key[4:].encode() not in b"".join([*redis.fields, *redis.fields.values()])


async def test_a_gateway_knows_a_new_key_at_once_and_asks_no_more() -> None:
    redis = Table()
    keys = ApiKeys(redis, Settings())
    key, _ = await made(redis, "backend", "create,read")
    first = await keys.principal_of(key)
    assert first is not None
    assert (first.name, sorted(first.scopes), first.stream_id) == ("key:backend", ["create", "read"], None)
    redis.commands.clear()
    assert await keys.principal_of(key) is first
    assert redis.commands == []


async def test_unknown_keys_are_looked_up_a_bounded_number_of_times() -> None:
    redis = Table()
    keys = ApiKeys(redis, Settings())
    for _ in range(500):
        assert await keys.principal_of(new_key()) is None
    assert len(redis.commands) < 50


async def test_a_revocation_is_known_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.access.api_keys._LOOK_SECONDS", 0.01)
    redis = Table()
    keys = ApiKeys(redis, Settings())
    keys.start()
    try:
        key, about = await made(redis)
        assert await keys.principal_of(key) is not None
        await ApiKeyTable(redis).delete(about.digest)
        await wait_until(lambda: _is_unknown(keys, key), what="the revocation")
    finally:
        await keys.close()


async def test_an_expired_key_is_none() -> None:
    redis = Table()
    key, _ = await made(redis, expires_seconds=0.05)
    keys = ApiKeys(redis, Settings())
    assert await keys.principal_of(key) is not None
    await asyncio.sleep(0.06)
    assert await keys.principal_of(key) is None


async def test_while_redis_is_away_the_last_table_is_used_for_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    redis = Table()
    key, _ = await made(redis)
    keys = ApiKeys(redis, Settings())
    assert await keys.principal_of(key) is not None
    redis.is_away = True
    assert await keys.principal_of(key) is not None
    with pytest.raises(Problem) as raised:
        await keys.principal_of(new_key())
    assert raised.value.status == 503, "it may be a key that was just made"
    monkeypatch.setattr("gateway.access.api_keys._TABLE_SECONDS_MAX", 0.0)
    with pytest.raises(Problem) as raised:
        await keys.principal_of(key)
    assert raised.value.status == 503


async def test_keys_of_a_file_and_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.access.api_keys._LOOK_SECONDS", 0.01)
    in_file, in_environment, later = new_key(), new_key(), new_key()
    path = tmp_path / "keys"
    path.write_text(f"# services\nreports read sha256:{digest_of(in_file)}  # the nightly job\n\n")
    settings = Settings(api_keys_file=str(path), api_keys=f"web create,read {in_environment}; ")
    redis = Table()
    redis.is_away = True  # neither needs it
    keys = ApiKeys(redis, settings)
    for key, name in ((in_file, "key:reports"), (in_environment, "key:web")):
        found = await keys.principal_of(key)
        assert found is not None
        assert found.name == name
    keys.start()
    try:
        path.write_text(f"reports read {later}")
        os.utime(path, (time.time() + 5, time.time() + 5))
        await wait_until(lambda: _is_known(keys, later), what="the changed file")
        assert not await _is_known(keys, in_file)
        path.write_text("reports nonsense")
        await asyncio.sleep(0.05)
        assert await _is_known(keys, later), "a file that cannot be read takes no key away"
    finally:
        await keys.close()


async def _is_known(keys: ApiKeys, key: str) -> bool:
    try:
        return await keys.principal_of(key) is not None
    except Problem:
        return False


async def _is_unknown(keys: ApiKeys, key: str) -> bool:
    return not await _is_known(keys, key)


@pytest.mark.parametrize(
    "line",
    ["backend create", "backend create,fly KEY", "-x create KEY", "backend create KEYx", "backend create sha256:12", "a b c d"],
)  # fmt: skip
def test_a_line_that_cannot_be_read_is_named_without_its_key(line: str) -> None:
    key = new_key()
    with pytest.raises(BadKey) as raised:
        keys_in(f"\n{line.replace('KEY', key)}", "the file")
    assert "the file, entry 2:" in str(raised.value)
    assert key[4:30] not in str(raised.value)


def test_a_gateway_does_not_start_with_a_list_that_cannot_be_read(tmp_path: Path) -> None:
    key = new_key()
    for settings in (Settings(api_keys=f"x y {key}"), Settings(api_keys_file=str(tmp_path / "none"))):
        with pytest.raises(Unusable) as raised:
            ApiKeys(Table(), settings)
        assert key[4:30] not in str(raised.value)


@given(st.binary())
def test_whatever_stands_in_redis_is_a_key_or_refused(stored: bytes) -> None:
    try:
        ApiKey.load("0" * 64, stored)
    except BadKey:
        return
