"""`/`, `/v1/overview` and its events over HTTP: contents, limits and access."""

from __future__ import annotations

import json
import signal
from itertools import pairwise
from typing import Any

import httpx2
import pytest

from gateway.console.watchers import WATCHERS_MAX
from shared.keys import PROCESSES_ABOUT, PROCESSES_UNTIL
from tests.support.system import Reader, System
from tests.support.waiting import wait_until

_SECRET = "a-secret-word"


async def overview(system: System, gateway: int = 0) -> dict[str, Any]:
    response = await system.http.get(f"{system.gateway_url(gateway)}/v1/overview")
    assert response.status_code == 200, response.text
    snapshot: dict[str, Any] = response.json()
    return snapshot


async def until_shown(system: System, wanted: str, **counts: int) -> dict[str, Any]:
    """Returns the overview, once it has so many processes of each kind."""
    snapshot: dict[str, Any] = {}

    async def all_listed() -> bool:
        nonlocal snapshot
        snapshot = await overview(system)
        kinds = [one["kind"] for one in snapshot["processes"] if not one["silent"]]
        return all(kinds.count(kind) == count for kind, count in counts.items())

    await wait_until(all_listed, within_seconds=15.0, what=wanted)
    return snapshot


async def test_processes_appear_and_disappear() -> None:
    async with System(gateways=2, workers=2) as system:
        snapshot = await until_shown(system, "two and two", gateway=2, worker=2)
        pids = {one["pid"] for one in snapshot["processes"]}
        assert pids == {one.pid for one in (*system.gateways, *system.workers)}
        assert all(one["memory_bytes"] > 1e6 and one["version"] for one in snapshot["processes"])
        for key in (PROCESSES_UNTIL, PROCESSES_ABOUT):
            assert 0 < await system.commands.pttl(key) <= 67_000
        system.workers[0].kill()
        snapshot = await until_shown(system, "one worker is silent", gateway=2, worker=1)
        (silent,) = [one for one in snapshot["processes"] if one["silent"]]
        assert silent["pid"] == system.workers[0].pid
        system.gateways[1].send(signal.SIGTERM)
        snapshot = await until_shown(system, "the other gateway has left", gateway=1)
        assert system.gateways[1].pid not in {one["pid"] for one in snapshot["processes"]}


async def test_streams_are_listed_without_their_texts() -> None:
    async with System(settings={"worker_concurrency": 1}) as system:
        simulate = {"tokens": 2000, "tokens_per_second": 50}
        metadata = {"customer": "Acme", "long": "x" * 1000}
        running = await system.create(_SECRET, simulate=simulate, midstream={"metadata": metadata})
        reader = system.follow(running)
        await reader.until_tokens(10)
        waiting = await system.create(_SECRET, simulate=simulate)

        async def rows() -> dict[str, Any]:
            return {one["id"]: one for one in (await overview(system))["streams"]["newest"]}

        async def known() -> bool:
            listed = await rows()
            return len(listed) == 2 and listed[running]["tokens_per_second"] > 10

        await wait_until(known, what="both streams and a rate")
        listed = await rows()
        assert (listed[running]["status"], listed[waiting]["status"]) == ("running", "waiting")
        assert listed[running]["tokens"] >= 10
        assert listed[running]["model"] == "simulated"
        assert listed[running]["metadata"] == {"customer": "Acme", "long": "x" * 63 + "…"}
        assert (listed[waiting]["model"], listed[waiting]["metadata"]) == (None, {})
        assert listed[running]["worker"].split("-")[-2] == str(system.workers[0].pid)
        whole = await overview(system)
        assert (whole["streams"]["running"], whole["streams"]["waiting"]) == (1, 1)

        async def waits() -> bool:
            return bool((await overview(system))["streams"]["oldest_waiting_seconds"] > 0)

        await wait_until(waits, what="the waiting time is shown")
        assert _SECRET not in json.dumps(whole)
        assert "simulated answer" not in json.dumps(whole)
        await system.http.post(f"{system.gateway_url()}/v1/streams/{running}/cancel")

        async def seen_to_end() -> bool:
            return any(
                one["id"] == running and one["status"] == "cancelled" and one["tokens"] >= 10
                for one in (await overview(system))["streams"]["ended"]
            )

        await wait_until(seen_to_end, what="it was seen to end")


