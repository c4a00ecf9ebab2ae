"""What an external writer decides, without I/O: which events go into the next append, what its answer means, when to stop.

    push ──► waiting ──► under way ──► stored, but kept for a while ──► dropped
                ▲                           │
                └── gap: Redis has lost it ─┘

Events are numbered from 0 within the attempt; event `n` has the offset `base + n + 1`. At most one append is under way; what is
pushed meanwhile goes with the next. An append names the event after which it goes, so one whose answer was lost is repeated
without harm. Redis may lose the newest entries when it crashes: the answer is then a gap, and they are sent again from here.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from midstream.client.events import Stopped, StreamError, WriterState
from midstream.client.protocol import Call, Options, address, below, write_call

WRITER_LEASE_SECONDS = 10.0
"""A writer that sends signs of life needs no longer lease: so its death is noticed soon."""
WAITING_BYTES_MAX = 1 << 20
"""Of events that are not stored yet: whoever pushes waits beyond it (backpressure)."""
LOOK_SECONDS = 0.5
"""How often a silent writer asks whether it is to go on. A cancel is seen within that; a request costs the gateway some 85 µs."""
STORED_SECONDS_MAX = 60.0
"""How long a push waits for room, or for its event to be stored: as long as a call is tried."""
_LOOKS_PER_LEASE = 4
"""Signs of life in the time of a lease, so that a lost one does not end it."""
_BATCH_EVENTS_MAX, _BATCH_BYTES_MAX = 512, 256 << 10
_KEPT_SECONDS = 10.0
"""How long stored events are kept. Redis writes to its disk, and to its replicas, within a second or two."""
_KEPT_BYTES_MAX = 4 << 20
_MISSING = (404, 410)
"""The statuses of a stream that is not there, or not any more."""


class Outbox:
    """The events of one attempt on their way to the log."""

    def __init__(
        self,
        options: Options,
        stream: str,
        *,
        lease_seconds: float,
        model: str | None = None,
        keep: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = stream
        self.look_seconds = min(LOOK_SECONDS, lease_seconds / _LOOKS_PER_LEASE)
        self.state: WriterState | None = None
        """The stream after the newest answer."""
        self.stopped: Stopped | None = None
        """Why nothing more can be written; None while it can."""
        self._options = options
        self._url = address(options.server, stream)
        self._headers = {"stream-lease": f"{lease_seconds:g}", "content-type": "application/json"}
        self._retry_seconds = lease_seconds / _LOOKS_PER_LEASE / 2
        self._writer = f"{uuid.uuid4()}"
        self._model = model
        self._keep = keep
        self._clock = clock
        self._attempt = self._base = 0
        self._first = 0
        """The number of the oldest event that is kept."""
        self._events: deque[bytes] = deque()
        """The events from `_first` on, as JSON."""
        self._stored: deque[tuple[int, float]] = deque()
        """Numbers up to which events are stored, with the time when that was known: the oldest first."""
        self._sent = 0
        """So many events are known to be stored."""
        self._under_way = 0
        self._waiting_bytes = self._kept_bytes = 0
        self._ended = False
        self._begins = True

    # --- what the program writes

    @property
    def is_full(self) -> bool:
        return self._waiting_bytes > WAITING_BYTES_MAX

    @property
    def pushed(self) -> int:
        """How many events were pushed."""
        return self._first + len(self._events)

    @property
    def sent(self) -> int:
        """How many of them are stored."""
        return self._sent

    def is_waited_for(self, number: int, *, stored: bool) -> bool:
        """Returns whether a push that returned `number` has to wait: for room, or with `stored` until its event is stored."""
        return self.stopped is None and (self.is_full or (stored and self._sent < number))

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do: the end is stored, or nothing more can be."""
        return self.stopped is not None or (self._ended and self._sent == self.pushed)

    def push(self, event: Mapping[str, Any]) -> int:
        """Takes an event; returns how many must be stored until it is. Raises Stopped, and ValueError for what is no JSON."""
        if self.stopped is not None:
            raise self.stopped
        if self._ended:
            raise ValueError("the stream was ended: nothing may follow")
        try:
            encoded = orjson.dumps(event)
        except TypeError as error:
            raise ValueError(f"an event cannot be written as JSON: {error}") from None
        self._ended = "end" in event
        self._events.append(encoded)
        self._waiting_bytes += len(encoded)
        return self.pushed

    # --- what is sent

    def call(self) -> Call[WriterState]:
        """Returns the next request: the beginning of the attempt, an append, or, if nothing waits, a sign of life."""
        if self._begins:
            body = {"writer": self._writer, "model": self._model, "keep": self._keep}
            content = orjson.dumps({name: value for name, value in body.items() if value is not None})
            return write_call(self._options, below(self._url, "/attempts"), self._headers, content, self._retry_seconds)
        batch: list[bytes] = []
        size = 0
        for index in range(self._sent - self._first, len(self._events)):
            size += len(self._events[index])
            if len(batch) == _BATCH_EVENTS_MAX or (batch and size > _BATCH_BYTES_MAX):
                break
            batch.append(self._events[index])
        self._under_way = len(batch)
        content = b"[%b]" % b",".join(batch) if batch else b""
        headers = {**self._headers, "last-event-id": f"{self._attempt}-{self._base + self._sent}"}
        return write_call(self._options, below(self._url, "/events"), headers, content, self._retry_seconds)

    def answered(self, state: WriterState) -> None:
        """Takes the answer to the newest request."""
        self.state = state
        if self._begins:
            self._begins = False
            self._attempt, self._base = state.attempt, state.tokens
            return
        now = self._clock()
        for index in range(self._sent - self._first, self._sent - self._first + self._under_way):
            self._waiting_bytes -= len(self._events[index])
            self._kept_bytes += len(self._events[index])
        self._sent += self._under_way
        if self._under_way:
            self._stored.append((self._sent, now))
        self._under_way = 0
        while self._stored and (now - self._stored[0][1] > _KEPT_SECONDS or self._kept_bytes > _KEPT_BYTES_MAX):
            upto, _ = self._stored.popleft()
            while self._first < upto:
                self._kept_bytes -= len(self._events.popleft())
                self._first += 1

    def refused(self, error: StreamError) -> None:
        """Takes a refusal that no repetition mends: sends again what Redis has lost, or stops."""
        problem = error.problem
        if error.reason == "gap" and isinstance(problem.get("tokens"), int):
            attempt = int(str(problem.get("last_event_id", "0")).partition("-")[0])
            stored = problem["tokens"] - self._base if attempt == self._attempt else 0
            if self._first <= stored < self._sent or (attempt < self._attempt and self._first == 0):
                self._again_from(stored)
                if attempt < self._attempt:  # the beginning of this attempt is lost, too
                    self._begins, self._keep = True, min(self._base, problem["tokens"])
                return
        reason = error.reason or ("lost" if error.status in _MISSING else "refused")
        self.stopped = Stopped(str(error), reason=reason, status=error.status, by=str(problem.get("by", "")))

    def _again_from(self, number: int) -> None:
        for index in range(number - self._first, self._sent - self._first):
            self._waiting_bytes += len(self._events[index])
            self._kept_bytes -= len(self._events[index])
        self._sent, self._under_way = number, 0
        while self._stored and self._stored[-1][0] > number:
            self._stored.pop()


def not_stored_in_time() -> StreamError:
    return StreamError(f"what was written was not stored within {STORED_SECONDS_MAX:g} s")


def failure_of(error: BaseException) -> dict[str, Any]:
    """Returns the end of a stream whose program has raised this: the type alone, since its text may have secrets."""
    return {"end": "failed", "code": "writer_failed", "message": f"the writer raised {type(error).__name__}"}
