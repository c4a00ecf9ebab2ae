"""Commands to Redis, and the Lua scripts among them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, Protocol

from shared.errors import LogFull, RedisRefused


class Executes(Protocol):
    """What executes commands of Redis, one after the other. Replies are as Redis sent them (RESP2)."""

    async def execute(self, *arguments: bytes | str | int | float) -> Any:
        """Returns the reply. Raises Disconnected, RedisRefused."""


class Commands(Executes, Protocol):
    """A connection to Redis, as all who store something there need it."""

    is_one_server: bool = True
    """Whether all commands are carried out in the order in which they were sent. Not in a cluster."""

    async def execute_everywhere(self, *arguments: bytes | str | int | float) -> list[Any]:
        """Returns the reply of each master that answers. Raises Disconnected, RedisRefused if none does."""
        return [await self.execute(*arguments)]

    def server_of(self, key: bytes) -> object:
        """Returns what is another one when another server has the key, or when the connection to it was made anew."""
        return None

    def can_reach(self, key: bytes) -> bool:
        """Returns whether the server that has a key can be reached now."""
        return True

    def send(self, arguments: tuple[bytes | str | int | float, ...], on_reply: Callable[[Any], None]) -> None:
        """Sends a command without a task or a future. `on_reply` is called later, with the reply or the error."""

    def send_packed(self, command: bytes, key: bytes, on_reply: Callable[[Any], None]) -> None:
        """Sends a command that is packed already (RESP2), and whose first key this is.

        A cluster's redirect (MOVED, ASK) is an error like any other: for a caller who then repeats the command by `execute`,
        which follows it.
        """


def ignore(reply: Any) -> None:
    """Takes the reply to a command that was sent and need not succeed: what is lost is made up for later."""


class Script:
    """A Lua script of `shared/scripts`, called by its digest; sent whole only when Redis does not know it (after SCRIPT FLUSH).

    With `when_full` it may write although Redis has reached its maxmemory: for the few bytes that end a stream.
    """

    def __init__(self, name: str, *, when_full: bool = False) -> None:
        source = resources.files("shared").joinpath("scripts", f"{name}.lua").read_text()
        self.source = "#!lua flags=allow-oom\n" + source if when_full else source
        self.digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    async def run(self, commands: Executes, keys: list[bytes], *arguments: bytes | str | int) -> Any:
        """Returns the script's reply. Raises Disconnected, RedisRefused, and LogFull when Redis has reached its maxmemory."""
        try:
            try:
                return await commands.execute("EVALSHA", self.digest, len(keys), *keys, *arguments)
            except RedisRefused as error:
                if error.code != "NOSCRIPT":
                    raise
                return await commands.execute("EVAL", self.source, len(keys), *keys, *arguments)
        except RedisRefused as error:
            if error.code == "OOM":
                raise LogFull("Redis has reached its maxmemory: nothing more can be stored") from None
            raise

    def send(
        self, commands: Commands, keys: Sequence[bytes], *arguments: bytes | str | int, on_reply: Callable[[Any], None]
    ) -> None:
        """Calls the script without a task or a future. `on_reply` is called later, with the reply or the error."""

        def on_first_reply(reply: Any) -> None:
            if isinstance(reply, RedisRefused) and reply.code == "NOSCRIPT":
                commands.send(("EVAL", self.source, len(keys), *keys, *arguments), on_reply)
            else:
                on_reply(reply)

        commands.send(("EVALSHA", self.digest, len(keys), *keys, *arguments), on_first_reply)
