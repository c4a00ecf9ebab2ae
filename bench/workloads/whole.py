"""W5, W7, W8: a worker, the path from the provider to a reader, and a request on an idle system.

They need a worker and a provider, so they run only on a Midstream that the bench has started.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import orjson

from bench.histogram import Histogram
from bench.processes import procs
from bench.processes.control import Helper
from bench.processes.parts import ORDINARY_WORKER, OUR_WORKER, Parts, Server
from bench.progress import Show
from bench.sizes import Sizes
from bench.workloads import streams
from bench.workloads.follow import BUSY, Figures, Void, account_of
from bench.workloads.streams import RedisCounts
from shared.events import DONE
from shared.keys import REQUESTS, log_key

_ANSWER_SECONDS_MAX = 180.0
_CLAIMED_SECONDS_MAX = 60.0
_COUNTED_TIMES = 15
PACE_MILLISECONDS = 100
"""W7's pace: two tokens per entry of an answer at 20 tokens/s."""
_SHARED = 1.1
"""With more tokens per entry than this and no pace, tokens have waited for each other."""
_IN_PROCESS = {
    "simulated": "simulated",
    "own": "bench.processes.own_generator:answer",
    "own_thread": "bench.processes.own_generator:in_a_thread",
}
"""Providers that generate in the worker's own process, by their names in the figures."""
_FIRST, _TOKEN = b"event: started\n", b'data: {"token"'


def w5(parts: Parts, sizes: Sizes, show: Show) -> Figures:
    """One worker on a core of its own: flat out with simulated answers, with generators of the user's own and over HTTP, and added
    latency at a slow pace."""
    request = {"simulate": {"tokens": sizes.w5_tokens, "tokens_per_second": 0}}
    in_process: Figures = {}
    for name, provider_name in _IN_PROCESS.items():
        show(f"W5: {name}, flat out")
        worker = parts.worker(parts.cores.server, worker_concurrency=sizes.w5_attempts, provider=provider_name)
        figures = _flat_out(parts, worker, [request] * sizes.w5_attempts, sizes.w5_tokens)
        in_process |= {f"{name}_{figure}": value for figure, value in figures.items()}
        _end(parts, worker)

    show("W5: over HTTP, flat out")
    with _provider(parts, sizes.w5_http_tokens, paced=False) as provider:
        worker = _worker_for(parts, provider, sizes.w5_attempts, parts.cores.server)
        before = provider.ask("status")["cpu_seconds"]
        http = _flat_out(parts, worker, _prompts(sizes.w5_attempts), sizes.w5_http_tokens)
        provider_busy = (provider.ask("status")["cpu_seconds"] - before) / http["seconds"]
        _end(parts, worker)

    show(f"W5: {sizes.w5_paced} attempts at {sizes.w5_paced_rate:g} tokens/s")
    with ExitStack() as stack:
        names = stack.enter_context(streams.queued(parts.redis, _prompts(sizes.w5_paced)))
        plan = {"redis": parts.redis_url, "streams": names}
        channels = stack.enter_context(parts.helper("bench.processes.channels", plan))
        provider = stack.enter_context(_provider(parts, sizes.w5_paced_tokens, paced=True))
        worker = _worker_for(parts, provider, sizes.w5_paced, parts.cores.server)
        paced = _paced(parts, names, [channels], provider, sizes.w5_paced_rate, sizes, {"worker": worker})
        _end(parts, worker)
    return {
        **in_process,
        **{f"http_{name}": value for name, value in http.items()},
        "http_provider_utilisation": provider_busy,
        **{f"paced_{name}": value for name, value in paced.items()},
        "void": bool(any(in_process[f"{name}_wrong"] for name in _IN_PROCESS) or http["wrong"] or paced["void"]),
        "generators": paced["generators"] or provider_busy > BUSY,
    }


