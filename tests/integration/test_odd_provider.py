"""The provider against a server whose responses end late, are cut, are no streams, or refuse what is asked with them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from producer import chunk_reader
from producer.openai_provider import OpenAIProvider
from producer.provider import Finish, ProviderError, Refused, Unavailable
from shared.events import Item
from tests.support.hearing import Heard
from tests.support.http_server import Closed, HttpServer, Request, head, response


def data(*chunks: Any) -> bytes:
    return b"".join(b"data: " + (it if type(it) is bytes else json.dumps(it).encode()) + b"\n\n" for it in chunks)


def chunk(delta: Any = None, finish_reason: Any = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish_reason}]}


TEXT = data(chunk({"content": "Good"}), chunk({"content": " morning"}))
STOP, USAGE = data(chunk({}, "stop")), data({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
DONE = data(b"[DONE]")
STREAM = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}


class OddServer(HttpServer):
    """Answers each request with the next part of `parts`; of a part, a number is a pause, None the cut of the connection."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[bytes | float | None] = []
        self.bodies: list[dict[str, Any]] = []
        self.whole: list[bytes] = []
        """Whole responses instead, one for each request."""

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.bodies.append(json.loads(request.body))
        if self.whole:
            writer.write(self.whole.pop(0))
            return
        writer.write(head(200, STREAM))
        for part in self.parts:
            if part is None:
                raise Closed
            if isinstance(part, bytes):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await writer.drain()
            else:
                await asyncio.sleep(part)
        writer.write(b"0\r\n\r\n")


@pytest.fixture
async def server() -> AsyncIterator[OddServer]:
    async with OddServer() as server:
        yield server


@pytest.fixture
async def provider(server: OddServer) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(api_key="", base_url=f"{server.origin}/v1", default_model="m", connections_max=10)
    yield provider
    await provider.close()


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_reader, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(chunk_reader, "UNSURE_GRACE_SECONDS", 0.4)


async def heard(provider: OpenAIProvider, **request: Any) -> tuple[list[Item], Finish, list[str]]:
    hearer = Heard()
    finish = await provider.generate({"messages": [{"role": "user", "content": "x"}], **request}, "", hearer)
    return hearer.items, finish, hearer.oddities


@pytest.mark.parametrize(
    ("parts", "odd", "has_usage"),
    [
        ([TEXT, STOP, 60.0], ["left_open"], False),
        ([TEXT, STOP, USAGE, 60.0], ["left_open"], True),
        ([TEXT, STOP, 0.05, USAGE, 60.0], ["left_open"], True),
        ([TEXT, STOP, USAGE, *[b": ping\n\n", 0.05] * 200], ["left_open"], True),
        ([TEXT, STOP, USAGE, None], ["cut_after_finish"], True),
        ([TEXT, STOP.rstrip(), None], ["line_end", "cut_after_finish"], False),
        ([TEXT, STOP, USAGE, DONE, None], [], True),
        ([TEXT, STOP, USAGE, DONE, 60.0], [], True),
        ([TEXT, STOP], [], False),
        ([TEXT, DONE], ["no_finish_reason"], False),
    ],
)
async def test_an_answer_with_its_finish_reason_is_whole(
    provider: OpenAIProvider, server: OddServer, parts: list[Any], odd: list[str], has_usage: bool
) -> None:
    server.parts = parts
    began = time.monotonic()
    items, finish, oddities = await heard(provider)
    assert time.monotonic() - began < 5
    assert (items, finish.reason, finish.usage is not None) == (["Good", " morning"], "stop", has_usage)
    assert oddities == odd


