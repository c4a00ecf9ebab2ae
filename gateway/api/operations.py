"""Describes the native API's operations for the OpenAPI document. The models are those of `gateway.api.models`."""

from __future__ import annotations

from gateway.api.models import (
    AcceptedStream,
    AccessToken,
    Cancelled,
    CreatedStream,
    Done,
    Gap,
    Health,
    Live,
    ProbeBeginning,
    ProbeEnd,
    ProbeEvent,
    ProbeTrace,
    Ready,
    Receipt,
    Restarted,
    Retry,
    Started,
    StreamError,
    StreamList,
    StreamRequest,
    StreamState,
    TokenOrDelta,
    TokenRequest,
    Usage,
    WebSocketError,
)
from gateway.http.accept import NDJSON, SSE, TEXT
from gateway.http.operations import (
    HTML,
    IDEMPOTENCY_KEY,
    IF_NONE_MATCH,
    JSON,
    LAST_EVENT_ID,
    NOTHING_MORE,
    RESUME_PARAMETERS,
    TO_LOGIN,
    Answer,
    EventKind,
    Operation,
    header,
    in_path,
    query,
)

# --- parameters and events that several operations share

STREAM_ID = in_path("stream_id", "The stream's id.")
FROM = query("from", "`now` skips all earlier events, unless an event id is given.", type="string", enum=["now"])
ACCEPT = header("Accept", "The highest q-value decides: `text/event-stream`, `application/x-ndjson` or `text/plain`.")

_TOKEN = EventKind("", TokenOrDelta, "A piece of the answer: append it.")
_STARTED = EventKind("started", Started, "A worker has begun.")
_RESTARTED = EventKind("restarted", Restarted, "Keep the first `base` tokens, drop the others.")
_DONE = EventKind("done", Done, "The answer is complete; the last event.")
_FAILED = EventKind("failed", StreamError, "The stream has failed; the last event. What arrived may be shown.")
_CANCELLED = EventKind("cancelled", Cancelled, "The stream was cancelled; the last event.")
_LIVE = EventKind("live", Live, "The reader has caught up.", has_id=False)
_GAP = EventKind("gap", Gap, "Events between these ids are gone.", has_id=False)
_EVENTS = (_TOKEN, _STARTED, _RESTARTED, _DONE, _FAILED, _CANCELLED, _LIVE, _GAP)
_RETRY = EventKind(
    "retry", Retry, "Only in JSON lines and WebSockets: the response ends before its stream; reconnect.", has_id=False
)
_NOT_MODIFIED = Answer(
    304, "The client's copy of the ended stream is still valid.", headers={"ETag": "The copy's ETag."}
)
_ETAG = {"ETag": "Only of a stream that has ended, and if all of it is requested."}

# --- operations: streams

