"""The options of `midstream bench`. Every `midstream --help` imports this module, so it imports nothing heavy."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

WORKLOADS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8")
GUARD = "guard"
SUMMARY = "Measure Midstream beside the ordinary way: workloads W1 to W8, or `guard` against regressions."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workloads",
        nargs="*",
        metavar="W1...W8|guard",
        type=_workload,
        help="what to measure (default W1 to W8); guard: count what an event costs, and fail if it is too much",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, one run, about a minute")
    parser.add_argument(
        "--growth", action="store_true", help="cost per event by number of streams, and by length of history"
    )
    parser.add_argument("--faces", action="store_true", help="W1 through each face: cost relative to the native one")
    parser.add_argument("--url", metavar="URL", help="measure this running gateway (W1 to W4 and W6; with --redis)")
    parser.add_argument("--redis", metavar="URL", help="use this Redis instead of an embedded Valkey")
    parser.add_argument(
        "--pid",
        action="append",
        default=[],
        metavar="gateway|redis=PID",
        help="with --url: the processes whose cost is counted",
    )
    parser.add_argument("--peer", choices=("naive", "none"), default=None, help="what to compare with (naive)")
    parser.add_argument(
        "--runs", type=_number(1, 20, whole=True), metavar="N", help="runs of each workload (3; quick: 1)"
    )
    parser.add_argument("--rate", type=_number(1, 2_000_000), metavar="N", help="W1: tokens/s over all streams")
    parser.add_argument("--readers", type=_number(1, 20_000, whole=True), metavar="N", help="W1 to W4: readers")
    parser.add_argument("--seconds", type=_number(0.5, 600), metavar="S", help="how long to measure each rate")
    parser.add_argument(
        "--tokens-per-entry", type=_number(1, 64, whole=True), metavar="N", help="W1: tokens per log entry (1)"
    )
    parser.add_argument(
        "--load-processes",
        type=_number(1, 16, whole=True),
        metavar="N",
        help="reader processes (by the number of cores)",
    )
    parser.add_argument(
        "--cores",
        metavar="server=1,load=0",
        help="cores of the server and of all else (the last; all others); 2+3 for several",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="plot latency against rate (W1, W2)")


def _workload(text: str) -> str:
    for name in (*WORKLOADS, GUARD):
        if text.lower() == name.lower():
            return name
    raise argparse.ArgumentTypeError(f"must be {', '.join(WORKLOADS)} or {GUARD}, not {text!r}")


def _number(least: float, most: float, *, whole: bool = False) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value: float = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            kind = "a whole number" if whole else "a number"
            raise argparse.ArgumentTypeError(f"must be {kind} from {least:g} to {most:g}, not {text!r}")
        return value

    return parse
