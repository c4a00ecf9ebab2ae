"""The Redis server: its address, a few commands without a lasting connection, the check at the start."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

from shared.errors import Disconnected, RedisRefused, Unusable

OLDEST_VERSION = (7, 0)
"""Sharded pub/sub (SPUBLISH) came with Redis 7.0."""
_READ_BYTES, _REPLY_BYTES_MAX = 4096, 1 << 20
"""INFO has 10 KB; whatever sends more is not Redis."""

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


class BriefConnection:
    """A connection for a few commands, each after the reply to the one before."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = hiredis.Reader()

    @classmethod
    @asynccontextmanager
    async def to(cls, server: RedisAddress) -> AsyncIterator[BriefConnection]:
        """Connects; does not log in. Raises OSError."""
        if server.path:
            reader, writer = await asyncio.open_unix_connection(server.path)
        else:
            context = server.tls_context() if server.tls else None
            reader, writer = await asyncio.open_connection(server.host, server.port, ssl=context)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def execute(self, *arguments: str | int) -> Any:
        """Returns the reply. Raises OSError, Disconnected, RedisRefused."""
        self._writer.write(hiredis.pack_command(arguments))  # type: ignore[arg-type]
        size = 0
        try:
            while (reply := self._parser.gets()) is False:
                data = await self._reader.read(_READ_BYTES)
                size += len(data)
                if not data or size > _REPLY_BYTES_MAX:
                    raise Disconnected("it closed the connection" if not data else "its reply is too long")
                self._parser.feed(data)
        except hiredis.ProtocolError as error:
            raise Disconnected(str(error)) from None
        if isinstance(reply, hiredis.ReplyError):
            raise RedisRefused(str(reply))
        return reply


async def replies_of(server: RedisAddress, *commands: tuple[str | int, ...]) -> list[Any]:
    """Returns the replies to commands, over a connection of their own. Raises OSError, RedisRefused for the first that is refused,
    Disconnected."""
    async with BriefConnection.to(server) as connection:
        return [await connection.execute(*command) for command in commands]


def _reason_of(error: Exception) -> str:
    """Returns the message of the operating system, without the words that Python puts around it."""
    message = getattr(error, "strerror", None) or str(error)
    return str(message).strip().rstrip(".").lower()


async def check_server(address: RedisAddress, *, within_seconds: float) -> str:
    """Returns a server's name and version, once it answers. Raises Unusable when it cannot be reached, or is too old.

    Whether it permits all that this process needs is tried by `shared.grants`.
    """
    address.check_files()
    deadline, reason = time.monotonic() + within_seconds, "no answer"
    while True:
        try:
            async with asyncio.timeout(max(0.1, deadline - time.monotonic())):
                *_, info = await replies_of(address, *address.login_commands(), ("INFO", "server"))
            fields = dict(_fields_of(info))
            break
        except RedisRefused as error:
            if error.code == "WRONGPASS" or "AUTH" in str(error):
                raise Unusable(f"Redis at {address} refuses the login: {error}") from None
            if not error.passing:
                fields = {}  # a user who may not run INFO may have all that is needed: `shared.grants` tries it
                break
            if time.monotonic() > deadline:
                raise Unusable(f"Redis at {address} answers: {error}") from None
        except (Disconnected, OSError) as error:  # TimeoutError is one, and says nothing
            reason = _reason_of(error) or reason
            if time.monotonic() > deadline:
                raise Unusable(
                    f"Redis at {address} cannot be reached within {within_seconds:g} s: {reason}. "
                    "Is it running, and is MIDSTREAM_REDIS_URL right?"
                ) from None
        await asyncio.sleep(0.1)
    name = fields.get("server_name", "redis")
    version = fields.get("valkey_version") or fields.get("redis_version") or "of unknown version"
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
    return dict(_fields_of(reply)).get("maxmemory_policy")


def _fields_of(info: Any) -> Iterator[tuple[str, str]]:
    """Yields the fields of a reply to INFO; none of what is no text, as a proxy may answer."""
    if isinstance(info, bytes):
        for line in info.decode(errors="replace").splitlines():
            name, separator, value = line.partition(":")
            if separator:
                yield name, value


def complaint_about(policy: str | None) -> str | None:
    """Returns why a Redis with this policy must not keep logs; None if it may."""
    if policy in (None, "noeviction"):
        return None
    return f"Redis's maxmemory-policy is {policy}: it may evict the log of a running answer; it must be noeviction"
