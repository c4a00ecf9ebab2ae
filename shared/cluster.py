"""Redis Cluster: one connection to each master, with the methods of one connection to one server.

A command goes to the master of its key's slot. The map of slots comes from the servers, and is asked for again when one of them
says that it has changed (MOVED, CLUSTERDOWN), when a connection is lost or silent, and every ten seconds. A command that was
refused with MOVED or ASK was not carried out, and is sent again where the reply says; any other error is the caller's, as from
one server. What has no key (PING, TIME) goes to any master.

While a master is away, commands on its slots get `Disconnected` and all others go on.
(https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/)
"""

from __future__ import annotations

import asyncio
import logging
import random
from binascii import crc_hqx
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from shared.background import keep_running
from shared.cluster_parts import ClusterSubscriber, DedicatedConnection, Place
from shared.errors import Disconnected, RedisRefused
from shared.redis_server import RedisAddress
from shared.resp import TRUSTED_SECONDS, Argument, OnReply, RespConnection, settle

logger = logging.getLogger(__name__)

SLOTS = 16384
_REDIRECTS_MAX = 5
"""How often one command is sent on: each reply of a healthy cluster is right at once; more means that its nodes disagree."""
_MAP_SECONDS = 10.0
"""How often the map is asked for without a reason: three commands, 0.2 ms of a server."""
_LOOK_SECONDS = 0.25
"""How often the connections are looked at, for one that is lost or silent."""
_SILENT_SECONDS = 0.5
"""A master that has not answered for so long may have been replaced."""
_BETWEEN_MAPS_SECONDS = 0.1
"""The shortest time between two maps: many errors come at once."""
_MAP_REPLY_SECONDS = 1.0
_ASKED_AT_ONCE = 3
"""How many nodes are asked for the map: one may be cut off from the others, and have an old one."""
_SLOTS_REMEMBERED = 16_384
"""Of so many keys the slots are kept: 4 MB. A token comes for a key of which there were others just before."""
_NO_KEY = frozenset({"ASKING", "PING", "SCRIPT", "TIME", "INFO", "CLIENT", "CLUSTER", "ROLE"})
_KEY_IS_SECOND = frozenset({"XGROUP", "XINFO", "PUBSUB"})


