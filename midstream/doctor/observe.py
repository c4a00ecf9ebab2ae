"""Sends one request through one address, and notes when each byte of the response came. `checks` judges it."""

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

from shared.sse import Decoder, EventTooLong

_BODY_BYTES_MAX = 32 << 20
"""More than any probe sends: a longer body is not a gateway's."""
_KEEP_ALIVE_LINE = b":"
ENCODINGS = "gzip, deflate, br, zstd"
"""What browsers accept."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One event of the probe."""

    number: int
    event: str
    sent_seconds: float
    """On the gateway's clock, since the response began."""
    came_seconds: float
    """On this machine's clock, since the request was sent."""
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
    """When each comment line came, except the first, which opens the response."""
    ended_seconds: float = 0.0
    error: str = ""
    """Why the response ended, if not at the end that HTTP gives it."""
    left: bool = False
    """Whether we closed it, on purpose or because the time was up."""
    body_head: bytes = b""
    unreadable: bool = False
    """Whether the body has an encoding that we cannot read: then only the times of its bytes are known."""

    def header(self, name: str) -> str:
        return ", ".join(value for key, value in self.headers if key == name)

    @property
    def first(self) -> dict[str, Any]:
        """The data of the `probe` event: what the gateway received."""
        for arrival in self.arrivals:
            if arrival.event == "probe":
                return arrival.data
        return {}

    @property
    def seen(self) -> Mapping[str, str]:
        """The request's headers as the gateway received them."""
        headers: Mapping[str, str] = self.first.get("seen", {}).get("headers", {})
        return headers

    @property
    def whole(self) -> bool:
        return any(arrival.event == "end" for arrival in self.arrivals)


@dataclass(frozen=True, slots=True)
class Client:
    """The options with which every address is asked."""

    timeout_seconds: float
    """Limit for connecting, and for how much longer than planned a probe may take."""
    headers: Sequence[tuple[str, str]] = ()
    insecure: bool = False
    """Do not verify certificates: an inner address rarely has one for its own name."""

    @property
    def host(self) -> str:
        """The name in the Host header of `headers`, without the port; empty if there is none."""
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
        """Asks for a probe over a new connection. Never raises for a fault on the path: it is in the observation."""
        observation = Observation(url)
        body = _Body(observation)
        sent_headers = {
            "accept": "text/event-stream, application/problem+json",  # a gateway that refuses is to say so
            "accept-encoding": encodings,
            **dict(self.headers),
            **(headers or {}),
        }
        limit_seconds = planned_seconds + self.timeout_seconds
        if leave_after_seconds is not None:
            limit_seconds = min(limit_seconds, leave_after_seconds)
        began = time.monotonic()
        try:
            async with asyncio.timeout(limit_seconds), self._http() as http:
                request = http.build_request("GET", url, params=dict(parameters), headers=sent_headers)
                response = await http.send(self._with_server_name(request), stream=True)
                try:
                    observation.status, observation.http_version = response.status_code, response.http_version
                    observation.headers = [(name.lower(), value) for name, value in response.headers.multi_items()]
                    body.encoded_as(observation.header("content-encoding"))
                    async for part in response.aiter_raw():
                        body.feed(part, time.monotonic() - began)
                        if body.size_bytes > _BODY_BYTES_MAX:
                            observation.error = f"more than {_BODY_BYTES_MAX >> 20} MiB came, which no probe sends"
                            break
                        if leave_after_events and len(observation.arrivals) >= leave_after_events:
                            observation.left = True
                            break
                finally:
                    await response.aclose()
        except TimeoutError:
            observation.left = True
            observation.error = f"nothing more came in {limit_seconds:.0f} s"
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, EventTooLong, ValueError, OSError) as error:
            observation.error = _reason(error)
        observation.ended_seconds = time.monotonic() - began
        return observation

    async def get_json(self, url: str) -> dict[str, Any] | None:
        """Returns the JSON object at a URL; None if there is none, or none within `timeout_seconds`."""
        try:
            async with asyncio.timeout(self.timeout_seconds), self._http() as http:
                request = http.build_request("GET", url, headers=dict(self.headers))
                response = await http.send(self._with_server_name(request), stream=True)
                body = bytearray()
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > _BODY_BYTES_MAX:
                        return None
                found = orjson.loads(body) if response.status_code == 200 else None
        except (httpx2.HTTPError, httpx2.StreamError, ValueError, OSError):  # TimeoutError is an OSError
            return None
        return found if isinstance(found, dict) else None

    def _http(self) -> httpx2.AsyncClient:
        """Returns a new client: every probe has its own connection. A proxy of the environment is not used: it would add a hop."""
        timeout = httpx2.Timeout(None, connect=self.timeout_seconds)
        return httpx2.AsyncClient(timeout=timeout, verify=_verifying(self.insecure), trust_env=False)

    def _with_server_name(self, request: httpx2.Request) -> httpx2.Request:
        """Makes TLS ask for the name in the Host header (SNI)."""
        if self.host and request.url.scheme == "https":
            request.extensions = {**request.extensions, "sni_hostname": self.host}
        return request


