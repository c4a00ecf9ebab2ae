"""Starts what is measured, and what it is compared with, as real processes; or uses a Midstream that already runs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import redis

from bench.processes import procs
from bench.processes.control import Helper
from shared.child_processes import ReadyPipe, get, valkey_command
from shared.errors import Unusable
from shared.settings import described

_ROOT = Path(__file__).resolve().parents[2]
_CHILD = Path(__file__).with_name("child.py")
_START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores of the server and of all else. None: any core."""

    server: set[int] | None = None
    load: set[int] | None = None

    @classmethod
    def of(cls, text: str | None) -> Cores:
        """Parses `server=1,load=0` (several cores as 2+3); by default the server has the last core. Raises Unusable."""
        if not hasattr(os, "sched_getaffinity"):
            return cls()
        ours = sorted(os.sched_getaffinity(0))
        if not text:
            return cls({ours[-1]}, set(ours[:-1])) if len(ours) > 1 else cls()
        named = dict(part.partition("=")[::2] for part in text.split(","))
        try:
            sets = {name: {int(core) for core in cores.split("+")} for name, cores in named.items()}
        except ValueError:
            sets = {}
        if set(sets) != {"server", "load"} or not sets["server"] | sets["load"] <= set(ours):
            raise Unusable(f"--cores={text}: must be server=A,load=B[+C], of the cores {', '.join(map(str, ours))}")
        return cls(sets["server"], sets["load"])

    def describe(self) -> str:
        """Says who runs on which cores, if the bench has started all of them."""
        if self.server is None or self.load is None:
            return "not pinned: the server shares its cores with the load, so its figures are too high"
        names = ["+".join(map(str, sorted(cores))) for cores in (self.server, self.load)]
        return f"server alone on core {names[0]}; Redis, load and publisher on {names[1]}"

    def describe_own(self) -> str:
        """Says which cores the bench's own processes have, if it has not started the server."""
        cores = "+".join(map(str, sorted(self.load))) if self.load else "any"
        return f"server and Redis where they were started; load and publisher on core {cores}"


@dataclass(frozen=True, slots=True)
class Server:
    """A server whose streams readers follow."""

    name: str
    host: str
    port: int
    path: str
    """%s stands for the stream's id."""
    pid: int | None


