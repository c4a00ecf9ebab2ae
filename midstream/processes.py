"""Runs Midstream on this machine: embedded Valkey, gateway and workers, as child processes that end with this one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from gateway.listening import listen, reserve
from gateway.supervisor import processes_wanted
from midstream import guard
from producer.provider import provider_name
from shared.child_processes import ReadyPipe, get, valkey_command
from shared.errors import Unusable
from shared.grants import check_for_all
from shared.settings import Settings

_READY_SECONDS = 20.0
_EARLY_SECONDS = 5.0
"""A child that ends this soon after its start would do so again, so it is not restarted."""
_STOP_SECONDS = 10.0
_DRAIN_SECONDS = "2"
"""Shorter than in a deployment: somebody has pressed Ctrl-C and waits."""


@dataclass
class _Child:
    name: str
    command: list[str]
    environment: Mapping[str, str]
    fds: tuple[int, ...]
    process: subprocess.Popen[bytes]
    started_at: float


class LocalMidstream:
    """A context: starts Midstream on entry, stops it on exit. Raises Unusable when it cannot start.

    Without `redis_url` it runs an embedded Valkey on a Unix socket that only this user can open; with `data_dir` the
    Valkey's data survive. The children get `environment`, and log to `output`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        redis_url: str | None,
        data_dir: Path | None = None,
        workers: int = 1,
        environment: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
    ) -> None:
        self._settings = settings
        self._redis_url = redis_url
        self._data_dir = data_dir
        self._workers = workers
        self._environment = dict(os.environ if environment is None else environment)
        self._output = output
        self._children: list[_Child] = []
        self._guard: subprocess.Popen[bytes] | None = None
        self._private_dir: str | None = None
        self._listening: socket.socket | None = None
        self.url = ""

    def __enter__(self) -> LocalMidstream:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- starting

    def _start(self) -> None:
        provider_name(self._settings)  # raises here rather than in a child's log
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(guard.__file__)], stdin=subprocess.PIPE, start_new_session=True
        )
        if self._redis_url is None:
            self._redis_url = self._start_valkey()
        asyncio.run(check_for_all(self._redis_url, self._settings))  # said once, and before anybody else says it
        gateways = processes_wanted(self._settings)
        self._listening = listen(self._settings) if gateways == 1 else reserve(self._settings)
        host, port = self._listening.getsockname()[:2]
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        self.url = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
        environment = {
            "MIDSTREAM_WORKER_DRAIN_SECONDS": _DRAIN_SECONDS,
            **self._environment,
            "MIDSTREAM_REDIS_URL": self._redis_url,
            "MIDSTREAM_GATEWAY_PROCESSES": str(gateways),
        }
        fd = self._listening.fileno()
        self._spawn("the gateway", [sys.executable, "-m", "gateway", "--fd", str(fd)], environment, (fd,))
        with ReadyPipe() as pipe:
            command = [sys.executable, "-m", "producer", "--ready-fd", str(pipe.fd)]
            for number in range(1, self._workers + 1):
                self._spawn(f"worker {number}", command, environment, (pipe.fd,))
            self._wait_until(lambda: self._gateway_is_ready(reachable, port), "the gateway was")
            self._wait_until(lambda: pipe.ready(self._workers), "the workers were")
        for child in self._children:  # a restarted worker has no pipe to write to
            if child.command is command:
                child.command, child.fds = command[:-2], ()

    def _start_valkey(self) -> str:
        """Starts an embedded Valkey that never evicts; returns its URL."""
        self._private_dir = tempfile.mkdtemp(prefix="midstream-")  # mode 0700
        self._tell_guard(self._private_dir)
        directory, appendonly = Path(self._private_dir), "no"
        path = directory / "valkey.sock"
        if self._data_dir is not None:
            directory, appendonly = self._data_dir.resolve(), "yes"
            directory.mkdir(parents=True, exist_ok=True)
        options = ("--appendonly", appendonly, "--logfile", str(directory / "valkey.log"))
        command = valkey_command(path, directory, *options)
        self._spawn("the embedded Valkey", command, self._environment)
        return f"unix://{path}"

    def _spawn(self, name: str, command: list[str], environment: Mapping[str, str], fds: tuple[int, ...] = ()) -> None:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=self._output if self._output is not None else sys.stderr,
            stderr=self._output if self._output is not None else sys.stderr,
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops the children
        )
        self._tell_guard(f"+{process.pid}")
        self._children.append(_Child(name, command, environment, fds, process, time.monotonic()))

    def _wait_until(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not ready():
            self.look_after_children()
            if time.monotonic() > deadline:
                raise Unusable(f"{what} not ready within {_READY_SECONDS:g} s")
            time.sleep(0.03)

    @staticmethod
    def _gateway_is_ready(host: str, port: int) -> bool:
        answer = get(host, port, "/readyz")
        if answer is not None and answer[0] != 200:
            raise Unusable(f"the gateway is not ready: {_detail_of(answer[1])}")
        return answer is not None

    # --- while it runs

    def look_after_children(self) -> None:
        """Restarts children that have died; call it often. Raises Unusable for a child that dies as soon as it starts."""
        for child in list(self._children):
            code = child.process.poll()
            if code is None:
                continue
            self._children.remove(child)
            self._tell_guard(f"-{child.process.pid}")
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            if time.monotonic() - child.started_at < _EARLY_SECONDS:
                raise Unusable(f"{child.name} {how} during its start")
            print(f"midstream: {child.name} {how}; restarting it", file=sys.stderr)
            self._spawn(child.name, child.command, child.environment, child.fds)

    # --- stopping

    def stop(self, *, at_once: bool = False) -> None:
        """Stops workers and gateway, which drain, then Valkey. A second call with `at_once` kills them."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        ours = [child for child in self._children if child.command[0] == sys.executable]
        for group in (ours, [child for child in self._children if child not in ours]):
            for child in group:
                child.process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
            deadline = time.monotonic() + _STOP_SECONDS
            for child in group:
                try:
                    child.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.process.kill()
                    child.process.wait()
                self._tell_guard(f"-{child.process.pid}")
        self._children.clear()
        if self._guard is not None:
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard.wait()
            self._guard = None
        if self._private_dir is not None:
            shutil.rmtree(self._private_dir, ignore_errors=True)
            self._private_dir = None

    def _tell_guard(self, line: str) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            try:
                self._guard.stdin.write(f"{line}\n".encode())
                self._guard.stdin.flush()
            except BrokenPipeError:
                pass


def _detail_of(problem: bytes) -> str:
    """What a problem document says."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(problem)["detail"])
    return problem.decode(errors="replace")


def settings_for(options: Mapping[str, str | None], environment: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
    """Returns the settings from the environment and `options`, which take precedence, and the children's environment.

    Raises Unusable.
    """
    merged = dict(environment)
    merged.update({name: value for name, value in options.items() if value is not None})
    return Settings.from_environment(merged), merged
