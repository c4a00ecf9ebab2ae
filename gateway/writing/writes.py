"""What an append of an external writer does: where it goes, who is fenced off, and what is in the log already.

An attempt has one writer. `begin` opens the next attempt, and thereby fences off whoever wrote before. An append that names the
event after which it is to go (`after`) may be repeated and is never applied twice: the ids of its events are known, so those that
are there already are passed over. One that names none goes to the end of the log, whoever wrote that.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from gateway import metrics
from gateway.access.append_rates import AppendRates
from gateway.http.problems import Problem, full
from gateway.streams.streams import Streams
from gateway.writing.lines import End
from shared import events
from shared.errors import LogFull, Unreadable
from shared.event_log import EventLog
from shared.events import Entry, Item, control_of, encode_items, events_of
from shared.external_writes import ExternalWrites, WriterLease, WriterLeases, Written
from shared.ids import FIRST_ID, EventId
from shared.outcomes import CancelReason, FailureCode, Status
from shared.settings import Settings

logger = logging.getLogger(__name__)

REPLACED = "writer_replaced"
"""The reason of a `restarted` with which another writer goes on."""
_TRIES_MAX = 20
"""How often an append looks for its place, while somebody else writes to the same log each time."""
_PLACES_MAX = 10_000
"""Streams of which a gateway process remembers where the next append goes: 300 bytes each. For others the log is asked first."""
_LIST_AGAIN_SECONDS = 10.0
"""How often a stream that is written to is listed again, in case Redis has forgotten the list."""
_ENTRY_BYTES_MAX = 256 << 10
"""Of an entry of several events: Redis sends it to each gateway at once."""
_BEGINNINGS = (events.STARTED, events.RESTARTED)
_STATUSES = {events.DONE: Status.COMPLETED, events.FAILED: Status.FAILED, events.CANCELLED: Status.CANCELLED}


@dataclass(frozen=True, slots=True)
class Place:
    """The end of a log: the id of its last entry, and the place of its last increment, which differs at an attempt's beginning."""

    last: EventId
    increment: EventId


@dataclass(frozen=True, slots=True)
class Answer:
    """The state of a stream after an append. `listeners`: how many gateway processes have readers of it."""

    stream_id: str
    place: Place
    listeners: int = 0
    status: Status = Status.RUNNING

    def body(self) -> dict[str, Any]:
        attempt, offset = self.place.increment
        return {
            "id": self.stream_id,
            "status": self.status,
            "attempt": attempt,
            "last_event_id": str(self.place.last),
            "tokens": offset,
            "listeners": self.listeners,
        }


def conflict(reason: str, detail: str, **members: Any) -> Problem:
    """Returns the 409 for a writer that is to stop, or to go on elsewhere. `reason` is for machines."""
    return Problem(409, detail, members={"reason": reason, **members})


