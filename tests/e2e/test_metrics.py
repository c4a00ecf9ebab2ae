"""Compares the metrics with receipts and with what readers got."""

from __future__ import annotations

import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.metric_definition import OTHER
from shared.metrics import MODELS_MAX, defined
from shared.version import VERSION
from tests.support.load import metrics_address, mixed_streams
from tests.support.openai_server import OpenAIServer
from tests.support.redis_server import free_port
from tests.support.system import System
from tests.support.waiting import wait_until

SMALL_RING = {"ring_events": 16, "page_events": 16}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """Returns the sum over all series of this name with these labels. AssertionError if there is none."""
    found = [
        value for (named, series), value in samples.items() if named == name and labels.items() <= dict(series).items()
    ]
    assert found, f"there is no {name} with {labels}"
    return sum(found)


async def of_gateway(system: System) -> Samples:
    return parsed((await system.http.get(f"{system.gateway_url()}/metrics")).text)


async def of_workers(system: System) -> Samples:
    summed: Samples = {}
    for worker in system.workers:
        if worker.runs:
            for key, value in parsed((await system.http.get(f"http://{metrics_address(worker)}/metrics")).text).items():
                summed[key] = summed.get(key, 0.0) + value
    return summed


def settings() -> dict[str, object]:
    return {
        "lease_seconds": 1,
        "provider_backoff_seconds": 0.05,
        "delivery_report_seconds": 0.5,
        "entry_tokens_max": 1,
        "metrics_port": free_port() - 100,
    }


@pytest.mark.parametrize("processes", [1, 2])
async def test_counters_agree_with_receipts_and_readers(processes: int) -> None:
    async with System(settings=settings(), gateway_settings={**SMALL_RING, "gateway_processes": processes}) as system:
        streams = await mixed_streams(system)
        receipts: list[dict[str, Any]] = []

        async def all_closed() -> bool:
            receipts[:] = []
            for stream_id in streams.values():
                response = await system.http.get(f"{system.gateway_url()}/v1/streams/{stream_id}/receipt")
                receipts.append(response.json())
            noted = all(one["outcome"] for receipt in receipts for one in receipt["delivered"]["connections"])
            gateway, worker = await of_gateway(system), await of_workers(system)
            written = sum(total(side, "midstream_receipts_total") for side in (gateway, worker))
            return noted and written == len(streams) and total(gateway, "midstream_readers") == 0

        await wait_until(all_closed, within_seconds=15.0, what="all readers are gone and all receipts written")
        connections = [one for receipt in receipts for one in receipt["delivered"]["connections"]]

        async def all_handed_over() -> bool:
            closes = total(await of_gateway(system), "midstream_reader_closes_total")
            delivered = total(await of_gateway(system), "midstream_tokens_delivered_total")
            up = total(
                await of_gateway(system), "midstream_redis_up"
            )  # each process reads this from its connection from time to time
            return closes == len(connections) and delivered >= sum(one["tokens"] for one in connections) and up == 1

        await wait_until(all_handed_over, what="the other process has handed over too")
        gateway, worker = await of_gateway(system), await of_workers(system)

        # Tokens of all attempts of all streams. An attempt that was cancelled from outside may have had an entry under way.
        generated = sum(attempt["tokens"] for receipt in receipts for attempt in receipt["generated"]["attempts"])
        assert generated <= total(worker, "midstream_tokens_generated_total") <= generated + 2
        delivered = sum(one["tokens"] for one in connections)
        assert total(gateway, "midstream_tokens_delivered_total") == delivered
        undelivered = sum(receipt["undelivered_tokens"] for receipt in receipts)
        counted = [total(side, "midstream_receipt_tokens_total", fate="undelivered") for side in (gateway, worker)]
        assert sum(counted) == undelivered
        assert undelivered > 0

        # Ends: three answers fail or are cancelled by the worker, one is cancelled by the gateway.
        assert total(worker, "midstream_streams_ended_total", status="completed") == 4
        assert total(worker, "midstream_streams_ended_total", status="failed") == 2
        assert total(worker, "midstream_stream_failures_total", code="provider_unavailable") == 2
        assert total(worker, "midstream_cancels_total", by="disconnect") == 1
        assert total(gateway, "midstream_cancels_total", by="client") == 1
        assert total(worker, "midstream_answers_total", finish_reason="length") == 1
        outcomes = ("completed", "failed", "cancelled", "fenced", "restarted")
        attempts = {one: total(worker, "midstream_attempts_total", outcome=one) for one in outcomes}
        assert attempts == {"completed": 4, "failed": 2, "cancelled": 1, "fenced": 1, "restarted": 2}
        assert total(worker, "midstream_fenced_writes_total") == 1
        assert total(worker, "midstream_provider_errors_total") == 4
        assert total(worker, "midstream_attempts_running") == 0

        # Readers.
        for outcome in ("completed", "disconnected"):
            told_so = sum(one["outcome"] == outcome for one in connections)
            assert total(gateway, "midstream_reader_closes_total", outcome=outcome) == told_so
        assert total(gateway, "midstream_resumes_total") == 2
        assert total(gateway, "midstream_resume_events_back_bucket", le="+Inf") == 2
        assert total(gateway, "midstream_resume_events_back_sum") >= 500
        assert total(gateway, "midstream_pages_sent_total") >= 2
        assert total(gateway, "midstream_log_reads_total", reason="page") >= 2
        assert total(gateway, "midstream_log_reads_total", reason="begin") >= len(streams)
        assert total(gateway, "midstream_gaps_total") == 0
        assert total(gateway, "midstream_http_problems_total", status="404") == 1
        assert total(gateway, "midstream_gateway_processes") == processes
        assert total(gateway, "midstream_redis_up") == 1

        # Times: a sample for each of them.
        assert total(gateway, "midstream_append_to_socket_seconds_count") >= 4
        assert total(gateway, "midstream_append_to_socket_seconds_bucket", le="1.0") >= 4
        assert total(worker, "midstream_time_to_first_token_seconds_count") == len(streams)
        assert total(worker, "midstream_queue_wait_seconds_count") == len(streams)
        assert total(worker, "gen_ai_client_operation_time_to_first_chunk_seconds_count") == len(streams) + 2
        assert total(worker, "gen_ai_server_time_per_output_token_seconds_count") == 4
        assert total(worker, "gen_ai_client_token_usage_count", gen_ai_token_type="output") == 4


