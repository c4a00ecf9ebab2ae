"""The log of a written stream: one that a program outside of Midstream fills with messages of its own, over HTTP.

A written stream is a log whose attempt is always 1 and whose increments are messages: bytes that pass unchanged. Beside the
log lies a hash, `writer`, with what the next append is compared with: the media type, the newest `Stream-Seq`, and for each
idempotent producer its epoch and sequence number. A script appends, so that both change in one step (`append_written.lua`).

Its name is a path that its owner chose. A name points to a stream's id (`Names`); made anew, it points to another id, since a
deleted id is never written again. What one owner holds at a time is counted (`Holdings`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from shared import events
from shared.commands import Commands, Script, ignore
from shared.errors import Unreadable
from shared.events import Accepted, Policies, Webhook
from shared.ids import EventId, created_at
from shared.keys import held_bytes_key, held_until_key, live_channel, log_key, name_key, writer_key
from shared.odd_replies import reading
from shared.outcomes import CancelReason, FailureCode

API = "durable"
"""The value of `facade.api` in the `accepted` of a written stream."""
_NAME_EXTRA_MS = 60_000
"""So much longer than it must a name lives, should a gateway renew it late."""
PRODUCERS_MAX = 1000
"""Idempotent producers of one stream: 60 KB of Redis. A program that restarts keeps its name and raises its epoch."""


class Messages(NamedTuple):
    """Messages of one append: the field and the value of their entry, and how many they are."""

    field: bytes
    value: bytes
    number: int


NO_MESSAGES = Messages(b"", b"", 0)


@dataclass(frozen=True, slots=True)
class WrittenStream:
    """What a written stream was created with."""

    stream_id: str
    owner: str
    """The principal that created it."""
    content_type: str
    """As it was given; `media_type` is what appends are compared with."""
    ttl_seconds: int | None
    """How long it lives after each write and read, if its creator said so."""
    expires_at: str | None
    """When it expires, if its creator said so: RFC 3339, as it was given."""
    life_ms: int
    """How long it lives after each write and read; 0 if `expires_at` counts."""
    name_digest: str = ""
    """Its owner and name, hashed (`shared.keys.name_digest`), by which the archive finds it."""
    webhook: Webhook | None = None
    """Who is told when it is closed."""

    @property
    def has_own_life(self) -> bool:
        """Whether its creator said when it expires. Then that holds for what is archived, too."""
        return self.ttl_seconds is not None or self.expires_at is not None

    def expires_after(self, used_at: float) -> float | None:
        """Returns when it expires, as Unix seconds, if it was written or read last at that time; None if nobody said."""
        if self.expires_at is not None:
            return datetime.fromisoformat(self.expires_at).timestamp()
        return None if self.ttl_seconds is None else used_at + self.ttl_seconds

    @property
    def media_type(self) -> str:
        return media_type_of(self.content_type)

    @property
    def is_json(self) -> bool:
        return self.media_type == "application/json"

    def accepted(self, request_id: str, traceparent: str) -> bytes:
        """Returns the value of the log's `accepted`."""
        facade = {
            "api": API,
            "content_type": self.content_type,
            "ttl": self.ttl_seconds,
            "expires_at": self.expires_at,
            "life_ms": self.life_ms,
            "name": self.name_digest,
        }
        policies = Policies(cancel_after_seconds=None, on_interrupt="fail", webhook=self.webhook)
        return Accepted(
            {}, policies, created_at(self.stream_id), self.owner, {}, facade, request_id, traceparent
        ).stored()

    @classmethod
    def of(cls, stream_id: str, accepted: Accepted) -> WrittenStream | None:
        """Returns the written stream that begins with this `accepted`; None if a worker writes it. Raises Unreadable."""
        facade = accepted.facade
        if facade.get("api") != API:
            return None
        content_type, life_ms = facade.get("content_type"), facade.get("life_ms")
        ttl, expires_at = facade.get("ttl"), facade.get("expires_at")
        name_digest = facade.get("name", "")
        if not (
            isinstance(content_type, str)
            and type(life_ms) is int
            and (ttl is None or type(ttl) is int)
            and (expires_at is None or _is_time(expires_at))
            and isinstance(name_digest, str)
        ):
            raise Unreadable("the `facade` of a written stream is not as it must be")
        webhook = accepted.policies.webhook
        return cls(stream_id, accepted.principal, content_type, ttl, expires_at, life_ms, name_digest, webhook)


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Producer:
    """The sender of an append that may be repeated: its name, its epoch, and the append's number in that epoch."""

    name: str
    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Append:
    """What is to be appended: messages, the end of the stream, or both."""

    messages: Messages = NO_MESSAGES
    media_type: str = ""
    """Must be the stream's, unless empty."""
    stream_seq: str = ""
    """Must be above the newest one (byte by byte), unless empty."""
    producer: Producer | None = None
    end: tuple[bytes, bytes] | None = None
    """Field and value of the terminal entry."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that one written stream may have."""

    bytes_max: int
    messages_max: int


class AppendReply(NamedTuple):
    """How an append went (`append_written.lua`): its status, the id of the stream's newest message, and what else there is to say."""

    status: str
    tail: EventId
    details: Sequence[Any] = ()

    def text(self, index: int = 0) -> str:
        """Returns one of the details as a text."""
        detail: bytes = self.details[index]
        return detail.decode()


