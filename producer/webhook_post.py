"""One POST of a webhook: to an address that was checked, with bounds on time and size, and no redirects."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import socket
import ssl
import time
from typing import Any, NamedTuple

import httpx2

from producer.direct_transport import DirectTransport
from shared.errors import MidstreamError
from shared.settings import Settings
from shared.version import VERSION
from shared.webhook_target import BadTarget, Targets, address_in

logger = logging.getLogger(__name__)

AT_ONCE_MAX = 64
_CONNECT_SECONDS = 5.0
_RESPONSE_BYTES_MAX, _RESPONSE_SECONDS = 16 << 10, 1.0
"""Of a response's body, which nobody looks at: more than that, or later, and the connection is closed instead of used again."""
_LOOK_UPS_MAX = 2
"""Names that are resolved at once. The system's resolver has a few threads, which connections to the provider need, too."""
_RETRY_AFTER_CHARACTERS_MAX = 40


class NotDelivered(MidstreamError):
    """No response came. `kind` is one of the kinds of `shared.metrics.WEBHOOK_FAILURES`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Reply(NamedTuple):
    """The head of a response."""

    status: int
    retry_after_seconds: float
    """0 if it names none."""


class Poster:
    """Sends webhooks. Connections are kept for some seconds; each was made to an address that was checked."""

    def __init__(self, settings: Settings, tls: ssl.SSLContext | None = None) -> None:
        """Raises Unusable. `tls`: None for the usual authorities (and SSL_CERT_FILE)."""
        self._targets = Targets(settings)
        self._seconds = settings.webhook_seconds
        self._transport = DirectTransport(
            connections_max=AT_ONCE_MAX, tls=tls, peer="the receiver", address_of=self._address_of
        )
        self._look_ups = asyncio.Semaphore(_LOOK_UPS_MAX)

    async def close(self) -> None:
        await self._transport.aclose()

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> Reply:
        """Sends a webhook, once. Raises NotDelivered, and BadTarget for what may not be sent there."""
        target = self._targets.check(url, is_operators=True)  # a client's host was checked when the stream was created
        request = httpx2.Request(
            "POST",
            target.url,
            headers={**headers, "content-type": "application/json", "user-agent": f"midstream/{VERSION}"},
            content=body,
            extensions={"timeout": {"connect": min(_CONNECT_SECONDS, self._seconds), "pool": self._seconds}},
        )
        try:
            async with asyncio.timeout(self._seconds):
                response = await self._transport.handle_async_request(request)
        except TimeoutError:
            raise NotDelivered("timeout", f"no response within {self._seconds:g} s") from None
        except httpx2.TimeoutException as error:
            raise NotDelivered("timeout", str(error)) from None
        except httpx2.TransportError as error:
            kind = "tls" if isinstance(error.__cause__, ssl.SSLError) else "connection"
            raise NotDelivered(kind, str(error)) from None
        reply = Reply(response.status_code, _retry_after_seconds(response.headers.get("retry-after", "")))
        await _throw_away(response)
        return reply

    async def _address_of(self, host: str, port: int) -> str:
        """Returns the address to connect to: the first one of the host's that is allowed. Raises BadTarget, OSError."""
        literal = address_in(host)
        if literal is not None:
            if not self._targets.allows(literal):
                raise BadTarget(f"{host} is no public address")
            return host
        for address in await self._resolved(host, port):
            known = address_in(address)
            if known is not None and self._targets.allows(known):
                return address
        raise BadTarget(f"{host} has no public address")

    async def _resolved(self, host: str, port: int) -> list[str]:
        """Returns the addresses of a name. The place of a look-up that is given up is free only when it has ended."""
        await self._look_ups.acquire()
        loop = asyncio.get_running_loop()
        looking = loop.create_task(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP))
        looking.add_done_callback(self._looked_up)
        found = await asyncio.shield(looking)
        return [str(address[0]) for *_, address in found]

    def _looked_up(self, looking: asyncio.Task[Any]) -> None:
        self._look_ups.release()
        if not looking.cancelled():
            looking.exception()  # whoever waited for it may have gone


async def _throw_away(response: httpx2.Response) -> None:
    """Reads a response's body to its end, so that the connection can be used again, or closes the connection."""
    read_bytes = 0
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    try:
        with contextlib.suppress(TimeoutError, httpx2.TransportError):
            async with asyncio.timeout(_RESPONSE_SECONDS):
                async for part in response.stream:
                    read_bytes += len(part)
                    if read_bytes > _RESPONSE_BYTES_MAX:
                        break
    finally:
        await response.aclose()


def _retry_after_seconds(value: str) -> float:
    """Returns how long Retry-After asks to wait (RFC 9110, section 10.2.3); 0 for what is neither seconds nor a date."""
    if len(value) > _RETRY_AFTER_CHARACTERS_MAX:
        return 0.0
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
