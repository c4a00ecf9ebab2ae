"""A hearer that keeps the items of a provider's answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from producer.provider import Finish, Provider, SoFar
from shared.events import Item
from shared.lifecycle import History


class Heard:
    """A Hearer that records its items. With `enough` it has no room after each call."""

    has_pace = False

    def __init__(self, *, enough: bool = False, on_take: Callable[[list[Item]], None] = lambda items: None) -> None:
        self.items: list[Item] = []
        self.oddities: list[str] = []
        self.times = self.waits = 0
        self.so_far = SoFar("a stream", History())
        self.progressed = self.times_stored = 0
        self._enough = enough
        self._on_take = on_take

    def accept(self, items: list[Item]) -> bool:
        self.times += 1
        self.items += items
        self._on_take(items)
        return not self._enough

    def wants_at(self) -> float:
        return 0.0

    def odd(self, kind: str) -> None:
        self.oddities.append(kind)

    async def stored(self) -> None:
        self.times_stored += 1

    def progress(self) -> None:
        self.progressed += 1

    async def wait_for_room(self) -> None:
        self.waits += 1


async def answer_of(provider: Provider, request: dict[str, Any], partial: str = "") -> tuple[list[Item], Finish]:
    """Returns the whole answer. Raises the errors of `generate`."""
    hearer = Heard()
    finish = await provider.generate(request, partial, hearer)
    return hearer.items, finish
