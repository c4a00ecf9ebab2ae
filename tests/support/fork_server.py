"""Starts `python -m MODULE` as a fork of a process that has imported gateway and worker: the imports take half a second of CPU.

A fork is a process of its own, and ends as every Python process does, with all that runs at the interpreter's exit. Two things
are not its own: what happens while modules are imported, and its command line and environment in /proc, which are those of
the server. Tests of these, and of memory, start Python anew. Each process of a test run has one server, which ends with it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_IMPORTED = ("gateway.server", "gateway.supervisor", "producer.worker", "producer.openai_provider", "producer.metrics")
"""With these nearly all modules of a gateway and of a worker are imported; the rest follows in the fork."""
_REQUEST_BYTES_MAX = 1 << 17
"""Most is the environment."""
_MASK = {signal.SIGCHLD}


class Fork:
    """A process that the server has forked: `pid`, and of `subprocess.Popen` the methods that tests need."""

    def __init__(self, status: int) -> None:
        """`status`: the pipe in which the server writes first the pid and later the exit code, each as a line."""
        self._status = status
        self._poll = select.poll()
        self._poll.register(status, select.POLLIN)
        self._lock = threading.Lock()
        self.returncode: int | None = None
        self.pid = self._number()

    def poll(self) -> int | None:
        """Returns the exit code, negative for a signal as in `subprocess`; None while the process runs."""
        return self._code_within(0)

    def wait(self, seconds: float) -> int:
        """Waits for the exit code. Raises subprocess.TimeoutExpired."""
        code = self._code_within(seconds)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), seconds)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _code_within(self, seconds: float) -> int | None:
        with self._lock:
            if self.returncode is None and self._poll.poll(seconds * 1000):
                self.returncode = self._number()
                os.close(self._status)
        return self.returncode

    def _number(self) -> int:
        """Reads one line. RuntimeError if the server has ended."""
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._status, 1)
            if not byte:
                raise RuntimeError("the fork server has ended")
            line += byte
        return int(line)


class ForkServer:
    """The connection to a server, which ends when the connection does."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        self._process = subprocess.Popen(command, cwd=_ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()

    def start(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Fork:
        """Starts `python -m module` in the checkout; its output is appended to `log`."""
        request = json.dumps([module, list(arguments), dict(environment)]).encode()
        assert len(request) <= _REQUEST_BYTES_MAX
        status, written = os.pipe()
        with log.open("ab") as output:
            socket.send_fds(self._requests, [request], [output.fileno(), written])
        os.close(written)
        return Fork(status)

    def close(self) -> None:
        """Ends the server, and none of its forks."""
        self._requests.close()
        self._process.wait()


_wanted = False
_server: ForkServer | None = None


@contextmanager
def fork_server() -> Iterator[None]:
    """Lets `server` return this process's server, which starts when it is first needed."""
    global _server, _wanted
    _wanted = sys.platform == "linux"  # elsewhere a fork may not use what the system's libraries began before it
    try:
        yield
    finally:
        _wanted = False
        if _server is not None:
            _server.close()
            _server = None


def server() -> ForkServer | None:
    """Returns this process's server; None: start Python anew."""
    global _server
    if _wanted and _server is None:
        _server = ForkServer()
    return _server


def _serve(requests: socket.socket) -> tuple[str, list[str]] | None:
    """Forks for each request. Returns module and arguments in each fork, and None in the server at its end."""
    statuses: dict[int, int] = {}  # the status pipe of each fork that runs, by its pid

    def tell_ends(*_: object) -> None:
        while statuses:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with suppress(BrokenPipeError), os.fdopen(statuses.pop(pid), "w") as pipe:
                pipe.write(f"{os.waitstatus_to_exitcode(status)}\n")

    signal.signal(signal.SIGCHLD, tell_ends)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches all processes: the forks know what to do
    while True:
        request, (*given,), _, _ = socket.recv_fds(requests, _REQUEST_BYTES_MAX, 2)
        if not request:
            return None
        output, status = given
        module, arguments, environment = json.loads(request)
        signal.pthread_sigmask(signal.SIG_BLOCK, _MASK)  # else a fork may end before it is in `statuses`
        pid = os.fork()
        if not pid:
            for descriptor in (status, *statuses.values()):
                os.close(descriptor)
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _MASK)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            os.environ.clear()
            os.environ.update(environment)
            return module, arguments
        statuses[pid] = status
        os.write(status, f"{pid}\n".encode())
        os.close(output)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _MASK)


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    for module in _IMPORTED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # the collector of a fork then writes into none of the memory that it shares
    wanted = _serve(requests)
    if wanted is not None:
        module, arguments = wanted
        sys.argv[1:] = arguments
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
