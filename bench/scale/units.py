"""The inputs: costs that docs/explanation/performance.md measured, the load, and prices. Each can be given on the command line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


def _input(default: float, meaning: str, source: str = "") -> Any:
    return field(default=default, metadata={"meaning": meaning, "source": source})


@dataclass(frozen=True, slots=True)
class Load:
    streams: float = _input(1_000_000, "streams that run at the same time")
    readers_per_stream: float = _input(1, "readers of each")
    tokens_per_second: float = _input(20, "tokens per second of each")
    tokens_per_entry: float = _input(1, "tokens that share an entry of the log")
    tokens_per_answer: float = _input(500, "tokens of an answer, for Redis's memory")
    request_bytes: float = _input(2_000, "bytes of a request, for Redis's memory")
    ended_seconds: float = _input(60, "how long an ended answer stays in Redis (MIDSTREAM_ENDED_TTL_SECONDS)")


_MEASURED, _ESTIMATE = "measured", "estimate"


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU of one core of the machine on which they were measured, and bytes."""

    worker_token_us: float = _input(18.9, "worker: a token, of 1,000 answers with 20 a second each", _MEASURED)
    redis_entry_us: float = _input(6.3, "Redis: an append with publish, of the same", _MEASURED)
    redis_token_us: float = _input(0.03, "Redis: each further token in the entry", _MEASURED)
    gateway_entry_us: float = _input(9.4, "gateway: an entry to one reader, of the same", _MEASURED)
    redis_create_us: float = _input(60.0, "Redis: all commands of a stream besides its tokens, about twelve", _ESTIMATE)
    resume_us: float = _input(200.0, "gateway: the request of a reader who comes back to its own stream", _MEASURED)
    resume_event_us: float = _input(0.6, "gateway: each event that this reader lacks", _MEASURED)
    redis_read_us: float = _input(30.0, "Redis: one read of a log", _ESTIMATE)
    redis_read_event_us: float = _input(0.15, "Redis: each entry of it", _ESTIMATE)
    gateway_reader_kb: float = _input(6.5, "gateway: memory of a reader of a stream of its own", _MEASURED)
    worker_stream_kb: float = _input(25.0, "worker: memory of an answer", _ESTIMATE)
    process_mb: float = _input(60.0, "memory of a process to begin with", _MEASURED)
    redis_token_bytes: float = _input(26.0, "Redis: memory of a token; 17 with four in an entry", _MEASURED)
    event_bytes: float = _input(60.0, "bytes of a token's event", _MEASURED)
    packet_bytes: float = _input(
        101.0, "bytes around the events of an entry: HTTP's chunk, TLS, TCP, IP, Ethernet", _ESTIMATE
    )
    core_share: float = _input(0.7, "how busy a core may be", "a choice")


@dataclass(frozen=True, slots=True)
class Prices:
    """Typical list prices of large clouds, on demand, in US dollars, as known when this was written; they are to be replaced."""

    core_hour: float = _input(0.05, "a core with 4 GB, for an hour")
    gb_hour: float = _input(0.005, "a further GB of memory, for an hour")
    replica_factor: float = _input(2.0, "servers of Redis per master: 2 with one replica each")
    egress_gb: float = _input(0.05, "a GB to the internet")
    zone_gb: float = _input(0.01, "a GB between data centres of one region")


INPUTS = (Load, Costs, Prices)


def with_inputs(values: dict[str, float]) -> tuple[Load, Costs, Prices]:
    """Returns the inputs, some of them replaced. ValueError for a name that is none, or a number that is not above 0."""
    names = {one.name: kind for kind in INPUTS for one in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in names:
            raise ValueError(f"{name} is no input; there are {', '.join(names)}")
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a number above 0, not {value:g}")
    made = [kind(**{name: value for name, value in values.items() if names[name] is kind}) for kind in INPUTS]
    return made[0], made[1], made[2]  # type: ignore[return-value]
