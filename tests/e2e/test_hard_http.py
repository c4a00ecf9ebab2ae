"""Requests that break the rules of HTTP, or reach their limits: they are refused clearly, and no part becomes another request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.needs import needs
from tests.support.raw_http import RawHttp, exchange, statuses
from tests.support.raw_websocket import CLOSE, RawWebSocket
from tests.support.system import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUEST_SECONDS = 2.0
HIDDEN = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: hidden\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
CREATE = json.dumps({"messages": [{"role": "user", "content": "hello"}], "simulate": {"tokens": 3}}).encode()
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
WEBSOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[System]:
    async with System(gateway_settings={"request_seconds": REQUEST_SECONDS}) as system:
        yield system


def post(fields: bytes, body: bytes, *, path: bytes = b"/v1/streams", close: bool = False) -> bytes:
    last = b"Connection: close\r\n" if close else b""
    return b"POST %b HTTP/1.1\r\nHost: x\r\n%b%b\r\n%b" % (path, fields, last, body)


def sized(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n" % len(body)


def chunked(body: bytes, trailers: bytes = b"") -> bytes:
    return b"%x;name=value\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailers)


def body_of(answer: bytes) -> dict[str, object]:
    body: dict[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return body


# --- upgrades, and bodies that look like requests


@pytest.mark.parametrize(
    "upgrade",
    [H2C, b"Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n", b"Connection: upgrade\r\nUpgrade: websocket, h2c\r\n"],
)
@pytest.mark.parametrize("framed", ["sized", "chunked"])
async def test_a_request_with_a_declined_upgrade_is_answered_like_any_other(
    system: System, upgrade: bytes, framed: str
) -> None:
    fields, body = (
        (sized(CREATE), CREATE) if framed == "sized" else (b"Transfer-Encoding: chunked\r\n", chunked(CREATE))
    )
    request = post(upgrade + fields, body)
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert statuses(await exchange(system.gateway_port(), request, request, last)) == [201, 201, 200]
    whole = request + request + last
    assert statuses(await exchange(system.gateway_port(), *(whole[at : at + 7] for at in range(0, len(whole), 7)))) == [
        201,
        201,
        200,
    ]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post(H2C + sized(HIDDEN), HIDDEN, close=True), 400),
        (post(H2C + b"Transfer-Encoding: chunked\r\n", chunked(HIDDEN), close=True), 400),
        (post(H2C + b"Transfer-Encoding: gzip\r\n", HIDDEN), 400),
        (post(WEBSOCKET + sized(HIDDEN), HIDDEN), 400),
        (post(WEBSOCKET + b"Transfer-Encoding: chunked\r\n", chunked(HIDDEN)), 400),
        (post(sized(HIDDEN), HIDDEN, path=b"/nowhere", close=True), 404),
        (post(sized(HIDDEN), HIDDEN, path=b"/healthz", close=True), 405),
        (post(b"Transfer-Encoding: chunked\r\n", b"zz\r\n" + HIDDEN), 400),
        (post(b"Transfer-Encoding: chunked\r\n", b"3\r\nabcd\r\n0\r\n\r\n" + HIDDEN), 400),
        (post(b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"0\r\n\r\n" + HIDDEN), 400),
        (post(b"Content-Length: 4\r\nContent-Length: 5\r\n", b"abcd" + HIDDEN), 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000 + b"\r\n\r\n" + HIDDEN, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + HIDDEN, 400),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + HIDDEN, 400),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n" + sized(HIDDEN) + b"\r\n" + HIDDEN, 400),
        (b"POST /v1/streams HTTP/1.0\r\nHost: x\r\n" + sized(HIDDEN) + b"\r\n" + HIDDEN, 400),
        (b"\x00\x01\r\n\r\n" + HIDDEN, 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN, 400),
    ],
)
@pytest.mark.parametrize("cut", [1 << 20, 50])
async def test_bytes_behind_a_refused_request_are_not_a_request(
    system: System, request_: bytes, status: int, cut: int
) -> None:
    answer = await exchange(system.gateway_port(), *(request_[at : at + cut] for at in range(0, len(request_), cut)))
    assert statuses(answer) == [status], answer
    assert b"hidden" not in answer
    assert b"\r\ncontent-type: application/problem+json\r\n" in answer


async def test_a_reader_may_offer_an_upgrade(system: System) -> None:
    stream_id = await system.create(simulate={"tokens": 3})
    request = b"GET /v1/streams/%b/events HTTP/1.1\r\nHost: x\r\n%b\r\n" % (stream_id.encode(), H2C)
    async with RawHttp(system.gateway_port()) as raw:
        await raw.send(request)
        assert (await raw.read_until(b"event: done")).count(b'"token"') == 3


async def test_curl_offers_h2c(system: System, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    needs("curl (Debian: apt install curl)", curl)
    body = tmp_path / "body.json"
    body.write_bytes(
        json.dumps({"messages": [{"role": "user", "content": "x" * 100_000}], "simulate": {"tokens": 1}}).encode()
    )
    url = f"{system.gateway_url()}/v1/streams"
    command = [
        str(curl),
        "-s",
        "--http2",
        "--data-binary",
        f"@{body}",
        "-w",
        "%{http_code}\n",
        "-o",
        "/dev/null",
        url,
        "-o",
        "/dev/null",
        url,
    ]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False, timeout=20)
    assert done.stdout.split() == [b"201", b"201"], done


_JAVA = """
import java.net.URI;
import java.net.http.*;

