"""`python -m bench.appends`: appends to written streams over HTTP, one message or an array of 16 in each request.

    python -m bench.appends --reference FOLDER   # beside the reference server from npm, installed in FOLDER

The server that is measured has a core of its own; Redis and the load have the others. Sixteen connections write sixteen
streams, each the next request when the one before is answered. Both servers are measured alternately; figures are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from bench.processes import procs
from bench.processes.parts import Cores, Parts, Server

CONNECTIONS = 16
MESSAGE = {"event": "token", "data": {"text": " something", "index": 12345}}
ARRAYS = (1, 16)
"""Messages in each request."""
_REFERENCE = Path(__file__).with_name("durable_reference.mjs")


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate at which a server took messages in one run, and its cost."""

    messages_per_second: float
    cpu_us_per_request: float
    """CPU time of the server's own process; that of Redis is not in it."""


async def run(server: Server, in_each: int, seconds: float) -> Rate:
    """Appends for so long, after a tenth of it to warm up."""
    message = orjson.dumps(MESSAGE)
    body = message if in_each == 1 else b"[%b]" % b",".join([message] * in_each)
    loop = asyncio.get_running_loop()
    started_at = loop.time() + seconds / 10
    ends_at, counted = started_at + seconds, 0

    async def write(number: int) -> None:
        nonlocal counted
        reader, writer = await asyncio.open_connection(server.host, server.port)
        path = f"/v1/stream/bench-{time.monotonic_ns()}-{number}"
        head = f" {path} HTTP/1.1\r\nhost: x.localhost\r\ncontent-type: application/json\r\ncontent-length: "
        put = f"PUT{head}0\r\n\r\n".encode()
        post = f"POST{head}{len(body)}\r\n\r\n".encode() + body
        writer.write(put)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b" 201 " in answer, answer
        if b"chunked" in answer:  # an empty body
            await reader.readuntil(b"0\r\n\r\n")
        while (now := loop.time()) < ends_at:
            writer.write(post)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 204"), answer
            counted += now >= started_at
        writer.close()

    async def cpu_between() -> float:
        await asyncio.sleep(max(0.0, started_at - loop.time()))
        before = procs.cpu_seconds(server.pid or 0)
        await asyncio.sleep(ends_at - loop.time())
        return procs.cpu_seconds(server.pid or 0) - before

    cpu = asyncio.create_task(cpu_between())
    await asyncio.gather(*map(write, range(CONNECTIONS)))
    cpu_seconds = await cpu
    return Rate(counted * in_each / seconds, cpu_seconds / max(1, counted) * 1e6)


@contextmanager
def reference(folder: str, cores: set[int] | None) -> Iterator[Server]:
    """The reference server, running."""
    node = shutil.which("node")
    assert node is not None, "node is missing"
    process = subprocess.Popen([node, str(_REFERENCE), os.path.abspath(folder)], stdout=subprocess.PIPE, text=True)
    try:
        procs.pin(process.pid, cores)
        assert process.stdout is not None
        address = urlsplit(process.stdout.readline().strip())
        assert address.port is not None, "it did not start"
        yield Server("the reference server, in memory", "127.0.0.1", address.port, "", process.pid)
    finally:
        process.kill()
        process.wait()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.appends", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference", metavar="FOLDER", help="where @durable-streams/server is installed by npm")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args(arguments)
    cores = Cores.of(None)
    with Parts(cores) as parts:
        # Room for what one run writes: the bound of a stream is no part of what is measured.
        bounds = {"stream_bytes_max": 1 << 40, "stream_entries_max": 1 << 40, "written_bytes_max": 1 << 50}
        servers = [parts.gateway(**bounds)]
        procs.pin(os.getpid(), cores.load)
        if options.reference is None:
            _measure(servers, options.seconds, options.times, parts.placement)
        else:
            with reference(options.reference, cores.server) as other:
                _measure([*servers, other], options.seconds, options.times, parts.placement)
    return 0


def _measure(servers: list[Server], seconds: float, times: int, placement: str) -> None:
    print(placement)
    for in_each in ARRAYS:
        rates: dict[str, list[Rate]] = {server.name: [] for server in servers}
        for _ in range(times):
            for server in servers:
                rates[server.name].append(asyncio.run(run(server, in_each, seconds)))
        for name, of_server in rates.items():
            messages = statistics.median(rate.messages_per_second for rate in of_server)
            cpu_us = statistics.median(rate.cpu_us_per_request for rate in of_server)
            spread = ", ".join(f"{rate.messages_per_second:,.0f}" for rate in of_server)
            print(
                f"{in_each:>3} in each request: {messages:>9,.0f} messages/s, {cpu_us:5.0f} us of the server's CPU a request"
                f"  {name} ({spread})"
            )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
