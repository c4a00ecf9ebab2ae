"""One trace for each answer, from its client's span to its terminal event, over real processes and a real OTLP receiver."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shared.ids import is_stream_id
from shared.keys import log_key
from tests.support.openai_server import OpenAIServer
from tests.support.otlp import Collector, Received
from tests.support.system import System
from tests.support.waiting import wait_until

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
SHORT = {"tokens": 3, "tokens_per_second": 1000}
FAST: dict[str, object] = {"lease_seconds": 1, "provider_backoff_seconds": 0.05}
_SECRET, _ANSWER = "a very private question", ["forty", "-two, in", " confidence"]


async def until_spans(collector: Collector, stream_id: str, *names: str) -> list[Received]:
    """Returns the stream's spans once they have exactly these names."""

    def came() -> bool:
        return sorted(one.name for one in collector.of(stream_id)) == sorted(names)

    def received() -> str:
        return f"{names} of {[(one.name, one.attributes) for one in collector.of(stream_id)]}"

    try:
        await wait_until(came, within_seconds=15.0)
    except AssertionError as error:
        raise AssertionError(received()) from error
    return collector.of(stream_id)


def named(spans: list[Received], name: str) -> Received:
    (found,) = [one for one in spans if one.name == name]
    return found


def assert_one_trace(spans: list[Received], created: Received) -> None:
    """Checks that all spans are in the client's trace: creation is the child of the client's span, and the parent of all others."""
    assert {one.trace_id for one in spans} == {TRACE}
    assert created.parent_id == CALLER
    assert {one.parent_id for one in spans if one is not created} <= {created.span_id}


async def test_one_trace_from_the_clients_span_to_the_terminal_event() -> None:
    async with Collector() as collector, OpenAIServer() as provider:
        settings = {**FAST, "openai_api_key": "sk-test", "openai_base_url": provider.url}
        async with System(gateways=2, settings=settings, environment=collector.environment()) as system:
            script = {"text": _ANSWER, "tokens_per_second": 20}
            stream_id = await system.create(_SECRET, model="a-model", headers=HEADERS, script=script)
            await asyncio.gather(
                system.follow(stream_id).until_end(), system.follow(stream_id, gateway=1, after="1-1").until_end()
            )
            spans = await until_spans(collector, stream_id, "POST /v1/streams", "chat a-model", "read", "read")
            entries = await system.commands.xrange(log_key(stream_id), count=1)
        created, attempt = named(spans, "POST /v1/streams"), named(spans, "chat a-model")
        assert_one_trace(spans, created)

        assert (created.kind, created.service) == ("server", "midstream-gateway")
        assert (created["http.request.method"], created["http.route"]) == ("POST", "/v1/streams")
        stored = json.loads(entries[0][1][b"accepted"])["traceparent"]
        assert stored == f"00-{TRACE}-{created.span_id}-01"

        assert (attempt.kind, attempt.service, attempt.failed) == ("client", "midstream-worker", False)
        assert provider.traceparents == [f"00-{TRACE}-{attempt.span_id}-01"]
        assert attempt.event_names == ["midstream.first_token", "midstream.done"]
        assert attempt["midstream.queue_wait_seconds"] < 5
        assert (
            attempt.attributes.items()
            >= {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "openai",
                "gen_ai.request.model": "a-model",
                "gen_ai.response.finish_reasons": ["stop"],
                "gen_ai.usage.input_tokens": 4,
                "gen_ai.usage.output_tokens": 3,
                "midstream.attempt": 1,
                "midstream.base": 0,
                "midstream.offset": 3,
                "midstream.outcome": "completed",
            }.items()
        )

        first, second = sorted((one for one in spans if one.name == "read"), key=lambda one: str(one["midstream.from"]))
        assert (first["midstream.from"], first["midstream.to"], first["midstream.tokens"]) == ("0-0", "1-4", 3)
        assert (second["midstream.from"], second["midstream.to"], second["midstream.tokens"]) == ("1-1", "1-4", 2)
        assert first.instance != second.instance
        for read in (first, second):
            assert (read["midstream.outcome"], read["midstream.face"]) == ("completed", "native")
            assert read.began_at < read.ended_at
        exported = b"".join(collector.bodies)
        for text in (_SECRET, "private", *_ANSWER, "sk-test"):
            assert text.encode() not in exported


