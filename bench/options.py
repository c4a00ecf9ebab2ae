"""What `midstream bench` can be told. Nothing heavy is imported here: every `midstream --help` reads it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

WORKLOADS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8")
GUARD = "guard"
SUMMARY = "Measure Midstream, beside the ordinary way to do it: workloads W1 to W8, or `guard` against regressions."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workloads",
        nargs="*",
        metavar="W1...W8|guard",
        type=_workload,
        help="what to measure (W1 to W8); guard: count what an event costs, and fail where that is too much",
    )
    parser.add_argument("--quick", action="store_true", help="everything in small, once, in about a minute")
    parser.add_argument(
        "--growth", action="store_true", help="cost per event over numbers of streams, and over history"
    )
    parser.add_argument("--faces", action="store_true", help="W1 through each face: its cost beside the native one's")
    parser.add_argument("--url", metavar="URL", help="measure this running gateway (W1 to W4; with --redis)")
    parser.add_argument("--redis", metavar="URL", help="use this Redis, and not an embedded Valkey")
    parser.add_argument(
        "--pid", action="append", default=[], metavar="gateway|redis=PID", help="with --url: whose cost is counted"
    )
    parser.add_argument("--peer", choices=("naive", "none"), default=None, help="what to compare with (naive)")
    parser.add_argument("--runs", type=_number(1, 20, whole=True), metavar="N", help="how often (3; quick: 1)")
    parser.add_argument("--rate", type=_number(1, 2_000_000), metavar="N", help="W1: tokens/s in all")
    parser.add_argument("--readers", type=_number(1, 20_000, whole=True), metavar="N", help="W1 to W4: readers")
    parser.add_argument("--seconds", type=_number(0.5, 600), metavar="S", help="how long each rate is measured")
    parser.add_argument(
        "--tokens-per-entry", type=_number(1, 64, whole=True), metavar="N", help="W1: tokens per log entry (1)"
    )
    parser.add_argument(
        "--load-processes", type=_number(1, 16, whole=True), metavar="N", help="processes of readers (by the cores)"
    )
    parser.add_argument(
        "--cores", metavar="server=1,load=0", help="who runs on which cores (the last; all others); 2+3 for several"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw latency against rate (W1, W2)")


def _workload(text: str) -> str:
    for name in (*WORKLOADS, GUARD):
        if text.lower() == name.lower():
            return name
    raise argparse.ArgumentTypeError(f"{', '.join(WORKLOADS)} or {GUARD} is wanted, not {text!r}")


def _number(least: float, most: float, *, whole: bool = False) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value: float = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            kind = "a whole number" if whole else "a number"
            raise argparse.ArgumentTypeError(f"{kind} from {least:g} to {most:g} is wanted, not {text!r}")
        return value

    return parse
