"""A discrete-event simulation of readers, gateways and the masters of a cluster: who waits for which core, and for how long.

A core serves one request after the other, in the order in which they come (a gateway is one process, Redis runs one command at a
time). What runs besides, tokens of all other streams, takes its share of each core.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from bench.scale.units import Costs

Steps = Generator[simpy.Event, Any, Any]


@dataclass
class Core:
    """One core, with its queue. `busy_share` of it is taken by what runs besides."""

    environment: simpy.Environment
    busy_share: float = 0.0
    waiting: simpy.Resource = field(init=False)
    served: int = 0
    busy_seconds: float = 0.0
    queue_longest: int = 0

    def __post_init__(self) -> None:
        self.waiting = simpy.Resource(self.environment)

    def use(self, cpu_seconds: float) -> Steps:
        """Waits for the core, and takes it for so much of its time."""
        with self.waiting.request() as turn:
            self.queue_longest = max(self.queue_longest, len(self.waiting.queue))
            yield turn
            seconds = cpu_seconds / (1 - self.busy_share)
            yield self.environment.timeout(seconds)
            self.served += 1
            self.busy_seconds += seconds


@dataclass(frozen=True, slots=True)
class Outcome:
    """The pauses of readers: each from the loss of the gateway or master to the last event that the reader lacked."""

    pauses_seconds: Sequence[float]
    """The pause of each reader that was affected (seconds), in no order."""
    moves: Sequence[int]
    """The numbers of reconnections, one for each reader; their order has no meaning."""
    seconds: float
    """When the last was served."""
    gateway_queue_longest: int
    redis_busy_seconds: float

    def pause(self, share: float) -> float:
        """Returns the quantile of the pauses; 1.0 is the longest."""
        ordered = sorted(self.pauses_seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def reconnect_storm(
    readers: int,
    *,
    gateways: int,
    masters: int,
    costs: Costs,
    events_lacked: float,
    retry_seconds: tuple[float, float] = (0.0, 0.0),
    tokens_per_second: float = 0.0,
    gateway_share: float = 0.0,
    redis_share: float = 0.0,
    seed: int = 1,
) -> Outcome:
    """Readers who lost their gateway at once come back to those that are left, each to a stream of its own, and get what they lack.

    `retry_seconds`: the least and the most that a client waits. What a stream writes meanwhile (`tokens_per_second`) is lacked, too.
    """
    chance = random.Random(seed)
    environment = simpy.Environment()
    fronts = [Core(environment, gateway_share) for _ in range(gateways)]
    shards = [Core(environment, redis_share) for _ in range(masters)]
    pauses: list[float] = []

    def reader(front: Core, shard: Core) -> Steps:
        yield environment.timeout(chance.uniform(*retry_seconds))
        yield from front.use(costs.resume_us / 2e6)
        lacked = events_lacked + tokens_per_second * environment.now
        yield from shard.use((costs.redis_read_us + lacked * costs.redis_read_event_us) / 1e6)
        yield from front.use((costs.resume_us / 2 + lacked * costs.resume_event_us) / 1e6)
        pauses.append(environment.now)

    for _ in range(readers):
        environment.process(reader(chance.choice(fronts), chance.choice(shards)))
    environment.run()
    busy = sum(shard.busy_seconds for shard in shards)
    return Outcome(pauses, [1] * readers, environment.now, max(front.queue_longest for front in fronts), busy)


def failover(
    streams: int,
    *,
    gateways: int,
    costs: Costs,
    node_timeout_seconds: float,
    tokens_per_second: float,
    gateway_share: float = 0.0,
    redis_share: float = 0.0,
    lost: bool = True,
    seed: int = 1,
) -> Outcome:
    """A master with so many streams dies; its replica takes its place; workers append what they kept, gateways subscribe and read.

    Found out after the time-out and the gossip of half of it at most; the election takes 0.5 to 1 s (Redis Cluster's specification), the
    map is read by each process up to 0.25 s later (shared.cluster). `lost` False: nothing fails, for comparison.
    """
    chance = random.Random(seed)
    environment = simpy.Environment()
    fronts = [Core(environment, gateway_share) for _ in range(gateways)]
    replica = Core(environment, redis_share)
    noticed = node_timeout_seconds * chance.uniform(1.0, 1.5) if lost else 0.0
    promoted = noticed + (chance.uniform(0.5, 1.0) if lost else 0.0)
    pauses: list[float] = []
    found_out = [promoted + (chance.uniform(0.0, 0.25) if lost else 0.0) for _ in fronts]

    def stream(index: int) -> Steps:
        worker_knows = promoted + (chance.uniform(0.0, 0.25) if lost else 0.0)
        yield environment.timeout(max(worker_knows, found_out[index]))
        tokens = 1 + environment.now * tokens_per_second
        yield from replica.use((costs.redis_entry_us + (tokens - 1) * costs.redis_token_us) / 1e6)
        yield from replica.use((costs.redis_read_us + tokens * costs.redis_read_event_us) / 1e6)
        yield from fronts[index].use((costs.resume_us / 2 + tokens * costs.resume_event_us) / 1e6)
        pauses.append(environment.now + chance.uniform(0.0, 1 / tokens_per_second))  # since its last token

    for number in range(streams):
        environment.process(stream(number % gateways))
    environment.run()
    queue = max(front.queue_longest for front in fronts)
    return Outcome(pauses, [0] * streams, environment.now, queue, replica.busy_seconds)


def rolling_deployment(
    readers: int,
    *,
    gateways: int,
    at_once: int,
    costs: Costs,
    tokens_per_second: float,
    step_seconds: float = 12.0,
    retry_seconds: tuple[float, float] = (0.5, 2.0),
    gateway_share: float = 0.0,
    to_fewest: bool = False,
    seed: int = 1,
) -> Outcome:
    """Every gateway is replaced, `at_once` at a time: a new one starts, then the old one sends its readers away.

    Readers go to any gateway that is there, or, `to_fewest`, to the one of eight that has the fewest readers, nearly as `least_conn`
    of a proxy does.
    """
    chance = random.Random(seed)
    environment = simpy.Environment()
    there = [Core(environment, gateway_share) for _ in range(gateways)]
    old = list(there)
    at: list[Core] = [there[number % gateways] for number in range(readers)]
    counts = {id(core): 0 for core in there}
    for core in at:
        counts[id(core)] += 1
    moves = [0] * readers
    pauses: list[float] = []
    longest = 0

    def move(number: int) -> Steps:
        left = environment.now
        yield environment.timeout(chance.uniform(*retry_seconds))
        several = chance.sample(there, min(len(there), 8)) if to_fewest else [chance.choice(there)]
        front = min(several, key=lambda core: counts[id(core)])
        at[number] = front
        counts[id(front)] += 1
        moves[number] += 1
        lacked = tokens_per_second * (environment.now - left)
        yield from front.use((costs.resume_us + lacked * costs.resume_event_us) / 1e6)
        pauses.append(environment.now - left)

    def deploy() -> Steps:
        nonlocal longest
        for first in range(0, gateways, at_once):
            leaving = old[first : first + at_once]
            there.extend(Core(environment, gateway_share) for _ in leaving)
            counts.update({id(core): 0 for core in there[-len(leaving) :]})
            gone = {id(core) for core in leaving}
            there[:] = [core for core in there if id(core) not in gone]
            for number, core in enumerate(at):
                if id(core) in gone:
                    environment.process(move(number))
            yield environment.timeout(step_seconds)
            longest = max(longest, max(core.queue_longest for core in there))

    environment.process(deploy())
    environment.run()
    return Outcome(pauses, moves, environment.now, longest, 0.0)
