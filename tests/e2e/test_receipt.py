"""Receipts: tokens generated and delivered, with cut connections, killed gateways and failed attempts."""

from __future__ import annotations

import json
import re
import time
from functools import partial
from typing import Any

import pytest

from tests.support.system import System
from tests.support.waiting import wait_until


async def receipt(system: System, stream_id: str, *, gateway: int = 0) -> dict[str, Any]:
    response = await system.http.get(f"{system.gateway_url(gateway)}/v1/streams/{stream_id}/receipt")
    assert response.status_code == 200, response.text
    receipt_now: dict[str, Any] = response.json()
    return receipt_now


async def until_all_closed(system: System, stream_id: str, connections: int, *, gateway: int = 0) -> dict[str, Any]:
    async def closed() -> bool:
        shown = await receipt(system, stream_id, gateway=gateway)
        listed = shown["delivered"]["connections"]
        return len(listed) == connections and all(one["outcome"] for one in listed)

    await wait_until(closed, what=f"{connections} connections are noted as closed")
    return await receipt(system, stream_id, gateway=gateway)


async def test_cut_and_resumed_on_another_gateway() -> None:
    async with System(gateways=2) as system:
        stream_id = await system.create(simulate={"tokens": 60, "tokens_per_second": 60})
        first = system.follow(stream_id)
        await first.until_tokens(20)
        await first.leave()
        second = await system.follow(stream_id, gateway=1, after=first.last_id).until_end()
        final = await until_all_closed(system, stream_id, 2)
        assert final["generated"]["tokens"] == 60
        assert final["generated"]["usage"]["completion_tokens"] == 60
        (attempt,) = final["generated"]["attempts"]
        assert (attempt["attempt"], attempt["tokens"], attempt["outcome"]) == (1, 60, "completed")
        assert attempt["worker"]
        assert attempt["started_at"] > 1e9
        assert (final["delivered"]["tokens"], final["undelivered_tokens"]) == (60, 0)
        one, two = final["delivered"]["connections"]
        assert (one["outcome"], two["outcome"]) == ("disconnected", "completed")
        assert (one["from"], two["from"], two["to"]) == ("0-0", first.last_id, "1-61")
        assert one["tokens"] >= len(first.tokens)
        assert two["tokens"] == len(second.tokens)
        assert one["gateway"] != two["gateway"]
        assert one["opened_at"] <= one["closed_at"] <= two["closed_at"]


async def test_unread_tokens_are_undelivered_and_usage_is_never_invented() -> None:
    async with System() as system:
        stream_id = await system.create(
            simulate={"tokens": 1000, "tokens_per_second": 50}, midstream={"on_disconnect": {"cancel_after": 0.5}}
        )
        reader = system.follow(stream_id)
        await reader.until_tokens(10)
        await reader.leave()
        await system.until_status(stream_id, "cancelled")
        final = await until_all_closed(system, stream_id, 1)
        assert final["generated"]["usage"] is None
        assert final["generated"]["attempts"][0]["outcome"] == "cancelled"
        assert final["generated"]["tokens"] > final["delivered"]["tokens"] >= 10
        assert final["undelivered_tokens"] == final["generated"]["tokens"] - final["delivered"]["tokens"]


async def test_each_attempt_is_counted() -> None:
    async with System() as system:
        for policy, standing, tokens in (("restart", 10, 30), ("continue", 30, 30)):
            stream_id = await system.create(
                simulate={"tokens": 100, "fail_after": 10, "tokens_per_second": 200},
                midstream={"on_interrupt": policy},
            )
            reader = await system.follow(stream_id).until_end()
            final = await until_all_closed(system, stream_id, 1)
            assert [one["tokens"] for one in final["generated"]["attempts"]] == [10, 10, 10]
            assert [one["outcome"] for one in final["generated"]["attempts"]] == [
                "provider_unavailable",
                "provider_unavailable",
                "failed",
            ]
            assert final["generated"]["tokens"] == final["delivered"]["tokens"] == standing
            assert final["delivered"]["connections"][0]["tokens"] == tokens == len(reader.tokens)


