"""`midstream bench guard`: counts what an event costs, and compares the counts with generous bounds.

A count does not depend on how fast or busy the machine is. The only figures from time are two ratios, each the median of
several: the gateway's CPU per event, and all CPU per token from the provider to the reader, over the peer's. Both sides are
measured alternately at the same rate.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass

from bench.processes import procs
from bench.processes.parts import ORDINARY_WORKER, OUR_WORKER, Parts, Server, has_peer
from bench.sizes import QUICK
from bench.workloads.follow import Following, account_of, following
from bench.workloads.streams import RedisCounts
from bench.workloads.whole import whole_path

_STREAMS = 100
_RATE = 4000.0
_SECONDS, _WARM_UP_SECONDS = 2.0, 0.5
_TIMES = 3
_READERS = 100
_BURST = 2000
"""Tokens published at once to readers of one stream: 200,000 events, too many to be sent one by one."""
_ANSWERS = 60
"""At 20 tokens a second each, the ordinary way's worker serves them without filling its core."""
_ANSWERS_SIZES = dataclasses.replace(QUICK, seconds=_SECONDS, warm_up_seconds=_WARM_UP_SECONDS)
_STORM_READERS, _STORM_EVENTS, _STORM_RESUMES_AT = 100, 3000, 500
"""Readers resume further back than one read of a log goes, so that all of them get its pages."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A counted figure, its upper bound, and what it means if the bound is exceeded."""

    name: str
    counted: float
    most: float
    why: str

    @property
    def held(self) -> bool:
        return self.counted <= self.most


def guard(parts: Parts, *, quick: bool = False) -> int:
    """Runs every part; returns 0 if all bounds hold, else 1."""
    times = 1 if quick else _TIMES
    return judge([*steady(parts, times), *burst(parts), *storm(parts), *whole_path_cost(parts, times)])


def judge(facts: list[Fact]) -> int:
    """Prints each fact beside its bound; returns 1 if a bound is exceeded, else 0."""
    width = max(len(fact.name) for fact in facts)
    for fact in facts:
        sign = "ok  " if fact.held else "OVER"
        print(f"{sign} {fact.name.ljust(width)}  {fact.counted:10.4g}  of at most {fact.most:g}" + _reason(fact))
    return 0 if all(fact.held for fact in facts) else 1


def _reason(fact: Fact) -> str:
    return "" if fact.held else f"\n     {fact.why}"


def steady(parts: Parts, times: int) -> list[Fact]:
    """Counts at a steady rate, where each stream has one reader; measures Midstream and the peer in turn."""
    with_peer = has_peer()
    ratios, faults = [], 0
    reads = wire_bytes = 0.0
    for _ in range(times):
        costs = []
        for start in (parts.gateway, parts.naive) if with_peer else (parts.gateway,):
            server = start()
            with following(parts, server, count=_STREAMS, readers=_STREAMS) as run:
                figures = run.measure(_RATE, seconds=_SECONDS, warm_up_seconds=_WARM_UP_SECONDS)
            parts.end(server.pid)
            costs.append(figures["server_us_per_event"])
            if len(costs) == 1:
                faults += figures["void"]
                reads = figures["redis_calls"].get("xrange", 0) / max(1, figures["events"])
                wire_bytes = figures["wire_bytes_per_event"]
        if with_peer:
            ratios.append(costs[0] / costs[1])
    facts = [
        Fact("steady: runs with lost, doubled or disordered events", faults, 0, "a reader did not get its stream"),
        Fact("steady: log reads per event", reads, 0.02, "a pushed entry must not be read from the log as well"),
        Fact("steady: bytes on the wire per event", wire_bytes, 90, "an event (60 bytes) or its framing has grown"),
    ]
    if with_peer:
        ratio = statistics.median(ratios)
        why = "the gateway's CPU per event has come near the ordinary way's; it was 0.4 times that"
        facts.append(Fact("steady: CPU per event, of the ordinary way's", ratio, 0.8, why))
    return facts