async def test_every_face_joins_the_clients_trace() -> None:
    request: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": _SECRET}]}
    chat = {"id": "a-chat", "trigger": "submit-message"}
    parts = {"messages": [{"id": "1", "role": "user", "parts": [{"type": "text", "text": _SECRET}]}]}
    faces: list[tuple[str, str, Mapping[str, Any] | None, str]] = [
        ("GET", "/stream", None, "prompt"),
        ("POST", "/v1/chat/completions", {**request, "stream": True}, "chat"),
        ("POST", "/v1/chat/completions", request, "whole"),
        ("POST", "/v1/responses", {"model": "m", "input": _SECRET, "stream": True}, "responses"),
        ("POST", "/api/chat", {**chat, **parts}, "aisdk"),
    ]
    async with (
        OpenAIServer() as provider,
        Collector() as collector,
        System(settings={"openai_base_url": provider.url}, environment=collector.environment()) as system,
    ):
        for method, path, body, face in faces:
            collector.spans.clear()
            query = {"prompt": _SECRET} if body is None else None
            response = await system.http.request(
                method, system.gateway_url() + path, params=query, json=body, headers=HEADERS
            )
            assert response.status_code == 200, response.text
            await wait_until(lambda: len(collector.spans) == 3, what=f"the three spans of {method} {path}")
            created, read = named(collector.spans, f"{method} {path}"), named(collector.spans, "read")
            assert_one_trace(collector.spans, created)
            assert read["midstream.face"] == face
            assert read["midstream.outcome"] == "completed"
            (stream_id,) = {one["midstream.stream.id"] for one in collector.spans}
            assert is_stream_id(stream_id)
        assert _SECRET.encode() not in b"".join(collector.bodies)
        assert b"private" not in b"".join(collector.bodies)


async def test_the_attempt_after_a_killed_worker_is_in_the_same_trace() -> None:
    async with (
        Collector() as collector,
        System(workers=2, settings=FAST, environment=collector.environment()) as system,
    ):
        stream_id = await system.create(headers=HEADERS, simulate={"tokens": 100, "tokens_per_second": 100})
        reader = system.follow(stream_id)
        await reader.until_tokens(5)
        (await system.worker_of(stream_id)).kill()
        await reader.until_end()
        spans = await until_spans(collector, stream_id, "POST /v1/streams", "chat simulated", "read")
    assert_one_trace(spans, named(spans, "POST /v1/streams"))
    second, read = named(spans, "chat simulated"), named(spans, "read")
    assert (second["midstream.attempt"], second["midstream.reason"]) == (2, "worker_lost")
    assert (second["midstream.outcome"], second["midstream.offset"]) == ("completed", 100)
    assert read["midstream.to"] == "2-101"
    assert read["midstream.tokens"] > 100


async def test_every_end_has_its_outcome() -> None:
    async with Collector() as collector, System(settings=FAST, environment=collector.environment()) as system:
        cancelled = await system.create(model="m", headers=HEADERS, simulate={"tokens": 5000})
        await system.follow(cancelled).until_tokens(3)
        await system.http.post(f"{system.gateway_url()}/v1/streams/{cancelled}/cancel", headers=HEADERS)

        policy = {"on_interrupt": "fail"}
        broken_off = {"tokens": 10, "fail_after": 3}
        failed = await system.create(model="m", headers=HEADERS, simulate=broken_off, midstream=policy)
        await system.follow(failed).until_end()

        restarted = await system.create(model="m", headers=HEADERS, simulate=broken_off)
        await system.follow(restarted).until_end()

        nobody = {"on_disconnect": {"cancel_after": 0}}
        left = await system.create(model="m", headers=HEADERS, simulate={"tokens": 5000}, midstream=nobody)

        names = ("POST /v1/streams", "chat simulated")
        spans = {
            "cancelled": await until_spans(collector, cancelled, *names, "read", "cancel"),
            "failed": await until_spans(collector, failed, *names, "read"),
            "restarted": await until_spans(collector, restarted, *names, "chat simulated", "chat simulated", "read"),
            "left": await until_spans(collector, left, *names),
        }
    for of_stream in spans.values():
        assert_one_trace(of_stream, named(of_stream, "POST /v1/streams"))

    attempt, cancel = named(spans["cancelled"], "chat simulated"), named(spans["cancelled"], "cancel")
    assert (attempt["midstream.outcome"], attempt["midstream.fenced_by"]) == ("fenced", "cancelled")
    assert (cancel["midstream.outcome"], cancel["midstream.by"]) == ("cancelled", "client")
    assert cancel.event_names == ["midstream.cancelled"]
    assert cancel.links == [CALLER]
    assert not attempt.failed

    attempt = named(spans["failed"], "chat simulated")
    assert (attempt["midstream.outcome"], attempt["error.type"]) == ("failed", "provider_unavailable")
    assert attempt.failed
    assert attempt.events[-2:] == [
        ("midstream.provider_failed", {"error.type": "provider_unavailable"}),
        ("midstream.failed", {}),
    ]
    assert named(spans["failed"], "read")["midstream.outcome"] == "completed"  # the reader got the end

    attempts = [one for one in spans["restarted"] if one.name == "chat simulated"]
    assert [one["midstream.attempt"] for one in attempts] == [1, 2, 3]
    assert [one["midstream.outcome"] for one in attempts] == ["restarted", "restarted", "failed"]
    assert [one["midstream.reason"] for one in attempts] == [None, "provider_unavailable", "provider_unavailable"]
    assert all(one.failed for one in attempts)

    attempt = named(spans["left"], "chat simulated")
    assert (attempt["midstream.outcome"], attempt["midstream.by"]) == ("cancelled", "disconnect")
    assert attempt.event_names[-1] == "midstream.cancelled"


