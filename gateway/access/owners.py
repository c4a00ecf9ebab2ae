"""Whose a stream is. The owner is in the first entry of its log, and never changes; the newest owners are remembered."""

from __future__ import annotations

from collections import OrderedDict

from gateway.http.principal import principal

_REMEMBERED_MAX = 50_000
"""Twice as many streams as a process has readers, at about 200 bytes each."""


class Owners:
    """Tells whether the principal of the current request may ask for a stream. Everybody may where authentication is off."""

    def __init__(self, *, checked: bool) -> None:
        self.checked = checked
        """Whether authentication is on."""
        self._owners: OrderedDict[str, str] = OrderedDict()

    def remember(self, stream_id: str, owner: str) -> None:
        if self.checked:
            self._owners[stream_id] = owner
            self._owners.move_to_end(stream_id)
            if len(self._owners) > _REMEMBERED_MAX:
                self._owners.popitem(last=False)

    def allows(self, stream_id: str) -> bool:
        """Returns whether the principal may ask for a stream, as far as that is known without a look at the log."""
        if not self.checked:
            return True
        who = principal.get()
        if who.stream_id is not None:
            return who.stream_id == stream_id
        owner = self._owners.get(stream_id)
        if owner is not None:
            self._owners.move_to_end(stream_id)
        return "admin" in who.scopes or owner == who.name

    def allows_owner(self, stream_id: str, owner: str | None) -> bool:
        """Returns whether the principal may ask for a stream whose log names this owner; None if the log names none."""
        if not self.checked:
            return True
        if owner is not None:
            self.remember(stream_id, owner)
        who = principal.get()
        if who.stream_id is not None:
            return who.stream_id == stream_id
        return "admin" in who.scopes or owner == who.name
