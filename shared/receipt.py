"""Receipts: what was generated against what was delivered.

Generated is what the log holds. Delivered is what gateways write down for each of their connections (`DeliveryNote`): from
which id to which it was sent. The number of tokens is computed when a receipt is read, so that nothing is counted on the hot
path. "Sent" means handed to the connection; how much a client has really received shows only when it resumes with an id.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from shared import events
from shared.commands import Commands, Script
from shared.deltas import too_deep
from shared.errors import MalformedId, MidstreamError, RedisRefused, Unreadable
from shared.event_log import EventLog
from shared.events import Entry, control_of
from shared.ids import EventId
from shared.keys import deliveries_key, log_key
from shared.lifecycle import History
from shared.odd_replies import odd_reply
from shared.outcomes import AttemptOutcome, ReaderOutcome
from shared.redis_retry import until_redis_answers
from shared.token_counts import tokens_between

logger = logging.getLogger(__name__)
line_logger = logging.getLogger("midstream.receipt")
"""The logger of receipts: one line per ended stream."""

CONNECTIONS_MAX = 1000
"""Connections listed per stream: a client that flaps for an hour at one a second stays within; each costs 200 bytes."""
RECEIPT_LINE_SECONDS = 1.0
"""How long after a stream's end its line is written."""
_LINE_SECONDS_MAX = 60.0
"""How long a line waits for a Redis that is away."""
_ENTRIES_AT_ONCE = 50
"""So many entries are counted before other tasks get a turn: at most 3,200 tokens, 3 ms."""
_USAGE = b"usage"
_OUTCOMES = {
    events.DONE: AttemptOutcome.COMPLETED,
    events.FAILED: AttemptOutcome.FAILED,
    events.CANCELLED: AttemptOutcome.CANCELLED,
    events.DELETED: AttemptOutcome.CANCELLED,
}
"""How the newest attempt has ended, by the stream's terminal event."""
_ABANDONED_SECONDS = 60.0
"""A connection that is still open so long after the end of its stream belonged to a gateway that was killed."""


