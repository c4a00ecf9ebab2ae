"""A hearer that keeps the items of a provider's answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from producer.provider import Finish, Provider
from shared.events import Item


class Heard:
    """A Hearer that records its items. With `enough` it has no room after each call."""

    def __init__(self, *, enough: bool = False, on_take: Callable[[list[Item]], None] = lambda items: None) -> None:
        self.items: list[Item] = []
        self.oddities: list[str] = []
        self.times = self.waits = 0
        self._enough = enough
        self._on_take = on_take

    def accept(self, items: list[Item]) -> bool:
        self.times += 1
        self.items += items
        self._on_take(items)
        return not self._enough

    def odd(self, kind: str) -> None:
        self.oddities.append(kind)

    async def wait_for_room(self) -> None:
        self.waits += 1


async def answer_of(provider: Provider, request: dict[str, Any], partial: str = "") -> tuple[list[Item], Finish]:
    """Returns the whole answer. Raises the errors of `generate`."""
    hearer = Heard()
    finish = await provider.generate(request, partial, hearer)
    return hearer.items, finish