async def test_every_metric_exists_from_the_start_with_every_label() -> None:
    async with System(settings=settings()) as system:
        sides = {"gateway": await of_gateway(system), "worker": await of_workers(system)}
        for one in defined():
            for side in sides if one.where == "both" else [one.where]:
                if one.labels and not all(one.labels.values()):
                    continue  # by model: once it has answered
                name = one.exposed + ("_count" if one.kind == "histogram" else "")
                for label, values in one.labels.items():
                    shown = {dict(labels).get(label) for named, labels in sides[side] if named == name}
                    assert shown == set(values), f"{side}: {name}"
                assert total(sides[side], name) >= 0


async def test_takeovers_and_lost_leases_of_a_worker_that_is_killed() -> None:
    async with System(workers=2, settings=settings()) as system:
        stream_id = await system.create(simulate={"tokens": 200, "tokens_per_second": 50})
        reader = system.follow(stream_id)
        await reader.until_tokens(5)
        (await system.worker_of(stream_id)).kill()
        await reader.until_end()
        worker = await of_workers(system)
        assert total(worker, "midstream_lease_takeovers_total") == 1
        assert total(worker, "midstream_attempts_total", outcome="completed") == 1
        assert total(worker, "midstream_queue_wait_seconds_count") <= 1


async def test_a_queue_without_workers_shows_in_the_gateway_s_metrics() -> None:
    async with System(workers=0) as system:
        for _ in range(3):
            await system.create()

        async def seen() -> bool:
            return total(await of_gateway(system), "midstream_queue_requests", state="waiting") == 3

        await wait_until(seen, what="the queue is seen")
        assert total(await of_gateway(system), "midstream_queue_requests", state="claimed") == 0
        await wait_until(lambda: system.metric("midstream_queue_oldest_seconds"), what="its age is seen")
        assert await system.metric("midstream_redis_memory_bytes") > 500_000
        assert await system.metric("midstream_redis_headroom_bytes") > 0