@dataclass(frozen=True, slots=True)
class DeliveryNote:
    """How far one connection has come. Times are Unix seconds; the connection is open while `outcome` is None.

    `noted_at`: when this was noted; of a gateway that was killed, the last time at which the connection is known to be open.
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
        """Returns the note as its hash in Redis has it: JSON, as in `GET /v1/streams/{id}/receipt` but without `tokens`."""
        return orjson.dumps(
            {
                "id": self.connection,
                "gateway": self.gateway,
                "from": _as_id(self.start),
                "to": _as_id(self.reached),
                "opened_at": self.opened_at,
                "closed_at": self.closed_at,
                "outcome": self.outcome,
                "noted_at": self.noted_at,
            }
        )


@dataclass(frozen=True, slots=True)
class StreamNotes:
    """All that is kept beside a stream's log: its connections, oldest first, and a usage that came after the stream's end."""

    connections: list[dict[str, Any]]
    late_usage: dict[str, Any] | None = None


def _as_id(cursor: EventId) -> str:
    """Returns a place as an id. The place just before `k-0`, where a reader may begin, has no id: `k-0` stands for it."""
    return str(EventId(cursor.attempt, max(0, cursor.offset)))


class DeliveryNotes:
    """Writes and reads delivery notes, over one connection to Redis."""

    DELIVER = Script("deliver")
    SCRIPTS = (DELIVER.source,)

    def __init__(self, commands: Commands, on_noted_after_end: Callable[[str, int], None] = lambda *_: None) -> None:
        """`on_noted_after_end` is called with an ended stream of which a delivery was noted, and how many ms its log lives on."""
        self._commands = commands
        self._on_noted_after_end = on_noted_after_end

    async def note(self, stream_id: str, note: DeliveryNote) -> None:
        """Stores how far a connection has come. Raises Disconnected, RedisRefused, LogFull."""
        keys = [log_key(stream_id), deliveries_key(stream_id)]
        reply = await self.DELIVER.run(self._commands, keys, note.connection, note.stored(), CONNECTIONS_MAX)
        self._noted(stream_id, reply)

    def send_note(self, stream_id: str, note: DeliveryNote, on_reply: Callable[[Any], None]) -> None:
        """Stores how far a connection has come, without a task: `on_reply` gets the bare reply or the error."""
        keys = (log_key(stream_id), deliveries_key(stream_id))

        def replied(reply: Any) -> None:
            self._noted(stream_id, reply)
            on_reply(reply)

        self.DELIVER.send(self._commands, keys, note.connection, note.stored(), CONNECTIONS_MAX, on_reply=replied)

    def _noted(self, stream_id: str, reply: Any) -> None:
        if isinstance(reply, int) and reply > 0:
            self._on_noted_after_end(stream_id, reply)

    async def note_usage(self, stream_id: str, usage: dict[str, Any]) -> None:
        """Stores a usage that the provider sent after the stream had ended. Raises Disconnected, RedisRefused, LogFull."""
        keys = [log_key(stream_id), deliveries_key(stream_id)]
        await self.DELIVER.run(self._commands, keys, _USAGE, orjson.dumps(usage), CONNECTIONS_MAX + 1)

    async def read(self, stream_id: str) -> StreamNotes:
        """Returns all notes of a stream; ignores fields of another format. Raises Disconnected, RedisRefused."""
        try:
            reply = await self._commands.execute("HGETALL", deliveries_key(stream_id))
        except RedisRefused as error:
            if error.code != "WRONGTYPE":
                raise
            return StreamNotes([])
        if not isinstance(reply, list) or not all(isinstance(part, bytes) for part in reply):
            raise odd_reply("a read of a stream's delivery notes", reply)
        values = dict(zip(reply[::2], reply[1::2], strict=False))
        late_usage = _object(values.pop(_USAGE, b""))
        connections = [note for note in map(_note, values.values()) if note is not None]
        return StreamNotes(sorted(connections, key=lambda note: float(note["opened_at"])), late_usage)


def _object(value: bytes) -> dict[str, Any] | None:
    """Returns this JSON object; None for other JSON, and for what is nested too deeply to be written again."""
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) and not too_deep(parsed) else None


def _note(value: bytes) -> dict[str, Any] | None:
    """Returns a note that `DeliveryNote.stored` has written; None for anything else."""
    note = _object(value)
    if note is None or not all(isinstance(note.get(name), str) for name in ("id", "gateway", "from", "to")):
        return None
    if not _is_time(note.get("opened_at")) or not (note.get("closed_at") is None or _is_time(note["closed_at"])):
        return None
    if not isinstance(note.get("outcome"), str | None):
        return None
    try:
        EventId.parse(note["from"]), EventId.parse(note["to"])
    except MalformedId:
        return None
    if not (note.get("noted_at") is None or _is_time(note["noted_at"])):
        return None
    return {name: note.get(name) for name in _NOTED}


_NOTED = ("id", "gateway", "from", "to", "opened_at", "closed_at", "outcome", "noted_at")


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


@dataclass(slots=True)
class _Attempt:
    """What a log says of one attempt."""

    kept_tokens: int
    """How many increments of earlier attempts it keeps."""
    reached: int
    """The offset of its last increment; `kept_tokens` while it has none."""
    outcome: str | None = None
    worker: str | None = None
    started_at: float | None = None
    last_heard_at: float | None = None
    """When its worker last said that it was there, as the one that took over found it; of a worker that was lost only."""
    first_token_at: float | None = None
    """When its first token came, if its own worker ended it."""


class Generated:
    """A log folded into its history, and into the attempts that make it up."""

    def __init__(self) -> None:
        self.history = History()
        self.attempts: dict[int, _Attempt] = {}

    def apply(self, entry: Entry) -> None:
        """Takes the next entry of the log; ignores those behind a terminal event. Raises Unreadable."""
        if self.history.ended:
            return
        self.history.apply(entry)
        attempts, (attempt, offset) = self.attempts, entry.id
        if entry.field in (events.STARTED, events.RESTARTED):
            fields = control_of(entry.field, entry.value)
            kept_tokens = fields.get("base") or 0
            if attempt - 1 in attempts:
                attempts[attempt - 1].outcome = fields.get("reason")
                attempts[attempt - 1].last_heard_at = fields.get("last_heard_at")
            attempts[attempt] = _Attempt(
                kept_tokens, kept_tokens, worker=fields.get("worker"), started_at=fields.get("time")
            )
        elif entry.field in events.TERMINAL:
            terminal = self.history.terminal or {}
            self._end(_OUTCOMES[entry.field], terminal.get("last_heard_at"), terminal.get("first_token_at"))
        elif attempt in attempts:
            attempts[attempt].reached = offset

    def break_off(self, event_id: EventId, error: Unreadable) -> None:
        """Ends the stream as failed: the entry with this id cannot be read."""
        self.history.break_off(event_id, error)
        self._end(AttemptOutcome.FAILED)

    def spans(self) -> list[tuple[int, int, int]]:
        """Returns for each attempt its number, how many increments of earlier ones it keeps, and the offset of its last one."""
        return [(number, attempt.kept_tokens, attempt.reached) for number, attempt in self.attempts.items()]

    def _end(
        self, outcome: AttemptOutcome, last_heard_at: float | None = None, first_token_at: float | None = None
    ) -> None:
        """Notes how the newest attempt has ended."""
        last = self.attempts.get(max(self.attempts, default=0))
        if last is not None:
            last.outcome, last.last_heard_at, last.first_token_at = outcome, last_heard_at, first_token_at


def receipt(stream_id: str, generated: Generated, notes: StreamNotes) -> dict[str, Any]:
    """Returns the body of `GET /v1/streams/{id}/receipt` (docs/reference/http.md)."""
    history, attempts = generated.history, generated.attempts
    terminal = history.terminal or {}
    standing = len(history.items)
    highest = max((EventId.parse(note["to"]) for note in notes.connections), default=EventId(0, 0))
    delivered = delivered_tokens(
        highest, {number: (attempt.kept_tokens, attempt.reached) for number, attempt in attempts.items()}, standing
    )
    abandoned = history.ended_at is not None and time.time() - history.ended_at > _ABANDONED_SECONDS
    spans = generated.spans()
    connections = []
    for note in notes.connections:
        if note["outcome"] is None and abandoned:
            note = {**note, "outcome": ReaderOutcome.ERROR}
        start, reached = EventId.parse(note["from"]), EventId.parse(note["to"])
        connections.append({**note, "tokens": tokens_between(start, reached, spans)})
    return {
        "id": stream_id,
        "status": history.status,
        "finish_reason": terminal.get("finish_reason"),
        "metadata": history.accepted.metadata if history.accepted else {},
        "generated": {
            "tokens": standing,
            "usage": terminal.get("usage") or notes.late_usage,
            "attempts": [
                {
                    "attempt": number,
                    "tokens": attempt.reached - attempt.kept_tokens,
                    "outcome": attempt.outcome,
                    "worker": attempt.worker,
                    "started_at": attempt.started_at,
                    "first_token_at": attempt.first_token_at,
                    "last_heard_at": attempt.last_heard_at,
                }
                for number, attempt in sorted(attempts.items())
            ],
        },
        "delivered": {"tokens": delivered, "connections": connections},
        "undelivered_tokens": standing - delivered,
    }


def delivered_tokens(reached: EventId, attempts: Mapping[int, tuple[int, int]], standing: int) -> int:
    """Returns how many of the tokens that stand in the end were sent to a connection that got everything up to an id.

    `attempts`: for each, how many increments of earlier ones it keeps, and the offset of its last one.
    """
    offset = reached.offset if reached.attempt in attempts else (standing if attempts and reached.attempt else 0)
    later = [kept_tokens for number, (kept_tokens, _) in attempts.items() if number > reached.attempt]
    if reached.attempt in attempts and offset == 0:
        offset = attempts[reached.attempt][0]  # at k-0: it has the tokens that this attempt keeps
    return min([max(0, offset), standing, *later])


def line_of(whole: dict[str, Any], request_id: str) -> dict[str, Any]:
    """Returns the fields of a receipt's log line: no prompt and no answer, and no metadata, which could repeat them."""
    fields = {"event": "receipt", "stream": whole["id"], **{key: whole[key] for key in whole if key != "metadata"}}
    return {**fields, "request_id": request_id} if request_id else fields


