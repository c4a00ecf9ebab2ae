"""What the doctor sees of a Redis: each server's INFO and configuration, the Sentinels, permissions, pub/sub, latency. Changes nothing."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from shared.cluster import ClusterConnection
from shared.connections import RedisConnection, address_of, connection_to
from shared.errors import Disconnected, MidstreamError, RedisRefused, Unusable
from shared.grants import Role, Subscription, refusals, until_up
from shared.keys import live_channel
from shared.redis_server import BriefConnection, RedisAddress
from shared.sentinel import SentinelAddress
from shared.settings import Settings

REPLY_SECONDS = 3.0
PINGS = 200
"""So many round trips for a p99; 20 ms on one machine."""
_PING_SECONDS_MAX = 1.0
_ASK_SECONDS_MAX = 5.0
"""For all questions to one server: a dozen, or the round trips."""
_CHANNELS_TRIED_MAX = 20_000
"""Random channels that are tried for one of a master's slots: a master with one slot of a thousand is found."""
_CONFIGURATION = (
    "maxmemory",
    "maxmemory-policy",
    "appendonly",
    "appendfsync",
    "cluster-require-full-coverage",
    "cluster-node-timeout",
)


@dataclass
class Server:
    """One server that has keys; a cluster has several."""

    address: RedisAddress
    unreachable: str = ""
    """Why, if it could not be asked."""
    info: dict[str, str] = field(default_factory=dict)
    """Fields of INFO; empty if the user may not see them."""
    configuration: dict[str, str] = field(default_factory=dict)
    """What the user may see of CONFIG."""
    pings_seconds: list[float] = field(default_factory=list)
    slots: int = 0

    @property
    def replicas(self) -> int | None:
        """How many replicas have its data and are connected; None if INFO does not say it."""
        if "connected_slaves" not in self.info:
            return None
        listed = [value for name, value in self.info.items() if name.startswith("slave") and "state=" in value]
        return sum("state=online" in replica for replica in listed) if listed else int(self.info["connected_slaves"])

    @property
    def version(self) -> str:
        return self.info.get("valkey_version") or self.info.get("redis_version", "")

    @property
    def policy(self) -> str:
        return self.info.get("maxmemory_policy") or self.configuration.get("maxmemory-policy", "")


@dataclass
class SentinelSeen:
    """One Sentinel. `about` has the fields of SENTINEL MASTER; empty if it did not answer."""

    address: RedisAddress
    about: dict[str, str] = field(default_factory=dict)
    unreachable: str = ""


@dataclass
class PubSub:
    """One message over a shard channel of one master. Seconds are None if it did not arrive."""

    address: str
    seconds: float | None = None
    counted: bool = False
    """Whether the publisher was told that somebody listens."""
    error: str = ""


@dataclass
class RedisSeen:
    """All that was seen."""

    form: str
    """`one server`, `sentinel` or `cluster`."""
    servers: list[Server] = field(default_factory=list)
    sentinels: list[SentinelSeen] = field(default_factory=list)
    other_form: str = ""
    """Why the URL does not fit what is there."""
    cluster_state: str = ""
    refused: dict[Role, str] = field(default_factory=dict)
    """For each role what Redis refuses, as the end of a sentence that begins with `Redis`; empty: nothing."""
    pubsub: list[PubSub] = field(default_factory=list)


