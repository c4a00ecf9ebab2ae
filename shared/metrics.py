"""Every metric of both processes: one definition, from which they are made and the documentation is.

Names are Prometheus' own way of writing (base units, `_total` for counters). Those that begin with `gen_ai_` are
OpenTelemetry's GenAI metrics, for dashboards that know them
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/). A label has a closed set of values, all of which
exist from the start, so that a rate over one is right from its first event on. What costs anything says how often.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.metric_definition import OTHER, Metric
from shared.outcomes import PROVIDER_CODES, AttemptOutcome, CancelReason, FailureCode, ReaderOutcome, Status

MODELS_MAX = 20
"""Models that get a label of their own, once they have answered: a client may name any model it likes."""

PROVIDER_ODDITY_KINDS = (
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
    "function_call",
    "annotations",
    "audio",
    "logprobs",
    "usage",
    "finish_reason",
    "model",
    "system_fingerprint",
    "service_tier",
    "unstorable",
)
FINISH_REASONS = ("stop", "length", "tool_calls", "function_call", "content_filter", OTHER)
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
REQUEST_STATUSES = ("101", "200", "201", "204", "304", *STATUSES)
FACES = ("sse", "ndjson", "text", "websocket", "prompt", "chat", "responses", "ai_sdk")
"""The forms in which a stream can be followed."""
APIS = ("native", "chat", "responses", "ai_sdk")
"""Those through which a stream can be created."""
BACKGROUND_TASKS = (
    "ages",
    "beats",
    "connection",
    "flush_pace",
    "forget",
    "ledger",
    "look",
    "measure",
    "presence",
    "renew",
    "samples",
    "silence_checks",
    "take_over",
    "request_timeouts",
    "watch",
    "watchers",
)
"""What runs as long as its process: `shared.background` starts it again when it breaks."""
LOG_READ_REASONS = ("begin", "subscribed", "hole", "check", "page")

_LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_OPERATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""OpenTelemetry's for durations of a whole operation, and for the wait for its first chunk."""
_ANSWERS = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
"""From a read of one log to an answer that is waited for. Few, since there is a histogram for each route."""
_PER_TOKEN = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""OpenTelemetry's, with two below: a flat-out local model is faster than 10 ms."""
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304)
_EVENTS_BACK = (0, 1, 10, 100, 256, 1000, 5000, 20000, 100000)

_SECOND = "nothing: a plain number, handed over once a second"
_STREAM = "once per stream"
_ATTEMPT = "once per attempt"
_CALL = "once per call of the provider"
_CONNECTION = "once per connection"
_RARE = "when it happens, which is rarely"
_LOOK = "one look at Redis every 5 s, by each gateway process"


