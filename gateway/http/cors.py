"""Which pages may use the gateway: those of its own origin, and of the origins that MIDSTREAM_CORS_ORIGINS names.

A browser lets a page read another origin's answer only if that answer says so (the Fetch standard's CORS protocol). But
it sends many requests before it knows: a form's POST, an `<img src="…/stream?prompt=…">`, an EventSource. So what changes
something is refused here when it comes from a page of another origin; otherwise any web page could have answers generated
by a gateway that its visitor's browser can reach. Only browsers send `Origin` and `Sec-Fetch-Site`, and their pages cannot
change them; a request that has neither comes from a program, to which none of this applies.
"""

from __future__ import annotations

import re

from starlette.responses import Response

from gateway.http.connection import Scope
from gateway.http.problems import Problem
from shared.errors import Unusable

Headers = list[tuple[bytes, bytes]]

_EXPOSED = (
    b"X-Stream-Id, X-Midstream-Access-Token, Location, Retry-After, ETag, Stream-Next-Offset, Stream-Cursor, Stream-Up-To-Date, Stream-Closed, "
    b"Stream-Outcome, Stream-Readers, Stream-TTL, Stream-Expires-At, Stream-SSE-Data-Encoding, Producer-Epoch, Producer-Seq, "
    b"Producer-Expected-Seq, Producer-Received-Seq"
)
_METHODS = b"GET, HEAD, POST, PUT, DELETE"
_MAX_AGE_SECONDS = b"7200"  # Chromium keeps it no longer
_READING = ("GET", "HEAD", "OPTIONS")
_CREATING_PATH = "/stream"
_ORIGINS_MAX = 100
_HEADER_NAMES_BYTES_MAX = 4096
_ORIGIN = re.compile(
    r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?"
    r"|(?!https?:)[a-z][a-z0-9+.-]*://[^\s/?#@,*]*"  # an app's own scheme: tauri://localhost, app://., file://
)
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+( *, *[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}


class Cors:
    """What a request may do, by its origin. `origins` is the setting: exact origins, or `*` for all."""

    def __init__(self, origins: str) -> None:
        """Raises Unusable."""
        listed = [_without_slash(origin.strip().lower()) for origin in origins.split(",") if origin.strip()]
        self._everybody = listed == ["*"]
        for origin in [] if self._everybody else listed:
            if not _ORIGIN.fullmatch(origin):
                raise Unusable(
                    f"MIDSTREAM_CORS_ORIGINS: {origin[:80]!r} is not an origin: "
                    "https://app.example.com is one (no path), so is tauri://localhost; several are separated by commas, and "
                    "* alone is all"
                )
        if len(listed) > _ORIGINS_MAX:
            raise Unusable(f"MIDSTREAM_CORS_ORIGINS: {len(listed)} origins are given, and {_ORIGINS_MAX} are the most")
        self._allowed = frozenset(origin.encode() for origin in listed)

    def headers(self, scope: Scope) -> Headers:
        """The headers that every answer to this request gets."""
        if not self._allowed:
            return []
        if self._everybody:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED)]
        origin = _header(scope, b"origin")
        if origin is None or origin not in self._allowed:
            return [(b"vary", b"origin")]
        return [
            (b"access-control-allow-origin", _as_sent(scope, b"origin")),  # browsers compare it byte by byte
            (b"access-control-allow-credentials", b"true"),  # cookies: never with *, whose pages are strangers
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"origin"),
        ]

    def preflight(self, scope: Scope) -> Response | None:
        """The answer to a preflight, by which a browser asks whether a page may send a request; None for any other request.

        The headers that allow the origin are added as to every answer. An allowed page may send any header: it is trusted,
        and clients' libraries send many. Raises Problem 403.
        """
        if scope["method"] != "OPTIONS" or _header(scope, b"access-control-request-method") is None:
            return None
        origin = _header(scope, b"origin")
        if origin is None or not (self._allows(origin) or _is_same_origin(scope, origin)):
            raise _refused(origin or b"")
        names = _header(scope, b"access-control-request-headers") or b""
        allowed = names if len(names) <= _HEADER_NAMES_BYTES_MAX and _HEADER_NAMES.fullmatch(names) else b""
        response = Response(status_code=204)
        response.raw_headers += [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", allowed),
            (b"access-control-max-age", _MAX_AGE_SECONDS),
            (b"vary", b"access-control-request-headers"),
        ]
        return response

    def check(self, scope: Scope) -> None:
        """Raises Problem 403 if a page of an origin that is not allowed wants to change something, or to open a WebSocket:
        browsers open one to any origin and let the page read it."""
        if scope["type"] == "http" and scope["method"] in _READING and scope["path"] != _CREATING_PATH:
            return
        origin = _header(scope, b"origin")
        if origin is not None:
            if not (self._allows(origin) or _is_same_origin(scope, origin)):
                raise _refused(origin)
        elif _header(scope, b"sec-fetch-site") in (b"cross-site", b"same-site") and not self._everybody:
            raise _refused(b"another site")  # a link, an image, a frame: browsers do not say whose

    def lets_cookies_count(self, scope: Scope) -> bool:
        """Returns whether the page that sends a request may act for its user: browsers add cookies to any page's requests.

        A page of this origin may, one of a listed origin, and whoever types the address; with `*` no other. A request that says
        nothing of a page comes from a program, or from an old browser that keeps `SameSite` cookies from other sites.
        """
        origin = _header(scope, b"origin")
        if origin is not None and (origin in self._allowed or _is_same_origin(scope, origin)):
            return True
        return origin is None and _header(scope, b"sec-fetch-site") in (None, b"same-origin", b"none")

    def _allows(self, origin: bytes) -> bool:
        return self._everybody or origin in self._allowed


def _is_same_origin(scope: Scope, origin: bytes) -> bool:
    """Whether `Sec-Fetch-Site` says so; over plain HTTP, where browsers do not send it, whether the origin's host is the request's.

    A proxy that changes `Host` sends the original in `X-Forwarded-Host`. A page cannot set that without a preflight.
    """
    site = _header(scope, b"sec-fetch-site")
    if site is not None:
        return site == b"same-origin"
    scheme, _, host = origin.partition(b"://")
    default_port = _DEFAULT_PORTS.get(scheme)
    if default_port is None:
        return False  # a page of an app: its host is not one of the network
    hosts = (_header(scope, b"host"), _header(scope, b"x-forwarded-host"))
    return bool(host) and any(named is not None and named.removesuffix(default_port) == host for named in hosts)


def _refused(origin: bytes) -> Problem:
    who = origin[:200].decode("latin-1")
    return Problem(403, f"pages of {who} may not do this; the operator can let them in with MIDSTREAM_CORS_ORIGINS")


def _without_slash(origin: str) -> str:
    """An origin without the slash that people copy with it. `file://` is one already."""
    return origin if origin.endswith("://") else origin.removesuffix("/")


def _header(scope: Scope, name: bytes) -> bytes | None:
    for field, value in scope["headers"]:
        if field == name:
            lowered: bytes = value.strip().lower()
            return lowered
    return None


def _as_sent(scope: Scope, name: bytes) -> bytes:
    value: bytes = next(value for field, value in scope["headers"] if field == name)
    return value.strip()
