"""Defines every metric of the gateway and the worker. The metrics and docs/reference/metrics.md are made from these definitions.

Names follow Prometheus' conventions (base units, `_total` for counters). Those that begin with `gen_ai_` are
OpenTelemetry's GenAI metrics, for dashboards that know them
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/). A label has a closed set of values. All of them exist
from the start, so that `rate()` counts the first event, too. `cost` states how often a metric is updated.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.metric_definition import OTHER, Metric
from shared.outcomes import PROVIDER_CODES, AttemptOutcome, CancelReason, FailureCode, ReaderOutcome, Status

MODELS_MAX = 20
"""The first so many models that have answered get a label of their own. Clients may name any model, so there must be a limit."""

_ANOTHER_SHAPE = "a value of an undocumented shape: it was left out or made text"
PROVIDER_ODDITIES_TOLERATED = {
    **dict.fromkeys(
        (
            "choices",
            "choice",
            "index",
            "delta",
            "content",
            "refusal",
            "reasoning_content",
            "reasoning",
            "reasoning_details",
            "tool_calls",
            "annotations",
            "images",
            "audio",
            "logprobs",
            "usage",
            "model",
            "system_fingerprint",
            "service_tier",
        ),
        _ANOTHER_SHAPE,
    ),
    "unstorable": "a value that cannot be stored: it was left out",
    "function_call": "the `function_call` of OpenAI's earlier API: it became a tool call",
    "call_index": "tool calls without an index, or several with one: they were told apart by ids, names and places",
    "call_id": "a tool call without an id, with another one in each piece, or with that of another call: it has one id now",
    "content_parts": "a content in parts: they became text and reasoning",
    "foreign_field": "fields of its own beside the text of a chunk: they were left out",
    "finish_reason": "a finish_reason that is not OpenAI's: it became the one that it means",
    "finish_again": "`stop` behind another finish_reason: the first one counts",
    "no_finish_reason": "no finish_reason, but `[DONE]`: the answer counts as whole",
    "left_open": "nothing more behind the finish_reason, in a response that stayed open: it was closed",
    "cut_after_finish": "a response that was cut off behind its finish_reason: the answer counts as whole",
    "line_end": "a last line without a line end: it was read",
    "usage_place": "the usage at an undocumented place: it was read",
    "stream_options": "a refusal because of `stream_options`: the request was sent again without",
    "whole_answer": "a whole message instead of a delta: it is an answer in one piece",
    "not_an_event": "JSON or text that is no event: it was read as an answer or an error",
    "not_json": "an event that is no JSON object: it was passed over",
    "invalid_json": "JSON with bytes that are not UTF-8, half characters or infinite numbers: these were replaced",
    "split_character": "one character in two chunks: it was joined",
    "byte_order_mark": "a byte order mark: it was passed over",
    "error_shape": "an error of an undocumented shape: its words were found",
}
"""By kind, what a provider sent that is not as documented, and what was done."""
PROVIDER_ODDITY_KINDS = tuple(PROVIDER_ODDITIES_TOLERATED)
FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", OTHER)
STATUSES = (
    "400",
    "401",
    "403",
    "404",
    "405",
    "408",
    "409",
    "410",
    "413",
    "414",
    "415",
    "421",
    "422",
    "426",
    "429",
    "431",
    "500",
    "502",
    "503",
    "504",
    "507",
    OTHER,
)
REQUEST_STATUSES = ("101", "200", "201", "204", "303", "304", *STATUSES)
FACES = ("sse", "ndjson", "text", "websocket", "prompt", "chat", "responses", "ai_sdk", "durable")
"""The forms in which a stream can be followed."""
APIS = ("native", "chat", "responses", "ai_sdk", "durable")
"""Those through which a stream can be created."""
LIMITS = ("creates", "streams", "bytes", "tokens", "readers", "appends", "connections", "idle_connections")
LIMITED = ("principal", "all", "stream", "address")
"""Whose limits there are."""
BACKGROUND_TASKS = (
    "ages",
    "api_keys",
    "archive",
    "archive_looks",
    "archive_prune",
    "beats",
    "cluster_map",
    "connection",
    "flush_pace",
    "forget",
    "ledger",
    "look",
    "lost_writers",
    "measure",
    "presence",
    "renew",
    "revocations",
    "samples",
    "silence_checks",
    "stream_readers",
    "subscriptions",
    "take_over",
    "request_timeouts",
    "usage",
    "user_keys",
    "watch",
    "watchers",
    "webhooks",
)
"""Tasks that run as long as their process: `shared.background` restarts one that raises an exception."""
LOG_READ_REASONS = ("begin", "subscribed", "hole", "check", "page")

_LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_OPERATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""OpenTelemetry's buckets for the duration of a whole operation, and for the wait for its first chunk."""
_ANSWERS = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
"""Buckets from the time of one read of a log to that of an answer that is waited for. Few, since each route has a histogram."""
_PER_TOKEN = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""OpenTelemetry's buckets for the time per token, and two lower ones: a fast local model takes less than 10 ms."""
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304)
_EVENTS_BACK = (0, 1, 10, 100, 256, 1000, 5000, 20000, 100000)

