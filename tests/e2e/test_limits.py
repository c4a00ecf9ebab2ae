"""Limits hold over all gateways, and refusals are what clients' own retries understand."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx2
import openai
import pytest
import pytest_asyncio
import websockets

from shared.keys import readers_key
from tests.support.system import Reader, System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")
MESSAGES = [{"role": "user", "content": "hi"}]
SLOW = {"tokens": 1000, "tokens_per_second": 20}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system() -> AsyncIterator[System]:
    """Yields a system with two gateways whose limits a test sets."""
    async with System(gateways=2, settings={"usage_seconds": 0.5}) as system:
        yield system


async def limited(system: System, **limits: int) -> None:
    """Restarts the gateways with these limits, all accounts empty."""
    for gateway in system.gateways:
        gateway.kill()
    await system.commands.flushall()
    for index, gateway in enumerate(system.gateways):
        gateway.settings = {name: value for name, value in gateway.settings.items() if not name.startswith("limit_")}
        gateway.settings |= {f"limit_{name}": value for name, value in limits.items()}
        await system.start_gateway(index)


async def create(
    system: System, gateway: int = 0, headers: dict[str, str] | None = None, **body: Any
) -> httpx2.Response:
    url = f"{system.gateway_url(gateway)}/v1/streams"
    return await system.http.post(url, json={"messages": MESSAGES, **body}, headers=headers)


async def cancel(system: System, created: httpx2.Response) -> None:
    await system.http.post(f"{system.gateway_url()}/v1/streams/{created.json()['id']}/cancel")


async def test_creates_per_minute_over_two_gateways_and_the_sdk_waits_as_it_is_told(system: System) -> None:
    await limited(system, creates_per_minute=40)
    began_at = time.monotonic()
    answers = await asyncio.gather(*(create(system, number % 2, simulate={"tokens": 1}) for number in range(60)))
    refilled = (time.monotonic() - began_at) * 40 / 60
    admitted = [answer for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(admitted) + len(refused) == 60
    assert 40 <= len(admitted) <= 40 + refilled
    problem = refused[0]
    assert problem.headers["content-type"] == "application/problem+json"
    assert problem.headers["retry-after"] == "2", "a fortieth of a minute is 1.5 s"
    assert problem.headers["ratelimit-policy"] == '"creates";q=40;w=60;qu="requests"'
    assert problem.headers["ratelimit"] == '"creates";r=0;t=2'
    assert "40 streams a minute" in problem.json()["detail"]
    began_at = time.monotonic()
    for gateway in range(2):
        url = f"{system.gateway_url(gateway)}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as impatient:
            with pytest.raises(openai.RateLimitError) as raised:
                await impatient.chat.completions.create(model="m", messages=MESSAGES)  # type: ignore[arg-type]
        assert (raised.value.code, raised.value.type) == ("rate_limit_exceeded", "rate_limit_error")
        async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=2) as patient:
            answer = await patient.chat.completions.create(
                model="m",
                messages=MESSAGES,  # type: ignore[arg-type]
                extra_body={"simulate": {"tokens": 2}},
            )
        assert answer.choices[0].message.content
    assert time.monotonic() - began_at > 2, "both have waited for a token of the bucket"
    assert await system.metric("midstream_limit_refusals_total") >= 1


async def test_streams_at_once_are_free_when_they_end_whoever_dies(system: System) -> None:
    await limited(system, streams=3)
    running = [await create(system, number % 2, simulate=SLOW) for number in range(3)]
    assert [answer.status_code for answer in running] == [201] * 3
    refused = await create(system, 1, simulate=SLOW)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.headers["ratelimit-policy"] == '"streams";q=3;qu="concurrent-requests"'
    for _ in range(5):  # one after the other, each as soon as the one before has ended
        await cancel(system, running.pop())
        running.append(await create(system, simulate=SLOW))
        assert running[-1].status_code == 201
    short = [running.pop()]
    await cancel(system, short[0])
    for _ in range(5):
        one = await create(system, simulate={"tokens": 2})
        assert one.status_code == 201
        await system.follow(one.json()["id"]).until_end()
    running.append(await create(system, simulate=SLOW))
    assert (await create(system, 1, simulate=SLOW)).status_code == 429
    await cancel(system, running.pop(0))
    running.append(await create(system, 1, simulate=SLOW))
    assert running[-1].status_code == 201, "at once after a refusal"
    # Whoever ends streams dies at once: the logs say that they have ended.
    system.gateways[0].kill()
    system.workers[0].kill()
    for answer in running:
        await system.commands.execute_command(
            "XADD", f"midstream:{{{answer.json()['id']}}}:log", "9-0", "cancelled", '{"by":"client","time":1}'
        )
    answers = [await create(system, 1, simulate=SLOW) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
    await system.start_gateway(0)
    await system.start_worker(0)


async def test_a_refused_idempotency_key_is_unused_and_a_known_one_is_not_refused(system: System) -> None:
    await limited(system, streams=1)
    first = await create(system, headers={"idempotency-key": "one"}, simulate=SLOW)
    again = await create(system, 1, headers={"idempotency-key": "one"}, simulate=SLOW)
    assert first.json()["id"] == again.json()["id"]
    lasted_seconds, latest = [], first
    for key in ("two", "three", "four"):
        assert (await create(system, headers={"idempotency-key": key}, simulate=SLOW)).status_code == 429
        await cancel(system, latest)
        began_at = time.monotonic()
        latest = await create(system, headers={"idempotency-key": key}, simulate=SLOW)
        assert latest.status_code == 201
        lasted_seconds.append(time.monotonic() - began_at)
    assert min(lasted_seconds) < 0.4, "it has not waited for another create's log"


async def test_bytes_of_requests(system: System) -> None:
    await limited(system, request_bytes=100_000)
    photo = [{"role": "user", "content": "x" * 60_000}]
    first = await create(system, simulate=SLOW, messages=photo)
    refused = await create(system, 1, simulate=SLOW, messages=photo)
    assert (first.status_code, refused.status_code) == (201, 429)
    assert refused.headers["ratelimit-policy"] == '"bytes";q=100000;qu="content-bytes"'
    await cancel(system, first)

    async def fits() -> bool:
        return (await create(system, 1, simulate={"tokens": 1}, messages=photo)).status_code == 201

    await wait_until(fits, what="the photo's place is free, since its stream has ended")


async def test_tokens_per_day_and_no_sdk_tries_again_before_the_next(system: System) -> None:
    await limited(system, tokens_per_day=50)
    first = await create(system, simulate={"tokens": 60})
    await system.follow(first.json()["id"]).until_end()

    async def is_refused() -> bool:
        return (await create(system, 1, simulate={"tokens": 1})).status_code == 429

    await wait_until(is_refused, what="the tokens are counted")
    refused = await create(system, simulate={"tokens": 1})
    left_seconds = math.ceil(86_400 - time.time() % 86_400)
    assert abs(int(refused.headers["retry-after"]) - left_seconds) <= 2
    assert re.fullmatch(r'"tokens";r=0;t=\d+', refused.headers["ratelimit"])
    assert "ratelimit-policy" not in refused.headers, "there is no registered unit for tokens"
    async with openai.AsyncOpenAI(base_url=f"{system.gateway_url()}/v1", api_key="x", max_retries=5) as client:
        before = await system.metric("midstream_limit_refusals_total")
        with pytest.raises(openai.RateLimitError):
            await client.responses.create(model="m", input="hi")
        assert await system.metric("midstream_limit_refusals_total") == before + 1


async def test_a_browser_s_eventsource_comes_back_when_it_may(system: System) -> None:
    await limited(system, creates_per_minute_all=1)
    assert (await create(system)).status_code == 201
    headers = {"accept": "text/event-stream"}
    answer = await system.http.get(f"{system.gateway_url()}/stream?prompt=hi", headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert re.search(r"^retry: \d{5,6}$", answer.text, re.MULTILINE), answer.text
    chat = {"id": "c1", "messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}]}
    refused = await system.http.post(f"{system.gateway_url(1)}/api/chat", json=chat)
    assert (refused.status_code, refused.headers["ratelimit"][:17]) == (429, '"creates-all";r=0')


async def test_readers_of_one_stream_over_two_gateways(system: System) -> None:
    await limited(system, readers=3)
    stream_id = (await create(system, simulate={"tokens": 2000, "tokens_per_second": 20})).json()["id"]

    async def admitted(gateway: int) -> Reader | None:
        reader = system.follow(stream_id, gateway=gateway)
        await wait_until(lambda: reader.status, what="an answer's head")
        return reader if reader.status == 200 else None

    # At once: a place is taken before anything is waited for.
    readers = [reader for reader in await asyncio.gather(*(admitted(n % 2) for n in range(12))) if reader]
    assert len(readers) == 3
    for reader in readers:
        await reader.leave()

    async def one_more() -> bool:
        return await admitted(1) is not None

    async def first() -> bool:
        return await admitted(0) is not None

    await wait_until(first, what="a free place")
    await wait_until(one_more, what="a free place")
    last = await admitted(1)
    assert last is not None
    refused = system.follow(stream_id, gateway=1)
    await wait_until(lambda: refused.status, what="a refusal")
    assert (refused.status, refused.headers["retry-after"]) == (429, "5")
    assert refused.headers["ratelimit-policy"] == '"readers";q=3;qu="concurrent-requests"'
    with pytest.raises(websockets.InvalidStatus, match="429"):
        async with websockets.connect(f"ws://127.0.0.1:{system.gateway_port(0)}/v1/streams/{stream_id}/ws"):
            pass
    other = (await create(system, simulate={"tokens": 3})).json()["id"]
    await system.follow(other, gateway=1).until_end()
    await last.leave()
    await wait_until(one_more, what="the place of the reader who has left")
    # A gateway that is killed keeps its readers' places until its note runs out.
    key = readers_key(stream_id)
    assert 0 < await system.commands.pttl(key) <= 30_000
    system.gateways[0].kill()
    for process, note in (await system.commands.hgetall(key)).items():
        if process.decode().endswith(f"-{system.gateways[0].pid}"):
            await system.commands.hset(key, process, note.split()[0] + b" 1")
    await system.start_gateway(0)
    await wait_until(one_more, what="the places of the readers of the gateway that was killed")
    assert (await system.http.post(f"{system.gateway_url(1)}/v1/streams/{stream_id}/cancel")).status_code == 200

    async def all_gone() -> bool:
        return not await system.commands.exists(key)

    await wait_until(all_gone, what="the readers of a stream that has ended are forgotten")


async def test_requests_of_one_address_and_of_each_client_of_a_trusted_proxy(system: System) -> None:
    await limited(system, connections=2)
    stream_id = (await create(system, simulate=SLOW)).json()["id"]
    readers = [system.follow(stream_id) for _ in range(2)]
    for reader in readers:
        await reader.until_tokens(1)
    refused = await create(system)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
    assert refused.headers["ratelimit-policy"] == '"connections";q=2;qu="concurrent-requests"'
    chat = await system.http.post(f"{system.gateway_url()}/v1/chat/completions", json={"messages": MESSAGES})
    assert chat.json()["error"]["code"] == "rate_limit_exceeded"
    with pytest.raises(websockets.InvalidStatus, match="429"):
        async with websockets.connect(f"ws://127.0.0.1:{system.gateway_port()}/v1/streams/{stream_id}/ws"):
            pass
    forged = {"x-forwarded-for": "198.51.100.1"}
    assert (await create(system, headers=forged)).status_code == 429, "nobody trusts this peer"
    assert (await create(system, 1, simulate={"tokens": 1})).status_code == 201, "each process counts for itself"
    await readers[0].leave()

    async def free() -> bool:
        return (await create(system, simulate={"tokens": 1})).status_code == 201

    await wait_until(free, what="the place of the reader who has left")
    async with websockets.connect(f"ws://127.0.0.1:{system.gateway_port()}/v1/streams/{stream_id}/ws"):
        assert (await create(system)).status_code == 429
    await wait_until(free, what="the place of the WebSocket")

    for gateway in system.gateways:
        gateway.settings["trusted_proxies"] = "127.0.0.0/8"
    await limited(system, connections=1)
    stream_id = (await create(system, simulate=SLOW)).json()["id"]
    url = system.events_url(stream_id)
    client = {"x-forwarded-for": "203.0.113.9, 198.51.100.1"}
    async with system.http.stream("GET", url, headers=client) as response:
        assert response.status_code == 200
        client["x-forwarded-for"] = "192.0.2.7, 198.51.100.1, 127.0.0.2"
        assert (await create(system, headers=client)).status_code == 429, "what a client has written does not count"
        assert (await create(system, headers={"x-forwarded-for": "198.51.100.2"})).status_code == 201
        assert (await create(system)).status_code == 201, "the proxy itself"
    for gateway in system.gateways:
        del gateway.settings["trusted_proxies"]


async def test_connections_without_a_request_are_bounded_and_readers_are_not_touched() -> None:
    """Silent ones, ones that send a byte now and then, and ones that had a request: the oldest go first, of the address that has too many."""
    limits = {"idle_connections_max": 25, "idle_connections_per_address": 10, "trusted_proxies": "127.0.0.3"}
    async with System(workers=0, gateway_settings=limits) as system, contextlib.AsyncExitStack() as stack:
        reader = system.follow(await system.create())
        await wait_until(lambda: reader.status == 200, what="the reader is there")

        async def opened(address: str, count: int, sent: bytes = b"") -> list[asyncio.StreamReader]:
            found = []
            for _ in range(count):
                came, writer = await asyncio.open_connection(
                    "127.0.0.1", system.gateway_port(), local_addr=(address, 0)
                )
                stack.callback(writer.close)
                writer.write(sent)
                found.append(came)
            return found

        def closed(connections: list[asyncio.StreamReader]) -> list[bool]:
            return [one._eof for one in connections]  # type: ignore[attr-defined]  # also where an answer was not read

        flood = [*await opened("127.0.0.2", 8), *await opened("127.0.0.2", 5, b"G")]
        flood += await opened("127.0.0.2", 4, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        proxy = await opened("127.0.0.3", 12)
        await wait_until(lambda: closed(flood) == [True] * 7 + [False] * 10, what="the oldest are closed")
        assert closed(proxy) == [False] * 12, "a trusted proxy has connections for many"
        more = await opened("127.0.0.4", 8)  # 30 in all
        await wait_until(lambda: sum(closed(flood)) >= 12, what="the oldest of all are closed")
        assert closed([*flood, *proxy, *more]) == sorted(closed([*flood, *proxy, *more]), reverse=True)
        assert (await system.http.get(f"{system.gateway_url()}/healthz")).status_code == 200
        assert not reader.ended
        assert await system.metric('midstream_limit_refusals_total{limit="idle_connections",of="address"}') == 7
        await reader.leave()


async def test_appends_a_second_are_refused_and_a_body_of_lines_is_slowed_down(system: System) -> None:
    await limited(system, stream_appends_per_second=20)
    url, http = system.gateway_url(), system.http
    external = {"messages": MESSAGES, "midstream": {"writer": "external", "on_disconnect": "continue"}}
    events = f"{url}/v1/streams/{(await http.post(f'{url}/v1/streams', json=external)).json()['id']}/events"
    written = f"{url}/v1/stream/limited"
    await http.put(written, headers={"content-type": "text/plain"})
    to_events = partial(http.post, events, json={"token": "a "})
    to_written = partial(http.post, written, content=b"a ", headers={"content-type": "text/plain"})
    for append in (to_events, to_written):
        answers = await asyncio.gather(*(append() for _ in range(40)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert 10 <= len(refused) <= 20
        assert {answer.status_code for answer in answers if answer not in refused} <= {200, 204}
        assert refused[0].headers["ratelimit-policy"] == '"appends";q=20;w=1;qu="requests"'
        assert "20 appends a second may be made to one stream" in refused[0].json()["detail"]

    async def lines() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b'{"token": "b "}\n'
            await asyncio.sleep(0.005)
        yield b'{"end": "done"}\n'

    began_at = time.monotonic()
    answer = await http.post(events, content=lines(), headers={"content-type": "application/x-ndjson"})
    assert (answer.status_code, answer.json()["status"]) == (200, "completed"), answer.text
    assert answer.json()["tokens"] >= 50 + 20
    assert time.monotonic() - began_at > 0.1
