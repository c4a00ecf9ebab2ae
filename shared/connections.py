"""What a Redis URL names: one server, a primary that Sentinels know, or a cluster; and a connection to it.

| URL | |
|---|---|
| `redis://[user:password@]host[:port][/db]`, `rediss://` with TLS, `unix://[user:password@]/path[?db=n]` | one server |
| `redis+sentinel://[user:password@]host[:port][,host…]/primary-name[/db]`, `rediss+sentinel://` | the primary that Sentinels name |
| `redis+cluster://[user:password@]host[:port][,host…]`, `rediss+cluster://` | a cluster, by some of its nodes |

With TLS each may end with `?ssl_ca_certs=…`, as in `shared.redis_server`.

All who store something get the connection and do not know which of the three it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from urllib.parse import unquote

from shared.cluster import ClusterConnection
from shared.cluster_parts import ClusterSubscriber
from shared.errors import Disconnected, Unusable
from shared.redis_server import RedisAddress, check_server
from shared.resp import TRUSTED_SECONDS, RespConnection
from shared.sentinel import SentinelAddress
from shared.settings import Settings

RedisConnection = RespConnection | ClusterConnection
RedisSubscriber = RespConnection | ClusterSubscriber

_FORMS = (
    "it must look like redis://host:6379/0, rediss://user:password@host:6379/0, unix:///path/to/redis.sock, "
    "redis+cluster://host:6379,host:6379 or redis+sentinel://host:26379,host:26379/mymaster/0"
)
_SEEDS_MAX = 64
"""Of the hosts in a URL: one that answers is enough."""
_SENTINEL_PORT = 26379
"""The port of a Sentinel by default."""


def address_of(
    url: str, *, sentinel_username: str = "", sentinel_password: str = ""
) -> RedisAddress | SentinelAddress | tuple[RedisAddress, ...]:
    """Returns what a URL names; of a cluster some of its nodes. Raises Unusable; its message never contains a password."""
    scheme, separator, rest = url.partition("://")
    first, plus, form = scheme.partition("+")
    if not plus:
        return RedisAddress.parse(url)
    if form not in ("cluster", "sentinel") or first not in ("redis", "rediss") or not separator:
        raise Unusable(f"the Redis URL cannot be used: {_FORMS}")
    login, _, rest = rest.rpartition("@")
    rest, _, query = rest.partition("?")
    listed, _, path = rest.partition("/")
    hosts = [host for host in listed.split(",") if host][:_SEEDS_MAX]
    if not hosts:
        raise Unusable(f"the Redis URL names no host: {_FORMS}")
    try:
        seeds = [RedisAddress.parse(f"{first}://{host}{'?' if query else ''}{query}") for host in hosts]
    except Unusable as error:
        raise Unusable(str(error).partition(": it must look like")[0] + f": {_FORMS}") from None
    username, _, password = login.partition(":")
    user, secret = unquote(username), unquote(password)
    if form == "cluster":
        if path not in ("", "0"):
            raise Unusable(f"a cluster has only the database 0: {_FORMS}")
        return tuple(replace(seed, username=user, password=secret) for seed in seeds)
    name, _, database = path.partition("/")
    if not name:
        raise Unusable(f"the Redis URL does not name a primary: {_FORMS}")
    if database and not database.isdecimal():
        raise Unusable(f"the Redis URL's database must be a number: {_FORMS}")
    ports = [seed.port if _names_port(host) else _SENTINEL_PORT for seed, host in zip(seeds, hosts, strict=True)]
    sentinels = tuple(
        replace(seed, port=port, username=sentinel_username, password=sentinel_password)
        for seed, port in zip(seeds, ports, strict=True)
    )
    primary = replace(seeds[0], host="", port=0, database=int(database or 0), username=user, password=secret)
    return SentinelAddress(sentinels, unquote(name), primary)


def _names_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def connection_to(
    settings: Settings,
    *,
    name: str,
    scripts: Iterable[str] = (),
    gathers: bool = False,
    url: str = "",
) -> RedisConnection:
    """Returns a connection to the Redis of the settings, or of another URL; not started. Raises Unusable.

    `name` is what CLIENT LIST shows. `scripts` are loaded after each connect. With `gathers` commands of a busy connection leave
    together (`shared.resp`).
    """
    options = {
        "name": name,
        "reply_seconds": settings.redis_reply_seconds,
        "reconnect_seconds_max": settings.reconnect_seconds_max,
        "scripts": scripts,
        "gathers": gathers,
    }
    address = _named_by(settings, url)
    if isinstance(address, tuple):
        return ClusterConnection(address, **options)  # type: ignore[arg-type]
    if isinstance(address, SentinelAddress):
        options["trusted_seconds"] = TRUSTED_SECONDS
    return RespConnection(address, **options)  # type: ignore[arg-type]


def _named_by(settings: Settings, url: str) -> RedisAddress | SentinelAddress | tuple[RedisAddress, ...]:
    return address_of(
        url or settings.redis_url,
        sentinel_username=settings.sentinel_username,
        sentinel_password=settings.sentinel_password,
    )


async def check(settings: Settings, *, url: str = "") -> str:
    """Returns the name and version of a server, once it answers. Raises Unusable when none can be reached, or it is too old."""
    address, within_seconds = _named_by(settings, url), settings.redis_start_seconds
    if isinstance(address, RedisAddress):
        return await check_server(address, within_seconds=within_seconds)
    if isinstance(address, SentinelAddress):
        address.primary.check_files()
        deadline = time.monotonic() + within_seconds
        while True:
            try:
                primary = await address.primary_now()
                break
            except Disconnected as error:
                if time.monotonic() > deadline:
                    raise Unusable(f"{error}. Is MIDSTREAM_REDIS_URL right?") from None
            await asyncio.sleep(0.1)
        return await check_server(primary, within_seconds=within_seconds)
    checks = [asyncio.create_task(check_server(seed, within_seconds=within_seconds)) for seed in address]
    unusable = Unusable()
    try:
        for finished in asyncio.as_completed(checks):
            try:
                return f"{await finished}, of a cluster"
            except Unusable as error:
                unusable = error
    finally:
        for task in checks:
            task.cancel()
        await asyncio.gather(*checks, return_exceptions=True)
    raise unusable
