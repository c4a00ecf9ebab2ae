"""The operations on streams that all APIs share: create, state, receipt, cancel, delete."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from gateway import metrics
from gateway.access.limits import Limits
from gateway.access.owners import Owners
from gateway.access.webhooks import StreamWebhooks
from gateway.following.tails import Tails
from gateway.http.audit import audit
from gateway.http.problems import Problem, archive_in_time, full
from gateway.process_name import gateway_name
from gateway.streams.creation import NewStream, StreamCreation
from gateway.streams.stream_logs import StreamLogs
from shared import events
from shared.archive.record import tombstone_of
from shared.commands import Commands, Executes
from shared.errors import LogFull, MidstreamError
from shared.event_log import EventLog
from shared.events import Webhook, owner_of
from shared.ids import BEGINNING, EventId
from shared.lanes import Lanes
from shared.lifecycle import History
from shared.outcomes import CancelReason, ReaderOutcome
from shared.receipt import (
    RECEIPT_LINE_SECONDS,
    DeliveryNote,
    DeliveryNotes,
    EndedLog,
    Generated,
    read_ended,
    receipt,
    write_line,
)
from shared.settings import Settings
from shared.unkept import Unkept
from shared.usage import Usage

if TYPE_CHECKING:
    from gateway.restoring import Restoring

logger = logging.getLogger(__name__)


class Streams(StreamLogs):
    """Methods return the body of the answer, or what it is made of, and raise Problem for any other status."""

    def __init__(
        self,
        commands: Commands,
        log: EventLog,
        queue: Lanes,
        tails: Tails,
        deliveries: DeliveryNotes,
        settings: Settings,
        owners: Owners,
        limits: Limits,
        usage: Usage,
        unkept: Unkept | None = None,
        restoring: Restoring | None = None,
        webhooks: StreamWebhooks | None = None,
        replicated: Executes | None = None,
    ) -> None:
        """With an archive there are both `unkept`, where each stream is entered, and `restoring`. `replicated` executes what is to
        count only when replicas have it, too."""
        super().__init__(log, tails, settings, owners, restoring)
        self._creation = StreamCreation(
            self, commands, log, queue, settings, owners, limits, unkept, webhooks, replicated
        )
        self._deliveries = deliveries
        self._usage = usage
        self._webhooks = webhooks
        self._receipts: set[asyncio.Task[Any]] = set()

    async def create(self, new: NewStream) -> dict[str, Any]:
        """Creates a stream. Returns the body of the 201. Raises Problem 422, 429, 503."""
        return await self._creation.create(new)

    async def state(self, stream_id: str, wait_seconds: float = 0.0) -> History:
        """Returns the state now, or when the stream has ended or the time is up. A waiting request holds the stream's tail."""
        history = await self.history(stream_id)
        if wait_seconds and not history.ended:
            del history  # it may be large, and the wait long
            await self.until_ended(stream_id, wait_seconds)
            history = await self.history(stream_id)
        return history

    async def until_ended(self, stream_id: str, wait_seconds: float) -> None:
        """Returns when the stream has ended or the time is up. A waiting request holds the stream's tail."""
        tail = self._tails.hold(stream_id)
        try:
            async with asyncio.timeout(wait_seconds):
                await tail.until_ready()
                await tail.until_ended()
        except TimeoutError:
            pass
        finally:
            tail.release()

    async def receipt(self, stream_id: str) -> dict[str, Any]:
        """Returns what was generated, and what was delivered."""
        self._check_id(stream_id)

        async def read() -> Generated:
            generated = Generated()
            await self._read_all(stream_id, generated, generated.history)
            self._check_history(stream_id, generated.history)
            return generated

        generated = await self._also_archived(stream_id, read)
        notes = await self.answered(self._deliveries.read, stream_id)
        return receipt(stream_id, generated, notes)

    async def cancel(self, stream_id: str, by: CancelReason = CancelReason.CLIENT) -> History:
        """Ends a stream that has not ended; returns its state. The worker is fenced, and closes the provider's connection."""
        history, ended_here = await self._cancel(stream_id, by)
        if ended_here:
            audit("cancelled", stream_id)
        return history

    async def _cancel(self, stream_id: str, by: CancelReason) -> tuple[History, bool]:
        """Returns the state, and whether this call has ended the stream."""
        value = orjson.dumps({"by": by, "time": time.time()})
        await self.check_owner(stream_id)
        await self.enter(stream_id)  # a written stream may not be there yet
        try:
            ended_here = await self.answered(self._end, stream_id, value)
        except LogFull:
            raise full() from None
        if ended_here:
            metrics.cancelled(by)
            self.write_receipt(stream_id)
        history = await self.history(stream_id)
        if ended_here:
            if history.accepted is not None:
                self._usage.accounts.send_ended(history.accepted.principal, stream_id)
            self.cancelled_here(stream_id, history, by)
        return history, ended_here

    async def _end(self, stream_id: str, cancelled: bytes) -> bool:
        """Ends a stream as cancelled. True if it ends with this entry: also one whose reply was lost before."""
        if await self._log.end(stream_id, events.CANCELLED, cancelled):
            return True
        newest = await self._log.newest(stream_id)
        return bool(newest) and newest[-1].value == cancelled

    def cancelled_here(self, stream_id: str, history: History, by: str) -> None:
        """Called when a cancel has ended a stream here, before any other end. For tracing, which overrides it."""

    async def delete(self, stream_id: str) -> None:
        """Cancels a stream if it runs, and deletes it, also from the archive. May be repeated as long as its tombstone is there.

        Raises Problem 404, 410, 503.
        """
        try:
            history, _ = await self._cancel(stream_id, CancelReason.CLIENT)
        except Problem as problem:
            if problem.status in (404, 410) and await self._is_deleted(stream_id):
                return
            raise

        async def read() -> EndedLog:
            ended = await self.answered(read_ended, self._log, self._deliveries, stream_id)
            self._check_history(stream_id, ended.generated.history)
            return ended

        ended = await self._also_archived(stream_id, read)  # once more: it may have expired since
        if self._restoring is not None:
            with archive_in_time():
                await self._restoring.archive.erase(tombstone_of(ended))
        # For the last time, since what is deleted cannot be counted later: what the archive counts, and not before it has answered,
        # since a delete that is repeated for its sake counts what was read since.
        await self.answered(partial(self._usage.count, ended.generated, ended.receipt, closed=True))
        owner = history.accepted.principal if history.accepted else None
        await self.answered(self._log.delete, stream_id, owner)
        audit("deleted", stream_id, owner=owner)

    async def _is_deleted(self, stream_id: str) -> bool:
        """Whether there is the tombstone of a stream that is the principal's. Raises Problem 404, 503."""
        self._check_id(stream_id)
        newest = await self.answered(self._log.newest, stream_id)
        is_deleted = bool(newest) and newest[-1].field == events.DELETED
        return is_deleted and self._owners.allows_owner(stream_id, owner_of(newest[-1].value))

    async def note_delivered(self, stream_id: str, reached: EventId, began_at: float) -> None:
        """Notes, for the receipt, that a client that waited was given the whole answer in one response."""
        connection, now = secrets.token_hex(6), time.time()
        note = DeliveryNote(connection, gateway_name(), BEGINNING, reached, began_at, now, ReaderOutcome.COMPLETED)
        try:
            await self._deliveries.note(stream_id, note)
            self._usage.read_after_its_end(stream_id)
        except MidstreamError as error:
            logger.debug("stream %s: a delivery was not noted: %s", stream_id, error)

    def write_receipt(self, stream_id: str) -> None:
        """Has the receipt of a stream that was ended here written to this process's log, a moment later."""
        line = write_line(
            self._log,
            self._deliveries,
            stream_id,
            after_seconds=RECEIPT_LINE_SECONDS,
            count=self._usage.count,
            on_receipt=metrics.receipt_written,
            with_texts=bool(self._settings.log_texts),
        )
        task = asyncio.get_running_loop().create_task(line)
        self._receipts.add(task)
        task.add_done_callback(self._receipts.discard)

    def ended_by_writer(self, stream_id: str) -> None:
        """Accounts for a stream whose end came with an append of its external writer: its receipt, the archive, its webhook."""
        self.write_receipt(stream_id)
        self.look_soon(stream_id)

    def look_soon(self, stream_id: str) -> None:
        """Has a stream, which has ended here, looked at in some seconds: for the archive, and for its webhook if it has one."""
        self._log.on_ended(stream_id)

    def webhook_of(self, url: str | None) -> Webhook | None:
        """Returns the webhook of a stream that the principal makes, from its header, or by default. Raises Problem 400."""
        return None if self._webhooks is None else self._webhooks.of(None if url is None else Webhook(url))

    async def enter_webhook(self, stream_id: str) -> None:
        """Enters a stream that has a webhook, before its log begins. Raises Problem 503."""
        if self._webhooks is not None:
            await self.answered(self._webhooks.enter, stream_id)

    async def enter(self, stream_id: str) -> None:
        """Enters a written stream among those that are to be archived: before its log begins, or, if it may expire
        without an end, before its end. Raises Problem 503."""
        await self.answered(self._creation.enter, stream_id)

    async def close(self) -> None:
        """Gives up the receipts that are still to be logged."""
        for task in self._receipts:
            task.cancel()
        await asyncio.gather(*self._receipts, return_exceptions=True)
