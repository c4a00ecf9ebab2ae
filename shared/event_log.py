"""The log: one Redis Stream per request, and the only truth about it.

Redis only accepts ids that grow. With ids `<attempt>-<offset>` that one rule gives exact resume (the id is the token
offset), appends that can be repeated (what is already there is refused), a fence (after 2-0, no 1-n is accepted) and
gap detection (offsets have no holes). The scripts in `shared/scripts` do each step atomically; their heads have the rules.

Reads for tasks are coroutines (`read`, `read_all`, `read_between`, `read_page`, `newest`) and raise Disconnected, RedisRefused,
OddReply. Reads by callbacks (`send_read`, `send_newest`, `send_newest_ids`) make no task; the first two hand on the entries as Redis
sent them. A key that is no stream reads as a log whose first entry cannot be read.

With MIDSTREAM_MIN_REPLICAS no read shows an end that replicas lack: it is answered when they have it, or raises RedisRefused with the
code NOREPLICAS (`shared.new_ends`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import orjson

from shared.commands import Commands, Executes, Script
from shared.errors import Disconnected, OddReply, RedisRefused
from shared.events import ACCEPTED, TERMINAL, UNREADABLE, Entry, entry_of
from shared.ids import BEGINNING, FIRST_ID, EventId
from shared.keys import deliveries_key, live_channel, log_key, webhook_key, writer_key
from shared.large_fields import KEPT, UNTIL_THE_END, Beside, joined, key_of, place_in
from shared.new_ends import NewEnds
from shared.odd_replies import ODD_SHAPES, odd_reply, reading
from shared.resp import pack

READ_ENTRIES_MAX = 1000
"""Entries per read: about 100 KB and 1 ms of Redis, so that no long history holds up the other streams."""

RawEntry = tuple[bytes, tuple[bytes, bytes]]
"""An entry as Redis sends it: its id, and its field and value. One that somebody else wrote may have more (`entry_of`)."""

_NO_LOG: list[Any] = [[bytes(FIRST_ID), ()]]
"""The result of reading a key that is not a stream: one unreadable entry."""

OnRead = Callable[[list[RawEntry] | Exception], None]
"""Called with the entries, oldest first, or with the error. It must not raise."""


class Appended(NamedTuple):
    """The result of an append or a probe.

    `applied`: the entry is in the log and was published to that many `listeners` (gateways that follow).
    `duplicate`: the entry, or a later one of the same attempt, was there already. `fenced`: a later attempt wrote.
    `gap`: the log lacks what comes before the entry. The last three have the log's `last` id and its number of `entries`.
    """

    status: str
    listeners: int = 0
    last: EventId = BEGINNING
    entries: int = 0

    @classmethod
    def of(cls, reply: Any) -> Appended:
        """Returns the result that a reply of `append.lua` means. Raises OddReply."""
        if isinstance(reply, int):
            return cls("applied", reply)
        with reading("an append", reply):
            return cls(reply[0].decode(), 0, EventId.of(reply[1]), int(reply[2]))


class AppendHead(NamedTuple):
    """What all appends to one log have in common: its key, and the first five of the script call's nine arguments, packed (RESP2).

    To pack them once spares a worker half of the cost of a command.
    """

    key: bytes
    packed: bytes


class EventLog:
    """All logs, over one connection.

    With `replicated` (`shared.replicas`) the first entry of a log, its end and its deletion are written over that, and published
    when replicas have them. `has_begun` is read over it, and each new end that a read has found.
    """

    APPEND, APPEND_LAST = Script("append"), Script("append", when_full=True)
    END, DELETE = Script("end", when_full=True), Script("delete", when_full=True)
    NEWEST = Script("newest")
    SCRIPTS = (APPEND.source, APPEND_LAST.source, END.source, DELETE.source, NEWEST.source)

    def __init__(
        self,
        commands: Commands,
        *,
        log_ttl_seconds: int,
        ended_ttl_seconds: int,
        tombstone_ttl_seconds: int,
        replicated: Executes | None = None,
        on_ended: Callable[[str], None] = lambda stream_id: None,
    ) -> None:
        """`on_ended` is called with each stream that `end` has ended."""
        self._commands = commands
        self._replicated = replicated
        self.on_ended = on_ended
        self.log_ttl_seconds = log_ttl_seconds
        self.ended_ttl_seconds = ended_ttl_seconds
        self._tombstone_ttl_seconds = tombstone_ttl_seconds
        self._new_ends = NewEnds(replicated)
        self._waiting: set[asyncio.Task[None]] = set()
        """Reads by callbacks that wait until replicas have an end."""

    async def append(
        self, stream_id: str, held: int, entry: Entry, ttl_seconds: int | None = None, beside: Beside | None = None
    ) -> Appended:
        """Appends and publishes `entry` to a log that holds `held` entries. Atomic; may be repeated after a lost reply.

        With `ttl_seconds` the log expires so long from now: given with a log's first entry and with the last. `beside`:
        the large fields of the request, with the first. With the last they are deleted, unless they are to be kept.
        """
        arguments: list[bytes | str | int] = [held, *_arguments(entry)]
        keys = [log_key(stream_id)]
        if ttl_seconds is not None:
            arguments.append(ttl_seconds)
        if beside is not None:
            keys.append(beside.key(stream_id))
            arguments += [part for field in beside.fields.items() for part in field]
        elif entry.field in TERMINAL and ttl_seconds is not None:
            keys += _beside_keys(stream_id)
        script = self.APPEND_LAST if entry.field in TERMINAL else self.APPEND
        if self._replicated is None or ttl_seconds is None:
            return Appended.of(await script.run(self._commands, keys, live_channel(stream_id), *arguments))
        appended = Appended.of(await script.run(self._replicated, keys, b"", *arguments))
        if appended.status in ("applied", "duplicate"):
            await self._publish(stream_id, entry)
        if appended.status == "applied" and entry.field in TERMINAL:
            self._new_ends.note(stream_id, bytes(entry.id))
        return appended

    async def _publish(self, stream_id: str, entry: Entry) -> None:
        await self._commands.execute("SPUBLISH", live_channel(stream_id), b" ".join(_arguments(entry)))

    async def probe(self, stream_id: str, held: int, last: EventId) -> Appended:
        """Returns whether the log still holds `held` entries up to `last`, and how many listeners it has. Writes nothing."""
        channel = live_channel(stream_id)
        return Appended.of(await self.APPEND.run(self._commands, [log_key(stream_id)], channel, held, bytes(last)))

    def append_head(self, stream_id: str) -> AppendHead:
        """Returns what `send_append` needs for each append to one log."""
        key = log_key(stream_id)
        first_arguments = pack(("EVALSHA", self.APPEND.digest, 1, key, live_channel(stream_id)))
        return AppendHead(key, first_arguments.replace(b"*5\r\n", b"*9\r\n", 1))

    def send_append(
        self,
        head: AppendHead,
        held: int,
        attempt: int,
        offset: int,
        field: bytes,
        value: bytes,
        on_reply: Callable[[Any], None],
    ) -> None:
        """Appends like `append` without a task or a future. `on_reply` gets the bare reply (for `Appended.of`) or the error.

        The error may be a redirect of a cluster, too: `append` follows it.
        """
        entry_id, number = b"%d-%d" % (attempt, offset), b"%d" % held
        command = b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            *(head.packed, len(number), number, len(entry_id), entry_id),
            *(len(field), field, len(value), value),
        )
        self._commands.send_packed(command, head.key, on_reply)

    async def read(self, stream_id: str, after: EventId = BEGINNING, count: int = READ_ENTRIES_MAX) -> list[Entry]:
        """Reads at most `count` entries after an id. An entry of several tokens is given whole, also if the id lies within."""
        or_else = _NO_LOG if after < FIRST_ID else []
        raw = await self._read(*_xrange(stream_id, after, count), or_else=or_else)
        await self._new_ends.until_at_replicas(stream_id, raw)
        return entries_of(raw)

    def send_read(
        self, stream_id: str, after: EventId, count: int, on_read: OnRead, *, inclusive: bool = False
    ) -> None:
        """Has at most `count` entries after an id read; with `inclusive` also the entry that has the id."""
        or_else = _NO_LOG if after < FIRST_ID else []
        command = _xrange(stream_id, after, count, inclusive=inclusive)
        self._commands.send(command, lambda reply: self._hand_on(stream_id, _read_of(reply, or_else), on_read))

    async def read_between(self, stream_id: str, first: EventId, last: EventId) -> list[Entry]:
        """Reads the entries with ids from `first` to `last`, both included."""
        return entries_of(await self._read("XRANGE", log_key(stream_id), bytes(first), bytes(last)))

    async def read_page(self, stream_id: str, first: EventId, last: EventId) -> tuple[list[RawEntry], bool]:
        """Reads the entries from `first` to `last`, both included, as Redis sent them, and whether there are any behind them.

        In one round trip.
        """
        newest_read: asyncio.Future[list[RawEntry] | Exception] = asyncio.get_running_loop().create_future()
        self.send_newest(stream_id, 1, partial(_hand_over, newest_read))
        or_else = _NO_LOG if first <= FIRST_ID <= last else []
        raw: list[RawEntry] = await self._read("XRANGE", log_key(stream_id), bytes(first), bytes(last), or_else=or_else)
        await self._new_ends.until_at_replicas(stream_id, raw)
        newest = await newest_read  # answered first, unless it was sent on in a cluster
        goes_on = False
        if isinstance(newest, list) and newest:
            with contextlib.suppress(OddReply):
                goes_on = entries_of(newest)[-1].id > last
        return raw, goes_on

    async def read_all(self, stream_id: str) -> list[Entry]:
        """Reads the whole log, in reads of bounded size. Unless it has ended, its request is complete, with large fields."""
        entries: list[Entry] = []
        while True:
            more = await self.read(stream_id, entries[-1].id if entries else BEGINNING)
            entries += more
            if len(more) >= READ_ENTRIES_MAX:
                continue
            if not entries or entries[-1].field in TERMINAL:
                return entries
            first = await self.with_large_fields(stream_id, entries[0])
            if first.field != UNREADABLE or (await self.newest(stream_id))[-1:] == entries[-1:]:
                return [first, *entries[1:]]
            # The large fields are gone since the log has been read: most probably it has ended meanwhile.

    async def with_large_fields(self, stream_id: str, accepted: Entry) -> Entry:
        """Returns the first entry of a log with the large fields of its request, which lie beside the log.

        An entry that cannot be read if they are gone.
        """
        place = place_in(accepted.value) if accepted.field == ACCEPTED else ""
        if not place:
            return accepted
        flat = await self._read("HGETALL", key_of(stream_id, place))
        value = joined(accepted.value, dict(zip(flat[::2], flat[1::2], strict=False)))
        return Entry(accepted.id, UNREADABLE, b"") if value is None else accepted._replace(value=value)

    async def newest(self, stream_id: str, count: int = 1) -> list[Entry]:
        """Reads the newest entries, at most `count`, oldest first."""
        raw = (await self._read(*_xrevrange(stream_id, count), or_else=_NO_LOG))[::-1]
        await self._new_ends.until_at_replicas(stream_id, raw)
        return entries_of(raw)

    async def has_begun(self, stream_id: str) -> bool:
        """Returns whether a log has an entry; with `replicated` one that replicas have, too, so that others may be told of the stream."""
        return bool(await self._read(*_xrevrange(stream_id, 1), or_else=_NO_LOG, over=self._replicated))

    def send_newest(self, stream_id: str, count: int, on_read: OnRead) -> None:
        """Has the newest entries read, at most `count`, oldest first."""

        def on_reply(reply: Any) -> None:
            read = _read_of(reply, _NO_LOG)
            self._hand_on(stream_id, read if isinstance(read, Exception) else read[::-1], on_read)

        self._commands.send(_xrevrange(stream_id, count), on_reply)

    @property
    def is_one_server(self) -> bool:
        """Whether one server has all logs. Not in a cluster."""
        return self._commands.is_one_server

    def send_newest_ids(
        self, stream_ids: Sequence[str], on_read: Callable[[list[EventId | None] | Exception], None]
    ) -> None:
        """Has the ids of the newest entries of logs read: None where there is no log. In a cluster it takes one log at a time."""

        def on_reply(reply: Any) -> None:
            if isinstance(reply, Exception):
                on_read(reply)
                return
            try:
                ids = [EventId.of(raw) if raw != b"" else None for raw in reply]
            except ODD_SHAPES:
                ids = []
            on_read(ids if len(ids) == len(stream_ids) else _odd(reply))

        self.NEWEST.send(self._commands, [log_key(stream_id) for stream_id in stream_ids], on_reply=on_reply)

    def _hand_on(self, stream_id: str, read: list[RawEntry] | Exception, on_read: OnRead) -> None:
        """Calls `on_read`: at once, unless the entries have an end that replicas may lack."""
        if isinstance(read, Exception) or self._new_ends.doubtful(stream_id, read) is None:
            on_read(read)
            return
        task = asyncio.get_running_loop().create_task(self._hand_on_later(stream_id, read, on_read))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _hand_on_later(self, stream_id: str, read: list[RawEntry], on_read: OnRead) -> None:
        try:
            await self._new_ends.until_at_replicas(stream_id, read)
        except (Disconnected, RedisRefused) as error:
            on_read(error)
        else:
            on_read(read)

    async def end(
        self,
        stream_id: str,
        field: bytes,
        value: bytes,
        *,
        only_after: EventId | None = None,
        also_written: bool = False,
    ) -> bool | None:
        """Ends a stream that has not ended: true if this did it, false if it had ended, None if there is no log.

        With `only_after`, only if that is still the last id, since whoever wrote meanwhile is alive, and, unless
        `also_written`, only if a worker writes it: another program may be silent for as long as it likes. A key that is no stream counts
        as ended: nothing can be appended to it.
        """
        condition = () if only_after is None else (bytes(only_after),)
        keys, channel = [log_key(stream_id), *_beside_keys(stream_id)], live_channel(stream_id)
        if only_after is not None and not also_written:
            keys.append(writer_key(stream_id))
        try:
            if self._replicated is not None:
                channel = b""
            commands = self._replicated or self._commands
            reply = await self.END.run(commands, keys, channel, field, value, self.ended_ttl_seconds, *condition)
        except RedisRefused as error:
            if not _is_no_stream(error):
                raise
            return False
        if reply is None:
            return None
        with reading("the end of a stream", reply):
            done, *ids = reply
            end_id = EventId.of(ids[0]) if done else None
        if end_id is None:
            return False
        if self._replicated is not None:
            with contextlib.suppress(Disconnected):  # it has ended all the same; gateways see it at their next look
                await self._publish(stream_id, Entry(end_id, field, value))
        self._new_ends.note(stream_id, bytes(end_id))
        self.on_ended(stream_id)
        return True

    async def delete(self, stream_id: str, principal: str | None = None) -> bool:
        """Deletes a stream; a tombstone keeps its id from being written again, and whose it was. False if there was none."""
        keys = [log_key(stream_id), deliveries_key(stream_id), *_beside_keys(stream_id), writer_key(stream_id)]
        keys.append(webhook_key(stream_id))  # it may have the answer's text
        value = b"" if principal is None else orjson.dumps({"principal": principal})
        commands = self._replicated or self._commands
        return bool(await self.DELETE.run(commands, keys, self._tombstone_ttl_seconds, value))

    async def _read(
        self, *command: bytes | str | int, or_else: list[Any] | None = None, over: Executes | None = None
    ) -> list[Any]:
        """Returns what Redis replies; `or_else`, or nothing, if the key is no stream. Raises Disconnected, RedisRefused."""
        try:
            read = _read_of(await (over or self._commands).execute(*command), or_else or [])
        except RedisRefused as error:
            read = _read_of(error, or_else or [])
        if isinstance(read, Exception):
            raise read
        return read


def _hand_over(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _beside_keys(stream_id: str) -> tuple[bytes, bytes]:
    return key_of(stream_id, UNTIL_THE_END), key_of(stream_id, KEPT)


def _is_no_stream(reply: Any) -> bool:
    return isinstance(reply, RedisRefused) and reply.code == "WRONGTYPE"


def _xrange(stream_id: str, after: EventId, count: int, *, inclusive: bool = False) -> tuple[bytes | str | int, ...]:
    first = b"-" if after <= BEGINNING else bytes(after) if inclusive else b"(%b" % bytes(after)
    return "XRANGE", log_key(stream_id), first, "+", "COUNT", count


def _xrevrange(stream_id: str, count: int) -> tuple[bytes | str | int, ...]:
    return "XREVRANGE", log_key(stream_id), "+", "-", "COUNT", count


def _arguments(entry: Entry) -> tuple[bytes, bytes, bytes]:
    return b"%d-%d" % entry.id, entry.field, entry.value


def entries_of(reply: Any) -> list[Entry]:
    """Returns the entries that Redis sent. Raises OddReply."""
    try:
        return [entry_of(entry_id, fields) for entry_id, fields in reply]
    except ODD_SHAPES:
        raise _odd(reply) from None


def _read_of(reply: Any, or_else: list[Any]) -> list[Any] | Exception:
    """Returns the entries of a reply, `or_else` if the key is no stream, or the error."""
    if isinstance(reply, list):
        return reply
    if _is_no_stream(reply):
        return or_else
    return reply if isinstance(reply, Exception) else _odd(reply)


def _odd(reply: Any) -> OddReply:
    return odd_reply("a read of a log's entries", reply)
