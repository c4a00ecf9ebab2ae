"""Bodies of requests: decoded in any pieces, within bounds, and counted while they are in memory."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from gateway.http import bodies
from gateway.http.bodies import REQUESTS, VALUES_MAX, body_of, parse_body, received
from gateway.http.problems import Problem
from gateway.http.whole_bodies import Room

BYTES_MAX = 1 << 20
TEXT = json.dumps({"messages": ["Grüße " * 2000]}).encode()


def deflated(data: bytes, bits: int) -> bytes:
    packing = zlib.compressobj(wbits=bits)
    return packing.compress(data) + packing.flush()


def request(data: bytes, coding: str | None, cuts: list[int] | None = None) -> Request:
    """A request whose body comes in pieces of these sizes."""
    rest, parts = data, []
    for cut in cuts or []:
        parts.append(rest[:cut])
        rest = rest[cut:]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": rest, "more_body": False})

    async def receive() -> Any:
        return messages.pop(0)

    headers = [] if coding is None else [(b"content-encoding", coding.encode())]
    awaited: Callable[[], Awaitable[Any]] = receive
    return Request({"type": "http", "method": "POST", "headers": headers}, awaited)


ENCODED = [
    (None, TEXT),
    ("identity", TEXT),
    ("", TEXT),
    ("gzip", gzip.compress(TEXT, mtime=0)),
    ("GZip", gzip.compress(TEXT, mtime=0)),
    ("x-gzip", gzip.compress(TEXT, mtime=0)),
    ("gzip", gzip.compress(TEXT[:7], mtime=0) + gzip.compress(b"", mtime=0) + gzip.compress(TEXT[7:], mtime=0)),
    ("deflate", deflated(TEXT, 15)),
    ("deflate", deflated(TEXT, 9)),
    ("deflate", deflated(TEXT, -15)),
    ("identity, deflate", deflated(TEXT, 15)),
    ("gzip", b""),
]


@pytest.mark.asyncio
@pytest.mark.parametrize(("coding", "data"), ENCODED)
async def test_a_body_is_decoded(coding: str | None, data: bytes) -> None:
    for cuts in ([], [1] * 12, [10, 100]):
        assert await body_of(request(data, coding, cuts), BYTES_MAX) == (TEXT if data else b"")
    assert REQUESTS.bytes == 0


@pytest.mark.asyncio
@given(st.binary(max_size=3000), st.lists(st.integers(0, 400), max_size=8), st.sampled_from([31, 15, -15]))
async def test_any_bytes_in_any_pieces(data: bytes, cuts: list[int], bits: int) -> None:
    coding = "gzip" if bits > 16 else "deflate"
    assert await body_of(request(deflated(data, bits), coding, cuts), BYTES_MAX) == data


ZEROS = b"\0" * (8 * BYTES_MAX)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("coding", "data", "status"),
    [
        ("gzip", gzip.compress(ZEROS, mtime=0), 413),
        ("gzip", gzip.compress(b"", mtime=0) * 65, 400),
        ("deflate", deflated(ZEROS, 15), 413),
        ("deflate", deflated(ZEROS, -15), 413),
        ("deflate", b"\0\0\0\xff\xff" * 300_000, 413),
        (None, ZEROS[: BYTES_MAX + 1], 413),
        ("gzip", gzip.compress(TEXT, mtime=0)[:-1], 400),
        ("gzip", gzip.compress(TEXT, mtime=0) + b"more", 400),
        ("gzip", TEXT, 400),
        ("deflate", deflated(TEXT, 15) + b"more", 400),
        ("deflate", deflated(TEXT, 15)[:-1], 400),
        ("br", TEXT, 415),
        ("zstd", TEXT, 415),
        ("gzip, gzip", gzip.compress(gzip.compress(TEXT, mtime=0), mtime=0), 415),
        ("gzip\x80", TEXT, 415),
    ],
)
async def test_what_cannot_be_taken(coding: str | None, data: bytes, status: int) -> None:
    largest = 0
    for cuts in ([], [1000] * 20):
        with pytest.raises(Problem) as caught:
            async with received(request(data, coding, cuts), BYTES_MAX):
                largest = REQUESTS.bytes
        assert caught.value.status == status
        assert (caught.value.headers().get("accept-encoding") is not None) == (status == 415)
    assert (largest, REQUESTS.bytes) == (0, 0)


@pytest.mark.asyncio
async def test_a_bomb_of_the_bound_is_taken_and_no_byte_more() -> None:
    assert await body_of(request(gzip.compress(ZEROS[:BYTES_MAX], mtime=0), "gzip"), BYTES_MAX) == ZEROS[:BYTES_MAX]
    with pytest.raises(Problem, match="more than"):
        await body_of(request(gzip.compress(ZEROS[: BYTES_MAX + 1], mtime=0), "gzip"), BYTES_MAX)


@pytest.mark.asyncio
async def test_long_bodies_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "REQUESTS", Room(BYTES_MAX, "of a test"))
    large, small = ZEROS[: BYTES_MAX * 3 // 4], ZEROS[:1000]
    async with received(request(large, None), BYTES_MAX):
        assert bodies.REQUESTS.bytes == len(large)
        with pytest.raises(Problem) as caught:
            await body_of(request(large, None, [1000] * 100), BYTES_MAX)
        assert (caught.value.status, caught.value.retry_after_seconds) == (503, 2)
        assert await body_of(request(small, None), BYTES_MAX) == small
        assert bodies.REQUESTS.bytes == len(large)
    assert bodies.REQUESTS.bytes == 0
    assert await body_of(request(large, None), BYTES_MAX) == large


def test_a_body_may_not_have_any_number_of_values() -> None:
    assert len(parse_body(b'{"a":[%b0]}' % (b"0," * (VALUES_MAX - 2)))["a"]) == VALUES_MAX - 1
    for value in (b"0,", b"{},", b"[],"):
        with pytest.raises(Problem) as caught:
            parse_body(b'{"a":[%b0]}' % (value * VALUES_MAX))
        assert caught.value.status == 413
