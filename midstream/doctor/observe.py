"""One request through one address, and when each of its bytes came. What it means is said elsewhere (checks.py)."""

from __future__ import annotations

import asyncio
import functools
import ssl
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import orjson

from shared.sse import Decoder

_BODY_BYTES_MAX = 32 << 20
"""More than any probe sends: who sends more is no gateway of ours."""
_KEEP_ALIVE_LINE = b":"
ENCODINGS = "gzip, deflate, br, zstd"
"""What browsers ask for."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One event of the probe."""

    number: int
    event: str
    sent_seconds: float
    """On the gateway's clock, since the response began."""
    came_seconds: float
    """On ours, since the request was sent."""
    data: dict[str, Any]
    size_bytes: int


@dataclass(slots=True)
class Observation:
    """One response: its head, its events and their times, and how it ended."""

    url: str
    status: int = 0
    """0: there was no response."""
    http_version: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    comments: list[float] = field(default_factory=list)
    """When each comment line came, without the one at the head."""
    came_last_seconds: float = 0.0
    ended_seconds: float = 0.0
    error: str = ""
    """Why the response ended, if not as HTTP wants it."""
    left: bool = False
    """We closed it, on purpose or because the time was up."""
    body_head: bytes = b""
    unreadable: bool = False
    """Compressed in a way that we cannot read: only the times of its bytes are known."""

    def header(self, name: str) -> str:
        return ", ".join(value for key, value in self.headers if key == name)

    @property
    def first(self) -> dict[str, Any]:
        """The data of the first event: what the gateway saw."""
        for one in self.arrivals:
            if one.event == "probe":
                return one.data
        return {}

    @property
    def seen(self) -> Mapping[str, str]:
        """The request's headers as the gateway got them."""
        headers: Mapping[str, str] = self.first.get("seen", {}).get("headers", {})
        return headers

    @property
    def whole(self) -> bool:
        return any(one.event == "end" for one in self.arrivals)


@dataclass(frozen=True, slots=True)
class Client:
    """How addresses are asked."""

    timeout_seconds: float
    """To connect; and how much longer than its plan a probe may take."""
    headers: Sequence[tuple[str, str]] = ()
    insecure: bool = False
    """Certificates are not verified: an address on the way seldom has one for its own name."""

    @property
    def host(self) -> str:
        """The name that was asked for with a Host header, without its port."""
        return {name.lower(): value for name, value in self.headers}.get("host", "").partition(":")[0]

    async def observe(
        self,
        url: str,
        parameters: Mapping[str, str | int],
        *,
        planned_seconds: float,
        headers: Mapping[str, str] | None = None,
        encodings: str = "identity",
        leave_after_events: int = 0,
        leave_after_seconds: float | None = None,
    ) -> Observation:
        """Ask for a probe over a connection of its own. Never raises for what the way does: the observation says it."""
        told = Observation(url)
        body = _Body(told)
        sent = {"accept": "text/event-stream", "accept-encoding": encodings, **dict(self.headers), **(headers or {})}
        limit_seconds = planned_seconds + self.timeout_seconds
        if leave_after_seconds is not None:
            limit_seconds = min(limit_seconds, leave_after_seconds)
        began = time.monotonic()
        try:
            async with asyncio.timeout(limit_seconds), self._http() as http:
                request = http.build_request("GET", url, params=dict(parameters), headers=sent)
                response = await http.send(self._with_server_name(request), stream=True)
                try:
                    told.status, told.http_version = response.status_code, response.http_version
                    told.headers = [(name.lower(), value) for name, value in response.headers.multi_items()]
                    body.encoded_as(told.header("content-encoding"))
                    async for part in response.aiter_raw():
                        body.feed(part, time.monotonic() - began)
                        if body.size_bytes > _BODY_BYTES_MAX:
                            told.error = f"more than {_BODY_BYTES_MAX >> 20} MiB came, which no probe sends"
                            break
                        if leave_after_events and len(told.arrivals) >= leave_after_events:
                            told.left = True
                            break
                finally:
                    await response.aclose()
        except TimeoutError:
            told.left = True
            told.error = f"nothing more came in {limit_seconds:.0f} s"
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, ValueError, OSError) as error:
            told.error = _reason(error)
        told.ended_seconds = time.monotonic() - began
        return told

    async def get_json(self, url: str) -> dict[str, Any] | None:
        """A JSON object, or None if there is none to be had."""
        try:
            async with self._http() as http:
                request = http.build_request("GET", url, headers=dict(self.headers))
                response = await http.send(self._with_server_name(request))
                found = orjson.loads(response.content) if response.status_code == 200 else None
        except (httpx2.HTTPError, httpx2.StreamError, ValueError, OSError):
            return None
        return found if isinstance(found, dict) else None

    def _http(self) -> httpx2.AsyncClient:
        """A new one each time: every probe has a connection of its own. No proxy of the environment: it would be a hop more."""
        timeout = httpx2.Timeout(None, connect=self.timeout_seconds)
        return httpx2.AsyncClient(timeout=timeout, verify=_verifying(self.insecure), trust_env=False)

    def _with_server_name(self, request: httpx2.Request) -> httpx2.Request:
        """A Host that was asked for is the name that TLS asks for too."""
        if self.host and request.url.scheme == "https":
            request.extensions = {**request.extensions, "sni_hostname": self.host}
        return request


