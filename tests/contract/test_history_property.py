"""Random orders of writers, cancels, lost replies and readers on one log: every reader gets a prefix of one history, without a
hole or a repetition, which ends at the first terminal event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import hypothesis.strategies as st
import orjson
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from shared import events
from shared.event_log import Appended, EventLog
from shared.events import Entry, Event, encode_items, events_of
from shared.ids import BEGINNING, EventId, new_stream_id
from shared.lifecycle import fold
from shared.redis_server import RedisAddress
from shared.resp import RespConnection
from tests.support.redis_server import RedisServer

T = TypeVar("T")
ACCEPTED = orjson.dumps(
    {
        "request": {},
        "policies": {"cancel_after": None, "on_interrupt": "continue"},
        "created_at": 0,
        "principal": "",
        "metadata": {},
    }
)


@dataclass
class WriterModel:
    """Models `producer.writer`: a copy of the log, and at most one append whose outcome is not known."""

    entries: list[Entry]
    attempt: int
    offset: int
    under_way: Entry | None = None
    fenced: bool = False
    sent_end: bool = False


@dataclass
class ReaderModel:
    got: list[Event] = field(default_factory=list)

    @property
    def cursor(self) -> EventId:
        return self.got[-1].id if self.got else BEGINNING

    @property
    def ended(self) -> bool:
        return bool(self.got) and self.got[-1].field in events.TERMINAL


def events_until_end(entries: list[Entry]) -> list[Event]:
    """Returns the events of a log up to the first terminal one."""
    history = []
    for event in (event for entry in entries for event in events_of(entry)):
        history.append(event)
        if event.field in events.TERMINAL:
            break
    return history


class LogMachine(RuleBasedStateMachine):
    writers: Bundle[WriterModel] = Bundle("writers")
    readers: Bundle[ReaderModel] = Bundle("readers")
    snapshots: Bundle[list[Entry]] = Bundle("snapshots")

    def __init__(self, log: EventLog, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.log, self.loop = log, loop
        self.stream_id = new_stream_id()
        self.acknowledged: list[Entry] = []
        self.all_readers: list[ReaderModel] = []
        self.begun = 0
        self.newest: WriterModel | None = None
        self.append(0, Entry(EventId(0, 1), events.ACCEPTED, ACCEPTED), 600)

    def do(self, call: Awaitable[T]) -> T:
        async def run() -> T:
            return await call

        return self.loop.run_until_complete(run())

    def append(self, held: int, entry: Entry, ttl_seconds: int | None = None) -> Appended:
        outcome = self.do(self.log.append(self.stream_id, held, entry, ttl_seconds))
        if outcome.status == "applied":
            self.acknowledged.append(entry)
        return outcome

    def everything(self) -> list[Entry]:
        return self.do(self.log.read_all(self.stream_id))

    # --- workers

    @rule(target=snapshots)
    def read_for_takeover(self) -> list[Entry]:
        """Reads the log; the takeover itself may happen much later."""
        return self.everything()

    @rule(target=writers, seen=snapshots, keep=st.booleans(), reply_lost=st.booleans())
    def take_over(self, seen: list[Entry], keep: bool, reply_lost: bool) -> WriterModel:
        return self._taken_over(seen, keep, reply_lost)

    def _taken_over(self, seen: list[Entry], keep: bool, reply_lost: bool) -> WriterModel:
        history = fold(seen)
        attempt = history.attempt + 1
        base = len(history.items) if keep else 0
        self.begun += 1
        writer = WriterModel(list(seen), attempt, base, fenced=history.ended)
        if history.ended:
            return writer
        about = {"attempt": attempt, "model": "m", "worker": self.begun, "time": 0, "base": base, "reason": "r"}
        entry = Entry(EventId(attempt, 0), events.STARTED if attempt == 1 else events.RESTARTED, orjson.dumps(about))
        before = self.everything()
        outcome = self.append(len(seen), entry)
        if reply_lost:
            outcome = self.append(len(seen), entry)
        if outcome.status == "duplicate":
            ours = self.do(self.log.read_between(self.stream_id, entry.id, entry.id)) == [entry]
            writer.fenced = not ours
        else:
            writer.fenced = outcome.status != "applied"
            assert writer.fenced == (seen != before), "it succeeds if, and only if, what it read was all"
        writer.entries.append(entry)
        if not writer.fenced:
            self.newest = writer
        return writer

    @rule(target=writers, keep=st.booleans())
    def take_over_at_once(self, keep: bool) -> WriterModel:
        return self._taken_over(self.everything(), keep, reply_lost=False)

    @rule(counts=st.lists(st.integers(1, 4), min_size=1, max_size=3), reply_lost=st.booleans())
    def append_by_the_newest(self, counts: list[int], reply_lost: bool) -> None:
        """Ensures that the newest worker writes often; otherwise most steps would be those of fenced ones."""
        if self.newest is not None:
            for count in counts:
                self.repeat(self.newest, reply_lost=False)
                self.append_tokens(self.newest, count, reply_lost)

    @rule(writer=writers, count=st.integers(1, 4), reply_lost=st.booleans())
    def append_tokens(self, writer: WriterModel, count: int, reply_lost: bool) -> None:
        if writer.under_way is None and not writer.fenced and not writer.sent_end:
            offsets = range(writer.offset + 1, writer.offset + count + 1)
            writer.offset += count
            field_, value = encode_items([f"{writer.attempt}.{offset}" for offset in offsets])
            self._send(writer, Entry(EventId(writer.attempt, writer.offset), field_, value), reply_lost)

    @rule(writer=writers, reply_lost=st.booleans())
    def finish(self, writer: WriterModel, reply_lost: bool) -> None:
        if writer.under_way is None and not writer.fenced and not writer.sent_end:
            writer.sent_end = True
            self._send(
                writer,
                Entry(
                    EventId(writer.attempt, writer.offset + 1), events.DONE, b'{"finish_reason":"stop","usage":null}'
                ),
                reply_lost,
            )

    @rule(writer=writers, reply_lost=st.booleans())
    def repeat(self, writer: WriterModel, reply_lost: bool) -> None:
        """Repeats an append whose reply was lost, at any later time, any number of times."""
        if writer.under_way is not None:
            self._send(writer, writer.under_way, reply_lost)

    @rule(writer=writers)
    def probe(self, writer: WriterModel) -> None:
        if writer.under_way is None and not writer.fenced:
            outcome = self.do(self.log.probe(self.stream_id, len(writer.entries), writer.entries[-1].id))
            assert outcome.status in ("applied", "fenced"), outcome

    def _send(self, writer: WriterModel, entry: Entry, reply_lost: bool) -> None:
        outcome = self.append(len(writer.entries), entry)
        if reply_lost:
            writer.under_way = entry
            return
        writer.under_way = None
        assert outcome.status != "gap", "this Redis forgets nothing"
        if outcome.status == "fenced":
            writer.fenced = True
        else:
            writer.entries.append(entry)
            self.acknowledged.append(entry)

    # --- gateways

    @rule()
    def cancel(self) -> None:
        before = events_until_end(self.everything())
        did = self.do(self.log.end(self.stream_id, events.CANCELLED, b'{"by":"client"}'))
        assert did is (before[-1].field not in events.TERMINAL)

    @rule(seen=snapshots)
    def give_up(self, seen: list[Entry]) -> None:
        """Ends a stream whose worker seems to be gone, unless the worker has written meanwhile."""
        before = self.everything()
        did = self.do(
            self.log.end(
                self.stream_id, events.FAILED, b'{"code":"c","message":"m","retryable":true}', only_after=seen[-1].id
            )
        )
        assert did is (before == seen and before[-1].field not in events.TERMINAL)

    @rule(target=readers)
    def connect(self) -> ReaderModel:
        return self._joined(ReaderModel())

    @rule(target=readers, reader=readers, data=st.data())
    def resume(self, reader: ReaderModel, data: st.DataObject) -> ReaderModel:
        """Resumes after any event that a reader got, also one in the middle of an entry."""
        count = data.draw(st.integers(0, len(reader.got)), label="events kept")
        return self._joined(ReaderModel(reader.got[:count]))

    @rule(reader=readers, count=st.integers(1, 3))
    def read(self, reader: ReaderModel, count: int) -> None:
        if not reader.ended:
            new = events_until_end(self.do(self.log.read(self.stream_id, reader.cursor, count)))
            reader.got += [event for event in new if event.id > reader.cursor]

    def _joined(self, reader: ReaderModel) -> ReaderModel:
        self.all_readers.append(reader)
        return reader

    # --- what must hold, always

    @invariant()
    def one_history(self) -> None:
        entries = self.everything()
        history = events_until_end(entries)
        ids = [event.id for event in history]
        assert ids == sorted(set(ids)), "in order, nothing twice"
        assert all(event.field not in events.TERMINAL for event in history[:-1])
        stored = set(entries)
        assert all(entry in stored for entry in self.acknowledged), "what was acknowledged is there"

        offset, attempt = 0, 0
        for event in history[1:]:
            if event.field in (events.STARTED, events.RESTARTED):
                offset, attempt = orjson.loads(event.value)["base"], event.id.attempt
            elif event.field == events.TOKEN:
                offset += 1
                assert event.id == (attempt, offset), "no hole"
                assert event.value == b"%d.%d" % (attempt, offset)
        for reader in self.all_readers:
            assert reader.got == history[: len(reader.got)], "every reader gets a prefix of it"


def test_every_reader_gets_a_prefix_of_one_history(valkey_server: RedisServer) -> None:
    loop = asyncio.new_event_loop()

    async def connect() -> RespConnection:
        address = RedisAddress.parse(valkey_server.url)
        connection = RespConnection(address, name="test", reply_seconds=5, scripts=EventLog.SCRIPTS)
        connection.start()
        await connection.wait_until_up()
        return connection

    connection = loop.run_until_complete(connect())
    log = EventLog(connection, log_ttl_seconds=600, ended_ttl_seconds=600, tombstone_ttl_seconds=600)
    bounds = settings(
        max_examples=150,
        stateful_step_count=40,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        print_blob=True,
    )
    try:
        run_state_machine_as_test(partial(LogMachine, log, loop), settings=bounds)  # type: ignore[arg-type]
    finally:
        loop.run_until_complete(connection.close())
        loop.close()
