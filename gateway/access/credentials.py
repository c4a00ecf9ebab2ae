"""The credentials of a request, which are taken out of it: what no later part of the gateway has, none can log or show."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from urllib.parse import unquote_plus

from gateway.http.connection import Scope

STREAM_COOKIE, SESSION_COOKIE = "midstream_token", "midstream_session"
QUERY_NAME = "access_token"
"""RFC 6750, section 2.3."""
_TOKEN_BYTES_MAX = 8192
"""A JWT of an identity provider that lists many groups has 4 KB."""
_COOKIE_BYTES_MAX = 16_384


@dataclass(slots=True)
class Credentials:
    """The credentials that one request carries, by the place in which they stand."""

    header: str | None = None
    """The token of `Authorization: Bearer`; empty if that header is there in another form, or more than once."""
    query: str | None = None
    """The token of `?access_token=`."""
    cookies: dict[str, str] = field(default_factory=dict)
    """The cookies that may be credentials, by their names."""

    def __bool__(self) -> bool:
        return self.header is not None or self.query is not None or bool(self.cookies)

    @property
    def kind(self) -> str:
        """The place of the credential that is looked at first, for the metrics: `header`, `query`, `cookie` or `none`."""
        if self.header is not None:
            return "header"
        if self.query is not None:
            return "query"
        return "cookie" if self.cookies else "none"


def take_credentials(scope: Scope, cookie_names: Container[str]) -> Credentials:
    """Returns the credentials of a request, and removes them from its scope, with all cookies."""
    found = Credentials()
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    if any(name in (b"authorization", b"cookie") for name, _ in headers):
        for name, value in headers:
            if name == b"authorization":
                found.header = "" if found.header is not None else _bearer(value)
            elif name == b"cookie" and len(value) <= _COOKIE_BYTES_MAX:
                _add_cookies(value, cookie_names, found.cookies)
        scope["headers"] = [header for header in headers if header[0] not in (b"authorization", b"cookie")]
    query: bytes = scope["query_string"]
    if b"access" in query or b"%" in query:
        found.query = _taken_from_query(scope)
    return found


def _bearer(value: bytes) -> str:
    """Returns the token of an `Authorization: Bearer` (RFC 6750, section 2.1), or nothing."""
    scheme, _, token = value.partition(b" ")
    token = token.strip()
    return token.decode("latin-1") if scheme.lower() == b"bearer" and len(token) <= _TOKEN_BYTES_MAX else ""


def _taken_from_query(scope: Scope) -> str | None:
    """Takes every `access_token` out of the query, however its name is written; returns the last one's value."""
    token, others = None, []
    for part in scope["query_string"].split(b"&"):
        name, _, value = part.partition(b"=")
        if unquote_plus(name.decode("latin-1")) == QUERY_NAME:
            token = unquote_plus(value[:_TOKEN_BYTES_MAX].decode("latin-1"))
        else:
            others.append(part)
    if token is not None:
        scope["query_string"] = b"&".join(others)
    return token


def _add_cookies(value: bytes, names: Container[str], found: dict[str, str]) -> None:
    """Adds the cookies with these names (RFC 6265, section 4.2.1). The first of a name counts: it has the longest path."""
    for pair in value.decode("latin-1").split(";"):
        name, _, text = pair.strip().partition("=")
        if name in names and text:
            found.setdefault(name, text.strip('"'))
