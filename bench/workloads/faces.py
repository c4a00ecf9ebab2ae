"""W1 through each of the gateway's faces: an event may cost at most 1.3 times as much as through the native one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from bench.histogram import Histogram
from bench.processes import procs
from bench.processes.parts import Parts, Server
from bench.progress import Show
from bench.sizes import Sizes
from bench.workloads import streams
from bench.workloads.follow import BUSY, LATE_MS, Figures, Void, account_of, sleep_until
from bench.workloads.streams import HELD
from shared.keys import chat_key

_WEBSOCKET = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bWlkc3RyZWFtIGJlbmNoIQ==\r\n"
NATIVE = "native"
FACES = {
    NATIVE: ("/v1/streams/%s/events", ""),
    "ndjson": ("/v1/streams/%s/events", "Accept: application/x-ndjson\r\n"),
    "text": ("/v1/streams/%s/text", ""),
    "websocket": ("/v1/streams/%s/ws", _WEBSOCKET),
    "prompt": ("/stream?last_event_id=%s/1-0", ""),
    "chat": ("/v1/chat/completions/%s/events", ""),
    "responses": ("/v1/responses/resp_%s?stream=true", ""),
    "ai_sdk": ("/api/chat/%s/stream", ""),
}
"""For each face its path, with %s for the stream's id, and further request headers."""


def faces(parts: Parts, start: Callable[[], Server], sizes: Sizes, show: Show) -> Figures:
    """Measures each face in turn, with the streams, readers and rate of W1, and its cost relative to the native one."""
    result: Figures = {"void": False, "generators": False}
    server = start()
    for name, (path, headers) in FACES.items():
        show(f"faces: {name}")
        figures = _one(parts, server, sizes, path, headers)
        result |= {f"{name}_{figure}": value for figure, value in figures.items()}
        # A very short run may show no tick of the CPU clock.
        if name != NATIVE and result[f"{NATIVE}_server_us_per_event"]:
            result[f"{name}_ratio"] = figures["server_us_per_event"] / result[f"{NATIVE}_server_us_per_event"]
        result["void"] |= figures["void"]
        result["generators"] |= figures["generators"]
    parts.end(server.pid)
    return result


def _one(parts: Parts, server: Server, sizes: Sizes, path: str, headers: str) -> Figures:
    assert server.pid is not None  # `Bench` allows only gateways that it has started
    with ExitStack() as stack:
        names = stack.enter_context(streams.begun(parts.redis, sizes.w1_streams))
        chats = [chat_key("anonymous", name) for name in names]
        parts.redis.mset(dict(zip(chats, names, strict=True)))
        stack.callback(parts.redis.delete, *chats)
        plan = {
            "redis": parts.redis_url,
            "streams": names,
            "tokens_per_entry": sizes.tokens_per_entry,
            "padding": 0,
            "held": HELD,
        }
        publisher = stack.enter_context(parts.helper("bench.processes.publish", plan))
        host = f"{server.host}:{server.port}"
        requests = [f"GET {path % name} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n" for name in names]
        load = stack.enter_context(
            parts.helper("bench.processes.any_face", {"host": server.host, "port": server.port, "requests": requests})
        )
        connected = load.ask("connect", within_seconds=60.0)
        if connected["why"]:
            raise Void(f"a reader of {path} could not connect: {connected['why']}")
        seconds = sizes.warm_up_seconds + sizes.seconds
        publisher.tell({"op": "run", "rate": sizes.w1_rate, "seconds": seconds, "rounds": 0})
        began = publisher.hear(within_seconds=10)["began"]
        sleep_until(began + sizes.warm_up_seconds)
        before = procs.cpu_seconds(server.pid)
        load.ask("mark")
        sleep_until(began + seconds)
        cut = load.ask("cut")
        cpu_seconds = procs.cpu_seconds(server.pid) - before
        published = publisher.hear(within_seconds=60 + 5 * sizes.seconds)
        latency, faults = account_of([load.ask("drain", last=published["last"], within_seconds=20.0)])
    events = max(1, cut["events"])
    busiest = max(cut["utilisation"], published["utilisation"])
    return {
        "events_per_s": events / cut["seconds"],
        **latency.milliseconds(),
        "server_us_per_event": 1e6 * cpu_seconds / events,
        "wire_bytes_per_event": cut["wire_bytes"] / events,
        "load_utilisation": cut["utilisation"],
        **faults,
        "void": any(faults.values()),
        "generators": busiest > BUSY or Histogram.load(published["lag_us"]).quantile(0.99) / 1000 > LATE_MS,
    }
