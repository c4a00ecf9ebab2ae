"""Streams that are read while the Redis under them fails over or is reshaped: what readers got, and how long they waited.

    report = await read_through(system, fault, streams=500)
    assert report.violations == []

Each reader has one connection to a gateway, and resumes when it breaks off. Its events are compared with the answer: every
token once, in order, then the end.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx2
import orjson

from shared.sse import Decoder
from tests.support.system import System
from tests.support.waiting import wait_until

_BETWEEN_CREATES_SECONDS = 0.1
_AGAIN_SECONDS = 0.1


class PausedReader:
    """One reader of a stream, with the longest time between two of its tokens."""

    def __init__(self, ports: list[int], stream_id: str, first_gateway: int) -> None:
        self._ports = ports
        self._at = first_gateway
        self._stream_id = stream_id
        self.offsets: list[tuple[int, int]] = []
        self.texts: list[str] = []
        self.end = ""
        self.connections = 0
        self.longest_seconds = 0.0
        self._heard_at = 0.0
        self._last_id = ""

    async def read(self) -> None:
        """Reads until the stream's end, over as many connections as it takes."""
        while not self.end:
            try:
                await self._connect()
            except (OSError, EOFError, ValueError, asyncio.IncompleteReadError):
                await asyncio.sleep(_AGAIN_SECONDS)
            self._at += 1

    async def _connect(self) -> None:
        self.connections += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", self._ports[self._at % len(self._ports)])
        try:
            after = f"Last-Event-ID: {self._last_id}\r\n" if self._last_id else ""
            path = f"/v1/streams/{self._stream_id}/events"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: here\r\n{after}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                raise ValueError(head.decode())
            decoder = Decoder()
            while not self.end:
                size = int(await reader.readline(), 16)
                if not size:
                    return
                for message in decoder.feed((await reader.readexactly(size + 2))[:-2]):
                    self._take(message.id, message.event, message.data)
        finally:
            writer.transport.abort()

    def _take(self, event_id: str, event: str, data: str) -> None:
        now = time.monotonic()
        if event == "message":
            if self._heard_at:
                self.longest_seconds = max(self.longest_seconds, now - self._heard_at)
            self._heard_at = now
            attempt, _, offset = event_id.partition("-")
            self.offsets.append((int(attempt), int(offset)))
            self.texts.append(orjson.loads(data)["token"])
        elif event in ("done", "failed", "cancelled"):
            self.end = event if event == "done" else f"{event}: {data}"
        elif event not in ("started", "live"):
            self.end = f"{event}: {data}"
        self._last_id = event_id or self._last_id


@dataclass
class Report:
    """What the readers of one run saw."""

    readers: int = 0
    tokens: int = 0
    created_meanwhile: int = 0
    refused_creates: int = 0
    fault_seconds: float = 0.0
    connections: int = 0
    longest_create_seconds: float = 0.0
    pauses: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def pause(self, share: float) -> float:
        """Returns the pause that this share of the readers did not exceed, in seconds."""
        ordered = sorted(self.pauses)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def row(self, name: str) -> str:
        return (
            f"| {name} | {self.readers} | {self.tokens} | {len(self.violations)} | {self.pause(0.5):.2f} | "
            f"{self.pause(0.99):.2f} | {self.pause(1.0):.2f} | {self.longest_create_seconds:.2f} | "
            f"{self.created_meanwhile} | {self.refused_creates} | {self.connections - self.readers} |"
        )


HEAD = (
    "| fault | readers | tokens | violations | pause p50 s | p99 s | longest s | longest create s | created meanwhile "
    "| creates refused | reconnections |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


async def read_through(
    system: System,
    fault: Callable[[], Awaitable[None]],
    *,
    streams: int,
    readers_of_each: int = 2,
    tokens: int = 60,
    tokens_per_second: float = 5.0,
    before_seconds: float = 1.0,
    within_seconds: float = 90.0,
) -> Report:
    """Has streams read while a fault happens; streams are created meanwhile, too."""
    report = Report()
    readers: list[tuple[PausedReader, int]] = []
    tasks: list[asyncio.Task[None]] = []
    ports = system.gateway_ports
    over = asyncio.Event()

    async def create(number: int, count: int) -> None:
        began = time.monotonic()
        body = {
            "messages": [{"role": "user", "content": f"question {number}"}],
            "simulate": {"tokens": count, "tokens_per_second": tokens_per_second},
        }
        headers = {"Idempotency-Key": f"key {number}"}
        while True:
            url = f"http://127.0.0.1:{ports[number % len(ports)]}/v1/streams"
            try:
                response = await system.http.post(url, json=body, headers=headers)
            except httpx2.TransportError:
                continue
            if response.status_code == 201:
                break
            assert response.status_code == 503, response.text
            report.refused_creates += 1
            await asyncio.sleep(_AGAIN_SECONDS)
        report.longest_create_seconds = max(report.longest_create_seconds, time.monotonic() - began)
        for index in range(readers_of_each):
            reader = PausedReader(ports, response.json()["id"], number + index)
            readers.append((reader, count))
            tasks.append(asyncio.create_task(reader.read()))

    async def go_on_creating() -> None:
        async with asyncio.TaskGroup() as group:
            number = streams
            while not over.is_set():
                group.create_task(create(number, max(5, tokens // 6)))
                report.created_meanwhile += 1
                number += 1
                await asyncio.sleep(_BETWEEN_CREATES_SECONDS)

    limit = asyncio.Semaphore(20)

    async def create_first(number: int) -> None:
        async with limit:
            await create(number, tokens)

    await asyncio.gather(*(create_first(number) for number in range(streams)))
    await wait_until(lambda: all(reader.texts for reader, _ in readers), within_seconds=30, what="all tokens flow")
    report.longest_create_seconds = 0.0
    for reader, _ in readers:
        reader.longest_seconds = 0.0
    await asyncio.sleep(before_seconds)
    creating = asyncio.create_task(go_on_creating())
    began = time.monotonic()
    await fault()
    report.fault_seconds = time.monotonic() - began
    over.set()
    await creating
    await asyncio.wait(tasks, timeout=within_seconds)
    for reader, count in readers:
        report.violations += _violations(reader, count)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    report.readers, report.tokens = len(readers), sum(len(reader.texts) for reader, _ in readers)
    report.connections = sum(reader.connections for reader, _ in readers)
    report.pauses = [reader.longest_seconds for reader, _ in readers]
    by_stream: dict[str, set[str]] = {}
    for reader, _ in readers:
        by_stream.setdefault(reader._stream_id, set()).add("".join(reader.texts))
    report.violations += [
        f"{stream_id}: its readers differ" for stream_id, texts in by_stream.items() if len(texts) > 1
    ]
    return report


def _violations(reader: PausedReader, count: int) -> list[str]:
    """Returns what a reader got otherwise than it should: every token once, in order, then `done`."""
    stream_id = reader._stream_id
    if not reader.end:
        return [f"{stream_id}: hanging after {reader._last_id}"]
    if reader.end != "done":
        return [f"{stream_id}: it ended as {reader.end[:200]}"]
    wanted = [(1, offset) for offset in range(1, count + 1)]
    if reader.offsets == wanted:
        return []
    seen = Counter(reader.offsets)
    lost = [place for place in wanted if place not in seen]
    doubled = [place for place, times in seen.items() if times > 1]
    order = reader.offsets != sorted(reader.offsets)
    return [
        f"{stream_id}: lost {lost[:3]} ({len(lost)}), doubled {doubled[:3]} ({len(doubled)}), out of order: {order}"
    ]
