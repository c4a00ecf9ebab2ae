"""A primary that Sentinels know: asked for before each connection, so that a fail-over is followed by reconnecting.

(https://redis.io/docs/latest/develop/reference/sentinel-clients/)
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import hiredis

from shared.errors import Disconnected, RedisRefused
from shared.redis_server import RedisAddress

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 0.5
"""How long one Sentinel may take to answer; then the next one is asked."""
_REPLY_BYTES = 4096


@dataclass(frozen=True)
class SentinelAddress:
    """The primary of this name, as the Sentinels know it. `primary` holds what a connection to it needs besides host and port."""

    sentinels: tuple[RedisAddress, ...]
    name: str
    primary: RedisAddress
    must_be_primary = True  # a Sentinel may not know of a fail-over yet
    _asked_first: list[RedisAddress] = field(default_factory=list)
    """The Sentinel that answered last."""

    def __str__(self) -> str:
        return f"{self.name}, as the Sentinels at {', '.join(map(str, self.sentinels))} know it,"

    @property
    def username(self) -> str:
        return self.primary.username

    @property
    def database(self) -> int:
        return self.primary.database

    def login_commands(self) -> list[tuple[str | int, ...]]:
        return self.primary.login_commands()

    async def connect(self, loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Opens one connection to the primary for a protocol. Raises OSError, Disconnected."""
        await (await self.primary_now()).connect(loop, protocol)

    async def primary_now(self) -> RedisAddress:
        """Returns the primary's address, from the first Sentinel that knows it. Raises Disconnected."""
        reasons = []
        for sentinel in (*self._asked_first, *(one for one in self.sentinels if one not in self._asked_first)):
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    reply = await _answer_of(
                        sentinel, *sentinel.login_commands(), ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
                    )
                if reply is not None:
                    host, port = reply
                    self._asked_first[:] = [sentinel]
                    return replace(self.primary, host=host.decode(), port=int(port))
                reasons.append(f"{sentinel} knows none")
            except (OSError, TimeoutError, Disconnected, RedisRefused, ValueError, TypeError, AttributeError) as error:
                reasons.append(f"{sentinel}: {error or 'no answer'}")
        raise Disconnected(f"no Sentinel names the primary of {self.name}: {'; '.join(reasons)}")


async def _answer_of(server: RedisAddress, *commands: tuple[str | int, ...]) -> Any:
    """Returns the reply to the last command. Raises OSError, RedisRefused, Disconnected."""
    context = ssl.create_default_context() if server.tls else None
    reader, writer = await asyncio.open_connection(server.host, server.port, ssl=context)
    try:
        writer.write(b"".join(map(hiredis.pack_command, commands)))  # type: ignore[arg-type]
        parser = hiredis.Reader()
        replies: list[Any] = []
        while len(replies) < len(commands):
            data = await reader.read(_REPLY_BYTES)
            if not data:
                raise Disconnected("it closed the connection")
            parser.feed(data)
            while (reply := parser.gets()) is not False:
                if isinstance(reply, hiredis.ReplyError):
                    raise RedisRefused(str(reply))
                replies.append(reply)
        return replies[-1]
    except hiredis.ProtocolError as error:
        raise Disconnected(str(error)) from None
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
