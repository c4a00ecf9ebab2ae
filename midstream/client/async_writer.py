"""The writer of a stream for asyncio: a task sends what the program pushes, and cancels the program when it is to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self

from midstream.client.events import Stopped, StreamError, WriterState
from midstream.client.outbox import STORED_SECONDS_MAX, Outbox, failure_of, not_stored_in_time
from midstream.client.protocol import Call


class AsyncWriter:
    """Fills a stream. Leaving the context ends the stream: as done, or as failed if the block has raised.

    When nothing more can be written, because the stream was cancelled or another writer goes on, the task inside the context is
    cancelled where it awaits, and leaving the context raises Stopped, as `asyncio.timeout` raises TimeoutError. A method raises
    StreamError when what was written is not stored within a minute.
    """

    def __init__(self, outbox: Outbox, call: Callable[[Call[WriterState]], Awaitable[WriterState]]) -> None:
        self._outbox = outbox
        self._call = call
        self._changed = asyncio.Event()
        self._wanted = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self._program: asyncio.Task[Any] | None = None
        self._cancelled_here = False
        self._ended = False

    @property
    def id(self) -> str:
        """The stream's id."""
        return self._outbox.stream

    @property
    def state(self) -> WriterState | None:
        """The stream after the newest answer: among others `listeners`, and `tokens` that an earlier writer has left."""
        return self._outbox.state

    @property
    def stopped(self) -> bool:
        """Whether nothing more can be written."""
        return self._outbox.stopped is not None

    async def __aenter__(self) -> Self:
        await self._exchange()
        if self._outbox.stopped is not None:
            raise self._outbox.stopped
        self._program = asyncio.current_task()
        self._sending = asyncio.create_task(self._send())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        program, self._program = self._program, None
        stopped_here = self._cancelled_here and program is not None and program.uncancel() == 0
        try:
            if not self._ended and not self.stopped:
                await self._push({"end": "done"} if error is None else failure_of(error), stored=True, ends=True)
        except (Stopped, StreamError):
            if error is None:
                raise
        finally:
            if self._sending is not None:
                self._sending.cancel()
                await asyncio.gather(self._sending, return_exceptions=True)
        if self._outbox.stopped is not None and (error is None or (kind is asyncio.CancelledError and stopped_here)):
            raise self._outbox.stopped from None

    async def token(self, text: str) -> None:
        """Writes text; an empty one is nothing. Returns at once, unless more than a megabyte waits."""
        if text:
            await self._push({"token": text})

    async def delta(self, delta: Mapping[str, Any], **more: Any) -> None:
        """Writes more than text, as the Chat Completions API has it; `more`: `index`, `logprobs`, `finish_reason`."""
        await self._push({"delta": delta, **more})

    async def event(self, name: str, data: Any = None) -> None:
        """Writes an event of your own. Returns when it is in the log, so that a step is noted before the next begins."""
        await self._push({"event": name, "data": data}, stored=True)

    async def end(self, finish_reason: str = "stop", usage: Mapping[str, Any] | None = None) -> None:
        """Ends the stream as done. Returns when that is in the log."""
        usage_field = {} if usage is None else {"usage": usage}
        await self._push({"end": "done", "finish_reason": finish_reason, **usage_field}, stored=True, ends=True)

    async def fail(self, code: str, message: str, *, retryable: bool = False) -> None:
        """Ends the stream as failed."""
        end = {"end": "failed", "code": code, "message": message, "retryable": retryable}
        await self._push(end, stored=True, ends=True)

    async def cancel(self) -> None:
        """Ends the stream as cancelled."""
        await self._push({"end": "cancelled"}, stored=True, ends=True)

    async def _push(self, event: Mapping[str, Any], *, stored: bool = False, ends: bool = False) -> None:
        outbox = self._outbox
        number = outbox.push(event)
        self._ended |= ends
        self._wanted.set()
        try:
            async with asyncio.timeout(STORED_SECONDS_MAX):
                while outbox.is_waited_for(number, stored=stored):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise not_stored_in_time() from None
        if outbox.stopped is not None:
            raise outbox.stopped

    async def _send(self) -> None:
        """Sends what waits, and a sign of life where nothing does, until the end is stored."""
        outbox = self._outbox
        while not outbox.is_over:
            if outbox.sent == outbox.pushed:
                self._wanted.clear()
                try:
                    async with asyncio.timeout(outbox.look_seconds):
                        await self._wanted.wait()
                except TimeoutError:
                    pass
            await self._exchange()
        if outbox.stopped is not None and self._program is not None:
            self._cancelled_here = True
            self._program.cancel()

    async def _exchange(self) -> None:
        """Makes the next request, and takes its answer."""
        try:
            self._outbox.answered(await self._call(self._outbox.call()))
        except StreamError as error:
            self._outbox.refused(error)
        self._changed.set()
