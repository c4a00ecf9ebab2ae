"""Redis loses entries that it had acknowledged, or is full: nothing is lost while the worker lives."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import redis.asyncio

from shared.keys import log_key
from tests.support.needs import needs
from tests.support.redis_server import RedisServer, binary_of
from tests.support.system import Reader, System, answer_of
from tests.support.waiting import wait_until

STREAMS = 20
TOKENS = 240


async def start_all(system: System) -> dict[str, Reader]:
    simulate = {"tokens": TOKENS, "tokens_per_second": 40}
    ids = await asyncio.gather(*(system.create(f"question {number}", simulate=simulate) for number in range(STREAMS)))
    return {stream_id: system.follow(stream_id) for stream_id in ids}


async def until_all_have_tokens(readers: dict[str, Reader], tokens: int) -> None:
    for reader in readers.values():
        await reader.until_tokens(tokens, within_seconds=30.0)


async def assert_all_whole(system: System, readers: dict[str, Reader]) -> None:
    for stream_id, reader in readers.items():
        answer = answer_of((await reader.until_end(within_seconds=40.0)).messages)
        assert (answer.end, len(answer.tokens), answer.restarted) == ("done", TOKENS, []), stream_id
        state = await system.state(stream_id)
        assert (state["status"], state["text"]) == ("completed", answer.text)
        assert await system.commands.pttl(log_key(stream_id)) > 0


async def test_a_replica_is_promoted_while_it_lags() -> None:
    needs("redis-server", binary_of("redis"))
    async with System(tcp=True) as system:
        with RedisServer("redis", tcp=True) as replica:
            async with redis.asyncio.Redis.from_url(replica.url, protocol=2) as commands:
                await system.commands.config_set("repl-diskless-sync-delay", 0)
                await commands.replicaof("127.0.0.1", system.redis.port)

                async def linked() -> bool:
                    return bool((await commands.info("replication"))["master_link_status"] == "up")

                await wait_until(linked, within_seconds=20.0, what="the replica follows")
                readers = await start_all(system)
                await until_all_have_tokens(readers, 20)
                await commands.replicaof("NO", "ONE")  # from here on it lags
                await until_all_have_tokens(readers, 60)
                await asyncio.to_thread(system.redis.kill)
                await commands.config_set("port", system.redis.port)
                await assert_all_whole(system, readers)
                assert_repaired(system)


def assert_repaired(system: System) -> None:
    """Waits until the worker has logged a repair: otherwise the test would prove nothing."""
    assert system.workers[0].logged().count("appending them again") >= STREAMS // 2


async def test_redis_starts_from_an_older_append_only_file() -> None:
    needs("redis-server", binary_of("redis"))
    async with System(tcp=True, durable=True) as system:
        readers = await start_all(system)
        await until_all_have_tokens(readers, 30)
        home = Path(str((await system.commands.config_get("dir"))["dir"]), "appendonlydir")
        older = home.with_name("older")
        shutil.copytree(home, older)
        await until_all_have_tokens(readers, 70)
        await asyncio.to_thread(system.redis.kill)
        shutil.rmtree(home)
        older.rename(home)
        await asyncio.to_thread(system.redis.start)
        await assert_all_whole(system, readers)
        assert_repaired(system)


async def test_streams_fail_while_redis_is_full_and_work_again_afterwards() -> None:
    """Running streams end as log_full, new ones are refused with a reason, and afterwards streams work again."""
    async with System() as system:
        stream_id = await system.create(simulate={"tokens": 5000, "tokens_per_second": 200})
        reader = system.follow(stream_id)
        await reader.until_tokens(50)
        await system.commands.config_set("maxmemory", 1)
        failed = await reader.until_event("failed")
        assert (failed["code"], failed["retryable"]) == ("log_full", False)
        assert "maxmemory" in failed["message"]
        answer = answer_of((await reader.until_end()).messages)
        state = await system.state(stream_id)
        assert (state["status"], state["error"]["code"], state["text"]) == ("failed", "log_full", answer.text)
        refused = await system.http.post(
            f"{system.gateway_url()}/v1/streams", json={"messages": [{"role": "user", "content": "more"}]}
        )
        assert (refused.status_code, refused.json()["status"]) == (503, 503)
        assert "maxmemory" in refused.json()["detail"]
        assert refused.headers["retry-after"]
        await system.commands.config_set("maxmemory", 0)
        again = await system.create(simulate={"tokens": 20})
        assert (await system.state(again, wait_seconds=10))["tokens"] == 20


async def test_a_stream_has_its_own_size_limit() -> None:
    async with System(worker_settings={"stream_entries_max": 60}) as system:
        stream_id = await system.create(simulate={"tokens": 500, "tokens_per_second": 100})
        answer = answer_of((await system.follow(stream_id).until_end()).messages)
        assert (answer.end, answer.end_data["code"]) == ("failed", "log_full")
        assert (await system.state(stream_id))["text"] == answer.text != ""


async def test_no_key_is_without_an_expiry() -> None:
    async with System() as system:
        for end in ("", "cancel"):
            stream_id = await system.create(
                simulate={"tokens": 30}, headers={"Idempotency-Key": f"key{end}"} if end else None
            )
            reader = system.follow(stream_id)
            await reader.until_tokens(5)
            if end:
                await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")
            await reader.until_end()
        assert await keys_without_expiry(system.commands) == []
        await system.commands.set("a key that nobody will remove", "1")
        assert await keys_without_expiry(system.commands) == [b"a key that nobody will remove"]


async def keys_without_expiry(commands: Any) -> list[bytes]:
    return [key async for key in commands.scan_iter() if await commands.pttl(key) == -1]
