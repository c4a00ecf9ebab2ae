"""The writer of a stream, synchronous: a thread sends what the program pushes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from midstream.client.events import Stopped, StreamError, WriterState
from midstream.client.outbox import STORED_SECONDS_MAX, Outbox, failure_of, not_stored_in_time
from midstream.client.protocol import Call


class Writer:
    """Fills a stream. Leaving the context ends the stream: as done, or as failed if the block has raised.

    Each method raises Stopped when nothing more can be written, because the stream was cancelled, or another writer goes on; and
    StreamError when what was written is not stored within a minute.
    """

    def __init__(self, outbox: Outbox, call: Callable[[Call[WriterState]], WriterState]) -> None:
        self._outbox = outbox
        self._call = call
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._send, name="midstream-writer", daemon=True)
        self._closed = False
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
        """Whether nothing more can be written: for a loop that writes nothing for long."""
        return self._outbox.stopped is not None

    def __enter__(self) -> Self:
        self._exchange()
        if self._outbox.stopped is not None:
            raise self._outbox.stopped
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._ended and not self.stopped:
                self._push({"end": "done"} if error is None else failure_of(error), stored=True, ends=True)
        except (Stopped, StreamError):
            if error is None:
                raise
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            self._thread.join(STORED_SECONDS_MAX)
        if error is None and self._outbox.stopped is not None:
            raise self._outbox.stopped

    def token(self, text: str) -> None:
        """Writes text; an empty one is nothing. Returns at once, unless more than a megabyte waits."""
        if text:
            self._push({"token": text})

    def delta(self, delta: Mapping[str, Any], **more: Any) -> None:
        """Writes more than text, as the Chat Completions API has it; `more`: `index`, `logprobs`, `finish_reason`."""
        self._push({"delta": delta, **more})

    def event(self, name: str, data: Any = None) -> None:
        """Writes an event of your own. Returns when it is in the log, so that a step is noted before the next begins."""
        self._push({"event": name, "data": data}, stored=True)

    def end(self, finish_reason: str = "stop", usage: Mapping[str, Any] | None = None) -> None:
        """Ends the stream as done. Returns when that is in the log."""
        usage_field = {} if usage is None else {"usage": usage}
        self._push({"end": "done", "finish_reason": finish_reason, **usage_field}, stored=True, ends=True)

    def fail(self, code: str, message: str, *, retryable: bool = False) -> None:
        """Ends the stream as failed."""
        end = {"end": "failed", "code": code, "message": message, "retryable": retryable}
        self._push(end, stored=True, ends=True)

    def cancel(self) -> None:
        """Ends the stream as cancelled."""
        self._push({"end": "cancelled"}, stored=True, ends=True)

    def _push(self, event: Mapping[str, Any], *, stored: bool = False, ends: bool = False) -> None:
        outbox = self._outbox
        with self._changed:
            number = outbox.push(event)
            self._ended |= ends
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not outbox.is_waited_for(number, stored=stored), STORED_SECONDS_MAX):
                raise not_stored_in_time()
            if outbox.stopped is not None:
                raise outbox.stopped

    def _send(self) -> None:
        """Sends what waits, and a sign of life where nothing does, until the end is stored."""
        outbox = self._outbox
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or outbox.is_over or outbox.sent < outbox.pushed, outbox.look_seconds
                )
                if outbox.is_over or self._closed:
                    return
            self._exchange()

    def _exchange(self) -> None:
        """Makes the next request, and takes its answer."""
        with self._changed:
            call = self._outbox.call()
        try:
            state = self._call(call)
        except StreamError as error:
            with self._changed:
                self._outbox.refused(error)
                self._changed.notify_all()
        else:
            with self._changed:
                self._outbox.answered(state)
                self._changed.notify_all()