def tag_of(key: bytes) -> bytes:
    """Returns the part of a key or shard channel that decides its slot: what stands in its first braces, if anything does."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            return key[start + 1 : end]
    return key


@lru_cache(_SLOTS_REMEMBERED)
def slot_of(key: bytes) -> int:
    """Returns the slot of a key or shard channel."""
    return crc_hqx(tag_of(key), 0) & (SLOTS - 1)


def key_of(arguments: tuple[Argument, ...]) -> bytes | None:
    """Returns the first key of a command; None if it has none."""
    name = arguments[0]
    if name == "EVALSHA" or name == "EVAL":
        return arguments[3] if len(arguments) > 3 and arguments[2] else None  # type: ignore[return-value]
    if name in _NO_KEY:
        return None
    key = arguments[arguments.index("STREAMS") + 1 if name == "XREADGROUP" else 2 if name in _KEY_IS_SECOND else 1]
    return key if type(key) is bytes else str(key).encode()


Ranges = list[tuple[int, int, Place]]
"""The map of a cluster: first and last slot of a range, and its master."""


class ClusterConnection:
    """The connections of one process to the masters of a cluster. `seeds` are nodes from which the others are found."""

    is_one_server: bool = False

    def __init__(
        self,
        seeds: tuple[RedisAddress, ...],
        *,
        name: str,
        reply_seconds: float,
        reconnect_seconds_max: float = 1.0,
        scripts: Iterable[str] = (),
        gathers: bool = False,
    ) -> None:
        self._seeds = seeds
        self.address = seeds[0]
        self._name = name
        self._options: dict[str, Any] = {
            "reply_seconds": reply_seconds,
            "reconnect_seconds_max": reconnect_seconds_max,
            "trusted_seconds": TRUSTED_SECONDS,
        }
        self._reply_seconds = reply_seconds
        self._more: dict[str, Any] = {"scripts": list(scripts), "gathers": gathers}
        self._nodes: dict[Place, RespConnection] = {}
        self._masters: dict[Place, RespConnection] = {}
        """Those of the nodes that have slots."""
        self._ranges: Ranges | None = None
        """The newest map as it was read; None if a server has said since that a slot is elsewhere."""
        self._is_complete = False
        """Whether every slot has a master in the newest map."""
        self._owners: list[Place | None] = [None] * SLOTS
        self._connections: list[RespConnection | None] = [None] * SLOTS
        """For each slot the connection to its master."""
        self._followers: list[Callable[[], None]] = []
        """Called after each change of the map."""
        self._stale = asyncio.Event()
        self._all_up = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._gone = [0, 0, 0]
        """The counts of connections that were closed."""
        self._map_refusal: RedisRefused | None = None
        self.maps = 0
        """How often the map was read."""

    def start(self) -> None:
        """Begins to connect, in the background. Must be called once, inside a running loop."""
        self._loop = asyncio.get_running_loop()
        self._stale.set()
        self._task = keep_running("cluster_map", self._keep_map)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*(node.close() for node in self._nodes.values()), *self._closing)

    # --- its state

    @property
    def is_up(self) -> bool:
        """Whether any master can be reached."""
        return any(node.is_up for node in self._masters.values())

    @property
    def is_whole(self) -> bool:
        """Whether every slot has a master that can be reached."""
        return self._is_complete and all(node.is_up for node in self._masters.values())

    async def wait_until_up(self) -> None:
        """Returns when every slot has a master that can be reached."""
        while not self.is_whole:
            self._all_up.clear()
            await self._all_up.wait()

    @property
    def refusal(self) -> RedisRefused | None:
        """Why a node refused this process; None if none did."""
        return next((node.refusal for node in self._nodes.values() if node.refusal is not None), self._map_refusal)

    @property
    def reconnects(self) -> int:
        return self._gone[0] + sum(node.reconnects for node in self._nodes.values())

    @property
    def writes(self) -> int:
        return self._gone[1] + sum(node.writes for node in self._nodes.values())

    @property
    def failed_callbacks(self) -> int:
        return self._gone[2] + sum(node.failed_callbacks for node in self._nodes.values())

    def place_of(self, key: bytes) -> Place | None:
        """Returns the master of a key's slot; None while it is not known."""
        return self._owners[slot_of(key)]

    def is_master(self, place: Place) -> bool:
        return place in self._masters

    def server_of(self, key: bytes) -> object:
        """Returns what is another one when another master has the key."""
        return self.place_of(key)

    def can_reach(self, key: bytes) -> bool:
        """Whether the master of a key's slot is connected."""
        connection = self._connections[slot_of(key)]
        return connection is not None and connection.is_up and connection.silent_seconds < _SILENT_SECONDS

    # --- sending

    def send(self, arguments: tuple[Argument, ...], on_reply: OnReply) -> None:
        """Sends a command to the master of its first key. `on_reply` is called with its reply or error, never before this returns."""
        key = key_of(arguments)
        connection = self._any_master() if key is None else self._connections[slot_of(key)]
        if connection is None:
            self._answer_unknown_slot(on_reply)
        else:
            connection.send(arguments, partial(self._replied, arguments, on_reply, 0))

    def send_packed(self, command: bytes, key: bytes, on_reply: OnReply) -> None:
        """Sends a command that is packed already to the master of its first key. A redirect is the caller's, as any other error is."""
        connection = self._connections[slot_of(key)]
        if connection is None:
            self._answer_unknown_slot(on_reply)
        else:
            connection.send_packed(command, key, on_reply)

    def _answer_unknown_slot(self, on_reply: OnReply) -> None:
        """Answers a command for a slot of which no master is known, and has the map read."""
        self._stale.set()
        self._loop.call_soon(on_reply, Disconnected("no node of the cluster is known to have this slot"))

    async def execute(self, *arguments: Argument) -> Any:
        """Sends a command and waits for its reply. Raises Disconnected, RedisRefused."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send(arguments, partial(settle, future))
        try:
            return await future
        finally:
            del future  # as in RespConnection

    async def execute_together(self, key: bytes, *commands: tuple[Argument, ...]) -> list[Any]:
        """Sends commands to the master of one key, next to each other; returns their replies, or in place of one its error.

        That is Disconnected, also where another master has the key of that command now, or RedisRefused. Raises Disconnected.
        """
        connection = self._connections[slot_of(key)]
        if connection is None:
            self._stale.set()
            raise Disconnected
        replies = await connection.execute_together(key, *commands)
        return [self._unless_moved(reply) for reply in replies]

    def _unless_moved(self, reply: Any) -> Any:
        """Returns a reply; Disconnected where it is an error which says that another master has the key."""
        if isinstance(reply, Exception) and self.note_error(reply) is not None:
            return Disconnected(str(reply))
        return reply

    async def execute_everywhere(self, *arguments: Argument) -> list[Any]:
        """Returns the replies of the masters that answer. Raises what the first answered if none does."""
        masters = list(self._masters.values())
        if not masters:
            raise Disconnected
        replies = await asyncio.gather(*(master.execute(*arguments) for master in masters), return_exceptions=True)
        answers = [reply for reply in replies if not isinstance(reply, BaseException)]
        if not answers:
            raise next(reply for reply in replies if isinstance(reply, BaseException))
        return answers

    def _replied(self, arguments: tuple[Argument, ...], on_reply: OnReply, redirects: int, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._refused(arguments, on_reply, redirects, reply)
        else:
            on_reply(reply)

    def _refused(self, arguments: tuple[Argument, ...], on_reply: OnReply, redirects: int, error: Exception) -> None:
        """Sends a command on that was refused with MOVED or ASK; hands on any other error."""
        moved = self.note_error(error)
        if moved is None:
            on_reply(error)
            return
        if redirects >= _REDIRECTS_MAX:
            on_reply(Disconnected(f"the nodes of the cluster do not agree on who has the slot: {error}"))
            return
        kind, place = moved
        connection = self._node(place)
        if kind == "ASK":
            connection.send(("ASKING",), _ignore)  # for the next command on this connection
        connection.send(arguments, partial(self._replied, arguments, on_reply, redirects + 1))

    def note_error(self, error: Exception) -> tuple[str, Place] | None:
        """Notes what an error says of the map; returns where to send the command instead: with MOVED or ASK, else None."""
        if isinstance(error, Disconnected):
            self._stale.set()
            return None
        if not isinstance(error, RedisRefused) or error.code not in ("MOVED", "ASK", "CLUSTERDOWN"):
            return None
        if error.code != "ASK":
            self._stale.set()
        words = str(error).split(" ")
        try:
            slot, (host, _, port) = int(words[1]), words[2].rpartition(":")
            place = host, int(port)
        except (IndexError, ValueError):
            return None
        if not host:
            return None
        if error.code == "MOVED":
            self._owners[slot], self._connections[slot] = place, self._node(place)
            self._ranges = None
        return error.code, place

    # --- connections that are made from this one

    def subscriber(
        self, *, name: str, on_push: Callable[[list[Any]], None], on_up: Callable[[], None] | None = None
    ) -> ClusterSubscriber:
        """Returns a subscriber to the same cluster. It subscribes again by itself: `on_up` is not called."""
        return ClusterSubscriber(self, name=name, on_push=on_push)

    def dedicated(self, key: bytes, *, name: str, block_seconds: float) -> DedicatedConnection:
        """Returns a connection to the master of one key, for commands that may block for so long."""
        return DedicatedConnection(self, key, name=name, block_seconds=block_seconds)

    def open(self, place: Place, *, name: str, block_seconds: float = 0.0, **more: Any) -> RespConnection:
        """Returns a new connection to a node, not started."""
        options = {
            **self._options,
            "reply_seconds": self._reply_seconds + block_seconds,
            "trusted_seconds": TRUSTED_SECONDS + block_seconds,
            **more,
        }
        return RespConnection(replace(self.address, host=place[0], port=place[1]), name=name, **options)

    def follow_map(self, on_change: Callable[[], None]) -> None:
        self._followers.append(on_change)

    def unfollow_map(self, on_change: Callable[[], None]) -> None:
        self._followers.remove(on_change)

    def look_soon(self) -> None:
        """Has the map read soon."""
        self._stale.set()

    # --- nodes

    def _node(self, place: Place) -> RespConnection:
        node = self._nodes.get(place)
        if node is None:
            node = self._nodes[place] = self.open(
                place, name=self._name, on_up=self._on_node_up, on_lost=self._stale.set, **self._more
            )
            node.start()
        return node

    def _on_node_up(self) -> None:
        self._all_up.set()

    def _any_master(self) -> RespConnection | None:
        up = [node for node in self._masters.values() if node.is_up]
        healthy = [node for node in up if node.silent_seconds < _SILENT_SECONDS]
        return random.choice(healthy or up) if up else None

    def _let_go(self, place: Place) -> None:
        node = self._nodes.pop(place)
        self._masters.pop(place, None)
        for index, count in enumerate((node.reconnects, node.writes, node.failed_callbacks)):
            self._gone[index] += count
        task = self._loop.create_task(node.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # --- the map

    async def _keep_map(self) -> None:
        read_at = float("-inf")
        while True:
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._stale.wait()
            except TimeoutError:
                pass
            now = self._loop.time()
            if self._stale.is_set() or now - read_at > _MAP_SECONDS or self._is_in_trouble():
                self._stale.clear()
                if await self._read_map():
                    read_at = now
                await asyncio.sleep(_BETWEEN_MAPS_SECONDS * random.uniform(1.0, 1.5))

    def _is_in_trouble(self) -> bool:
        return not self.is_whole or any(node.silent_seconds > _SILENT_SECONDS for node in self._nodes.values())

    async def _read_map(self) -> bool:
        """Reads the map from a few nodes, and takes the one of the newest epoch. False if none answers."""
        nodes = [node for node in self._nodes.values() if node.is_up]
        random.shuffle(nodes)
        nodes.sort(key=lambda node: node.silent_seconds > _SILENT_SECONDS)
        if not nodes or all(node.silent_seconds > _SILENT_SECONDS for node in nodes):
            nodes += await self._seed_nodes()
        answers = await asyncio.gather(*(self._map_of(node) for node in nodes[:_ASKED_AT_ONCE]))
        best = max((answer for answer in answers if answer), default=None, key=lambda answer: answer[:2])
        if best is None:
            return False
        self.maps += 1
        self._take_map(best[2])
        return True

    async def _seed_nodes(self) -> list[RespConnection]:
        """Returns the nodes that the URL names, as far as one can connect to them within a moment."""
        nodes = [self._node((seed.host, seed.port)) for seed in self._seeds]
        waits = [asyncio.create_task(node.wait_until_up()) for node in nodes]
        await asyncio.wait(waits, timeout=_MAP_REPLY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return [node for node in nodes if node.is_up]

    async def _map_of(self, node: RespConnection) -> tuple[bool, int, Ranges] | None:
        """Returns whether a node is in touch with most of the others, its epoch, and its map."""
        try:
            async with asyncio.timeout(_MAP_REPLY_SECONDS):
                info, rows = await asyncio.gather(node.execute("CLUSTER", "INFO"), node.execute("CLUSTER", "SLOTS"))
            about = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
            ranges: Ranges = []
            for first, last, master, *_ in rows:
                host = master[0].decode() if master[0] not in (None, b"", b"?") else node.address.host  # type: ignore[attr-defined]
                if not 0 <= first <= last < SLOTS:
                    raise ValueError(f"there are no slots {first} to {last}")
                ranges.append((first, last, (host, int(master[1]))))
            self._map_refusal = None
            return about.get(b"cluster_state") == b"ok", int(about.get(b"cluster_current_epoch", 0)), sorted(ranges)
        except RedisRefused as error:
            if not error.passing:
                self._map_refusal = error
            logger.debug("%s: %s gave no map: %s", self._name, node.address, error)
        except (Disconnected, TimeoutError, ValueError, TypeError, LookupError, AttributeError) as error:
            logger.debug("%s: %s gave no map: %s", self._name, node.address, error or type(error).__name__)
        return None

    def _take_map(self, ranges: Ranges) -> None:
        masters = {place for _, _, place in ranges}
        if not masters:
            return
        connections = {place: self._node(place) for place in masters}
        changed = 0
        if ranges != self._ranges:
            changed = self._take_owners(ranges, connections)
            self._ranges = ranges
        self._masters = connections
        for place in [place for place in self._nodes if place not in masters]:
            self._let_go(place)
        if self.is_whole:
            self._all_up.set()
        if changed:
            logger.info("%s: %d masters have the slots; %d slots moved", self._name, len(masters), changed)
        for on_change in list(self._followers):
            on_change()

    def _take_owners(self, ranges: Ranges, connections: dict[Place, RespConnection]) -> int:
        """Gives each slot the connection to its master; returns how many slots have another master than before."""
        owners: list[Place | None] = [None] * SLOTS
        for first, last, place in ranges:
            owners[first : last + 1] = [place] * (last + 1 - first)
        changed = [slot for slot, place in enumerate(owners) if self._owners[slot] != place]
        for slot in changed:
            owner = self._owners[slot] = owners[slot]
            self._connections[slot] = None if owner is None else connections[owner]
        self._is_complete = None not in owners
        return len(changed)


def _ignore(reply: Any) -> None:
    pass
