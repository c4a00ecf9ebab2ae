"""A primary that Sentinels name: followed when they name another one."""

from __future__ import annotations

from typing import Any

from shared.connections import address_of
from shared.resp import RespConnection
from shared.sentinel import SentinelAddress
from tests.support.scripted_redis import ScriptedRedis
from tests.support.waiting import wait_until


def server(name: bytes) -> ScriptedRedis:
    answers: dict[bytes, Any] = {b"ROLE": [b"master", 0, []], b"GET": name}
    return ScriptedRedis(lambda command: answers.get(command[0]))


async def test_a_server_that_answers_and_was_replaced_is_left() -> None:
    """Cut off from the Sentinels, or too slow for them: it lives, and thinks that it is the primary."""
    named: list[ScriptedRedis] = []

    def sentinel(command: list[bytes]) -> Any:
        if command[1] == b"MASTER":
            return [b"config-epoch", b"%d" % len(named)]
        return [b"127.0.0.1", b"%d" % named[-1].port]

    async with (
        server(b"old") as old,
        server(b"new") as new,
        ScriptedRedis(sentinel) as first,
        ScriptedRedis(sentinel) as second,
    ):
        named.append(old)
        url = f"redis+sentinel://127.0.0.1:{first.port},127.0.0.1:{second.port}/main"
        address = address_of(url)
        assert isinstance(address, SentinelAddress)
        connections = [RespConnection(address, name="test", reply_seconds=5.0) for _ in range(3)]
        for connection in connections:
            connection.start()
        try:
            for connection in connections:
                await connection.wait_until_up()
                assert await connection.execute("GET", b"name") == b"old"
            asked = len(first.commands)
            named.append(new)

            def moved() -> bool:
                return all(connection.is_up and connection.reconnects for connection in connections)

            await wait_until(moved, what="all have left it, although it answers")
            for connection in connections:
                assert await connection.execute("GET", b"name") == b"new"
            # A look is two commands: one or two that are shared, and two for each new connection.
            assert len(first.commands) - asked <= 2 * (2 + 2 * len(connections))
        finally:
            for connection in connections:
                await connection.close()
