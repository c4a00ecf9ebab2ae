"""Draws the dashboards: `python docs/images/dashboards_png.py [SECONDS]`, with prometheus on the PATH.

A gateway of two processes and two workers run under load for two minutes; after one minute a worker is killed, and
restarted. Prometheus scrapes them and evaluates the expressions of every panel. matplotlib draws the panels, in the
layout of the dashboard's file; Grafana's drawings look different.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import matplotlib
from PIL import Image

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
sys.path.insert(0, str(_ROOT))  # tests.support starts the processes

from tests.support.load import metrics_address, mixed_streams  # noqa: E402
from tests.support.prometheus import Prometheus  # noqa: E402
from tests.support.redis_server import free_port  # noqa: E402
from tests.support.system import System  # noqa: E402

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter  # noqa: E402

_SECONDS = 120.0
_AT_ONCE = 4
_WIDE, _ROW, _COLUMNS = 16.0, 0.42, 24
_UNITS = {"s": "s", "bytes": "B", "percentunit": "%", "ops": "/s", "short": ""}


async def load(system: System, seconds: float) -> None:
    """Creates answers with all outcomes, several at a time; half-way a worker is killed."""
    until = time.monotonic() + seconds

    async def again_and_again() -> None:
        while time.monotonic() < until:
            await mixed_streams(system)

    async def kill_one() -> None:
        await asyncio.sleep(seconds / 2)
        system.workers[0].kill()
        await asyncio.sleep(seconds / 12)
        await system.start_worker(0)

    await asyncio.gather(*(again_and_again() for _ in range(_AT_ONCE)), kill_one())


async def series_of(http: httpx2.AsyncClient, url: str, target: dict[str, Any], start: float, end: float) -> list[Any]:
    expression = target["expr"].replace("$__rate_interval", "15s").replace("$__range", f"{int(end - start)}s")
    response = await http.get(
        f"{url}/api/v1/query_range", params={"query": expression, "start": start, "end": end, "step": 1}
    )
    answer = response.json()
    assert answer["status"] == "success", f"{expression}: {answer}"
    found = []
    for series in answer["data"]["result"]:
        points = [(float(at) - start, float(value)) for at, value in series["values"] if value != "NaN"]
        legend = target.get("legendFormat") or ""
        name = re.sub(r"\{\{(\w+)\}\}", lambda label, series=series: series["metric"].get(label[1], ""), legend)
        found.append(("" if legend == "__auto" else name, points))
    return found


def shown(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{_UNITS.get(unit, '')}".strip()
    if unit == "s" and 0 < abs(value) < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} {_UNITS.get(unit, '')}".strip()


def draw(board: dict[str, Any], panels: list[tuple[dict[str, Any], list[Any]]], seconds: float) -> None:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in panels)
    figure = plt.figure(figsize=(_WIDE, rows * _ROW), facecolor="#f4f5f5")
    for panel, series in panels:
        place, unit = panel["gridPos"], panel["fieldConfig"]["defaults"].get("unit", "short")
        inner = (
            0.040,
            1.3,
            0.95,
            2.3,
        )  # room for title, ticks and legend, in parts of a column and of a row
        left, bottom = place["x"] / _COLUMNS, 1 - (place["y"] + place["h"]) / rows
        width, height = place["w"] / _COLUMNS, place["h"] / rows
        axes = figure.add_axes(
            (left + inner[0], bottom + inner[1] / rows, width - inner[0] - 0.012, height - inner[3] / rows)
        )
        if panel["type"] == "stat":
            axes.axis("off")
            newest = series[0][1][-1][1] if series and series[0][1] else float("nan")
            axes.text(0.42, 0.30, shown(newest, unit), fontsize=19, ha="center", va="center", color="#1f7a4d")
            axes.set_title(panel["title"], fontsize=10, color="#333333")
            continue
        for name, points in series:
            axes.plot([at for at, _ in points], [value for _, value in points], linewidth=1.3, label=name or "–")
        axes.set_title(panel["title"], fontsize=10, color="#333333", loc="left")
        axes.set_xlim(0, seconds)
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # the legend stands above the lines
        axes.tick_params(labelsize=7, colors="#666666")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _, unit=unit: shown(value, unit)))
        axes.grid(color="#e4e4e4")
        for side in axes.spines.values():
            side.set_visible(False)
        if 0 < len(series) <= 8:
            axes.legend(fontsize=7, loc="upper left", frameon=False, ncols=2)
    name = board["uid"].removeprefix("midstream-")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=80)
    plt.close(figure)
    Image.open(picture).convert("RGB").quantize(64).save(_HERE / f"dashboard-{name}.png", optimize=True)


async def main(seconds: float) -> None:
    settings = {"lease_seconds": 2, "provider_backoff_seconds": 0.05, "metrics_port": free_port() - 100}
    gateway_settings = {"gateway_processes": 2, "ring_events": 64}
    async with System(workers=2, settings=settings, gateway_settings=gateway_settings) as system:
        targets = {
            "midstream-gateway": [f"127.0.0.1:{system.gateways[0].settings['port']}"],
            "midstream-worker": [metrics_address(worker) for worker in system.workers],
        }
        async with Prometheus(targets) as prometheus, httpx2.AsyncClient(timeout=30, trust_env=False) as http:
            await prometheus.until_all_up()
            start = time.time()
            await load(system, seconds)
            end = time.time()
            for path in sorted((_ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")):
                board = json.loads(path.read_text())
                panels = []
                for panel in board["panels"]:
                    found = [
                        series
                        for target in panel.get("targets", [])
                        for series in await series_of(http, prometheus.url, target, start, end)
                    ]
                    if not found:
                        print(f"{path.name}: {panel['title']}: nothing to show")
                    panels.append((panel, found))
                draw(board, panels, end - start)
                print(f"{path.name}: {len(panels)} panels")


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else _SECONDS))
