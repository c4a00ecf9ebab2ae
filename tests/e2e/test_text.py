"""The bare text: complete after `done`, cut off after any other end, and every client sees the difference."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from tests.support.needs import needs
from tests.support.npm import Node, clients
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

_CURLE_PARTIAL_FILE = 18
FAST = {"tokens": 100, "tokens_per_second": 200}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    needs("curl", shutil.which("curl"))
    await asyncio.to_thread(clients)
    async with System(gateways=2, settings={"lease_seconds": 1}, gateway_settings={"keepalive_seconds": 1}) as system:
        yield system


def text_url(system: System, stream_id: str, gateway: int = 0) -> str:
    return f"{system.gateway_url(gateway)}/v1/streams/{stream_id}/text"


async def curl(url: str) -> tuple[int, str]:
    """Runs curl; returns its exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sSN", "--max-time", "30", url), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    body, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, body.decode()


class TextReader:
    """One request, read part by part."""

    def __init__(self, system: System, url: str) -> None:
        self.body = bytearray()
        self.whole = False
        self.headers: Any = {}
        self._task = asyncio.create_task(self._read(system, url))

    async def _read(self, system: System, url: str) -> None:
        try:
            async with system.http.stream("GET", url) as response:
                self.headers = response.headers
                async for part in response.aiter_bytes():
                    self.body += part
            self.whole = True
        except httpx2.RemoteProtocolError:
            pass  # "peer closed connection without sending complete message body"

    async def until_bytes(self, count: int) -> None:
        await wait_until(lambda: len(self.body) >= count, within_seconds=15, what=f"{count} bytes")

    async def until_end(self) -> None:
        async with asyncio.timeout(20):
            await self._task


async def test_followed_and_replayed(system: System) -> None:
    stream_id = await system.create("whole", simulate=FAST)
    reader = TextReader(system, text_url(system, stream_id))
    await reader.until_end()
    state = await system.state(stream_id)
    assert reader.whole
    assert reader.body.decode() == state["text"]
    assert reader.headers["content-type"] == "text/plain; charset=utf-8"
    assert "content-length" not in reader.headers
    for gateway in (0, 1):
        assert await curl(text_url(system, stream_id, gateway)) == (0, state["text"])
    (line,) = await (await Node.run("text.mjs", text_url(system, stream_id))).until_end()
    assert line == {"text": state["text"], "whole": True}
    accepted = await system.http.get(system.events_url(stream_id), headers={"accept": "text/plain"})
    assert accepted.text == state["text"]


async def test_text_sent_is_in_the_receipt(system: System) -> None:
    stream_id = await system.create("receipt", simulate={"tokens": 30, "tokens_per_second": 0})
    state = await system.until_status(stream_id, "completed")
    await system.http.get(text_url(system, stream_id))
    half = len("".join((await system.follow(stream_id).until_end()).tokens[:10]).encode())
    await system.http.get(f"{text_url(system, stream_id)}?after_bytes={half}")

    async def tokens_sent() -> list[int]:
        receipt = await system.http.get(f"{system.gateway_url()}/v1/streams/{stream_id}/receipt")
        return [one["tokens"] for one in receipt.json()["delivered"]["connections"]]

    async def all_three() -> bool:
        return await tokens_sent() == [state["tokens"], state["tokens"], state["tokens"] - 10]

    await wait_until(all_three, what="each connection's tokens are noted")


async def test_an_answer_truncated_by_the_model_is_complete_text(system: System) -> None:
    """An answer that hit its length limit is complete text: only the stream's state says that it was truncated."""
    stream_id = await system.create("length", simulate={**FAST, "finish_reason": "length"})
    assert (await curl(text_url(system, stream_id)))[0] == 0


async def test_failed(system: System) -> None:
    """curl, httpx2 and Node each report an incomplete body, whether they connect before or after the failure."""
    stream_id = await system.create("failed", simulate={**FAST, "fail_after": 50}, midstream={"on_interrupt": "fail"})
    followed = await curl(text_url(system, stream_id))
    state = await system.state(stream_id)
    assert state["status"] == "failed"
    assert state["text"]
    expected = (_CURLE_PARTIAL_FILE, state["text"])
    assert followed == expected
    assert await curl(text_url(system, stream_id, 1)) == expected
    reader = TextReader(system, text_url(system, stream_id))
    await reader.until_end()
    assert not reader.whole
    assert reader.body.decode() == state["text"]
    (line,) = await (await Node.run("text.mjs", text_url(system, stream_id))).until_end()
    assert (line["whole"], line["text"]) == (False, state["text"])


async def test_cancelled(system: System) -> None:
    stream_id = await system.create("cancelled", simulate={"tokens": 50, "tokens_per_second": 20})
    reader = TextReader(system, text_url(system, stream_id))
    await reader.until_bytes(20)
    await system.http.post(f"{system.gateway_url(1)}/v1/streams/{stream_id}/cancel")
    await reader.until_end()
    assert not reader.whole
    assert reader.body.decode() == (await system.state(stream_id))["text"]


