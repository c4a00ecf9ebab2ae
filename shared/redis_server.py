"""The Redis server: its address, the ordinary client, the check at the start."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared.errors import Disconnected, OddReply, RedisRefused, Unusable

OLDEST_VERSION = (7, 0)
"""Sharded pub/sub (SPUBLISH) came with Redis 7.0."""


_TLS_FILES = {"ssl_ca_certs": "ca_file", "ssl_certfile": "certificate_file", "ssl_keyfile": "key_file"}
"""The parameters of a URL with TLS, by the names that redis-py gives them."""


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A parsed Redis URL: redis://[user:password@]host[:port][/db], rediss:// for TLS, unix://[user:password@]/path[?db=n].

    With TLS the query may name files, as redis-py's URLs do: `ssl_ca_certs` (who signed the server's certificate, else those whom
    the system trusts), `ssl_certfile` and `ssl_keyfile` (a client certificate).
    """

    host: str = ""
    port: int = 6379
    path: str = ""
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    must_be_primary = False
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    """Empty if the certificate's file has the key, too."""

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.path else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Returns a parsed URL of one server. Raises Unusable, with examples; the message never contains a password."""
        forms = (
            "it must look like redis://host:6379/0, rediss://user:password@host:6379/0 or unix:///path/to/redis.sock"
        )
        try:
            parts = urlsplit(url)
            port = parts.port or 6379
        except ValueError:
            raise Unusable(f"the Redis URL cannot be read: {forms}") from None
        username, password = unquote(parts.username or ""), unquote(parts.password or "")
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise Unusable(f"the Redis URL cannot be used: {forms}")
        database = parts.path.strip("/") if parts.scheme != "unix" else parse_qs(parts.query).get("db", ["0"])[0]
        if database and not database.isdecimal():
            raise Unusable(f"the Redis URL's database must be a number: {forms}")
        if parts.scheme == "unix" and parts.path:
            return cls(path=parts.path, database=int(database or 0), username=username, password=password)
        if parts.scheme in ("redis", "rediss") and parts.hostname:
            tls = parts.scheme == "rediss"
            files = {name: values[-1] for name, values in parse_qs(parts.query).items() if name.startswith("ssl_")}
            if (files and not tls) or not files.keys() <= _TLS_FILES.keys():
                raise Unusable(f"the Redis URL cannot be used: with rediss:// it may name {', '.join(_TLS_FILES)}")
            named = {attribute: files.get(name, "") for name, attribute in _TLS_FILES.items()}
            if named["key_file"] and not named["certificate_file"]:
                raise Unusable(
                    "the Redis URL has ssl_keyfile without ssl_certfile, the certificate to which the key belongs"
                )
            return cls(parts.hostname, port, "", int(database or 0), username, password, tls, **named)
        raise Unusable(f"the Redis URL cannot be used: {forms}")

    async def connect(self, loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol]) -> RedisAddress:
        """Opens one connection for a protocol, and returns the server's address. Raises OSError."""
        if self.path:
            await loop.create_unix_connection(protocol, self.path)
        else:
            await loop.create_connection(protocol, self.host, self.port, ssl=self.tls_context() if self.tls else None)
        return self

    def tls_context(self) -> ssl.SSLContext:
        """Returns what TLS needs, with the files as they are now, so that certificates can be renewed. Raises OSError."""
        context = ssl.create_default_context(cafile=self.ca_file or None)
        if self.certificate_file:
            context.load_cert_chain(self.certificate_file, self.key_file or None)
        return context

    def check_files(self) -> None:
        """Raises Unusable if a file that the URL names cannot be used."""
        if self.tls:
            try:
                self.tls_context()
            except OSError as error:  # ssl.SSLError is one
                reason = error.strerror or str(error)
                names = ", ".join(name for name in (self.ca_file, self.certificate_file, self.key_file) if name)
                raise Unusable(f"the certificates of the Redis URL cannot be used ({names}): {reason}") from None

    async def confirm(self, connected: RedisAddress) -> None:
        """Does nothing: the address is the server's."""

    async def is_replaced(self, connected: RedisAddress) -> bool:
        """Returns False: nobody says so."""
        return False

    def login_commands(self) -> list[tuple[str | int, ...]]:
        commands: list[tuple[str | int, ...]] = []
        if self.password:
            commands.append(("AUTH", self.username, self.password) if self.username else ("AUTH", self.password))
        if self.database:
            commands.append(("SELECT", self.database))
        return commands


