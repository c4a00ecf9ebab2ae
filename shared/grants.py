"""Checks that the Redis user has all permissions that a process needs: tries each command, key and channel, and reports in one
sentence what Redis refuses.

What is tried has no effect, or only affects keys that are made for it under the real prefix, are removed at once and expire
in any case. About 50 commands in one write, 1 ms of Redis.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from typing import Any, Literal

from shared import events
from shared.commands import Commands, Script
from shared.connections import RedisConnection, check, connection_to
from shared.errors import Disconnected, LogFull, MidstreamError, RedisRefused, Unusable
from shared.event_log import Appended, EventLog
from shared.events import Entry
from shared.external_writes import ExternalWrites, WriterLeases
from shared.ids import FIRST_ID, EventId
from shared.keys import (
    ACCESS_PREFIX,
    API_KEYS,
    GROUP,
    PROCESSES_ABOUT,
    PROCESSES_UNTIL,
    REQUESTS,
    UNKEPT,
    deliveries_key,
    idempotency_key,
    kept_key,
    lease_key,
    live_channel,
    log_key,
    part_key,
    replicated_key,
    request_key,
)
from shared.odd_replies import odd_reply
from shared.presence import Presence
from shared.queue import RequestQueue
from shared.receipt import DeliveryNotes
from shared.settings import Settings
from shared.written_log import Holdings, Names, WrittenLog

Role = Literal["gateway", "worker"]
ROLES: tuple[Role, ...] = ("gateway", "worker")
Command = tuple[bytes | str | int, ...]

_PROBE_TTL_SECONDS = 10
"""If the check is interrupted, its keys expire after so long."""
_NEVER_IDLE_MILLISECONDS = 10**12
_IN_CLUSTER: tuple[Command, ...] = (("ASKING",), ("CLUSTER", "INFO"), ("CLUSTER", "SLOTS"))
_WITH_REPLICAS: tuple[Command, ...] = (("WAIT", 0, 0), ("SET", replicated_key(b"probe"), "", "XX", "EX", 1))
_WITH_SUBCOMMANDS = ("CLIENT", "CLUSTER", "PUBSUB", "SCRIPT", "XGROUP", "XINFO")
_IN_SCRIPT = ("ACL failure in script", "The user executing the script can't")
_COMMAND = re.compile(r"run the '([a-z|]{1,40})' command")
_UNKNOWN = re.compile(r"unknown (sub)?command|Unknown (Redis )?command", re.IGNORECASE)
_MESSAGE_CHARACTERS_MAX = 200
"""Of an answer of Redis in a sentence."""


class Refusals:
    """Collects from Redis' replies what it refused."""

    def __init__(self) -> None:
        self.commands: set[str] = set()
        self.unknown: set[str] = set()
        self.keys = self.access_keys = self.channels = self.read_only = False
        self.other = self._otherwise = ""

    @property
    def lasts(self) -> bool:
        """Whether only an operator can change it: a missing permission or command. False for what may pass, as a failover."""
        return bool(self.commands or self.unknown or self.keys or self.access_keys or self.channels)

    def note(self, command: Command, error: RedisRefused) -> None:
        """Collects what an error says. Most errors only say that a key does not exist, so the command itself is allowed."""
        message = str(error)
        if error.code == "NOPERM" or any(words in message for words in _IN_SCRIPT):
            named = _COMMAND.search(message)
            if named is not None:  # looked at first: the message also has the user's name
                self.commands.add(named[1].upper().replace("|", " "))
            elif "channel" in message:
                self.channels = True
            elif "key" in message and API_KEYS in command:
                self.access_keys = True
            elif "key" in message:
                self.keys = True
            elif error.code == "NOPERM":
                self.commands.add(_name_of(command))
            # else an old Redis, whose error does not name the command in the script: that command is also tried by itself
        elif _UNKNOWN.search(message):
            if command[0] not in ("EVAL", "EVALSHA") or "script" not in message:
                self.unknown.add(_name_of(command))
        elif error.code == "READONLY":
            self.read_only = True
        elif error.code == "WRONGTYPE" and REQUESTS in command:  # a wrong type at any other key only affects that key
            key = REQUESTS.decode()
            self.other = self.other or f"{key} is not the request queue: delete or rename that key"
        elif error.code == "MOVED":
            self.other = self.other or "it is a node of a cluster: set MIDSTREAM_REDIS_URL to redis+cluster://host:port"
        elif error.passing or error.code in ("MISCONF", "CROSSSLOT", "NOAUTH", "ODDREPLY"):
            self.other = self.other or f"it answers: {message[:_MESSAGE_CHARACTERS_MAX]}"

    def script_failed(self, error: MidstreamError) -> None:
        """Collects the error of a script, which must work: it is reported if nothing else explains it."""
        if not isinstance(error, LogFull):
            self._otherwise = f"it answers a script: {str(error)[:_MESSAGE_CHARACTERS_MAX]}"

    def sentence(self, who: Role, user: str) -> str | None:
        """Returns what is refused and how to grant it, as the end of a sentence that begins with `Redis at <address>`; None if nothing is."""
        if self.read_only:
            return "is a read-only replica: set MIDSTREAM_REDIS_URL to the address of its primary"
        if self.commands or self.keys or self.access_keys or self.channels:
            missing = ["the keys midstream:*"] * self.keys + ["the channels midstream:*"] * self.channels
            missing += [f"to read the keys {ACCESS_PREFIX}*"] * self.access_keys
            if self.commands:
                missing.insert(0, f"the command{'s' * (len(self.commands) > 1)} {_listed(self.commands)}")
            rules = [f"+{name.lower().replace(' ', '|')}" for name in sorted(self.commands)]
            rules += ["~midstream:*"] * self.keys + ["&midstream:*"] * self.channels
            rules += [f"%R~{ACCESS_PREFIX}*"] * self.access_keys
            return (
                f"refuses the user {user or 'default'} what a {who} needs: {', '.join(missing)}. "
                f"To grant it: ACL SETUSER {user or 'default'} {' '.join(rules)}"
            )
        if self.unknown:
            return (
                f"does not know {_listed(self.unknown)}, which a {who} needs: renamed or disabled (rename-command), "
                "or no Redis 7.0 and no Valkey"
            )
        other = self.other or self._otherwise
        return f"cannot be used: {other}" if other else None


