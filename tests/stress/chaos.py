"""The faults: the seed chooses kinds and times; several occur at once, and each is undone after a while."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import redis.exceptions

from tests.stress.failover import CLUSTER, SENTINEL, Fault, all_masters_restarted
from tests.stress.fleet import LEASE_SECONDS, Fleet, Member
from tests.stress.proxy import Hurt, Proxy
from tests.support.webhook_receiver import status

_PAUSE_SECONDS = (0.05, 0.8)
_AT_ONCE_MAX = 5
_NOT_AT_RANDOM = (all_masters_restarted,)
"""Needs append-only files."""


class Chaos:
    """Causes faults until it is stopped; then undoes all of them."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet = fleet
        self._dice = random.Random(f"{seed}/chaos")
        self._strikes: set[asyncio.Task[None]] = set()
        self._redis_busy = self._postgres_busy = False
        self._is_over = False
        self._began_at = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.journal: list[str] = []

    async def run(self, until: float) -> None:
        """Causes faults until that time (monotonic), then waits until all are undone."""
        kinds: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self._kill_member, 4),
            (self._freeze_member, 4),
            (self._terminate_member, 3),
            *self._redis_faults(),
            *([(self._kill_postgres, 1), (self._freeze_postgres, 1)] if self._fleet.postgres is not None else []),
            *([(self._fail_receiver, 2)] if self._fleet.has_archive else []),
            (self._bad_weather, 6),
            (self._hurt_connections, 12),
        ]
        strikes, weights = zip(*kinds, strict=True)
        try:
            while time.monotonic() < until and not self._is_over:
                if len(self._strikes) < _AT_ONCE_MAX:
                    self._strikes.add(asyncio.create_task(self._dice.choices(strikes, weights)[0]()))
                await asyncio.sleep(self._dice.uniform(*_PAUSE_SECONDS))
                for task in [one for one in self._strikes if one.done()]:
                    self._strikes.remove(task)
                    task.result()
            await asyncio.gather(*self._strikes)
        finally:
            for task in self._strikes:
                task.cancel()
            await asyncio.gather(*self._strikes, return_exceptions=True)
        for proxy in self._all_proxies():
            proxy.calm()

    def stop(self) -> None:
        """Has `run` cause no more faults."""
        self._is_over = True

    def _note(self, kind: str, what: str = "") -> None:
        self.counts[kind] += 1
        self.journal.append(f"{time.monotonic() - self._began_at:8.2f} s {kind} {what}")

    # --- processes

    def _unharmed_member(self) -> Member | None:
        """Returns a member without a fault; one of each kind is always spared, and all workers while servers fail over: what
        only the lost server has had, nobody else can write again."""
        kind = self._dice.choice((self._fleet.gateways, self._fleet.workers))
        if kind is self._fleet.workers and self._fleet.kind != "one" and self._redis_busy:
            return None
        idle = [one for one in kind if not one.busy]
        return self._dice.choice(idle) if len(idle) > 1 else None

    async def _kill_member(self) -> None:
        one = self._unharmed_member()
        if one is not None:
            one.busy = True
            self._note(f"SIGKILL {one.process.module}", one.name)
            one.process.kill()
            await asyncio.sleep(self._dice.uniform(0.0, 1.0))
            await one.start()
            one.busy = False

    async def _terminate_member(self) -> None:
        one = self._unharmed_member()
        if one is not None:
            one.busy = True
            self._note(f"SIGTERM {one.process.module}", one.name)
            one.process.send(signal.SIGTERM)
            code = await one.process.exit_code(within_seconds=30.0)
            assert code == 0, f"{one.name} was asked to stop, and ended with {code}\n{one.process.tail()}"
            await one.start()
            one.busy = False

    async def _freeze_member(self) -> None:
        one = self._unharmed_member()
        if one is not None:
            one.busy = True
            seconds = self._dice.choice((0.3, 1.0, LEASE_SECONDS * 1.3, LEASE_SECONDS * 2.5))
            past = " past the lease" if one in self._fleet.workers and seconds > LEASE_SECONDS else ""
            self._note(f"SIGSTOP {one.process.module}{past}", f"{one.name} {seconds:.1f} s")
            one.process.send(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            one.process.send(signal.SIGCONT)
            one.busy = False

    # --- Redis

    def _redis_faults(self) -> list[tuple[Callable[[], Awaitable[None]], int]]:
        if self._fleet.kind == "one":
            return [(self._kill_redis, 1), (self._freeze_redis, 1), (self._kill_clients, 4), (self._pause_clients, 3)]
        faults = CLUSTER if self._fleet.kind == "cluster" else SENTINEL
        chosen = {name: fault for name, fault in faults.items() if fault not in _NOT_AT_RANDOM}
        return [(partial(self._fail_over, name, fault), 2) for name, fault in chosen.items()]

    async def _fail_over(self, name: str, fault: Fault) -> None:
        """Causes one of the faults of `tests.stress.failover`, which ends when the servers are whole again."""
        if not self._redis_busy and not any(one.busy for one in self._fleet.workers):
            self._redis_busy = True
            self._note(name)
            await fault(self._fleet.redis)
            await asyncio.sleep(self._dice.uniform(0.5, 2.0))
            self._redis_busy = False

    async def _kill_redis(self) -> None:
        if not self._redis_busy:
            self._redis_busy = True
            self._note("SIGKILL redis")
            self._fleet.redis.kill()
            await asyncio.sleep(self._dice.choice((0.0, 0.2, 1.5)))
            await asyncio.to_thread(self._fleet.redis.start)
            self._redis_busy = False

    async def _freeze_redis(self) -> None:
        if not self._redis_busy:
            self._redis_busy = True
            seconds = self._dice.choice((0.3, 1.0, 2.5))
            self._note("SIGSTOP redis", f"{seconds:.1f} s")
            self._fleet.redis.freeze()
            await asyncio.sleep(seconds)
            self._fleet.redis.thaw()
            self._redis_busy = False

    async def _kill_postgres(self) -> None:
        postgres = self._fleet.postgres
        if postgres is not None and not self._postgres_busy:
            self._postgres_busy = True
            self._note("SIGKILL postgresql")
            await asyncio.to_thread(postgres.kill)
            await asyncio.sleep(self._dice.choice((0.0, 1.5, 6.0)))
            await asyncio.to_thread(postgres.start)
            self._postgres_busy = False

    async def _freeze_postgres(self) -> None:
        postgres = self._fleet.postgres
        if postgres is not None and not self._postgres_busy:
            self._postgres_busy = True
            seconds = self._dice.choice((0.5, 3.0, 6.0))
            self._note("SIGSTOP postgresql", f"{seconds:.1f} s")
            postgres.freeze()
            await asyncio.sleep(seconds)
            postgres.thaw()
            self._postgres_busy = False

    async def _fail_receiver(self) -> None:
        """Has the receiver of webhooks refuse the next ones."""
        code = self._dice.choice((302, 429, 500, 503))
        self._note(f"receiver answers {code}")
        self._fleet.receiver.answers.extend([status(code)] * self._dice.choice((1, 5)))

    async def _kill_clients(self) -> None:
        kind = self._dice.choice(("normal", "pubsub"))
        self._note(f"CLIENT KILL {kind}")
        await self._execute_in_redis("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    async def _pause_clients(self) -> None:
        kind = self._dice.choice(("ALL", "WRITE"))
        milliseconds = self._dice.choice((100, 500, 1500))
        self._note(f"CLIENT PAUSE {kind}", f"{milliseconds} ms")
        await self._execute_in_redis("CLIENT", "PAUSE", milliseconds, kind)

    async def _execute_in_redis(self, *command: str | int) -> None:
        if not self._redis_busy:
            with suppress(redis.exceptions.RedisError, OSError, RuntimeError):  # it may be killed at this moment
                await self._fleet.execute_in_redis(*command)

    # --- the ways between them

    def _all_proxies(self) -> list[Proxy]:
        return [proxy for proxies in self._fleet.proxies.values() for proxy in proxies]

    def _any_proxy(self) -> tuple[str, Proxy]:
        name = self._dice.choice(list(self._fleet.proxies))
        return name, self._dice.choice(self._fleet.proxies[name])

    async def _bad_weather(self) -> None:
        name, proxy = self._any_proxy()
        kind = self._dice.choice(("delays", "trickles", "refuses"))
        seconds = self._dice.uniform(0.3, 3.0)
        self._note(f"{name} {kind}", f"{seconds:.1f} s")
        if kind == "delays":
            proxy.delay_seconds = self._dice.choice((0.005, 0.05, 0.4))
        elif kind == "trickles":
            proxy.trickles = True
        else:
            proxy.refuses = True
            proxy.hurt("aborts", self._dice, self._dice.choice((0.0, 1.0)))
        await asyncio.sleep(seconds)
        proxy.calm()

    async def _hurt_connections(self) -> None:
        name, proxy = self._any_proxy()
        kinds: tuple[Hurt, ...] = ("cuts", "cuts", "aborts", "half-closes", "silences")
        kind = self._dice.choice(kinds)
        hurt = proxy.hurt(kind, self._dice, self._dice.choice((0.3, 1.0)))
        if hurt:
            self._note(f"{name} {kind}", f"{hurt} connections")
            self.counts["connections hurt"] += hurt
