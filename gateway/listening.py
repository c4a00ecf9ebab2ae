"""Listening sockets: one for a gateway of one process, or one for each process of a gateway, all at the same port.

With SO_REUSEPORT Linux spreads new connections over the sockets that listen at a port, by a hash of the addresses.
If processes shared one listening socket, they would compete for each connection, and the fastest to wake would get most.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any

from shared.errors import Unusable
from shared.settings import Settings

BACKLOG = 8192
"""So many connections may wait to be accepted: when a gateway dies, all its readers come at once."""

CAN_SHARE = sys.platform == "linux" and hasattr(socket, "SO_REUSEPORT")
"""Whether this system spreads connections. macOS has the option, too, but gives all connections to one socket."""


def is_loopback(host: str) -> bool:
    """Whether only the machine itself can reach this address or name."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(settings: Settings) -> socket.socket:
    """Returns the listening socket of a gateway of one process. Raises Unusable."""
    listening = _bound(settings)
    try:
        listening.listen(BACKLOG)
    except OSError as error:  # another process has bound the port, too, and listened first
        listening.close()
        raise _cannot_listen(settings, error) from None
    return listening


def reserve(settings: Settings) -> socket.socket:
    """Returns a socket that takes the port for the processes of one gateway, and never listens. Raises Unusable.

    While it is open, only sockets of the same user with SO_REUSEPORT (`beside`) can be bound to the port. So a second
    gateway that was started by mistake is refused, even while no process of this one listens.
    """
    reserved = _bound(settings)  # without SO_REUSEPORT: fails if anybody has the port
    # Other sockets may share the port from now on. SO_REUSEADDR, which is for old connections in TIME_WAIT, is taken back:
    # it would let in any socket that has it set.
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return reserved


def beside(reserved: socket.socket, settings: Settings) -> socket.socket:
    """Returns a socket at a reserved port. It does not listen yet, so it gets no connection before its process is ready."""
    return _bound(settings, reserved.getsockname(), shared=True)


def listens(candidate: socket.socket) -> bool:
    """Returns whether a socket listens, in whichever process."""
    return bool(candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def is_reserved(candidate: socket.socket) -> bool:
    """Returns whether a socket comes from `reserve`, maybe in another process."""
    return bool(candidate.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)) and not listens(candidate)


def _bound(settings: Settings, address: Any = None, *, shared: bool = False) -> socket.socket:
    """Returns a socket bound to `address`, or where the settings say. Raises Unusable."""
    bound: socket.socket | None = None
    try:
        family, kind, protocol, _, default_address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit the next two options.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer_bytes)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            timeout_milliseconds = int(settings.dead_peer_seconds * 1000)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_milliseconds)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address or default_address)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise _cannot_listen(settings, error) from None
    return bound


def _cannot_listen(settings: Settings, error: OSError) -> Unusable:
    return Unusable(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}")