_SECOND = "nothing per event: a plain number, copied once a second"
_STREAM = "once per stream"
_ATTEMPT = "once per attempt"
_CALL = "once per call of the provider"
_CONNECTION = "once per connection"
_RARE = "once per event; such events are rare"
_LOOK = "one read of Redis every 5 s, by each gateway process"


def defined() -> Iterator[Metric]:
    """Returns all metrics, in the order of their definition."""
    return (value for value in globals().values() if isinstance(value, Metric))


# --- gateway: readers

PROCESSES = Metric(
    "midstream_gateway_processes",
    "gauge",
    "Processes of this gateway that run now",
    "gateway",
    "nothing",
    processes="livesum",
)
PROCESS_STARTS = Metric(
    "midstream_gateway_process_starts",
    "counter",
    "Starts of this gateway's processes, restarts included",
    "gateway",
    _RARE,
)
READERS = Metric(
    "midstream_readers", "gauge", "Connections that follow a stream now", "gateway", _SECOND, processes="livesum"
)
READERS_MAX = Metric(
    "midstream_readers_max",
    "gauge",
    "The most connections that may follow a stream at once: MIDSTREAM_CONNECTIONS_MAX, summed over the processes",
    "gateway",
    _SECOND,
    processes="livesum",
)
READER_OPENS = Metric(
    "midstream_reader_opens",
    "counter",
    "Connections that began to follow a stream, by the form in which they get it",
    "gateway",
    _CONNECTION,
    {"face": FACES},
)
READER_CLOSES = Metric(
    "midstream_reader_closes",
    "counter",
    "Connections that followed a stream and have ended, by outcome",
    "gateway",
    _CONNECTION,
    {"outcome": tuple(ReaderOutcome)},
)
TOKENS_DELIVERED = Metric(
    "midstream_tokens_delivered",
    "counter",
    "Tokens written to readers' sockets; a token that goes to two readers counts twice. Counted when a connection's progress is recorded, up to MIDSTREAM_DELIVERY_REPORT_SECONDS late",
    "gateway",
    "once per connection and MIDSTREAM_DELIVERY_REPORT_SECONDS",
)
RESUMES = Metric(
    "midstream_resumes",
    "counter",
    "Readers that resumed after an event id, by where their next event is: in the ring (memory), in the log, or not yet at this gateway (ahead)",
    "gateway",
    _CONNECTION,
    {"place": ("ring", "log", "ahead")},
)
RESUME_EVENTS_BACK = Metric(
    "midstream_resume_events_back",
    "histogram",
    "How many events a resuming reader had missed; if its id is of an earlier attempt, all events of the newest attempt count",
    "gateway",
    _CONNECTION,
    buckets=_EVENTS_BACK,
)
RING_FALLOUTS = Metric(
    "midstream_ring_fallouts",
    "counter",
    "Readers so slow that their next event had left the ring (memory), so that they were sent pages of the log",
    "gateway",
    _SECOND,
)
PAGES_SENT = Metric(
    "midstream_pages_sent", "counter", "Pages of the log sent to readers that are behind the ring", "gateway", _SECOND
)
GAPS = Metric("midstream_gaps", "counter", "Gaps found in logs; readers get a `gap` event", "gateway", _RARE)
FACE_FAILURES = Metric(
    "midstream_face_failures",
    "counter",
    "Events that could not be encoded for one of the gateway's APIs. Readers of that stream through that API get a failure as the last event. It is a bug; the process's log has the traceback",
    "gateway",
    _RARE,
)
PUSHES_PASSED_OVER = Metric(
    "midstream_pushes_passed_over",
    "counter",
    "Messages on a stream's channel that are not log entries; the gateway read the log instead",
    "gateway",
    _RARE,
)