def w7(parts: Parts, sizes: Sizes, show: Show) -> Figures:
    """The whole path through Midstream: with all answers, with a pace, with half, and with as many as the peer gets."""
    runs: dict[str, tuple[int, dict[str, object]]] = {
        "full": (sizes.w7_answers, {}),
        "pace": (sizes.w7_answers, {"entry_milliseconds": PACE_MILLISECONDS}),
        "half": (sizes.w7_answers // 2, {}),
        "equal": (_peer_answers(sizes), {}),
    }
    result: Figures = {"void": False, "generators": False, "notes": []}
    for name, (answers, settings) in runs.items():
        show(f"W7 Midstream: {answers} answers at {sizes.w7_rate:g} tokens/s{', with a pace' if settings else ''}")
        figures = whole_path(parts, parts.gateway, OUR_WORKER, answers, sizes, **settings)
        if not settings and figures["tokens_per_entry"] > _SHARED:
            result["notes"].append(
                f"{answers} answers were too many for this machine: tokens waited and shared entries, and so seem cheaper"
            )
        _add(result, name, figures)
    return result


def w7_peer(parts: Parts, sizes: Sizes, show: Show) -> Figures:
    """The whole path of the ordinary way, with the share of the answers that its worker can serve."""
    answers = _peer_answers(sizes)
    show(f"W7 the ordinary way: {answers} answers at {sizes.w7_rate:g} tokens/s")
    note = f"was given {answers} of {sizes.w7_answers} answers, as its worker cannot serve all; each sum is compared with these"
    result: Figures = {"void": False, "generators": False, "notes": [note]}
    _add(result, "equal", whole_path(parts, parts.naive, ORDINARY_WORKER, answers, sizes))
    return result


def whole_path(
    parts: Parts, start: Callable[[], Server], worker_module: str, answers: int, sizes: Sizes, **settings: object
) -> Figures:
    """Measures the path from the provider to readers: latency, from a chunk's stamp to the reader's socket, and CPU per token.

    `sum_us_per_token` is the CPU time of worker, Redis and gateway, `floor_us_per_token` that of the provider for making a chunk
    and writing it: no server that writes each token by itself can take less on this machine. `settings` are the worker's. The worker shares the
    gateway's core: beside Redis, the provider and the readers it would have too little of one.
    """
    server = start()
    assert server.pid is not None  # `Bench` allows only gateways that it has started
    with ExitStack() as stack:
        stack.callback(parts.end, server.pid)
        names = stack.enter_context(streams.queued(parts.redis, _prompts(answers)))
        plan = {
            "host": server.host,
            "port": server.port,
            "path": server.path,
            "streams": names,
            "first_reader": 0,
            "readers": answers,
            "first_offset": 1,
        }
        load = stack.enter_context(parts.helper("bench.processes.load", plan))
        tokens = round(sizes.w7_rate * (sizes.warm_up_seconds + sizes.seconds))
        provider = stack.enter_context(_provider(parts, tokens, paced=True))
        worker = _worker_for(parts, provider, answers, parts.cores.server, module=worker_module, **settings)
        stack.callback(parts.end, worker)
        connected = load.ask("connect", after="", at_once=256, within_seconds=60.0)
        if connected["refused"] or connected["why"]:
            raise Void(f"readers could not connect: {connected['why']}")
        pids = {"worker": worker, "gateway": server.pid}
        figures = _paced(parts, names, [load], provider, sizes.w7_rate, sizes, pids)
        if not figures["void"]:  # else some may never come
            _wait_for_answers(parts)
    figures["sum_us_per_token"] = sum(figures[f"{part}_us_per_token"] for part in ("worker", "redis", "gateway"))
    figures["sum_of_floor"] = figures["sum_us_per_token"] / figures["floor_us_per_token"]
    return figures


def _peer_answers(sizes: Sizes) -> int:
    return max(1, int(sizes.w7_answers * sizes.peer_share))


def _add(result: Figures, name: str, figures: Figures) -> None:
    result |= {f"{name}_{figure}": value for figure, value in figures.items()}
    result["void"] |= figures["void"]
    result["generators"] |= figures["generators"]


def w8(parts: Parts, start: Callable[[], Server], sizes: Sizes, show: Show) -> Figures:
    """Single requests on an idle system: time to the first event, and to the first token."""
    server = start()
    worker = parts.worker(parts.cores.load, provider="simulated")
    try:
        show(f"W8: {sizes.w8_times} requests, one after the other")
        to_event, to_token = Histogram(), Histogram()
        for _ in range(sizes.w8_times):
            event, token = _one_request(server, {"tokens": 5, "tokens_per_second": 0})
            to_event.record(event)
            to_token.record(token)
        counts = [_counted_request(parts, server) for _ in range(_COUNTED_TIMES)]
    finally:
        _end(parts, worker)
        parts.end(server.pid)
    names = sorted({name for count in counts for name in count["commands"]})
    return {
        "event_p50_ms": to_event.quantile(0.5) / 1000,
        "event_p99_ms": to_event.quantile(0.99) / 1000,
        "token_p50_ms": to_token.quantile(0.5) / 1000,
        "token_p99_ms": to_token.quantile(0.99) / 1000,
        "round_trips": statistics.median(count["round_trips"] for count in counts),
        "commands": {name: statistics.median(count["commands"].get(name, 0) for count in counts) for name in names},
        "void": False,
        "generators": False,
    }


# --- the worker alone


def _flat_out(parts: Parts, worker: int, requests: list[dict[str, Any]], tokens: int) -> Figures:
    with streams.queued(parts.redis, requests) as names:
        counts, cpu, began = RedisCounts(parts.redis), procs.cpu_seconds(worker), time.monotonic()
        streams.enqueue(parts.redis, names)
        _wait_for_answers(parts)
        seconds = time.monotonic() - began
        cpu_seconds = procs.cpu_seconds(worker) - cpu
        redis_seconds, calls = counts.since()
        wrong = _wrong(parts, names, tokens)
    all_tokens = tokens * len(requests)
    return {
        "tokens_per_s": all_tokens / seconds,
        "seconds": seconds,
        "worker_us_per_token": 1e6 * cpu_seconds / all_tokens,
        "worker_utilisation": cpu_seconds / seconds,
        "redis_us_per_token": 1e6 * redis_seconds / all_tokens,
        "tokens_per_entry": all_tokens / max(1, calls.get("xadd", 0)),
        "wrong": wrong,
    }


def _wait_for_answers(parts: Parts) -> None:
    """Waits until the queue is empty: each answer is in its log, and acknowledged. Raises Void."""
    deadline = time.monotonic() + _ANSWER_SECONDS_MAX
    while parts.redis.xlen(REQUESTS):
        if time.monotonic() > deadline:
            raise Void(f"the worker had not answered within {_ANSWER_SECONDS_MAX:g} s")
        time.sleep(0.01)


def _end(parts: Parts, worker: int) -> None:
    """Ends a worker when its queue is empty; otherwise the next worker would take over its answers and be measured with them."""
    _wait_for_answers(parts)
    parts.end(worker)


def _wrong(parts: Parts, names: list[str], tokens: int) -> int:
    """Returns how many logs do not end with `done` right after the last token."""
    pipeline = parts.redis.pipeline(transaction=False)
    for name in names:
        pipeline.xrevrange(log_key(name), count=1)
    last_id = b"1-%d" % (tokens + 1)
    newest: list[Any] = pipeline.execute()
    return sum(not entries or entries[0][0] != last_id or DONE not in entries[0][1] for entries in newest)


def _prompts(count: int) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": f"bench {number}"}]} for number in range(count)]


def _worker_for(parts: Parts, provider: Helper, concurrency: int, cores: set[int] | None, **settings: Any) -> int:
    return parts.worker(
        cores,
        **settings,
        worker_concurrency=concurrency,
        provider="openai",
        openai_base_url=f"http://127.0.0.1:{provider.ready['port']}/v1",
        openai_api_key="bench",
    )


@contextmanager
def _provider(parts: Parts, tokens: int, *, paced: bool) -> Iterator[Helper]:
    with parts.helper("bench.processes.provider", {"tokens": tokens, "paced": paced}) as provider:
        yield provider


# --- at a pace


def _paced(
    parts: Parts,
    names: list[str],
    watchers: list[Helper],
    provider: Helper,
    rate: float,
    sizes: Sizes,
    pids: dict[str, int],
) -> Figures:
    """Waits until all answers have begun, then sends tokens at an exact rate, timed from the provider to the watchers."""
    streams.enqueue(parts.redis, names)
    deadline = time.monotonic() + _CLAIMED_SECONDS_MAX
    while provider.ask("status")["waiting"] < len(names):
        if time.monotonic() > deadline:
            raise Void(f"the worker did not begin {len(names)} answers within {_CLAIMED_SECONDS_MAX:g} s")
        time.sleep(0.05)
    provider.tell({"op": "go", "rate": rate * len(names)})
    began = provider.hear(within_seconds=10)["began"]
    time.sleep(max(0.0, began + sizes.warm_up_seconds - time.monotonic()))
    counts = RedisCounts(parts.redis)
    for watcher in watchers:
        watcher.ask("mark")
    before = {name: procs.cpu_seconds(pid) for name, pid in pids.items()}
    result = provider.hear(within_seconds=600)
    cuts = [watcher.ask("cut") for watcher in watchers]
    used = {name: procs.cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    redis_seconds, calls = counts.since()
    drains = [watcher.ask("drain", last=result["last"], within_seconds=20.0) for watcher in watchers]
    latency, faults = account_of(drains)
    events, seconds = sum(cut["events"] for cut in cuts), cuts[0]["seconds"]
    lag_p99_ms = Histogram.load(result["lag_us"]).quantile(0.99) / 1000
    busiest = max(result["utilisation"], *(cut["utilisation"] for cut in cuts))
    return {
        "tokens_per_s": events / seconds,
        **latency.milliseconds(),
        **{f"{name}_us_per_token": 1e6 * used[name] / max(1, events) for name in pids},
        **{f"{name}_utilisation": used[name] / seconds for name in pids},
        "redis_us_per_token": 1e6 * redis_seconds / max(1, events),
        "tokens_per_entry": events / max(1, calls.get("xadd", 0)),
        "floor_us_per_token": result["send_us_per_token"],
        "provider_lag_p99_ms": lag_p99_ms,
        "provider_utilisation": result["utilisation"],
        "load_utilisation": max(cut["utilisation"] for cut in cuts),
        **faults,
        "void": any(faults.values()),
        "generators": busiest > BUSY or lag_p99_ms > 20.0,
    }


# --- one request


def _one_request(server: Server, simulate: dict[str, Any]) -> tuple[int, int]:
    """Returns the µs from a request to its first event and to its first token, over two open connections."""
    with _connection(server) as create, _connection(server) as follow:
        began = time.monotonic_ns()
        stream_id = _create(create, simulate)
        event = token = 0
        received = _follow(follow, stream_id)
        while not token:
            data = follow.recv(65_536)
            now = time.monotonic_ns()
            received += data
            event = event or (_FIRST in received and now) or 0
            token = (_TOKEN in received and now) or 0
            if not data:
                raise Void(f"a stream ended before its first token: {received[-300:]!r}")
        return (event - began) // 1000, (token - began) // 1000


def _counted_request(parts: Parts, server: Server) -> dict[str, Any]:
    """Counts Redis's commands and round trips from a request to its first event. The answer stalls there, so nothing else counts.

    Round trips are Redis's count of reads from clients: commands sent together are read at once.
    """
    with _connection(server) as create, _connection(server) as follow:
        reads, counts = _reads(parts), RedisCounts(parts.redis)
        stream_id = _create(create, {"tokens": 5, "stall_after": 0})
        received = _follow(follow, stream_id)
        while _FIRST not in received:
            received += follow.recv(65_536)
        commands = counts.since()[1]
        round_trips = _reads(parts) - reads
        create.sendall(
            f"POST /v1/streams/{stream_id}/cancel HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode()
        )
        _response(create)
    for command in ("info", "client|list"):
        commands.pop(command, None)
    return {"round_trips": round_trips - _OWN_READS, "commands": commands}


_OWN_READS = 5
"""Reads that the counting itself causes: two INFO before, two after, and the last count."""


def _reads(parts: Parts) -> int:
    stats: Any = parts.redis.info("stats")
    return int(stats.get("total_reads_processed", 0))


def _connection(server: Server) -> socket.socket:
    sock = socket.create_connection((server.host, server.port), timeout=20.0)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _create(sock: socket.socket, simulate: dict[str, Any]) -> str:
    body = orjson.dumps({"model": "bench", "messages": [{"role": "user", "content": "hi"}], "simulate": simulate})
    head = f"POST /v1/streams HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body)
    return str(orjson.loads(_response(sock))["id"])


def _follow(sock: socket.socket, stream_id: str) -> bytes:
    sock.sendall(f"GET /v1/streams/{stream_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return b""


def _response(sock: socket.socket) -> bytes:
    """Returns the body of a response with a Content-Length. Raises Void if it is not a success."""
    received = b""
    while True:
        data = sock.recv(65_536)
        received += data
        head, blank, body = received.partition(b"\r\n\r\n")
        if not data:
            raise Void("the gateway closed the connection")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        if blank and len(body) >= length:
            if not head.startswith(b"HTTP/1.1 2"):
                raise Void(f"the gateway answered {head[:30]!r} {body[:200]!r}")
            return body