@dataclass
class Parts:
    """All processes of a bench. A context: on exit it ends what it has started."""

    cores: Cores
    url: str | None = None
    redis_url: str | None = None
    pids: Mapping[str, int] = field(default_factory=dict)
    directory: Path = field(init=False)
    redis: redis.Redis = field(init=False)
    redis_pid: int | None = field(init=False, default=None)
    _children: list[subprocess.Popen[bytes]] = field(init=False, default_factory=list)

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="midstream-bench-"))
        try:
            if self.redis_url is None:
                self.redis_url = self._start_valkey()
            self.redis = redis.Redis.from_url(self.redis_url, socket_timeout=60.0)
            info: Any = self.redis.info("server")
            self.redis_pid = self.pids.get("redis") or self._if_local(info["process_id"])
        except redis.RedisError as error:
            self.close()
            raise Unusable(f"Redis cannot be used: {error}") from None
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def self_started(self) -> bool:
        return self.url is None

    @property
    def placement(self) -> str:
        """Which processes run on which cores, for readers of the figures."""
        if not self.self_started:
            return self.cores.describe_own()
        own_redis = any("valkey" in str(child.args) for child in self._children)
        return self.cores.describe() + ("" if own_redis else " (but Redis where it was started)")

    # --- starting

    def gateway(self, **settings: object) -> Server:
        """Returns the gateway of `url`, or starts one with these settings."""
        path = "/v1/streams/%s/events"
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
                raise Unusable(f"--url={self.url}: must be http://host:port, without a path (the bench speaks no TLS)")
            port = parts.port or 80
            local = parts.hostname in ("127.0.0.1", "::1", "localhost")
            return Server(
                "Midstream",
                parts.hostname,
                port,
                path,
                self.pids.get("gateway") or (procs.listener_of(port) if local else None),
            )
        port = free_port()
        settings = {"host": "127.0.0.1", "port": port, "gateway_processes": 1, **settings}
        process = self._start("gateway", ["-m", "gateway"], settings, self.cores.server)
        self._wait_until(lambda: _answers(port, "/readyz"), process, "gateway")
        return Server("Midstream", "127.0.0.1", port, path, process.pid)

    def naive(self) -> Server:
        """Starts the server to compare with, bench.processes.naive."""
        port = free_port()
        process = self._start("naive", ["-m", "bench.processes.naive", str(port)], {}, self.cores.server)
        self._wait_until(lambda: _answers(port, "/healthz"), process, "naive")
        return Server("the ordinary way", "127.0.0.1", port, "/streams/%s/events", process.pid)

    def worker(self, cores: set[int] | None, **settings: object) -> int:
        """Starts a worker; returns its pid once it takes requests."""
        with ReadyPipe() as pipe:
            arguments = ["-m", "producer", "--ready-fd", str(pipe.fd)]
            process = self._start("producer", arguments, settings, cores, (pipe.fd,))
            self._wait_until(lambda: pipe.ready(1), process, "producer")
        return process.pid

    def helper(self, module: str, plan: Mapping[str, Any]) -> Helper:
        """Starts a measuring process on the load's cores, and waits until it is ready."""
        helper = Helper(module, plan, log=self.directory / f"{module}.log", cores=self.cores.load)
        try:
            helper.ready = helper.hear(within_seconds=_START_SECONDS)
        except BaseException:
            helper.close()
            raise
        return helper

    def end(self, pid: int | None) -> None:
        """Kills a process that was started here, since a drain would wait for receipts. Leaves others alone."""
        for process in self._children:
            if process.pid == pid:
                process.kill()
                process.wait()
                self._children.remove(process)
                return

    def close(self) -> None:
        for process in reversed(self._children[:]):
            self.end(process.pid)
        if hasattr(self, "redis"):
            self.redis.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start_valkey(self) -> str:
        path = self.directory / "valkey.sock"
        command = valkey_command(path, self.directory, "--appendonly", "no", "--maxclients", "20000")
        process = self._spawn("valkey", command, dict(os.environ), self.cores.load)
        self._wait_until(lambda: _accepts(path), process, "valkey")
        return f"unix://{path}"

    def _start(
        self,
        name: str,
        arguments: list[str],
        settings: Mapping[str, object],
        cores: set[int] | None,
        fds: tuple[int, ...] = (),
    ) -> subprocess.Popen[bytes]:
        names = {setting.name: setting.env for setting in described()}
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MIDSTREAM_", "OPENAI_"))}
        values = {"redis_url": self.redis_url, "log_level": "warning", **settings}
        environment.update({names[key]: str(value) for key, value in values.items() if key in names})
        return self._spawn(name, [sys.executable, *arguments], environment, cores, fds)

    def _spawn(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str],
        cores: set[int] | None,
        fds: tuple[int, ...] = (),
    ) -> subprocess.Popen[bytes]:
        launcher = [sys.executable, "-I", "-S", str(_CHILD), ",".join(map(str, sorted(cores or ())))]
        with (self.directory / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                [*launcher, *command],
                cwd=_ROOT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends the children
            )
        self._children.append(process)
        return process

    def _wait_until(self, ready: Callable[[], bool], process: subprocess.Popen[bytes], name: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise self._failed(name)
            time.sleep(0.02)

    def _failed(self, name: str) -> Unusable:
        log_text = (self.directory / f"{name}.log").read_text()[-1500:]
        return Unusable(f"{name} did not start:\n{log_text}".rstrip())

    @staticmethod
    def _if_local(pid: int) -> int | None:
        """Returns the pid that Redis reports, if that is a Redis on this machine."""
        try:
            name = Path(f"/proc/{pid}/comm").read_text()
        except OSError:
            return None
        return pid if "redis" in name or "valkey" in name else None


def _answers(port: int, path: str) -> bool:
    answer = get("127.0.0.1", port, path)
    return answer is not None and answer[0] == 200


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
