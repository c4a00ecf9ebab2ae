"""How the cost of an event grows with the number of streams and the length of their logs. It should not."""

from __future__ import annotations

from collections.abc import Callable

from bench.processes.parts import Parts, Server
from bench.progress import Show
from bench.sizes import Sizes
from bench.workloads.follow import Figures, following


def growth(parts: Parts, start: Callable[[], Server], sizes: Sizes, show: Show, *, load_processes: int) -> Figures:
    """Measures CPU per event at one rate: over growing numbers of streams with one reader each, then over growing logs."""
    result: Figures = {"void": False, "generators": False}
    shapes = [(f"streams_{count}", count, 0) for count in sizes.growth_streams]
    shapes += [(f"history_{events}", sizes.growth_history_streams, events) for events in sizes.growth_history]
    for name, count, history in shapes:
        server = start()
        show(f"growth: {count} streams, {history} events of history")
        with following(
            parts, server, count=count, readers=count, history=history, load_processes=load_processes
        ) as run:
            figures = run.measure(sizes.growth_rate, seconds=sizes.seconds, warm_up_seconds=sizes.warm_up_seconds)
        parts.end(server.pid)
        for figure in ("server_us_per_event", "redis_us_per_event", "p50_ms", "p99_ms", "load_utilisation"):
            result[f"{name}_{figure}"] = figures[figure]
        result["void"] |= figures["void"]
        result["generators"] |= figures["generators"]
    return result
