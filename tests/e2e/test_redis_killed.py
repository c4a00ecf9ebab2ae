"""Redis is killed and restarted, or closes its connections, while readers follow that never reconnect."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from tests.support.system import Reader, System, answer_of
from tests.support.waiting import wait_until

STREAMS = 50
TOKENS = 200


async def start_all(system: System, tokens_per_second: int) -> dict[str, Reader]:
    simulate = {"tokens": TOKENS, "tokens_per_second": tokens_per_second}
    ids = await asyncio.gather(*(system.create(f"question {number}", simulate=simulate) for number in range(STREAMS)))
    readers = {stream_id: system.follow(stream_id) for stream_id in ids}
    await until_all_have_tokens(readers, 20)
    return readers


async def until_all_have_tokens(readers: dict[str, Reader], tokens: int) -> None:
    await wait_until(
        lambda: all(len(one.messages) > tokens for one in readers.values()), within_seconds=30.0, what="all have begun"
    )


async def assert_all_whole(system: System, readers: dict[str, Reader]) -> None:
    for stream_id, reader in readers.items():
        answer = answer_of((await reader.until_end(within_seconds=40.0)).messages)
        assert (answer.end, len(answer.tokens), answer.restarted) == ("done", TOKENS, []), stream_id
        state = await system.state(stream_id)
        assert (state["status"], state["text"]) == ("completed", answer.text)


@pytest.mark.parametrize("durable", [True, False], ids=["append-only", "forgets everything"])
async def test_killed_and_started_again(durable: bool) -> None:
    """If Redis has nothing on disk, the workers write the entries again, under the same ids."""
    async with System(tcp=True, durable=durable) as system:
        readers = await start_all(system, tokens_per_second=50)
        for seen in (30, 100):
            await until_all_have_tokens(readers, seen)
            await asyncio.to_thread(system.redis.kill)
            assert not any(reader.ended for reader in readers.values())
            await asyncio.to_thread(system.redis.start)
        await assert_all_whole(system, readers)


async def test_connections_cut_in_mid_stream() -> None:
    async with System() as system:
        readers = await start_all(system, tokens_per_second=60)
        for round_number, kind in enumerate(["normal", "pubsub", "normal", "pubsub"], start=1):
            await until_all_have_tokens(readers, 30 * round_number)
            killed = await system.commands.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            assert killed >= 1
        await assert_all_whole(system, readers)


async def test_requests_are_answered_with_503_while_redis_is_down() -> None:
    async with System(tcp=True, durable=True, gateway_settings={"redis_wait_seconds": 1}) as system:
        stream_id = await system.create(simulate={"tokens": 3})
        await system.until_status(stream_id, "completed")
        await asyncio.to_thread(system.redis.kill)
        url = system.gateway_url()
        answers = await asyncio.gather(
            system.http.get(f"{url}/readyz"),
            system.http.get(f"{url}/v1/streams/{stream_id}"),
            system.http.get(f"{url}/v1/streams/{stream_id}/events"),
            system.http.get(f"{url}/stream?prompt=hello"),
            system.http.post(f"{url}/v1/streams", json={"messages": [{"role": "user", "content": "hello"}]}),
            system.http.post(f"{url}/v1/streams/{stream_id}/cancel"),
            system.http.delete(f"{url}/v1/streams/{stream_id}"),
        )
        for answer in answers:
            assert answer.status_code == 503, (answer.request.url, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
            assert json.loads(answer.text)["status"] == 503
        assert all("retry-after" in answer.headers for answer in answers[1:])
        assert (await system.http.get(f"{url}/healthz")).status_code == 200
        await asyncio.to_thread(system.redis.start)

        async def ready() -> bool:
            return (await system.http.get(f"{url}/readyz")).status_code == 200

        await wait_until(ready, what="the gateway is ready again")
        assert (await system.state(stream_id))["tokens"] == 3


async def test_what_is_written_while_redis_is_away_waits_for_it_in_every_api() -> None:
    messages = [{"role": "user", "content": "hello"}]
    chat = [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "hello"}]}]
    async with System(tcp=True, durable=True) as system:
        url, fast = system.gateway_url(), {"simulate": {"tokens": 5, "tokens_per_second": 0}}
        endless = {"tokens": 5000, "tokens_per_second": 20}
        running, unwanted = await system.create(simulate=endless), await system.create(simulate=endless)
        for stream_id in (running, unwanted):
            await system.until_status(stream_id, "running")
        await asyncio.to_thread(system.redis.terminate)
        post, key = system.http.post, {"idempotency-key": "once"}
        creates = [
            post(f"{url}/v1/streams", json={"messages": messages, **fast}),
            post(f"{url}/v1/streams", json={"messages": messages, **fast}, headers=key),
            post(f"{url}/v1/chat/completions", json={"messages": messages, **fast}),
            post(f"{url}/v1/responses", json={"input": "hello", "background": True}),
            post(f"{url}/api/chat", json={"id": "c", "messages": chat, **fast}),
            system.http.get(f"{url}/stream?prompt=hello"),
        ]
        others = [
            post(f"{url}/v1/streams/{running}/cancel"),
            post(f"{url}/v1/responses/resp_{running}/cancel"),
            system.http.delete(f"{url}/v1/streams/{unwanted}"),
            system.http.get(f"{url}/v1/streams/{running}"),
        ]
        under_way = [asyncio.create_task(call) for call in (*creates, *others)]
        done, _ = await asyncio.wait(under_way, timeout=1.0)
        assert not done, [task.result().text for task in done]
        await asyncio.to_thread(system.redis.start)
        answers = await asyncio.gather(*under_way)
        assert [answer.status_code for answer in answers] == [201, 201, 200, 200, 200, 200, 200, 200, 204, 200]
        again = await post(f"{url}/v1/streams", json={"messages": messages, **fast}, headers=key)
        assert again.json()["id"] == answers[1].json()["id"]
        assert len(await system.logs()) == len(creates) + 2
        assert (await system.state(running))["status"] == "cancelled"
        for process in (*system.gateways, *system.workers):
            assert re.search(r"Redis at \S+ is back, after \d+\.\d s", process.logged())