CREATE_STREAM = Operation(
    "streams",
    "create_stream",
    "Create a stream: request an answer.",
    (
        Answer(
            201,
            "The stream is created and waits for a worker.",
            {JSON: CreatedStream},
            {"Location": "The path of its events."},
        ),
    ),
    parameters=(IDEMPOTENCY_KEY,),
    body=StreamRequest,
    errors=(413, 415, 422),
)
EVENTS = Operation(
    "streams",
    "follow_stream",
    "Follow a stream: Server-Sent Events, lines of JSON or text, as `Accept` prefers.",
    (
        Answer(
            200,
            "The events after the given one, then each as it comes.",
            {SSE: None, NDJSON: None, TEXT: None},
            _ETAG,
        ),
        NOTHING_MORE,
        _NOT_MODIFIED,
    ),
    parameters=(STREAM_ID, *RESUME_PARAMETERS, FROM, ACCEPT, IF_NONE_MATCH),
    errors=(404, 409, 410),
    events=(*_EVENTS, _RETRY),
    description=(
        "An event id is `<attempt>-<offset>`. A line of JSON is an object of `id`, `event` (`message` for an unnamed one) and `data`. "
        "A generator of the operator's own may send events with further names, ids, and any JSON as data. "
        "The response may end before its stream: reconnect with the last id. 409 is for `text/plain` only."
    ),
)
TEXT_ONLY = Operation(
    "streams",
    "follow_text",
    "The bare text, as it comes.",
    (
        Answer(
            200,
            "The text. The body ends properly after `done`, and is cut off after any other end.",
            {TEXT: None},
            _ETAG,
        ),
        NOTHING_MORE,
        _NOT_MODIFIED,
    ),
    parameters=(
        STREAM_ID,
        query("after_bytes", "How many bytes of the text the client has.", type="integer", minimum=0),
        *RESUME_PARAMETERS,
        FROM,
        IF_NONE_MATCH,
    ),
    errors=(404, 409, 410),
)
WEBSOCKET = Operation(
    "streams",
    "follow_websocket",
    "Follow a stream over a WebSocket, and cancel it there.",
    (
        Answer(
            101, 'A WebSocket: each message is a JSON object of `id`, `event` and `data`. `{"type": "cancel"}` cancels.'
        ),
    ),
    parameters=(STREAM_ID, *RESUME_PARAMETERS, FROM),
    errors=(404, 426),
    events=(
        *_EVENTS,
        _RETRY,
        EventKind(
            "error", WebSocketError, "A message or the request is wrong, or Redis cannot be reached.", has_id=False
        ),
    ),
    description=(
        "Closed with 1000 at the stream's end, with 1012 if the client should reconnect, and with 4400, 4404 or 4410 if that does not "
        "help: the handshake for an unknown stream is accepted, then closed with 4404. Without a WebSocket handshake the answer is 426."
    ),
)
LIST_STREAMS = Operation(
    "streams",
    "list_streams",
    "Find streams: one's own, an administrator's everybody's, the newest first.",
    (Answer(200, "A page of the list.", {JSON: StreamList}),),
    parameters=(
        query("status", "Only these.", type="string", enum=["queued", "running", "completed", "failed", "cancelled"]),
        query("model", "Only answers of this model."),
        query("metadata.KEY", "Only streams whose metadata has this value at KEY. May be repeated for several keys."),
        query("from", "Created at this time or later: Unix seconds, or as in 2026-11-28T00:00:00Z."),
        query("to", "Created before this time."),
        query("owner", "Only this owner's, for an administrator."),
        query("limit", "How many at most; 20 if it is left out.", type="integer", minimum=1, maximum=100),
        query("after", "Only streams behind this one: `after` of the page before."),
    ),
    errors=(403, 404),
    description="Needs an archive (`MIDSTREAM_ARCHIVE_URL`). A page may have fewer streams than its limit and still name the next.",
)
STATE = Operation(
    "streams",
    "stream_state",
    "A stream's state and text.",
    (
        Answer(200, "The stream as it is now.", {JSON: StreamState}, {"ETag": "Only of a stream that has ended."}),
        _NOT_MODIFIED,
    ),
    parameters=(
        STREAM_ID,
        query(
            "wait",
            "Seconds: answer when the stream has ended or the time is up. Meanwhile the request counts as a reader.",
            type="number",
            minimum=0,
            maximum=600,
        ),
        IF_NONE_MATCH,
    ),
    errors=(404, 410),
)
CANCEL_STREAM = Operation(
    "streams",
    "cancel_stream",
    "Stop a stream. May be repeated; an ended stream stays as it is.",
    (Answer(200, "The stream's state after the cancel.", {JSON: StreamState}),),
    parameters=(STREAM_ID,),
    errors=(404, 410),
)
RECEIPT = Operation(
    "streams",
    "stream_receipt",
    "What was generated, what was delivered, and over which connections.",
    (Answer(200, "The receipt.", {JSON: Receipt}),),
    parameters=(STREAM_ID,),
    errors=(404, 410),
)
CREATE_TOKEN = Operation(
    "streams",
    "create_access_token",
    "Make an access token for a stream, with fewer rights or for a shorter time.",
    (Answer(201, "The token.", {JSON: AccessToken}),),
    parameters=(STREAM_ID,),
    body=TokenRequest,
    body_is_required=False,
    errors=(404, 410, 413, 415),
    description="Nobody can give more than they have: an access token makes none that outlives it. 404 also where authentication is off.",
)
DELETE_STREAM = Operation(
    "streams",
    "delete_stream",
    "Cancel a stream if it runs, and forget it.",
    (Answer(204, "The stream is gone."),),
    parameters=(STREAM_ID,),
    errors=(404, 410),
)
PROMPT = Operation(
    "streams",
    "prompt",
    "Create a stream with `?prompt=` and follow it in one request, for an EventSource.",
    (Answer(200, "The events of the new stream, or those after `Last-Event-ID`.", {SSE: None}), NOTHING_MORE),
    parameters=(
        query("prompt", "The one user message; not needed with an event id."),
        query("model", "The model; by default the gateway's."),
        query("cookie", "`true` sets the stream's access token as a cookie for this path, if authentication is on."),
        *RESUME_PARAMETERS,
    ),
    errors=(404, 410, 413),
    events=(
        EventKind("accepted", AcceptedStream, "The stream is created; the first event."),
        _TOKEN,
        _RESTARTED,
        EventKind("done", Done, "Only if the answer was truncated."),
        EventKind("failed", StreamError, "The stream has failed."),
        EventKind("cancelled", Cancelled, "The stream was cancelled."),
        _GAP,
        EventKind("", "[DONE]", "No more events will come: close the EventSource."),
    ),
    description="An event id is `<stream id>/<attempt>-<offset>`, so that the browser's own reconnect resumes the stream.",
)

