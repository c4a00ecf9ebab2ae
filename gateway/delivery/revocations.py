"""Ends readers whose credential does not hold any more: it has expired, or was revoked.

A resumable reader shows its credential again when its connection has reached its age (MIDSTREAM_CONNECTION_SECONDS). Others,
whose connection lasts as long as their stream, are looked at that often; with MIDSTREAM_REVOKE_ENDS_READERS all are, each second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gateway.access.authenticators import Proof, proof
from gateway.delivery.reader import Reader
from gateway.http.problems import Problem
from shared.background import pause
from shared.settings import Settings

logger = logging.getLogger(__name__)

_AT_ONCE_SECONDS = 1.0
_PRUNE_SECONDS = 10.0
"""How often readers that have left are forgotten: until then each keeps 1 KB."""
_PROOFS_AT_ONCE = 200
"""Proofs that are looked at in one turn of the event loop: 1 ms."""


class Revocations:
    """Looks at the proofs of readers from time to time. `end` ends a reader; one whose socket is full stays until the next look."""

    def __init__(self, settings: Settings, end: Callable[[Reader], None]) -> None:
        self._end = end
        self._pause_seconds = min(_PRUNE_SECONDS, settings.connection_seconds)
        self._looks_per_check = max(1, round(settings.connection_seconds / self._pause_seconds))
        if settings.revoke_ends_readers:
            self._pause_seconds, self._looks_per_check = _AT_ONCE_SECONDS, 1
        self._readers: dict[str, tuple[Proof, list[Reader]]] = {}
        """By token: readers with the same are looked at together."""

    def watch(self, reader: Reader) -> None:
        """Notes a reader with the proof of the current request; nothing where authentication is off."""
        shown = proof.get()
        if shown is not None:
            self._readers.setdefault(shown.token, (shown, []))[1].append(reader)

    async def run(self) -> None:
        """Looks for ever."""
        looks = 0
        while True:
            await pause(self._pause_seconds)
            self._prune()
            looks += 1
            if looks % self._looks_per_check == 0:
                await self._check()

    def _prune(self) -> None:
        for token, (_, readers) in list(self._readers.items()):
            readers[:] = [reader for reader in readers if not reader.closed]
            if not readers:
                del self._readers[token]

    async def _check(self) -> None:
        for number, (shown, readers) in enumerate(list(self._readers.values()), 1):
            try:
                holds = await shown.holds()
            except Problem:  # it cannot be known while Redis is away
                continue
            if not holds:
                logger.info(
                    "%d readers of %s are ended: their credential does not hold any more", len(readers), shown.name
                )
                for reader in readers:
                    self._end(reader)
            if number % _PROOFS_AT_ONCE == 0:
                await asyncio.sleep(0)
