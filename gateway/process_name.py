"""The name of this process, as receipts and the console show it."""

from __future__ import annotations

import os
import socket


def gateway_name() -> str:
    """Returns `<host>-<process id>`."""
    return f"{socket.gethostname()}-{os.getpid()}"
