"""What a process has at a cluster besides its commands: subscriptions, and connections for commands that block.

Both follow the map of `shared.cluster`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from shared.background import keep_running
from shared.errors import Disconnected, RedisRefused
from shared.resp import Argument, RespConnection

_CONFIRM_SECONDS = 1.0
"""A subscription that is not confirmed for so long is sent again."""
_LOOK_SECONDS = 0.25
"""How often subscriptions are looked for that are not confirmed in time."""
_CONNECT_SECONDS = 1.0
"""How long a blocking command waits for its connection."""

Place = tuple[str, int]
"""The host and port of a node."""


class Cluster(Protocol):
    """The map of a cluster, and how to connect to its nodes."""

    def place_of(self, key: bytes) -> Place | None:
        """Returns the master of a key's slot; None while it is not known."""

    def is_master(self, place: Place) -> bool: ...

    def open(self, place: Place, *, name: str, block_seconds: float = 0.0, **more: Any) -> RespConnection:
        """Returns a new connection to a node, not started."""

    def note_error(self, error: Exception) -> tuple[str, Place] | None:
        """Notes what an error says of the map."""

    def look_soon(self) -> None:
        """Has the map read soon."""

    def follow_map(self, on_map: Callable[[], None]) -> None:
        """Has `on_map` called after each reading of the map."""

    def unfollow_map(self, on_map: Callable[[], None]) -> None: ...

    async def wait_until_up(self) -> None: ...


class DedicatedConnection:
    """A connection to the master of one key, whichever that is, for commands that block. One command at a time."""

    def __init__(self, cluster: Cluster, key: bytes, *, name: str, block_seconds: float) -> None:
        self._cluster = cluster
        self._key = key
        self._name = name
        self._block_seconds = block_seconds
        self._place: Place | None = None
        self._connection: RespConnection | None = None

    def start(self) -> None:
        self._cluster.follow_map(self._on_map)

    async def close(self) -> None:
        self._cluster.unfollow_map(self._on_map)
        if self._connection is not None:
            await self._connection.close()

    def _on_map(self) -> None:
        if self._connection is not None and self._cluster.place_of(self._key) != self._place:
            self._connection.reconnect()  # its command gets Disconnected, and the next one goes elsewhere

    async def execute(self, *arguments: Argument) -> Any:
        """Raises Disconnected, RedisRefused."""
        place = self._cluster.place_of(self._key)
        if place is None:
            raise Disconnected
        if place != self._place or self._connection is None:
            previous, self._place = self._connection, place
            self._connection = self._cluster.open(place, name=self._name, block_seconds=self._block_seconds)
            self._connection.start()
            if previous is not None:
                await previous.close()
        connection = self._connection
        if not connection.is_up:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await connection.wait_until_up()
            except TimeoutError:
                raise Disconnected from None
        try:
            return await connection.execute(*arguments)
        except (Disconnected, RedisRefused) as error:
            if self._cluster.note_error(error) is not None:
                raise Disconnected(str(error)) from None
            raise


