"""Connects readers to streams, publishes at a rate for a while, and collects the figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from bench.histogram import Histogram
from bench.processes import procs
from bench.processes.control import Helper
from bench.processes.parts import Parts, Server
from bench.workloads import streams
from bench.workloads.streams import HELD, RedisCounts
from shared.errors import MidstreamError

BUSY = 0.8
"""A measuring process that is busier than this, as a share of its core, distorts the figures."""
LATE_MS = 20.0
"""A publisher whose 99th percentile is later than this distorts the figures, too."""
_CONNECT_SECONDS = 60.0
_DRAIN_SECONDS_MAX = 45.0
"""How long readers may take to get what was published; an event that comes later counts as missing."""
_FAULTS = ("missing", "doubled", "out_of_order", "strangers", "closed", "refused", "broken")

Figures = dict[str, Any]


class Void(MidstreamError):
    """The workload failed, so that there is nothing to measure."""


class Following:
    """Readers, and a publisher for their streams."""

    def __init__(
        self,
        parts: Parts,
        server: Server,
        names: list[str],
        loads: list[Helper],
        publisher: Helper,
        readers_per: int,
    ) -> None:
        self._parts = parts
        self._server = server
        self.name = server.name
        self.streams = names
        self.loads = loads
        self._publisher = publisher
        self._readers_per_stream = readers_per

    def measure(self, rate: float, *, seconds: float, warm_up_seconds: float) -> Figures:
        """Publishes `rate` tokens a second over all streams; returns the figures. Raises Gone."""
        order = {"op": "run", "rate": rate, "seconds": warm_up_seconds + seconds, "rounds": 0}
        self._publisher.tell(order)
        began = self._publisher.hear(within_seconds=10)["began"]
        sleep_until(began + warm_up_seconds)
        before, calls = self._usage(), RedisCounts(self._parts.redis)
        self.ask_all("mark")
        sleep_until(began + warm_up_seconds + seconds)
        cuts = self.ask_all("cut")
        after, (redis_seconds, commands) = self._usage(), calls.since()
        published = self._publisher.hear(within_seconds=60 + 5 * seconds)
        drains = self.ask_all(
            "drain", last=published["last"], within_seconds=_DRAIN_SECONDS_MAX, wait_seconds=2 * _DRAIN_SECONDS_MAX
        )
        return self._figures(rate, cuts, drains, published, after - before, redis_seconds, commands)

    def fill(self, rounds: int) -> int:
        """Appends `rounds` entries to every stream, flat out; returns the last offset."""
        return int(self.publish(0, rounds=rounds)["last"])

    def publish(self, rate: float, *, rounds: int) -> Figures:
        """Appends `rounds` entries to every stream at `rate` tokens a second; returns the publisher's account."""
        self._publisher.tell({"op": "run", "rate": rate, "seconds": 0, "rounds": rounds})
        self._publisher.hear(within_seconds=10)
        return self._publisher.hear(within_seconds=600)

    def connect(self, *, after: str = "", at_once: int = 256) -> int:
        """Connects all readers; returns their number. Raises Void if one cannot connect."""
        answers = self.ask_all(
            "connect", after=after, at_once=at_once, within_seconds=_CONNECT_SECONDS, wait_seconds=90.0
        )
        failed = [answer for answer in answers if answer["refused"] or answer["why"]]
        if failed:
            raise Void(f"{self._server.name}: readers could not connect: {failed[0]['why']}")
        return sum(answer["connected"] for answer in answers)

    def ask_all(self, op: str, *, wait_seconds: float = 30.0, **arguments: Any) -> list[dict[str, Any]]:
        """Sends one order to all reader processes at the same time; returns their answers."""
        for load in self.loads:
            load.tell({"op": op, **arguments})
        return [load.hear(within_seconds=wait_seconds) for load in self.loads]

    def _usage(self) -> float:
        return procs.cpu_seconds(self._server.pid) if self._server.pid else 0.0

    def _figures(
        self,
        rate: float,
        cuts: list[dict[str, Any]],
        drains: list[dict[str, Any]],
        published: dict[str, Any],
        cpu_seconds: float,
        redis_seconds: float,
        commands: dict[str, int],
    ) -> Figures:
        events = sum(cut["events"] for cut in cuts)
        seconds = max(cut["seconds"] for cut in cuts)
        latency, faults = account_of(drains)
        lag = Histogram.load(published["lag_us"])
        offered = rate * self._readers_per_stream
        load_busy = max(cut["utilisation"] for cut in cuts)
        lag_p99_ms = lag.quantile(0.99) / 1000
        per_event = 1e6 / max(1, events)
        return {
            "offered_per_s": offered,
            "events_per_s": events / seconds,
            "events": events,
            **latency.milliseconds(),
            "server_us_per_event": cpu_seconds * per_event if self._server.pid else None,
            "server_utilisation": cpu_seconds / seconds if self._server.pid else None,
            "redis_us_per_event": redis_seconds * per_event,
            "redis_utilisation": redis_seconds / seconds,
            "redis_calls": commands,
            "reads_per_event": sum(cut["reads"] for cut in cuts) / max(1, events),
            "wire_bytes_per_event": sum(cut["wire_bytes"] for cut in cuts) / max(1, events),
            "load_utilisation": load_busy,
            "publisher_utilisation": published["utilisation"],
            "publisher_lag_p99_ms": lag_p99_ms,
            "drain_seconds": max(drain["drain_seconds"] for drain in drains),
            "behind": sum(drain["behind"] for drain in drains),
            **faults,
            "void": any(faults.values()),
            "generators": max(load_busy, published["utilisation"]) > BUSY or lag_p99_ms > LATE_MS,
        }


