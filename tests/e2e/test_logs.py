"""The processes' logs: one line per outcome, with the stream's and the request's id, and without texts of prompts or answers."""

from __future__ import annotations

import json
from typing import Any

from tests.support.openai_server import OpenAIServer
from tests.support.system import Process, System
from tests.support.waiting import wait_until

_SECRET = "a very private question"


def lines(process: Process) -> list[dict[str, Any]]:
    """Parses every line that the process has logged; each must be a JSON object."""
    return [json.loads(line) for line in process.logged().splitlines()]


def outcomes(system: System, stream_id: str) -> list[tuple[str, str]]:
    """Returns the outcome lines of a stream."""
    every = [line for process in (*system.workers, *system.gateways) for line in lines(process)]
    about = [line for line in every if line.get("stream") == stream_id and line["event"] in ("attempt", "receipt")]
    return [(line["event"], line.get("outcome") or line["status"]) for line in about]


async def until_logged(system: System, *stream_ids: str) -> None:
    """Returns once each stream's outcome and receipt are logged."""
    await wait_until(
        lambda: all(len(outcomes(system, stream_id)) == 2 for stream_id in stream_ids), what="all outcomes are logged"
    )


async def test_every_stream_has_its_outcome_and_its_receipt_under_its_requests_id() -> None:
    async with System() as system:
        headers = {"x-request-id": "from-the-client:7"}
        done = await system.create(_SECRET, simulate={"tokens": 10}, headers=headers)
        await system.follow(done).until_end()
        failed = await system.create(
            _SECRET, simulate={"tokens": 10, "fail_after": 3}, midstream={"on_interrupt": "fail"}
        )
        await system.follow(failed).until_end()
        cancelled = await system.create(_SECRET, simulate={"tokens": 5000})
        reader = system.follow(cancelled)
        await reader.until_tokens(3)
        await system.http.post(f"{system.gateway_url()}/v1/streams/{cancelled}/cancel")

        def all_logged() -> bool:
            return (
                outcomes(system, done) == [("attempt", "completed"), ("receipt", "completed")]
                and outcomes(system, failed) == [("attempt", "failed"), ("receipt", "failed")]
                and outcomes(system, cancelled) == [("attempt", "fenced"), ("receipt", "cancelled")]
            )

        await wait_until(all_logged, what="all outcomes are logged")
        logged = [line for line in lines(system.workers[0]) if line.get("stream") == done]
        assert {line["request_id"] for line in logged} == {"from-the-client:7"}
        (created,) = [
            line for line in lines(system.gateways[0]) if (line.get("event"), line.get("stream")) == ("created", done)
        ]
        assert (created["api"], created["model"], created["request_id"]) == (
            "native",
            "gpt-4o-mini",
            "from-the-client:7",
        )
        (failure,) = [line for line in lines(system.workers[0]) if line.get("code")]
        assert (failure["level"], failure["code"], failure["attempt"]) == ("warning", "provider_unavailable", 1)
        assert _SECRET not in system.tails()
        assert "simulated answer" not in system.tails()


async def test_the_provider_s_texts_are_logged_only_if_the_setting_allows_it() -> None:
    async with OpenAIServer() as provider:
        for log_texts in (0, 1):
            settings = {
                "openai_api_key": "sk-test",
                "openai_base_url": provider.url,
                "provider_tries_max": 1,
                "log_texts": log_texts,
            }
            async with System(settings=settings) as system:
                error = {"message": f"no: {_SECRET}"}
                refused = await system.create(_SECRET, script={"fail_status": 400, "error": error})
                await system.follow(refused).until_end()
                done = await system.create(_SECRET, script={"text": ["forty", "-two"]})
                await system.follow(done).until_end()
                await until_logged(system, refused, done)
                everything = "".join(process.logged() for process in (*system.workers, *system.gateways))
                assert (_SECRET in everything) is bool(log_texts)
                assert ("forty-two" in everything) is bool(log_texts)
                assert "sk-test" not in everything


async def test_request_ids_are_echoed_or_made_and_checked() -> None:
    async with System() as system:
        url = system.gateway_url()

        async def echoed(request_id: str | None, path: str = "/v1/streams/none") -> str:
            response = await system.http.get(
                f"{url}{path}", headers={} if request_id is None else {"x-request-id": request_id}
            )
            return str(response.headers["x-request-id"])

        assert await echoed("abc-123") == "abc-123"
        first, second = await echoed(None), await echoed(None)
        assert len(first) == 16
        assert first != second
        for bad in ('"},{"level":"error', "x" * 129, "a b"):
            assert await echoed(bad) != bad
        for path in ("/healthz", "/metrics", "/nowhere", "/v1/models", "/v1/chat/completions"):
            assert await echoed("r-1", path) == "r-1"
        stream_id = await system.create(simulate={"tokens": 3})
        async with system.http.stream("GET", system.events_url(stream_id), headers={"x-request-id": "r-2"}) as response:
            assert response.headers.get_list("x-request-id") == ["r-2"]


async def test_the_text_format_of_logs() -> None:
    async with System(settings={"log_format": "text"}) as system:
        stream_id = await system.create(_SECRET, simulate={"tokens": 5})
        await system.follow(stream_id).until_end()
        formats = (
            f"INFO midstream.receipt stream {stream_id}: completed: 5 tokens generated, 5 delivered over 1 connections"
        )
        await wait_until(lambda: formats in system.workers[0].logged(), what="the receipt in words")
        assert "{" not in system.workers[0].logged()


async def test_a_provider_s_refusal_names_its_host_and_its_code_and_not_its_words() -> None:
    """Wrong key, wrong model and wrong address are told apart."""
    async with OpenAIServer() as server:
        settings = {"provider": "openai", "openai_base_url": server.url, "provider_tries_max": 1}
        async with System(settings=settings) as system:
            host = server.origin.removeprefix("http://")
            error = {"message": f"{_SECRET}: wrong key", "type": "t", "code": "invalid_api_key"}
            refused = await system.create(model="m", script={"fail_status": 401, "error": error})
            await system.follow(refused).until_end()
            line = f"{host} answered with status 401 (invalid_api_key)"
            await wait_until(lambda: line in system.workers[0].logged())
            worker = system.workers[0]
            worker.kill()
            worker.settings["openai_base_url"] = server.origin
            await system.start_worker(0)
            lost = await system.create(model="m")
            await system.follow(lost).until_end()
            await wait_until(lambda: f"{host} answered with status 404" in worker.logged())
            assert "OPENAI_BASE_URL has no /v1" in worker.logged()
            assert _SECRET not in system.tails()
