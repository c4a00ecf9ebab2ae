"""What the archive's row says of a stream."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import orjson

from shared.archive.pieces import packed_entries, packed_fields
from shared.errors import Unreadable
from shared.events import Entry
from shared.ids import created_at
from shared.keys import deliveries_key, kept_key, log_key, writer_key
from shared.lifecycle import History
from shared.outcomes import ReaderOutcome, Status
from shared.receipt import EndedLog
from shared.written_log import API as WRITTEN_API
from shared.written_log import WrittenStream

_TOKENS_MAX = (1 << 53) - 1
"""What a provider may say that it has used: whole numbers up to here (docs/reference/log-format.md)."""

LISTED_STATUSES = (Status.QUEUED, Status.RUNNING, Status.COMPLETED, Status.FAILED, Status.CANCELLED)
"""What a list may be asked for."""

Row = dict[str, Any]
"""Values by column of `shared.archive.schema.streams`."""


@dataclass(frozen=True, slots=True)
class Record:
    """An ended stream as it is to be archived. `entries` and `beside` are packed, and not compressed yet."""

    stream_id: str
    columns: Row
    entries: bytes = b""
    beside: bytes = b""
    is_final: bool = True
    """Whether its receipt can be trusted to stay: all was delivered, or nobody can read it any more."""
    has_notes: bool = False

    @property
    def keys(self) -> list[bytes]:
        """The keys that the stream has in Redis."""
        keys = [log_key(self.stream_id)]
        if self.has_notes:
            keys.append(deliveries_key(self.stream_id))
        if self.beside:
            keys.append(hash_beside(self.stream_id, self.columns["api"]))
        return keys

    @property
    def size_bytes(self) -> int:
        return len(self.entries) + len(self.beside)


def record_of(
    stream_id: str,
    entries: list[Entry],
    history: History,
    receipt: dict[str, Any],
    *,
    notes: dict[bytes, bytes] | None = None,
    beside: dict[bytes, bytes] | None = None,
) -> Record:
    """Returns the record of a stream that has ended. `notes`: its delivery notes, as Redis has them. `beside`: the hash that its
    log needs (`hash_beside`)."""
    columns = _counted(stream_id, history) | {
        "finish_reason": plain_text(receipt["finish_reason"]),
        "delivered_tokens": receipt["delivered"]["tokens"],
        **_usage(receipt["generated"]["usage"]),
        "metadata": {plain_text(key): plain_text(value) for key, value in receipt["metadata"].items()},
        "receipt": orjson.dumps(receipt).decode(),
        "notes": orjson.dumps({name.decode(): note.decode() for name, note in (notes or {}).items()}).decode(),
        **_written(stream_id, history),
    }
    is_open = any(note["outcome"] in (None, ReaderOutcome.ERROR) for note in receipt["delivered"]["connections"])
    return Record(
        stream_id,
        columns,
        packed_entries(entries),
        packed_fields(beside) if beside else b"",
        is_final=not is_open and not receipt["undelivered_tokens"],
        has_notes=bool(notes),
    )


def tombstone_of(ended: EndedLog) -> Row:
    """Returns the row of a stream that is deleted: only what is counted."""
    history, receipt = ended.generated.history, ended.receipt
    usage = _usage(receipt["generated"]["usage"])
    counted = _counted(ended.stream_id, history) | {"delivered_tokens": receipt["delivered"]["tokens"], **usage}
    return {
        **counted,
        "finish_reason": plain_text(receipt["finish_reason"]),
        **_written(ended.stream_id, history),
        **ERASED,
    }


ERASED: Row = {
    "status": str(Status.DELETED),
    "error_code": None,
    "metadata": {},
    "receipt": None,
    "notes": None,
    "entries": None,
    "request": None,
    "stored_bytes": 0,
    "name_digest": None,
    "expires_at": None,
}
"""The columns that a deletion empties."""


def hash_beside(stream_id: str, api: str) -> bytes:
    """Returns the key of the hash that a log needs beside it: how its writer stands, or large fields of its request."""
    return writer_key(stream_id) if api == WRITTEN_API else kept_key(stream_id)


def _written(stream_id: str, history: History) -> Row:
    """Returns what is different of a written stream: its name, when it expires, if its creator said so, and that it has no tokens."""
    try:
        written = None if history.accepted is None else WrittenStream.of(stream_id, history.accepted)
    except Unreadable:  # readers get its `failed`
        written = None
    if written is None:
        return {"name_digest": None, "expires_at": None}
    expires_at = written.expires_after(history.ended_at or time.time())
    name_digest = written.name_digest or None
    return {"name_digest": name_digest, "expires_at": expires_at, "generated_tokens": 0, "delivered_tokens": 0}


def _counted(stream_id: str, history: History) -> Row:
    accepted, terminal = history.accepted, history.terminal or {}
    model = history.model or (accepted.request.get("model") if accepted else None)
    return {
        "id": stream_id,
        "kept_at": time.time(),
        "owner": plain_text(accepted.principal) if accepted else "",
        "status": str(history.status),
        "model": plain_text(model) if isinstance(model, str) else None,
        "api": plain_text((accepted.facade if accepted else {}).get("api") or "native")[:16],
        "error_code": plain_text(terminal.get("code")) if history.status == Status.FAILED else None,
        "created_at": accepted.created_at if accepted else created_at(stream_id),
        "started_at": history.started_at,
        "ended_at": history.ended_at,
        "attempts": history.attempt,
        "generated_tokens": len(history.items),
    }


def _usage(usage: Any) -> Row:
    counts = usage if isinstance(usage, dict) else {}
    return {name: _count(counts.get(name)) for name in ("prompt_tokens", "completion_tokens")}


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _TOKENS_MAX else None


def plain_text(value: Any) -> Any:
    """Returns a text without NUL, which PostgreSQL does not store."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value
