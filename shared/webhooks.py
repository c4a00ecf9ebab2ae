"""Webhooks: one signed POST when a stream has ended (Standard Webhooks 1.0.0).

    created, in the list ──► ended ──► sent by the worker that ended it ──► 2xx: removed
                               │                    │ it failed: its body is stored, and tried again for a day
                               │                    ▼
                               └─ that worker died ─► a look by any worker (`shared.due_list`) ──► ... ──► dead: kept for a week

The `webhook-id` is the stream's id: each try has the same, so whoever receives it can tell duplicates. A process that sends has claimed
the webhook (`WebhookStore.claim`), so that two that look at the same time do not both send it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from shared.commands import Commands, Executes, ignore
from shared.due_list import LOOK_SECONDS, DueList
from shared.errors import Unusable
from shared.ids import is_stream_id
from shared.keys import (
    WEBHOOKS_DEAD,
    WEBHOOKS_DUE,
    WEBHOOKS_GONE,
    WEBHOOKS_WAITING,
    webhook_claim_key,
    webhook_key,
)
from shared.odd_replies import reading
from shared.receipt import EndedLog
from shared.webhook_target import target_of

SOON_SECONDS = 2.0
"""When a stream is looked at that a gateway has ended: its readers' last notes have come by then."""
TEXT_BYTES_MAX = 64 << 10
"""Of an answer's text in a webhook: some 10,000 words. Receivers take some hundred kilobytes, and the standard asks for little."""
_CONNECTIONS_MAX = 20
"""The newest connections of the receipt that a webhook lists: 4 KB. `GET /v1/streams/{id}/receipt` has all."""
WAITING_MAX = 100_000
"""Webhooks that have failed and are tried again. What fails beyond that is given up at once: a receiver that is away for a day
must not fill Redis. 2 KB each without a text."""
DEAD_MAX, DEAD_SECONDS = 1_000, 7 * 86_400
"""Webhooks that were given up and are kept, the newest: 64 MB with the longest texts."""
_GONE_SECONDS, _GONE_MAX = 86_400, 10_000
"""How long nothing is sent to an address that has answered 410, and how many such addresses are remembered: 1 MB."""
_STORED_SECONDS = 90_000
"""How long a webhook that has failed is stored: a day of tries, and an hour."""
_SECRET_PREFIX = "whsec_"  # noqa: S105
_SECRETS_MAX = 2
_SECRET_BYTES_LEAST, _SECRET_BYTES_MOST = 24, 64
"""Standard Webhooks, section "Signature scheme"."""
_ERROR_CHARACTERS_MAX = 200
"""Of what came of a try, in Redis and in lists."""


class Secrets:
    """The secrets that sign: the first, and while it is replaced the one before it. Nothing shows them."""

    __slots__ = ("_keys",)

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def of(cls, setting: str) -> Secrets:
        """Returns the secrets of MIDSTREAM_WEBHOOK_SECRETS. Raises Unusable, which shows none of them."""
        texts = [text.strip() for text in setting.split(",") if text.strip()]
        if len(texts) > _SECRETS_MAX:
            raise Unusable(
                f"MIDSTREAM_WEBHOOK_SECRETS has {len(texts)} secrets: a new one and the one before are the most"
            )
        keys = []
        for text in texts:
            try:
                key = base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
            except (binascii.Error, ValueError):
                key = b""
            if not text.startswith(_SECRET_PREFIX) or not _SECRET_BYTES_LEAST <= len(key) <= _SECRET_BYTES_MOST:
                raise Unusable(
                    f"MIDSTREAM_WEBHOOK_SECRETS: each is {_SECRET_PREFIX} and {_SECRET_BYTES_LEAST} to {_SECRET_BYTES_MOST} bytes in "
                    "base64, as `midstream webhooks secret --new` prints one"
                )
            keys.append(key)
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def for_principal(self, name: str) -> Secrets:
        """Returns the secrets of one principal, made from these: whoever has them cannot sign for another, nor find these."""
        return Secrets(
            [hmac.digest(key, b"midstream webhook secret of\0" + name.encode(), "sha256") for key in self._keys]
        )

    def texts(self) -> list[str]:
        """Returns the secrets as a receiver configures them."""
        return [_SECRET_PREFIX + base64.b64encode(key).decode() for key in self._keys]

    def headers(self, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """Returns the three headers of one try: each secret has signed it."""
        content = f"{webhook_id}.{timestamp}.".encode() + body
        signatures = [base64.b64encode(hmac.digest(key, content, "sha256")).decode() for key in self._keys]
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
        }

    def __repr__(self) -> str:
        return f"Secrets({len(self._keys)})"

    __str__ = __repr__


def new_secret(random: bytes) -> str:
    """Returns a secret of these random bytes, as MIDSTREAM_WEBHOOK_SECRETS takes it."""
    return _SECRET_PREFIX + base64.b64encode(random).decode()


