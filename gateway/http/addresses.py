"""The limit on the requests that one address has under way in this process: most of them follow a stream, each over a connection.

An address is the peer's. If that is a trusted proxy, it is the last one in `X-Forwarded-For` that no trusted proxy has: what stands
before it was written by the client, who may write anything.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache

from gateway import metrics
from gateway.http.connection import Scope
from gateway.http.problems import too_many
from shared.errors import Unusable
from shared.settings import Settings

_HOPS_MAX = 32
"""Proxies behind one another that are looked at."""
_RETRY_SECONDS = 5
_IPV6_PREFIX = 64
"""A host has a network of so many bits, in which it can choose any address."""
_ADDRESS_CHARACTERS_MAX = 80
"""Of an IPv6 address with a zone, brackets and a port."""
_KNOWN_MAX = 4096
"""Texts whose parsing is remembered: it takes 2 microseconds of each request."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Place:
    """The place of one request among those of its address."""

    __slots__ = ("address", "outlives_request")

    def __init__(self, address: str) -> None:
        self.address = address
        self.outlives_request = False
        """A reader has it: it is given back when the reader's connection ends."""


place: ContextVar[Place | None] = ContextVar("place", default=None)
"""The place of the current request; None where there is no limit."""
client_address: ContextVar[Address | None] = ContextVar("client_address", default=None)
"""The address that the current request comes from, for the audit log; None if the connection has none."""


class Addresses:
    """The requests under way by address. Raises Unusable for networks that are none."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.limit_connections
        self._trusted = [*_networks(settings.trusted_proxies)]
        self._under_way: Counter[str] = Counter()

    def enter(self, scope: Scope) -> Place | None:
        """Takes a place for a request; None if its address has no limit. Raises Problem 429."""
        place.set(None)
        nearest, address = self._addresses_of(scope)
        client_address.set(address or nearest)
        if not self._limit or address is None:
            return None
        counted = _shown(address)
        if self._under_way[counted] >= self._limit:
            metrics.over_limit("connections", "address")
            raise too_many(
                f"one address may have {self._limit} requests under way at the same time, readers among them",
                *("connections", self._limit, "concurrent-requests", _RETRY_SECONDS),
            )
        self._under_way[counted] += 1
        taken = Place(counted)
        place.set(taken)
        return taken

    def request_ended(self, taken: Place | None) -> None:
        """Gives the place of a request back, unless a reader has it."""
        if taken is not None and not taken.outlives_request:
            self.leave(taken)

    def leave(self, taken: Place) -> None:
        self._under_way[taken.address] -= 1
        if not self._under_way[taken.address]:
            del self._under_way[taken.address]

    def counted(self, peer: str) -> str:
        """Returns how a peer's address is counted; empty for a trusted proxy's, and for what is none."""
        address = _parsed(peer)
        return "" if address is None or self._is_trusted(address) else _shown(address)

    def address_of(self, scope: Scope) -> str:
        """Returns the address that a request comes from; empty for a request of a trusted proxy itself, such as a health check."""
        address = self._addresses_of(scope)[1]
        return "" if address is None else _shown(address)

    def _addresses_of(self, scope: Scope) -> tuple[Address | None, Address | None]:
        """Returns the peer's address, and that of the client; None of a trusted proxy's own request."""
        client = scope.get("client")
        nearest = None if client is None else _parsed(client[0])
        if nearest is None or not self._is_trusted(nearest):
            return nearest, nearest
        address = None
        for hop in _forwarded_for(scope):
            parsed = _parsed(hop)
            if parsed is None:
                break  # whoever wrote that is not trusted to have written what stands before it
            address = parsed
            if not self._is_trusted(parsed):
                break
        return nearest, address

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _networks(text: str) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            yield ipaddress.ip_network(part)
        except ValueError as error:
            raise Unusable(
                f"MIDSTREAM_TRUSTED_PROXIES={part!r} must be addresses or networks, as in 10.0.0.0/8: {error}"
            ) from None


def _forwarded_for(scope: Scope) -> list[str]:
    """Returns the addresses in `X-Forwarded-For`, the one that the nearest proxy has added first."""
    values = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
    return [hop.strip() for hop in ",".join(values).rsplit(",", _HOPS_MAX)][::-1][:_HOPS_MAX] if values else []


def _parsed(text: str) -> Address | None:
    """Returns an address, also one with a port, as some proxies write it; None for anything else."""
    return _parsed_short(text) if len(text) <= _ADDRESS_CHARACTERS_MAX else None


@lru_cache(_KNOWN_MAX)
def _parsed_short(text: str) -> Address | None:
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _shown(address: Address) -> str:
    """Returns what is counted: an IPv4 address, or the network of an IPv6 address."""
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address) >> (128 - _IPV6_PREFIX) << (128 - _IPV6_PREFIX), _IPV6_PREFIX)))