def defined() -> Iterator[Metric]:
    """All of them, in the order of their definition."""
    return (one for one in globals().values() if isinstance(one, Metric))


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
    "Processes of this gateway that were started, also again",
    "gateway",
    _RARE,
)
READERS = Metric(
    "midstream_readers", "gauge", "Connections that follow a stream now", "gateway", _SECOND, processes="livesum"
)
READERS_MAX = Metric(
    "midstream_readers_max",
    "gauge",
    "How many may: MIDSTREAM_CONNECTIONS_MAX of each process",
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
    "Connections that have ended, by how",
    "gateway",
    _CONNECTION,
    {"outcome": tuple(ReaderOutcome)},
)
TOKENS_DELIVERED = Metric(
    "midstream_tokens_delivered",
    "counter",
    "Tokens handed to readers' sockets, for each reader anew. Counted when a connection's progress is noted, so up to MIDSTREAM_DELIVERY_REPORT_SECONDS late",
    "gateway",
    "an addition per connection and report",
)
RESUMES = Metric(
    "midstream_resumes",
    "counter",
    "Readers that came back with an id, by where they go on: in the ring, from the log, or ahead of this gateway",
    "gateway",
    _CONNECTION,
    {"place": ("ring", "log", "ahead")},
)
RESUME_EVENTS_BACK = Metric(
    "midstream_resume_events_back",
    "histogram",
    "How many events they lacked; of one that comes from an earlier attempt, all of the newest",
    "gateway",
    _CONNECTION,
    buckets=_EVENTS_BACK,
)
RING_FALLOUTS = Metric(
    "midstream_ring_fallouts",
    "counter",
    "Readers so slow that they fell out of the ring and went on from the log",
    "gateway",
    _SECOND,
)
PAGES_SENT = Metric("midstream_pages_sent", "counter", "Pages of history sent to readers", "gateway", _SECOND)
GAPS = Metric("midstream_gaps", "counter", "Holes found in logs, of which readers are told by `gap`", "gateway", _RARE)
FACE_FAILURES = Metric(
    "midstream_face_failures",
    "counter",
    "Events that an API of the gateway could not show: those who follow that stream through it were told that it failed. It is a bug; the log has its trace",
    "gateway",
    _RARE,
)
PUSHES_PASSED_OVER = Metric(
    "midstream_pushes_passed_over",
    "counter",
    "Messages on a stream's channel that are no entry of a log; the log was read instead",
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
STREAMS_FOLLOWED = Metric(
    "midstream_streams_followed",
    "gauge",
    "Streams that have a reader here; one that is read through several processes counts in each",
    "gateway",
    _SECOND,
    processes="livesum",
)
ENTRIES_PUSHED = Metric(
    "midstream_entries_pushed",
    "counter",
    "Entries that Redis pushed, one to MIDSTREAM_ENTRY_TOKENS_MAX tokens each",
    "gateway",
    "an addition per read of the socket; handed over once a second",
)
FLUSHES = Metric(
    "midstream_flushes",
    "counter",
    "Times that what was new went to the sockets; fewer for the same tokens is merging",
    "gateway",
    "an addition per flush; handed over once a second",
)
APPEND_TO_SOCKET = Metric(
    "midstream_append_to_socket_seconds",
    "histogram",
    "From a worker's clock, as it sends a stream's last entry, to when this process has written it to its readers' sockets. A sample: one for each followed stream that was not cancelled; tokens take the same way. Clocks of two machines differ: negative counts as 0",
    "gateway",
    "once per followed stream",
    buckets=_LATENCIES,
)
LOG_READS = Metric(
    "midstream_log_reads",
    "counter",
    "Reads of a log by the gateway, by why: the first of a followed stream, a subscription that was (again) confirmed, a push that was not the next (a new attempt and a cancel are such), a check that found more, a page of history",
    "gateway",
    _SECOND,
    {"reason": LOG_READ_REASONS},
)
LOG_CHECKS = Metric(
    "midstream_log_checks", "counter", "Silent streams that were compared with their logs", "gateway", _SECOND
)
PAGE_CACHE_BYTES = Metric(
    "midstream_page_cache_bytes", "gauge", "Pages of history kept encoded", "gateway", _SECOND, processes="livesum"
)
TICK_SECONDS = Metric(
    "midstream_tick_seconds",
    "gauge",
    "The flush pace: how long what is new may wait to be merged. 0 while the process has time, at most 0.05; of several processes the longest",
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
    "once per such answer",
    {"status": STATUSES},
)

# --- gateway: what it sees of Redis for all

QUEUE_REQUESTS = Metric(
    "midstream_queue_requests",
    "gauge",
    "Requests that wait for a worker, and those that one has claimed",
    "gateway",
    _LOOK,
    {"state": ("waiting", "claimed")},
    processes="livemostrecent",
)
QUEUE_OLDEST_SECONDS = Metric(
    "midstream_queue_oldest_seconds",
    "gauge",
    "How long the oldest request that waits has waited; 0 if none does",
    "gateway",
    _LOOK,
    processes="livemostrecent",
)
REDIS_MEMORY_BYTES = Metric(
    "midstream_redis_memory_bytes", "gauge", "What Redis uses", "gateway", _LOOK, processes="livemostrecent"
)
REDIS_HEADROOM_BYTES = Metric(
    "midstream_redis_headroom_bytes",
    "gauge",
    "What Redis may still take: to its maxmemory, or to its machine's memory where it has none",
    "gateway",
    _LOOK,
    processes="livemostrecent",
)
REDIS_KEYS = Metric(
    "midstream_redis_keys", "gauge", "Keys in our database", "gateway", _LOOK, processes="livemostrecent"
)
REDIS_CLIENTS = Metric(
    "midstream_redis_clients", "gauge", "Connections to Redis", "gateway", _LOOK, processes="livemostrecent"
)
REDIS_COMMANDS_PER_SECOND = Metric(
    "midstream_redis_commands_per_second",
    "gauge",
    "Commands that Redis carries out, those in scripts too",
    "gateway",
    _LOOK,
    processes="livemostrecent",
)
REDIS_EVICTED_KEYS = Metric(
    "midstream_redis_evicted_keys",
    "gauge",
    "Keys that Redis has evicted since it started: it must be 0",
    "gateway",
    _LOOK,
    processes="livemostrecent",
)

# --- worker

ATTEMPTS_RUNNING = Metric(
    "midstream_attempts_running", "gauge", "Answers that this worker generates now", "worker", _SECOND
)
ATTEMPT_SLOTS = Metric(
    "midstream_attempt_slots", "gauge", "How many it may at once: MIDSTREAM_WORKER_CONCURRENCY", "worker", "nothing"
)
TOKENS_GENERATED = Metric(
    "midstream_tokens_generated",
    "counter",
    "Tokens (increments of the provider) that were appended, in all attempts; of one that was cancelled or taken over, the entry that was under way too",
    "worker",
    "nothing: worked out of the offsets once a second, and at an attempt's end",
)
QUEUE_SECONDS = Metric(
    "midstream_queue_wait_seconds",
    "histogram",
    "From a request's acceptance to its first attempt",
    "worker",
    _STREAM,
    buckets=_OPERATIONS,
)
TIME_TO_FIRST_TOKEN = Metric(
    "midstream_time_to_first_token_seconds",
    "histogram",
    "From a request's acceptance to its first token: what a reader waits, with the queue and all tries",
    "worker",
    _STREAM,
    buckets=_OPERATIONS,
)
APPEND_SECONDS = Metric(
    "midstream_append_seconds",
    "histogram",
    "How long Redis takes to append and publish, with the way there and back. A sample: an attempt's first and last entry",
    "worker",
    "twice per attempt",
    buckets=_LATENCIES,
)
ATTEMPTS = Metric(
    "midstream_attempts",
    "counter",
    "Attempts that have ended, by how; `restarted`: the provider broke off and another attempt follows; `fenced`: cancelled, or taken over by another worker",
    "worker",
    _ATTEMPT,
    {"outcome": tuple(AttemptOutcome)},
)
ANSWERS = Metric(
    "midstream_answers",
    "counter",
    "Complete answers by finish_reason; `length` is a truncated one",
    "worker",
    _STREAM,
    {"finish_reason": FINISH_REASONS},
)
PROVIDER_CALLS = Metric("midstream_provider_calls", "counter", "Times that the provider was asked", "worker", _CALL)
PROVIDER_ERRORS = Metric(
    "midstream_provider_errors",
    "counter",
    "Calls that did not come to their end, by failure code",
    "worker",
    _CALL,
    {"code": (*PROVIDER_CODES, OTHER)},
)
PROVIDER_ODDITIES = Metric(
    "midstream_provider_oddities",
    "counter",
    "Chunks of the provider in which a value had not its documented shape, or could not be stored, by field: it was left out or made text",
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
    "Leases that another worker had taken, or Redis forgotten, when they were to be renewed",
    "worker",
    _RARE,
)
FENCED_WRITES = Metric(
    "midstream_fenced_writes",
    "counter",
    "Attempts that were refused by a later one, a cancel or a delete",
    "worker",
    _RARE,
)
LOG_REPAIRS = Metric(
    "midstream_log_repairs",
    "counter",
    "Times that Redis had forgotten entries which were appended again",
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
    "A call of the provider, from its request to its end; `error_type` is empty, or the failure code",
    "worker",
    _CALL,
    {**_GEN_AI, "error_type": ()},
    buckets=_OPERATIONS,
)
GEN_AI_FIRST_CHUNK = Metric(
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "histogram",
    "From the request to the provider to its first token",
    "worker",
    _CALL,
    _GEN_AI,
    buckets=_OPERATIONS,
)
GEN_AI_PER_TOKEN = Metric(
    "gen_ai_server_time_per_output_token_seconds",
    "histogram",
    "The mean time between two tokens of a complete answer, after the first; once per answer",
    "worker",
    _CALL,
    _GEN_AI,
    buckets=_PER_TOKEN,
)
GEN_AI_USAGE = Metric(
    "gen_ai_client_token_usage",
    "histogram",
    "Tokens of an answer as the provider bills them, input and output; nothing where it does not say",
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
    "Streams that it ended as failed, by failure code",
    "both",
    _RARE,
    {"code": (*FailureCode, OTHER)},
)
CANCELS = Metric(
    "midstream_cancels",
    "counter",
    "Streams that it ended as cancelled: by a client's wish, because the last reader had gone, or by an operator",
    "both",
    _STREAM,
    {"by": tuple(CancelReason)},
)
RECEIPTS = Metric("midstream_receipts", "counter", "Receipts written to the log, one per ended stream", "both", _STREAM)
RECEIPT_TOKENS = Metric(
    "midstream_receipt_tokens",
    "counter",
    "Tokens in those receipts that stand in the answers: delivered to somebody, or to nobody as yet, a second after the end",
    "both",
    _STREAM,
    {"fate": ("delivered", "undelivered")},
)
QUEUE_UNREADABLE = Metric(
    "midstream_queue_unreadable",
    "counter",
    "Entries of the request queue that name no stream, and were taken out of it: somebody else writes there",
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
    "A PING on the connection that all commands share, once a second: Redis, the network and our own queue",
    "both",
    "one command a second",
    buckets=_LATENCIES,
)
REDIS_WRITES = Metric(
    "midstream_redis_writes",
    "counter",
    "Pipelines sent to Redis: all that was ready in one turn of the event loop",
    "both",
    "an addition per write; handed over once a second",
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
    "Replies of Redis at which our own code raised an exception. It is a bug; the log has its trace",
    "both",
    _SECOND,
    {"connection": ("commands", "subscriber")},
)
REDIS_UP = Metric(
    "midstream_redis_up",
    "gauge",
    "1 while this process is connected to Redis; of several processes the worst",
    "both",
    _SECOND,
    processes="livemin",
)
LOOP_LAG = Metric(
    "midstream_loop_lag_seconds",
    "histogram",
    "How late a timer of the process's event loop fires, ten times a second: what everything in it waits",
    "both",
    "ten timers a second",
    buckets=_LATENCIES,
)
CPU_SECONDS = Metric(
    "midstream_cpu_seconds", "counter", "CPU time, user and system, of all its processes", "both", _SECOND
)
RESIDENT_BYTES = Metric(
    "midstream_resident_bytes", "gauge", "Memory, of all its processes (Linux)", "both", _SECOND, processes="livesum"
)


BACKGROUND_FAILURES = Metric(
    "midstream_background_failures",
    "counter",
    "How often a task that is to run as long as its process broke, and was started again: each is a bug, and its log line has the trace",
    "both",
    _RARE,
    {"task": BACKGROUND_TASKS},
)


def markdown() -> str:
    """The page of the documentation."""
    lines = [
        "# Metrics",
        "",
        "This page is made by `midstream metrics --markdown`. [Watch it](../how-to/watch-it.md) says where they are served, and",
        "has the dashboards and alerts that are made of them.",
        "",
        "No metric is touched per token. “Costs” says how often one is: a counter or gauge costs 0.5 µs, or 1.5 with several",
        "gateway processes, a histogram 1.5 or 4. Every value of a label exists from the start. The `gen_ai_` metrics follow",
        f"OpenTelemetry's conventions; a model has a label of its own once it has answered, the first {MODELS_MAX} of them,",
        f"any other is `{OTHER}`.",
    ]
    for where, title in (("gateway", "Gateway"), ("worker", "Worker"), ("both", "Both")):
        lines += ["", f"## {title}", "", "| metric | kind | labels | meaning | costs |", "|---|---|---|---|---|"]
        for one in defined():
            if one.where == where:
                labels = "; ".join(
                    f"`{label}`: {', '.join(values)}" if values else f"`{label}`"
                    for label, values in one.labels.items()
                )
                lines.append(f"| `{one.exposed}` | {one.kind} | {labels or '–'} | {one.help} | {one.cost} |")
    return "\n".join(lines) + "\n"