class WrittenLog:
    """The logs of all written streams, over one connection. Methods raise Disconnected, RedisRefused, LogFull."""

    CREATE, APPEND = Script("create_written"), Script("append_written")
    SCRIPTS = (CREATE.source, APPEND.source)

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def create(
        self,
        stream: WrittenStream,
        messages: Messages,
        end: tuple[bytes, bytes] | None,
        *,
        expires_at_ms: int = 0,
        request_id: str = "",
        traceparent: str = "",
    ) -> None:
        """Begins the log of a new stream. May be repeated."""
        started = orjson.dumps({"attempt": 1, "model": None, "worker": "", "time": time.time()})
        keys = [log_key(stream.stream_id), writer_key(stream.stream_id)]
        arguments: list[bytes | str | int] = [
            stream.accepted(request_id, traceparent),
            started,
            stream.media_type,
            stream.life_ms,
            expires_at_ms,
            *messages,
            *(end or ()),
        ]
        await self.CREATE.run(self._commands, keys, *arguments)

    async def append(self, stream_id: str, append: Append, bounds: Bounds) -> AppendReply | None:
        """Appends to a stream. None if there is no such log, or if it was deleted."""
        keys = [log_key(stream_id), live_channel(stream_id), writer_key(stream_id)]
        producer = append.producer
        who: tuple[str, int, int] = ("", 0, 0) if producer is None else dataclasses.astuple(producer)
        bound = (bounds.bytes_max, bounds.messages_max, PRODUCERS_MAX)
        reply = await self.APPEND.run(
            self._commands,
            keys,
            *append.messages,
            append.media_type,
            append.stream_seq,
            *who,
            *bound,
            *(append.end or ()),
        )
        if reply is None:
            return None
        with reading("an append", reply):
            status, tail, *details = [*reply, b"0-0"] if len(reply) == 1 else reply
            return AppendReply(status.decode(), EventId.of(tail), details)

    def renew(self, stream: WrittenStream) -> None:
        """Has a stream live on for as long as it lives after a read. Errors are passed over: the next read renews it."""
        if stream.life_ms:
            for key in (log_key(stream.stream_id), writer_key(stream.stream_id)):
                self._commands.send(("PEXPIRE", key, stream.life_ms), ignore)


class Names:
    """The names of written streams, which point to ids."""

    NAME = Script("name")
    SCRIPTS = (NAME.source,)

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def find(self, owner: str, name: str) -> str:
        """Returns the id of the stream that a name of this owner points to; empty if it points to none."""
        reply = await self._commands.execute("GET", name_key(owner, name))
        with reading("GET", reply):
            return (reply or b"").decode()

    async def point(self, owner: str, name: str, *, before: str, after: str, life_ms: int) -> str:
        """Lets a name that points to `before` point to `after` (empty: to none). Returns where it points to now."""
        reply = await self.NAME.run(self._commands, [name_key(owner, name)], before, after, _name_ms(life_ms))
        with reading("the script name", reply):
            return reply.decode()  # type: ignore[no-any-return]

    def renew(self, owner: str, name: str, life_ms: int) -> None:
        """Has a name live on for longer than its stream will, if that is read in time. Errors are passed over."""
        self._commands.send(("PEXPIRE", name_key(owner, name), _name_ms(life_ms)), ignore)


class Held(NamedTuple):
    """What one owner holds: whether there was room for one more stream, how many there are, and their bytes."""

    has_room: bool
    streams: int
    bytes: int


class Holdings:
    """Counts what each owner's written streams hold."""

    HOLD = Script("holdings")
    SCRIPTS = (HOLD.source,)

    def __init__(self, commands: Commands, *, streams_max: int, life_ms_max: int) -> None:
        self._commands = commands
        self._streams_max = streams_max
        self._life_ms_max = life_ms_max

    async def note(self, owner: str, stream_id: str, *, life_ms: int, size_bytes: int) -> Held:
        """Notes a stream's bytes, and how long it lives from now on; 0: it is gone."""
        keys = [held_until_key(owner), held_bytes_key(owner)]
        reply = await self.HOLD.run(
            self._commands, keys, stream_id, life_ms, size_bytes, self._streams_max, self._life_ms_max + _NAME_EXTRA_MS
        )
        with reading("the script holdings", reply):
            noted, streams, size_bytes = map(int, reply)
            return Held(noted == 1, streams, size_bytes)


def media_type_of(content_type: str) -> str:
    """Returns a content type without its parameters, in lower case (RFC 9110, section 8.3.1)."""
    return content_type.partition(";")[0].strip().lower()


def ended_as(outcome: str) -> tuple[bytes, bytes]:
    """Returns the field and the value of the terminal entry with which a writer ends its stream."""
    now = time.time()
    if outcome == "failed":
        failure = {
            "code": FailureCode.GENERATOR_ERROR,
            "message": "the program that writes it says that it has failed",
            "retryable": False,
        }
        return events.FAILED, orjson.dumps({**failure, "time": now})
    if outcome == "cancelled":
        return events.CANCELLED, orjson.dumps({"by": CancelReason.WRITER, "time": now})
    return events.DONE, orjson.dumps({"finish_reason": None, "usage": None, "time": now})


def _name_ms(life_ms: int) -> int:
    # A gateway renews a name when half of the stream's life has passed since it did so last: so it outlives the stream.
    return 2 * life_ms + _NAME_EXTRA_MS
