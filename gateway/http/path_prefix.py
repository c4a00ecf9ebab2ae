"""The path below which a proxy offers the gateway (MIDSTREAM_PATH_PREFIX)."""

from __future__ import annotations

import re

from gateway.http.connection import Scope
from shared.errors import Unusable

_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")


class PathPrefix:
    """Takes the prefix off a request's path, if the proxy has not. `X-Forwarded-Prefix` is not trusted: anybody can send it."""

    def __init__(self, prefix: str) -> None:
        """Raises Unusable."""
        if prefix and not _PREFIX.fullmatch(prefix):
            raise Unusable(f"MIDSTREAM_PATH_PREFIX: {prefix[:80]!r} is not a path like /ai, without a final slash")
        self._prefix = prefix

    def take_off(self, scope: Scope) -> None:
        prefix = self._prefix
        if prefix and scope["path"].startswith(f"{prefix}/"):
            scope["path"] = scope["path"][len(prefix) :]
            if scope["raw_path"].startswith(f"{prefix}/".encode()):
                scope["raw_path"] = scope["raw_path"][len(prefix) :]
