"""A Redis Cluster, and a primary with replica and Sentinels, as real processes that a test can kill, freeze and reshape."""

from __future__ import annotations

import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import Any, Self

import redis
import redis.exceptions

from shared.cluster import SLOTS, slot_of
from tests.support.network import Network
from tests.support.redis_server import USER_PASSWORD, Kind, RedisServer, binary_of, free_port

NODE_TIMEOUT_MILLISECONDS = 1000
"""After so long a silent master is replaced by its replica, within another second."""
_FORM_SECONDS_MAX = 20.0
_LINK = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
_MIGRATED_AT_ONCE = 100
_FAILOVER_MILLISECONDS = 1500
"""A fail-over that did not find a majority, since two Sentinels began one at once, is tried again after twice this."""


def until(condition: Callable[[], bool], what: str, seconds: float = _FORM_SECONDS_MAX) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(redis.exceptions.RedisError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


class Node(RedisServer):
    """One node of a cluster."""

    def __init__(self, kind: Kind, *, durable: bool, address: str = "") -> None:
        """`address`: connects to others from this one, and is reached by ports of a `Network`, which the cluster makes."""
        self.address = address
        own_bus_port = self.bus_port = free_port()
        announced: tuple[str, ...] = ()
        if address:
            self.announced_port, self.bus_port = free_port(), free_port()
            announced = (
                *("--bind-source-addr", address, "--cluster-announce-ip", "127.0.0.1"),
                *("--cluster-announce-port", str(self.announced_port)),
                *("--cluster-announce-bus-port", str(self.bus_port)),
            )
        self.own_bus_port = own_bus_port
        super().__init__(
            kind,
            tcp=True,
            durable=durable,
            arguments=[
                *("--cluster-enabled", "yes", "--cluster-port", str(own_bus_port)),
                *announced,
                *("--cluster-node-timeout", str(NODE_TIMEOUT_MILLISECONDS)),
                *("--cluster-require-full-coverage", "no", "--cluster-allow-replica-migration", "no"),
                *("--cluster-replica-validity-factor", "0", *_LINK),
            ],
        )
        if not address:
            self.announced_port = self.port

    def execute(self, *command: bytes | str | int) -> Any:
        with redis.Redis(port=self.port, protocol=2, socket_timeout=5.0) as client:
            return client.execute_command(*command)

    @property
    def node_id(self) -> str:
        return str(self.execute("CLUSTER", "MYID").decode())

    def is_primary(self) -> bool:
        return self.runs and bool(self.execute("ROLE")[0] == b"master")


class _Servers(ABC):
    """Several servers as one context. Each has the users that are shipped."""

    @property
    @abstractmethod
    def url(self) -> str: ...

    @abstractmethod
    def _all(self) -> Sequence[RedisServer]: ...

    def url_of(self, user: str) -> str:
        """Returns the URL with another user's login."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{user}:{USER_PASSWORD}@{rest}"

    def refused(self) -> list[Any]:
        """Returns what the servers have refused to their users for want of a permission."""
        refused: list[Any] = []
        for node in self._all():
            if node.runs:
                with redis.Redis(port=node.port, protocol=2, socket_timeout=5.0) as client:
                    refused += client.execute_command("ACL", "LOG")
        return refused

    @abstractmethod
    def start(self) -> Self: ...

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


class RedisCluster(_Servers):
    """A cluster of masters, each with one replica, that share the slots evenly.

    With `can_be_cut` each node can be cut off from the others: `network`.
    """

    def __init__(
        self,
        *,
        masters: int = 3,
        replicas: bool = True,
        kind: Kind | None = None,
        durable: bool = False,
        can_be_cut: bool = False,
    ) -> None:
        self.kind: Kind = kind or ("redis" if binary_of("redis") else "valkey")
        self._durable = durable
        self.network = Network() if can_be_cut else None
        self._masters, self._replicas = masters, replicas
        self._made = 0
        self.nodes = [self._new_node() for _ in range(masters * (1 + replicas))]

    def _new_node(self) -> Node:
        self._made += 1
        return Node(self.kind, durable=self._durable, address=f"127.0.1.{self._made}" if self.network else "")

    def _start(self, node: Node) -> None:
        """Starts a node for the first time."""
        node.start()
        if self.network is not None:
            self.network.add(node.address, node.announced_port, node.port)
            self.network.add(node.address, node.bus_port, node.own_bus_port)

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.announced_port}" for node in self.nodes[:3])

    def _all(self) -> Sequence[RedisServer]:
        return self.nodes

    @property
    def runs(self) -> bool:
        return all(node.runs for node in self.nodes)

    def start(self) -> Self:
        if self.network is not None:
            self.network.start()
        for node in self.nodes:
            self._start(node)
        first = self.nodes[0]
        bounds = [SLOTS * index // self._masters for index in range(self._masters + 1)]
        for index, node in enumerate(self.nodes):
            node.execute("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            if index < self._masters:
                node.execute("CLUSTER", "ADDSLOTSRANGE", bounds[index], bounds[index + 1] - 1)
            if index:
                first.execute("CLUSTER", "MEET", "127.0.0.1", node.announced_port, node.bus_port)
        until(lambda: all(self._known(node) == len(self.nodes) for node in self.nodes), "the nodes know each other")
        for index, node in enumerate(self.nodes[self._masters :]):
            node.execute("CLUSTER", "REPLICATE", self.nodes[index % self._masters].node_id)
        self.until_whole()
        return self

    def until_whole(self, *, seconds: float = _FORM_SECONDS_MAX) -> None:
        """Returns when all nodes that run agree on the slots, all slots are served, and all replicas have their data."""

        def whole() -> bool:
            running = [node for node in self.nodes if node.runs]
            maps = [_slots_of(node) for node in running]
            states = [b"cluster_state:ok" in node.execute("CLUSTER", "INFO") for node in running]
            links = [b"master_link_status:down" not in node.execute("INFO", "replication") for node in running]
            return all(states) and all(links) and all(one == maps[0] for one in maps) and len(maps[0]) == SLOTS

        until(whole, "the cluster is whole", seconds)

    def until_replaced(self, node: Node, *, seconds: float = _FORM_SECONDS_MAX) -> None:
        """Returns when a node that was killed or frozen has no slots any more. Started empty before, it would empty its replica."""
        running = [one for one in self.nodes if one.runs]
        until(
            lambda: all(node.announced_port not in _slots_of(one).values() for one in running),
            "it was replaced",
            seconds,
        )

    @staticmethod
    def _known(node: Node) -> int:
        lines = node.execute("CLUSTER", "NODES").decode().splitlines()
        return sum("handshake" not in line and " connected" in line for line in lines)

    def master_of(self, key: bytes) -> Node:
        """Returns the running node that has a key's slot."""
        return self.owner(slot_of(key))

    def owner(self, slot: int) -> Node:
        for node in self.nodes:
            if node.runs and node.is_primary():
                port = _slots_of(node).get(slot)
                for owner in self.nodes:
                    if owner.announced_port == port and owner.runs:
                        return owner
        raise AssertionError(f"no running node has the slot {slot}")

    def replica_of(self, master: Node) -> Node:
        """Returns a running replica of a master."""
        return next(node for node in self.nodes if node.runs and node.execute("ROLE")[2] == master.announced_port)

    def primaries(self) -> list[Node]:
        """Returns the running nodes that have slots."""
        for node in self.nodes:
            if node.runs:
                ports = set(_slots_of(node).values())
                return [one for one in self.nodes if one.announced_port in ports and one.runs]
        return []

    # --- reshaping

    def add_node(self) -> Node:
        """Starts a further master, without slots, and its replica if masters have one."""
        node = self._join()
        if self._replicas:
            replica = self._join()
            node_id = node.node_id
            until(lambda: replica.execute("CLUSTER", "REPLICATE", node_id) == b"OK", "the new node has a replica")
        until(lambda: b"cluster_state:ok" in node.execute("CLUSTER", "INFO"), "the new node takes writes")
        return node

    def _join(self) -> Node:
        node = self._new_node()
        self._start(node)
        self.nodes.append(node)
        known = len([one for one in self.nodes if one.runs])
        first = self.nodes[0]
        node.execute("CLUSTER", "MEET", "127.0.0.1", first.announced_port, first.bus_port)
        until(lambda: all(self._known(one) >= known for one in self.nodes if one.runs), "the new node is known")
        return node

    def move_slots(self, slots: Sequence[int], source: Node, target: Node) -> None:
        """Moves slots with their keys from one master to another, as `redis-cli --cluster reshard` does."""
        from_id, to_id = source.node_id, target.node_id
        primaries = self.primaries()
        for slot in slots:
            target.execute("CLUSTER", "SETSLOT", slot, "IMPORTING", from_id)
            source.execute("CLUSTER", "SETSLOT", slot, "MIGRATING", to_id)
            while keys := source.execute("CLUSTER", "GETKEYSINSLOT", slot, _MIGRATED_AT_ONCE):
                source.execute("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            for node in (target, source, *(one for one in primaries if one not in (source, target))):
                node.execute("CLUSTER", "SETSLOT", slot, "NODE", to_id)

    def slots_of(self, node: Node) -> list[int]:
        return [slot for slot, port in _slots_of(node).items() if port == node.announced_port]

    def remove_node(self, node: Node) -> None:
        """Moves all slots of a master to another one, and ends it with its replicas."""
        target = next(one for one in self.primaries() if one is not node)
        self.move_slots(self.slots_of(node), node, target)
        own_port = node.announced_port
        removed = [node, *(one for one in self.nodes if one.runs and one.execute("ROLE")[2] == own_port)]
        node_ids = [one.node_id for one in removed]
        for one in removed:  # before they are forgotten: else they make themselves known again
            one.close()
            self.nodes.remove(one)
        for one in self.nodes:
            for node_id in node_ids if one.runs else ():
                with suppress(redis.exceptions.ResponseError):  # it did not know this one
                    one.execute("CLUSTER", "FORGET", node_id)

    # --- for checks

    def clients(self) -> list[Any]:
        """Returns a redis-py client of each master, to be closed."""
        return [redis.asyncio.Redis(port=node.port, protocol=2) for node in self.primaries()]

    def client(self) -> Any:
        """Returns redis-py's client of the cluster."""
        return redis.asyncio.RedisCluster(
            startup_nodes=[redis.asyncio.cluster.ClusterNode("127.0.0.1", node.announced_port) for node in self.nodes],
            protocol=2,
            socket_timeout=3.0,
        )

    def servers(self) -> list[RedisServer]:
        """Returns the servers that have keys."""
        return [*self.primaries()]

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        if self.network is not None:
            self.network.close()


def _slots_of(node: Node) -> dict[int, int]:
    """Returns the port of each slot's master, as a node knows it."""
    rows = node.execute("CLUSTER", "SLOTS")
    return {slot: row[2][1] for row in rows for slot in range(row[0], row[1] + 1)}


class Sentinel:
    """One Sentinel process."""

    def __init__(self, kind: Kind, config: str) -> None:
        self.port = free_port()
        self._directory = Path(tempfile.mkdtemp(prefix="midstream-sentinel-"))
        self._config = self._directory / "sentinel.conf"
        self._config.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {self._directory}\n{config}")
        self._binary = binary_of(kind)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._binary), str(self._config), "--sentinel"], stdout=log, stderr=log
            )

    def execute(self, *command: str | int) -> Any:
        with redis.Redis(port=self.port, protocol=2, socket_timeout=2.0) as client:
            return client.execute_command(*command)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        rmtree(self._directory, ignore_errors=True)