def body_of(ended: EndedLog, *, with_text: bool) -> bytes:
    """Returns the body of the webhook that tells of a stream's end (docs/reference/http.md)."""
    history, receipt = ended.generated.history, ended.receipt
    state = history.state(ended.stream_id)
    text = state.pop("text")
    connections = receipt["delivered"]["connections"]
    data = {
        **state,
        "owner": history.accepted.principal if history.accepted else None,
        "usage": receipt["generated"]["usage"],
        "receipt": {
            "generated": {"tokens": receipt["generated"]["tokens"], "attempts": receipt["generated"]["attempts"]},
            "delivered": {
                "tokens": receipt["delivered"]["tokens"],
                "connections_count": len(connections),
                "connections": connections[-_CONNECTIONS_MAX:],
            },
            "undelivered_tokens": receipt["undelivered_tokens"],
        },
    }
    if with_text:
        encoded = text.encode()
        data["text"] = encoded[:TEXT_BYTES_MAX].decode(errors="ignore") if len(encoded) > TEXT_BYTES_MAX else text
        data["text_cut"] = len(encoded) > TEXT_BYTES_MAX
    at = datetime.fromtimestamp(history.ended_at or time.time(), UTC)
    return orjson.dumps(
        {"type": f"stream.{history.status}", "timestamp": at.isoformat().replace("+00:00", "Z"), "data": data}
    )


@dataclass(frozen=True, slots=True)
class Pending:
    """A webhook that is to be sent now, for the first time or again."""

    stream_id: str
    url: str
    signer: str
    """The principal whose secret signs it; empty for the secrets of the settings themselves."""
    body: bytes
    tries: int = 0
    first_at: float = 0.0
    """When it was tried for the first time (Unix seconds); 0 if it was not."""
    error: str = ""
    """What came of the last try."""
    dead_at: float = 0.0
    """When it was given up; 0 if it is still tried."""

    @property
    def host(self) -> str:
        """Where it goes, as it may be shown: without the path and the query, which may have a secret."""
        return target_of(self.url).authority

    def stored(self) -> list[bytes | str | int | float]:
        """Returns the fields and values of its hash in Redis."""
        return [
            *("url", self.url, "signer", self.signer, "body", self.body, "tries", self.tries),
            *("first_at", self.first_at, "error", self.error[:_ERROR_CHARACTERS_MAX], "dead_at", self.dead_at),
        ]

    @classmethod
    def load(cls, stream_id: str, stored: Mapping[bytes, bytes]) -> Pending | None:
        """Returns what `stored` has written; None for anything else."""
        try:
            return cls(
                stream_id,
                stored[b"url"].decode(),
                stored[b"signer"].decode(),
                stored[b"body"],
                int(stored[b"tries"]),
                float(stored[b"first_at"]),
                stored[b"error"].decode(),
                float(stored[b"dead_at"]),
            )
        except (LookupError, ValueError):
            return None


