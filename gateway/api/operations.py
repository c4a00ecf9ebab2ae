"""The native API's operations, described: docs/reference/http.md as data. The models are those of `gateway.api.models`."""

from __future__ import annotations

from gateway.api.models import (
    AcceptedStream,
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
    StreamRequest,
    StreamState,
    TokenOrDelta,
    WebSocketError,
)
from gateway.http.accept import NDJSON, SSE, TEXT
from gateway.http.operations import (
    HTML,
    IDEMPOTENCY_KEY,
    IF_NONE_MATCH,
    JSON,
    LAST_EVENT_ID,
    LAST_EVENT_ID_QUERY,
    Answer,
    EventKind,
    Operation,
    header,
    in_path,
    query,
)

# --- parameters and events that several operations share

STREAM_ID = in_path("stream_id", "The stream's id, as it was created.")
FROM = query("from", "`now` skips what is there already, unless an event id is given.", type="string", enum=["now"])
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
_RETRY = EventKind("retry", Retry, "Only as JSON: the response ends before its stream; come back.", has_id=False)
_NOTHING_MORE = Answer(204, "Nothing more will come: the client has everything up to the end.")
_NOT_MODIFIED = Answer(304, "The client's copy of the ended stream is still right.", headers={"ETag": "Of the copy."})
_ETAG = {"ETag": "Of a stream that has ended, where all of it is asked for."}

# --- operations: streams

CREATE_STREAM = Operation(
    "streams",
    "create_stream",
    "Ask for an answer.",
    (
        Answer(
            201,
            "The stream is there and waits for a worker.",
            {JSON: CreatedStream},
            {"Location": "The path of its events."},
        ),
    ),
    parameters=(IDEMPOTENCY_KEY,),
    body=StreamRequest,
    errors=(413, 422),
)
EVENTS = Operation(
    "streams",
    "follow_stream",
    "Follow a stream: Server-Sent Events, lines of JSON or text, as `Accept` prefers.",
    (
        Answer(
            200,
            "The events behind the one that is named, then each as it comes.",
            {SSE: None, NDJSON: None, TEXT: None},
            _ETAG,
        ),
        _NOTHING_MORE,
        _NOT_MODIFIED,
    ),
    parameters=(STREAM_ID, LAST_EVENT_ID, LAST_EVENT_ID_QUERY, FROM, ACCEPT, IF_NONE_MATCH),
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
            "The text. It is whole if the body ends as HTTP wants it, and cut off after anything but `done`.",
            {TEXT: None},
            _ETAG,
        ),
        _NOTHING_MORE,
        _NOT_MODIFIED,
    ),
    parameters=(
        STREAM_ID,
        query("after_bytes", "How many bytes of the text the client has.", type="integer", minimum=0),
        LAST_EVENT_ID,
        LAST_EVENT_ID_QUERY,
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
    parameters=(STREAM_ID, LAST_EVENT_ID, LAST_EVENT_ID_QUERY, FROM),
    errors=(404, 426),
    events=(
        *_EVENTS,
        _RETRY,
        EventKind("error", WebSocketError, "A message or the request is at fault, or Redis is away.", has_id=False),
    ),
    description=(
        "Closed with 1000 at the stream's end, with 1012 where the client is to come back, and with 4400, 4404 or 4410 where coming "
        "back does not help: an unknown stream is accepted and closed so. Without a WebSocket handshake the answer is 426."
    ),
)
STATE = Operation(
    "streams",
    "stream_state",
    "A stream's state and text.",
    (
        Answer(200, "The stream as it is now.", {JSON: StreamState}, {"ETag": "Of a stream that has ended."}),
        _NOT_MODIFIED,
    ),
    parameters=(
        STREAM_ID,
        query(
            "wait",
            "Seconds: answer when the stream has ended or the time is up. Meanwhile it counts as a reader.",
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
    (Answer(200, "The stream's state after it.", {JSON: StreamState}),),
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
    "Ask with `?prompt=` and follow in one, for an EventSource.",
    (Answer(200, "The events of the new stream, or those behind `Last-Event-ID`.", {SSE: None}), _NOTHING_MORE),
    parameters=(
        query("prompt", "The one user message; not needed with an event id."),
        query("model", "The gateway's default model where it is missing."),
        LAST_EVENT_ID,
        LAST_EVENT_ID_QUERY,
    ),
    errors=(404, 410, 413),
    events=(
        EventKind("accepted", AcceptedStream, "The stream is there; the first event."),
        _TOKEN,
        _RESTARTED,
        EventKind("done", Done, "Only of an answer that was cut off."),
        EventKind("failed", StreamError, "The stream has failed."),
        EventKind("cancelled", Cancelled, "The stream was cancelled."),
        _GAP,
        EventKind("", "[DONE]", "Nothing more comes: close."),
    ),
    description="An event id is `<stream id>/<attempt>-<offset>`, so that the browser's own reconnect resumes the stream.",
)

# --- operations: the gateway itself

_VERSION_NOTE = "Redis is looked at once a second at most."
HEALTH = Operation(
    "operations", "healthz", "The process lives.", (Answer(200, "The process answers.", {JSON: Health}),)
)
READINESS = Operation(
    "operations",
    "readyz",
    "Redis answers, lets this process do all that it must, does not evict, and the process is not about to stop.",
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
    "Timed events of a known plan, which show what the way to a reader does to a stream. Needs no Redis.",
    (Answer(200, "The events.", {SSE: None}), Answer(204, "Asked for with `status=204`.")),
    parameters=(
        query("events", "How many.", type="integer", minimum=0, maximum=10_000, default=20),
        query("interval_ms", "Between two.", type="integer", minimum=0, maximum=10_000, default=50),
        query("padding_bytes", "More text in each.", type="integer", minimum=0, maximum=16_384, default=0),
        query("silence_ms", "Before the first of them.", type="integer", minimum=0, maximum=3_600_000, default=0),
        query(
            "comment_ms",
            "A comment this often in the silence; 0: none.",
            type="integer",
            minimum=0,
            maximum=60_000,
            default=0,
        ),
        query("name", "To ask later what became of it.", type="string", pattern="^[A-Za-z0-9_-]{8,64}$"),
        query("status", "`204`: no stream, but that answer.", type="string", enum=["200", "204"]),
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
    "What became of a probe that had a name.",
    (Answer(200, "What this process knows of it.", {JSON: ProbeTrace}),),
    parameters=(in_path("name", "The name that the probe was given."),),
    errors=(404,),
)
DOCS = Operation(
    "operations", "docs", "This document as a page.", (Answer(200, "A page without scripts.", {HTML: None}),)
)
OPENAPI = Operation(
    "operations", "openapi", "This document: OpenAPI 3.1.", (Answer(200, "The document.", {JSON: None}),)
)
