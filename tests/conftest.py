"""Real servers for all tests: one embedded Valkey and one Redis for the whole run; whoever kills one starts its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.needs import needs
from tests.support.redis_server import RedisServer, binary_of


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[RedisServer]:
    """The run's embedded Valkey. Shared: flush it, use keys of your own, never stop it."""
    with RedisServer("valkey") as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The run's Redis from the machine's own package, on the same terms."""
    needs("redis-server (Debian: apt install redis-server)", binary_of("redis"))
    with RedisServer("redis") as server:
        yield server
