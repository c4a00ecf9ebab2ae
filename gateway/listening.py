"""Listening sockets: one for a gateway of one process, or one for each of its processes, all at the same port.

With SO_REUSEPORT Linux spreads new connections over the sockets that listen at a port, by a hash of their addresses.
Processes that share one listening socket instead compete for each connection, and the one that wakes up first gets most.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

from shared.errors import Unusable
from shared.settings import Settings

BACKLOG = 8192
"""Connections that wait to be accepted: all readers of a gateway that died come at once."""

CAN_SHARE = sys.platform == "linux" and hasattr(socket, "SO_REUSEPORT")
"""Whether this system spreads connections. macOS has the option too, and gives them all to one socket."""


def listen(settings: Settings) -> socket.socket:
    """The listening socket of a gateway of one process. Raises Unusable."""
    listening = _bound(settings)
    try:
        listening.listen(BACKLOG)
    except OSError as error:  # somebody else has bound the port too, and was faster
        listening.close()
        raise _cannot_listen(settings, error) from None
    return listening


def reserve(settings: Settings) -> socket.socket:
    """A socket that takes the port for the processes of one gateway, and never listens itself. Raises Unusable.

    While it is open only sockets made by `beside`, of the same user, can be bound there: not another gateway that
    somebody started by mistake, although this one's processes may not listen yet, or have all died.
    """
    reserved = _bound(settings)  # alone: whoever has the port already refuses it
    # Only now is it opened to others; and reuse of the address, which is for old connections in TIME_WAIT, ends, because
    # it would let everybody in who asks for the same.
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return reserved


def beside(reserved: socket.socket, settings: Settings) -> socket.socket:
    """A socket at a reserved port. It does not listen yet: no connection is given to it before its process is ready."""
    return _bound(settings, reserved.getsockname(), shared=True)


def listens(one: socket.socket) -> bool:
    """Whether connections are taken on it, by whichever process."""
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def is_reserved(one: socket.socket) -> bool:
    """Whether it comes from `reserve`, maybe in another process."""
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)) and not listens(one)


def _bound(settings: Settings, address: Any = None, *, shared: bool = False) -> socket.socket:
    """A socket at this address, or where the settings say. Raises Unusable."""
    one: socket.socket | None = None
    try:
        family, kind, protocol, _, told = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        one = socket.socket(family, kind, protocol)
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit these two.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer_bytes)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            timeout_milliseconds = int(settings.dead_peer_seconds * 1000)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_milliseconds)
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(address or told)
    except OSError as error:
        if one is not None:
            one.close()
        raise _cannot_listen(settings, error) from None
    return one


def _cannot_listen(settings: Settings, error: OSError) -> Unusable:
    return Unusable(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}")