def account_of(drains: list[dict[str, Any]]) -> tuple[Histogram, dict[str, int]]:
    """Adds up latencies and faults of several reader processes. Events that have not come count as missing."""
    latency = Histogram()
    for drain in drains:
        latency.merge(Histogram.load(drain["latency"]))
    names = sorted({name for drain in drains for name in drain["faults"]} | set(_FAULTS))
    faults = {name: sum(drain["faults"].get(name, 0) for drain in drains) for name in names}
    faults["gapped"] = faults["missing"]
    faults["missing"] += sum(drain["lacking"] for drain in drains)
    return latency, faults


@contextmanager
def following(
    parts: Parts,
    server: Server,
    *,
    count: int,
    readers: int,
    connect: bool = True,
    history: int = 0,
    resume_at: int | None = None,
    tokens_per_entry: int = 1,
    load_processes: int = 1,
    padding: int = 0,
    token_of: Callable[[str], str] | None = None,
) -> Iterator[Following]:
    """Spreads `readers` readers over `count` new streams, each with a log of `history` entries of tokens.

    Readers begin after the history; with `resume_at` they are not connected yet, and must resume after that offset.
    With `token_of` each reader sends its stream's token.
    """
    with ExitStack() as stack:
        names = stack.enter_context(streams.begun(parts.redis, count))
        publisher_plan = {
            "redis": parts.redis_url,
            "streams": names,
            "tokens_per_entry": tokens_per_entry,
            "padding": padding,
            "held": HELD,
        }
        publisher = stack.enter_context(parts.helper("bench.processes.publish", publisher_plan))
        first_offset = 1
        following = Following(parts, server, names, [], publisher, max(1, readers // count))
        if history:
            first_offset = following.fill(history) + 1
        if resume_at is not None:
            first_offset, connect = resume_at + 1, False
        share = -(-readers // load_processes)
        for first in range(0, readers, share):
            plan = {
                "host": server.host,
                "port": server.port,
                "path": server.path,
                "streams": names,
                "first_reader": first,
                "readers": min(share, readers - first),
                "first_offset": first_offset,
                "tokens": [token_of(name) for name in names] if token_of is not None else [],
            }
            following.loads.append(stack.enter_context(parts.helper("bench.processes.load", plan)))
        if connect:
            following.connect(after=f"1-{first_offset - 1}" if history else "")
        yield following


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
