"""A real PostgreSQL as child processes, which a test can kill, freeze and restart. Needs Debian's `postgresql`."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.support.redis_server import free_port

_START_SECONDS_MAX = 20.0
_SETTINGS = (
    *("listen_addresses=127.0.0.1", "fsync=off", "max_connections=40", "shared_buffers=16MB"),
    *("wal_level=minimal", "max_wal_senders=0", "autovacuum=off", "jit=off"),
)
"""fsync=off: a test kills processes, and not the machine."""


def postgres_programs() -> Path | None:
    """Returns the folder of the server's programs; None if there are none."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(found) if (folder / "initdb").exists()), None)


class PostgresServer:
    """One server at one port of 127.0.0.1, which it keeps over restarts. It refuses to run as root: then as `postgres`."""

    def __init__(self) -> None:
        programs = postgres_programs()
        if programs is None:
            raise FileNotFoundError("there is no PostgreSQL on this machine")
        self._programs = programs
        self._user = "postgres" if os.geteuid() == 0 else None
        self._directory = tempfile.mkdtemp(prefix="midstream-postgres-")
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(self._directory, account.pw_uid, account.pw_gid)
        self._data = Path(self._directory, "data")
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb",
            "-D",
            str(self._data),
            "-A",
            "trust",
            "-U",
            "midstream",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        )

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """Returns the URL of the database at another port, where a proxy stands."""
        return f"postgresql://midstream@127.0.0.1:{port}/postgres"

    def start(self) -> PostgresServer:
        options = [
            part
            for setting in (*_SETTINGS, f"port={self.port}", f"unix_socket_directories={self._directory}")
            for part in ("-c", setting)
        ]
        with Path(self._directory, "log").open("ab") as output:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self._data), *options],
                stdout=output,
                stderr=output,
                user=self._user,
                start_new_session=True,  # so that a signal reaches all its processes
            )
        deadline = time.monotonic() + _START_SECONDS_MAX
        while subprocess.run(
            [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        ).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{Path(self._directory, 'log').read_text()[-2000:]}")
            time.sleep(0.02)
        return self

    def own(self, folder: Path) -> None:
        """Gives a folder to the user of the server."""
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(folder, account.pw_uid, account.pw_gid)

    def kill(self) -> None:
        """Ends all processes of the server by SIGKILL."""
        assert self._process is not None
        self._signal(signal.SIGKILL)
        self._process.wait(_START_SECONDS_MAX)
        self._process = None
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stops the server by SIGSTOP: the kernel still accepts connections, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> PostgresServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signal(self, number: signal.Signals) -> None:
        """Each backend has a process group of its own."""
        assert self._process is not None
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self._process.pid)], capture_output=True, text=True, check=False
        )
        for pid in (self._process.pid, *map(int, children.stdout.split())):
            with suppress(ProcessLookupError):  # a backend that has just ended
                os.kill(pid, number)

    def _run(self, program: str, *arguments: str) -> None:
        ended = subprocess.run(
            [str(self._programs / program), *arguments],
            user=self._user,
            capture_output=True,
            text=True,
            check=False,
            cwd=self._directory,
        )
        if ended.returncode:
            raise RuntimeError(f"{program}: {ended.stdout}{ended.stderr}")
