"""Describes the operations of the Durable Streams protocol for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import RootModel

from gateway.http.accept import SSE
from gateway.http.operations import IF_NONE_MATCH, Answer, Described, EventKind, Operation, header, in_path, query

_BYTES, _JSON = "application/octet-stream", "application/json"
_PATH = in_path(
    "path",
    "The stream's name, which may have slashes: each principal has its own. Or the id of any stream.",
    type="string",
    minLength=1,
    maxLength=1024,
)
_PLACE = {
    "Stream-Next-Offset": "The place behind the newest message of this answer: the `offset` of the next read.",
    "Stream-Closed": "`true`: nothing follows.",
    "Stream-Outcome": "How the stream has ended: `done`, `failed` or `cancelled`.",
}
_CLOSING = (
    header("Stream-Closed", "`true` closes the stream, behind the body if there is one."),
    header(
        "Stream-Outcome",
        "How it ends: `done` unless this says otherwise.",
        type="string",
        enum=["done", "failed", "cancelled"],
    ),
)


class Control(Described):
    """Where the reader is now."""

    streamNextOffset: str  # noqa: N815  # the protocol's own names
    streamCursor: str | None = None  # noqa: N815
    upToDate: bool | None = None  # noqa: N815
    """The reader has all that is there now."""
    streamClosed: bool | None = None  # noqa: N815
    """Nothing follows."""
    streamOutcome: str | None = None  # noqa: N815
    """How the stream has ended."""


class NewMessages(RootModel[Any]):
    """A JSON array of messages, or of a generated answer's events. Of a stream of another type than JSON they are text, or base64."""


CREATE = Operation(
    "Durable Streams",
    "create_written_stream",
    "Make a stream that you write yourself, or find that it is there already.",
    (
        Answer(201, "It was made.", headers={"Location": "Its address.", "X-Stream-Id": "Its id.", **_PLACE}),
        Answer(200, "It was there already, with the same type, life and closing.", headers=_PLACE),
    ),
    parameters=(
        _PATH,
        header(
            "Content-Type", "The type of all that will be appended. With `application/json` messages keep their bounds."
        ),
        header("Stream-TTL", "Seconds for which it lives after each write and read.", type="integer", minimum=0),
        header("Stream-Expires-At", "When it expires, in place of `Stream-TTL`.", type="string", format="date-time"),
        header("X-Midstream-Webhook", "Where a signed POST goes when it has been closed."),
        *_CLOSING,
    ),
    takes_any_body=True,
    errors=(405, 409, 413, 415, 429, 501),
    description="The body, which may be empty, is its first content.",
)
APPEND = Operation(
    "Durable Streams",
    "append_to_written_stream",
    "Append to a stream, close it, or both.",
    (
        Answer(204, "Appended, or closed; with a producer: that was so before.", headers=_PLACE),
        Answer(200, "Appended by an idempotent producer.", headers=_PLACE),
    ),
    parameters=(
        _PATH,
        header("Content-Type", "The stream's."),
        header("Stream-Seq", "Must be above the one before, byte by byte."),
        header("Producer-Id", "The name of an idempotent producer: what it repeats is appended once."),
        header(
            "Producer-Epoch", "Rises by one with each restart of the producer; older ones are refused.", type="integer"
        ),
        header("Producer-Seq", "The number of this append in the epoch, from 0.", type="integer"),
        *_CLOSING,
    ),
    takes_any_body=True,
    errors=(404, 405, 409, 413, 415, 429),
    description="The body is one message; a JSON array is one message for each of its elements.",
)
READ = Operation(
    "Durable Streams",
    "read_stream",
    "Read a stream from an offset on: what is there, or what comes, too.",
    (
        Answer(
            200,
            "The messages: a JSON array, or one behind the other. With `live=sse` as events.",
            {_BYTES: None, _JSON: None, SSE: None},
            {**_PLACE, "Stream-Up-To-Date": "`true`: there is no more at the moment.", "ETag": "Of this part."},
        ),
        Answer(204, "`live=long-poll`: nothing came in time, or the stream is closed.", headers=_PLACE),
        Answer(304, "The client has this part."),
    ),
    parameters=(
        _PATH,
        query("offset", "`Stream-Next-Offset` of an earlier answer, `-1` (the beginning) or `now`."),
        query("live", "Wait for more.", type="string", enum=["long-poll", "sse"]),
        query("cursor", "`Stream-Cursor` of the answer before."),
        query(
            "as",
            "Of a generated answer: the AI SDK's UI message parts; with `ui-replay` also those that the message had before.",
            type="string",
            enum=["ui", "ui-replay"],
        ),
        IF_NONE_MATCH,
    ),
    errors=(404,),
    events=(
        EventKind("data", NewMessages, "All messages that are new.", has_id=False),
        EventKind("control", Control, "Follows each `data`.", has_id=False),
    ),
)
REMOVE = Operation(
    "Durable Streams",
    "delete_stream_at_path",
    "Delete a stream. It is cancelled if it runs.",
    (Answer(204, "It is gone; another may be made at this path."),),
    parameters=(_PATH,),
    errors=(404,),
)