class Writes:
    """All appends of external writers. Methods raise Problem 404, 409, 410, 413, 503."""

    def __init__(
        self,
        streams: Streams,
        log: EventLog,
        writes: ExternalWrites,
        leases: WriterLeases,
        rates: AppendRates,
        settings: Settings,
    ) -> None:
        self._streams = streams
        self._log = log
        self._writes = writes
        self._leases = leases
        self._rates = rates
        self._entry_items_max = settings.entry_tokens_max
        self._places: OrderedDict[str, Place] = OrderedDict()
        self._listed: OrderedDict[str, tuple[float, float | None]] = OrderedDict()
        """When a stream was listed last, and the length of its lease if its writer has set it."""

    # --- attempts

    async def begin(
        self,
        stream_id: str,
        writer: str,
        *,
        model: str | None = None,
        keep: int | None = None,
        lease_seconds: float | None = None,
    ) -> Answer:
        """Begins an attempt of this writer, and fences off every earlier one. A writer that has the newest attempt goes on with it.

        `keep`: how many of the increments that are there stand; all by default.
        """
        for _ in range(_TRIES_MAX):
            written = await self._put(stream_id, None, None, lease_seconds=lease_seconds)
            place = self._open_place(stream_id, written)
            attempt, offset = place.increment if place.last != FIRST_ID else (0, 0)
            if attempt and await self._writer_of(stream_id, attempt) == writer:
                return self._answer(stream_id, place, written.listeners)
            if keep is not None and keep > offset:
                raise Problem(400, f"keep is {keep}, but there are only {offset} events", param="keep")
            base = offset if keep is None else keep
            value: dict[str, Any] = {"attempt": attempt + 1, "model": model, "worker": writer, "time": time.time()}
            if model is None:
                value["model"] = (await self._streams.accepted(stream_id)).request.get("model")
            if attempt:
                value |= {"base": base, "reason": REPLACED}
            field = events.RESTARTED if attempt else events.STARTED
            entry = Entry(EventId(attempt + 1, 0), field, orjson.dumps(value))
            written = await self._put(stream_id, place.last, entry, lease_seconds=lease_seconds)
            if written.status == "applied":
                metrics.ATTEMPTS_WRITTEN.inc()
                return self._answer(stream_id, Place(entry.id, EventId(attempt + 1, base)), written.listeners)
        raise _busy()

    async def _writer_of(self, stream_id: str, attempt: int) -> Any:
        beginning = await self._beginning(stream_id, attempt)
        return None if beginning is None else beginning.get("worker")

    async def _beginning(self, stream_id: str, attempt: int) -> dict[str, Any] | None:
        """Returns the fields of the entry with which an attempt begins; None if there is none."""
        event_id = EventId(attempt, 0)
        for entry in await self._streams.answered(self._log.read_between, stream_id, event_id, event_id):
            if entry.field in _BEGINNINGS:
                return _control_of(entry.field, entry.value)
        return None

    # --- appends

    async def append(
        self,
        stream_id: str,
        items: Sequence[Item],
        end: End | None = None,
        *,
        after: EventId | None = None,
        lease_seconds: float | None = None,
        renew: bool = True,
        may_wait: bool = False,
    ) -> Answer:
        """Appends these increments, and the end if there is one. Without both it renews the lease and tells the state.

        `may_wait`: what comes too fast waits for its turn instead of being refused.
        """
        await self._streams.check_owner(stream_id)
        if items and may_wait:
            await self._rates.wait(stream_id)
        elif items:
            self._rates.take(stream_id)
        if after is not None and not after.offset and after.attempt:
            beginning = await self._beginning(stream_id, after.attempt)
            after = EventId(after.attempt, (beginning or {}).get("base") or 0)
        place = self._places.get(stream_id)
        if after is not None and (place is None or place.increment != after):
            place = Place(after, after)
        waiting = list(items)
        tries = 0
        while True:
            entry = None
            if place is not None:
                entry = self._next_entry(place.increment, waiting, end)
            expected = None if place is None or entry is None else place.last
            written = await self._put(stream_id, expected, entry, lease_seconds=lease_seconds, renew=renew)
            if written.status == "applied" and entry is not None and place is not None:
                waiting = waiting[entry.id.offset - place.increment.offset :]
                place = Place(entry.id, entry.id)
                if entry.field in events.TERMINAL:
                    return self._ended_here(stream_id, entry, place.increment.offset - 1, written.listeners)
                if not waiting and end is None:
                    return self._answer(stream_id, place, written.listeners)
                continue
            if written.status == "ended" and end is not None and after is not None:
                end_id = EventId(after.attempt, after.offset + len(items) + 1)
                if written.last == end_id and _is_end(written, end):  # this request was carried out before
                    place = Place(end_id, EventId(after.attempt, end_id.offset - 1))
                    return Answer(stream_id, place, 0, _STATUSES[end.field])
            actual = self._open_place(stream_id, written)
            if actual.last == FIRST_ID:
                if not waiting and end is None:
                    return Answer(stream_id, Place(FIRST_ID, EventId(0, 0)), written.listeners, Status.QUEUED)
                if after not in (None, EventId(1, 0)):
                    raise _gap(actual, after)
                begun = await self.begin(stream_id, f"http-{secrets.token_hex(6)}", lease_seconds=lease_seconds)
                place = begun.place
                continue
            if after is not None and place is not None:
                there = waiting[: self._number_there(waiting, end, place.increment, actual)]
                await self._check_same(stream_id, there, place.increment)
                waiting = waiting[len(there) :]
            place = actual
            if not waiting and end is None:
                return self._answer(stream_id, actual, written.listeners)
            tries += 1
            if tries > _TRIES_MAX:
                raise _busy()

    def _next_entry(self, place: EventId, waiting: list[Item], end: End | None) -> Entry | None:
        attempt, offset = place
        if not waiting:
            if end is None:
                return None
            return Entry(EventId(attempt, offset + 1), end.field, orjson.dumps({**end.value, "time": time.time()}))
        count = size = 0
        for item in waiting[: self._entry_items_max]:
            size += len(item)
            if count and size > _ENTRY_BYTES_MAX:
                break
            count += 1
        return Entry(EventId(attempt, offset + count), *encode_items(waiting[:count]))

    def _number_there(self, waiting: list[Item], end: End | None, place: EventId, actual: Place) -> int:
        """Returns how many of the increments that were to go behind `place` stand in the log already."""
        attempt, offset = actual.increment
        if attempt > place.attempt:
            raise conflict(
                "fenced",
                f"another writer has begun attempt {attempt}; what you append to attempt {place.attempt} is refused",
                last_event_id=str(actual.last),
            )
        if attempt < place.attempt or offset < place.offset:
            raise _gap(actual, place)
        there = offset - place.offset
        if there > len(waiting) and end is not None:
            raise _other_program(attempt)
        return min(there, len(waiting))

    async def _check_same(self, stream_id: str, there: list[Item], place: EventId) -> None:
        """Raises Problem 409 if the log has other events behind `place` than these, which are said to stand there."""
        if not there:
            return
        stored: list[tuple[bytes, bytes]] = []
        for entry in await self._streams.answered(self._log.read, stream_id, place, len(there)):
            try:
                stored += [event[1:] for event in events_of(entry) if event.id > place]
            except Unreadable:
                raise conflict("unreadable", "the stream's log cannot be read") from None
        if stored[: len(there)] != [encode_items([item]) for item in there]:
            raise _other_program(place.attempt)
        metrics.EVENTS_KNOWN.inc(len(there))

    # --- the log

    async def _put(
        self,
        stream_id: str,
        expected: EventId | None,
        entry: Entry | None,
        *,
        lease_seconds: float | None,
        renew: bool = True,
    ) -> Written:
        """Appends an entry behind the one expected, or only looks; repeated while Redis is away. Ends a stream that is full."""
        cancelled = orjson.dumps({"by": CancelReason.DISCONNECT, "time": time.time()})
        lease: WriterLease | None = None
        sent = 0

        async def put() -> Written:
            nonlocal sent
            sent += 1
            more: dict[str, Any] = {"lease_seconds": lease_seconds, "lease": lease, "cancelled": cancelled}
            if entry is None:
                return await self._writes.look(stream_id, renew=renew or lease is not None, **more)
            return await self._writes.append(stream_id, expected, entry, renew=renew or lease is not None, **more)

        await self._streams.check_owner(stream_id)
        try:
            written = await self._streams.answered(put)
            if written.status == "unknown":
                lease, sent = await self._lease_of(stream_id), 0
                written = await self._streams.answered(put)
        except LogFull:
            raise full() from None
        if sent > 1 and entry is not None and written.status in ("differs", "ended") and written.last >= entry.id:
            stored = await self._streams.answered(self._log.read_between, stream_id, entry.id, entry.id)
            if stored == [entry]:  # only the reply was lost
                return written._replace(status="applied", last=entry.id, field=entry.field, value=b"")
        if written.status == "cancelled":
            logger.info("stream %s: cancelled: no gateway had a reader of it for too long", stream_id)
            metrics.cancelled(CancelReason.DISCONNECT)
            self._streams.ended_by_writer(stream_id)
        elif written.status == "full":
            raise await self._full(stream_id)
        elif written.status == "applied" and entry is not None:
            metrics.ENTRIES_WRITTEN.inc()
        await self._list(stream_id, lease_seconds)
        return written

    async def _lease_of(self, stream_id: str) -> WriterLease:
        """Returns the lease with which a stream was made. Raises Problem 409 for one that a worker fills."""
        try:
            policies = (await self._streams.accepted(stream_id)).policies
        except Unreadable:
            raise conflict("unreadable", "the stream's log cannot be read") from None
        if policies.lease_seconds is None:
            raise conflict(
                "not_external", 'a worker writes this stream: only one made with "writer": "external" takes events'
            )
        return WriterLease(policies.lease_seconds, policies.cancel_after_seconds)

    async def _list(self, stream_id: str, lease_seconds: float | None) -> None:
        """Has the lease looked at: now if it has another length than before, and from time to time in case Redis has forgotten it."""
        now = time.monotonic()
        listed_at, length = self._listed.get(stream_id, (0.0, None))
        changed = lease_seconds is not None and lease_seconds != length
        if changed or now - listed_at >= _LIST_AGAIN_SECONDS:
            _remember(self._listed, stream_id, (now, lease_seconds if changed else length))
            await self._streams.answered(self._leases.enlist, stream_id, now=changed)

    async def _full(self, stream_id: str) -> Problem:
        message = "the answer reached the bound of one stream: its number of entries, or its bytes"
        failed = {"code": FailureCode.LOG_FULL, "message": message, "retryable": False, "time": time.time()}
        if await self._streams.answered(self._log.end, stream_id, events.FAILED, orjson.dumps(failed)):
            metrics.failed(FailureCode.LOG_FULL)
            self._streams.ended_by_writer(stream_id)
        return Problem(413, f"{message}; the stream has ended as failed", members={"reason": FailureCode.LOG_FULL})

    # --- answers

    def _open_place(self, stream_id: str, written: Written) -> Place:
        """Returns the end of a log that has not ended. Raises Problem for one that has, or is not there."""
        if written.status == "missing" or written.field == events.DELETED:
            raise self._streams.missing(stream_id)
        if written.field in events.TERMINAL:
            self._places.pop(stream_id, None)
            raise _ended(written)
        increment = written.last
        if written.field in _BEGINNINGS:
            base = _control_of(written.field, written.value).get("base") or 0
            increment = EventId(written.last.attempt, base)
        return Place(written.last, increment)

    def _answer(self, stream_id: str, place: Place, listeners: int) -> Answer:
        _remember(self._places, stream_id, place)
        return Answer(stream_id, place, listeners)

    def _ended_here(self, stream_id: str, entry: Entry, tokens: int, listeners: int) -> Answer:
        self._places.pop(stream_id, None)
        status = _STATUSES[entry.field]
        if entry.field == events.FAILED:
            metrics.failed(orjson.loads(entry.value)["code"])
        elif entry.field == events.CANCELLED:
            metrics.cancelled(CancelReason.WRITER)
        else:
            metrics.completed()
        logger.info("stream %s: %s by its writer", stream_id, status)
        self._streams.ended_by_writer(stream_id)
        return Answer(stream_id, Place(entry.id, EventId(entry.id.attempt, tokens)), listeners, status)