def ordinary_client(url: str, *, reply_seconds: float | None) -> redis.asyncio.Redis:
    """Returns a redis-py client, for everything but the hot paths. `reply_seconds` None: no time limit, for blocking commands
    (redis-py 8 sets one of 5 s)."""
    return redis.asyncio.Redis.from_url(url, **_ordinary_options(reply_seconds))


def client_at(address: RedisAddress, *, reply_seconds: float) -> redis.asyncio.Redis:
    """Returns a redis-py client of one server."""
    if address.path:
        place: dict[str, Any] = {"unix_socket_path": address.path}
    else:
        place = {"host": address.host, "port": address.port, "ssl": address.tls}
        files = {
            "ssl_ca_certs": address.ca_file,
            "ssl_certfile": address.certificate_file,
            "ssl_keyfile": address.key_file,
        }
        place |= {name: file for name, file in files.items() if file}
    return redis.asyncio.Redis(
        **place,
        db=address.database,
        username=address.username or None,
        password=address.password or None,
        **_ordinary_options(reply_seconds),
    )


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


def _reason_of(error: BaseException) -> str:
    """Returns the message of the operating system, without the words that redis-py puts around it."""
    cause = error.__cause__ or error
    message = getattr(cause, "strerror", None) or str(cause)
    return str(message).strip().rstrip(".").lower() or "no answer"


async def check_server(address: RedisAddress, *, within_seconds: float) -> str:
    """Returns a server's name and version, once it answers. Raises Unusable when it cannot be reached, or is too old.

    Whether it permits all that this process needs is tried by `shared.grants`.
    """
    address.check_files()
    deadline = time.monotonic() + within_seconds
    client = client_at(address, reply_seconds=within_seconds)
    try:
        while True:
            try:
                async with asyncio.timeout(max(0.1, deadline - time.monotonic())):
                    about = await client.info("server")
                break
            except (TypeError, ValueError, LookupError, AttributeError):
                about = {}  # the INFO of a proxy; `shared.grants` tries the rest
                break
            except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
                # A refusal while the connection is made comes wrapped in an error about the connection.
                cause = error.__cause__
                reason = cause if isinstance(cause, redis.exceptions.RedisError) else error
                if isinstance(reason, redis.exceptions.AuthenticationError):
                    raise Unusable(f"Redis at {address} refuses the login: {reason}") from None
                refused = isinstance(reason, redis.exceptions.ResponseError)
                if refused and not RedisRefused(_code_of(reason) + str(reason)).passing:
                    about = {}  # a user who may not run INFO may have all that is needed: `shared.grants` tries it
                    break
                if time.monotonic() > deadline:
                    if refused:
                        raise Unusable(f"Redis at {address} answers: {reason}") from None
                    raise Unusable(
                        f"Redis at {address} cannot be reached within {within_seconds:g} s: {_reason_of(error)}. "
                        "Is it running, and is MIDSTREAM_REDIS_URL right?"
                    ) from None
            await asyncio.sleep(0.1)
    finally:
        await client.aclose()
    name = str(about.get("server_name", "redis"))
    version = str(about.get("valkey_version") or about.get("redis_version") or "of unknown version")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers and numbers < OLDEST_VERSION:
        raise Unusable(
            f"{name} {version} at {address} is too old: Redis 7.0, or Valkey, is the oldest that has SPUBLISH"
        )
    return f"{name} {version} at {address}"


async def eviction_policy(commands: Any) -> str | None:
    """Returns Redis's maxmemory-policy, in a cluster one that is not as it should be; None if it is not shown, as by managed
    services that bar this section of INFO."""
    try:
        replies = await commands.execute_everywhere("INFO", "memory")
    except RedisRefused:
        return None
    policies = [policy for reply in replies if (policy := _policy_of(reply)) is not None]
    return next((policy for policy in policies if complaint_about(policy)), policies[0] if policies else None)


def _policy_of(reply: Any) -> str | None:
    if not isinstance(reply, bytes):
        return None
    for line in reply.decode(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "maxmemory_policy":
            return value
    return None


def complaint_about(policy: str | None) -> str | None:
    """Returns why a Redis with this policy must not keep logs; None if it may."""
    if policy in (None, "noeviction"):
        return None
    return f"Redis's maxmemory-policy is {policy}: it may evict the log of a running answer; it must be noeviction"
