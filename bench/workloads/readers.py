"""W1 to W4: what readers cost. Each is run against Midstream and against the ordinary way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bench.processes import procs
from bench.processes.parts import Parts, Server
from bench.sizes import Sizes
from bench.workloads.follow import BUSY, Figures, Following, account_of, following
from bench.workloads.streams import RedisCounts

_CEILING_P99_MS = 250.0
_DELIVERED = 0.9
"""A step whose readers got less than this share of what was offered, in time, was too much."""
_TOKENS_LEAST = 5
"""Fewer in a step tell nothing."""
Told = Callable[[str], None]
_READ_COMMANDS = ("xrange", "xread")
"""Reads of history. (XREVRANGE is not among them: the script that notes deliveries calls it, too.)"""


def w1(parts: Parts, server: Server, sizes: Sizes, tell: Told, *, base_rate: float, load_processes: int) -> Figures:
    """Many streams, a reader each: at a fixed rate, then at the highest that it bears."""
    more: dict[str, Any] = {"load_processes": load_processes, "tokens_per_entry": sizes.tokens_per_entry}
    with following(parts, server, count=sizes.w1_streams, readers=sizes.w1_streams, **more) as run:
        return {**_fixed(run, sizes.w1_rate, sizes, tell), **_ceiling(run, base_rate, sizes, tell, per_token=1)}


def w2(parts: Parts, server: Server, sizes: Sizes, tell: Told, *, base_rate: float, load_processes: int) -> Figures:
    """One stream, many readers."""
    with following(parts, server, count=1, readers=sizes.w2_readers, load_processes=load_processes) as run:
        fixed = _fixed(run, sizes.w2_rate, sizes, tell)
        return {**fixed, **_ceiling(run, base_rate, sizes, tell, per_token=sizes.w2_readers)}


def w3(parts: Parts, server: Server, sizes: Sizes, tell: Told, *, load_processes: int) -> Figures:
    """Readers that come back all at once, from the middle: all of one stream, and each of its own."""
    told: Figures = {}
    for name, count in (("one", 1), ("own", sizes.w3_readers)):
        tell(f"W3 {server.name}: {sizes.w3_readers} readers come back, {name}")
        with following(
            parts,
            server,
            count=count,
            readers=sizes.w3_readers,
            history=sizes.w3_events,
            resume_at=sizes.w3_events // 2,
            load_processes=load_processes,
        ) as run:
            counts, cpu = RedisCounts(parts.redis), _cpu(server)
            storms = run.ask_all(
                "storm",
                after=f"1-{sizes.w3_events // 2}",
                last=sizes.w3_events,
                within_seconds=120.0,
                wait_seconds=180.0,
            )
            cpu_used = _cpu(server) - cpu
            calls = counts.since()[1]
            _, faults = account_of(storms)
            seconds = max(one["seconds"] for one in storms)
            events = sum(one["events"] for one in storms)
            told.update(
                {
                    f"{name}_seconds": seconds,
                    f"{name}_events_per_s": events / max(seconds, 0.001),
                    f"{name}_us_per_event": 1e6 * cpu_used / max(1, events) if server.pid else None,
                    f"{name}_redis_reads": sum(calls.get(command, 0) for command in _READ_COMMANDS),
                    f"{name}_load_utilisation": max(one["utilisation"] for one in storms),
                    f"{name}_faults": faults,
                }
            )
    told["void"] = any(any(told[f"{name}_faults"].values()) for name in ("one", "own"))
    told["generators"] = max(told["one_load_utilisation"], told["own_load_utilisation"]) > BUSY
    return told


def w4(parts: Parts, start: Callable[[], Server], sizes: Sizes, tell: Told, *, load_processes: int) -> Figures:
    """Readers of silent streams: what each takes of memory, and all together of the processor. Each on a fresh server."""
    told: Figures = {}
    faults: dict[str, int] = {}
    for name, count in (("one", 1), ("own", sizes.w4_readers)):
        server = start()
        if server.pid is None:
            raise LookupError("the gateway's process is not on this machine, or not to be seen: --pid gateway=PID")
        tell(f"W4 {server.name}: {sizes.w4_readers} idle readers, {name}")
        with following(
            parts, server, count=count, readers=sizes.w4_readers, connect=False, load_processes=load_processes
        ) as run:
            before = procs.usage(server.pid)
            run.connect()
            time.sleep(min(2.0, sizes.w4_seconds))  # until the last buffers of the connecting are gone
            cpu, began = procs.cpu_seconds(server.pid), time.monotonic()
            time.sleep(sizes.w4_seconds)
            busy = (procs.cpu_seconds(server.pid) - cpu) / (time.monotonic() - began)
            after = procs.usage(server.pid)
            _, faults = account_of(run.ask_all("drain", last=0, within_seconds=0.0))
            for kind in ("rss", "pss", "uss"):
                grown = getattr(after, f"{kind}_kb") - getattr(before, f"{kind}_kb")
                told[f"{name}_{kind}_kb_per_reader"] = grown / sizes.w4_readers
            told[f"{name}_cpu_percent"] = 100 * busy
            told[f"{name}_faults"] = faults
        parts.end(server.pid)
    told["void"] = any(any(told[f"{name}_faults"].values()) for name in ("one", "own"))
    told["generators"] = False
    return told


def _fixed(run: Following, rate: float, sizes: Sizes, tell: Told) -> Figures:
    tell(f"{run.name}: {rate:,.0f} tokens/s")
    return run.measure(rate, seconds=sizes.seconds, warm_up_seconds=sizes.warm_up_seconds)


def _ceiling(run: Following, base_rate: float, sizes: Sizes, tell: Told, *, per_token: int) -> Figures:
    """The highest rate at which the 99th percentile stays below 250 ms, and the curve on the way to it."""
    curve: list[Figures] = []
    best, limit = 0.0, "not reached"
    good_rate = bad_rate = 0.0
    rate, between = base_rate, sizes.ramp_between
    for _ in range(sizes.ramp_steps):
        tell(f"{run.name}: up to {rate * per_token:,.0f} events/s")
        step = run.measure(rate, seconds=sizes.ramp_seconds, warm_up_seconds=sizes.warm_up_seconds)
        in_time = step["p99_ms"] < _CEILING_P99_MS
        good = (
            in_time
            and step["events"]
            and not step["void"]
            and step["events_per_s"] >= _DELIVERED * step["offered_per_s"]
        )
        curve.append({**{name: value for name, value in step.items() if name != "redis_calls"}, "good": bool(good)})
        if good:
            best, good_rate = max(best, step["events_per_s"]), rate
        else:
            bad_rate, limit = rate, _limit_of(step)
            if step["behind"]:
                break  # they would begin the next step with this one's backlog
        if not bad_rate:
            rate *= sizes.ramp_factor
        elif not good_rate:
            rate /= sizes.ramp_factor
            if rate * sizes.ramp_seconds < _TOKENS_LEAST:
                break
        elif between:
            between -= 1
            rate = (good_rate * bad_rate) ** 0.5
        else:
            break
    faults = any(any(step[name] for name in _GAPS) for step in curve)
    return {"ceiling_per_s": best, "ceiling_limit": limit, "curve": curve, "curve_faults": faults}


_GAPS = ("doubled", "out_of_order", "strangers", "gapped")


def _limit_of(step: dict[str, Any]) -> str:
    """Who could not do more: else the ceiling would be told of the wrong one."""
    if step["generators"]:
        return "the load generator"
    if step["redis_utilisation"] > 0.9:
        return "Redis"
    if step["server_utilisation"] is not None and step["server_utilisation"] < BUSY:
        return "neither (the server had room)"
    return "the server"


def _cpu(server: Server) -> float:
    return procs.cpu_seconds(server.pid) if server.pid else 0.0
