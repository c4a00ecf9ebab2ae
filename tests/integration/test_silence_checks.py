"""Silent streams are compared with their logs, many by one command: what one of them lacks is found, and affects no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.following.endings import Endings
from gateway.following.followed_streams import FollowedStreams
from gateway.following.silence_checks import SilenceChecks
from gateway.following.tail import Tail
from gateway.following.tails import Tails
from shared.errors import RedisRefused
from shared.event_log import EventLog
from shared.ids import EventId, new_stream_id
from shared.keys import log_key
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from shared.settings import Settings
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

SETTINGS = Settings(sweep_seconds=0.1)


class OneSlotConnection(RespConnection):
    """A connection to a proxy before a cluster: refuses scripts with keys of several slots."""

    refused = 0

    def send(self, arguments: tuple[Any, ...], on_reply: Any) -> None:
        if arguments[0] == "EVALSHA" and arguments[2] > 1:
            self.refused += 1
            self._loop.call_soon(on_reply, RedisRefused("CROSSSLOT Keys in request don't hash to the same slot"))
        else:
            super().send(arguments, on_reply)


class Checked:
    """Tails of a real Valkey whose pushes are all lost, and the checks of their silence."""

    def __init__(self, url: str, kind: type[RespConnection]) -> None:
        self._url = url
        self.commands = self._connection(kind)
        log = EventLog(self.commands, log_ttl_seconds=60, ended_ttl_seconds=60, tombstone_ttl_seconds=60)
        self.tails = Tails(
            FollowedStreams(lambda stream_id, failed: None),
            log,
            lambda on_push, on_up: self._connection(RespConnection, on_push=on_push, on_up=on_up),
            SETTINGS,
            on_new=lambda tail: None,
        )
        self.lost: list[Tail] = []
        self.checks = SilenceChecks(self.tails, log, Endings(log), SETTINGS, on_lost=self._lose)

    def _connection(self, kind: type[RespConnection], **more: Any) -> RespConnection:
        address = RedisAddress.parse(self._url)
        return kind(address, name="test", reply_seconds=5.0, reconnect_seconds_max=0.05, **more)

    def _lose(self, tail: Tail) -> None:
        self.lost.append(tail)
        raise RuntimeError("a bug in what sends readers away")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.commands.start()
        await self.commands.wait_until_up()
        self.tails.start()
        self.checks.start()
        try:
            yield
        finally:
            for part in (self.checks, self.tails, self.commands):
                await part.close()

    async def append(self, stream_id: str, entry_id: str, field: str, value: str) -> None:
        """Appends an entry whose push is lost."""
        await self.commands.execute("XADD", log_key(stream_id), entry_id, field, value)
        await self.commands.execute("EXPIRE", log_key(stream_id), 60)


@pytest.mark.parametrize("kind", [RespConnection, OneSlotConnection])
async def test_lost_pushes_and_missing_logs_are_found_among_many_silent_streams(
    valkey_server: RedisServer, kind: type[RespConnection]
) -> None:
    checked = Checked(valkey_server.url, kind)
    async with checked.running():
        stream_ids = [new_stream_id() for _ in range(8)]
        silent, missing, no_stream, *behind = stream_ids
        for stream_id in (silent, missing, no_stream, *behind):
            await checked.append(stream_id, "0-1", "accepted", '{"request":{},"created_at":1,"principal":"anonymous"}')
            await checked.append(stream_id, "1-0", "started", '{"attempt":1,"model":"m","worker":"w","time":1}')
        tails = {stream_id: checked.tails.hold(stream_id) for stream_id in stream_ids}
        await wait_until(lambda: all(tail.last == (1, 0) for tail in tails.values()), what="the logs are read")
        await checked.commands.execute("DEL", log_key(missing))
        await checked.commands.execute("SET", log_key(no_stream), "not a stream", "EX", 60)
        for stream_id in behind:
            await checked.append(stream_id, "1-1", "t", "word")
        await wait_until(
            lambda: tails[missing] in checked.lost and all(tails[one].last == EventId(1, 1) for one in behind),
            what="what was lost is found",
        )
        assert set(checked.lost) == {tails[missing]}
        assert tails[silent].last == tails[no_stream].last == (1, 0)
        assert getattr(checked.commands, "refused", 1) >= 1