@pytest.mark.parametrize("ended_by", ["gateway", "worker"])
async def test_a_request_that_no_worker_claimed_in_time_ends_in_its_trace(ended_by: str) -> None:
    settings = {**FAST, "queue_seconds": 1, "sweep_seconds": 0.2 if ended_by == "gateway" else 30}
    async with Collector() as collector, System(settings=settings, environment=collector.environment()) as system:
        system.workers[0].kill()
        stream_id = await system.create(headers=HEADERS)
        reader = system.follow(stream_id)
        if ended_by == "worker":
            began = time.monotonic()
            await wait_until(lambda: time.monotonic() - began > 1, what="its time is up")
            await system.start_worker(0)
        await reader.until_end()
        spans = await until_spans(collector, stream_id, "POST /v1/streams", "read", "end")
    assert_one_trace(spans, named(spans, "POST /v1/streams"))
    end = named(spans, "end")
    assert (end["midstream.outcome"], end["error.type"], end.failed) == ("failed", "queue_timeout", True)
    assert end.service == ("midstream-worker" if ended_by == "worker" else "midstream-gateway")


async def test_a_malformed_traceparent_of_a_client_is_ignored() -> None:
    async with Collector() as collector, System(environment=collector.environment()) as system:
        unsampled = await system.create(simulate=SHORT, headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
        await system.follow(unsampled).until_end()
        for bad in ("", "nonsense", f"00-{'0' * 32}-{CALLER}-01", f"00-{TRACE}-{CALLER}-01-{'x' * 500}", "ff" * 2000):
            stream_id = await system.create(simulate=SHORT, headers={"traceparent": bad})
            await system.follow(stream_id).until_end()
            spans = await until_spans(collector, stream_id, "POST /v1/streams", "chat simulated", "read")
            assert named(spans, "POST /v1/streams").parent_id == ""
            assert len({one.trace_id for one in spans} - {TRACE}) == 1
        assert not collector.of(unsampled)  # the client's flags say that the trace is not sampled


async def test_each_process_of_a_gateway_traces() -> None:
    async with Collector() as collector:
        environment = collector.environment(OTEL_SERVICE_NAME="ours", OTEL_RESOURCE_ATTRIBUTES="deployment=a")
        async with System(gateway_settings={"gateway_processes": 2}, environment=environment) as system:

            async def both() -> bool:
                await system.http.get(f"{system.gateway_url()}/stream?prompt=x", headers={"connection": "close"})
                return len({one.instance for one in collector.spans if one.name == "GET /stream"}) == 2

            await wait_until(both, within_seconds=20.0, what="both processes have sent spans")
            assert {one.service for one in collector.spans} == {"ours"}


# --- leaving


async def test_the_last_spans_are_sent_when_a_process_stops() -> None:
    async with Collector() as collector:
        environment = collector.environment(OTEL_BSP_SCHEDULE_DELAY="60000")
        async with System(settings={"worker_drain_seconds": 0.1}, environment=environment) as system:
            stream_id = await system.create(model="m", simulate={"tokens": 5000})
            await system.follow(stream_id).until_tokens(3)
            assert not collector.spans
            for process in (*system.gateways, *system.workers):
                process.send(signal.SIGTERM)
            for process in (*system.gateways, *system.workers):
                assert await process.exit_code() == 0
            spans = await until_spans(collector, stream_id, "POST /v1/streams", "chat simulated", "read")
    assert named(spans, "read")["midstream.outcome"] == "drained"
    assert named(spans, "chat simulated")["midstream.outcome"] == "handed_back"


@pytest.mark.alone("it leaves within 1.5 s")
@pytest.mark.parametrize("collector_is", ["hanging", "absent"])
async def test_a_collector_that_does_not_answer_costs_no_time_and_no_log(collector_is: str) -> None:
    async with Collector(hangs=True) as collector:
        environment = collector.environment()
        if collector_is == "absent":
            environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
        environment |= {"OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4"}
        async with System(settings={"worker_drain_seconds": 0.1}, environment=environment) as system:
            for _ in range(20):
                await system.follow(await system.create(simulate=SHORT)).until_end()
            stream_id = await system.create(simulate={"tokens": 5000})
            readers = [system.follow(stream_id) for _ in range(20)]
            await asyncio.gather(*(reader.until_tokens(3) for reader in readers))
            if collector_is == "hanging":
                await wait_until(lambda: collector.requests >= 2, what="both processes wait for the collector")
            (gateway,), (worker,) = system.gateways, system.workers
            asked_at = time.monotonic()
            gateway.send(signal.SIGTERM)
            assert await gateway.exit_code() == 0
            assert time.monotonic() - asked_at < 1.5  # usually half a second, of which a quarter is for the collector
            worker.send(signal.SIGTERM)
            assert await worker.exit_code(within_seconds=4.0) == 0  # meanwhile it looks for work, and hands it back
            for process in (gateway, worker):
                about = [line for line in process.logged().splitlines() if "shared.spans" in line]
                assert 1 <= len(about) <= 2, about  # the first error of the SDK, and that the last spans were not sent
                assert "opentelemetry" not in process.logged()


# --- off

_TELL_MODULES = """
import atexit, os, sys
atexit.register(lambda: open(f"{os.environ['MODULES']}/{os.getpid()}", "w").write("\\n".join(sys.modules)))
"""
_NOT_INSTALLED = """
import sys
sys.modules["opentelemetry.exporter"] = None
"""


def at_start(directory: Path, code: str) -> dict[str, str]:
    """Returns the environment of a process that runs this code at its start."""
    (directory / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(directory), "MODULES": str(directory)}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=["not-asked-for", "disabled", "none"],
)
async def test_without_tracing_no_module_is_loaded_and_nothing_is_stored_or_sent(
    tmp_path: Path, more: dict[str, str]
) -> None:
    async with OpenAIServer() as provider:
        settings = {"openai_base_url": provider.url}
        async with System(settings=settings, environment={**at_start(tmp_path, _TELL_MODULES), **more}) as system:
            stream_id = await system.create(headers=HEADERS, model="m")
            await system.follow(stream_id).until_end()
            entries = await system.commands.xrange(log_key(stream_id), count=1)
            pids = [process.pid for process in (*system.gateways, *system.workers)]
            for process in (*system.gateways, *system.workers):
                process.send(signal.SIGTERM)
                await process.exit_code()
        assert b"traceparent" not in entries[0][1][b"accepted"]
        assert provider.traceparents == [None]
    for pid in pids:
        loaded = (tmp_path / str(pid)).read_text().split()
        assert "shared.tracing" in loaded
        # FastAPI loads OpenTelemetry's API, and redis-py the SDK's metrics where it finds them: that is theirs.
        ours = (
            "shared.spans",
            "opentelemetry.sdk.trace",
            "opentelemetry.exporter",
            "opentelemetry.proto",
            "google",
            "requests",
        )
        assert not [name for name in loaded if name.startswith(ours)]


async def test_tracing_without_its_packages_is_reported(tmp_path: Path) -> None:
    environment = {**at_start(tmp_path, _NOT_INSTALLED), "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}
    async with System(environment=environment) as system:
        await system.follow(await system.create()).until_end()
        for process in (*system.gateways, *system.workers):
            (line,) = [line for line in process.logged().splitlines() if ".[otel]" in line]
            assert json.loads(line)["level"] == "warning"
            assert "pip install '.[otel]'" in line