class Post {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();  // offers h2c with each request
        for (int number = 0; number < 3; number++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .POST(HttpRequest.BodyPublishers.ofString(arguments[1])).build();
            HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.body());
        }
    }
}
"""


async def test_a_java_client_offers_h2c(system: System, tmp_path: Path) -> None:
    java = shutil.which("java")
    needs("java (Debian: apt install openjdk-17-jdk-headless)", java)
    source = tmp_path / "Post.java"
    source.write_text(_JAVA)
    command = [str(java), "-XX:TieredStopAtLevel=1", str(source), f"{system.gateway_url()}/v1/streams", CREATE.decode()]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False, timeout=60)
    lines = done.stdout.decode().splitlines()
    assert [line[:4] for line in lines] == ["201 "] * 3, done
    assert len({json.loads(line[4:])["id"] for line in lines}) == 3


# --- bounds


@pytest.mark.parametrize(
    ("begun", "more", "status"),
    [
        (b"GET /" + b"a" * 8192, b"a" * 100_000, 414),
        (b"GET /?" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"a" * 100_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 101, b"A: b\r\n" * 10_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 101 + b"\r\n", b"", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", (b"A: " + b"a" * 5000 + b"\r\n") * 20, 431),
        (post(b"Transfer-Encoding: chunked\r\n", b"0\r\n"), b"A: b\r\n" * 10_000, 431),
        (post(b"Transfer-Encoding: chunked\r\n", b"0\r\nA: "), b"a" * 100_000, 431),
        (post(b"Transfer-Encoding: chunked\r\n", b"1;"), b"a" * 100_000, 400),
        (post(b"Transfer-Encoding: chunked\r\n", b""), b"1;aaaaaaaa\r\nx\r\n" * 10_000, 400),
        (b"GET /\r\n", b"", 400),
        (b"GET / HTTP/1.1\n", b"Host: x\n\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", b"", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", b"", 400),
        (b"GET / HTTP/1.1\r\n\r\n", b"", 400),
        (b"GET /\xe4\xbd HTTP/1.1\r\nHost: x\r\n\r\n", b"", 400),
    ],
)
async def test_too_large_or_wrong_requests_are_refused_at_once(
    system: System, begun: bytes, more: bytes, status: int
) -> None:
    before = await system.metric(f'midstream_http_problems_total{{status="{status}"}}')
    began = asyncio.get_running_loop().time()
    answer = await exchange(system.gateway_port(), begun, more)
    assert statuses(answer) == [status], answer
    assert body_of(answer)["status"] == status
    assert b"\r\nconnection: close\r\n" in answer
    assert asyncio.get_running_loop().time() - began < REQUEST_SECONDS, "it waited"
    assert await system.metric(f'midstream_http_problems_total{{status="{status}"}}') > before


async def test_large_requests_within_the_limits(system: System) -> None:
    cookies = b"".join(b"Cookie: %b\r\n" % (b"c" * 12_000) for _ in range(4))
    path = b"/healthz?" + b"a" * 8000
    assert statuses(
        await exchange(
            system.gateway_port(), b"GET %b HTTP/1.1\r\nHost: x\r\n%bConnection: close\r\n\r\n" % (path, cookies)
        )
    ) == [200]
    assert statuses(
        await exchange(
            system.gateway_port(),
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 98 + b"Connection: close\r\n\r\n",
        )
    ) == [200]
    assert statuses(await exchange(system.gateway_port(), b"\r\n\r\nGET http://x HTTP/1.0\r\n\r\n")) in ([200], [404])


async def test_every_incomplete_request_times_out(system: System) -> None:
    halves: list[tuple[bytes, ...]] = [
        (post(b"Transfer-Encoding: chunked\r\n", b"5"),),
        (post(b"Transfer-Encoding: chunked\r\n", b"5;na"),),
        (post(b"Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n0\r\nOrigin: "),),
        (post(b"Expect: 100-continue\r\nContent-Length: 9\r\n", b""),),
        (b"GET /v1/streams/x/ws HTTP/1.1\r\nHost: x\r\n" + WEBSOCKET,),
        (post(H2C + b"Content-Length: 9\r\n", b"{"),),
        (HEALTH, b"GET / HTTP/1.1\r\nHost: "),
    ]
    answers = await asyncio.gather(*(exchange(system.gateway_port(), *half) for half in halves))
    for half, answer in zip(halves, answers, strict=True):
        assert statuses(answer)[-1:] == [408], (half, answer)


async def test_an_unread_body_does_not_keep_its_connection_open(system: System) -> None:
    """A small body is read, so that the next request is answered; after a large one the connection is closed soon."""
    small = post(sized(b"x" * 50_000), b"x" * 50_000, path=b"/nowhere")
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    head, _, body = small.partition(b"\r\n\r\n")
    assert statuses(await exchange(system.gateway_port(), head + b"\r\n\r\n", body, last)) == [404, 200]
    async with RawHttp(system.gateway_port()) as raw:
        await raw.send(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n")
        await raw.read_until(b"\r\n\r\n")
        for _ in range(30):
            await raw.send(b"x" * 100_000)
        assert statuses(await raw.read_to_end()) == []


@pytest.mark.parametrize("then", [b"zz\r\n", b"1\r\nxyz\r\n", b"0\r\nA: " + b"a" * 20_000, b"", None])
async def test_a_malformed_body_of_an_answered_request_gets_no_second_answer(
    system: System, then: bytes | None
) -> None:
    async with RawHttp(system.gateway_port()) as raw:
        await raw.send(post(b"Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n", path=b"/nowhere"))
        assert statuses(await raw.read_until(b"}")) == [404]
        if then is None:
            raw.close_half()
        else:
            await raw.send(then)  # no answer: until the time-out
        assert await raw.read_to_end() == b""


# --- trailers are no headers


async def test_trailers_are_ignored(system: System) -> None:
    trailers = b"Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\nX-Request-Id: forged\r\nHost: y\r\nContent-Length: 5\r\n"
    request = post(b"Transfer-Encoding: chunked\r\nTrailer: Origin\r\n", chunked(CREATE, trailers))
    for parts in ((request,), (request[:-40], request[-40:])):
        answer = await exchange(
            system.gateway_port(), *parts, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert statuses(answer) == [201, 200]
        assert b"forged" not in answer


# --- WebSocket handshakes


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"Cookie: " + b"c" * 9000 + b"\r\n", 431),
        (b"A: b\r\n" * 130, 431),
        (b"Content-Length: 5\r\n", 400),
        (b"Content-Length: 5\r\n\r\nhello", 400),
        (b"Transfer-Encoding: chunked\r\n", 400),
        (b"Sec-WebSocket-Key: twice\r\n", 400),
    ],
)
async def test_malformed_handshakes(system: System, fields: bytes, status: int) -> None:
    before = await system.metric("midstream_http_problems_total")
    began = asyncio.get_running_loop().time()
    stream_id = (await system.create(simulate={"tokens": 1})).encode()
    request = b"GET /v1/streams/%b/ws HTTP/1.1\r\nHost: x\r\n%b%b\r\n" % (stream_id, WEBSOCKET, fields)
    answers = await asyncio.gather(*(exchange(system.gateway_port(), request) for _ in range(5)))
    assert [statuses(answer) for answer in answers] == [[status]] * 5, answers
    assert asyncio.get_running_loop().time() - began < REQUEST_SECONDS
    assert await system.metric("midstream_http_problems_total") == before + 5


@pytest.mark.parametrize(
    "flood",
    [
        b"\x89\x80\0\0\0\0" * 20_000,  # pings
        b"\x8a\x80\0\0\0\0" * 20_000,  # pongs
        b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 20_000,  # an endless message of empty fragments
        b"\x81\x80\0\0\0\0" * 20_000,  # empty messages
        b"\x81\x82\0\0\0\0\xff\xfe",  # no UTF-8
        b"\xff\xff\xff\xff",
    ],
)
async def test_floods_of_small_frames_end_the_connection(system: System, flood: bytes) -> None:
    stream_id = await system.create(simulate={"tokens": 50, "tokens_per_second": 5})
    raw = await RawWebSocket.open("127.0.0.1", system.gateway_port(), f"/v1/streams/{stream_id}/ws")
    raw.writer.write(flood)
    opcodes = []
    async with asyncio.timeout(5):
        async for opcode, _ in raw.frames():
            opcodes.append(opcode)
            if opcode == CLOSE:
                break
    raw.close()
    assert len(opcodes) < 1000
    await wait_until(lambda: no_readers(system), what="its reader is gone")


async def no_readers(system: System) -> bool:
    return await system.metric("midstream_readers") == 0


async def test_frames_in_the_packet_of_the_handshake_are_read(system: System) -> None:
    stream_id = await system.create(simulate={"tokens": 500, "tokens_per_second": 5})
    async with RawHttp(system.gateway_port()) as raw:
        cancel = b'{"type": "cancel"}'
        request = b"GET /v1/streams/%b/ws HTTP/1.1\r\nHost: x\r\n%b\r\n" % (stream_id.encode(), WEBSOCKET)
        await raw.send(request + b"\x81%c\0\0\0\0%b" % (0x80 | len(cancel), cancel))
        assert b'"event":"cancelled"' in await raw.read_until(b'"cancelled"')


# --- requests behind a request


async def test_small_requests_in_one_write_are_answered_in_order(system: System) -> None:
    last = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert statuses(await exchange(system.gateway_port(), HEALTH * 300 + last)) == [200] * 300 + [404]
    whole = (HEALTH + post(sized(CREATE), CREATE)) * 5 + last
    assert statuses(
        await exchange(system.gateway_port(), *(whole[at : at + 11] for at in range(0, len(whole), 11)))
    ) == [
        200,
        201,
    ] * 5 + [404]


async def test_more_pipelined_requests_than_may_wait_are_answered_if_answers_are_quick(system: System) -> None:
    many = 6000
    last = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with RawHttp(system.gateway_port()) as raw:
        sending = asyncio.create_task(raw.send(HEALTH * many + last))
        answers = await raw.read_to_end()
        await sending
    assert statuses(answers) == [200] * many + [404]


@pytest.mark.parametrize("leaves", ["reset", "close"])
async def test_a_leaving_client_is_noticed_whatever_it_sent_before(system: System, leaves: str) -> None:
    """By every face, without pipelined bytes, with one request behind, and with more than is kept."""
    cases = [(face, behind) for face in ("events", "chat", "whole") for behind in (b"", HEALTH, HEALTH * 20_000)]
    await asyncio.gather(*(_leaves(system, leaves, *case, f"{leaves} {number}.") for number, case in enumerate(cases)))


async def _leaves(system: System, leaves: str, face: str, behind: bytes, prompt: str) -> None:
    fields = {
        "simulate": {"tokens": 2000, "tokens_per_second": 2},
        "midstream": {"on_disconnect": {"cancel_after": 0.3}},
    }
    if face == "events":
        stream_id = await system.create(prompt, gateway=0, headers=None, **fields)
        request = b"GET /v1/streams/%b/events HTTP/1.1\r\nHost: x\r\n\r\n" % stream_id.encode()
    else:
        request = chat(prompt, stream=face == "chat", **fields)
    async with RawHttp(system.gateway_port()) as raw:
        sending = asyncio.create_task(raw.send(request + behind))
        await (raw.read_until(b"data:") if face != "whole" else stream_of(system, prompt))
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        if leaves == "reset":
            raw.reset()
    await system.until_status(await stream_of(system, prompt), "cancelled", within_seconds=10)


def chat(prompt: str, **more: Any) -> bytes:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}], **more}).encode()
    return post(sized(body), body, path=b"/v1/chat/completions")


async def stream_of(system: System, prompt: str) -> str:
    """Returns the stream that was created for this prompt, once it exists."""
    found: list[str] = []

    async def is_there() -> bool:
        for key in await system.logs():
            ((_, fields),) = await system.commands.xrange(key, count=1)
            if prompt.encode() in b"".join(fields.values()):
                found.append(key.decode().partition("{")[2].partition("}")[0])
        return bool(found)

    await wait_until(is_there, what=f"a stream for {prompt}")
    return found[0]


# --- a client that closes its half


async def test_a_post_whose_client_closes_its_half_is_answered(system: System) -> None:
    for fields, body in ((sized(CREATE), CREATE), (b"Transfer-Encoding: chunked\r\n", chunked(CREATE))):
        answer = await exchange(system.gateway_port(), post(fields, body), close_half=True)
        assert answer.startswith(b"HTTP/1.1 201 "), answer
    assert statuses(
        await exchange(system.gateway_port(), HEALTH * 3 + post(sized(CREATE), CREATE), close_half=True)
    ) == [
        200,
        200,
        200,
        201,
    ]


async def test_a_wait_whose_client_closes_its_half_is_answered(system: System) -> None:
    stream_id = await system.create(simulate={"tokens": 20, "tokens_per_second": 20})
    request = b"GET /v1/streams/%b?wait=10 HTTP/1.1\r\nHost: x\r\n\r\n" % stream_id.encode()
    answer = await exchange(system.gateway_port(), request, close_half=True)
    assert b'"status":"completed"' in answer


@pytest.mark.parametrize("behind", [b"", HEALTH, HEALTH * 20_000])
async def test_a_whole_answer_whose_client_closes_its_half(system: System, behind: bytes) -> None:
    prompt = f"half {len(behind)}."
    async with RawHttp(system.gateway_port()) as raw:
        simulate = {"tokens": 4, "tokens_per_second": 2}
        sending = asyncio.create_task(raw.send(chat(prompt, simulate=simulate) + behind))
        await stream_of(system, prompt)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        raw.close_half()
        assert b'"finish_reason":"stop"' in await raw.read_to_end()


async def test_a_reader_whose_client_closes_its_half_with_the_request_is_served(system: System) -> None:
    stream_id = await system.create(simulate={"tokens": 5, "tokens_per_second": 50})
    request = b"GET /v1/streams/%b/events HTTP/1.1\r\nHost: x\r\n\r\n" % stream_id.encode()
    async with RawHttp(system.gateway_port()) as raw:
        await raw.send(request)
        raw.close_half()
        answer = await raw.read_to_end()
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "half",
    [b"GET /healthz HT", post(b"Content-Length: 500\r\n", b"{"), post(b"Transfer-Encoding: chunked\r\n", b"5\r\n{")],
)
async def test_half_a_request_and_then_the_end(system: System, half: bytes) -> None:
    answer = await exchange(system.gateway_port(), half, close_half=True)
    assert statuses(answer) == [400]
    assert statuses(await exchange(system.gateway_port(), HEALTH + half, close_half=True)) == [200, 400]
    assert "ended before the request did" in str(body_of(answer)["detail"])


# --- the way out


async def test_an_answer_that_is_not_read_is_cut_off(system: System) -> None:
    """Otherwise a client could occupy memory for as long as it likes."""
    async with RawHttp(system.gateway_port()) as raw:
        pid = system.gateways[0].pid

        def connections() -> int:
            port = f":{system.gateway_port():04X}"
            rows = [row.split() for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
            mine = f":{raw.port:04X}"
            return sum(row[1].endswith(port) and row[2].endswith(mine) and row[9] != "0" for row in rows)

        await wait_until(lambda: connections() == 1, what="it is taken")
        await raw.send(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        await wait_until(lambda: connections() == 0, within_seconds=REQUEST_SECONDS * 3 + 3, what="it is cut off")


# --- places for readers


async def test_the_number_of_readers_is_limited() -> None:
    async with System(gateway_settings={"connections_max": 50}) as system:
        stream_id = await system.create(simulate={"tokens": 150, "tokens_per_second": 100})
        request = b"GET /v1/streams/%b/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % stream_id.encode()
        answers = await asyncio.gather(*(exchange(system.gateway_port(), request) for _ in range(200)))
        assert sorted(statuses(answer)[0] for answer in answers) == [200] * 50 + [503] * 150
        await wait_until(lambda: no_readers(system), what="all places are free")
        again = await asyncio.gather(*(exchange(system.gateway_port(), request) for _ in range(50)))
        assert [statuses(answer) for answer in again] == [[200]] * 50
        made = len(await system.logs())
        refused = await _refused_at_once(system, 80)
        assert refused >= 1
        assert len(await system.logs()) == made + 80 - refused, "who is refused has cost no generation"


async def _refused_at_once(system: System, count: int) -> int:
    """Asks for so many answers at once, and stays until all requests have a response. Returns how many were refused."""
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(RawHttp(system.gateway_port())) for _ in range(count)]
        for raw in connections:
            await raw.send(b"GET /stream?prompt=x HTTP/1.1\r\nHost: x\r\n\r\n")
        heads = await asyncio.gather(*(raw.read_until(b"\r\n\r\n") for raw in connections))
        return sum(head.startswith(b"HTTP/1.1 503 ") for head in heads)


# --- anything


_WORDS = [b"GET ", b"POST ", b"/", b"/v1/streams", b" HTTP/1.1\r\n", b"\r\n", b"\r\n\r\n", b"Host: x\r\n", b"Content-Length: ", b"5",
          b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n", b"{}", b"\n",
          b"\r", b"\x00", b":", b" ", b"Expect: 100-continue\r\n", b"3;a\r\nabc\r\n", b"HTTP/1.0\r\n", b"Connection: close\r\n", b"a" * 9000,
          HEALTH, WEBSOCKET]  # fmt: skip


@given(
    st.lists(st.one_of(st.sampled_from(_WORDS), st.binary(max_size=20)), max_size=12),
    st.integers(1, 300),
    st.booleans(),
)
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
async def test_any_bytes_cut_anywhere(system: System, words: list[bytes], cut: int, half: bool) -> None:
    sent = b"".join(words)
    async with RawHttp(system.gateway_port()) as beside, RawHttp(system.gateway_port()) as raw:
        await raw.send(*(sent[at : at + cut] for at in range(0, len(sent), cut)))
        await beside.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert statuses(await beside.read_to_end()) == [200]
        if half:
            raw.close_half()
            found = statuses(await raw.read_to_end())
            assert all(status < 500 for status in found), (sent, found)
    system.assert_no_complaints()