async def observe(settings: Settings, roles: Sequence[Role], progress: Callable[[str], None]) -> RedisSeen:
    """Looks at the Redis of the settings. Raises Unusable if no server of it can be asked."""
    address = address_of(
        settings.redis_url,
        sentinel_username=settings.sentinel_username,
        sentinel_password=settings.sentinel_password,
    )
    progress("asking the servers")
    if isinstance(address, tuple):
        seen = RedisSeen("cluster")
        await _find_masters(seen, address)
    elif isinstance(address, SentinelAddress):
        seen = RedisSeen("sentinel")
        seen.sentinels = list(
            await asyncio.gather(*(_ask_sentinel(sentinel, address.name) for sentinel in address.sentinels))
        )
        try:
            seen.servers = [Server(await address.primary_now())]
        except Disconnected as error:
            raise Unusable(str(error)) from None
    else:
        seen = RedisSeen("one server", [Server(address)])
    await asyncio.gather(*(_ask(server) for server in seen.servers))
    reached = [server for server in seen.servers if not server.unreachable]
    if not reached:
        raise Unusable(f"Redis at {seen.servers[0].address} {seen.servers[0].unreachable}")
    if seen.form != "cluster" and reached[0].info.get("cluster_enabled") == "1":
        seen.other_form = "it is a node of a cluster, so the URL must begin with redis+cluster://"
    elif seen.form == "one server" and reached[0].info.get("role") == "slave":
        host, port = (reached[0].info.get(f"master_{name}", "?") for name in ("host", "port"))
        seen.other_form = f"it is a replica, so the URL must name its primary, {host}:{port}"
    if not seen.other_form:
        progress("trying what gateways and workers do")
        await _try_out(seen, settings, roles)
    progress("measuring round trips")
    for server in reached:
        await _ping(server)
    return seen


def _fields(text: Any) -> dict[str, str]:
    """Returns the fields of an INFO or CLUSTER INFO."""
    lines = text.decode(errors="replace").splitlines() if isinstance(text, bytes) else []
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


async def _trouble_with(address: RedisAddress, ask: Callable[[BriefConnection], Awaitable[None]]) -> str:
    """Asks one server; returns why it cannot be reached, as the end of a sentence, or an empty text."""
    try:
        async with asyncio.timeout(_ASK_SECONDS_MAX), BriefConnection.to(address) as connection:
            for command in address.login_commands():
                await connection.execute(*command)
            await ask(connection)
    except RedisRefused as error:
        return f"answers: {error}"
    except TimeoutError:
        return f"cannot be reached: no answer within {_ASK_SECONDS_MAX:g} s"
    except (Disconnected, OSError) as error:
        return f"cannot be reached: {error}"
    return ""


async def _ask(server: Server) -> None:
    async def ask(connection: BriefConnection) -> None:
        await connection.execute("PING")
        with suppress(RedisRefused):  # what the user may not see stays unknown
            server.info = _fields(await connection.execute("INFO"))
        for name in _CONFIGURATION:
            try:
                reply = await connection.execute("CONFIG", "GET", name)
            except RedisRefused:
                break
            server.configuration.update(_pairs(reply))

    server.unreachable = await _trouble_with(server.address, ask)


def _pairs(reply: Any) -> dict[str, str]:
    words = [word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in reply or []]
    return dict(zip(words[::2], words[1::2], strict=False))


async def _ask_sentinel(address: RedisAddress, name: str) -> SentinelSeen:
    seen = SentinelSeen(address)

    async def ask(connection: BriefConnection) -> None:
        seen.about = _pairs(await connection.execute("SENTINEL", "MASTER", name))

    seen.unreachable = await _trouble_with(address, ask)
    return seen


async def _find_masters(seen: RedisSeen, seeds: tuple[RedisAddress, ...]) -> None:
    """Adds the masters that the first seed knows which answers. Raises Unusable if none does."""
    reasons = []
    for seed in seeds:
        slots: dict[tuple[str, int], int] = {}

        async def ask(connection: BriefConnection, seed: RedisAddress = seed, slots: Any = slots) -> None:
            for first, last, master, *_ in await connection.execute("CLUSTER", "SLOTS"):
                place = (master[0] or b"").decode() or seed.host, int(master[1])
                slots[place] = slots.get(place, 0) + last - first + 1
            seen.cluster_state = _fields(await connection.execute("CLUSTER", "INFO")).get("cluster_state", "")

        reason = await _trouble_with(seed, ask)
        if not reason:
            seen.servers = [
                Server(replace(seed, host=host, port=port), slots=count) for (host, port), count in slots.items()
            ]
            if seen.servers:
                return
            reason = "knows of no master that has slots"
        if "cluster support disabled" in reason:
            seen.servers = [Server(seed)]
            seen.other_form = "it is no cluster, so the URL must begin with redis://"
            return
        reasons.append(f"Redis at {seed} {reason}")
    raise Unusable("; ".join(reasons))