USAGE = Operation(
    "streams",
    "usage",
    "What was used on each day, by model: streams and tokens, each stream once, as in its receipt.",
    (Answer(200, "The usage.", {JSON: Usage}),),
    parameters=(
        query(
            "from",
            "The first day (UTC), as in 2026-11-28; by default the first of the month.",
            type="string",
            format="date",
        ),
        query("to", "The last day; by default today. At most 366 days in all.", type="string", format="date"),
        query("principal", "Whose usage. Only with the scope `admin` another than one's own, and by default all."),
        query("after", "The `next` of the page before, if that was not null."),
    ),
)

# --- operations: the gateway itself

_VERSION_NOTE = "Redis is checked at most once a second."
HEALTH = Operation(
    "operations", "healthz", "The process lives.", (Answer(200, "The process answers.", {JSON: Health}),)
)
READINESS = Operation(
    "operations",
    "readyz",
    "Redis answers, gives this process all permissions, does not evict keys, and the process is not stopping.",
    (Answer(200, "The process can serve.", {JSON: Ready}),),
    description=_VERSION_NOTE,
)
METRICS = Operation(
    "operations",
    "metrics",
    "Prometheus metrics of all processes of this gateway.",
    (Answer(200, "The text exposition format of Prometheus.", {TEXT: None}),),
)
PROBE = Operation(
    "operations",
    "probe",
    "Events at planned times, to test the path to a reader. Needs no Redis.",
    (Answer(200, "The events.", {SSE: None}), Answer(204, "The answer to `status=204`.")),
    parameters=(
        query("events", "The number of events.", type="integer", minimum=0, maximum=10_000, default=20),
        query("interval_ms", "The time between two events.", type="integer", minimum=0, maximum=10_000, default=50),
        query("padding_bytes", "Additional text in each event.", type="integer", minimum=0, maximum=16_384, default=0),
        query(
            "silence_ms", "The time before the first event.", type="integer", minimum=0, maximum=3_600_000, default=0
        ),
        query(
            "comment_ms",
            "The time between two comments during the silence; 0: no comments.",
            type="integer",
            minimum=0,
            maximum=60_000,
            default=0,
        ),
        query("name", "A name, to read the probe's trace later.", type="string", pattern="^[A-Za-z0-9_-]{8,64}$"),
        query("status", "`204`: an answer without events.", type="string", enum=["200", "204"]),
        LAST_EVENT_ID,
    ),
    events=(
        EventKind("probe", ProbeBeginning, "The first event."),
        EventKind("", ProbeEvent, "One of the planned events."),
        EventKind("end", ProbeEnd, "The last event."),
    ),
)
PROBE_TRACE = Operation(
    "operations",
    "probe_trace",
    "The trace of a probe that was given a name.",
    (Answer(200, "The trace, as far as this process served the probe.", {JSON: ProbeTrace}),),
    parameters=(in_path("name", "The name that the probe was given."),),
    errors=(404,),
)
DOCS = Operation(
    "operations",
    "docs",
    "This document as a page.",
    (Answer(200, "A page without scripts.", {HTML: None}), TO_LOGIN),
)
OPENAPI = Operation(
    "operations", "openapi", "This document: OpenAPI 3.1.", (Answer(200, "The document.", {JSON: None}),)
)
