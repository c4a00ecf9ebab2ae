"""Real servers for all tests: one embedded Valkey and one Redis per process. A test that kills a server starts its own."""

from __future__ import annotations

import gc
import logging
from collections.abc import Generator, Iterator

import hypothesis
import pytest

from tests.support.fork_server import fork_server
from tests.support.left_in_redis import assert_nothing_left_in
from tests.support.needs import needs
from tests.support.redis_server import KINDS, RedisServer, binary_of

# No time for one example: a busy machine takes a quarter of a second to what takes a millisecond.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

pytest_plugins = ["tests.support.left_running", "tests.support.alone", "tests.support.timed_out"]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keeps the garbage collector away from modules and collected tests, which stay until the end: each look costs 0.1 s."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _fork_server() -> Iterator[None]:
    with fork_server():
        yield


@pytest.fixture(scope="session")
def _valkey() -> Iterator[RedisServer]:
    with RedisServer("valkey") as server:
        yield server


@pytest.fixture(scope="session")
def _redis() -> Iterator[RedisServer]:
    needs(KINDS["redis"], binary_of("redis"))
    with RedisServer("redis") as server:
        yield server


@pytest.fixture(scope="session")
def _newest_redis() -> Iterator[RedisServer]:
    needs(KINDS["newest redis"], binary_of("newest redis"))
    with RedisServer("newest redis") as server:
        yield server


@pytest.fixture
def logging_as_it_was() -> Iterator[None]:
    """The test run's own handlers, again after a test that sets up logging as a process does."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def valkey_server(_valkey: RedisServer) -> Iterator[RedisServer]:
    """The shared Valkey, empty. Never stop it. After the test all keys must have an expiry, and no connection may be left."""
    yield _valkey
    assert_nothing_left_in(_valkey)


@pytest.fixture
def newest_redis_server(_newest_redis: RedisServer) -> Iterator[RedisServer]:
    """The shared Redis of the newest version, empty. Never stop it; `valkey_server` has the rules."""
    yield _newest_redis
    assert_nothing_left_in(_newest_redis)


@pytest.fixture
def redis_server(_redis: RedisServer) -> Iterator[RedisServer]:
    """The shared Redis of the machine, empty. Never stop it; `valkey_server` has the rules."""
    yield _redis
    assert_nothing_left_in(_redis)
