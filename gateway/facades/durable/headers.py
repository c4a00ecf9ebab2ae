"""What the headers and the query of a request say, checked. All raise Problem 400 with a sentence that says what is right."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from urllib.parse import parse_qsl

from gateway.http.connection import Scope
from gateway.http.problems import Problem
from shared.ids import ID_PART_MAX
from shared.written_log import Producer

TEXT_CHARACTERS_MAX = 255
"""Of a content type, a Stream-Seq, a producer's name: as of an Idempotency-Key."""
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+\s*(;.*)?", re.ASCII)
_WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)
_DIGITS = re.compile(r"[0-9]{1,16}", re.ASCII)
_OUTCOMES = ("done", "failed", "cancelled")
_PRODUCER_HEADERS = ("producer-id", "producer-epoch", "producer-seq")

Headers = Mapping[str, str]
Live = Literal["", "long-poll", "sse"]
Shape = Literal["", "ui", "ui-replay"]
"""What a generated answer's messages are: the objects that readers of lines get, or UI message parts (`face.UiFace`)."""


def headers_of(scope: Scope) -> Headers:
    """Returns the request's headers by their names in lower case; of several with one name the last."""
    return {name.decode("latin-1"): value.decode("latin-1").strip() for name, value in scope["headers"]}


@dataclass(frozen=True, slots=True)
class Life:
    """How long a stream lives, as its creator wants it: after each write and read, or to a time; or as long as this gateway says."""

    ttl_seconds: int | None
    expires_at: str | None
    expires_at_ms: int
    """The time in `expires_at` as Unix milliseconds; 0 without one."""


def life_of(headers: Headers, seconds_max: int) -> Life:
    """Returns what `Stream-TTL` or `Stream-Expires-At` says."""
    ttl, expires_at = headers.get("stream-ttl"), headers.get("stream-expires-at")
    if ttl is not None and expires_at is not None:
        raise Problem(400, "Stream-TTL and Stream-Expires-At exclude each other: send one of them")
    if ttl is not None:
        if not _WHOLE_NUMBER.fullmatch(ttl):
            raise Problem(400, f"Stream-TTL must be a whole number of seconds, as in 3600, not {ttl[:64]!r}")
        if int(ttl) > seconds_max:
            raise Problem(400, f"Stream-TTL may be {seconds_max} seconds at most, not {ttl}")
        return Life(int(ttl), None, 0)
    if expires_at is None:
        return Life(None, None, 0)
    try:
        moment = datetime.fromisoformat(expires_at)
        if moment.tzinfo is None:
            raise ValueError
        at = moment.timestamp()
    except (ValueError, OverflowError):
        raise Problem(
            400,
            f"Stream-Expires-At must be a time as RFC 3339 writes it, 2026-11-28T06:00:00Z, not {expires_at[:64]!r}",
        ) from None
    if at > time.time() + seconds_max:
        raise Problem(400, f"Stream-Expires-At may be {seconds_max} seconds from now at most")
    return Life(None, expires_at, max(1, int(at * 1000)))


def content_type_of(headers: Headers) -> str:
    """Returns the content type of a new stream; `application/octet-stream` if the request names none that can be one."""
    content_type = headers.get("content-type", "")
    _check_length("Content-Type", content_type)
    return content_type if _MEDIA_TYPE.fullmatch(content_type) else "application/octet-stream"


def producer_of(headers: Headers) -> Producer | None:
    """Returns the idempotent producer of an append; None if it names none."""
    values = [headers.get(name) for name in _PRODUCER_HEADERS]
    name, epoch, sequence = values
    if name is None and epoch is None and sequence is None:
        return None
    if name is None or epoch is None or sequence is None:
        raise Problem(400, "Producer-Id, Producer-Epoch and Producer-Seq belong together: send all three, or none")
    if not name:
        raise Problem(400, "Producer-Id must not be empty")
    _check_length("Producer-Id", name)
    return Producer(name, _count("Producer-Epoch", epoch), _count("Producer-Seq", sequence))


def stream_seq_of(headers: Headers) -> str:
    """Returns the `Stream-Seq` of an append; empty if there is none."""
    stream_seq = headers.get("stream-seq", "")
    _check_length("Stream-Seq", stream_seq)
    return stream_seq


def closes(headers: Headers) -> bool:
    """Tells whether a request closes its stream: `Stream-Closed: true`, and no other value."""
    return headers.get("stream-closed", "").lower() == "true"


def outcome_of(headers: Headers) -> str:
    """Returns how a stream ends that is closed: `Stream-Outcome`, else `done`."""
    outcome = headers.get("stream-outcome", "done").lower()
    if outcome not in _OUTCOMES:
        raise Problem(400, f"Stream-Outcome must be done, failed or cancelled, not {outcome[:64]!r}")
    return outcome


@dataclass(frozen=True, slots=True)
class ReadQuery:
    """The query of a read: where it begins, whether it waits for what is new, and what the messages are."""

    offset: str | None
    live: Live
    cursor: str
    shape: Shape


def read_query_of(scope: Scope) -> ReadQuery:
    """Returns what the query of a GET says. Parameters of other names are passed over."""
    try:
        pairs = parse_qsl(
            scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=64
        )
    except ValueError:  # UnicodeDecodeError is one
        raise Problem(400, "the query is not percent-encoded UTF-8") from None
    offsets = [value for name, value in pairs if name == "offset"]
    if len(offsets) > 1:
        raise Problem(400, "there is more than one offset in the query")
    offset = offsets[0] if offsets else None
    query = dict(pairs)
    live = query.get("live", "")
    if live not in ("", "long-poll", "sse"):
        raise Problem(400, f"live must be long-poll or sse, not {live[:64]!r}")
    if live and offset is None:
        raise Problem(400, f"live={live} needs an offset: -1 for the beginning, now for what is new")
    shape = query.get("as", "")
    if shape not in ("", "ui", "ui-replay"):
        raise Problem(400, f"as must be ui or ui-replay, not {shape[:64]!r}")
    return ReadQuery(offset, live, query.get("cursor", ""), shape)


def _count(name: str, text: str) -> int:
    if not _DIGITS.fullmatch(text) or int(text) > ID_PART_MAX:
        raise Problem(400, f"{name} must be a whole number from 0 to {ID_PART_MAX}, not {text[:64]!r}")
    return int(text)


def _check_length(name: str, text: str) -> None:
    if len(text) > TEXT_CHARACTERS_MAX:
        raise Problem(400, f"{name} has {len(text)} characters, and {TEXT_CHARACTERS_MAX} are the most")
