"""All parts of a process are closed, in the reverse order of their start."""

from __future__ import annotations

import asyncio
import logging

import pytest

from shared.running_parts import RunningParts


class Part:
    def __init__(self, name: str, closed: list[str], error: BaseException | None = None) -> None:
        self._name = name
        self._closed = closed
        self._error = error

    async def close(self) -> None:
        await asyncio.sleep(0)
        self._closed.append(self._name)
        if self._error is not None:
            raise self._error


async def test_a_close_that_fails_does_not_keep_other_parts_open(caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []
    async with RunningParts() as running:
        running.add(Part("first", closed))
        running.add(Part("second", closed, OSError("the disk is full")))
        running.add(Part("third", closed))
    assert closed == ["third", "second", "first"]
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "Part could not be closed")
    assert record.exc_info is not None
    assert "the disk is full" in str(record.exc_info[1])


async def test_started_parts_are_closed_when_a_later_part_cannot_start(caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []

    async def start() -> None:
        async with RunningParts() as running:
            running.add(Part("first", closed))
            running.add(Part("second", closed, OSError("the disk is full")))
            raise RuntimeError("no Redis")

    with pytest.raises(RuntimeError, match="no Redis"):
        await start()
    assert closed == ["second", "first"]
    assert [record.getMessage() for record in caplog.records] == ["Part could not be closed"]


async def test_a_cancelled_close_still_lets_the_others_close() -> None:
    closed: list[str] = []

    async def run() -> None:
        async with RunningParts() as running:
            running.add(Part("first", closed))
            running.add(Part("second", closed, asyncio.CancelledError()))

    with pytest.raises(asyncio.CancelledError):
        await run()
    assert closed == ["second", "first"]
