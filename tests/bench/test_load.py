"""The bench's readers count a server's faults, and nothing else, for any division of its bytes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.processes.control import Helper
from bench.scan import Broken, Scanner, Tally, Unchunker, stamp_text
from tests.support.http_server import Closed, HttpServer, Request

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_FIRST = b":\nretry: 2000\nevent: started\ndata: {}\nid: 1-0\n\n"


def event(offset: int, *, number: int = 0, event_id: int | None = None) -> bytes:
    text = stamp_text(number, offset, time.monotonic_ns())
    return b'data: {"token":"%b"}\nid: 1-%d\n\n' % (text, offset if event_id is None else event_id)


def events(*offsets: int) -> bytes:
    return b"".join(map(event, offsets))


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[first : first + size] for first in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


class Misbehaving(HttpServer):
    """A server that answers every request with the same body, in random pieces, and then waits."""

    def __init__(self, body: bytes, *, seed: int, whole: bool = False) -> None:
        super().__init__()
        self._dice = random.Random(seed)
        self._answer = _HEAD + (chunked(body, 1 << 20) if whole else chunked(body, self._dice.randint(5, 700)))
        self._whole = whole
        self.authorizations: list[str] = []

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.authorizations.append(request.headers.get("authorization", ""))
        rest = self._answer
        while rest:
            size = len(rest) if self._whole else self._dice.randint(1, 997)
            writer.write(rest[:size])
            await writer.drain()
            rest = rest[size:]
        await reader.read()  # until it goes
        raise Closed


def load(
    port: int, tmp_path: Path, *, last: int, storm: bool = False, readers: int = 3, tokens: Sequence[str] = ()
) -> dict[str, Any]:
    plan = {"host": "127.0.0.1", "port": port, "path": "/%s", "streams": ["one"], "first_reader": 0, "first_offset": 1}
    plan["tokens"] = [*tokens]
    with Helper("bench.processes.load", {**plan, "readers": readers}, log=tmp_path / "log", cores=None) as helper:
        helper.hear(within_seconds=20)
        if storm:
            return helper.ask("storm", after="", last=last, within_seconds=5.0)
        answer = helper.ask("connect", after="", at_once=2, within_seconds=10.0)
        assert answer["connected"] + answer["refused"] == readers
        return helper.ask("drain", last=last, within_seconds=1.0)


_CASES = {
    "right": (_FIRST + events(*range(1, 301)), {}),
    "a hole": (events(1, 2, 3, 7, 8), {"missing": 3}),
    "a repetition": (events(1, 2, 2, 3), {"doubled": 1}),
    "a whole part again": (events(*range(1, 20), *range(5, 25)), {"doubled": 15}),
    "a swap": (events(1, 3, 2, 4), {"out_of_order": 1}),
    "another stream's": (events(1) + event(2, number=7) + events(2, 3), {"strangers": 1}),
    "an id that lies": (events(1) + event(2, event_id=3) + events(2, 3), {"strangers": 1}),
    "a gap event": (events(1, 2) + b"event: gap\ndata: {}\n\n" + events(3), {"event_gap": 1}),
}


@pytest.mark.parametrize("case", _CASES)
async def test_each_fault_is_counted_under_its_own_name(case: str, tmp_path: Path) -> None:
    body, wanted = _CASES[case]
    async with Misbehaving(body, seed=len(case)) as server:
        counts = await asyncio.to_thread(load, server.port, tmp_path, last=3)
    found = {name: count for name, count in counts["faults"].items() if count}
    assert found == {name: count * 3 for name, count in wanted.items()}
    assert counts["behind"] == 0


@pytest.mark.parametrize("tokens", [(), ("the-token",)])
async def test_missing_events_are_counted_with_a_token_and_without(tokens: tuple[str, ...], tmp_path: Path) -> None:
    async with Misbehaving(events(1, 2, 3), seed=1) as server:
        counts = await asyncio.to_thread(load, server.port, tmp_path, last=5, tokens=tokens)
    assert server.authorizations == ["Bearer the-token" if tokens else ""] * 3
    assert (counts["behind"], counts["lacking"]) == (3, 6)
    assert not any(counts["faults"].values())


@pytest.mark.parametrize(
    ("body", "wanted"), [(events(*range(1, 501)), {}), (events(1, 2, 2, 5), {"missing": 2, "doubled": 1})]
)
async def test_a_storm_is_checked_when_the_clock_has_stopped(
    body: bytes, wanted: dict[str, int], tmp_path: Path
) -> None:
    last = 500 if not wanted else 5
    async with Misbehaving(body, seed=3, whole=True) as server:
        counts = await asyncio.to_thread(load, server.port, tmp_path, last=last, storm=True)
    assert {name: count for name, count in counts["faults"].items() if count} == {n: c * 3 for n, c in wanted.items()}
    assert counts["caught_up"] == 3
    assert counts["events"] == (1500 if not wanted else 12)


@pytest.mark.parametrize("seed", range(20))
def test_any_cut_gives_the_same(seed: int) -> None:
    """The decoder and the scanner alone, fed byte by byte and in large pieces."""
    dice = random.Random(seed)
    body = _FIRST + events(*range(1, 200)) + b"event: live\ndata: {}\n\n:\n" + events(*range(200, 230))
    data = chunked(body, dice.choice((1, 7, 100, 5000))) + b"0\r\n\r\n"
    tally, unchunker = Tally(), Unchunker()
    if seed % 2:
        tally.parsed = {}
    scanner, position = Scanner(tally, 0, 0), 0
    while position < len(data):
        size = dice.choice((1, 2, 13, 700, 9000))
        scanner.feed(unchunker.feed(data[position : position + size]), time.monotonic_ns() // 1000 + 1000)
        position += size
    assert unchunker.ended, f"seed {seed}"
    assert not any(tally.faults().values()), f"seed {seed}: {tally.faults()}"
    assert (tally.events, scanner.next) == (229, 230), f"seed {seed}"
    tally.settle()
    assert tally.latencies.count == 229
    assert tally.latencies.quantile(0.0) >= 1000


def test_malformed_http_is_refused() -> None:
    with pytest.raises(Broken):
        Unchunker().feed(b"<html>\r\n")
    with pytest.raises(Broken):
        Unchunker().feed(b"x" * 30)
