"""redis-py behind the methods of our own connection: a second one for the tests of logs and queues, so that both behave alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared.errors import Disconnected, OddReply, RedisRefused


def ordinary_client(url: str, *, reply_seconds: float | None) -> redis.asyncio.Redis:
    """Returns a redis-py client, for everything but the hot paths. `reply_seconds` None: no time limit, for blocking commands
    (redis-py 8 sets one of 5 s)."""
    return redis.asyncio.Redis.from_url(url, **_ordinary_options(reply_seconds))


def _ordinary_options(reply_seconds: float | None) -> dict[str, Any]:
    return {
        "socket_timeout": reply_seconds,
        "socket_connect_timeout": reply_seconds or 5.0,
        "max_connections": 16,
        "protocol": 2,
        "driver_info": None,  # else redis-py sends CLIENT SETINFO, which needs one more permission
        # By default redis-py retries ten times, and its caller cannot tell how long that takes.
        "retry": Retry(NoBackoff(), 0),
    }


class OrdinaryCommands:
    """redis-py with the methods `execute` and `send` of `RespConnection`, and with replies as Redis sent them."""

    is_one_server: bool = True

    def server_of(self, key: bytes) -> object:
        return None

    def can_reach(self, key: bytes) -> bool:
        return True

    def __init__(self, client: Any) -> None:
        self._client = client
        self._tasks: set[asyncio.Task[None]] = set()

    async def execute(self, *arguments: bytes | str | int | float) -> Any:
        """Raises Disconnected, RedisRefused."""
        try:
            connection = await self._client.connection_pool.get_connection()
            try:
                await connection.send_command(*arguments)
                return await connection.read_response()
            except BaseException as error:
                if not isinstance(error, redis.exceptions.ResponseError):
                    await (
                        connection.disconnect()
                    )  # its reply may still come, and would be taken for that of the next command
                raise
            finally:
                await self._client.connection_pool.release(connection)
        except redis.exceptions.ResponseError as error:
            raise RedisRefused(_code_of(error) + str(error)) from None
        except (redis.exceptions.RedisError, OSError) as error:
            raise Disconnected(f"Redis is away: {error}") from None
        except UnicodeDecodeError as error:  # in an error's message
            raise OddReply(f"ODDREPLY {error}") from None

    async def execute_everywhere(self, *arguments: bytes | str | int | float) -> list[Any]:
        """Returns the reply of each server: here of the one. Raises Disconnected, RedisRefused."""
        return [await self.execute(*arguments)]

    def send_packed(self, command: bytes, key: bytes, on_reply: Callable[[Any], None]) -> None:
        reader = hiredis.Reader()
        reader.feed(command)
        self.send(tuple(reader.gets()), on_reply)

    def send(self, arguments: tuple[bytes | str | int | float, ...], on_reply: Callable[[Any], None]) -> None:
        async def run() -> None:
            try:
                reply = await self.execute(*arguments)
            except (Disconnected, RedisRefused) as error:
                reply = error
            on_reply(reply)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_CODES: dict[type[BaseException], str] = {
    redis.exceptions.NoScriptError: "NOSCRIPT ",
    redis.exceptions.OutOfMemoryError: "OOM ",
    redis.exceptions.BusyLoadingError: "LOADING ",
    redis.exceptions.ReadOnlyError: "READONLY ",
    redis.exceptions.NoPermissionError: "NOPERM ",
}


def _code_of(error: BaseException) -> str:
    """Returns the error code that redis-py has removed from the message, as it does for errors that have a class."""
    code = _CODES.get(type(error), "")
    return "" if str(error).startswith(code) else code