def _name_of(command: Command) -> str:
    return " ".join(str(part) for part in command[: 1 + (command[0] in _WITH_SUBCOMMANDS)])


def _listed(names: set[str]) -> str:
    *others, last = sorted(names)
    return f"{', '.join(others)} and {last}" if others else last


def _needed(role: Role, name: str) -> list[Command]:
    """Returns every command that a process of this role sends, or that its scripts call, with arguments that change nothing.

    Redis checks whether the user may run a command before it looks at the arguments.
    """
    log, deliveries, live = log_key(name), deliveries_key(name), live_channel(name)
    both: list[Command] = [
        ("PING",),
        ("SCRIPT", "LOAD", EventLog.APPEND.source),
        ("EVAL", "return 1", 0),
        ("TIME",),
        ("XADD", log, "NOMKSTREAM", "0-0", "probe", ""),
        ("XADD", REQUESTS, "NOMKSTREAM", "0-0", "probe", ""),  # XADD refuses the id 0-0
        ("XLEN", REQUESTS),
        ("XRANGE", log, "-", "+", "COUNT", 1),
        ("XREVRANGE", log, "+", "-", "COUNT", 1),
        ("XPENDING", REQUESTS, GROUP, "-", "+", 1),
        ("EXPIRE", REQUESTS, 1, "GT"),
        ("EXPIRE", log, 1),
        ("PEXPIRE", deliveries, 1),
        ("HGETALL", deliveries),
        ("HDEL", deliveries, "probe"),
        ("HSET", deliveries, "probe", ""),
        ("EXPIRE", deliveries, 0),
        ("HEXISTS", deliveries, "probe"),
        ("HGET", deliveries, "probe"),
        ("HINCRBY", deliveries, "probe", "no number"),  # refused after the permission was checked
        ("HLEN", deliveries),
        ("PTTL", deliveries),
        ("ZADD", PROCESSES_UNTIL, "XX", 1, "probe"),
        ("ZCARD", PROCESSES_UNTIL),
        ("ZSCORE", PROCESSES_UNTIL, "probe"),
        ("ZREM", PROCESSES_UNTIL, "probe"),
        ("ZRANGEBYSCORE", PROCESSES_UNTIL, "-inf", "-inf", "LIMIT", 0, 1),
        ("ZADD", UNKEPT, "XX", 1, "probe"),
        ("HDEL", PROCESSES_ABOUT, "probe"),
        ("SET", idempotency_key(name), "", "XX", "GET", "EX", 1),
        ("SPUBLISH", live, ""),
    ]
    if role == "gateway":
        return [
            *both,
            ("PUBSUB", "SHARDNUMSUB", live),
            ("HMGET", lease_key(name), "ms"),
            ("GET", idempotency_key(name)),
            ("HGET", API_KEYS, "version"),
            ("DEL", log),
            ("HMGET", deliveries, "probe"),
            ("PEXPIREAT", deliveries, 1),
            ("XINFO", "GROUPS", REQUESTS),
            ("ZRANGE", PROCESSES_UNTIL, 0, 0),
            ("RENAME", part_key(name, "probe"), log),  # there is nothing to rename
        ]
    return [
        *both,
        ("PUBSUB", "SHARDNUMSUB", live),
        ("XGROUP", "CREATE", REQUESTS, GROUP, "0"),
        # Entries of this consumer, which has none.
        ("XREADGROUP", "GROUP", GROUP, "probe", "COUNT", 1, "STREAMS", REQUESTS, "0"),
        ("XCLAIM", REQUESTS, GROUP, "probe", 0, "0-0", "JUSTID"),
        ("XAUTOCLAIM", REQUESTS, GROUP, "probe", _NEVER_IDLE_MILLISECONDS, "0-0", "COUNT", 1, "JUSTID"),
        ("XACK", REQUESTS, GROUP, "0-0"),
        ("XDEL", REQUESTS, "0-0"),
        ("XINFO", "CONSUMERS", REQUESTS, GROUP),
        ("XGROUP", "DELCONSUMER", REQUESTS, GROUP, "probe"),
    ]


