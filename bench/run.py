"""`midstream bench`: the workloads in order, ours and the peer's in turn, and what is told of them."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import orjson

from bench import guard, report
from bench.options import GUARD, WORKLOADS
from bench.plot import plot
from bench.processes import procs
from bench.processes.control import Gone
from bench.processes.parts import Cores, Parts, Server
from bench.progress import Progress
from bench.report import OURS, PEER
from bench.sizes import FULL, QUICK, Sizes
from bench.workloads import faces, growth, readers, store, whole
from bench.workloads.follow import Figures, Void
from shared.errors import Unusable
from shared.version import VERSION

_COMPARED = ("W1", "W2", "W3", "W4")
_OWN_ONLY = ("W5", "W7", "W8")
GROWTH, FACES = "growth", "faces"


def bench(told: argparse.Namespace) -> int:
    """0; 1 when a figure is void or a guard's bound is broken. Raises Unusable."""
    wanted: list[str] = told.workloads
    if told.faces and told.url:
        raise Unusable("--faces is for a gateway that the bench has started: leave out --url")
    if GUARD in wanted and (len(wanted) > 1 or told.growth or told.faces or told.url):
        raise Unusable("guard stands alone, on processes of its own")
    _check(told)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what must be taken away
    with Parts(Cores.of(told.cores), told.url, told.redis, _pids(told.pid)) as parts:
        if parts.cores.load:
            os.sched_setaffinity(0, parts.cores.load)
        if wanted == [GUARD]:
            return guard.guard(parts, quick=told.quick)
        return Bench(parts, told).run()


def _check(told: argparse.Namespace) -> None:
    if told.url and not told.redis:
        raise Unusable("--url needs --redis: the bench writes the streams that it reads, into that gateway's Redis")
    if told.plot and told.plot.suffix.lower() != ".png":
        raise Unusable(f"--plot={told.plot}: a name that ends in .png is wanted")
    for path in (told.json, told.plot):
        if path and not path.parent.is_dir():
            raise Unusable(f"{path}: there is no folder {path.parent}")
    if told.plot and not importlib.util.find_spec("matplotlib"):
        raise Unusable("--plot needs matplotlib: pip install 'midstream[bench]'")
    if told.peer == "naive" and not _has_peer():
        raise Unusable("--peer naive needs sse-starlette: pip install 'midstream[bench]'")
    if not os.path.exists("/proc/self/stat"):
        raise Unusable("the bench reads /proc, and so needs Linux")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _has_peer() -> bool:
    return importlib.util.find_spec("sse_starlette") is not None


def _pids(told: list[str]) -> dict[str, int]:
    pids = {}
    for one in told:
        name, _, pid = one.partition("=")
        if name not in ("gateway", "redis") or not pid.isdecimal() or not os.path.exists(f"/proc/{pid}"):
            raise Unusable(f"--pid={one}: gateway=PID or redis=PID of a process of this machine is wanted")
        pids[name] = int(pid)
    return pids


class Bench:
    def __init__(self, parts: Parts, told: argparse.Namespace) -> None:
        self._parts = parts
        self._told = told
        self._sizes = _sizes(told)
        self._runs = int(told.runs or (1 if told.quick else 3))
        cores = parts.cores.load or set(range(os.cpu_count() or 1))
        self._load_processes = int(told.load_processes or max(1, min(4, len(cores) - 1)))
        self._with_peer = told.peer == "naive" or (told.peer is None and _has_peer() and not told.url)
        self._workloads: list[str] = list(dict.fromkeys(told.workloads)) or (
            [] if told.growth or told.faces else list(WORKLOADS)
        )
        self._skipped: dict[str, str] = {}
        if not parts.self_started:
            for name in _OWN_ONLY:
                if name in self._workloads:
                    self._workloads.remove(name)
                    self._skipped[name] = "needs a worker and a provider of its own: leave out --url"
        if told.growth:
            self._workloads.append(GROWTH)
        if told.faces:
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
        print(report.table(results, targets=not self._told.quick and not self._told.readers and not self._told.rate))
        for name, why in self._skipped.items():
            print(f"\n{name} left out: it {why}")
        whole_report = self._whole(results, began)
        if self._told.json:
            self._told.json.write_bytes(orjson.dumps(whole_report, option=orjson.OPT_INDENT_2))
        if self._told.plot:
            plot(results, self._told.plot, f"Midstream {VERSION}, {self._parts.placement}")
        return 1 if whole_report["void"] else 0

    def _sides_of(self, workload: str) -> list[str]:
        return [OURS, PEER] if self._with_peer and workload in _COMPARED else [OURS]

    def _workload(self, name: str, sides: list[str], progress: Progress) -> dict[str, Any]:
        """All runs of one workload, ours and the peer's in turn: what disturbs one disturbs the other."""
        runs: dict[str, list[Figures]] = {side: [] for side in sides}
        error = ""
        for _ in range(self._runs):
            for side in sides:
                try:
                    figures = self._once(name, side, progress.tell)
                except (Void, Gone, OSError, LookupError) as failure:
                    error = error or f"{side}: {failure}"
                    figures = {"void": True, "generators": False, "error": str(failure)}
                runs[side].append(figures)
                progress.step()
        told: dict[str, Any] = {"sides": {side: report.summed_up(these) for side, these in runs.items()}}
        told["ratios"] = report.ratios(name, told["sides"])
        if error:
            told["error"] = error
        return told

    def _once(self, name: str, side: str, tell: Callable[[str], None]) -> Figures:
        parts, sizes, start = self._parts, self._sizes, self._parts.gateway if side == OURS else self._parts.naive
        many: dict[str, int] = {"load_processes": self._load_processes}
        if name == "W4":
            return readers.w4(parts, start, sizes, tell, **many)
        if name == "W5":
            return whole.w5(parts, sizes, tell)
        if name == "W6":
            return store.w6(parts, sizes, tell)
        if name == "W7":
            return whole.w7(parts, start, sizes, tell)
        if name == "W8":
            return whole.w8(parts, start, sizes, tell)
        if name == FACES:
            return faces.faces(parts, start, sizes, tell)
        if name == GROWTH:
            return growth.growth(parts, start, sizes, tell, **many)
        server: Server = start()
        try:
            if name == "W3":
                return readers.w3(parts, server, sizes, tell, **many)
            share = 1.0 if side == OURS else sizes.peer_share
            if name == "W1":
                return readers.w1(parts, server, sizes, tell, base_rate=sizes.w1_rate * share, **many)
            return readers.w2(parts, server, sizes, tell, base_rate=sizes.w2_rate * share, **many)
        finally:
            parts.end(server.pid)

    def _redis_name(self) -> str:
        about: Any = self._parts.redis.info("server")
        name = about.get("server_name", "redis")
        return f"{name} {about.get('valkey_version', about['redis_version'])}"

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
                "quick": self._told.quick,
            },
            "workloads": results,
            "left_out": self._skipped,
            "void": any(side["void"] for one in results.values() for side in one["sides"].values()),
        }


def _sizes(told: argparse.Namespace) -> Sizes:
    changed: dict[str, Any] = {}
    if told.seconds:
        changed.update(seconds=told.seconds, ramp_seconds=told.seconds, w4_seconds=told.seconds)
    if told.rate:
        changed["w1_rate"] = told.rate
    if told.readers:
        changed.update({name: int(told.readers) for name in ("w1_streams", "w2_readers", "w3_readers", "w4_readers")})
    if told.tokens_per_entry:
        changed["tokens_per_entry"] = int(told.tokens_per_entry)
    return dataclasses.replace(QUICK if told.quick else FULL, **changed)