async def _ping(server: Server) -> None:
    async def ask(connection: BriefConnection) -> None:
        end = time.monotonic() + _PING_SECONDS_MAX
        for _ in range(PINGS):
            began = time.perf_counter()
            await connection.execute("PING")
            server.pings_seconds.append(time.perf_counter() - began)
            if time.monotonic() > end:
                return

    await _trouble_with(server.address, ask)


async def _try_out(seen: RedisSeen, settings: Settings, roles: Sequence[Role]) -> None:
    """Tries each command and script that the roles need, and one message over each master."""
    connection = connection_to(settings, name="doctor")
    subscription = Subscription(connection, reply_seconds=REPLY_SECONDS)
    connection.start()
    subscription.start()
    try:
        await until_up(connection, within_seconds=REPLY_SECONDS)
        for role in roles:
            found = await refusals(connection, role, min_replicas=settings.min_replicas)
            if role == "gateway":
                await subscription.note_refusals(found)
            seen.refused[role] = found.sentence(role, connection.address.username) or ""
        await _send_messages(seen, connection)
    except MidstreamError as error:
        seen.refused.update({role: f"cannot be used: {error}" for role in roles if role not in seen.refused})
    finally:
        await subscription.close()
        await connection.close()


async def _send_messages(seen: RedisSeen, connection: RedisConnection) -> None:
    arrived: dict[bytes, asyncio.Future[str]] = {}

    def on_push(pushed: list[Any]) -> None:
        for message in pushed:
            if isinstance(message, Exception):
                for future in arrived.values():
                    _set(future, str(message))
            elif isinstance(message, list) and len(message) == 3 and message[1] in arrived:
                _set(arrived[message[1]], message[0].decode())

    subscriber = connection.subscriber(name="doctor", on_push=on_push)
    subscriber.start()
    try:
        for server in seen.servers:
            channel = _channel_of(connection, server)
            if channel is None or server.unreachable:
                continue
            trial = PubSub(str(server.address))
            seen.pubsub.append(trial)
            try:
                async with asyncio.timeout(REPLY_SECONDS):
                    await subscriber.wait_until_up()
                    arrived[channel] = asyncio.get_running_loop().create_future()
                    subscriber.push(b"SSUBSCRIBE", channel)
                    answer = await arrived[channel]
                    if answer != "ssubscribe":
                        trial.error = answer
                        continue
                    arrived[channel] = asyncio.get_running_loop().create_future()
                    began = time.perf_counter()
                    trial.counted = bool(await connection.execute("SPUBLISH", channel, b"doctor"))
                    await arrived[channel]
                    trial.seconds = time.perf_counter() - began
            except TimeoutError:
                trial.error = trial.error or f"no answer within {REPLY_SECONDS:g} s"
            except RedisRefused as error:
                trial.error = str(error)
            except Disconnected:
                trial.error = "the connection was lost"
    finally:
        await subscriber.close()


def _set(future: asyncio.Future[str], answer: str) -> None:
    if not future.done():
        future.set_result(answer)


def _channel_of(connection: RedisConnection, server: Server) -> bytes | None:
    """Returns a shard channel that this server has; None if none was found."""
    for _ in range(_CHANNELS_TRIED_MAX):
        channel = live_channel(f"doctor-{secrets.token_hex(6)}")
        if not isinstance(connection, ClusterConnection):
            return channel
        if connection.place_of(channel) == (server.address.host, server.address.port):
            return channel
    return None