async def test_a_failure_between_two_snapshots_is_listed() -> None:
    """A stream that failed between two snapshots is reported by its worker: the code, and never the provider's message."""
    async with System() as system:
        simulate = {"tokens": 5, "tokens_per_second": 0, "fail_after": 2}
        failed = await system.create(_SECRET, simulate=simulate, midstream={"on_interrupt": "fail"})
        await system.until_status(failed, "failed")
        ended: list[dict[str, Any]] = []

        async def is_listed() -> bool:
            nonlocal ended
            ended = (await overview(system))["streams"]["ended"]
            return bool(ended)

        await wait_until(is_listed, what="it is listed")
        (row,) = ended
        assert (row["id"], row["status"], row["tokens"], row["attempt"]) == (failed, "failed", 2, 1)
        assert row["error"] == {"code": "provider_unavailable", "status": None}
        assert row["model"] == "simulated"
        assert "as it was asked to" not in json.dumps(await overview(system))


async def test_a_cancelled_stream_shows_the_tokens_it_had() -> None:
    async with System() as system:
        stream_id = await system.create(simulate={"tokens": 2000, "tokens_per_second": 100})
        reader = system.follow(stream_id)
        await overview(system)  # it has few tokens now
        await reader.until_tokens(100)
        await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")
        state = await system.until_status(stream_id, "cancelled")

        async def rows() -> list[dict[str, Any]]:
            ended: list[dict[str, Any]] = (await overview(system))["streams"]["ended"]
            return ended

        await wait_until(rows, what="it was seen to end")
        assert (await rows())[0]["tokens"] == state["tokens"] >= 100


async def test_samples_are_taken_while_nobody_watches() -> None:
    async with System() as system:
        reader = system.follow(await system.create(simulate={"tokens": 2000, "tokens_per_second": 50}))
        await reader.until_tokens(200, within_seconds=30.0)  # four seconds
        watcher = Reader(system.http, f"{system.gateway_url()}/v1/overview/events?history=1")
        await wait_until(lambda: len(watcher.messages) >= 2, what="a history and a snapshot")
        await watcher.leave()
        (history,) = watcher.named("history")
        assert len(history) >= 3
        times = [sample["time"] for sample in history]
        assert all(0 < after - before < 8 for before, after in pairwise(times))
        newest = json.loads(watcher.messages[1].data)
        assert (watcher.messages[0].event, watcher.messages[1].event) == ("history", "message")
        for sample in history:
            assert set(sample) == {"time", "readers", "streams", "per_second", "lag"}
            assert set(sample["lag"]) <= set(newest["lag"])
        assert history[-1]["time"] == newest["time"]
        assert any(sample["streams"]["running"] == 1 and sample["readers"] == 1 for sample in history)
        plain = Reader(system.http, f"{system.gateway_url()}/v1/overview/events")
        await wait_until(lambda: plain.messages, what="a snapshot")
        assert plain.messages[0].event == "message"
        await plain.leave()


async def test_running_streams_stay_listed_after_redis_restarted_empty() -> None:
    async with System(settings={"redis_reply_seconds": 1}) as system:
        stream_id = await system.create(simulate={"tokens": 4000, "tokens_per_second": 50})
        reader = system.follow(stream_id)
        await reader.until_tokens(10)
        assert (await overview(system))["streams"]["running"] == 1
        system.redis.kill()

        async def away() -> bool:
            whole = await overview(system)
            listed = [row["id"] for row in whole["streams"]["newest"]]
            return not whole["redis"]["up"] and listed == [stream_id] and whole["read_at"] < whole["time"]

        await wait_until(away, within_seconds=15.0, what="Redis is away, and the last data is shown")
        system.redis.start()
        before = len(reader.tokens)
        await reader.until_tokens(before + 50)

        async def still_there() -> bool:
            whole = await overview(system)
            rows = whole["streams"]["newest"]
            return whole["redis"]["up"] and [row["id"] for row in rows] == [stream_id] and rows[0]["tokens"] > before

        await wait_until(still_there, within_seconds=15.0, what="it is listed, though the queue has forgotten it")
        assert (await overview(system))["streams"]["running"] == 1
        await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")

        async def ended() -> bool:
            streams = (await overview(system))["streams"]
            return not streams["running"] and [row["status"] for row in streams["ended"]] == ["cancelled"]

        await wait_until(ended, what="its end is seen, too")


