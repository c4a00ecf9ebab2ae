"""Receipts: what was generated against what was delivered.

Generated is what the log holds. Delivered is what gateways note of their connections: from which id to which each was
sent. How many tokens that was is worked out when a receipt is read, so that nothing is counted on the hot path. "Sent"
means handed to the connection; what a client really had is the id with which it comes back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from shared import events
from shared.errors import MidstreamError
from shared.events import Entry
from shared.ids import EventId
from shared.keys import deliveries_key, log_key
from shared.lifecycle import base_of, fold
from shared.log import Commands, EventLog, Script
from shared.patience import patiently

logger = logging.getLogger(__name__)
line_logger = logging.getLogger("midstream.receipt")
"""One line per ended stream."""

CONNECTIONS_MAX = 1000
"""Connections listed per stream: a client that flaps for an hour at one a second stays within; each costs 200 bytes."""
RECEIPT_LINE_SECONDS = 1.0
"""How long after a stream's end its line is written."""
_LINE_SECONDS_MAX = 60.0
"""How long a Redis that is away may hold up a line."""
_USAGE = b"usage"
_ABANDONED_SECONDS = 60.0
"""A connection that is not closed so long after its stream's end belonged to a gateway that was killed."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a gateway notes of one connection. Times are Unix seconds; open while `outcome` is None.

    `noted_at` is when: of a gateway that is killed, the last time at which the connection is known to have been open.
    """

    connection: str
    gateway: str
    start: EventId
    reached: EventId
    opened_at: float
    closed_at: float | None = None
    outcome: str | None = None
    noted_at: float | None = None

    def stored(self) -> bytes:
        return orjson.dumps(
            {
                "id": self.connection,
                "gateway": self.gateway,
                "from": _told(self.start),
                "to": _told(self.reached),
                "opened_at": self.opened_at,
                "closed_at": self.closed_at,
                "outcome": self.outcome,
                "noted_at": self.noted_at,
            }
        )


@dataclass(frozen=True, slots=True)
class Notes:
    """What is noted beside a log: its connections, the oldest first, and a usage that came after the stream's end."""

    connections: list[dict[str, Any]]
    late_usage: dict[str, Any] | None = None


def _told(cursor: EventId) -> str:
    """A place as an id; the one just before `k-0`, where a reader may begin, has none of its own."""
    return str(EventId(cursor.attempt, max(0, cursor.offset)))


class Deliveries:
    """The notes, over one connection to Redis."""

    DELIVER = Script("deliver")
    SCRIPTS = (DELIVER.source,)

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def note(self, stream_id: str, delivered: Delivered) -> None:
        """Store how far a connection has come. Raises Disconnected, RedisRefused, LogFull."""
        keys = [log_key(stream_id), deliveries_key(stream_id)]
        await self.DELIVER.run(self._commands, keys, delivered.connection, delivered.stored(), CONNECTIONS_MAX)

    def send_note(self, stream_id: str, delivered: Delivered, on_reply: Callable[[Any], None]) -> None:
        """`note` without a task: `on_reply` gets the bare reply or the error, also that of a script that Redis forgot."""
        keys = (log_key(stream_id), deliveries_key(stream_id))
        more = (delivered.connection, delivered.stored(), CONNECTIONS_MAX)
        self._commands.send(("EVALSHA", self.DELIVER.digest, 2, *keys, *more), on_reply)

    async def note_usage(self, stream_id: str, usage: dict[str, Any]) -> None:
        """Store what the provider said of an answer after its stream had ended. Raises like `note`."""
        keys = [log_key(stream_id), deliveries_key(stream_id)]
        await self.DELIVER.run(self._commands, keys, _USAGE, orjson.dumps(usage), CONNECTIONS_MAX + 1)

    async def read(self, stream_id: str) -> Notes:
        """All notes of a stream."""
        reply = await self._commands.execute("HGETALL", deliveries_key(stream_id))
        noted = {name: orjson.loads(note) for name, note in zip(reply[::2], reply[1::2], strict=True)}
        late_usage = noted.pop(_USAGE, None)
        return Notes(sorted(noted.values(), key=lambda note: float(note["opened_at"])), late_usage)


@dataclass(slots=True)
class _Attempt:
    base: int
    reached: int
    """The offset of its last delta; `base` while it has none."""
    outcome: str | None = None
    worker: str | None = None
    started_at: float | None = None
    last_heard_at: float | None = None
    """When its worker last said that it was there, as the one that took over found it; of a worker that was lost only."""


def _attempts(entries: list[Entry]) -> dict[int, _Attempt]:
    attempts: dict[int, _Attempt] = {}
    for entry in entries:
        attempt, offset = entry.id
        if entry.field in (events.STARTED, events.RESTARTED):
            base, about = base_of(entry.value), orjson.loads(entry.value)
            if attempt - 1 in attempts:
                attempts[attempt - 1].outcome = about.get("reason")
                attempts[attempt - 1].last_heard_at = _last_heard_at(about)
            attempts[attempt] = _Attempt(base, base, worker=about.get("worker"), started_at=about.get("time"))
        elif entry.field in events.COUNTED:
            attempts[attempt].reached = offset
        elif entry.field in events.TERMINAL:
            last = attempts.get(max(attempts, default=0))
            if last is not None:
                last.outcome = {events.DONE: "completed", events.FAILED: "failed"}.get(entry.field, "cancelled")
                last.last_heard_at = _last_heard_at(orjson.loads(entry.value) if entry.value else {})
            break
    return attempts


