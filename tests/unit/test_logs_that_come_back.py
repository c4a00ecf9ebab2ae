"""A log that was not there when a tail read it, and is there now: whoever asks for it, and when, gets all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from gateway.faces import NATIVE
from gateway.following.followed_streams import FollowedStreams
from gateway.following.tail import Tail
from gateway.following.tails import Tails
from shared.ids import new_stream_id
from shared.settings import Settings

ENDED = [[b"0-1", [b"accepted", b"{}"]], [b"1-0", [b"started", b'{"attempt":1}']], [b"1-1", [b"done", b"{}"]]]


class Reads:
    """The tail of one stream, and the reads of its log that wait for an answer."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[Any], None]] = []
        log: Any = SimpleNamespace(send_read=lambda stream_id, after, count, on_read, **_: self.waiting.append(on_read))
        nobody: Any = SimpleNamespace(push=lambda *_: None)
        settings = Settings.from_environment({})
        self.tails = Tails(FollowedStreams(lambda *_: None), log, lambda *_: nobody, settings, on_new=lambda tail: None)
        self.tails._loop = asyncio.get_running_loop()
        self.tail: Tail = self.tails.hold(new_stream_id(), NATIVE)
        self.tails.read(self.tail, "subscribed")

    async def anew(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self.tails.read_anew(self.tail))
        await _all_have_a_turn()
        return task

    async def answer(self, raw: list[Any]) -> None:
        self.waiting.pop(0)(raw)
        await _all_have_a_turn()


async def _all_have_a_turn() -> None:
    for _ in range(5):  # more than a future needs to wake the task that waits for a future that waits for it
        await asyncio.sleep(0)


async def test_whoever_asks_after_it_has_been_read_waits_for_nothing() -> None:
    """Twenty readers of an archived stream: the first has its log brought back and read before the last has asked for it."""
    reads = Reads()
    await reads.answer([])
    first, second = await reads.anew(), await reads.anew()
    await reads.answer(ENDED)
    await asyncio.gather(first, second)
    last = await reads.anew()
    assert last.done(), "there is nothing left to be read"
    assert reads.tail.is_ready, "whoever comes now need not wait, either"
    assert not reads.waiting


async def test_an_answer_from_before_it_came_back_tells_nothing() -> None:
    reads = Reads()
    await reads.answer([])
    reads.tails.read(reads.tail, "subscribed")  # as after a reconnection; the log comes back while Redis answers
    task = await reads.anew()
    await reads.answer([])
    assert not task.done()
    await reads.answer(ENDED)
    await task
    assert reads.tail.exists