class ClusterSubscriber:
    """Subscriptions to shard channels, each at the master of its slot; moved when the slot moves.

    After each move or reconnection the server confirms the subscription anew, and `on_push` gets that, as after the first: its
    reader then reads what it has missed.
    """

    def __init__(self, cluster: Cluster, *, name: str, on_push: Callable[[list[Any]], None]) -> None:
        self._cluster = cluster
        self._name = name
        self._on_push = on_push
        self._places: dict[bytes, Place | None] = {}
        """For each channel the node at which it is subscribed to."""
        self._nodes: dict[Place, RespConnection] = {}
        self._unconfirmed: dict[bytes, float] = {}
        """Since when a subscription waits to be confirmed (loop seconds)."""
        self._closing: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self.reconnects = self.writes = self.failed_callbacks = 0

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._cluster.follow_map(self._on_map)
        self._task = keep_running("subscriptions", self._watch)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._cluster.unfollow_map(self._on_map)
        await asyncio.gather(*(node.close() for node in self._nodes.values()), *self._closing)

    @property
    def is_up(self) -> bool:
        """Whether what is subscribed to can be heard, at least at one master."""
        return not self._nodes or any(node.is_up for node in self._nodes.values())

    async def wait_until_up(self) -> None:
        await self._cluster.wait_until_up()

    def push(self, command: bytes, *channels: bytes) -> None:
        """Subscribes to shard channels (SSUBSCRIBE), or ends that (SUNSUBSCRIBE)."""
        if command == b"SSUBSCRIBE":
            for channel in channels:
                self._subscribe(channel)
            return
        for channel in channels:
            place = self._places.pop(channel, None)
            self._unconfirmed.pop(channel, None)
            if place in self._nodes:
                self._nodes[place].push(b"SUNSUBSCRIBE", channel)

    def _subscribe(self, channel: bytes) -> None:
        place = self._places[channel] = self._cluster.place_of(channel)
        self._unconfirmed[channel] = self._loop.time()
        if place is None:
            self._cluster.look_soon()
        else:
            self._node(place).push(b"SSUBSCRIBE", channel)  # one that is not up sends it when it is

    def _node(self, place: Place) -> RespConnection:
        node = self._nodes.get(place)
        if node is None:
            node = self._nodes[place] = self._cluster.open(
                place,
                name=self._name,
                on_push=partial(self._pushed, place),
                on_up=partial(self._on_node_up, place),
                on_lost=self._cluster.look_soon,
            )
            node.start()
        return node

    def _on_node_up(self, place: Place) -> None:
        for channel in [channel for channel, at in self._places.items() if at == place]:
            self._subscribe(channel)

    def _pushed(self, place: Place, pushed: list[Any]) -> None:
        passed_on = pushed
        for message in pushed:
            if type(message) is not list or message[0] != b"smessage":
                passed_on = [message for message in pushed if not self._takes(place, message)]
                break
        if passed_on:
            self._on_push(passed_on)

    def _takes(self, place: Place, message: Any) -> bool:
        """Returns whether a message of the server itself is dealt with here, so that the reader need not see it: a slot has moved, or a
        subscription is not wanted at this node."""
        if isinstance(message, Exception):
            error = RedisRefused(str(message))
            if error.code in ("MOVED", "CLUSTERDOWN", "LOADING", "TRYAGAIN"):
                self._cluster.note_error(error)
                return True  # `_watch` sends the unconfirmed ones again
            return False
        if type(message) is not list or message[0] not in (b"ssubscribe", b"sunsubscribe"):
            return False
        channel = message[1]
        if self._places.get(channel) != place:
            return channel in self._places  # of a subscription that is elsewhere by now
        if message[0] == b"ssubscribe":
            self._unconfirmed.pop(channel, None)
            return False
        self._cluster.look_soon()  # the node has lost the slot
        self._unconfirmed[channel] = self._loop.time()
        return True

    def _on_map(self) -> None:
        """Moves the subscriptions whose slots are elsewhere now, and closes connections that have none."""
        place_of = self._cluster.place_of
        for channel, place in list(self._places.items()):
            new_place = place_of(channel)
            if new_place != place and new_place is not None:
                if place in self._nodes:
                    self._nodes[place].push(b"SUNSUBSCRIBE", channel)
                self._subscribe(channel)
            elif channel in self._unconfirmed:
                self._subscribe(channel)
        used = set(self._places.values())
        for place in [place for place in self._nodes if place not in used and not self._cluster.is_master(place)]:
            self._let_go(place)

    def _let_go(self, place: Place) -> None:
        node = self._nodes.pop(place)
        task = self._loop.create_task(node.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._send_again()
            nodes = self._nodes.values()
            self.reconnects = sum(node.reconnects for node in nodes)
            self.writes = sum(node.writes for node in nodes)
            self.failed_callbacks = sum(node.failed_callbacks for node in nodes)

    def _send_again(self) -> None:
        """Subscribes again where the confirmation is overdue."""
        due = self._loop.time() - _CONFIRM_SECONDS
        for channel in [channel for channel, since in self._unconfirmed.items() if since < due]:
            self._cluster.look_soon()
            self._subscribe(channel)
