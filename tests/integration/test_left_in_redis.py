"""The check after each test that uses a shared Redis finds keys and connections that the test has left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.support import waiting
from tests.support.left_in_redis import assert_nothing_left_in
from tests.support.redis_server import RedisServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    monkeypatch.setattr(waiting, "GO_SECONDS_MAX", 0.1)
    with RedisServer() as server:
        yield server


def test_a_key_without_an_expiry(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url, protocol=2) as client:
        client.set("for a while", "1", ex=100)
        client.close()
        assert_nothing_left_in(server)
        client.set("for ever", "1")
        client.close()
        with pytest.raises(AssertionError, match="for ever"):
            assert_nothing_left_in(server)
        assert client.dbsize() == 0, "the next test must not find it again"


def test_a_subscriber(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url, protocol=2, client_name="somebody") as client:
        with client.pubsub() as pubsub:
            pubsub.ssubscribe("news")
            pubsub.get_sharded_message(timeout=5.0)
            with pytest.raises(AssertionError, match=r"somebody: ssubscribe, 1 \+ 0 subscriptions"):
                assert_nothing_left_in(server)
        client.close()
        assert_nothing_left_in(server)
