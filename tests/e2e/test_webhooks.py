"""Whoever is to be told of the end of a stream is told, once in the ordinary case and at least once whoever dies."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from shared.keys import WEBHOOKS_DEAD, WEBHOOKS_DUE, webhook_claim_key, webhook_key
from tests.support.http_server import Request, head
from tests.support.system import System, environment_of
from tests.support.waiting import wait_until
from tests.support.webhook_receiver import SECRET, Answer, WebhookReceiver, status

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIMULATED: dict[str, Any] = {"simulate": {"tokens": 20, "tokens_per_second": 1000}}
SLOW: dict[str, Any] = {"simulate": {"tokens": 500, "tokens_per_second": 20}}
QUICK = {"webhook_seconds": 1, "webhook_backoff_seconds": 0.2}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def receiver() -> AsyncIterator[WebhookReceiver]:
    async with WebhookReceiver() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(receiver: WebhookReceiver) -> AsyncIterator[System]:
    settings = {**receiver.settings(), **QUICK, "webhook_url": receiver.url}
    async with System(gateways=2, workers=2, settings=settings) as system:
        yield system


@pytest.fixture
def told(receiver: WebhookReceiver) -> WebhookReceiver:
    """The receiver, which has forgotten what came before."""
    receiver.posts.clear()
    receiver.refused.clear()
    receiver.answers.clear()
    receiver.default = status(204)
    return receiver


async def due_now(system: System, *stream_ids: str) -> None:
    """Has streams looked at at once, as they are a minute after the last look; no claim of a process that died is left."""
    await system.commands.zadd(WEBHOOKS_DUE, dict.fromkeys(stream_ids, 0), xx=True)
    await system.commands.delete(*(webhook_claim_key(stream_id) for stream_id in stream_ids))


async def until_nothing_is_due(system: System) -> None:
    async def is_empty() -> bool:
        return not await system.commands.zcard(WEBHOOKS_DUE)

    await wait_until(is_empty, what="nobody is still to be told")


async def command(system: System, *arguments: str) -> str:
    url = str(system.workers[0].settings["redis_url"])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "midstream.cli", "webhooks", *arguments),
        env=environment_of({"redis_url": url, "webhook_secrets": SECRET}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert SECRET not in output.decode() or arguments[0] == "secret"
    return output.decode()


async def test_what_a_webhook_says(system: System, told: WebhookReceiver) -> None:
    webhook = {"url": f"{told.origin}/with/text?token=hidden", "text": True}
    stream_id = await system.create(
        **SIMULATED, midstream={"webhook": webhook, "metadata": {"order": "7"}}, headers={"x-request-id": "r"}
    )
    reader = await system.follow(stream_id).until_end()
    await told.until(stream_id)
    (post,) = told.of(stream_id)
    state = await system.state(stream_id)
    data = post.body["data"]
    assert (post.id, post.body["type"]) == (stream_id, "stream.completed")
    assert post.headers["content-type"] == "application/json"
    assert (data["text"], data["text_cut"]) == (state["text"], False)
    assert data["metadata"] == {"order": "7"}
    assert data["usage"] == state["usage"] != None  # noqa: E711
    assert data["owner"] == "anonymous"
    assert data["receipt"]["generated"]["tokens"] == data["receipt"]["delivered"]["tokens"] == len(reader.tokens)
    assert data["receipt"]["delivered"]["connections_count"] == 1
    for name in ("model", "finish_reason", "created_at", "started_at", "ended_at", "error"):
        assert data[name] == state[name]
    await until_nothing_is_due(system)
    processes = (*system.gateways, *system.workers)
    assert not any("hidden" in process.logged() or SECRET in process.logged() for process in processes)
    assert "hidden" not in (await system.http.get(f"{system.gateway_url()}/v1/streams/{stream_id}")).text
    assert "hidden" not in str(reader.body)


async def test_every_way_to_end_is_told_once(system: System, told: WebhookReceiver) -> None:
    """Also with two workers that look at the same time as the one that has ended it."""
    url = system.gateway_url()
    cut = await system.create(simulate={"tokens": 5, "tokens_per_second": 1000, "finish_reason": "length"})
    failed = await system.create(simulate={"tokens": 5, "fail_after": 0})
    stopped, deleted = [await system.create(**SLOW) for _ in range(2)]
    await system.http.post(f"{url}/v1/streams/{stopped}/cancel")
    written = await system.create(midstream={"writer": "external"})
    begun = await system.http.post(f"{url}/v1/streams/{written}/attempts", json={"writer": "w"})
    after = {"last-event-id": begun.json()["last_event_id"]}
    events = [{"token": "a"}, {"end": "done"}]
    assert (await system.http.post(f"{url}/v1/streams/{written}/events", json=events, headers=after)).status_code == 200
    chat = await system.http.post(
        f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], **SIMULATED}
    )
    durable = await system.http.put(f"{url}/v1/stream/told", headers={"content-type": "text/plain"})
    await system.http.post(
        f"{url}/v1/stream/told", headers={"content-type": "text/plain", "stream-closed": "true"}, content=b"bye"
    )
    expected = {
        cut: "completed",
        failed: "failed",
        stopped: "cancelled",
        written: "completed",
        chat.headers["x-stream-id"]: "completed",
        durable.headers["x-stream-id"]: "completed",
    }
    many = [await system.create(**SIMULATED, gateway=number % 2) for number in range(20)]
    await asyncio.gather(*(system.state(stream_id, wait_seconds=10) for stream_id in many))
    expected |= dict.fromkeys(many, "completed")
    await system.commands.zadd(WEBHOOKS_DUE, dict.fromkeys(many, 0), xx=True)  # the minute's look comes just now
    await told.until(*expected)
    quiet = await system.create(**SIMULATED, midstream={"webhook": False})
    await system.http.delete(f"{url}/v1/streams/{deleted}")
    await system.state(quiet, wait_seconds=10)
    await due_now(system, deleted)
    await until_nothing_is_due(system)
    assert {post.id: post.body["data"]["status"] for post in told.posts if post.id in expected} == expected
    assert told.of(cut)[0].body["data"]["finish_reason"] == "length"
    assert told.of(failed)[0].body["data"]["error"]["code"]
    assert told.of(stopped)[0].body["data"]["cancelled_by"] == "client"
    assert {count for post_id, count in told.counts.items()} == {1}
    assert not told.of(quiet)


async def slow(request: Request, writer: Any) -> None:
    await asyncio.sleep(30)


async def gigabytes(request: Request, writer: Any) -> None:
    writer.write(head(500, {"content-length": str(1 << 33)}))
    while True:
        writer.write(b"x" * (1 << 20))
        await writer.drain()


async def no_http(request: Request, writer: Any) -> None:
    writer.write(b"nonsense\r\n\r\n")


@pytest.mark.parametrize(
    "answer",
    [status(500), status(404), status(302, location="http://127.0.0.1:1/"), slow, gigabytes, no_http],
    ids=["500", "404", "redirect", "slow", "gigabytes", "no_http"],
)
async def test_a_receiver_that_fails_is_asked_again(system: System, told: WebhookReceiver, answer: Answer) -> None:
    told.answers.append(answer)
    stream_id = await system.create(**SIMULATED)
    await told.until(stream_id, posts=2)
    first, second = told.of(stream_id)
    assert first.id == second.id == stream_id
    assert first.body == second.body
    await until_nothing_is_due(system)
    assert not await system.commands.exists(webhook_key(stream_id))


async def test_retry_after_is_waited_for(system: System, told: WebhookReceiver) -> None:
    told.answers.append(status(429, retry_after="2"))
    stream_id = await system.create(**SIMULATED)
    await told.until(stream_id, posts=2)
    first, second = told.of(stream_id)
    assert second.at - first.at > 1.9


async def test_gone_is_not_asked_again_until_somebody_says_so(system: System, told: WebhookReceiver) -> None:
    url = f"{told.origin}/gone"
    told.answers.append(status(410))
    first = await system.create(**SIMULATED, midstream={"webhook": url})
    await told.until(first)

    async def dead() -> list[dict[str, Any]]:
        lines = (await command(system, "list", "--json")).splitlines()
        return [row for row in map(json.loads, lines) if row["state"] == "dead"]

    async def has(count: int) -> bool:
        return int(await system.commands.zcard(WEBHOOKS_DEAD)) == count

    await wait_until(lambda: has(1))
    second = await system.create(**SIMULATED, midstream={"webhook": url})
    await wait_until(lambda: has(2))
    assert len(told.posts) == 1
    assert {row["id"] for row in await dead()} == {first, second}
    shown = await command(system, "show", first)
    assert "410" in shown
    assert first in shown
    assert "/gone" not in shown, "an address may have a secret"
    assert json.loads(await command(system, "show", first, "--json"))["body"] == told.of(first)[0].body
    await command(system, "retry", "--all")
    await told.until(second)
    await told.until(first, posts=2)
    await until_nothing_is_due(system)
    assert await command(system, "list") == "No webhook has failed.\n"


async def test_one_slow_receiver_does_not_hold_up_another(system: System, told: WebhookReceiver) -> None:
    async with WebhookReceiver() as other:
        other.default = slow
        for _ in range(100):  # six seconds of posts that take a second, sixteen at a time
            await system.create(**SIMULATED, midstream={"webhook": other.url})
        await wait_until(lambda: len(other.posts) >= 8)
        assert len(other.posts) <= 16, "eight at a time from each worker"
        quick = await system.create(**SIMULATED)
        await told.until(quick, within_seconds=5.0)
        other.default = status(204)
        await until_nothing_is_due(system)
        assert len(other.by_id) == 100


async def test_the_worker_dies_before_the_post(system: System, told: WebhookReceiver) -> None:
    stream_id = await system.create(**SIMULATED)
    await system.state(stream_id, wait_seconds=10)
    for worker in system.workers:  # a moment after the end, and before its receipt
        worker.kill()
    assert not told.posts
    for index in range(2):
        await system.start_worker(index)
    await due_now(system, stream_id)
    await told.until(stream_id)
    await until_nothing_is_due(system)
    assert told.counts == {stream_id: 1}


async def test_the_worker_dies_between_the_post_and_its_note(system: System, told: WebhookReceiver) -> None:
    """A second one comes, with the same id."""
    told.answers.append(slow)
    stream_id = await system.create(**SIMULATED)
    await told.until(stream_id)
    for worker in system.workers:
        worker.kill()
    for index in range(2):
        await system.start_worker(index)
    await due_now(system, stream_id)
    await told.until(stream_id, posts=2)
    await until_nothing_is_due(system)
    assert told.counts == {stream_id: 2}


@pytest.mark.parametrize(
    ("webhook", "words"),
    [
        ("http://user:password@127.0.0.1/", "must be an https URL"),
        ("https://169.254.169.254/latest/meta-data", "no public address"),
        ("https://[::ffff:169.254.169.254]/", "no public address"),
        ("https://[::1]/", "no public address"),
        ("https://2130706434/", "usual form"),
        ("https://0x7f.2/", "usual form"),
        ("https://example.com/", "MIDSTREAM_WEBHOOK_HOSTS"),
        ("ftp://127.0.0.1/", "must be an https URL"),
        ({"url": "https://127.0.0.1/", "secret": "x"}, "must be a URL"),
        (17, "must be a URL"),
        (True, "must be a URL"),
    ],
)
async def test_what_is_refused_at_create(system: System, webhook: object, words: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "midstream": {"webhook": webhook}}
    response = await system.http.post(f"{system.gateway_url()}/v1/streams", json=body)
    assert response.status_code == 400
    assert words in response.json()["detail"]
    assert "password" not in response.text


async def test_a_name_of_this_machine_is_refused_when_it_is_sent(told: WebhookReceiver) -> None:
    """What resolves to 127.0.0.1 is not connected to, and is among those that were given up."""
    settings = {**told.settings(), **QUICK, "webhook_networks": "10.0.0.0/8", "webhook_hosts": "localhost"}
    async with System(settings=settings) as system:
        webhook = f"http://localhost:{told.port}/"
        stream_id = await system.create(**SIMULATED, midstream={"webhook": webhook})
        await wait_until(lambda: "is given up" in system.workers[0].logged())
        assert "localhost has no public address" in await command(system, "show", stream_id)
        assert not told.posts
        assert not told.refused


async def test_no_process_and_no_redis_for_a_while(told: WebhookReceiver) -> None:
    """The worker dies with its POST under way, Redis is killed and comes back with what it had, and another worker sends it."""
    told.default = slow
    settings = {**told.settings(), **QUICK, "webhook_seconds": 20, "webhook_url": told.url}
    async with System(durable=True, settings=settings) as system:
        stream_id = await system.create(**SIMULATED)
        await told.until(stream_id)
        system.workers[0].kill()
        await asyncio.to_thread(system.redis.kill)
        await asyncio.to_thread(system.redis.start)
        told.default = status(204)
        await system.start_worker(0)
        await due_now(system, stream_id)
        await told.until(stream_id, posts=2)
        assert told.counts == {stream_id: 2}
        await until_nothing_is_due(system)
