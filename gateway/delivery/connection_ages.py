"""How long connections last: resumable readers are sent away after `connection_seconds`, each at a moment of its own.

So readers spread anew over the gateways, and a deployment's new gateways get their share.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable

from gateway.delivery.reader import Reader
from shared.background import TICK_SECONDS, pause

_SLOT_SECONDS, _SHORT_AGE_SECONDS = 1.0, 10.0
"""Readers that are due within so long are sent away together; where connections last for less than `_SHORT_AGE_SECONDS`, within a tick."""
_SENT_AWAY_AT_ONCE = 20
"""Readers that are sent away in one turn of the loop, which takes 2 ms; then others get what is new."""
_BUSY_GRACE_SECONDS = 5
"""How much later the next try comes, if a reader could not be sent away: its socket was full, or it was getting pages of the log."""


class ConnectionAges:
    """Calls `send_away` with each reader at its time. A reader that is still there afterwards is sent away again, later."""

    def __init__(self, connection_seconds: float, send_away: Callable[[Reader], None]) -> None:
        self._connection_seconds = connection_seconds
        self._slot_seconds = TICK_SECONDS if connection_seconds < _SHORT_AGE_SECONDS else _SLOT_SECONDS
        self._send_away = send_away
        self._slots: defaultdict[int, list[Reader]] = defaultdict(list)
        """The readers to send away in each slot (of the loop's time): few, so lists, which take half of the memory of sets."""
        self._emptied = 0
        """The slot that was emptied last."""

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._emptied = self._slot_now()

    def _slot_now(self) -> int:
        return int(self._loop.time() / self._slot_seconds)

    def add(self, reader: Reader) -> None:
        age_seconds = self._connection_seconds * random.uniform(0.8, 1.0)
        due = int((self._loop.time() + age_seconds) / self._slot_seconds)
        self._put(reader, max(self._slot_now() + 1, due))  # the slot of this moment may have been emptied already

    def _put(self, reader: Reader, slot: int) -> None:
        reader.age_slot = slot
        self._slots[slot].append(reader)

    def discard(self, reader: Reader) -> None:
        slot = self._slots.get(reader.age_slot)
        if slot is not None and reader in slot:
            slot.remove(reader)
            if not slot:
                del self._slots[reader.age_slot]

    async def run(self) -> None:
        """Empties each slot when its time has come, for ever."""
        while True:
            await pause(self._slot_seconds)
            now = self._slot_now()
            sent_away = 0
            while self._emptied < now:
                slot = self._slots.get(self._emptied + 1)
                while slot:  # popped before it is sent away: if that raises, the others are still in the slot
                    reader = slot.pop()
                    self._send_away(reader)
                    if not reader.closed:
                        self._put(reader, now + int(_BUSY_GRACE_SECONDS / self._slot_seconds))
                    sent_away += 1
                    if sent_away % _SENT_AWAY_AT_ONCE == 0:
                        await asyncio.sleep(0)
                self._emptied += 1
                self._slots.pop(self._emptied, None)
