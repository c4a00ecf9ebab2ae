"""Summarises runs: medians, spread and ratios, and the table of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.workloads.follow import Figures

PEER = "the ordinary way"
OURS = "Midstream"


@dataclass(frozen=True, slots=True)
class Row:
    figure: str
    label: str
    unit: str = ""
    target: str = ""
    """For the full sizes only, not for --quick."""
    more_is_better: bool = False
    peer_figure: str = ""
    """The peer's figure to compare with; by default the one of the same name."""

    @property
    def beside(self) -> str:
        return self.peer_figure or self.figure


def _sum_row(answers: str, label: str, target: str = "") -> Row:
    """Returns W7's row of the CPU of all three processes. The peer ran with one number of answers only: `equal`."""
    figure = "sum_us_per_token"
    return Row(f"{answers}_{figure}", f"{label}: all CPU per token", "µs", target, peer_figure=f"equal_{figure}")


ROWS: dict[str, list[Row]] = {
    "W1": [
        Row("server_us_per_event", "gateway CPU per event", "µs", "≤ 20"),
        Row("p50_ms", "latency, median", "ms", "≤ 0.3"),
        Row("p99_ms", "latency, 99 %", "ms", "≤ 3"),
        Row("redis_us_per_event", "Redis CPU per event", "µs"),
        Row("ceiling_per_s", "ceiling", "events/s", "≥ 150,000", more_is_better=True),
    ],
    "W2": [
        Row("server_us_per_event", "gateway CPU per event", "µs"),
        Row("p50_ms", "latency, median", "ms"),
        Row("p99_ms", "latency, 99 %", "ms", "≤ 15"),
        Row("ceiling_per_s", "ceiling", "events/s", "≥ 500,000", more_is_better=True),
    ],
    "W3": [
        Row("one_seconds", "of one stream: all caught up", "s", "≤ 0.3"),
        Row("one_redis_reads", "of one stream: Redis reads"),
        Row("own_seconds", "own streams: all caught up", "s", "≤ 1.2"),
        Row("own_redis_reads", "own streams: Redis reads"),
    ],
    "W4": [
        Row("one_pss_kb_per_reader", "of one stream: memory per reader", "KB", "≤ 10"),
        Row("one_cpu_percent", "of one stream: CPU", "%"),
        Row("own_pss_kb_per_reader", "own streams: memory per reader", "KB", "≤ 4"),
        Row("own_cpu_percent", "own streams: CPU", "%", "≤ 1"),
    ],
    "W5": [
        Row("simulated_tokens_per_s", "simulated, flat out", "tokens/s", "≥ 80,000", more_is_better=True),
        Row("simulated_worker_us_per_token", "simulated: worker CPU per token", "µs"),
        Row("own_tokens_per_s", "own generator, flat out", "tokens/s", more_is_better=True),
        Row("own_worker_us_per_token", "own generator: worker CPU per token", "µs"),
        Row("own_thread_tokens_per_s", "own generator in a thread, flat out", "tokens/s", more_is_better=True),
        Row("own_thread_worker_us_per_token", "own generator in a thread: worker CPU per token", "µs"),
        Row("http_tokens_per_s", "over HTTP, flat out", "tokens/s", "≥ 20,000", more_is_better=True),
        Row("http_worker_us_per_token", "over HTTP: worker CPU per token", "µs"),
        Row("paced_worker_us_per_token", "at a pace: worker CPU per token", "µs"),
        Row("paced_p50_ms", "at a pace: added latency, median", "ms"),
        Row("paced_p99_ms", "at a pace: added latency, 99 %", "ms", "≤ 3"),
    ],
    "W6": [
        *(
            Row(f"us_per_token_{unit}", f"{unit} per entry: Redis CPU per token", "µs", target)
            for unit, target in ((1, "≤ 6"), (4, ""), (16, "≤ 2.5"))
        ),
        *(Row(f"us_per_token_{unit}_unheard", f"{unit} per entry, nobody listens", "µs") for unit in (1, 4, 16)),
        *(
            Row(f"bytes_per_token_{unit}", f"{unit} per entry: memory per token", "bytes", "≤ 30")
            for unit in (1, 4, 16)
        ),
    ],
    "W7": [
        Row("full_tokens_per_s", "all answers", "tokens/s"),
        Row("full_tokens_per_entry", "all answers: tokens per entry"),
        Row("full_p50_ms", "all answers: provider to reader, median", "ms", "≤ 2"),
        Row("full_p99_ms", "all answers: provider to reader, 99 %", "ms", "≤ 6"),
        Row("full_worker_us_per_token", "all answers: worker CPU per token", "µs"),
        Row("full_redis_us_per_token", "all answers: Redis CPU per token", "µs"),
        Row("full_gateway_us_per_token", "all answers: gateway CPU per token", "µs"),
        _sum_row("full", "all answers", "≥ 6 × cheaper"),
        Row("full_floor_us_per_token", "all answers: the floor, to make and write each token", "µs"),
        Row("full_sum_of_floor", "all answers: all CPU, in floors", "", "≤ 4.5"),
        Row("pace_tokens_per_entry", "with a pace of 100 ms: tokens per entry"),
        Row("pace_p50_ms", "with a pace of 100 ms: median", "ms"),
        _sum_row("pace", "with a pace of 100 ms", "≤ 22"),
        Row("half_p50_ms", "half the answers: median", "ms", "≤ 1"),
        Row("half_p99_ms", "half the answers: 99 %", "ms", "≤ 5"),
        _sum_row("half", "half the answers"),
        Row("equal_tokens_per_s", "at equal rates", "tokens/s", more_is_better=True),
        Row("equal_p50_ms", "at equal rates: median", "ms"),
        Row("equal_p99_ms", "at equal rates: 99 %", "ms"),
        Row("equal_worker_utilisation", "at equal rates: worker", "of a core"),
        Row("equal_worker_us_per_token", "at equal rates: worker CPU per token", "µs"),
        Row("equal_redis_us_per_token", "at equal rates: Redis CPU per token", "µs"),
        Row("equal_gateway_us_per_token", "at equal rates: gateway CPU per token", "µs"),
        _sum_row("equal", "at equal rates"),
    ],
    "W8": [
        Row("event_p50_ms", "create to first event, median", "ms", "≤ 3"),
        Row("event_p99_ms", "create to first event, 99 %", "ms", "≤ 10"),
        Row("token_p50_ms", "create to first token, median", "ms"),
        Row("round_trips", "Redis's reads from clients until then", "", "≤ 3 before it"),
    ],
}
WORKLOADS = tuple(ROWS)