# --- gateway: following logs

STREAMS_CREATED = Metric(
    "midstream_streams_created",
    "counter",
    "Streams that this gateway accepted, by the API through which they were requested",
    "gateway",
    _STREAM,
    {"api": APIS},
)
MESSAGES_WRITTEN = Metric(
    "midstream_messages_written",
    "counter",
    "Messages that programs appended to written streams",
    "gateway",
    _STREAM,
)
BYTES_WRITTEN = Metric(
    "midstream_bytes_written",
    "counter",
    "Bytes of the messages that programs appended to written streams",
    "gateway",
    _STREAM,
)
STREAMS_FOLLOWED = Metric(
    "midstream_streams_followed",
    "gauge",
    "Streams that have a reader at this gateway; a stream with readers at several processes counts once for each",
    "gateway",
    _SECOND,
    processes="livesum",
)
ENTRIES_PUSHED = Metric(
    "midstream_entries_pushed",
    "counter",
    "Log entries that Redis pushed to this gateway, with 1 to MIDSTREAM_ENTRY_TOKENS_MAX tokens each",
    "gateway",
    "one addition per read of the socket; copied once a second",
)
FLUSHES = Metric(
    "midstream_flushes",
    "counter",
    "How often new events were written to readers' sockets. Fewer flushes for the same number of tokens mean that more events are merged into one write",
    "gateway",
    "one addition per flush; copied once a second",
)
APPEND_TO_SOCKET = Metric(
    "midstream_append_to_socket_seconds",
    "histogram",
    "Time from a worker sending a stream's last entry to Redis until this process has written it to the readers' sockets. Observed once for each followed stream that was not cancelled; tokens go the same way. The two times may come from two machines' clocks: a negative difference counts as 0",
    "gateway",
    "once per followed stream",
    buckets=_LATENCIES,
)
LOG_READS = Metric(
    "midstream_log_reads",
    "counter",
    "Reads of a stream's log, by reason. `begin`: the first read of a followed stream; `subscribed`: Redis confirmed a subscription (again); `hole`: a pushed entry was not the next one, as with a new attempt or a cancel; `check`: a check of a silent stream found more entries; `page`: a page for readers that are behind the ring",
    "gateway",
    _SECOND,
    {"reason": LOG_READ_REASONS},
)
LOG_CHECKS = Metric(
    "midstream_log_checks",
    "counter",
    "Checks of streams that had gone silent: what this gateway has is compared with the log, since pub/sub may lose the last message",
    "gateway",
    _SECOND,
)
PAGE_CACHE_BYTES = Metric(
    "midstream_page_cache_bytes",
    "gauge",
    "Memory that cached, encoded pages of logs use",
    "gateway",
    _SECOND,
    processes="livesum",
)
TICK_SECONDS = Metric(
    "midstream_tick_seconds",
    "gauge",
    "The longest time that a new event waits to be merged with others into one write. 0 while the process has CPU time to spare, 0.05 at most; the longest of all processes",
    "gateway",
    _SECOND,
    processes="livemax",
)
REQUESTS = Metric(
    "midstream_http_requests",
    "counter",
    "Requests by method, route (a template, as in /openapi.json; `other` for both where no route is meant) and status (`other`: also a client that had gone before its answer began). A series begins with its first request",
    "gateway",
    "once per request",
    {"method": (), "route": (), "status": ()},
)
REQUEST_SECONDS = Metric(
    "midstream_http_request_seconds",
    "histogram",
    "From a request's head to the beginning of its answer: of a stream to its response's head, of an answer that is waited for to its end",
    "gateway",
    "once per request",
    {"method": (), "route": ()},
    buckets=_ANSWERS,
)
PROBLEMS = Metric(
    "midstream_http_problems",
    "counter",
    "Requests answered with an error",
    "gateway",
    "once per error answer",
    {"status": STATUSES},
)
LIMIT_REFUSALS = Metric(
    "midstream_limit_refusals",
    "counter",
    "Requests refused (429) because a limit was reached: that of one principal, stream or address, or that for all principals together. `idle_connections`: connections without a request that were closed for others",
    "gateway",
    "once per refusal",
    {"limit": LIMITS, "of": LIMITED},
)