async def test_text_behind_a_finish_reason_is_waited_for(
    provider: OpenAIProvider, server: OddServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some providers send a finish_reason with each chunk; the time for what comes late begins anew with each text."""
    # Each pause is far shorter than what it may last, however late a busy machine ends it.
    monkeypatch.setattr(chunk_reader, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(chunk_reader, "UNSURE_GRACE_SECONDS", 2.0)
    server.parts = [data(chunk({"content": "a"}, "stop")), 0.6, data(chunk({"content": "b"}, "stop")), 0.6, DONE]
    assert (await heard(provider))[0] == ["a", "b"]
    server.parts = [TEXT, STOP, 0.2, data(chunk({"content": "c"})), 0.2, data(chunk({"content": "d"})), 0.2, DONE]
    assert (await heard(provider))[0] == ["Good", " morning", "c", "d"]


@pytest.mark.parametrize(
    "parts",
    [
        [TEXT, None],
        [TEXT],
        [TEXT, b'data: {"choices":[{"delta":{"con'],
        [TEXT, USAGE, None],
        [b": comment\n\n"],
        [],
        [DONE],
    ],
)
async def test_without_one_it_is_broken_off(provider: OpenAIProvider, server: OddServer, parts: list[Any]) -> None:
    server.parts = parts
    with pytest.raises(Unavailable):
        await heard(provider)


@pytest.mark.parametrize(
    ("status", "content_type", "body", "words", "retryable"),
    [
        (400, "application/json", b'[{"error":{"code":400,"message":"Unknown name"}}]', "Unknown name", False),
        (404, "application/json", b'{"error":"model not found, try pulling it"}', "model not found, try pulling it", False),
        (400, "application/json", b'{"message":"4096 tokens at most","code":400}', "4096 tokens at most", False),
        (422, "application/json", b'{"detail":[{"loc":["body","max_tokens"],"msg":"no integer"}]}', "no integer", False),
        (503, "text/plain", b"no healthy upstream\n", "no healthy upstream", True),
        (502, "text/html", b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>x</body></html>", "502 Bad Gateway", True),
        (500, "application/json", b"", "without a message", True),
        (400, "application/json", b'{"error":{"code":"ResponsibleAIPolicyViolation","message":"filtered"}}', "filtered", False),
        (402, "application/json", b'{"error":{"message":"Insufficient Balance","code":"invalid_request_error"}}', "Insufficient Balance", False),
    ],
)  # fmt: skip
async def test_an_error_has_the_providers_words(
    provider: OpenAIProvider,
    server: OddServer,
    status: int,
    content_type: str,
    body: bytes,
    words: str,
    retryable: bool,
) -> None:
    server.whole = [response(status, content_type, body)]
    with pytest.raises(ProviderError, match=words) as raised:
        await heard(provider)
    assert (raised.value.retryable, raised.value.status) == (retryable, status)
    assert str(raised.value).startswith(f"the provider answered {status}: ")


REFUSAL = response(
    422,
    "application/json",
    b'{"object":"error","message":{"detail":[{"type":"extra_forbidden","loc":["body","stream_options","include_usage"]}]}}',
)


async def test_a_server_that_does_not_know_stream_options_is_asked_without_them(
    provider: OpenAIProvider, server: OddServer
) -> None:
    server.parts = [TEXT, STOP, DONE]
    server.whole = [REFUSAL]
    items, _, odd = await heard(provider, model="a", stream_options={"include_obfuscation": False})
    assert (items, odd) == (["Good", " morning"], ["stream_options"])
    assert ["stream_options" in body for body in server.bodies] == [True, False]
    assert (await heard(provider, model="a"))[2] == [], "remembered"
    assert "stream_options" not in server.bodies[-1]
    await heard(provider, model="b")
    assert "stream_options" in server.bodies[-1], "of another model nothing is known"


async def test_one_that_refuses_both_is_asked_twice_and_nothing_is_remembered(
    provider: OpenAIProvider, server: OddServer
) -> None:
    server.whole = [REFUSAL, REFUSAL]
    with pytest.raises(Refused, match="stream_options"):
        await heard(provider)
    assert len(server.bodies) == 2
    server.parts = [TEXT, STOP, DONE]
    await heard(provider)
    assert "stream_options" in server.bodies[-1]