def summed_up(runs: list[Figures]) -> dict[str, Any]:
    """Returns the runs, and for each number in them its median, minimum and maximum."""
    numbers: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers.setdefault(name, []).append(float(value))
    return {
        "runs": runs,
        "medians": {name: statistics.median(values) for name, values in numbers.items()},
        "spread": {name: [min(values), max(values)] for name, values in numbers.items()},
        "void": any(run["void"] for run in runs),
        "generators": any(run["generators"] for run in runs),
        "limit": sorted({str(run["ceiling_limit"]) for run in runs if "ceiling_limit" in run}),
        "notes": sorted({note for run in runs for note in run.get("notes", ())}),
    }


def ratios(workload: str, sides: dict[str, Any]) -> dict[str, float]:
    """Returns how many times better Midstream is than the peer, for each figure; above 1 is better."""
    if PEER not in sides or OURS not in sides:
        return {}
    ours, peer, better = sides[OURS]["medians"], sides[PEER]["medians"], {}
    for row in rows_of(workload, ours):
        if ours.get(row.figure) and peer.get(row.beside):
            ratio = ours[row.figure] / peer[row.beside]
            better[row.figure] = ratio if row.more_is_better else 1 / ratio
    return better


def rows_of(workload: str, medians: dict[str, float]) -> list[Row]:
    if workload in ROWS:
        return ROWS[workload]
    unit = "_server_us_per_event"
    rows = []
    for name in (name.removesuffix(unit) for name in medians if name.endswith(unit)):
        label = name.replace("_", ": ") if workload == "growth" else name
        rows.append(Row(name + unit, label + ": gateway CPU per event", "µs"))
        if name + "_ratio" in medians:
            rows.append(Row(name + "_ratio", label + ": relative to the native face", "×", "≤ 1.3"))
    return rows


def table(results: dict[str, Any], *, targets: bool) -> str:
    """Returns all results as a table of text."""
    lines = []
    with_peer = any(PEER in result["sides"] for result in results.values())
    for workload, result in results.items():
        sides = result["sides"]
        ours = sides[OURS]
        lines += ["", f"{workload}  {TITLES[workload]}"]
        if result.get("error"):
            lines.append(f"    VOID: {result['error']}")
        header = ["", OURS, "spread", *([PEER, "ratio"] if with_peer else []), *(["target"] if targets else [])]
        body = [header]
        for row in rows_of(workload, ours["medians"]):
            if row.figure not in ours["medians"]:
                continue
            low, high = ours["spread"][row.figure]
            cells = [
                row.label,
                _shown(row, row.figure, ours),
                f"{_number(low)} – {_number(high)}" if len(ours["runs"]) > 1 else "",
            ]
            if with_peer:
                peer = sides.get(PEER)
                cells.append(_shown(row, row.beside, peer) if peer and row.beside in peer["medians"] else "")
                ratio = result["ratios"].get(row.figure)
                cells.append(f"{ratio:.1f} ×" if ratio else "")
            if targets:
                cells.append(row.target)
            body.append(cells)
        lines += _columns(body)
        lines += [f"    {name}: {note}" for name, side in sides.items() for note in _notes(side)]
    return "\n".join(lines[1:])


TITLES = {
    "W1": "many streams, a reader each",
    "W2": "one stream, many readers",
    "W3": "readers come back at once, from the middle",
    "W4": "idle readers",
    "W5": "one worker",
    "W6": "Redis, per token",
    "W7": "the whole path",
    "W8": "one request on an idle system",
    "faces": "W1 through each face",
    "growth": "cost per event as streams and history grow",
}


def _notes(side: dict[str, Any]) -> Iterable[str]:
    if side["void"]:
        yield "VOID: events were lost, doubled or out of order, or readers were cut off; the JSON says which"
    if side["generators"]:
        yield "the load generator was busy or late: these figures partly measure it"
    for limit in side["limit"]:
        yield f"the ceiling's limit: {limit}"
    yield from side["notes"]


def _shown(row: Row, figure: str, side: dict[str, Any]) -> str:
    value = side["medians"][figure]
    if row.figure == "ceiling_per_s" and not value:
        return "none of the rates tried"
    bound = "≥ " if row.figure == "ceiling_per_s" and side["limit"] and side["limit"] != ["the server"] else ""
    return f"{bound}{_number(value)} {row.unit}".rstrip() + (" (void)" if side["void"] else "")


def _number(value: float) -> str:
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _columns(body: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in body) for column in range(len(body[0]))]
    return [
        "    " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in body
    ]