# --- gateway: the state of Redis, the same at every process

QUEUE_REQUESTS = Metric(
    "midstream_queue_requests",
    "gauge",
    "Requests in the queue: waiting for a worker, or claimed by one",
    "gateway",
    _LOOK,
    {"state": ("waiting", "claimed")},
    processes="livemostrecent",
)
QUEUE_OLDEST_SECONDS = Metric(
    "midstream_queue_oldest_seconds",
    "gauge",
    "How long the oldest waiting request has waited; 0 if none is waiting",
    "gateway",
    _LOOK,
    processes="livemostrecent",
)
REDIS_MEMORY_BYTES = Metric(
    "midstream_redis_memory_bytes", "gauge", "Memory that Redis uses", "gateway", _LOOK, processes="livemostrecent"
)
REDIS_HEADROOM_BYTES = Metric(
    "midstream_redis_headroom_bytes",
    "gauge",
    "Memory that Redis may still use: up to its maxmemory, or to its machine's memory if maxmemory is not set",
    "gateway",
    _LOOK,
    processes="livemostrecent",
)
REDIS_KEYS = Metric(
    "midstream_redis_keys",
    "gauge",
    "Keys in the Redis database that Midstream uses, keys of other programs included",
    "gateway",
    _LOOK,
    processes="livemostrecent",
)
REDIS_CLIENTS = Metric(
    "midstream_redis_clients", "gauge", "Connections to Redis", "gateway", _LOOK, processes="livemostrecent"
)
REDIS_COMMANDS_PER_SECOND = Metric(
    "midstream_redis_commands_per_second",
    "gauge",
    "Commands that Redis executes per second, those in scripts included",
    "gateway",
    _LOOK,
    processes="livemostrecent",
)
REDIS_EVICTED_KEYS = Metric(
    "midstream_redis_evicted_keys",
    "gauge",
    "Keys that Redis has evicted since it started. This must stay 0: an evicted key may be a stream's log",
    "gateway",
    _LOOK,
    processes="livemostrecent",
)

# --- worker

