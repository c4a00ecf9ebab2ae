"""A primary that Sentinels know: asked for before each connection, so that a fail-over is followed by reconnecting.

(https://redis.io/docs/latest/develop/reference/sentinel-clients/)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from shared.errors import Disconnected, RedisRefused
from shared.redis_server import RedisAddress, replies_of

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 0.5
"""How long one Sentinel may take to answer."""
_SHARED_SECONDS = 0.5
"""How long an answer about the primary serves all connections of an address, which ask once a second each."""


class _Looks:
    """The newest look for the primary."""

    look: asyncio.Task[RedisAddress | None] | None = None
    began_at = 0.0


@dataclass(frozen=True)
class SentinelAddress:
    """The primary of this name, as the Sentinels know it. `primary` holds what a connection to it needs besides host and port."""

    sentinels: tuple[RedisAddress, ...]
    name: str
    primary: RedisAddress
    _looks: _Looks = field(default_factory=_Looks, compare=False, repr=False)
    must_be_primary = True  # a Sentinel may not know of a fail-over yet

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

    async def connect(self, loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol]) -> RedisAddress:
        """Opens one connection to the primary for a protocol, and returns its address. Raises OSError, Disconnected."""
        primary = await self.primary_now()
        return await primary.connect(loop, protocol)

    async def confirm(self, connected: RedisAddress) -> None:
        """Raises Disconnected unless a server to which a connection was made is still the primary: it may have been frozen
        while the connection was made, and does not know yet that it was replaced."""
        primary = await self.primary_now()
        if primary != connected:
            raise Disconnected(f"{connected} was replaced by {primary}")

    async def is_replaced(self, connected: RedisAddress) -> bool:
        """Returns whether the Sentinels name another primary than the server to which a connection was made. Those of one process that have
        this address share a look; where no Sentinel answers, nothing is known, and the answer is False."""
        loop, shared = asyncio.get_running_loop(), self._looks
        if shared.look is None or (shared.look.done() and loop.time() - shared.began_at > _SHARED_SECONDS):
            shared.look, shared.began_at = loop.create_task(self._known_primary()), loop.time()
        primary = await asyncio.shield(shared.look)
        return primary is not None and primary != connected

    async def _known_primary(self) -> RedisAddress | None:
        try:
            return await self.primary_now()
        except Disconnected:
            return None

    async def primary_now(self) -> RedisAddress:
        """Returns the primary's address, from the Sentinel with the newest configuration. Raises Disconnected.

        All are asked at once: the one that has led a fail-over knows of it up to two seconds before the others.
        """
        answers = await asyncio.gather(*map(self._ask, self.sentinels), return_exceptions=True)
        known = [answer for answer in answers if isinstance(answer, tuple)]
        if known:
            return max(known, key=lambda answer: answer[0])[1]
        reasons = [f"{sentinel}: {answer}" for sentinel, answer in zip(self.sentinels, answers, strict=True)]
        raise Disconnected(f"no Sentinel names the primary of {self.name}: {'; '.join(reasons)}")

    async def _ask(self, sentinel: RedisAddress) -> tuple[int, RedisAddress]:
        """Returns the epoch of a Sentinel's configuration, and the primary in it. Raises Disconnected."""
        login = sentinel.login_commands()
        questions = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name), ("SENTINEL", "MASTER", self.name)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                *_, place, about = await replies_of(sentinel, *login, *questions)
            epoch = int(dict(zip(about[::2], about[1::2], strict=True))[b"config-epoch"])
            return epoch, replace(self.primary, host=place[0].decode(), port=int(place[1]))
        except (OSError, TimeoutError, RedisRefused, ValueError, TypeError, LookupError, AttributeError) as error:
            raise Disconnected(str(error) or "no answer") from None
