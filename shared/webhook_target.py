"""Where a webhook may go: which URLs are taken, and which addresses may be connected to (against server-side request forgery).

A URL is checked when a stream is created: its scheme, its host's name, and the form of both. The address is checked when it is sent,
after the name was resolved, and the connection is made to the very address that was checked: what a name resolves to later, or for
somebody else, does not matter (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from shared.errors import MidstreamError, Unusable
from shared.settings import Settings

URL_CHARACTERS_MAX = 2048
"""Of a webhook's URL, which is stored with each stream: longer ones do not work everywhere."""
_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}))"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>/[!\"$-\[\]-~]*)?(?P<query>\?[!\"$-\[\]-~]*)?"
)
"""One form only, which no two parsers read differently: no user, no fragment, no backslash, no spaces, no control characters,
nothing but ASCII (RFC 3986)."""
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label of which the resolver of the C library, and browsers, make an IPv4 address (URL Standard, section 3.5)."""
_IPV6_IN_USE = ipaddress.IPv6Network("2000::/3")
"""What IANA has given out for global unicast; all else is local, reserved, or IPv4 in another form."""
_6TO4, _TEREDO = ipaddress.IPv6Network("2002::/16"), ipaddress.IPv6Network("2001::/32")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class BadTarget(MidstreamError):
    """A webhook may not be sent there. The message shows no path and no query, which may have a secret."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that was taken apart."""

    scheme: str
    host: str
    """In lower case; an IPv6 address without brackets."""
    port: int
    path: str
    """With the query."""

    @property
    def authority(self) -> str:
        """The host, in brackets if need be, and the port if it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def target_of(url: str) -> Target:
    """Returns the parts of a URL. Raises BadTarget for what is not of the one form that is taken."""
    match = _URL.fullmatch(url) if len(url) <= URL_CHARACTERS_MAX else None
    if match is None:
        raise BadTarget(
            "it must be an https URL of at most 2048 ASCII characters, without user, fragment, spaces and backslashes"
        )
    host = match["host"].lower().removesuffix(".")
    port = int(match["port"] or (443 if match["scheme"] == "https" else 80))
    if port > 65535:
        raise BadTarget(f"{port} is no port")
    if host.startswith("["):
        host = host[1:-1]
    if address_in(host) is None and not (
        all(_LABEL.fullmatch(label) for label in host.split(".")) and not _NUMBER.fullmatch(host.rpartition(".")[2])
    ):
        raise BadTarget(f"{host} is neither a host's name nor an IP address in its usual form")
    path = (match["path"] or "/") + (match["query"] or "")
    return Target(match["scheme"], host, port, path)


def address_in(host: str) -> Address | None:
    """Returns the IP address that a host is, in its usual form; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class Targets:
    """What the settings allow."""

    def __init__(self, settings: Settings) -> None:
        """Raises Unusable for settings that cannot be read."""
        self._schemes = ("http", "https") if settings.webhook_http else ("https",)
        self._hosts = frozenset(name.strip().lower() for name in settings.webhook_hosts.split(",") if name.strip())
        try:
            self._networks = [
                ipaddress.ip_network(text.strip()) for text in settings.webhook_networks.split(",") if text.strip()
            ]
        except ValueError as error:
            raise Unusable(f"MIDSTREAM_WEBHOOK_NETWORKS: {error}") from None

    @property
    def names_hosts(self) -> bool:
        """Whether clients may name a webhook at all."""
        return bool(self._hosts)

    def check(self, url: str, *, is_operators: bool) -> Target:
        """Returns the parts of a URL to which a webhook may go. Raises BadTarget.

        `is_operators`: it is in the settings or with a key, so that its host need not be in MIDSTREAM_WEBHOOK_HOSTS.
        """
        target = target_of(url)
        if target.scheme not in self._schemes:
            raise BadTarget("it must be an https URL")
        address = address_in(target.host)
        if address is not None and not self.allows(address):
            raise BadTarget(f"{target.host} is no public address")
        if target.host == "localhost" and not self._networks:
            raise BadTarget("localhost is no public address")
        if not is_operators and not self._has(target.host):
            raise BadTarget(f"{target.host} is not among MIDSTREAM_WEBHOOK_HOSTS")
        return target

    def _has(self, host: str) -> bool:
        if "*" in self._hosts or host in self._hosts:
            return True
        return any(name.startswith("*.") and host.endswith(name[1:]) for name in self._hosts)

    def allows(self, address: Address) -> bool:
        """Returns whether a connection to an address may be made: a public one, or one of MIDSTREAM_WEBHOOK_NETWORKS."""
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped  # the system connects to that
        if any(address in network for network in self._networks if network.version == address.version):
            return True
        if isinstance(address, ipaddress.IPv6Address):
            has_ipv4_inside = address in _6TO4 or address in _TEREDO
            return address in _IPV6_IN_USE and not has_ipv4_inside and address.is_global
        return address.is_global and not address.is_multicast and not address.is_reserved