ATTEMPTS_RUNNING = Metric(
    "midstream_attempts_running",
    "gauge",
    "Attempts (answers being generated) that run at this worker now",
    "worker",
    _SECOND,
)
ATTEMPT_SLOTS = Metric(
    "midstream_attempt_slots",
    "gauge",
    "The most attempts that this worker runs at once: MIDSTREAM_WORKER_CONCURRENCY",
    "worker",
    "nothing",
)
TOKENS_GENERATED = Metric(
    "midstream_tokens_generated",
    "counter",
    "Tokens (increments of the provider's answer) appended to logs, in all attempts. For an attempt that was cancelled or taken over, the entry that was being appended at that moment counts, too",
    "worker",
    "nothing per token: computed from the offsets once a second, and at an attempt's end",
)
QUEUE_SECONDS = Metric(
    "midstream_queue_wait_seconds",
    "histogram",
    "Time from a request's acceptance to the start of its first attempt",
    "worker",
    _STREAM,
    buckets=_OPERATIONS,
)
TIME_TO_FIRST_TOKEN = Metric(
    "midstream_time_to_first_token_seconds",
    "histogram",
    "Time from a request's acceptance to its first token, as a reader sees it: waiting in the queue and all calls of the provider included",
    "worker",
    _STREAM,
    buckets=_OPERATIONS,
)
APPEND_SECONDS = Metric(
    "midstream_append_seconds",
    "histogram",
    "Time to append an entry and publish it, from sending the command to its reply. Observed for the first and the last entry of an attempt",
    "worker",
    "twice per attempt",
    buckets=_LATENCIES,
)
ATTEMPTS = Metric(
    "midstream_attempts",
    "counter",
    "Attempts that have ended, by outcome. `restarted`: the provider broke off and another attempt follows; `fenced`: the stream was cancelled, deleted or taken over by another worker; `handed_back`: the worker stops, and another one continues",
    "worker",
    _ATTEMPT,
    {"outcome": tuple(AttemptOutcome)},
)
ANSWERS = Metric(
    "midstream_answers",
    "counter",
    "Complete answers by finish_reason; `length` means that the answer was truncated",
    "worker",
    _STREAM,
    {"finish_reason": FINISH_REASONS},
)
PROVIDER_CALLS = Metric("midstream_provider_calls", "counter", "Calls of the provider that were begun", "worker", _CALL)
PROVIDER_ERRORS = Metric(
    "midstream_provider_errors",
    "counter",
    "Calls of the provider that failed, by failure code",
    "worker",
    _CALL,
    {"code": (*PROVIDER_CODES, OTHER)},
)
PROVIDER_ODDITIES = Metric(
    "midstream_provider_oddities",
    "counter",
    "Values and events of the provider that are not as documented and were tolerated, by kind (docs/how-to/connect-a-provider.md); a value of another shape by its field",
    "worker",
    _RARE,
    {"kind": (*PROVIDER_ODDITY_KINDS, OTHER)},
)
TAKEOVERS = Metric(
    "midstream_lease_takeovers", "counter", "Requests taken over from a worker whose lease had expired", "worker", _RARE
)
LEASES_LOST = Metric(
    "midstream_leases_lost",
    "counter",
    "Leases that could not be renewed, because another worker had taken them or Redis had lost them",
    "worker",
    _RARE,
)
FENCED_WRITES = Metric(
    "midstream_fenced_writes",
    "counter",
    "Attempts whose next entry Redis refused, because of a later attempt, a cancel or a delete",
    "worker",
    _RARE,
)
LOG_REPAIRS = Metric(
    "midstream_log_repairs",
    "counter",
    "How often Redis had lost entries of a log, which the worker then appended again",
    "worker",
    _RARE,
)
_GEN_AI: dict[str, tuple[str, ...]] = {
    "gen_ai_operation_name": (),
    "gen_ai_provider_name": (),
    "gen_ai_request_model": (),
}
GEN_AI_DURATION = Metric(
    "gen_ai_client_operation_duration_seconds",
    "histogram",
    "Duration of a call of the provider, from the request to the end of the answer; `error_type` is the failure code, or empty if the call succeeded",
    "worker",
    _CALL,
    {**_GEN_AI, "error_type": ()},
    buckets=_OPERATIONS,
)
GEN_AI_FIRST_CHUNK = Metric(
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "histogram",
    "Time from the request to the provider until its first token",
    "worker",
    _CALL,
    _GEN_AI,
    buckets=_OPERATIONS,
)
GEN_AI_PER_TOKEN = Metric(
    "gen_ai_server_time_per_output_token_seconds",
    "histogram",
    "The mean time between two tokens of a complete answer, the wait for the first one excluded; observed once per answer",
    "worker",
    _CALL,
    _GEN_AI,
    buckets=_PER_TOKEN,
)
GEN_AI_USAGE = Metric(
    "gen_ai_client_token_usage",
    "histogram",
    "Input and output tokens of an answer, as the provider's `usage` reports them; not observed where it sends none",
    "worker",
    _CALL,
    {**_GEN_AI, "gen_ai_token_type": ()},
    buckets=_TOKENS,
)

# --- both

