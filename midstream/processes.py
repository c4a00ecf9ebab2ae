"""Runs Midstream on this machine: embedded Valkey, gateway and workers, as child processes that end with this one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from gateway.listening import listen, reserve
from gateway.supervisor import processes_wanted
from midstream import guard
from midstream.sources import Sources
from shared.child_processes import Child, ReadyPipe, end_all, get, how_it_ended, valkey_command
from shared.errors import Unusable
from shared.grants import check_for_all
from shared.logs import set_up_logging
from shared.provider_kinds import check_for_worker, is_object, provider_kinds
from shared.settings import Settings, unknown

logger = logging.getLogger("midstream")

_READY_SECONDS = 20.0
"""How long the children may take to start, on a busy machine, too."""
_STOP_SECONDS = 10.0
"""How long they may take to end: several times their drain. Then they are killed."""
_DRAIN_SECONDS = "2"
"""Shorter than in a deployment: somebody has pressed Ctrl-C and waits."""
_LOOK_SECONDS = 0.03
"""How often starting children are looked at."""


@dataclass(kw_only=True)
class _NamedChild(Child):
    """A child process by the name that messages give it, and how to start it again."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    fds: tuple[int, ...] = ()
    stops_last: bool = False
    restarts_on_change: bool = False


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
        reload: bool = False,
    ) -> None:
        self._settings = settings
        self._redis_url = redis_url
        self._data_dir = data_dir
        self._workers = workers
        self._environment = dict(os.environ if environment is None else environment)
        self._output = output
        self._sources = _sources_of(settings) if reload else None
        self._children: list[_NamedChild] = []
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
        check_for_worker(self._settings)  # raises here rather than in a child's log
        self._check_generators()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(guard.__file__)], stdin=subprocess.PIPE, start_new_session=True
        )
        if self._redis_url is None:
            self._redis_url = self._start_valkey()
        asyncio.run(check_for_all(self._redis_url, self._settings))  # before each child reports the same error
        gateways = processes_wanted(self._settings)
        self._listening = listen(self._settings) if gateways == 1 else reserve(self._settings)
        host, port = self._listening.getsockname()[:2]
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        self.url = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
        environment = {
            "MIDSTREAM_WORKER_DRAIN_SECONDS": _DRAIN_SECONDS,
            "MIDSTREAM_TOKEN_KEYS": secrets.token_hex(32),
            **self._environment,
            "MIDSTREAM_REDIS_URL": self._redis_url,
            "MIDSTREAM_GATEWAY_PROCESSES": str(gateways),
        }
        fd = self._listening.fileno()
        command = [sys.executable, "-m", "gateway", "--fd", str(fd)]
        of_gateway = {**environment, "MIDSTREAM_METRICS_PORT": "0"}  # the first worker has that port
        self._add(_NamedChild(name="the gateway", command=command, environment=of_gateway, fds=(fd,)))
        with ReadyPipe() as pipe:
            command = [sys.executable, "-m", "producer"]
            ready = [*command, "--ready-fd", str(pipe.fd)]
            workers = [
                _NamedChild(
                    name=f"worker {number}",
                    command=ready,
                    environment=environment,
                    fds=(pipe.fd,),
                    restarts_on_change=True,
                )
                for number in range(1, self._workers + 1)
            ]
            for worker in workers:
                self._add(worker)
            self._wait_until(lambda: self._gateway_is_ready(reachable, port), "the gateway was")
            self._wait_until(lambda: pipe.ready(self._workers), "the workers were")
        for worker in workers:  # a restarted worker has no pipe to write to
            worker.command, worker.fds = command, ()

    def _check_generators(self) -> None:
        """Imports the generators of the user's own, in a process that ends. Raises Unusable with the sentence that says why not."""
        paths = [kind for kind in provider_kinds(self._settings).values() if is_object(kind)]
        if not paths:
            return
        command = [sys.executable, "-m", "producer.loading", *paths]
        try:
            checked = subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=_READY_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise Unusable(f"importing {', '.join(paths)} takes longer than {_READY_SECONDS:g} s") from None
        if checked.returncode:
            lines = checked.stderr.strip().splitlines()
            raise Unusable(lines[-1] if lines else f"{', '.join(paths)} cannot be imported")

    def _start_valkey(self) -> str:
        """Starts an embedded Valkey that never evicts; returns its URL."""
        self._private_dir = tempfile.mkdtemp(prefix="midstream-")  # mode 0700
        self._tell_guard(self._private_dir)
        directory, appendonly = Path(self._private_dir), "no"
        path = directory / "valkey.sock"
        if self._data_dir is not None:
            directory, appendonly = _usable(self._data_dir), "yes"
        options = ("--appendonly", appendonly, "--logfile", str(directory / "valkey.log"))
        command = valkey_command(path, directory, *options)
        self._add(
            _NamedChild(name="the embedded Valkey", command=command, environment=self._environment, stops_last=True)
        )
        return f"unix://{path}"

    def _add(self, child: _NamedChild) -> None:
        self._children.append(child)
        self._spawn(child)

    def _spawn(self, child: _NamedChild) -> None:
        process = subprocess.Popen(
            child.command,
            env=dict(child.environment),
            pass_fds=child.fds,
            stdin=subprocess.DEVNULL,
            stdout=self._output if self._output is not None else sys.stderr,
            stderr=self._output if self._output is not None else sys.stderr,
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops the children
        )
        self._tell_guard(f"+{process.pid}")
        child.started(process)

    def _wait_until(self, ready: Callable[[], bool], who: str) -> None:
        """Raises Unusable if a child ends meanwhile, or if it takes too long."""
        deadline = time.monotonic() + _READY_SECONDS
        while not ready():
            for child, return_code in self._ended():
                raise Unusable(f"{child.name} {how_it_ended(return_code)} during its start")
            if time.monotonic() > deadline:
                raise Unusable(f"{who} not ready within {_READY_SECONDS:g} s")
            time.sleep(_LOOK_SECONDS)

    @staticmethod
    def _gateway_is_ready(host: str, port: int) -> bool:
        answer = get(host, port, "/readyz")
        if answer is not None and answer[0] != 200:
            raise Unusable(f"the gateway is not ready: {_detail_of(answer[1])}")
        return answer is not None

    # --- while it runs

    def look_after_children(self) -> None:
        """Restarts children that have ended, with a back-off for those that end early. Call it several times a second."""
        if self._sources is not None and (changed := self._sources.changed()):
            print(f"midstream: {changed} has changed; restarting the workers", file=sys.stderr)
            for child in self._children:
                if child.restarts_on_change:
                    child.early_ends, child.due_at = 0, 0.0  # one that could not be imported may be now
                    if child.process is not None:
                        child.process.terminate()
        for child, return_code in self._ended():
            child.ended()
            pause_seconds = child.due_at - time.monotonic()
            when = f" in {pause_seconds:.1f} s" if pause_seconds > 0 else ""
            logger.error("%s %s; restarting it%s", child.name, how_it_ended(return_code), when)
        for child in self._children:
            if child.process is None and time.monotonic() >= child.due_at:
                self._spawn(child)

    def _ended(self) -> Iterator[tuple[_NamedChild, int]]:
        """Yields the children that have ended since they were started, with their return codes."""
        for child in self._children:
            if child.process is not None and (return_code := child.process.poll()) is not None:
                self._tell_guard(f"-{child.process.pid}")
                yield child, return_code

    # --- stopping

    def stop(self, *, at_once: bool = False) -> None:
        """Stops workers and gateway, which drain, then Valkey. A second call with `at_once` kills them."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        for last in (False, True):
            group = [
                child.process for child in self._children if child.process is not None and child.stops_last == last
            ]
            first_signal = signal.SIGKILL if at_once else signal.SIGTERM
            end_all(group, within_seconds=_STOP_SECONDS, first_signal=first_signal)
            for process in group:
                self._tell_guard(f"-{process.pid}")
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


def _usable(data_dir: Path) -> Path:
    """Returns a folder for the embedded Valkey's data, made if it is missing. Raises Unusable."""
    try:
        directory = data_dir.resolve()
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Unusable(f"the folder {data_dir} cannot keep the embedded Valkey's data: {reason}") from None
    return directory


def _sources_of(settings: Settings) -> Sources:
    kinds = [kind for kind in provider_kinds(settings).values() if is_object(kind)]
    if not kinds:
        raise Unusable("--reload is for a generator of your own, and none is named: --provider package.module:object")
    return Sources(kinds)


def _detail_of(problem: bytes) -> str:
    """Returns the `detail` of a problem document (RFC 9457), or all of a body that is none."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(problem)["detail"])
    return problem.decode(errors="replace")


def settings_for(options: Mapping[str, str | None], environment: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
    """Returns the settings from the environment and `options`, which take precedence, and the children's environment.

    Logging is set up by these settings. What looks like a setting and is none is logged here once, and is not handed on to
    the children. Raises Unusable.
    """
    merged = dict(environment)
    merged.update({name: value for name, value in options.items() if value is not None})
    settings = Settings.from_environment(merged)
    set_up_logging(settings.log_level, settings.log_format)
    for name, warning in unknown(merged).items():
        logger.warning(warning)
        merged.pop(name, None)
    return settings, merged
