"""`midstream bench`: runs the workloads in order, against Midstream and the peer in turn, and reports the results."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import signal
import sys
import time
from typing import Any

import orjson

from bench import guard, report
from bench.options import GUARD, WORKLOADS
from bench.plot import plot
from bench.processes import procs
from bench.processes.control import Gone
from bench.processes.parts import Cores, Parts, Server
from bench.progress import Progress, Show
from bench.report import OURS, PEER
from bench.sizes import FULL, QUICK, Sizes
from bench.workloads import faces, growth, readers, store, whole
from bench.workloads.follow import Figures, Void
from shared.errors import Unusable
from shared.version import VERSION

_COMPARED = ("W1", "W2", "W3", "W4")
_OWN_ONLY = ("W5", "W7", "W8")
GROWTH, FACES = "growth", "faces"


def bench(arguments: argparse.Namespace) -> int:
    """Runs the bench; returns 1 if a figure is void or a bound of the guard is exceeded, else 0. Raises Unusable."""
    wanted: list[str] = arguments.workloads
    if arguments.faces and arguments.url:
        raise Unusable("--faces needs a gateway that the bench starts itself: leave out --url")
    if GUARD in wanted and (len(wanted) > 1 or arguments.growth or arguments.faces or arguments.url):
        raise Unusable("guard stands alone: it takes no workloads, --growth, --faces or --url")
    _check(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit that runs the clean-up
    with Parts(Cores.of(arguments.cores), arguments.url, arguments.redis, _pids(arguments.pid)) as parts:
        if parts.cores.load:
            os.sched_setaffinity(0, parts.cores.load)
        if wanted == [GUARD]:
            return guard.guard(parts, quick=arguments.quick)
        return Bench(parts, arguments).run()


def _check(arguments: argparse.Namespace) -> None:
    if arguments.url and not arguments.redis:
        raise Unusable("--url needs --redis: the bench writes its streams into that gateway's Redis")
    if arguments.plot and arguments.plot.suffix.lower() != ".png":
        raise Unusable(f"--plot={arguments.plot}: must be a name that ends in .png")
    for path in (arguments.json, arguments.plot):
        if path and not path.parent.is_dir():
            raise Unusable(f"{path}: there is no folder {path.parent}")
    if arguments.plot and not importlib.util.find_spec("matplotlib"):
        raise Unusable("--plot needs matplotlib: pip install '.[bench]'")
    if arguments.peer == "naive" and not _has_peer():
        raise Unusable("--peer naive needs sse-starlette: pip install '.[bench]'")
    if not os.path.exists("/proc/self/stat"):
        raise Unusable("the bench needs Linux: it reads /proc")
    procs.raise_open_files_limit()


def _has_peer() -> bool:
    return importlib.util.find_spec("sse_starlette") is not None


def _pids(options: list[str]) -> dict[str, int]:
    pids = {}
    for option in options:
        name, _, pid = option.partition("=")
        if name not in ("gateway", "redis") or not pid.isdecimal() or not os.path.exists(f"/proc/{pid}"):
            raise Unusable(f"--pid={option}: must be gateway=PID or redis=PID of a process of this machine")
        pids[name] = int(pid)
    return pids


class Bench:
    def __init__(self, parts: Parts, arguments: argparse.Namespace) -> None:
        self._parts = parts
        self._arguments = arguments
        self._sizes = _sizes(arguments)
        self._runs = int(arguments.runs or (1 if arguments.quick else 3))
        cores = parts.cores.load or set(range(os.cpu_count() or 1))
        self._load_processes = int(arguments.load_processes or max(1, min(4, len(cores) - 1)))
        self._with_peer = arguments.peer == "naive" or (arguments.peer is None and _has_peer() and not arguments.url)
        self._workloads: list[str] = list(dict.fromkeys(arguments.workloads)) or (
            [] if arguments.growth or arguments.faces else list(WORKLOADS)
        )
        self._skipped: dict[str, str] = {}
        if not parts.self_started:
            for name in _OWN_ONLY:
                if name in self._workloads:
                    self._workloads.remove(name)
                    self._skipped[name] = "needs a worker and a provider of its own: leave out --url"
        if arguments.growth:
            self._workloads.append(GROWTH)
        if arguments.faces:
            self._workloads.append(FACES)

    def run(self) -> int:
        began = time.time()
        sides = {name: self._sides_of(name) for name in self._workloads}
        progress = Progress(self._runs * sum(map(len, sides.values())))
        print(f"midstream bench {VERSION}, {self._redis_name()}; {self._parts.placement}")
        results: dict[str, Any] = {}
        try:
            for name in self._workloads:
                results[name] = self._workload(name, sides[name], progress)
        finally:
            progress.close()
        print(
            report.table(
                results, targets=not self._arguments.quick and not self._arguments.readers and not self._arguments.rate
            )
        )
        for name, why in self._skipped.items():
            print(f"\n{name} left out: it {why}")
        whole_report = self._whole(results, began)
        if self._arguments.json:
            self._arguments.json.write_bytes(orjson.dumps(whole_report, option=orjson.OPT_INDENT_2))
        if self._arguments.plot:
            plot(results, self._arguments.plot, f"Midstream {VERSION}, {self._parts.placement}")
        return 1 if whole_report["void"] else 0

    def _sides_of(self, workload: str) -> list[str]:
        return [OURS, PEER] if self._with_peer and workload in _COMPARED else [OURS]

    def _workload(self, name: str, sides: list[str], progress: Progress) -> dict[str, Any]:
        """Runs one workload, Midstream and the peer in turn, so that a disturbance hits both."""
        runs: dict[str, list[Figures]] = {side: [] for side in sides}
        error = ""
        for _ in range(self._runs):
            for side in sides:
                try:
                    figures = self._once(name, side, progress.show)
                except (Void, Gone, OSError, LookupError) as failure:
                    error = error or f"{side}: {failure}"
                    figures = {"void": True, "generators": False, "error": str(failure)}
                runs[side].append(figures)
                progress.step()
        result: dict[str, Any] = {"sides": {side: report.summed_up(figures) for side, figures in runs.items()}}
        result["ratios"] = report.ratios(name, result["sides"])
        if error:
            result["error"] = error
        return result

    def _once(self, name: str, side: str, show: Show) -> Figures:
        parts, sizes, start = self._parts, self._sizes, self._parts.gateway if side == OURS else self._parts.naive
        options: dict[str, int] = {"load_processes": self._load_processes}
        if name == "W4":
            return readers.w4(parts, start, sizes, show, **options)
        if name == "W5":
            return whole.w5(parts, sizes, show)
        if name == "W6":
            return store.w6(parts, sizes, show)
        if name == "W7":
            return whole.w7(parts, start, sizes, show)
        if name == "W8":
            return whole.w8(parts, start, sizes, show)
        if name == FACES:
            return faces.faces(parts, start, sizes, show)
        if name == GROWTH:
            return growth.growth(parts, start, sizes, show, **options)
        server: Server = start()
        try:
            if name == "W3":
                return readers.w3(parts, server, sizes, show, **options)
            share = 1.0 if side == OURS else sizes.peer_share
            if name == "W1":
                return readers.w1(parts, server, sizes, show, base_rate=sizes.w1_rate * share, **options)
            return readers.w2(parts, server, sizes, show, base_rate=sizes.w2_rate * share, **options)
        finally:
            parts.end(server.pid)

    def _redis_name(self) -> str:
        info: Any = self._parts.redis.info("server")
        name = info.get("server_name", "redis")
        return f"{name} {info.get('valkey_version', info['redis_version'])}"

    def _whole(self, results: dict[str, Any], began: float) -> dict[str, Any]:
        packages = ("fastapi", "hiredis", "redis", "sse-starlette", "uvicorn", "uvloop")
        versions = {}
        for package in packages:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return {
            "midstream": VERSION,
            "began_at": began,
            "took_seconds": time.time() - began,
            "versions": {"python": platform.python_version(), "redis": self._redis_name(), **versions},
            "machine": procs.machine(),
            "cores": self._parts.placement,
            "settings": {
                "sizes": dataclasses.asdict(self._sizes),
                "runs": self._runs,
                "load_processes": self._load_processes,
                "quick": self._arguments.quick,
            },
            "workloads": results,
            "left_out": self._skipped,
            "void": any(side["void"] for result in results.values() for side in result["sides"].values()),
        }


def _sizes(arguments: argparse.Namespace) -> Sizes:
    changed: dict[str, Any] = {}
    if arguments.seconds:
        changed.update(seconds=arguments.seconds, ramp_seconds=arguments.seconds, w4_seconds=arguments.seconds)
    if arguments.rate:
        changed["w1_rate"] = arguments.rate
    if arguments.readers:
        changed.update(
            {name: int(arguments.readers) for name in ("w1_streams", "w2_readers", "w3_readers", "w4_readers")}
        )
    if arguments.tokens_per_entry:
        changed["tokens_per_entry"] = int(arguments.tokens_per_entry)
    return dataclasses.replace(QUICK if arguments.quick else FULL, **changed)
