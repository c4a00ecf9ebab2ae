"""No text of an answer is in any log, metric or trace, whatever a provider sends (MIDSTREAM_LOG_TEXTS=0, the default)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2

from tests.support.http_server import Closed, HttpServer, Request, head, response
from tests.support.otlp import Collector
from tests.support.redis_server import free_port
from tests.support.system import System
from tests.support.waiting import wait_until

MARK = "KINGFISHER"
"""It is in every text that the provider sends."""


def data(*chunks: Any) -> bytes:
    return b"".join(b"data: " + (it if type(it) is bytes else json.dumps(it).encode()) + b"\n\n" for it in chunks)


def chunk(delta: Any, finish_reason: Any = None, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, **choice}]}


TEXT = data(chunk({"content": f"{MARK} said"}))
STREAMS: dict[str, bytes] = {
    "bad-utf8": b'data: {"choices":[{"delta":{"content":"' + MARK.encode() + b' \xf0\x9f\x98"}}]}\n\n' + data(chunk({}, "stop")),
    "half-a-chunk": TEXT + b'data: {"choices":[{"delta":{"content":"' + MARK.encode() + b'\n\n',
    "not-json": TEXT + data(MARK.encode()),
    "a-list": data([MARK]) + TEXT,
    "an-error": TEXT + data({"error": {"message": MARK, "code": 400, "type": MARK, "param": MARK}}),
    "an-error-text": TEXT + data({"error": MARK}),
    "an-error-in-the-choice": TEXT + data(chunk({}, "error", error={"code": 502, "message": MARK})),
    "an-error-event": b"event: error\n" + data({"details": MARK}),
    "an-error-field": b"error: " + MARK.encode() + b"\n\n",
    "words-between": TEXT + MARK.encode() + b": gone\n",
    "a-page": b"<html><title>" + MARK.encode() + b"</title></html>",
    "json": json.dumps({"error": {"message": MARK}}).encode(),
    "a-text": MARK.encode(),
    "odd-finish-reason": TEXT + data(chunk({}, f"{MARK} reason")),
    "a-finish-reason-of-error": TEXT + data(chunk({"content": MARK}, "error")),
    "odd-values": data(chunk({"content": [MARK, {"type": MARK}], "tool_calls": [MARK], MARK: MARK, "audio": MARK}, logprobs=[MARK])) + data(chunk({}, "stop")),
    "nested": data({"choices": MARK, "usage": MARK, "model": [MARK], MARK: {MARK: MARK}}) + TEXT,
    "too-many-values": data(b'{"choices":["' + MARK.encode() + b'"' + b",[]" * 100_001 + b"]}"),
    "cut": TEXT,
}  # fmt: skip
STATUSES = (400, 401, 404, 429, 500, 503)


class Marked(HttpServer):
    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = json.loads(request.body)["model"]
        if name.startswith("status-"):
            writer.write(
                response(
                    int(name[-3:]), "application/json", json.dumps({"error": {"message": MARK, "code": MARK}}).encode()
                )
            )
        elif name == "redirect":
            writer.write(head(307, {"location": f"http://{MARK}.example/{MARK}?{MARK}", "content-length": "0"}))
        elif name == "no-http":
            writer.write(f"HTTP/1.1 200 {MARK}\r\n{MARK}\r\n\r\n".encode())
            raise Closed
        elif name == "no-chunk":
            writer.write(head(200, {"transfer-encoding": "chunked"}) + b"5\r\nhello\r\n" + MARK.encode() + b"\r\n\r\n")
            raise Closed
        elif name == "no-gzip":
            writer.write(head(200, {"content-encoding": "gzip"}) + MARK.encode() * 100)
            raise Closed
        else:
            body = STREAMS[name]
            length = len(body) + (name == "cut")
            writer.write(head(200, {"content-type": "text/event-stream", "content-length": str(length)}) + body)
            if name == "cut":
                await writer.drain()
                raise Closed


async def test_whatever_a_provider_sends_stays_in_the_answer() -> None:
    names = [*STREAMS, *(f"status-{status}" for status in STATUSES), "redirect", "no-http", "no-chunk", "no-gzip"]
    metrics_port = free_port()
    async with Collector() as collector, Marked() as server:
        settings = {
            "openai_api_key": "sk-test",
            "openai_base_url": f"{server.origin}/v1",
            "provider_tries_max": 2,
            "provider_backoff_seconds": 0.01,
            "log_level": "DEBUG",
        }
        async with System(
            settings=settings, worker_settings={"metrics_port": metrics_port}, environment=collector.environment()
        ) as system:
            streams = {name: await system.create(f"{MARK}?", model=name) for name in names}
            await asyncio.gather(*(system.follow(stream_id).until_end() for stream_id in streams.values()))
            states = {name: await system.state(stream_id) for name, stream_id in streams.items()}
            assert MARK in str(states["an-error"]["error"]), "its reader sees it"
            await wait_until(lambda: len(collector.spans) >= 3 * len(names), what="the traces have come")
            async with httpx2.AsyncClient(trust_env=False) as http:
                worker = (await http.get(f"http://127.0.0.1:{metrics_port}/metrics")).text
            gateway = (await system.http.get(f"{system.gateway_url()}/metrics")).text
            logs = "".join(process.logged() for process in (*system.workers, *system.gateways))
    assert "midstream_provider_oddities_total" in worker
    # A span has the name of the requested model, which a client may choose; no request here has the mark in it.
    shown = {"the logs": logs, "the worker's metrics": worker, "the gateway's metrics": gateway}
    shown["the traces"] = "".join(body.decode("utf-8", "replace") for body in collector.bodies)
    for place, text in shown.items():
        at = text.find(MARK)
        assert at < 0, f"in {place}: {text[max(0, at - 200) : at + 100]}"