class RedisWithSentinels(_Servers):
    """A primary, replicas, and Sentinels that replace the primary when it is silent for a second.

    `sentinel_user` is the rules of a further user of the Sentinels, as in `user <rules>`.
    """

    NAME = "mymaster"
    RUNNING_SECONDS_MAX = 15.0

    def __init__(
        self,
        *,
        kind: Kind | None = None,
        replicas: int = 1,
        sentinels: int = 3,
        sentinel_user: str = "",
        arguments: Sequence[str] = (),
    ) -> None:
        self.kind: Kind = kind or ("redis" if binary_of("redis") else "valkey")
        primary = RedisServer(self.kind, tcp=True, arguments=(*_LINK, *arguments))
        link = ("--replicaof", f"127.0.0.1 {primary.port}")
        self.nodes = [
            primary,
            *(RedisServer(self.kind, tcp=True, arguments=(*_LINK, *arguments, *link)) for _ in range(replicas)),
        ]
        user = f"user {sentinel_user}\n" if sentinel_user else ""
        config = (
            f"{user}sentinel monitor {self.NAME} 127.0.0.1 {primary.port} {sentinels // 2 + 1}\n"
            f"sentinel down-after-milliseconds {self.NAME} 1000\n"
            f"sentinel failover-timeout {self.NAME} {_FAILOVER_MILLISECONDS}\n"
            f"sentinel parallel-syncs {self.NAME} 1\n"
        )
        self.sentinels = [Sentinel(self.kind, config) for _ in range(sentinels)]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in self.sentinels)}/{self.NAME}/0"

    def _all(self) -> Sequence[RedisServer]:
        return self.nodes

    @property
    def runs(self) -> bool:
        return all(node.runs for node in self.nodes)

    def start(self) -> Self:
        for node in self.nodes:
            node.start()
        for sentinel in self.sentinels:
            sentinel.start()
        until(lambda: all(self._knows_all(one) for one in self.sentinels), "the Sentinels know each other")
        return self

    def _knows_all(self, sentinel: Sentinel) -> bool:
        reply = sentinel.execute("SENTINEL", "MASTER", self.NAME)
        about = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        about = {str(key.decode() if isinstance(key, bytes) else key): value for key, value in about.items()}
        return (
            int(about["num-other-sentinels"]) == len(self.sentinels) - 1
            and int(about["num-slaves"]) == len(self.nodes) - 1
        )

    def primary(self) -> RedisServer:
        """Returns the primary that the Sentinels name."""
        reply = self.sentinels[0].execute("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.NAME)
        return next(node for node in self.nodes if node.port == int(reply[1]))

    def until_replicated(self, *, seconds: float = RUNNING_SECONDS_MAX) -> None:
        """Returns when the named primary is one, and all other running nodes are its replicas and have its data."""

        def replicated() -> bool:
            primary = self.primary()
            if not primary.runs:
                return False
            for node in self.nodes:
                if node.runs:
                    with redis.Redis(port=node.port, protocol=2, socket_timeout=2.0) as client:
                        role = client.execute_command("ROLE")
                        if (role[0] == b"master") != (node is primary):
                            return False
                        if node is not primary and (role[2], role[3]) != (primary.port, b"connected"):
                            return False
            return True

        until(replicated, "the replicas follow the primary", seconds)

    def client(self) -> Any:
        return redis.asyncio.sentinel.Sentinel(  # type: ignore[no-untyped-call]
            [("127.0.0.1", one.port) for one in self.sentinels],
            sentinel_kwargs={"protocol": 2},
            socket_timeout=3.0,
            protocol=2,
        ).master_for(self.NAME)

    def clients(self) -> list[Any]:
        return [redis.asyncio.Redis(port=self.primary().port, protocol=2)]

    def servers(self) -> list[RedisServer]:
        return [self.primary()]

    def close(self) -> None:
        for sentinel in self.sentinels:
            sentinel.close()
        for node in self.nodes:
            node.close()