def _scripts(role: Role, name: str) -> list[tuple[Script, list[bytes], Command]]:
    """Returns the scripts that a stream's life needs, with keys and arguments: one of its own begins, is written to, ends.

    What other scripts call is among the commands of `_needed`.
    """
    log, deliveries, live = log_key(name), deliveries_key(name), live_channel(name)
    request, kept_request = request_key(name), kept_key(name)
    queue, until, about = (b"midstream:{%b}:%b" % (name.encode(), end) for end in (b"requests", b"until", b"about"))
    entry = Entry(FIRST_ID, events.ACCEPTED, b"{}")
    first: Command = (live, 0, bytes(entry.id), entry.field, entry.value, _PROBE_TTL_SECONDS)
    scripts: list[tuple[Script, list[bytes], Command]] = [
        (EventLog.APPEND, [log], first),
        (EventLog.APPEND, [log], first),  # a duplicate, for which the script reads the last entry
        (DeliveryNotes.DELIVER, [log, deliveries], ("probe", b"{}", 1)),
        (
            EventLog.APPEND_LAST,
            [log, request, kept_request],
            (live, 1, bytes(EventId(1, 1)), events.TOKEN, b"", _PROBE_TTL_SECONDS),
        ),
        (EventLog.END, [log, request, kept_request], (live, events.FAILED, b"{}", _PROBE_TTL_SECONDS)),
        (Presence.BEAT, [until, about], ("probe", b"{}", 1000, _PROBE_TTL_SECONDS * 1000, 1)),
        (Presence.BEAT, [until, about], ("probe", b"", 1000, _PROBE_TTL_SECONDS * 1000, 1)),
    ]
    if role == "gateway":
        lease, writers = lease_key(name), b"midstream:{%b}:writers" % name.encode()
        keys = [log, live, lease, request, kept_request]
        bounds = (_PROBE_TTL_SECONDS, 100, 1000)
        more: Command = ("", 1, 1000, 0, b"{}", *bounds)
        scripts[-3:-3] = [  # before the end
            (ExternalWrites.WRITE, keys, ("1-1", "1-2", events.TOKEN, b"", *more)),
            (ExternalWrites.WRITE_LAST, keys, ("", "0-0", b"", b"", *more)),
            (WriterLeases.DUE, [writers], (1, 1)),
        ]
        scripts += _scripts_of_written_streams(name)
        scripts.append((RequestQueue.ENQUEUE, [queue], (name, 1, _PROBE_TTL_SECONDS)))
        scripts.append((EventLog.DELETE, [log, deliveries, request, kept_request], (_PROBE_TTL_SECONDS, b"")))
    else:
        scripts.append((RequestQueue.RENEW, [queue], (GROUP, "probe", _PROBE_TTL_SECONDS, 0)))
    return scripts


