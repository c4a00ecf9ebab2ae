"""Plots latency against rate, Midstream's and the peer's, as a PNG."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.report import TITLES
from shared.errors import Unusable

_COLOURS = ("#1f6feb", "#c2410c")
_LIMIT_MS = 250


def plot(results: dict[str, Any], path: Path, caption: str) -> None:
    """Plots the workloads that were driven to their ceiling: W1 and W2. Raises Unusable."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Unusable("--plot needs matplotlib: pip install '.[bench]'") from None
    curves = {name: result["sides"] for name, result in results.items() if _drawn(result["sides"])}
    if not curves:
        raise Unusable("there is nothing to plot: only W1 and W2 have a curve of latency against rate")
    figure = Figure(figsize=(6.2 * len(curves), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (name, sides) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), number + 1)
        for (side, summary), colour in zip(sides.items(), _COLOURS, strict=False):
            steps = [step for step in _middle(summary["runs"])["curve"] if step["events"]]
            steps.sort(key=lambda step: float(step["offered_per_s"]))
            rates = [step["offered_per_s"] for step in steps]
            for quantile, style in (("p50_ms", "--"), ("p99_ms", "-")):
                values = [max(0.01, step[quantile]) for step in steps]
                label = f"{side}, {'median' if quantile == 'p50_ms' else '99 %'}"
                axes.plot(rates, values, style, color=colour, marker="o", markersize=3.5, label=label)
        axes.axhline(_LIMIT_MS, color="#999999", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", yscale="log", title=f"{name}: {TITLES[name]}")
        axes.set_xlabel("events per second offered")
        axes.set_ylabel("latency, ms")
        axes.grid(visible=True, which="major", color="#e5e5e5")
        axes.legend(fontsize=8)
    figure.supxlabel(caption, fontsize=7, color="#666666")
    try:
        figure.savefig(path, format="png", dpi=140)
    except OSError as error:
        raise Unusable(f"--plot={path}: {error.strerror or error}") from None


def _drawn(sides: dict[str, Any]) -> bool:
    return all("curve" in run for side in sides.values() for run in side["runs"])


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median ceiling."""
    middle = statistics.median_low([run["ceiling_per_s"] for run in runs])
    return next(run for run in runs if run["ceiling_per_s"] == middle)
