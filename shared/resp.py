"""One pipelined connection to Redis for the two hot paths: appends, and what a gateway follows.

redis-py spends 17–45 µs of Python on a command and 6–12 µs on a pushed message; this module spends 3.5 and 1 µs. It has no
pool, no task and no time-out per command: all commands that are sent within one turn of the event loop (of a busy worker:
within a millisecond) leave in one write, and replies are matched to commands by their order. It reconnects for ever, with
jittered back-off.

A command that gets no reply is never silently dropped: its callback gets `Disconnected`, and the sender decides what to do.
(RESP2: https://redis.io/docs/latest/develop/reference/protocol-spec/)
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol, cast

import hiredis

from shared.background import keep_running
from shared.errors import Disconnected, RedisRefused
from shared.redis_server import RedisAddress

logger = logging.getLogger(__name__)

Argument = bytes | str | int | float
OnReply = Callable[[Any], None]
"""Gets the reply, or a `Disconnected` or `RedisRefused` instance. An exception that it raises is logged and counted; the
connection and the other replies are not affected."""

_FIRST_PAUSE_SECONDS = 0.02
_FEED_BYTES = 16_384
"""The most bytes that hiredis gets at a time: with each reply it moves the bytes that it has not parsed yet, and with 256 KB that
triples the work."""
_GATHER_SECONDS = 0.001
"""How long a busy connection gathers commands for one write: Redis then wakes up once for all of them, and so do the gateways
for what it publishes. uvloop's timers count whole milliseconds, so on average it is half of that."""
_FEW = 3
"""So many commands under way, or gathered, are not worth waiting for: one stream alone never has more."""
TRUSTED_SECONDS = 1.0
"""A server that has been silent for longer may have been replaced: fail-overs take longer than this."""
_CLOSE_SECONDS = 0.5
"""How long the last bytes may take to be sent when a connection is closed for good."""
_NOT_THE_PRIMARY = frozenset({"READONLY", "MASTERDOWN"})
"""What a server answers that has become a replica."""
_ASK_AGAIN_SECONDS = 1.0
"""A connection to a replica is left when it is so old: a primary that has just been named, and is none, is not asked for at once again."""
pack: Callable[[tuple[Argument, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


class Address(Protocol):
    """Where the primary of one Redis is: a host and port, a socket, or sentinels that know it."""

    @property
    def username(self) -> str: ...

    @property
    def database(self) -> int: ...

    @property
    def must_be_primary(self) -> bool:
        """Whether each new connection asks the server for its role."""

    async def connect(self, loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol]) -> RedisAddress:
        """Opens one connection for a protocol, and returns the server's address. Raises OSError, Disconnected."""

    async def confirm(self, connected: RedisAddress) -> None:
        """Raises Disconnected unless the server to which a connection was made is still the primary."""

    async def is_replaced(self, connected: RedisAddress) -> bool:
        """Whether another server than the one to which a connection was made is known to be the primary now."""

    def login_commands(self) -> list[tuple[str | int, ...]]: ...


def settle(future: asyncio.Future[Any], reply: Any) -> None:
    """Resolves the future with a reply, unless it is done or cancelled already."""
    if future.done():
        return
    if isinstance(reply, Exception):
        future.set_exception(reply)
    else:
        future.set_result(reply)


class RespConnection(asyncio.Protocol):
    """A connection that is opened, checked and reopened in the background.

    One to a server that has become a replica is left for the address's present primary, with the subscribers made from it.

    With `on_push` it is a subscriber: `on_push` gets every reply after the handshake, in lists, and only (S)SUBSCRIBE,
    (S)UNSUBSCRIBE and PING may be sent. `on_up` is called after every (re)connection, as soon as Redis answers, and `on_lost`
    when one was lost.
    With `trusted_seconds` a server is left that was silent for longer while a reply was due, before its reply is used: another
    may have become the primary meanwhile, and what this one stores would be lost.
    One that `gathers` sends at once while few commands are under way, and else what came in about a millisecond in one write.
    """

    is_one_server: bool = True
    """Whether all commands are carried out in the order in which they were sent."""

    def __init__(
        self,
        address: Address,
        *,
        name: str,
        reply_seconds: float,
        reconnect_seconds_max: float = 1.0,
        scripts: Iterable[str] = (),
        on_push: Callable[[list[Any]], None] | None = None,
        on_up: Callable[[], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        gathers: bool = False,
        trusted_seconds: float = math.inf,
    ) -> None:
        self.address = address
        self._name = name
        self._reply_seconds = reply_seconds
        self._trusted_seconds = trusted_seconds
        self._pause_seconds_max = reconnect_seconds_max
        self._scripts = list(scripts)
        self._on_push = on_push
        self._on_up = on_up
        self._on_lost = on_lost
        self._subscribers: list[RespConnection] = []
        self._gathers = gathers
        self._gathering = False
        """Commands wait for the next tick, since many are under way."""
        self._transport: asyncio.WriteTransport | None = None
        self._reader = hiredis.Reader()
        self._unanswered: deque[OnReply] = deque()
        self._unsent: list[bytes] = []
        self._heard_at = self._made_at = 0.0
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self.reconnects = self.writes = self.failed_callbacks = 0
        self.refusal: RedisRefused | None = None
        """Why Redis refused the last connection: a wrong password, a missing permission. None while connected, or if Redis is unreachable."""

    def start(self) -> None:
        """Begins to connect, in the background. Must be called once, inside a running loop."""
        self._loop = asyncio.get_running_loop()
        self._task = keep_running("connection", self._keep_connected)

    async def close(self) -> None:
        """Closes the connection for good; unanswered commands get `Disconnected`."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._flush()
        if self._transport is not None:
            transport = self._transport
            transport.close()
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._lost.wait()
            except TimeoutError:
                transport.abort()  # a frozen Redis takes no byte; after a cancelled connect `connection_lost` may never be called

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    @property
    def is_whole(self) -> bool:
        """Whether all keys can be reached."""
        return self._up.is_set()

    def server_of(self, key: bytes) -> object:
        """Returns what is another one when the connection was made anew, perhaps to another server."""
        return self.reconnects

    def can_reach(self, key: bytes) -> bool:
        """Whether the server that has a key can be reached."""
        return self._up.is_set()

    async def wait_until_up(self) -> None:
        await self._up.wait()

    @property
    def silent_seconds(self) -> float:
        """How long a reply has been due; 0 if none is."""
        return self._loop.time() - self._heard_at if self._unanswered else 0.0

    def subscriber(
        self, *, name: str, on_push: Callable[[list[Any]], None], on_up: Callable[[], None] | None = None
    ) -> RespConnection:
        """Returns a subscriber to the same server, to be started and closed by the caller."""
        subscriber = RespConnection(
            self.address,
            name=name,
            reply_seconds=self._reply_seconds,
            reconnect_seconds_max=self._pause_seconds_max,
            trusted_seconds=self._trusted_seconds,
            on_push=on_push,
            on_up=on_up,
        )
        self._subscribers.append(subscriber)
        return subscriber

    def dedicated(self, key: bytes, *, name: str, block_seconds: float) -> RespConnection:
        """Returns a connection for commands on one key that may block for so long, to be started and closed by the caller."""
        return RespConnection(
            self.address,
            name=name,
            reply_seconds=block_seconds + self._reply_seconds,
            trusted_seconds=block_seconds + self._trusted_seconds,
            reconnect_seconds_max=self._pause_seconds_max,
        )

    def reconnect(self) -> None:
        """Has the connection made anew; unanswered commands get `Disconnected`."""
        if self._transport is not None:
            self._transport.abort()

    # --- sending

    def send(self, arguments: tuple[Argument, ...], on_reply: OnReply) -> None:
        """Sends a command. `on_reply` is called with its reply or error, never before this returns."""
        self.send_packed(pack(arguments), b"", on_reply)

    def send_packed(self, command: bytes, key: bytes, on_reply: OnReply) -> None:
        """Sends a command that is packed already. `on_reply` is called with its reply or error, never before this returns."""
        if not self._up.is_set():
            self._loop.call_soon(on_reply, Disconnected())
            return
        if not self._unanswered:
            self._heard_at = self._loop.time()
        self._unanswered.append(on_reply)
        self._write(command)

    async def execute(self, *arguments: Argument) -> Any:
        """Sends a command and waits for its reply. Raises Disconnected, RedisRefused.

        A caller may be cancelled: the reply is then read and ignored.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send(arguments, partial(settle, future))
        try:
            return await future
        finally:
            del future  # an error in it leads, by its traceback, to this frame, which must not lead back

    async def execute_together(self, key: bytes, *commands: tuple[Argument, ...]) -> list[Any]:
        """Sends commands next to each other; returns their replies, or in place of one its error: Disconnected, RedisRefused."""
        return await asyncio.gather(*[self.execute(*command) for command in commands], return_exceptions=True)

    async def execute_everywhere(self, *arguments: Argument) -> list[Any]:
        """Returns the reply of each server: here of the one. Raises Disconnected, RedisRefused."""
        return [await self.execute(*arguments)]

    def push(self, *arguments: Argument) -> None:
        """Sends a command whose reply goes to `on_push`. Ignored while disconnected: `on_up` must send it again."""
        if self._up.is_set():
            self._write(pack(arguments))

    def _write(self, packed: bytes) -> None:
        if not self._unsent and not self._gathering:
            self._loop.call_soon(self._flush)
        self._unsent.append(packed)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None:
            self.writes += 1
            self._transport.write(b"".join(unsent))
        if self._gathers and len(self._unanswered) > _FEW and not self._gathering:
            self._gathering = True
            self._loop.call_later(_GATHER_SECONDS, self._tick)

    def _tick(self) -> None:
        """Sends what was gathered, and gathers on as long as it is many."""
        self._gathering = len(self._unsent) > _FEW
        if self._gathering:
            self._loop.call_later(_GATHER_SECONDS, self._tick)
        self._flush()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not its instances
        self._reader = hiredis.Reader()
        self._lost.clear()
        self._heard_at = self._made_at = self._loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        was_up = self._up.is_set()
        self._up.clear()
        self._unsent.clear()
        unanswered, self._unanswered = self._unanswered, deque()
        self._lost.set()
        for on_reply in unanswered:
            self._hand(on_reply, Disconnected())
        if was_up and self._on_lost is not None:
            self._on_lost()

    def data_received(self, data: bytes) -> None:
        now = self._loop.time()
        if now - self._heard_at > self._trusted_seconds and self._unanswered:
            logger.warning(
                "%s: %s was silent for %.1f s; asking for the primary", self._name, self.address, now - self._heard_at
            )
            for connection in (self, *self._subscribers):
                connection.reconnect()
            return
        self._heard_at = now
        reader, size = self._reader, len(data)
        try:
            for start in range(0, size, _FEED_BYTES):
                reader.feed(data, start, min(_FEED_BYTES, size - start))
                self._take_replies(reader)
        except hiredis.HiredisError as error:
            # It is no longer known which reply belongs to which command: only a new connection helps.
            logger.warning("%s: %s does not speak the Redis protocol: %s", self._name, self.address, error)
            if self._transport is not None:
                self._transport.abort()

    def _take_replies(self, reader: hiredis.Reader) -> None:
        if self._on_push is not None and self._up.is_set():
            pushed = []
            while (reply := reader.gets()) is not False:
                pushed.append(reply)
            if pushed:
                self._hand(self._on_push, pushed)
            return
        unanswered = self._unanswered
        while (reply := reader.gets()) is not False:
            if isinstance(reply, hiredis.ReplyError):
                reply = RedisRefused(str(reply))
                if reply.code in _NOT_THE_PRIMARY:
                    self._leave_the_replica()
            try:
                on_reply = unanswered.popleft()
            except IndexError:
                raise hiredis.ProtocolError("a reply for which no command was sent") from None
            try:
                on_reply(reply)
            except Exception:
                self._failed(on_reply)

    def _leave_the_replica(self) -> None:
        """Has the address asked again for its primary, at most once a second: it may have moved."""
        if self._up.is_set() and self._loop.time() - self._made_at > _ASK_AGAIN_SECONDS:
            logger.warning("%s: %s is no primary any more; asking for it again", self._name, self.address)
            self._made_at = self._loop.time()  # not twice
            for connection in (self, *self._subscribers):
                self._loop.call_soon(connection.reconnect)

    def _hand(self, callback: Callable[[Any], None], reply: Any) -> None:
        try:
            callback(reply)
        except Exception:
            self._failed(callback)

    def _failed(self, callback: Callable[[Any], None]) -> None:
        """Logs and counts the exception that a callback has raised: a bug, which must not affect other callbacks."""
        self.failed_callbacks += 1
        logger.exception("%s: %r raised an exception for its reply", self._name, callback)

    # --- keeping it up

    async def _keep_connected(self) -> None:
        pause_seconds = _FIRST_PAUSE_SECONDS
        lost_at: float | None = None
        while True:
            try:
                async with asyncio.timeout(min(self._reply_seconds, self._trusted_seconds)):
                    connected = await self.address.connect(self._loop, lambda: self)
                    await self._shake_hands()
                    await self.address.confirm(connected)
                if lost_at is None:
                    logger.debug("%s: connected to %s", self._name, self.address)
                else:  # as loud as the line that told of the loss
                    away_seconds = self._loop.time() - lost_at
                    logger.warning("%s: Redis at %s is back, after %.1f s", self._name, self.address, away_seconds)
                pause_seconds = _FIRST_PAUSE_SECONDS
                self.refusal = None
                self._up.set()
                if self._on_up is not None:
                    self._on_up()
                await self._watch(connected)
                lost_at = self._loop.time()
                self.reconnects += 1
                logger.warning("%s: the connection to %s was lost; reconnecting", self._name, self.address)
            except RedisRefused as error:
                if str(error) != str(self.refusal):
                    logger.warning("%s: %s does not let this process in: %s", self._name, self.address, error)
                self.refusal = error
            except (OSError, Disconnected, TimeoutError) as error:
                self.refusal = None
                logger.debug("%s: cannot reach %s: %s", self._name, self.address, error or type(error).__name__)
            finally:
                if self._transport is not None and not self._closed:  # `close` sends what is left
                    self._transport.abort()
            await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.0))
            pause_seconds = min(pause_seconds * 2, self._pause_seconds_max)

    async def _shake_hands(self) -> None:
        """Logs in, checks that Redis answers, names the connection, loads the scripts; all in one round trip.

        Raises RedisRefused. A Redis that forbids CLIENT SETNAME or SCRIPT LOAD is used all the same: scripts that it does not
        know are then sent with their source.
        """
        needed: list[tuple[Argument, ...]] = [*self.address.login_commands(), ("PING",)]
        if self.address.must_be_primary:
            needed.append(("ROLE",))
        commands: list[tuple[Argument, ...]] = [
            *needed,
            ("CLIENT", "SETNAME", f"midstream-{self._name}"),
            *(("SCRIPT", "LOAD", source) for source in self._scripts),
        ]
        replies = []
        for command in commands:
            future: asyncio.Future[Any] = self._loop.create_future()
            self._unanswered.append(lambda reply, future=future: future.done() or future.set_result(reply))  # type: ignore[misc]
            self._write(pack(command))
            replies.append(future)
        for index, reply in enumerate(await asyncio.gather(*replies)):
            if isinstance(reply, RedisRefused) and index >= len(needed) and not reply.passing:
                logger.debug("%s: %s forbids %s: %s", self._name, self.address, commands[index][0], reply)
            elif isinstance(reply, Exception):
                raise reply
            elif commands[index] == ("ROLE",) and reply[:1] != [b"master"]:
                raise Disconnected(f"{self.address} is not the primary")

    async def _watch(self, connected: RedisAddress) -> None:
        """Returns when the connection is lost. Aborts it if Redis is silent for too long although a reply is due, and if the
        server was replaced: one that lives and was only cut off, or too slow, goes on answering for seconds."""
        look_seconds = self._reply_seconds / 2
        if self.address.must_be_primary:
            look_seconds = min(look_seconds, _ASK_AGAIN_SECONDS)
        while not self._lost.is_set():
            try:
                async with asyncio.timeout(look_seconds):
                    await self._lost.wait()
                    return
            except TimeoutError:
                silent_seconds = self._loop.time() - self._heard_at
            reply_is_due = bool(self._unanswered) or self._on_push is not None
            if reply_is_due and silent_seconds > self._reply_seconds and self._transport is not None:
                logger.warning("%s: no reply from %s for %.1f s", self._name, self.address, silent_seconds)
                self._transport.abort()
            elif await self.address.is_replaced(connected):
                logger.warning("%s: %s was replaced; asking for the primary", self._name, connected)
                self.reconnect()
            elif self._on_push is not None:
                self.push("PING")