STREAMS_ENDED = Metric(
    "midstream_streams_ended",
    "counter",
    "Streams that this process ended, by status",
    "both",
    _STREAM,
    {"status": (Status.COMPLETED, Status.FAILED, Status.CANCELLED)},
)
FAILURES = Metric(
    "midstream_stream_failures",
    "counter",
    "Streams that this process ended as failed, by failure code",
    "both",
    _RARE,
    {"code": (*FailureCode, OTHER)},
)
CANCELS = Metric(
    "midstream_cancels",
    "counter",
    "Streams that this process ended as cancelled. `by`: a client asked for it, the last reader had gone, an operator or the external writer did it",
    "both",
    _STREAM,
    {"by": tuple(CancelReason)},
)
ENTRIES_WRITTEN = Metric(
    "midstream_external_entries",
    "counter",
    "Entries that external writers have appended through this process; several events may share one",
    "gateway",
    "an append of an external writer",
)
EVENTS_KNOWN = Metric(
    "midstream_external_events_known",
    "counter",
    "Events that an external writer has sent again and that were in the log already: a reply was lost, or a request was repeated",
    "gateway",
    _RARE,
)
ATTEMPTS_WRITTEN = Metric(
    "midstream_external_attempts",
    "counter",
    "Attempts that external writers have begun; each fences off the one before",
    "gateway",
    _STREAM,
)
WRITERS_LOST = Metric(
    "midstream_external_writers_lost",
    "counter",
    "Streams that this process ended as failed because their external writer fell silent for longer than its lease",
    "gateway",
    _RARE,
)
RECEIPTS = Metric(
    "midstream_receipts", "counter", "Receipts written to the process's log, one per ended stream", "both", _STREAM
)
RECEIPT_TOKENS = Metric(
    "midstream_receipt_tokens",
    "counter",
    "Tokens of the final answers in those receipts: delivered to at least one reader, or to none by one second after the stream's end",
    "both",
    _STREAM,
    {"fate": ("delivered", "undelivered")},
)
ARCHIVED = Metric(
    "midstream_archived_streams",
    "counter",
    "Streams that this process has written to the archive, or whose receipt it has renewed there",
    "worker",
    _STREAM,
)
ARCHIVE_WRITE_SECONDS = Metric(
    "midstream_archive_write_seconds",
    "histogram",
    "How long the archive's database took to store the streams of one transaction",
    "worker",
    "up to four times a second",
    buckets=_OPERATIONS,
)
ARCHIVE_FAILURES = Metric(
    "midstream_archive_failures",
    "counter",
    "By kind: `away`, the database did not answer or could not write, and its streams wait in Redis; `refused`, it does not store one stream; `lost`, a log expired before it was archived",
    "worker",
    _RARE,
    {"kind": ("away", "refused", "lost")},
)
ARCHIVE_UP = Metric(
    "midstream_archive_up",
    "gauge",
    "1 if the archive's database answered when it was last asked, and took the rows that a worker gave it; 0 if not, or if there is no archive",
    "both",
    "a few times a second",
    processes="livemin",
)
UNKEPT = Metric(
    "midstream_unarchived_streams",
    "gauge",
    "Streams in the list of those that are to be archived: that run, that have ended and are not archived yet, or whose receipt may still change",
    "worker",
    "every 5 s",
)
RESTORED = Metric(
    "midstream_restored_streams",
    "counter",
    "Logs that this process has brought back from the archive, for a reader",
    "gateway",
    _RARE,
)
WEBHOOKS_DELIVERED = Metric(
    "midstream_webhooks_delivered",
    "counter",
    "Webhooks that a receiver has answered with 2xx",
    "worker",
    _STREAM,
)
WEBHOOK_FAILURES = Metric(
    "midstream_webhook_failures",
    "counter",
    "Tries of a webhook that have failed, by kind: `status`, the answer was not 2xx; `timeout`; `connection`, none could be made or it broke; `tls`, the certificate is not the host's; `refused`, the address is one that may not be connected to",
    "worker",
    _RARE,
    {"kind": ("status", "timeout", "connection", "tls", "refused")},
)
WEBHOOKS_DEAD = Metric(
    "midstream_webhooks_dead",
    "counter",
    "Webhooks that were given up, by reason: `expired`, tried for as long as they may be; `gone`, the receiver answered 410; `refused`, the address may not be connected to; `full`, too many were waiting; `lost`, the log expired before anybody was told",
    "worker",
    _RARE,
    {"reason": ("expired", "gone", "refused", "full", "lost")},
)
WEBHOOKS_WAITING = Metric(
    "midstream_webhooks_waiting", "gauge", "Webhooks that have failed and are tried again", "worker", "every 5 s"
)
WEBHOOKS_DEAD_KEPT = Metric(
    "midstream_webhooks_dead_kept",
    "gauge",
    "Webhooks that were given up and can be sent again: `midstream webhooks list`",
    "worker",
    "every 5 s",
)
WEBHOOK_OLDEST = Metric(
    "midstream_webhook_oldest_seconds",
    "gauge",
    "For how long the oldest webhook that is tried again has been tried; 0 if there is none",
    "worker",
    "every 5 s",
)
WEBHOOK_SECONDS = Metric(
    "midstream_webhook_seconds",
    "histogram",
    "How long a try of a webhook took, from the look-up of its host's name to the answer",
    "worker",
    _STREAM,
    buckets=_OPERATIONS,
)
QUEUE_UNREADABLE = Metric(
    "midstream_queue_unreadable",
    "counter",
    "Entries of the request queue that name no stream, and were deleted: another program writes to that key",
    "worker",
    _RARE,
)
BUILD_INFO = Metric(
    "midstream_build_info",
    "gauge",
    "1; its labels say which version runs, on which Python",
    "both",
    "nothing",
    {"version": (), "python": ()},
    processes="livemax",
)
REDIS_ROUND_TRIP = Metric(
    "midstream_redis_round_trip_seconds",
    "histogram",
    "Round trip of a PING, sent once a second on the connection that all commands share: includes Redis, the network and the commands queued before it",
    "both",
    "one command a second",
    buckets=_LATENCIES,
)
REDIS_WRITES = Metric(
    "midstream_redis_writes",
    "counter",
    "Pipelines sent to Redis; a pipeline has all commands of one turn of the event loop",
    "both",
    "one addition per write; copied once a second",
    {"connection": ("commands", "subscriber")},
)
REDIS_RECONNECTS = Metric(
    "midstream_redis_reconnects",
    "counter",
    "Connections to Redis that were lost",
    "both",
    _SECOND,
    {"connection": ("commands", "subscriber")},
)
REDIS_CALLBACKS_FAILED = Metric(
    "midstream_redis_callbacks_failed",
    "counter",
    "Replies of Redis for which the code that handles them raised an exception. It is a bug; the process's log has the traceback",
    "both",
    _SECOND,
    {"connection": ("commands", "subscriber")},
)
REDIS_UP = Metric(
    "midstream_redis_up",
    "gauge",
    "1 while this process is connected to Redis, else 0; with several processes 1 only if all of them are",
    "both",
    _SECOND,
    processes="livemin",
)
LOOP_LAG = Metric(
    "midstream_loop_lag_seconds",
    "histogram",
    "How late a timer of the process's event loop fires, measured five times a second: everything in the process is delayed by as much",
    "both",
    "five timers a second",
    buckets=_LATENCIES,
)
CPU_SECONDS = Metric(
    "midstream_cpu_seconds",
    "counter",
    "CPU time, user and system, of all processes of this gateway, or of this worker",
    "both",
    _SECOND,
)
RESIDENT_BYTES = Metric(
    "midstream_resident_bytes",
    "gauge",
    "Resident memory of all processes of this gateway, or of this worker (Linux only)",
    "both",
    _SECOND,
    processes="livesum",
)