def _remember(known: OrderedDict[str, Any], stream_id: str, value: Any) -> None:
    known[stream_id] = value
    known.move_to_end(stream_id)
    if len(known) > _PLACES_MAX:
        known.popitem(last=False)


def _control_of(field: bytes, value: bytes) -> dict[str, Any]:
    try:
        return control_of(field, value)
    except Unreadable:
        raise conflict("unreadable", "the stream's log cannot be read") from None


def _is_end(written: Written, end: End) -> bool:
    stored = _control_of(written.field, written.value)
    stored.pop("time", None)
    return (written.field, stored) == (end.field, end.value)


def _other_program(attempt: int) -> Problem:
    return conflict(
        "fenced",
        f"the log has other events at this place: another program writes to attempt {attempt}, under the same name",
    )


def _gap(actual: Place, wanted: EventId) -> Problem:
    return conflict(
        "gap",
        f"the log ends at {actual.last}, before {wanted}: send again what comes after {actual.last}",
        last_event_id=str(actual.last),
        tokens=actual.increment.offset if actual.last != FIRST_ID else 0,
    )


def _ended(written: Written) -> Problem:
    """Returns the 409 that tells a writer how its stream has ended: its status, and who or what ended it."""
    status = _STATUSES[written.field]
    fields = _control_of(written.field, written.value) if written.value else {}
    cause = {name: fields[name] for name in ("by", "code") if name in fields}
    why = f" ({', '.join(str(value) for value in cause.values())})" if cause else ""
    return conflict(status, f"the stream has ended: {status}{why}", last_event_id=str(written.last), **cause)


def _busy() -> Problem:
    return Problem(503, "somebody else writes to this stream at every look; try again", retry_after_seconds=1)