def _scripts_of_written_streams(name: str) -> list[tuple[Script, list[bytes], Command]]:
    """Returns the scripts with which programs write streams: one of their own begins, is written to, and is counted."""
    log, live, writer, named, until, held = (
        b"midstream:{%b}:%b" % (name.encode(), end)
        for end in (b"written", b"live", b"writer", b"name", b"held-until", b"held-bytes")
    )
    life_ms = _PROBE_TTL_SECONDS * 1000
    message: Command = (events.RAW, b"probe", 1)
    return [
        (WrittenLog.CREATE, [log, writer], (b"{}", b"{}", "", life_ms, 0, *message)),
        (WrittenLog.APPEND, [log, live, writer], (*message, "", "1", "probe", 0, 0, 100, 100, 1, events.DONE, b"{}")),
        (Names.NAME, [named], ("", name, life_ms)),
        (Names.NAME, [named], (name, "", life_ms)),
        (Holdings.HOLD, [until, held], (name, life_ms, 1, 1, life_ms)),
        (Holdings.HOLD, [until, held], (name, 0, 0, 1, life_ms)),
    ]


async def refusals(commands: Commands, role: Role, *, min_replicas: int = 0) -> Refusals:
    """Tries all that a process of this role does in Redis, except its subscription. Raises Disconnected."""
    found, name = Refusals(), f"probe-{secrets.token_hex(6)}"
    needed = [*_needed(role, name), *(() if commands.is_one_server else _IN_CLUSTER)]
    needed += _WITH_REPLICAS if min_replicas else ()
    replies = await asyncio.gather(*(commands.execute(*command) for command in needed), return_exceptions=True)
    for command, reply in zip(needed, replies, strict=True):
        _note(found, command, reply)
    # One after the other: each script needs what the one before it wrote.
    expected = ["duplicate", "applied"]
    for script, keys, arguments in _scripts(role, name):
        try:
            reply = await script.run(commands, keys, *arguments)
            if script is EventLog.APPEND and Appended.of(reply).status != expected.pop():
                raise odd_reply("an append", reply)
        except MidstreamError as error:
            _note(found, ("EVALSHA", *keys), error)
            found.script_failed(error)
            break
    made = [
        b"midstream:{%b}:%b" % (name.encode(), end)
        for end in (b"requests", b"written", b"writer", b"held-until", b"held-bytes")
    ]
    for key in (log_key(name), deliveries_key(name), *made):
        _note(found, ("EXPIRE", key), await _outcome(commands, "EXPIRE", key, 0))
    return found


async def _outcome(commands: Commands, *command: bytes | str | int) -> Any:
    try:
        return await commands.execute(*command)
    except RedisRefused as error:
        return error


