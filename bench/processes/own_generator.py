"""A generator as a user would write it, for W5: it yields token by token, as fast as it can."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any


async def answer(request: dict[str, Any]) -> AsyncIterator[str]:
    for _ in range(request["simulate"]["tokens"]):
        yield " lantern"


def in_a_thread(request: dict[str, Any]) -> Iterator[str]:
    for _ in range(request["simulate"]["tokens"]):
        yield " lantern"
