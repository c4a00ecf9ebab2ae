"""`python -m tests.stress.fuzz_http --seconds N --seed S`: mutated requests against one gateway, and a reader beside them.

A separate process sends mutated HTTP over several connections at once, cut at any place. Meanwhile a reader follows one stream
after the other. Exit code 0 if the gateway still runs and serves, has answered no 5xx and logged no traceback, the reader
missed nothing, and the memory has not grown. No process may ask for more than 256 MB (RLIMIT_AS).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from multiprocessing.queues import Queue
from pathlib import Path

import httpx2

from shared.sse import Decoder, Message
from tests.support.memory import ONE_ARENA, limit_memory, resident_megabytes
from tests.support.raw_http import RawHttp, statuses
from tests.support.redis_server import RedisServer
from tests.support.system import Process, answer_of
from tests.support.waiting import wait_until

_CONNECTIONS = 6
_MEGABYTES_MAX = 256
_GROWN_MEGABYTES_MAX = 20.0
_GAP_SECONDS = 0.2
"""The gap between events that a reader should not notice; longer ones are only reported, since a busy machine has gaps, too."""
_GAP_SECONDS_MAX = 3.0
"""A request that held up a gateway would do so for as long as it is there."""
_TOKENS, _TOKENS_PER_SECOND = 150, 50
_WARM_UP_SECONDS = 5.0
_SETTINGS: dict[str, object] = {"request_seconds": 2, "idle_connection_seconds": 5, "keepalive_seconds": 1}
_BAD_LINE = re.compile(r'"level":"(error|critical)"|Traceback|ERROR|CRITICAL')

_STREAM = b"0123456789abcdefghjkmnpqrstvwxyz0000"
_BODY = b'{"messages":[{"role":"user","content":"hello"}],"simulate":{"tokens":2,"tokens_per_second":0}}'
_UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
)
_SEEDS = [
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\n\r\n",
    b"GET /v1/streams/%b/events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 1-5\r\nAccept: application/x-ndjson\r\n\r\n" % _STREAM,
    b"GET /v1/streams/%b?wait=1 HTTP/1.1\r\nHost: x\r\nIf-None-Match: \"x\"\r\n\r\n" % _STREAM,
    b"GET /stream?prompt=hello%%20you HTTP/1.1\r\nHost: x\r\nCookie: %b\r\n\r\n" % (b"c" * 2000),
    b"GET /v1/probe?events=3&interval_ms=1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/overview/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS /v1/streams HTTP/1.1\r\nHost: x\r\nOrigin: https://y\r\nAccess-Control-Request-Method: POST\r\n\r\n",
    b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nIdempotency-Key: k\r\n\r\n%b" % (len(_BODY), _BODY),
    b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY),
    b"POST /v1/streams HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x;a=b\r\n%b\r\n0\r\nX: y\r\n\r\n" % (len(_BODY), _BODY),
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY),
    b"GET /v1/streams/%b/ws HTTP/1.1\r\nHost: x\r\n%b\r\n" % (_STREAM, _UPGRADE),
    b"GET /v1/streams/%b/ws HTTP/1.1\r\nHost: x\r\n%b\r\n\x81\x92\0\0\0\0{\"type\": \"cancel\"}\x89\x80\0\0\0\0" % (_STREAM, _UPGRADE),
    b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]  # fmt: skip
_TOKENS_OF_HTTP = [
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b" ", b":", b";", b",", b"\t", b"HTTP/1.1", b"HTTP/0.9", b"Host: y\r\n", b"Content-Length: 0\r\n",
    b"Content-Length: 99999999999999999999\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Connection: close\r\n",
    b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n", b"0\r\n\r\n", b"ffffffffffffffff\r\n", b"1;", b"\xff\xfe", b"%00", b"%ff",
    b"Origin: https://evil\r\n", b"X-Forwarded-Host: x\r\n", b"Expect: 100-continue\r\n", b"\x88\x80\0\0\0\0", b"\x01\x80\0\0\0\0", b"\x00\x80\0\0\0\0",
]  # fmt: skip


# --- what is sent


def mutated(rng: random.Random, streams: list[bytes]) -> bytes:
    """Returns some requests in a row, with up to a dozen faults."""
    sent = bytearray(b"".join(rng.choice(_SEEDS) for _ in range(rng.choice((1, 1, 1, 2, 3, 30)))))
    if streams:
        sent = sent.replace(_STREAM, rng.choice(streams))
    for _ in range(rng.choice((0, 1, 1, 2, 3, 12))):
        at = rng.randrange(len(sent) + 1)
        upto = min(len(sent), at + rng.choice((1, 2, 10, 100)))
        fault = rng.randrange(7)
        if fault == 0:
            sent[at:upto] = b""
        elif fault == 1:
            sent[at:at] = rng.choice(_TOKENS_OF_HTTP)
        elif fault == 2:
            sent[at:upto] = rng.randbytes(upto - at)
        elif fault == 3:
            sent[at:at] = sent[at:upto] * rng.choice((1, 3, 200))
        elif fault == 4:
            sent[at:at] = rng.choice(_TOKENS_OF_HTTP) * rng.choice((2, 200, 20_000))
        elif fault == 5:
            sent[at:at] = rng.choice((b"a", b"A: b\r\n", b"\x89\x80\0\0\0\0")) * rng.choice((100, 9_000, 100_000))
        else:
            sent[at:upto] = rng.choice(_SEEDS)
    return bytes(sent)


class Attack:
    """The attack of one process on a gateway, and its answers."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._rng = random.Random(seed)
        self._streams: list[bytes] = []
        self.counts: Counter[str] = Counter()
        self.bad: list[str] = []

    async def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(self._attack(until) for _ in range(_CONNECTIONS)))

    async def _attack(self, until: float) -> None:
        while time.monotonic() < until and len(self.bad) < 5:
            rng = random.Random(self._rng.getrandbits(64))
            sent = mutated(rng, self._streams)
            try:
                answer = await self._exchange(rng, sent)
            except TimeoutError:
                self.counts["open after 20 s"] += 1
                self.bad.append(f"not closed after {sent[:2000]!r}")
                continue
            self.counts["connections"] += 1
            self.counts["bytes"] += len(sent)
            for status in statuses(answer):
                self.counts[f"status {status}"] += 1
                if status >= 500:
                    self.bad.append(f"{status} after {sent[:2000]!r}: {answer[-500:]!r}")
            self._streams = (self._streams + re.findall(rb'"id":"(\w{36})"', answer))[-20:]

    async def _exchange(self, rng: random.Random, sent: bytes) -> bytes:
        cuts = sorted(rng.randrange(len(sent) + 1) for _ in range(rng.choice((0, 1, 2, 20))))
        parts = [sent[at:upto] for at, upto in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
        if rng.random() < 0.02:
            parts = [sent[at : at + 1] for at in range(min(len(sent), 3000))]
        async with RawHttp(self._port) as raw:
            sending = asyncio.create_task(raw.send(*parts))
            ending = rng.randrange(5)
            try:
                if ending == 0:  # gone in the middle of it
                    await asyncio.sleep(rng.random() * 0.02)
                    return b""
                if ending == 1:
                    await asyncio.wait_for(asyncio.gather(sending, return_exceptions=True), 20)
                    raw.reset()
                    return b""
                if ending == 2:
                    await asyncio.gather(sending, return_exceptions=True)
                    with suppress(OSError):
                        raw.close_half()
                    return await self._some(raw, 3.0)
                return await self._some(raw, rng.random())
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    async def _some(self, raw: RawHttp, seconds: float) -> bytes:
        """Returns what comes within so many seconds; a stream need not end."""
        received = bytearray()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await raw.read_into(received)
        return bytes(received)


def _attack_in_this_process(
    port: int, seed: int, seconds: float, results: Queue[tuple[Counter[str], list[str]]]
) -> None:
    attack = Attack(port, seed)
    asyncio.run(attack.run(seconds))
    results.put((attack.counts, attack.bad))


# --- who reads beside it


class Beside:
    """A reader beside the attack that follows one stream after the other: nothing may be missing."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.streams = self.tokens = 0
        self.longest_gap_seconds = 0.0

    async def run(self, until: float) -> None:
        async with httpx2.AsyncClient(timeout=30.0, trust_env=False) as http:
            while time.monotonic() < until:
                body = {
                    "messages": [{"role": "user", "content": "beside"}],
                    "simulate": {"tokens": _TOKENS, "tokens_per_second": _TOKENS_PER_SECOND},
                }
                created = await http.post(f"{self._url}/v1/streams", content=json.dumps(body))
                assert created.status_code == 201, created.text
                await self._follow(http, created.json()["events_url"])

    async def _follow(self, http: httpx2.AsyncClient, path: str) -> None:
        decoder, messages, last = Decoder(), list[Message](), 0.0
        async with http.stream("GET", self._url + path) as response:
            assert response.status_code == 200, response.status_code
            async for part in response.aiter_bytes():
                for message in decoder.feed(part):
                    messages.append(message)
                    if message.event == "message":
                        now = time.monotonic()
                        self.longest_gap_seconds = max(self.longest_gap_seconds, now - last if last else 0.0)
                        last = now
        answer = answer_of(messages)
        assert (answer.end, len(answer.tokens)) == ("done", _TOKENS), f"{answer.end} after {len(answer.tokens)} tokens"
        self.streams += 1
        self.tokens += len(answer.tokens)


# --- the run


async def fuzz(seconds: float, seed: int) -> list[str]:
    """Runs for so many seconds; returns what was wrong."""
    with tempfile.TemporaryDirectory(prefix="midstream-fuzz-") as directory, RedisServer("valkey") as server:
        common: dict[str, object] = {"redis_url": server.url}
        gateway = Process(
            "gateway",
            {**common, **_SETTINGS, "port": 0},
            Path(directory) / "gateway.log",
            ["--log-format", "json"],
            ONE_ARENA,
        )
        worker = Process("producer", common, Path(directory) / "producer.log", environment=ONE_ARENA)
        try:
            gateway.start()
            worker.start()
            await wait_until(lambda: " is up: " in gateway.logged(), within_seconds=30, what="the gateway is up")
            await wait_until(lambda: " is up: " in worker.logged(), within_seconds=30, what="the worker is up")
            for process in (gateway, worker):
                limit_memory(process.pid, _MEGABYTES_MAX)
            return await _run(gateway, seconds, seed)
        finally:
            for process in (gateway, worker):
                if process.runs:
                    process.kill()


async def _run(gateway: Process, seconds: float, seed: int) -> list[str]:
    found = re.search(r"http://127\.0\.0\.1:(\d+)", gateway.logged())
    assert found is not None
    port = int(found[1])
    wrong: list[str] = []
    started = time.monotonic()
    beside = Beside(f"http://127.0.0.1:{port}")
    reading = asyncio.create_task(beside.run(started + seconds))
    spawn = multiprocessing.get_context("spawn")
    results: Queue[tuple[Counter[str], list[str]]] = spawn.Queue()
    attacker = spawn.Process(target=_attack_in_this_process, args=(port, seed, seconds, results), daemon=True)
    attacker.start()
    memory: list[tuple[float, float]] = []
    while attacker.is_alive() and gateway.runs and not reading.done():
        memory.append((time.monotonic() - started, resident_megabytes(gateway.pid)))
        if memory[-1][1] > _MEGABYTES_MAX:
            wrong.append(f"the gateway has {memory[-1][1]:.0f} MB after {memory[-1][0]:.0f} s")
            break
        if not results.empty():
            break
        await asyncio.sleep(0.1)
    counts, bad = (
        (await asyncio.to_thread(results.get, timeout=40)) if gateway.runs and not wrong else (Counter[str](), [])
    )
    attacker.terminate()
    wrong += bad
    try:
        await asyncio.wait_for(reading, 60)
    except Exception as error:  # any exception is reported
        wrong.append(f"the reader beside: {error!r}")
    if not gateway.runs:
        return [*wrong, f"the gateway has ended\n{gateway.tail()}"]
    await asyncio.sleep(3)  # the last connections are read to their end
    settled = resident_megabytes(gateway.pid)
    warm = max((megabytes for at, megabytes in memory if at < _WARM_UP_SECONDS), default=settled)
    if settled > warm + _GROWN_MEGABYTES_MAX:
        wrong.append(f"the gateway's memory grew from {warm:.0f} to {settled:.0f} MB")
    wrong += [
        f"on the log: {line[:300]} ... {line[-700:]}"
        for line in gateway.logged().splitlines()
        if _BAD_LINE.search(line)
    ][:5]
    async with httpx2.AsyncClient(trust_env=False) as http:
        if (await http.get(f"http://127.0.0.1:{port}/readyz")).status_code != 200:
            wrong.append("/readyz is not 200 in the end")
    if beside.longest_gap_seconds > _GAP_SECONDS_MAX:
        wrong.append(f"the reader beside waited {beside.longest_gap_seconds:.2f} s for a token")
    _say(counts, beside, memory, warm, settled)
    return wrong


def _say(counts: Counter[str], beside: Beside, memory: list[tuple[float, float]], warm: float, settled: float) -> None:
    for name, count in sorted(counts.items()):
        print(f"{name:20} {count:>12,}")
    most = max((megabytes for _, megabytes in memory), default=settled)
    gap = beside.longest_gap_seconds
    lines = [
        f"memory               {warm:.0f} MB warm, {most:.0f} at most, {settled:.0f} in the end",
        f"reader beside        {beside.streams} streams, {beside.tokens:,} tokens, none missing; longest gap {gap:.3f} s"
        + (f" (more than {_GAP_SECONDS} s)" if gap > _GAP_SECONDS else ""),
    ]
    print("\n".join(lines), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress.fuzz_http", description="Mutated HTTP against a gateway."
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="what is sent, and where it is cut (default 1)")
    arguments = parser.parse_args()
    wrong = asyncio.run(fuzz(arguments.seconds, arguments.seed))
    for line in wrong:
        print(f"WRONG: {line}", flush=True)
    print(f"seed {arguments.seed}: {'failed' if wrong else 'held'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
