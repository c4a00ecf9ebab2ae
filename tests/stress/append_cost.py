"""What an event of an external writer costs a gateway: `python -m tests.stress.append_cost`.

CPU time of one gateway process per event: one event per request, arrays of 16, and lines of a long body, as fast as they go and at 50
a second on 100 streams. Nobody reads. Needs a quiet machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from tests.support.system import System

_STREAMS = 16
_TOKEN = json.dumps({"token": "word "}).encode()
_LINES_BETWEEN_DRAINS = 20


class Costs:
    """Measures one system with one gateway."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._pid = system.gateways[0].pid

    async def measure(self, name: str, streams: int, events: int, write: Callable[[str], Awaitable[None]]) -> None:
        """Prints the cost of `write`, which appends so many events to a stream, on so many streams at once."""
        stream_ids = [
            await self._system.create(
                midstream={"writer": "external", "on_disconnect": "continue", "lease_seconds": 600}
            )
            for _ in range(streams)
        ]
        began_at, began_cpu = time.monotonic(), _cpu_seconds(self._pid)
        await asyncio.gather(*(write(stream_id) for stream_id in stream_ids))
        seconds, cpu_seconds = time.monotonic() - began_at, _cpu_seconds(self._pid) - began_cpu
        count = streams * events
        print(
            f"{name}: {cpu_seconds / count * 1e6:.1f} µs of CPU per event, {count / seconds:,.0f} events/s", flush=True
        )

    async def requests(self, stream_id: str, body: bytes, count: int) -> None:
        """Sends so many requests over one connection, one after the other."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._system.gateway_port())
        head = (
            f"POST /v1/streams/{stream_id}/events HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        for _ in range(count):
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in answer, answer
            length = answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()

    async def lines(self, stream_id: str, count: int, pause_seconds: float) -> None:
        """Sends one long body of so many lines, each in a chunk of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._system.gateway_port())
        writer.write(
            f"POST /v1/streams/{stream_id}/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        chunk = b"%x\r\n%b\n\r\n" % (len(_TOKEN) + 1, _TOKEN)
        for number in range(count):
            writer.write(chunk)
            if number % _LINES_BETWEEN_DRAINS == 0:
                await writer.drain()
            if pause_seconds:
                await asyncio.sleep(pause_seconds)
        writer.write(b"0\r\n\r\n")
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in answer, answer
        writer.close()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def main() -> None:
    array = b"[%b]" % b",".join([_TOKEN] * 16)
    async with System(workers=0, settings={"stream_entries_max": 10_000_000, "stream_bytes_max": 1 << 30}) as system:
        costs = Costs(system)
        await costs.measure("one per request", _STREAMS, 1500, lambda it: costs.requests(it, _TOKEN, 1500))
        await costs.measure("arrays of 16", _STREAMS, 800 * 16, lambda it: costs.requests(it, array, 800))
        await costs.measure("lines, as fast as they go", _STREAMS, 20_000, lambda it: costs.lines(it, 20_000, 0.0))
        await costs.measure("lines, 100 streams at 50/s", 100, 500, lambda it: costs.lines(it, 500, 0.02))


if __name__ == "__main__":
    uvloop.run(main())