BACKGROUND_FAILURES = Metric(
    "midstream_background_failures",
    "counter",
    "How often a background task raised an exception and was restarted. Each time is a bug; the process's log has the traceback",
    "both",
    _RARE,
    {"task": BACKGROUND_TASKS},
)


def markdown() -> str:
    """Returns docs/reference/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "This page is made by `midstream metrics --markdown`. [Watch it](../how-to/watch-it.md) tells where they are served, and",
        "has dashboards and alerts.",
        "",
        "No metric is updated per token. “Costs” states how often a metric is updated. One update of a counter or gauge takes",
        "0.5 µs, or 1.5 µs with several gateway processes; of a histogram 1.5 or 4 µs. Every value of a label exists from the start.",
        f"The `gen_ai_` metrics follow OpenTelemetry's conventions; the first {MODELS_MAX} models that have answered have labels",
        f"of their own, any other is `{OTHER}`.",
    ]
    for where, title in (("gateway", "Gateway"), ("worker", "Worker"), ("both", "Both")):
        lines += ["", f"## {title}", "", "| metric | kind | labels | meaning | costs |", "|---|---|---|---|---|"]
        for metric in defined():
            if metric.where == where:
                labels = "; ".join(
                    f"`{label}`: {', '.join(values)}" if values else f"`{label}`"
                    for label, values in metric.labels.items()
                )
                lines.append(
                    f"| `{metric.exposed}` | {metric.kind} | {labels or '–'} | {metric.help} | {metric.cost} |"
                )
    return "\n".join(lines) + "\n"