@functools.cache
def _verifying(insecure: bool) -> ssl.SSLContext:
    """Made once: to read all certificates takes long enough to be seen in the times of events."""
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _Body:
    """The bytes of a response, taken apart as they come."""

    def __init__(self, told: Observation) -> None:
        self._told = told
        self._decoder = Decoder()
        self._inflate: Any = None
        self._at_line_start = True
        self._comments = 0
        self.size_bytes = 0

    def encoded_as(self, encoding: str) -> None:
        name = encoding.strip().lower()
        if name in ("gzip", "deflate", "x-gzip"):
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
        elif name not in ("", "identity", "none"):
            self._told.unreadable = True

    def feed(self, part: bytes, now: float) -> None:
        told = self._told
        told.came_last_seconds = now
        self.size_bytes += len(part)
        if told.unreadable:
            told.arrivals.append(Arrival(len(told.arrivals), "", 0.0, now, {}, len(part)))
            return
        text = part
        if self._inflate is not None:
            try:
                text = self._inflate.decompress(part)
            except zlib.error as error:
                raise ValueError(f"the body is not what its Content-Encoding says: {error}") from None
        if len(told.body_head) < 512:
            told.body_head += text[:512]
        self._count_comments(text, now)
        for message in self._decoder.feed(text):
            try:
                data = orjson.loads(message.data)
                number, sent = int(data["n"]), float(data["sent_ms"]) / 1000
            except (ValueError, KeyError, TypeError):
                continue  # not an event of ours
            told.arrivals.append(Arrival(number, message.event, sent, now, data, len(message.data) + 12))

    def _count_comments(self, text: bytes, now: float) -> None:
        """A line that begins with a colon. The first one stands at the head of the response and is not counted."""
        lines = text.split(b"\n")
        for index, line in enumerate(lines):
            begins = self._at_line_start if index == 0 else True
            if begins and line.startswith(_KEEP_ALIVE_LINE):
                self._comments += 1
                if self._comments > 1:
                    self._told.comments.append(now)
        self._at_line_start = text.endswith(b"\n") if text else self._at_line_start


async def negotiated(url: httpx2.URL, client: Client) -> str | None:
    """What TLS agrees on when a browser's protocols are offered: h2, http/1.1, or "" for none. None if there is no TLS."""
    if url.scheme != "https":
        return None
    context = _verifying.__wrapped__(client.insecure)  # its own: it is told other protocols
    context.set_alpn_protocols(["h2", "http/1.1"])
    host = client.host or url.host
    try:
        async with asyncio.timeout(client.timeout_seconds):
            _, writer = await asyncio.open_connection(url.host, url.port or 443, ssl=context, server_hostname=host)
    except (OSError, TimeoutError):
        return None
    agreed = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    writer.transport.abort()
    return agreed or ""


def _reason(error: Exception) -> str:
    """In words that a person can act on."""
    text = str(error) or type(error).__name__
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
        return f"the connection was cut ({text})"
    return text[:200]
