"""Calculates gateways, workers, masters, network, memory and money for a load, from the unit costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.scale.units import Costs, Load, Prices

_HOURS_OF_MONTH = 730.0
_GB = 1e9
_GATEWAY_READERS_MAX = 20_000
"""MIDSTREAM_CONNECTIONS_MAX by default, of one process."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Processes, each with a core of its own, and what they need together."""

    gateways: int
    workers: int
    masters: int
    gateway_gb: float
    worker_gb: float
    redis_gb: float
    """The memory of all masters together; all replicas together need as much again."""
    to_readers_gbit: float
    inside_gbit: float
    """Provider to worker, worker to Redis, Redis to gateway."""
    cores_dollars: float
    """A month."""
    memory_dollars: float
    egress_dollars: float
    zone_dollars: float

    @property
    def dollars(self) -> float:
        return self.cores_dollars + self.memory_dollars + self.egress_dollars + self.zone_dollars


def plan_of(load: Load, costs: Costs, prices: Prices) -> Plan:
    entries = load.streams * load.tokens_per_second / load.tokens_per_entry
    further = load.tokens_per_entry - 1
    answers = load.streams * load.tokens_per_second / load.tokens_per_answer
    readers = load.streams * load.readers_per_stream

    def cores(microseconds_a_second: float) -> int:
        return max(1, math.ceil(microseconds_a_second / 1e6 / costs.core_share))

    gateways = max(
        cores(readers / load.streams * entries * (costs.gateway_entry_us + further * costs.resume_event_us)),
        math.ceil(readers / _GATEWAY_READERS_MAX),
    )
    workers = cores(load.streams * load.tokens_per_second * costs.worker_token_us)
    per_entry_us = costs.redis_entry_us + further * costs.redis_token_us
    masters = cores(entries * per_entry_us + answers * costs.redis_create_us)

    gateway_gb = (readers * costs.gateway_reader_kb * 1e3 + gateways * costs.process_mb * 1e6) / _GB
    worker_gb = (load.streams * costs.worker_stream_kb * 1e3 + workers * costs.process_mb * 1e6) / _GB
    stored = load.streams / 2 + answers * load.ended_seconds  # a running one has half of its tokens on average
    stored_bytes = stored * load.tokens_per_answer * costs.redis_token_bytes
    redis_gb = (stored_bytes + (load.streams + answers * load.ended_seconds) * load.request_bytes) / _GB

    per_entry_bytes = load.tokens_per_entry * costs.event_bytes + costs.packet_bytes
    to_readers = readers / load.streams * entries * per_entry_bytes  # bytes a second
    inside = entries * per_entry_bytes * 3
    seconds = _HOURS_OF_MONTH * 3600
    redis_servers = masters * prices.replica_factor
    included_gb = 4.0 * (gateways + workers + redis_servers)
    needed_gb = gateway_gb + worker_gb + redis_gb * prices.replica_factor * 2  # a fork copies up to as much
    return Plan(
        gateways,
        workers,
        masters,
        gateway_gb,
        worker_gb,
        redis_gb,
        to_readers * 8 / 1e9,
        inside * 8 / 1e9,
        (gateways + workers + redis_servers) * prices.core_hour * _HOURS_OF_MONTH,
        max(0.0, needed_gb - included_gb) * prices.gb_hour * _HOURS_OF_MONTH,
        to_readers * seconds / _GB * prices.egress_gb,
        inside * seconds / _GB * prices.zone_gb,
    )