def _note(found: Refusals, command: Command, reply: Any) -> None:
    if isinstance(reply, RedisRefused):
        found.note(command, reply)
    elif isinstance(reply, BaseException) and not isinstance(reply, LogFull):  # in a full Redis streams can go on
        raise reply


class Subscription:
    """A connection that subscribes only to check whether it is allowed to."""

    CHANNEL = live_channel("probe")

    def __init__(self, commands: RedisConnection, *, reply_seconds: float) -> None:
        self._replies: asyncio.Queue[Any] = asyncio.Queue(16)
        self._connection = commands.subscriber(name="readiness", on_push=self._on_push)
        self._reply_seconds = reply_seconds

    def start(self) -> None:
        self._connection.start()

    async def close(self) -> None:
        await self._connection.close()

    async def note_refusals(self, found: Refusals) -> None:
        """Subscribes and unsubscribes once. Raises Disconnected if Redis cannot be reached."""
        try:
            async with asyncio.timeout(self._reply_seconds):
                await self._connection.wait_until_up()
                for command in (b"SSUBSCRIBE", b"SUNSUBSCRIBE"):
                    while not self._replies.empty():
                        self._replies.get_nowait()
                    self._connection.push(command, self.CHANNEL)
                    reply = await self._replies.get()
                    if isinstance(reply, Exception):
                        found.note((command.decode(),), RedisRefused(str(reply)))
        except TimeoutError:
            raise Disconnected(f"Redis did not confirm a subscription within {self._reply_seconds:g} s") from None

    def _on_push(self, pushed: list[Any]) -> None:
        for reply in pushed:
            pong = reply == b"PONG" or (isinstance(reply, list) and reply[:1] == [b"pong"])
            if not pong and not self._replies.full():
                self._replies.put_nowait(reply)


async def until_up(connection: RedisConnection, *, within_seconds: float) -> None:
    """Returns when the connection is up. Raises Unusable, with the reason that Redis gives, if it is not up in time."""
    try:
        async with asyncio.timeout(within_seconds):
            await connection.wait_until_up()
    except TimeoutError:
        reason = f"refuses this process: {connection.refusal}" if connection.refusal else "does not answer any more"
        raise Unusable(f"Redis at {connection.address} {reason}") from None


async def check_for_all(url: str, settings: Settings) -> None:
    """Runs `check`, and `check_grants` for both roles, over connections made for it. Raises Unusable."""
    await check(settings, url=url)
    connection = connection_to(settings, name="start", url=url)
    subscription = Subscription(connection, reply_seconds=settings.redis_reply_seconds)
    connection.start()
    subscription.start()
    try:
        await until_up(connection, within_seconds=settings.redis_start_seconds)
        for role in ROLES:
            await check_grants(
                connection,
                role,
                within_seconds=settings.redis_start_seconds,
                subscription=subscription if role == "gateway" else None,
                min_replicas=settings.min_replicas,
            )
    finally:
        await subscription.close()
        await connection.close()


async def check_grants(
    commands: RedisConnection,
    role: Role,
    *,
    within_seconds: float,
    subscription: Subscription | None = None,
    min_replicas: int = 0,
) -> None:
    """Returns when Redis allows everything that a process of this role needs. Raises Unusable that says what it refuses.

    Waits up to `within_seconds` for what may pass: a failover, a Redis that is loading its data.
    """
    sentence: str | None = "does not answer any more"
    try:
        async with asyncio.timeout(within_seconds):
            while True:
                try:
                    found = await refusals(commands, role, min_replicas=min_replicas)
                    if subscription is not None:
                        await subscription.note_refusals(found)
                    sentence = found.sentence(role, commands.address.username)
                    if sentence is None:
                        return
                    if found.lasts:
                        break
                except Disconnected:
                    pass
                await asyncio.sleep(0.1)
    except TimeoutError:
        pass
    raise Unusable(f"Redis at {commands.address} {sentence}")
