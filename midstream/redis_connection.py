"""The connection to Redis of a command that works in it itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from shared.connections import RedisConnection, check, connection_to
from shared.grants import until_up
from shared.settings import Settings


@asynccontextmanager
async def connected(settings: Settings, *, name: str, scripts: Iterable[str] = ()) -> AsyncIterator[RedisConnection]:
    """Gives a connection to the Redis of the settings that is up. Raises Unusable if it is not in time. `name`: for CLIENT LIST."""
    await check(settings)
    connection = connection_to(settings, name=name, scripts=scripts)
    connection.start()
    try:
        await until_up(connection, within_seconds=settings.redis_start_seconds)
        yield connection
    finally:
        await connection.close()