@functools.cache
def _verifying(insecure: bool) -> ssl.SSLContext:
    """Returns a context that is made once: reading all certificates would show in the times of events."""
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _Body:
    """Decodes the bytes of a response into an observation, as they come."""

    def __init__(self, observation: Observation) -> None:
        self._observation = observation
        self._decoder = Decoder()
        self._inflate: Any = None
        self._at_line_start = True
        self._comments = 0
        self.size_bytes = 0
        """Of the decoded body, or of one that cannot be decoded."""

    def encoded_as(self, encoding: str) -> None:
        name = encoding.strip().lower()
        if name in ("gzip", "deflate", "x-gzip"):
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
        elif name not in ("", "identity", "none"):
            self._observation.unreadable = True

    def feed(self, part: bytes, now: float) -> None:
        """Takes bytes of the body that came at `now` (seconds since the request). Raises ValueError, EventTooLong."""
        observation = self._observation
        if observation.unreadable:
            self.size_bytes += len(part)
            observation.arrivals.append(Arrival(len(observation.arrivals), "", 0.0, now, {}, len(part)))
            return
        text = part
        if self._inflate is not None:
            try:
                text = self._inflate.decompress(part, _BODY_BYTES_MAX + 1)
            except zlib.error as error:
                raise ValueError(f"the body is not what its Content-Encoding says: {error}") from None
        self.size_bytes += len(text)
        if len(observation.body_head) < 512:
            observation.body_head += text[:512]
        self._count_comments(text, now)
        for message in self._decoder.feed(text):
            try:
                data = orjson.loads(message.data)
                number, sent = int(data["n"]), float(data["sent_ms"]) / 1000
            except (ValueError, KeyError, TypeError):
                continue  # not a probe's event
            observation.arrivals.append(Arrival(number, message.event, sent, now, data, len(message.data) + 12))

    def _count_comments(self, text: bytes, now: float) -> None:
        """Notes lines that begin with a colon, except the first, which opens the response."""
        lines = text.split(b"\n")
        for index, line in enumerate(lines):
            begins = self._at_line_start if index == 0 else True
            if begins and line.startswith(_KEEP_ALIVE_LINE):
                self._comments += 1
                if self._comments > 1:
                    self._observation.comments.append(now)
        self._at_line_start = text.endswith(b"\n") if text else self._at_line_start


async def negotiated(url: httpx2.URL, client: Client) -> str | None:
    """Returns what TLS agrees on when a browser's protocols are offered: h2, http/1.1 or "" (none). None if there is no TLS."""
    if url.scheme != "https":
        return None
    context = _verifying.__wrapped__(client.insecure)  # not the cached one: other protocols are set
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
    """Returns an error in words that a person can act on."""
    text = str(error) or type(error).__name__
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError):
        return f"the connection was cut ({text})"
    return text[:200]
