"""Who gives a command: for the audit lines of what changes keys or answers."""

from __future__ import annotations

import getpass
import os
import socket


def operator() -> dict[str, str]:
    """Returns the fields of an audit line for the account that runs this process, and its machine."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # in a container the account may have no name
        name = str(os.getuid())
    return {"principal": f"account:{name}", "host": socket.gethostname()}