class EndedLog(NamedTuple):
    """A stream's whole log: as it was read, folded, and its receipt."""

    stream_id: str
    entries: list[Entry]
    generated: Generated
    receipt: dict[str, Any]


async def read_ended(log: EventLog, deliveries: DeliveryNotes, stream_id: str) -> EndedLog:
    """Reads a stream's whole log, and makes its receipt. Raises Disconnected, RedisRefused."""
    generated, entries = Generated(), await log.read_all(stream_id)
    for count, entry in enumerate(entries, 1):
        try:
            generated.apply(entry)
        except Unreadable as error:
            generated.break_off(entry.id, error)
            break
        if count % _ENTRIES_AT_ONCE == 0:
            await asyncio.sleep(0)
    whole = receipt(stream_id, generated, await deliveries.read(stream_id))
    return EndedLog(stream_id, entries, generated, whole)


async def write_line(
    log: EventLog,
    deliveries: DeliveryNotes,
    stream_id: str,
    *,
    after_seconds: float,
    count: Callable[[Generated, dict[str, Any]], Awaitable[None]],
    on_receipt: Callable[[dict[str, Any]], None] = lambda _: None,
    with_texts: bool = False,
) -> EndedLog | None:
    """Logs a stream's receipt, a moment after its end: gateways still note their last readers. Returns the log that was read.

    `count` counts it for its principal's usage, `on_receipt` for the metrics. `with_texts`: the line contains the messages and
    the answer as well.
    """
    await asyncio.sleep(after_seconds)
    try:
        async with asyncio.timeout(_LINE_SECONDS_MAX):
            ended = await until_redis_answers(read_ended, log, deliveries, stream_id)
            await until_redis_answers(count, ended.generated, ended.receipt)
    except (MidstreamError, TimeoutError) as error:
        logger.warning("stream %s: no receipt: %s", stream_id, error or "Redis was away for too long")
        return None
    history, whole = ended.generated.history, ended.receipt
    on_receipt(whole)
    line = line_of(whole, history.accepted.request_id if history.accepted else "")
    if with_texts and history.accepted:
        line |= {"messages": history.accepted.request.get("messages"), "text": history.text}
    line_logger.info(
        "stream %s: %s: %d tokens generated, %d delivered over %d connections",
        *(stream_id, whole["status"], whole["generated"]["tokens"], whole["delivered"]["tokens"]),
        len(whole["delivered"]["connections"]),
        extra={"about": line},
    )
    return ended