async def test_a_silent_stream_sends_nothing_but_text(system: System) -> None:
    stream_id = await system.create("silent", simulate={"tokens": 5, "stall_after": 2})
    reader = TextReader(system, text_url(system, stream_id))
    sse = system.follow(stream_id)  # counts the seconds by keep-alives of another reader
    await reader.until_bytes(7)
    received = len(sse.body)
    await wait_until(lambda: len(sse.body) >= received + 6, what="three comments")
    assert bytes(reader.body) == b"This is"
    await system.http.post(f"{system.gateway_url()}/v1/streams/{stream_id}/cancel")
    await reader.until_end()


@pytest.mark.parametrize("gateway", [0, 1])
async def test_resumed_by_the_number_of_bytes(system: System, gateway: int) -> None:
    """Cut off in mid-answer, a client counts its bytes, requests what comes after them, and appends it."""
    stream_id = await system.create(f"resumed {gateway}", simulate={"tokens": 100, "tokens_per_second": 60})
    async with system.http.stream("GET", text_url(system, stream_id)) as response:
        body = b""
        async for part in response.aiter_bytes():
            body += part
            if len(body) > 60:
                break
    url = f"{text_url(system, stream_id, gateway)}?after_bytes={len(body)}"
    rest = await system.http.get(url)
    state = await system.state(stream_id)
    assert (body + rest.content).decode() == state["text"]
    assert (await system.http.get(url)).content == rest.content
    size = len(state["text"].encode())
    end = await system.http.get(f"{text_url(system, stream_id)}?after_bytes={size}")
    assert (end.status_code, end.content) == (200, b"")


async def test_resumed_by_an_event_id(system: System) -> None:
    stream_id = await system.create("by id", simulate={"tokens": 30, "tokens_per_second": 0})
    state = await system.until_status(stream_id, "completed")
    tokens = (await system.follow(stream_id).until_end()).tokens
    for offset in (0, 1, 17, 30):
        url = f"{text_url(system, stream_id)}?last_event_id=1-{offset}"
        assert (await system.http.get(url)).text == "".join(tokens[offset:])
        got = await system.http.get(text_url(system, stream_id), headers={"last-event-id": f"1-{offset}"})
        assert state["text"].endswith(got.text)
    assert (await system.http.get(f"{text_url(system, stream_id)}?last_event_id=1-31")).status_code == 204


async def test_a_stopping_gateway_cuts_the_text_off(system: System) -> None:
    async with System() as own:
        stream_id = await own.create("drained", simulate={"tokens": 400, "tokens_per_second": 40})
        reader = TextReader(own, text_url(own, stream_id))
        await reader.until_bytes(40)
        own.gateways[0].send(signal.SIGTERM)
        await reader.until_end()
        assert not reader.whole
        assert await own.gateways[0].exit_code() == 0
        await own.start_gateway(0)
        state = await own.state(stream_id)
        assert state["text"].encode().startswith(reader.body)


async def test_taken_back_text_cuts_the_response_off(system: System) -> None:
    """A worker dies and another one restarts the answer: the body is cut off, and the next request gets the new text."""
    stream_id = await system.create("restart", simulate={"tokens": 80, "tokens_per_second": 40})
    reader = TextReader(system, text_url(system, stream_id))
    other = TextReader(system, text_url(system, stream_id, 1))
    await reader.until_bytes(40)
    await other.until_bytes(40)
    (await system.worker_of(stream_id)).kill()
    await system.start_worker(0)
    await reader.until_end()
    await other.until_end()
    assert not reader.whole
    assert not other.whole
    assert reader.body.endswith(bytes(reader.body[-1:]))
    refused = await system.http.get(f"{text_url(system, stream_id)}?after_bytes={len(reader.body)}")
    assert refused.status_code == 409, "its text is of an attempt that does not stand"
    assert "from the beginning" in refused.json()["detail"]
    assert (await system.http.get(f"{text_url(system, stream_id)}?last_event_id=1-5")).status_code == 409
    again = TextReader(system, text_url(system, stream_id))
    await again.until_end()
    assert again.whole
    state = await system.state(stream_id)
    assert state["attempt"] == 2
    assert again.body.decode() == state["text"]
    assert await system.metric("midstream_readers") == 0, "the readers that were cut off are forgotten"


async def test_a_continued_attempt_continues_the_text(system: System) -> None:
    stream_id = await system.create(
        "continue", simulate={"tokens": 80, "tokens_per_second": 40}, midstream={"on_interrupt": "continue"}
    )
    reader = TextReader(system, text_url(system, stream_id))
    await reader.until_bytes(40)
    (await system.worker_of(stream_id)).kill()
    await system.start_worker(0)
    await reader.until_end()
    state = await system.state(stream_id)
    assert state["attempt"] == 2
    assert reader.whole
    assert reader.body.decode() == state["text"]
    rest = await system.http.get(f"{text_url(system, stream_id)}?after_bytes=40")
    assert rest.content == bytes(reader.body[40:])


@pytest.mark.parametrize("wrong", ["-1", "x", "1.5", "9" * 20, "1000"])
async def test_a_wrong_after_bytes(system: System, wrong: str) -> None:
    stream_id = await system.create("wrong", simulate={"tokens": 1, "tokens_per_second": 0})
    response = await system.http.get(f"{text_url(system, stream_id)}?after_bytes={wrong}")
    assert response.status_code == 400
    assert "after_bytes" in response.json()["detail"]
