"""Generators of the user's own as a provider: async ones in the event loop, others each in a thread of its own.

    async generator   cancelled: CancelledError where it waits; GeneratorExit where it yields
    generator         cancelled: `stop_requested` becomes true, and GeneratorExit comes at the next yield
    Provider object   called as it is; an exception that it raises ends its stream as `generator_error`

After an own event a generator goes on when the event is in the log: what it does next, such as calling a tool, is done once that
step is noted, and not done at all by a worker that has been fenced off meanwhile.

Whatever of the user's raises is logged with its traceback, but without the exception's text, which may hold a prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Generator
from types import TracebackType
from typing import Any

import orjson

from producer.provider import Abilities, Finish, GeneratorError, Hearer, Provider, Unavailable, abilities_of
from producer.yields import NotYieldable, Progress, item_of, stop_flag
from shared.errors import MidstreamError
from shared.events import Item
from shared.own_events import OwnEvent

logger = logging.getLogger(__name__)

_ITEMS_AT_ONCE = 64
"""After so many items that came without a pause the event loop has its turn: other answers must go on."""
_WAITING_ITEMS_MAX = 256
"""Items of a thread that wait for the event loop; then the thread waits."""
_FRAMES_LOGGED = 20
_TEXT_CHARACTERS_MAX = 500


class GeneratorProvider:
    """A generator function of the user's own: it takes the request and, if it has a second parameter, what the log has already.

    `threads_max`: how many generators that are not async may run at once, with those that do not stop.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        is_async: bool,
        takes_so_far: bool,
        threads_max: int,
        texts: bool,
    ) -> None:
        self.name = name
        self._function = function
        self._is_async = is_async
        self._takes_so_far = takes_so_far
        self._threads_max = threads_max
        self._texts = texts
        """Whether an exception's text may be shown and logged."""
        self._threads: set[_GeneratorThread] = set()

    def model_of(self, request: dict[str, Any]) -> str:
        return str(request.get("model") or self.name)

    def abilities_of(self, request: dict[str, Any]) -> Abilities:
        return Abilities(self._takes_so_far, self._takes_so_far, reads_on=False)

    async def generate(self, request: dict[str, Any], partial: str, hearer: Hearer) -> Finish:
        own_request = orjson.loads(orjson.dumps(request))  # which the generator may change: the next try has its own
        so_far = hearer.so_far
        arguments = (own_request, so_far) if self._takes_so_far else (own_request,)
        with _UsersErrors(self._texts, so_far.stream_id):
            if self._is_async:
                return await _follow(self._function(*arguments), hearer)
            if len(self._threads) >= self._threads_max:
                raise Unavailable(f"{len(self._threads)} generators hold all threads of this worker")
            return await _GeneratorThread(lambda: self._function(*arguments), self._threads).follow(hearer)

    async def close(self) -> None:
        """Does nothing: a generator holds nothing open."""


class OwnProvider:
    """An object of the user's own that has the methods of `producer.provider.Provider`."""

    def __init__(self, name: str, provider: Provider, *, texts: bool) -> None:
        self.name = name
        self._provider = provider
        self._texts = texts

    def model_of(self, request: dict[str, Any]) -> str:
        return str(self._provider.model_of(request))

    def abilities_of(self, request: dict[str, Any]) -> Abilities:
        return abilities_of(self._provider, request)._replace(reads_on=False)

    async def generate(self, request: dict[str, Any], partial: str, hearer: Hearer) -> Finish:
        with _UsersErrors(self._texts, hearer.so_far.stream_id):
            finish = item_of(await self._provider.generate(request, partial, hearer))
            if not isinstance(finish, Finish):
                raise NotYieldable("an end of its answer that is no Finish")
            return finish

    async def close(self) -> None:
        await self._provider.close()


class _UsersErrors:
    """Turns what the user's code raises into GeneratorError, and logs its traceback."""

    def __init__(self, texts: bool, stream_id: str) -> None:
        self._texts = texts
        self._stream_id = stream_id

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, MidstreamError | KeyboardInterrupt):
            return
        if isinstance(error, NotYieldable):
            raise GeneratorError(f"the generator yielded {str(error)[:_TEXT_CHARACTERS_MAX]}") from None
        if isinstance(error, GeneratorExit) or (isinstance(error, asyncio.CancelledError) and _is_cancelled()):
            return
        frames = "".join(traceback.format_tb(trace)[-_FRAMES_LOGGED:])
        text = f": {str(error)[:_TEXT_CHARACTERS_MAX]}" if self._texts else ""
        raised = f"the generator raised {type(error).__name__}{text}"
        logger.error("stream %s: %s\n%s", self._stream_id, raised, frames.rstrip())
        raise GeneratorError(raised) from None


