"""The port at which a worker, or a gateway, shows its metrics and its health: one request per connection, then the end.

A small server of our own, because a library's lacks its limits (docs/decisions/0009-the-metrics-server.md). The answers
are made in the event loop, about 2 ms each: a thread, as prometheus_client's server has, would hold Python's lock for up to
5 ms at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

from shared.errors import Unusable
from shared.settings import Settings

logger = logging.getLogger(__name__)

_PORTS_TRIED = 16
"""Processes of one machine share one setting: each takes the next free port."""
_SECONDS_MAX = 5.0
"""From a connection to its end: whoever sends half a request, or does not read, is not waited for longer."""
_HEAD_BYTES_MAX = 8192
"""Of a request's head: a scraper's has some hundred bytes."""
_CONNECTIONS_MAX = 32
"""Served at once: a Prometheus or two and health checks. Further ones are closed without an answer."""


_HEADERS = "connection: close\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n"
"""Those of all answers. The last three are a gateway's, too (docs/reference/http.md)."""


class Answer(NamedTuple):
    """The answer to a GET."""

    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


class MetricsServer:
    """Serves GET of these paths: `/metrics`, `/healthz` and the like."""

    def __init__(self, answers: Mapping[str, Callable[[], Awaitable[Answer]]], settings: Settings) -> None:
        self._answers = answers
        self._host = settings.metrics_host
        self._first_port = settings.metrics_port
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def open(self) -> str | None:
        """Opens the port and returns the URL of the metrics; None where the settings name no port.

        Raises Unusable when no port is free.
        """
        if not self._first_port:
            return None
        for port in range(self._first_port, self._first_port + _PORTS_TRIED):
            with contextlib.suppress(OSError):
                self._server = await asyncio.start_server(self._serve, self._host, port, limit=_HEAD_BYTES_MAX)
                host = f"[{self._host}]" if ":" in self._host else self._host
                return f"http://{host}:{port}/metrics"
        raise Unusable(
            f"no port for /metrics is free on {self._host} from MIDSTREAM_METRICS_PORT={self._first_port} on"
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= _CONNECTIONS_MAX:
                async with asyncio.timeout(_SECONDS_MAX):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(await self._answer(head))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError) as error:
            logger.debug("a request for metrics was not answered: %s", error)
        finally:
            self._connections -= 1
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        path = head.split(b" ", 2)[1].partition(b"?")[0].decode("latin-1") if head.startswith(b"GET ") else ""
        make = self._answers.get(path)
        if make is None:
            answer = Answer(f"GET {' or '.join(self._answers)}\n".encode(), 404)
        else:
            answer = await make()
        status_line = f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"
        headers = f"content-type: {answer.content_type}\r\ncontent-length: {len(answer.body)}\r\n{_HEADERS}"
        return f"{status_line}\r\n{headers}\r\n".encode() + answer.body