def _last_heard_at(about: dict[str, Any]) -> float | None:
    seconds = about.get("last_heard_at")
    return seconds if isinstance(seconds, int | float) else None


def receipt(stream_id: str, entries: list[Entry], notes: Notes) -> dict[str, Any]:
    """The body of `GET /v1/streams/{id}/receipt` (api.md section 1), from a log and the notes on its connections."""
    history = fold(entries)
    attempts = _attempts(entries)
    state = history.state(stream_id)
    standing = len(history.items)
    highest = max((EventId.parse(note["to"]) for note in notes.connections), default=EventId(0, 0))
    delivered = _standing_of(highest, attempts, standing)
    abandoned = history.ended_at is not None and time.time() - history.ended_at > _ABANDONED_SECONDS
    connections = []
    for note in notes.connections:
        if note["outcome"] is None and abandoned:
            note = {**note, "outcome": "error"}
        start, reached = EventId.parse(note["from"]), EventId.parse(note["to"])
        connections.append({**note, "tokens": _tokens_between(start, reached, attempts)})
    return {
        "id": stream_id,
        "status": state["status"],
        "finish_reason": state["finish_reason"],
        "metadata": state["metadata"],
        "generated": {
            "tokens": standing,
            "usage": state["usage"] or notes.late_usage,
            "attempts": [
                {
                    "attempt": number,
                    "tokens": one.reached - one.base,
                    "outcome": one.outcome,
                    "worker": one.worker,
                    "started_at": one.started_at,
                    "last_heard_at": one.last_heard_at,
                }
                for number, one in sorted(attempts.items())
            ],
        },
        "delivered": {"tokens": delivered, "connections": connections},
        "undelivered_tokens": standing - delivered,
    }


def _standing_of(reached: EventId, attempts: dict[int, _Attempt], standing: int) -> int:
    """How many of the tokens that stand in the end a connection had that was sent everything up to an id."""
    offset = reached.offset if reached.attempt in attempts else (standing if attempts and reached.attempt else 0)
    later = [one.base for number, one in attempts.items() if number > reached.attempt]
    if reached.attempt in attempts and offset == 0:
        offset = attempts[reached.attempt].base  # at k-0: it keeps what it had
    return min([max(0, offset), standing, *later])


def _tokens_between(start: EventId, reached: EventId, attempts: dict[int, _Attempt]) -> int:
    """How many tokens were sent to a connection that went from one id to another, across attempts."""
    tokens = 0
    for number, one in attempts.items():
        if start.attempt <= number <= reached.attempt:
            first = max(one.base, start.offset) if number == start.attempt else one.base
            last = min(one.reached, reached.offset) if number == reached.attempt else one.reached
            tokens += max(0, last - first)
    return tokens


def line_of(whole: dict[str, Any], request_id: str) -> dict[str, Any]:
    """A receipt as a log line: what happened, never what was said. (Metadata is the client's own, and may say.)"""
    told = {"event": "receipt", "stream": whole["id"], **{key: whole[key] for key in whole if key != "metadata"}}
    return {**told, "request_id": request_id} if request_id else told


async def write_line(
    log: EventLog,
    deliveries: Deliveries,
    stream_id: str,
    *,
    after_seconds: float,
    on_receipt: Callable[[dict[str, Any]], None] = lambda _: None,
    with_texts: bool = False,
) -> None:
    """Put a stream's receipt on this process's log, a moment after its end: gateways still note their last readers.

    `on_receipt` gets it too. `with_texts`: what was asked and answered stands in the line as well.
    """
    await asyncio.sleep(after_seconds)
    try:
        async with asyncio.timeout(_LINE_SECONDS_MAX):
            entries = await patiently(lambda: log.read_all(stream_id))
            whole = receipt(stream_id, entries, await patiently(lambda: deliveries.read(stream_id)))
    except (MidstreamError, TimeoutError) as error:
        logger.warning("stream %s: no receipt: %s", stream_id, error or "Redis was away for too long")
        return
    on_receipt(whole)
    history = fold(entries)
    line = line_of(whole, history.accepted.request_id if history.accepted else "")
    if with_texts and history.accepted:
        line |= {"messages": history.accepted.request.get("messages"), "text": history.text}
    line_logger.info(
        "stream %s: %s: %d tokens generated, %d delivered over %d connections",
        *(stream_id, whole["status"], whole["generated"]["tokens"], whole["delivered"]["tokens"]),
        len(whole["delivered"]["connections"]),
        extra={"about": line},
    )