def _is_cancelled() -> bool:
    """Returns whether the call under way was cancelled. (A frame that kept its task would keep itself alive by the task's error.)"""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _follow(generator: AsyncGenerator[Any, None], hearer: Hearer) -> Finish:
    """Passes on what an async generator yields, up to its end."""
    finish, without_pause = Finish(), 0
    try:
        async for yielded in generator:
            item = item_of(yielded)
            if isinstance(item, Finish):
                finish = item
            elif isinstance(item, Progress):
                hearer.progress()
            elif item is not None and not hearer.accept([item]):
                await hearer.wait_for_room()
            if isinstance(item, OwnEvent):
                await hearer.stored()
            if _is_cancelled():  # the generator has caught CancelledError and goes on
                raise asyncio.CancelledError
            without_pause += 1
            if without_pause >= _ITEMS_AT_ONCE:
                without_pause = 0
                await asyncio.sleep(0)
    finally:
        await generator.aclose()
    return finish


class _GeneratorThread:
    """Runs a generator that is not async in a thread, and passes on what it yields."""

    def __init__(self, call: Callable[[], Generator[Any, None, None]], running: set[_GeneratorThread]) -> None:
        self._call = call
        self._running = running
        """Has this object in it while its thread runs."""
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._changed = threading.Condition()
        """Guards the fields below, which the thread and the event loop share."""
        self._waiting: list[Item | Progress | Finish] = []
        self._woken = False
        self._stored = True
        """Whether the own event that was passed on last is in the log."""
        self._ended = False
        self._error: BaseException | None = None
        self._wake = asyncio.Event()
        self._has_ended = asyncio.Event()

    async def follow(self, hearer: Hearer) -> Finish:
        """Returns when the generator has ended. When cancelled, stops it and waits for its end."""
        context = contextvars.copy_context()
        context.run(stop_flag.set, self._stop)
        threading.Thread(target=context.run, args=(self._run,), name="generator", daemon=True).start()
        self._running.add(self)
        finish = Finish()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                with self._changed:
                    taken, self._waiting, self._woken = self._waiting, [], False
                    ended = self._ended
                    self._changed.notify()
                items = [item for item in taken if isinstance(item, str | bytes)]
                finish = next((item for item in reversed(taken) if isinstance(item, Finish)), finish)
                if len(items) < len(taken):
                    hearer.progress()
                if items and not hearer.accept(items):
                    await hearer.wait_for_room()
                if items and isinstance(items[-1], OwnEvent):  # it is the last: the thread waits
                    await hearer.stored()
                    with self._changed:
                        self._stored = True
                        self._changed.notify()
                if ended:
                    self._raise_error()
                    return finish
        finally:
            self._stop.set()
            with self._changed:
                self._changed.notify()
            await self._has_ended.wait()

    def _raise_error(self) -> None:
        """Raises what the generator has raised, if it has. An exception in a variable of this frame would keep itself alive."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error

    # --- in the thread

    def _run(self) -> None:
        try:
            generator = self._call()
            try:
                for yielded in generator:
                    item = item_of(yielded)
                    if item is not None:
                        self._pass_on(item)
                    if self._stop.is_set():
                        break
            finally:
                generator.close()
        except BaseException as error:  # SystemExit, too, is the stream's end and not the worker's
            self._error = error
        with self._changed:
            self._ended = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(self._ends)

    def _pass_on(self, item: Item | Progress | Finish) -> None:
        with self._changed:
            while len(self._waiting) >= _WAITING_ITEMS_MAX and not self._stop.is_set():
                self._changed.wait()
            self._waiting.append(item)
            self._stored = not isinstance(item, OwnEvent)
            is_first, self._woken = not self._woken, True
        if is_first:
            self._loop.call_soon_threadsafe(self._wake.set)
        if not self._stored:
            with self._changed:
                while not self._stored and not self._stop.is_set():
                    self._changed.wait()

    def _ends(self) -> None:
        self._wake.set()
        self._has_ended.set()
        self._running.discard(self)