def burst(parts: Parts) -> list[Fact]:
    """Counts in a burst, where several events must leave in one write and no memory may be kept for them."""
    server = parts.gateway()
    with following(parts, server, count=1, readers=_READERS) as run:
        _one_burst(run, server)
        before = procs.usage(server.pid) if server.pid else procs.Usage()
        counts = RedisCounts(parts.redis)
        events, reads, faults = _one_burst(run, server)
        after = procs.usage(server.pid) if server.pid else procs.Usage()
        log_reads = counts.since()[1].get("xrange", 0)
    parts.end(server.pid)
    return [
        Fact("burst: lost, doubled or disordered events", faults, 0, "a reader did not get its stream"),
        Fact(
            "burst: reads by readers per event", reads / events, 0.25, "events leave one by one although several wait"
        ),
        Fact(
            "burst: write() calls per event",
            (after.writes - before.writes) / events,
            0.25,
            "the gateway writes events one by one although several wait",
        ),
        Fact(
            "burst: log reads per event",
            log_reads / events,
            0.01,
            "readers that fell behind must share pages of the log",
        ),
        Fact(
            "burst: bytes of memory kept per event",
            1024 * max(0, after.uss_kb - before.uss_kb) / events,
            40,
            "memory is kept for every event sent: a second burst must fit into the memory of the first",
        ),
    ]


def _one_burst(run: Following, server: Server) -> tuple[int, int, int]:
    """Publishes one burst; returns the events received, the reads that this took, and the faults."""
    run.ask_all("mark")
    last = run.publish(0, rounds=_BURST)["last"]
    drains = run.ask_all("drain", last=last, within_seconds=30.0, wait_seconds=60.0)
    cuts = run.ask_all("cut")
    _, faults = account_of(drains)
    time.sleep(0.2)  # until the burst's memory is freed
    return sum(cut["events"] for cut in cuts), sum(cut["reads"] for cut in cuts), sum(faults.values())


def storm(parts: Parts, **settings: object) -> list[Fact]:
    """Counts when all readers resume at once at one place of one log, on a gateway with these settings."""
    server = parts.gateway(**settings)
    with following(
        parts,
        server,
        count=1,
        readers=_STORM_READERS,
        history=_STORM_EVENTS,
        resume_at=_STORM_RESUMES_AT,
    ) as run:
        counts = RedisCounts(parts.redis)
        after = f"1-{_STORM_RESUMES_AT}"
        storms = run.ask_all("storm", after=after, last=_STORM_EVENTS, within_seconds=30.0, wait_seconds=60.0)
        log_reads = counts.since()[1].get("xrange", 0)
    parts.end(server.pid)
    faults = sum(account_of(storms)[1].values())
    return [
        Fact(
            "storm: lost, doubled or disordered events", faults, 0, "a reader did not get the events that it had missed"
        ),
        Fact(
            "storm: log reads for all readers", log_reads, 25, "readers that resume at one place must share its pages"
        ),
    ]


def whole_path_cost(parts: Parts, times: int) -> list[Fact]:
    """Measures the CPU of worker, Redis and gateway per token, from the provider to the reader, Midstream and the peer in turn.

    Empty without the peer: there is nothing to compare with.
    """
    if not has_peer():
        return []
    ratios, faults = [], 0
    for _ in range(times):
        ours = whole_path(parts, parts.gateway, OUR_WORKER, _ANSWERS, _ANSWERS_SIZES)
        peer = whole_path(parts, parts.naive, ORDINARY_WORKER, _ANSWERS, _ANSWERS_SIZES)
        faults += ours["void"] + peer["void"]
        ratios.append(ours["sum_us_per_token"] / peer["sum_us_per_token"])
    why = "worker, Redis and gateway together have come near the ordinary way's cost; it was 0.3 times that"
    return [
        Fact("whole path: runs with lost, doubled or disordered events", faults, 0, "a reader did not get its stream"),
        Fact("whole path: CPU per token, of the ordinary way's", statistics.median(ratios), 0.7, why),
    ]