async def test_snapshots_come_while_somebody_watches_and_watchers_are_bounded() -> None:
    async with System() as system:
        url = f"{system.gateway_url()}/v1/overview/events"
        watchers = [Reader(system.http, url) for _ in range(WATCHERS_MAX)]
        await wait_until(lambda: all(len(one.messages) >= 3 for one in watchers), within_seconds=15.0, what="snapshots")
        times = [json.loads(one.data)["time"] for one in watchers[0].messages]
        assert all(0.8 < after - before < 3 for before, after in pairwise(times))
        refused = await system.http.get(url)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        await watchers[0].leave()

        async def room() -> bool:
            async with system.http.stream("GET", url) as response:
                return bool(response.status_code == 200)

        await wait_until(room, what="there is room for another")
        system.gateways[0].send(signal.SIGTERM)
        assert await system.gateways[0].exit_code() == 0
        for one in watchers[1:]:
            await one.until_end()
            assert one.error is None


async def test_pages_and_their_headers() -> None:
    async with System() as system:
        for path, kind in (("/", "text/html"), ("/chat", "text/html"), ("/console/console.js", "text/javascript")):
            page = await system.http.get(system.gateway_url() + path)
            assert page.status_code == 200
            assert page.headers["content-type"].startswith(kind)
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert page.headers["x-content-type-options"] == "nosniff"
            assert page.headers["cache-control"] == "no-cache"
            etag = {"if-none-match": page.headers["etag"]}
            assert (await system.http.get(system.gateway_url() + path, headers=etag)).status_code == 304
            head = await system.http.head(system.gateway_url() + path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == str(len(page.content))
        for absent in ("/console/", "/console/console.html", "/console/..%2fconsole.py", "/console/none.js"):
            assert (await system.http.get(system.gateway_url() + absent)).status_code == 404
        assert (await system.http.post(f"{system.gateway_url()}/v1/overview")).status_code in (404, 405)


@pytest.mark.parametrize(
    ("console", "host", "status"), [("off", "127.0.0.1", 404), ("auto", "0.0.0.0", 404), ("on", "0.0.0.0", 200)]
)
async def test_switched_off(console: str, host: str, status: int) -> None:
    async with System(workers=0, gateway_settings={"console": console, "host": "127.0.0.1", "auth": "none"}) as system:
        if host != "127.0.0.1":
            system.gateways[0].kill()
            system.gateways[0].settings["host"] = host
            system.gateways[0].start()

            async def up() -> bool:
                try:
                    return (await system.http.get(f"{system.gateway_url()}/healthz")).status_code == 200
                except httpx2.TransportError:
                    return False

            await wait_until(up, within_seconds=20.0, what="the gateway is up")
        for path in ("/", "/chat", "/v1/overview"):
            assert (await system.http.get(system.gateway_url() + path)).status_code == status


async def test_the_overview_shows_that_redis_is_away() -> None:
    async with System(durable=True, settings={"redis_reply_seconds": 1}) as system:
        watcher = Reader(system.http, f"{system.gateway_url()}/v1/overview/events")

        def newest() -> dict[str, Any]:
            snapshot: dict[str, Any] = json.loads(watcher.messages[-1].data) if watcher.messages else {"redis": {}}
            return snapshot

        await wait_until(lambda: newest()["redis"].get("up") is True, what="a snapshot")
        system.redis.kill()
        await wait_until(
            lambda: newest()["redis"]["up"] is False, within_seconds=15.0, what="the overview shows that Redis is away"
        )
        system.redis.start()
        await wait_until(lambda: newest()["redis"]["up"] is True, within_seconds=15.0, what="and back")
        await watcher.leave()