async def test_clients_cannot_create_unlimited_labels() -> None:
    async with OpenAIServer() as provider:
        worker_settings = {**settings(), "openai_api_key": "sk-test", "openai_base_url": provider.url}
        async with System(settings=worker_settings) as system:
            for number in range(MODELS_MAX + 5):
                reader = system.follow(await system.create(model=f"model-{number}"))
                await reader.until_end()
            worker = await of_workers(system)
        models = {
            dict(labels)["gen_ai_request_model"]
            for name, labels in worker
            if name == "gen_ai_client_operation_time_to_first_chunk_seconds_count"
        }
        assert len(models) == MODELS_MAX + 1
        assert OTHER in models


async def test_the_worker_s_metrics_port() -> None:
    taken = settings()
    async with System(workers=2, settings=taken) as system:
        addresses = {metrics_address(worker) for worker in system.workers}
        assert len(addresses) == 2  # one setting, two workers of one machine
        address = addresses.pop()
        assert (await system.http.get(f"http://{address}/healthz")).text == "ok\n"
        response = await system.http.get(f"http://{address}/metrics")
        assert re.match(r"text/plain; version=", response.headers["content-type"])
        assert (await system.http.get(f"http://{address}/")).status_code == 404
        assert (await system.http.post(f"http://{address}/metrics")).status_code == 404


@pytest.mark.parametrize("processes", [1, 2])
async def test_requests_are_counted_by_route_and_status_and_readers_by_face(processes: int) -> None:
    async with System(gateway_settings={"gateway_processes": processes}) as system:
        url = system.gateway_url()
        stream_id = await system.create(simulate={"tokens": 3, "tokens_per_second": 0})
        await system.follow(stream_id).until_end()
        for path, accept in (("events", "application/x-ndjson"), ("text", "*/*"), ("ws", "*/*")):
            await system.http.get(f"{url}/v1/streams/{stream_id}/{path}", headers={"accept": accept})
        chat = {"messages": [{"role": "user", "content": "x"}], "simulate": {"tokens": 1}}
        await system.http.post(f"{url}/v1/chat/completions", json=chat)
        for path in ("/v1/streams/unknown", "/nothing/here", f"/nothing/{stream_id}"):
            await system.http.get(url + path)
        await system.http.request("PATCH", f"{url}/v1/streams")
        samples = await of_gateway(system)
        stream = "/v1/streams/{stream_id}"
        for method, route, status, count in (
            ("POST", "/v1/streams", "201", 1),
            ("GET", stream + "/events", "200", 2),
            ("GET", stream + "/text", "200", 1),
            ("GET", stream + "/ws", "426", 1),
            ("GET", stream, "404", 1),
            ("POST", "/v1/chat/completions", "200", 1),
            (OTHER, OTHER, "404", 2),
            (OTHER, OTHER, "405", 1),
        ):
            labels = {"method": method, "route": route}
            assert total(samples, "midstream_http_requests_total", status=status, **labels) == count, (route, status)
            assert total(samples, "midstream_http_request_seconds_count", **labels) >= count
        for face, count in (("sse", 1), ("ndjson", 1), ("text", 1), ("websocket", 0)):
            assert total(samples, "midstream_reader_opens_total", face=face) == count, face
        for api, count in (("native", 1), ("chat", 1), ("ai_sdk", 0)):
            assert total(samples, "midstream_streams_created_total", api=api) == count, api
        assert total(samples, "midstream_build_info", version=VERSION) == 1
        assert not [name for name, labels in samples if stream_id in str(labels)], "no label has a path"
        assert total(parsed((await system.http.get(f"{url}/metrics")).text), "midstream_build_info") == 1
