"""Checks that a test leaves nothing in a shared Redis: keys without an expiry, connections, subscriptions."""

from __future__ import annotations

import os
from typing import Any

import redis

from tests.support.redis_server import RedisServer
from tests.support.waiting import what_stays

_REPLY_SECONDS_MAX = 5.0


def keys_without_expiry(server: RedisServer, pattern: str = "*") -> list[str]:
    """Returns the keys that never expire; in time such keys would fill Redis."""
    with _client(server) as client:
        return sorted(os.fsdecode(key) for key in client.scan_iter(pattern, count=1000) if client.ttl(key) == -1)


def connections_left(server: RedisServer) -> list[str]:
    """Returns who is still connected or subscribed after a short grace period."""

    def others() -> list[str]:
        own = client.client_id()
        return [
            f"{one['name'] or 'unnamed'}: {one['cmd']}, {one['ssub']} + {one['sub']} subscriptions"
            for one in client.client_list()
            if int(one["id"]) != own
        ]

    with _client(server) as client:
        return what_stays(others)


def assert_nothing_left_in(server: RedisServer) -> None:
    """Checks a shared server after a test, and empties it."""
    connections = connections_left(server)
    assert not connections, f"still connected to the shared {server.kind}: {connections}"
    immortal = keys_without_expiry(server)
    with _client(server) as client:
        client.flushall()
    assert not immortal, f"keys that never expire: {immortal}"


def _client(server: RedisServer) -> Any:
    return redis.Redis.from_url(
        server.url, protocol=2, socket_timeout=_REPLY_SECONDS_MAX, single_connection_client=True
    )
