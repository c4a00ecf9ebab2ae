"""W1 to W4: what readers cost, of Midstream and of the peer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bench.processes import procs
from bench.processes.parts import Parts, Server
from bench.progress import Show
from bench.sizes import Sizes
from bench.workloads.follow import BUSY, Figures, Following, account_of, following
from bench.workloads.streams import RedisCounts

_CEILING_P99_MS = 250.0
_DELIVERED = 0.9
"""The rate of a step was too high if its readers got less than this share of the events in time."""
_TOKENS_LEAST = 5
"""A step with fewer tokens shows nothing."""
_READ_COMMANDS = ("xrange", "xread")
"""Commands that read a log. XREVRANGE is left out: the script that notes deliveries calls it, too."""


def w1(parts: Parts, server: Server, sizes: Sizes, show: Show, *, base_rate: float, load_processes: int) -> Figures:
    """Many streams with one reader each: at a fixed rate, then at the highest possible."""
    more: dict[str, Any] = {"load_processes": load_processes, "tokens_per_entry": sizes.tokens_per_entry}
    with following(parts, server, count=sizes.w1_streams, readers=sizes.w1_streams, **more) as run:
        return {**_fixed(run, sizes.w1_rate, sizes, show), **_ceiling(run, base_rate, sizes, show, per_token=1)}


def w2(parts: Parts, server: Server, sizes: Sizes, show: Show, *, base_rate: float, load_processes: int) -> Figures:
    """One stream with many readers: at a fixed rate, then at the highest possible."""
    with following(parts, server, count=1, readers=sizes.w2_readers, load_processes=load_processes) as run:
        fixed = _fixed(run, sizes.w2_rate, sizes, show)
        return {**fixed, **_ceiling(run, base_rate, sizes, show, per_token=sizes.w2_readers)}


def w3(parts: Parts, server: Server, sizes: Sizes, show: Show, *, load_processes: int) -> Figures:
    """Readers that resume at once from the middle: all of one stream, then each of its own."""
    result: Figures = {}
    for name, count in (("one", 1), ("own", sizes.w3_readers)):
        show(f"W3 {server.name}: {sizes.w3_readers} readers come back, {name}")
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
            seconds = max(storm["seconds"] for storm in storms)
            events = sum(storm["events"] for storm in storms)
            result.update(
                {
                    f"{name}_seconds": seconds,
                    f"{name}_events_per_s": events / max(seconds, 0.001),
                    f"{name}_us_per_event": 1e6 * cpu_used / max(1, events) if server.pid else None,
                    f"{name}_redis_reads": sum(calls.get(command, 0) for command in _READ_COMMANDS),
                    f"{name}_load_utilisation": max(storm["utilisation"] for storm in storms),
                    f"{name}_faults": faults,
                }
            )
    result["void"] = any(any(result[f"{name}_faults"].values()) for name in ("one", "own"))
    result["generators"] = max(result["one_load_utilisation"], result["own_load_utilisation"]) > BUSY
    return result


def w4(parts: Parts, start: Callable[[], Server], sizes: Sizes, show: Show, *, load_processes: int) -> Figures:
    """Readers of silent streams: memory per reader, and CPU of all; all of one stream, then each of its own, on a fresh server."""
    result: Figures = {}
    faults: dict[str, int] = {}
    for name, count in (("one", 1), ("own", sizes.w4_readers)):
        server = start()
        if server.pid is None:
            raise LookupError(
                "the gateway's process is not on this machine, or /proc does not show it: give --pid gateway=PID"
            )
        show(f"W4 {server.name}: {sizes.w4_readers} idle readers, {name}")
        with following(
            parts, server, count=count, readers=sizes.w4_readers, connect=False, load_processes=load_processes
        ) as run:
            before = procs.usage(server.pid)
            run.connect()
            time.sleep(min(2.0, sizes.w4_seconds))  # until the buffers of connecting are freed
            cpu, began = procs.cpu_seconds(server.pid), time.monotonic()
            time.sleep(sizes.w4_seconds)
            busy = (procs.cpu_seconds(server.pid) - cpu) / (time.monotonic() - began)
            after = procs.usage(server.pid)
            _, faults = account_of(run.ask_all("drain", last=0, within_seconds=0.0))
            for kind in ("rss", "pss", "uss"):
                grown = getattr(after, f"{kind}_kb") - getattr(before, f"{kind}_kb")
                result[f"{name}_{kind}_kb_per_reader"] = grown / sizes.w4_readers
            result[f"{name}_cpu_percent"] = 100 * busy
            result[f"{name}_faults"] = faults
        parts.end(server.pid)
    result["void"] = any(any(result[f"{name}_faults"].values()) for name in ("one", "own"))
    result["generators"] = False
    return result


def _fixed(run: Following, rate: float, sizes: Sizes, show: Show) -> Figures:
    show(f"{run.name}: {rate:,.0f} tokens/s")
    return run.measure(rate, seconds=sizes.seconds, warm_up_seconds=sizes.warm_up_seconds)


def _ceiling(run: Following, base_rate: float, sizes: Sizes, show: Show, *, per_token: int) -> Figures:
    """Searches the highest rate with a 99th percentile below 250 ms; returns it, and all steps as a curve."""
    curve: list[Figures] = []
    best, limit = 0.0, "not reached"
    good_rate = bad_rate = 0.0
    rate, between = base_rate, sizes.ramp_between
    for _ in range(sizes.ramp_steps):
        show(f"{run.name}: up to {rate * per_token:,.0f} events/s")
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
                break  # its readers would begin the next step with a backlog
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
    """Returns what limited a step, since that need not be the server."""
    if step["generators"]:
        return "the load generator"
    if step["redis_utilisation"] > 0.9:
        return "Redis"
    if step["server_utilisation"] is not None and step["server_utilisation"] < BUSY:
        return "neither (the server had room)"
    return "the server"


def _cpu(server: Server) -> float:
    return procs.cpu_seconds(server.pid) if server.pid else 0.0
