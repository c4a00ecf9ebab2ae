"""A connection that loses commands and replies on demand, which no real server does."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from shared.commands import Commands
from shared.errors import Disconnected

Argument = bytes | str | int | float


class LossyCommands(Commands):
    """Passes commands on, and loses some, chosen by the seed: half of these before, half after Redis has executed them."""

    def __init__(self, commands: Commands, *, seed: int, share: float) -> None:
        self._commands = commands
        self._dice = random.Random(seed)
        self.share = share
        self.lost = 0

    async def execute(self, *arguments: Argument) -> Any:
        before, after = self._draw()
        if before:
            raise Disconnected
        reply = await self._commands.execute(*arguments)
        if after:
            raise Disconnected
        return reply

    def send(self, arguments: tuple[Argument, ...], on_reply: Callable[[Any], None]) -> None:
        self._send(lambda on_passed: self._commands.send(arguments, on_passed), on_reply)

    def send_packed(self, command: bytes, key: bytes, on_reply: Callable[[Any], None]) -> None:
        self._send(lambda on_passed: self._commands.send_packed(command, key, on_passed), on_reply)

    def _send(self, send: Callable[[Callable[[Any], None]], None], on_reply: Callable[[Any], None]) -> None:
        before, after = self._draw()
        if before:  # a command that Redis never sees, answered late, as a lost connection does
            self._commands.send(("PING",), lambda _: on_reply(Disconnected()))
        else:
            send(lambda reply: on_reply(Disconnected() if after else reply))

    def _draw(self) -> tuple[bool, bool]:
        lost = self._dice.random() < self.share
        before = lost and self._dice.random() < 0.5
        self.lost += lost
        return before, lost and not before
