"""Audit lines of a gateway: who has cancelled or deleted a stream, or was not let in, from which address.

The address is the client's (`gateway.http.addresses`). A line has no token and no text: docs/how-to/watch-it.md lists the events.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from gateway.http.addresses import Address, client_address
from gateway.http.principal import principal
from shared.logs import audit_line

_WINDOW_SECONDS = 60.0
_REFUSALS_MAX, _REFUSALS_OF_ADDRESS_MAX = 60, 10
"""Lines about refusals in a window, in all and of one address. A line has about 300 bytes, so a stranger who tries all day fills
26 MB of a process's log; and one address leaves room for others. `midstream_http_problems_total` counts every refusal."""


def audit(event: str, stream_id: str | None = None, **more: Any) -> None:
    """Writes a line about what the principal of the current request has done."""
    who = principal.get()
    address = client_address.get()
    fields = {"stream": stream_id, "principal": who.name, "service": who.service}
    audit_line(event, **fields, address=None if address is None else str(address), **more)


class Refusals:
    """Writes lines about requests that were not let in, as many as the limits above allow."""

    def __init__(self) -> None:
        self._window_ends_at = 0.0
        self._written: Counter[Address | None] = Counter()
        """Lines of this window by address."""
        self._left_out = 0
        """Refusals since the last line that have none."""

    def note(self, event: str, **more: Any) -> None:
        """Writes a line about the current request, or counts it for the next line."""
        now, address = time.monotonic(), client_address.get()
        if now >= self._window_ends_at:
            self._window_ends_at = now + _WINDOW_SECONDS
            self._written.clear()
        if self._written.total() >= _REFUSALS_MAX or self._written[address] >= _REFUSALS_OF_ADDRESS_MAX:
            self._left_out += 1
            return
        self._written[address] += 1
        left_out, self._left_out = self._left_out, 0
        audit(event, **more, left_out=left_out or None)
