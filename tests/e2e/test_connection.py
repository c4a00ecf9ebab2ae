"""Connections whose response the gateway writes without uvicorn still follow the rules of HTTP."""

from __future__ import annotations

import asyncio
import re
import socket

import pytest

from tests.support.system import System

ANSWER = {"tokens": 20, "tokens_per_second": 0}


async def _ended_stream(system: System) -> str:
    stream_id = await system.create("a question", simulate=ANSWER)
    await system.follow(stream_id).until_end()
    return stream_id


async def _response(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Reads the head and the whole body of one chunked response."""
    head = await reader.readuntil(b"\r\n\r\n")
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return head, body


def _request(stream_id: str, version: str = "1.1", path: str = "events") -> bytes:
    return f"GET /v1/streams/{stream_id}/{path} HTTP/{version}\r\nHost: here\r\n\r\n".encode()


async def _open(system: System) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = system.gateway_url().removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def test_a_connection_is_reused_after_a_streamed_answer() -> None:
    async with System() as system:
        first, second = await _ended_stream(system), await _ended_stream(system)
        reader, writer = await _open(system)
        async with asyncio.timeout(20):
            for stream_id in (first, second, first):
                writer.write(_request(stream_id))
                head, body = await _response(reader)
                assert b"200 OK" in head
                assert b"connection: close" not in head
                assert body.count(b'"token"') == ANSWER["tokens"]
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.close()


async def test_live_answers_follow_one_another_on_a_connection() -> None:
    """A live answer is written past the transport; the next one begins in it again, with its head and what is replayed."""
    live = {"tokens": 30, "tokens_per_second": 60}
    async with System() as system:
        reader, writer = await _open(system)
        async with asyncio.timeout(30):
            for _ in range(2):
                first = await system.create("a question", simulate=live)
                writer.write(_request(first))
                head, body = await _response(reader)
                assert head.startswith(b"HTTP/1.1 200 OK")
                assert body.count(b'"token"') == live["tokens"]
                second = await _ended_stream(system)
                writer.write(_request(second) + _request(first))
                for tokens in (ANSWER["tokens"], live["tokens"]):
                    head, body = await _response(reader)
                    assert head.startswith(b"HTTP/1.1 200 OK")
                    assert body.count(b'"token"') == tokens
        writer.close()


async def test_a_reader_that_does_not_read_gets_all_in_order_later() -> None:
    async with System() as system:
        stream_id = await system.create("a question", simulate={"tokens": 60_000, "tokens_per_second": 40_000})
        host, port = system.gateway_url().removeprefix("http://").split(":")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (host, int(port)))
            await loop.sock_sendall(sock, _request(stream_id))
            received = bytearray()
            async with asyncio.timeout(60):
                while not received.endswith(b"\r\n0\r\n\r\n"):
                    received += await loop.sock_recv(sock, 1 << 16)
                    await asyncio.sleep(0.002)  # slower than the answer: the socket is full again and again
        ids = [int(number) for number in re.findall(rb"\nid: 1-(\d+)\n", received.replace(b"\r\n", b"\n"))]
        assert ids[ids.index(1) :] == list(range(1, 60_002))


async def test_pipelined_requests_do_not_mix_with_the_answer() -> None:
    """Pipelined requests are answered in order, or the connection is closed, as RFC 9112 (9.3.2) allows."""
    async with System() as system:
        stream_id = await system.create("a question", simulate={"tokens": 50, "tokens_per_second": 50})
        reader, writer = await _open(system)
        async with asyncio.timeout(30):
            writer.write(_request(stream_id))
            await reader.readuntil(b'"token"')
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
            rest = await reader.read()
        assert b'"status":"ok"' not in rest
        assert rest.endswith(b"0\r\n\r\n")
        assert rest.count(b'"token"') == 49
        writer.close()


async def test_two_requests_in_one_write_are_answered_in_order() -> None:
    async with System() as system:
        first, second = await _ended_stream(system), await _ended_stream(system)
        reader, writer = await _open(system)
        async with asyncio.timeout(20):
            writer.write(_request(first) + _request(second))
            for _ in range(2):
                _, body = await _response(reader)
                assert body.count(b'"token"') == ANSWER["tokens"]
        writer.close()


@pytest.mark.parametrize("keep_alive", [False, True])
async def test_http_1_0_gets_a_body_without_chunks_that_ends_with_the_connection(*, keep_alive: bool) -> None:
    async with System() as system:
        stream_id = await _ended_stream(system)
        reader, writer = await _open(system)
        request = _request(stream_id, "1.0")
        writer.write(request.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n") if keep_alive else request)
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.read()
        assert b"transfer-encoding" not in head
        assert b"connection: close" in head
        assert body.startswith(b":\nretry: ")
        assert body.count(b'"token"') == ANSWER["tokens"]
        writer.close()
