"""Which host names the gateway answers for: the defence against DNS rebinding.

A page can make its own name point to 127.0.0.1, or to an address in its visitor's network. The browser then takes the
gateway for the page's own origin, and no rule about other origins applies. But `Host` still has the page's name.
"""

from __future__ import annotations

import ipaddress
import re

from gateway.http.connection import Scope
from gateway.http.problems import Problem
from gateway.listening import is_loopback
from shared.errors import Unusable
from shared.settings import Settings

_HOSTS_MAX = 100
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_SHOWN_CHARACTERS = 200


class Hosts:
    """The loopback names, literal addresses, and the configured names. All hosts with `*`, and by default where the gateway
    listens on more than a loopback address.

    A literal address cannot be pointed elsewhere, so a page with it in its URL came from there. Health checks and Prometheus
    use it to reach a pod.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises Unusable."""
        names = [name.strip().lower().rstrip(".") for name in settings.hosts.split(",") if name.strip()]
        self._all = names == ["*"] or (not names and not is_loopback(settings.host))
        for name in [] if self._all else names:
            if not _NAME.fullmatch(name):
                raise Unusable(
                    f"MIDSTREAM_HOSTS: {name[:80]!r} is not a host name: chat.example.com is one (no scheme, port or path), "
                    "several are separated by commas, and * alone is all"
                )
        if len(names) > _HOSTS_MAX:
            raise Unusable(f"MIDSTREAM_HOSTS: {len(names)} names are given, and {_HOSTS_MAX} are the most")
        self._names = frozenset(names)

    def check(self, scope: Scope) -> None:
        """Raises Problem 421 (RFC 9110, section 15.5.20) for another host. A request without one is not a browser's and may pass."""
        if self._all:
            return
        for name, value in scope["headers"]:
            if name == b"host" and value and not self._answers_for(value.decode("latin-1")):
                shown = value[:_SHOWN_CHARACTERS].decode("latin-1")
                raise Problem(
                    421,
                    f"MIDSTREAM_HOSTS does not name {shown!r}: this gateway answers for localhost, for addresses, and for what is named there",
                )

    def _answers_for(self, host: str) -> bool:
        name = _without_port(host).lower()
        if name.startswith("["):
            return is_address(name[1:-1])
        name = name.removesuffix(".")
        return name == "localhost" or name in self._names or name.endswith(".localhost") or is_address(name)


def is_address(text: str) -> bool:
    """Whether this is a literal IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and not port.strip("0123456789") and not host.endswith("]") else host