async def test_a_killed_gateway_s_receipt_lacks_little() -> None:
    async with System(gateways=2, gateway_settings={"delivery_report_seconds": 0.3}) as system:
        stream_id = await system.create(simulate={"tokens": 300, "tokens_per_second": 60})
        reader = system.follow(stream_id)

        async def noted() -> int:
            connections = (await receipt(system, stream_id, gateway=1))["delivered"]["connections"]
            return max((connection["tokens"] for connection in connections), default=0)

        async def has_noted_more_than(tokens: int) -> bool:
            return await noted() > tokens

        await reader.until_tokens(1)
        for _ in range(3):  # a report at each interval
            await wait_until(partial(has_noted_more_than, await noted()), what="a report")
        before = await noted()
        system.gateways[0].kill()
        shown = await receipt(system, stream_id, gateway=1)
        (one,) = shown["delivered"]["connections"]
        assert (one["outcome"], one["closed_at"]) == (None, None)
        assert one["tokens"] >= before


async def test_the_process_that_ends_a_stream_logs_its_receipt() -> None:
    async with System() as system:
        done = await system.create("a secret question", simulate={"tokens": 20})
        text = (await system.follow(done).until_end()).tokens
        cancelled = await system.create(simulate={"tokens": 1000})
        reader = system.follow(cancelled)
        await reader.until_tokens(5)
        await system.http.post(f"{system.gateway_url()}/v1/streams/{cancelled}/cancel")

        def lines(process: int) -> dict[str, Any]:
            logged = (system.workers[0] if process else system.gateways[0]).logged()
            found = [json.loads(line) for line in re.findall(r'^\{"event":"receipt".*$', logged, re.MULTILINE)]
            return {one["id"]: one for one in found}

        await wait_until(lambda: done in lines(1) and cancelled in lines(0), what="both receipts are logged")
        assert lines(1)[done]["generated"]["tokens"] == lines(1)[done]["delivered"]["tokens"] == len(text)
        assert lines(0)[cancelled]["status"] == "cancelled"
        assert cancelled not in lines(1)
        everything = system.tails()
        assert "a secret question" not in everything
        assert "simulated answer" not in everything


async def test_a_cancelled_answer_is_read_to_its_end_for_the_usage() -> None:
    settings = {"provider_on_cancel": "drain"}
    async with System(worker_settings=settings) as system:
        stream_id = await system.create(simulate={"tokens": 120, "tokens_per_second": 60})
        reader = system.follow(stream_id)
        await reader.until_tokens(10)
        await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")
        await reader.until_end()
        kept = (await system.state(stream_id))["tokens"]
        assert kept < 120
        assert (await receipt(system, stream_id))["generated"]["usage"] is None

        async def has_usage() -> bool:
            return (await receipt(system, stream_id))["generated"]["usage"] is not None

        await wait_until(has_usage, what="the usage of the cancelled answer")
        whole = await receipt(system, stream_id)
        assert whole["generated"]["usage"]["completion_tokens"] == 120
        assert whole["generated"]["tokens"] == (await system.state(stream_id))["tokens"] == kept


@pytest.mark.parametrize("policy", ["restart", "fail"])
async def test_receipts_have_the_last_heartbeats_of_a_killed_worker_and_gateway(policy: str) -> None:
    settings = {"lease_seconds": 1, "delivery_report_seconds": 0.2}
    async with System(gateways=2, workers=2, settings=settings) as system:
        simulate = {"tokens": 100, "tokens_per_second": 40}
        stream_id = await system.create(simulate=simulate, midstream={"on_interrupt": policy})
        await system.follow(stream_id, gateway=1).until_tokens(20)
        worker = await system.worker_of(stream_id)
        system.gateways[1].kill()
        worker.kill()
        killed_at = time.time()
        await system.until_status(stream_id, "completed", "failed")
        shown = await receipt(system, stream_id)
        lost, *later = shown["generated"]["attempts"]
        assert (lost["outcome"], len(later)) == {"restart": ("worker_lost", 1), "fail": ("failed", 0)}[policy]
        # A worker sends a heartbeat every two seconds.
        assert lost["started_at"] - 2.5 < lost["last_heard_at"] < killed_at
        assert all(attempt["last_heard_at"] is None for attempt in later)
        (connection,) = shown["delivered"]["connections"]
        assert (connection["outcome"], connection["closed_at"]) == (None, None)
        assert connection["opened_at"] <= connection["noted_at"] < killed_at