class WebhookStore:
    """What Redis has of webhooks. The methods raise Disconnected and RedisRefused."""

    SCRIPTS = DueList.SCRIPTS

    def __init__(self, commands: Commands, *, log_ttl_seconds: int, replicated: Executes | None = None) -> None:
        """With `replicated` a stream counts as entered, and a webhook that has failed as stored, when replicas have it."""
        self._commands = commands
        self._replicated = replicated or commands
        ttl_seconds = max(log_ttl_seconds, _STORED_SECONDS)
        self.due = DueList(commands, WEBHOOKS_DUE, ttl_seconds=ttl_seconds, replicated=replicated)

    async def enter(self, stream_id: str) -> None:
        """Enters a stream of whose end somebody is to be told, before its log begins. May be repeated."""
        await self.due.enter(stream_id, LOOK_SECONDS)

    def send_soon(self, stream_id: str) -> None:
        """Has a stream that a gateway has ended looked at soon, if anybody is to be told of it."""
        self.due.send_look(stream_id, SOON_SECONDS, "XX")

    def send_enter(self, stream_id: str) -> None:
        """Enters a stream that has ended and is left to the list, unless it is there."""
        self.due.send_look(stream_id, SOON_SECONDS, "NX")

    async def claim(self, stream_id: str, seconds: float) -> bool:
        """Returns whether this process may send the webhook now: no other does in this time."""
        key, milliseconds = webhook_claim_key(stream_id), int(seconds * 1000)
        return await self._commands.execute("SET", key, "", "NX", "PX", milliseconds) is not None

    async def pending(self, stream_id: str) -> Pending | None:
        """Returns a webhook that has failed before; None if it has not."""
        flat = await self._commands.execute("HGETALL", webhook_key(stream_id))
        with reading("HGETALL", flat):
            return Pending.load(stream_id, dict(zip(flat[::2], flat[1::2], strict=False)))

    async def delivered(self, pending: Pending) -> None:
        """Notes that a webhook has arrived. The claim stays until it expires, for a process that is late with the same."""
        if pending.tries:
            self._send("EXPIRE", webhook_key(pending.stream_id), 0)
            self._send("ZREM", WEBHOOKS_WAITING, pending.stream_id)
        await self.due.remove([pending.stream_id])

    async def again(self, pending: Pending, in_seconds: float) -> None:
        """Stores a webhook that has failed, to be tried again."""
        key, first_ms = webhook_key(pending.stream_id), int(pending.first_at * 1000)
        await self._replicated.execute("HSET", key, *pending.stored())
        self._send("EXPIRE", key, _STORED_SECONDS)
        self._send("ZADD", WEBHOOKS_WAITING, first_ms, pending.stream_id)
        self._send("EXPIRE", WEBHOOKS_WAITING, _STORED_SECONDS)
        self._send("EXPIRE", webhook_claim_key(pending.stream_id), 0)
        self.due.send_look(pending.stream_id, in_seconds)

    async def dead(self, pending: Pending) -> None:
        """Gives a webhook up, and keeps it among the newest that were. May be repeated."""
        key, now_ms = webhook_key(pending.stream_id), int(pending.dead_at * 1000)
        await self._replicated.execute("HSET", key, *pending.stored())
        await self._commands.execute("EXPIRE", key, DEAD_SECONDS)
        await self._commands.execute("ZADD", WEBHOOKS_DEAD, now_ms, pending.stream_id)
        self._send("EXPIRE", WEBHOOKS_DEAD, DEAD_SECONDS)
        self._send("ZREM", WEBHOOKS_WAITING, pending.stream_id)
        self._send("EXPIRE", webhook_claim_key(pending.stream_id), 0)
        await self.due.remove([pending.stream_id])
        await self._forget_dead(int((time.time() - DEAD_SECONDS) * 1000))

    async def _forget_dead(self, before_ms: int) -> None:
        """Removes those that are too old, and the oldest where there are too many, with their bodies."""
        old = await self._commands.execute("ZRANGEBYSCORE", WEBHOOKS_DEAD, "-inf", before_ms, "LIMIT", 0, 100)
        count = await self._commands.execute("ZCARD", WEBHOOKS_DEAD)
        if isinstance(count, int) and count > DEAD_MAX:
            last = min(count - DEAD_MAX, 100)
            old += await self._commands.execute("ZRANGEBYSCORE", WEBHOOKS_DEAD, "-inf", "+inf", "LIMIT", 0, last)
        for member in old:
            stream_id = member.decode(errors="replace")
            if is_stream_id(stream_id):
                self._send("EXPIRE", webhook_key(stream_id), 0)
            self._send("ZREM", WEBHOOKS_DEAD, member)

    async def is_gone(self, url: str) -> bool:
        """Returns whether this address has answered 410 not long ago."""
        until = await self._commands.execute("ZSCORE", WEBHOOKS_GONE, _name(url))
        with reading("ZSCORE", until):
            return until is not None and float(until) > time.time() * 1000

    async def gone(self, url: str) -> None:
        """Notes that an address has answered 410: for a day nothing is sent there."""
        count = await self._commands.execute("ZCARD", WEBHOOKS_GONE)
        if isinstance(count, int) and count < _GONE_MAX:
            await self._commands.execute("ZADD", WEBHOOKS_GONE, int((time.time() + _GONE_SECONDS) * 1000), _name(url))
            await self._commands.execute("EXPIRE", WEBHOOKS_GONE, _GONE_SECONDS)

    async def revive(self, pending: Pending) -> None:
        """Has a webhook that has failed, or was given up, tried now, and for another day; its address counts as there again."""
        self._send("ZREM", WEBHOOKS_GONE, _name(pending.url))
        self._send("ZREM", WEBHOOKS_DEAD, pending.stream_id)
        self._send("EXPIRE", webhook_claim_key(pending.stream_id), 0)
        fresh = Pending(pending.stream_id, pending.url, pending.signer, pending.body, 1, time.time(), pending.error)
        await self.again(fresh, 0.0)
        await self.due.count()  # all that was sent before has arrived

    async def listed(self, key: bytes, count: int) -> list[str]:
        """Returns the streams in WEBHOOKS_DEAD or WEBHOOKS_WAITING, the oldest first, at most `count`."""
        reply = await self._commands.execute("ZRANGEBYSCORE", key, "-inf", "+inf", "LIMIT", 0, count)
        with reading("ZRANGEBYSCORE", reply):
            members = [member.decode(errors="replace") for member in reply]
        return [member for member in members if is_stream_id(member)]

    async def counts(self) -> tuple[int, int]:
        """Returns how many webhooks have failed and are tried again, and how many were given up."""
        waiting = await self._commands.execute("ZCARD", WEBHOOKS_WAITING)
        dead = await self._commands.execute("ZCARD", WEBHOOKS_DEAD)
        with reading("ZCARD", (waiting, dead)):
            return int(waiting or 0), int(dead or 0)

    async def oldest_seconds(self) -> float:
        """Returns for how long the oldest webhook that has failed has been tried; 0 if there is none."""
        oldest = await self.listed(WEBHOOKS_WAITING, 1)
        score = await self._commands.execute("ZSCORE", WEBHOOKS_WAITING, oldest[0]) if oldest else None
        with reading("ZSCORE", score):
            return 0.0 if score is None else max(0.0, time.time() - float(score) / 1000)

    def _send(self, *command: Any) -> None:
        """Sends a command whose reply does not matter: what is lost is done at the next look."""
        self._commands.send(command, ignore)


def _name(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()
