"""Our nginx, Caddy and HAProxy configurations before real gateways: nothing is late, and nothing is lost when gateways are replaced."""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio

from midstream.doctor.checks import Pace, pace
from midstream.doctor.observe import Client, Observation
from tests.support.event_source import EventSource
from tests.support.proxies import Kind, Proxy, deployed
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

KINDS: tuple[Kind, ...] = ("nginx", "caddy", "haproxy")
TOKENS = 2000
LATE_SECONDS_MAX = 0.1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with System(gateways=2) as system:
        yield system


def ports(system: System) -> list[int]:
    return [int(str(one.settings["port"])) for one in system.gateways]


@pytest.mark.alone("a token may be 0.1 s late")
@pytest.mark.parametrize("kind", KINDS)
async def test_two_thousand_tokens_are_not_late(system: System, kind: Kind) -> None:
    """Event by event: when it came through the proxy, against when it came to a reader of the gateway, at the same time."""
    with deployed(kind, ports(system)) as proxy:
        stream_id = await system.create(kind, simulate={"tokens": TOKENS, "tokens_per_second": 1000})
        path = f"/v1/streams/{stream_id}/events"
        through, direct = EventSource(proxy.port, path), EventSource(ports(system)[0], path)
        async with asyncio.timeout(60):
            await asyncio.gather(through.run(), direct.run())
    assert through.refused == direct.refused == []
    assert len(through.connections) == len(direct.connections) == 1
    assert len(through.answer.tokens) == TOKENS
    assert through.answer == direct.answer
    late = {one: through.came[one] - direct.came[one] for one in direct.came}
    worst = max(late, key=lambda one: late[one])
    print(
        f"{kind}: median {statistics.median(late.values()) * 1000:.2f} ms, worst {late[worst] * 1000:.1f} ms ({worst})"
    )
    assert late[worst] < LATE_SECONDS_MAX, f"{worst} came {late[worst] * 1000:.0f} ms after the direct way"


@pytest.mark.alone("an event may be 0.1 s late")
@pytest.mark.parametrize("kind", KINDS)
async def test_two_thousand_timed_events_keep_their_pace(system: System, kind: Kind) -> None:
    """When each was sent, against when it came; and the same without the proxy, at the same time on the same machine."""
    plan, client = {"events": TOKENS, "interval_ms": 1}, Client(timeout_seconds=20)

    def measured(told: Observation) -> Pace:
        found = pace(told.arrivals)
        assert told.whole, told.error
        assert found is not None
        assert found.events == TOKENS
        return found

    with deployed(kind, ports(system)) as proxy:
        urls = [f"{proxy.url}/v1/probe", f"{system.gateway_url()}/v1/probe"]
        both = await asyncio.gather(*(client.observe(url, plan, planned_seconds=2) for url in urls))
    through, direct = map(measured, both)
    print(f"{kind}: {through.held_seconds_max * 1000:.1f} ms at worst, direct {direct.held_seconds_max * 1000:.1f} ms")
    assert through.held_seconds_max < direct.held_seconds_max + LATE_SECONDS_MAX


@pytest.mark.parametrize("kind", KINDS)
async def test_what_else_a_reader_relies_on(system: System, kind: Kind) -> None:
    """204 after the end, the header's resume point, a POST, an error's body; and metrics are nobody's business."""
    with deployed(kind, ports(system)) as proxy:
        body = {"messages": [{"role": "user", "content": kind}], "simulate": {"tokens": 5, "tokens_per_second": 0}}
        created = await system.http.post(f"{proxy.url}/v1/streams", json=body)
        assert created.status_code == 201
        stream_id = created.json()["id"]
        state = await system.http.get(f"{proxy.url}/v1/streams/{stream_id}?wait=10")
        assert state.json()["status"] == "completed"
        url = proxy.url + created.headers["location"]
        resumed = await system.http.get(url, headers={"last-event-id": "1-3"})
        tokens = [json.loads(line[6:]) for line in resumed.text.split("\n") if line.startswith('data: {"token"')]
        assert len(tokens) == 2
        assert (await system.http.get(url, headers={"last-event-id": "1-6"})).status_code == 204
        unknown = await system.http.get(f"{proxy.url}/v1/streams/nonsense/events")
        assert (unknown.status_code, unknown.headers["content-type"]) == (404, "application/problem+json")
        assert (await system.http.get(f"{proxy.url}/metrics")).status_code == 404


READERS, STREAMS = 500, 10


async def test_gateways_are_replaced_under_five_hundred_readers() -> None:
    """One after the other behind nginx, as a deployment does it: nobody is refused, loses a token or gets one twice."""
    async with System(gateways=2, settings={"retry_milliseconds": 300}) as system:
        with deployed("nginx", ports(system)) as proxy:
            simulate = {"tokens": 10_000, "tokens_per_second": 14}  # they last for as long as this takes
            ids = [await system.create(f"story {number}", simulate=simulate) for number in range(STREAMS)]
            sources = [EventSource(proxy.port, f"/v1/streams/{ids[n % STREAMS]}/events") for n in range(READERS)]
            reading = [asyncio.create_task(source.run()) for source in sources]
            try:
                await replace_all(system, proxy, sources)
                for stream_id in ids:
                    await system.http.post(f"{proxy.url}/v1/streams/{stream_id}/cancel")
                async with asyncio.timeout(60):
                    await asyncio.gather(*reading)
            finally:
                for task in reading:
                    task.cancel()
        assert [status for source in sources for status in source.refused] == []
        states = {stream_id: await system.state(stream_id) for stream_id in ids}
        for number, source in enumerate(sources):
            state = states[ids[number % STREAMS]]
            assert (state["status"], source.answer.end) == ("cancelled", "cancelled")
            assert source.answer.tokens, f"reader {number}"
            assert source.answer.text == state["text"], f"reader {number}"
        resumes = sum(len(source.connections) - 1 for source in sources)
        assert sum(source.failures for source in sources) == 0  # nor met a closed door
        assert READERS <= resumes < 3 * READERS  # each gateway had about half of them, and the second one then all
        print(f"{READERS} readers, {resumes} resumes")


async def replace_all(system: System, proxy: Proxy, sources: list[EventSource]) -> None:
    """SIGTERM, wait until it is gone, start it again, wait until it is ready; then the next one."""

    async def has_its_share(index: int) -> bool:
        ready = await system.http.get(f"{system.gateway_url(index)}/readyz")
        return ready.status_code == 200 and ready.json()["readers"] >= READERS // 4

    async def replace(index: int) -> None:
        await wait_until(partial(has_its_share, index), within_seconds=30, what=f"gateway {index} has readers")
        system.gateways[index].send(signal.SIGTERM)
        assert await system.gateways[index].exit_code() == 0
        before = [source.events for source in sources]
        await system.start_gateway(index)

        def all_go_on() -> bool:
            return all(source.events > many for source, many in zip(sources, before, strict=True))

        await wait_until(all_go_on, within_seconds=30, what="all readers go on")
        assert (await system.http.get(f"{proxy.url}/readyz")).status_code == 200

    await wait_until(lambda: all(source.events > 5 for source in sources), within_seconds=20, what="all follow")
    for index in range(2):
        await replace(index)
