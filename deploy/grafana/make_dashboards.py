"""Writes the dashboards in the folder `dashboards`: `python deploy/grafana/make_dashboards.py [--check]`.

A panel is a title, a description and its expressions; the rest of Grafana's JSON is alike for all panels. Change panels here:
changes that are made in Grafana are lost at its next start.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_DIRECTORY = Path(__file__).parent / "dashboards"
_ROW_HEIGHT, _COLUMNS = 8, 24


@dataclass
class Panel:
    title: str
    description: str
    expressions: dict[str, str]
    """PromQL expressions by legend."""
    unit: str = "short"
    width: int = 8
    kind: str = "timeseries"
    stacked: bool = False
    thresholds: tuple[float, ...] = field(default_factory=tuple)
    """The values from which a panel turns yellow and red."""


def rate(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


def quantile(share: float, histogram: str) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate({histogram}_bucket[$__rate_interval])))"


def quantiles(histogram: str) -> dict[str, str]:
    return {f"p{share * 100:g}": quantile(share, histogram) for share in (0.5, 0.95, 0.99)}


def share(part: str, whole: str) -> str:
    return f"{part} / ({whole} > 0 or vector(1))"


_FAILED = rate('midstream_streams_ended_total{status="failed"}')
_UNDELIVERED = rate('midstream_receipt_tokens_total{fate="undelivered"}')

OVERVIEW = [
    Panel(
        "Running answers",
        "Answers that workers generate now.",
        {"": "sum(midstream_attempts_running)"},
        width=4,
        kind="stat",
    ),
    Panel("Readers", "Connections that follow a stream now.", {"": "sum(midstream_readers)"}, width=4, kind="stat"),
    Panel(
        "Tokens/s",
        "Tokens appended to the logs, in all attempts.",
        {"": rate("midstream_tokens_generated_total")},
        width=4,
        kind="stat",
    ),
    Panel(
        "First token (p95)",
        "Time from a request's acceptance; includes the queue and all calls of the provider.",
        {"": quantile(0.95, "midstream_time_to_first_token_seconds")},
        "s",
        width=4,
        kind="stat",
        thresholds=(5, 10),
    ),
    Panel(
        "Failed streams",
        "Share of the streams that ended as failed, after all tries.",
        {"": share(_FAILED, rate("midstream_streams_ended_total"))},
        "percentunit",
        width=4,
        kind="stat",
        thresholds=(0.01, 0.05),
    ),
    Panel(
        "Redis memory left",
        "Share of memory left, up to maxmemory. At 0 answers end as log_full.",
        {"": "min(midstream_redis_headroom_bytes / (midstream_redis_headroom_bytes + midstream_redis_memory_bytes))"},
        "percentunit",
        width=4,
        kind="stat",
    ),
    Panel(
        "Streams that end",
        "By status. Failed: after all tries. Cancelled: by a client, or because the last reader had gone.",
        {"{{status}}": rate("midstream_streams_ended_total", "status")},
        "ops",
        stacked=True,
    ),
    Panel(
        "Tokens generated and delivered",
        "Delivered counts each reader of a stream, and tokens that are sent again; it is up to 5 s late.",
        {"generated": rate("midstream_tokens_generated_total"), "delivered": rate("midstream_tokens_delivered_total")},
    ),
    Panel("Time to first token", "How long a reader waits.", quantiles("midstream_time_to_first_token_seconds"), "s"),
    Panel(
        "From append to socket",
        "One sample per followed stream, for its last entry. 1 ms on an idle system; at full load up to 50 ms more for merged writes, and the network.",
        quantiles("midstream_append_to_socket_seconds"),
        "s",
    ),
    Panel(
        "Queue",
        "Waiting requests should return to 0 soon; otherwise workers are missing.",
        {
            "waiting": 'max(midstream_queue_requests{state="waiting"})',
            "claimed": 'max(midstream_queue_requests{state="claimed"})',
        },
    ),
    Panel(
        "Parts",
        "Gateways and workers that answer Prometheus, and the number of gateway processes.",
        {"{{job}}": "sum by (job) (up)", "gateway processes": "sum(midstream_gateway_processes)"},
    ),
    Panel(
        "Undelivered tokens",
        "Share of ended streams' tokens that were sent to no reader, but were paid for.",
        {"undelivered": share(_UNDELIVERED, rate("midstream_receipt_tokens_total"))},
        "percentunit",
    ),
    Panel(
        "Requests answered with an error",
        "By HTTP status. 503: the gateway is full or stopping, or Redis cannot be reached.",
        {"{{status}}": f"{rate('midstream_http_problems_total', 'status')}"},
        "ops",
    ),
    Panel(
        "CPU",
        "Cores in use by all processes of a gateway or worker.",
        {"{{job}} {{instance}}": rate("midstream_cpu_seconds_total", "job, instance")},
    ),
]

STREAMS = [
    Panel("Readers", "By gateway.", {"{{instance}}": "sum by (instance) (midstream_readers)"}, stacked=True),
    Panel(
        "Readers that leave",
        "By outcome: completed, disconnected by the client, rotated (after 15 min), drained (gateway stopped), slow (took no bytes), error (log gone).",
        {"{{outcome}}": rate("midstream_reader_closes_total", "outcome")},
        "ops",
        stacked=True,
    ),
    Panel(
        "Streams followed, and created",
        "One second after its end, every stream's receipt is logged.",
        {
            "followed": "sum(midstream_streams_followed)",
            "created/s": rate("midstream_streams_created_total"),
            "receipts/s": rate("midstream_receipts_total"),
        },
    ),
    Panel(
        "Readers that come",
        "By the form in which they follow a stream.",
        {"{{face}}": rate("midstream_reader_opens_total", "face")},
        "ops",
        stacked=True,
    ),
    Panel(
        "Streams created",
        "By the API through which they were requested.",
        {"{{api}}": rate("midstream_streams_created_total", "api")},
        "ops",
        stacked=True,
    ),
    Panel(
        "Limits that were reached",
        "Requests that were refused, by the limit and by whose it is.",
        {"{{limit}} of {{of}}": rate("midstream_limit_refusals_total", "limit, of")},
        "ops",
        stacked=True,
    ),
    Panel(
        "Streams that other programs write",
        "Events and attempts of external writers, and messages of written streams.",
        {
            "events": rate("midstream_external_entries_total"),
            "events that were there already": rate("midstream_external_events_known_total"),
            "attempts": rate("midstream_external_attempts_total"),
            "writers that were lost": rate("midstream_external_writers_lost_total"),
            "messages": rate("midstream_messages_written_total"),
            "bytes": rate("midstream_bytes_written_total"),
        },
        "ops",
    ),
    Panel(
        "Requests",
        "By method and route; those that no route is meant by are other.",
        {"{{method}} {{route}}": rate("midstream_http_requests_total", "method, route")},
        "ops",
    ),
    Panel(
        "Requests by status",
        "101: a WebSocket. other: also clients that left before their answer began.",
        {"{{status}}": rate("midstream_http_requests_total", "status")},
        "ops",
        stacked=True,
    ),
    Panel(
        "Until an answer begins",
        "The 95th percentile by route. A request that waits for an answer's end takes as long as that.",
        {
            "{{method}} {{route}}": "histogram_quantile(0.95, sum by (le, method, route) (rate(midstream_http_request_seconds_bucket[$__rate_interval])))"
        },
        "s",
    ),
    Panel(
        "Versions",
        "Processes that Prometheus scrapes, by the version that they run.",
        {"{{job}} {{version}}": "sum by (job, version) (midstream_build_info)"},
    ),
    Panel(
        "Resumes",
        "Readers that resumed, by where their next event was. Many from the log: they were away for long, or the ring is small.",
        {"{{place}}": rate("midstream_resumes_total", "place")},
        "ops",
        stacked=True,
    ),
    Panel(
        "Missed events at resumption",
        "Events that a reader had missed when it resumed.",
        {
            "p50": quantile(0.5, "midstream_resume_events_back"),
            "p95": quantile(0.95, "midstream_resume_events_back"),
        },
    ),
    Panel(
        "History",
        "Readers that fell out of the ring, and pages of the log sent and read. Far more sent than read: the cache works.",
        {
            "fell out": rate("midstream_ring_fallouts_total"),
            "pages sent": rate("midstream_pages_sent_total"),
            "pages read": rate('midstream_log_reads_total{reason="page"}'),
        },
        "ops",
    ),
    Panel(
        "Reads of the log",
        "By reason. hole, check: pushed messages were missing. subscribed: a new subscription or a reconnection.",
        {"{{reason}}": rate("midstream_log_reads_total", "reason")},
        "ops",
        stacked=True,
    ),
    Panel(
        "Gaps",
        "Gaps in logs. Always 0, unless Redis has lost entries that it had acknowledged.",
        {"gaps": "sum(increase(midstream_gaps_total[$__rate_interval]))"},
    ),
    Panel(
        "Unexpected events",
        "Must be 0: events that could not be encoded for an API; pushed messages that are not log entries; replies of Redis whose handler raised an exception.",
        {
            "events": "sum(increase(midstream_face_failures_total[$__rate_interval]))",
            "pushes": "sum(increase(midstream_pushes_passed_over_total[$__rate_interval]))",
            "replies": "sum(increase(midstream_redis_callbacks_failed_total[$__rate_interval]))",
        },
    ),
    Panel(
        "From append to socket",
        "One sample per stream, at its end.",
        quantiles("midstream_append_to_socket_seconds"),
        "s",
    ),
    Panel(
        "Entries pushed, flushes",
        "Fewer flushes than entries: several entries were merged into one write.",
        {"entries": rate("midstream_entries_pushed_total"), "flushes": rate("midstream_flushes_total")},
        "ops",
    ),
    Panel(
        "The flush pace",
        "The longest wait of a new event to be merged. 0: the process has CPU time to spare. 50 ms: it has none left.",
        {"{{instance}}": "max by (instance) (midstream_tick_seconds)"},
        "s",
    ),
    Panel(
        "Event loop lag",
        "How late timers fire: everything in the process is delayed by as much.",
        {
            "{{job}} p99": "histogram_quantile(0.99, sum by (le, job) (rate(midstream_loop_lag_seconds_bucket[$__rate_interval])))"
        },
        "s",
    ),
    Panel(
        "Memory of gateways",
        "Resident memory of all processes of each gateway, and the part that cached pages of logs use.",
        {
            "{{instance}}": 'sum by (instance) (midstream_resident_bytes{job="midstream-gateway"})',
            "pages": "sum(midstream_page_cache_bytes)",
        },
        "bytes",
    ),
    Panel(
        "Gateway processes started",
        "Starts of processes. An increase without a deployment means that processes die.",
        {"{{instance}}": "sum by (instance) (midstream_gateway_process_starts_total)"},
    ),
    Panel(
        "Cancelled",
        "By origin. `disconnect`: the last reader had gone for longer than the request allows.",
        {"{{by}}": rate("midstream_cancels_total", "by")},
        "ops",
        stacked=True,
    ),
]

_BY_MODEL = "le, gen_ai_request_model"
PRODUCERS = [
    Panel(
        "Slots in use",
        "At 100 % the next request waits in the queue.",
        {
            "{{instance}}": "sum by (instance) (midstream_attempts_running) / sum by (instance) (midstream_attempt_slots)"
        },
        "percentunit",
    ),
    Panel(
        "Oldest request that waits",
        "How long it has waited; 0 while any worker is free.",
        {"oldest": "max(midstream_queue_oldest_seconds)"},
        "s",
    ),
    Panel(
        "Wait in the queue",
        "Time from acceptance to the first attempt.",
        quantiles("midstream_queue_wait_seconds"),
        "s",
    ),
    Panel(
        "Attempts that end",
        "By outcome. restarted: the provider broke off in mid-answer. fenced: cancelled, deleted or taken over.",
        {"{{outcome}}": rate("midstream_attempts_total", "outcome")},
        "ops",
        stacked=True,
    ),
    Panel(
        "Provider errors",
        "Failed calls by code; a retry may still succeed.",
        {"{{code}}": rate("midstream_provider_errors_total", "code"), "calls": rate("midstream_provider_calls_total")},
        "ops",
    ),
    Panel(
        "Streams that fail",
        "By code, after all tries, as readers see it.",
        {"{{code}}": rate("midstream_stream_failures_total", "code")},
        "ops",
        stacked=True,
    ),
    Panel(
        "Provider: time to first chunk (p95)",
        "By model; without the time in the queue and earlier tries.",
        {
            "{{gen_ai_request_model}}": f"histogram_quantile(0.95, {rate('gen_ai_client_operation_time_to_first_chunk_seconds_bucket', _BY_MODEL)})"
        },
        "s",
    ),
    Panel(
        "Provider: time per token (p50)",
        "By model; each complete answer counts with its mean.",
        {
            "{{gen_ai_request_model}}": f"histogram_quantile(0.5, {rate('gen_ai_server_time_per_output_token_seconds_bucket', _BY_MODEL)})"
        },
        "s",
    ),
    Panel(
        "Provider: duration of a call (p95)",
        "By failure code; without a name: successful calls.",
        {
            "{{error_type}}": f"histogram_quantile(0.95, {rate('gen_ai_client_operation_duration_seconds_bucket', 'le, error_type')})"
        },
        "s",
    ),
    Panel(
        "Tokens that the provider bills",
        "From the provider's `usage`, by model.",
        {
            "{{gen_ai_token_type}} {{gen_ai_request_model}}": rate(
                "gen_ai_client_token_usage_sum", "gen_ai_token_type, gen_ai_request_model"
            )
        },
    ),
    Panel(
        "Complete answers",
        "By finish_reason. length: truncated at the limit.",
        {"{{finish_reason}}": rate("midstream_answers_total", "finish_reason")},
        "ops",
        stacked=True,
    ),
    Panel(
        "Tokens generated",
        "By worker.",
        {"{{instance}}": rate("midstream_tokens_generated_total", "instance")},
        stacked=True,
    ),
    Panel(
        "Leases",
        "Leases taken over from workers that died or stalled, and leases that workers lost.",
        {
            "taken over": "sum(increase(midstream_lease_takeovers_total[$__rate_interval]))",
            "lost": "sum(increase(midstream_leases_lost_total[$__rate_interval]))",
        },
    ),
    Panel(
        "Fenced writes",
        "Attempts whose entries were refused because of a later attempt, a cancel or a delete.",
        {"fenced": "sum(increase(midstream_fenced_writes_total[$__rate_interval]))"},
    ),
    Panel(
        "Oddities of providers",
        "Values of another shape than documented; they were left out or turned into text.",
        {"{{kind}}": "sum by (kind) (increase(midstream_provider_oddities_total[$__rate_interval]))"},
    ),
    Panel(
        "Memory of workers",
        "",
        {"{{instance}}": 'sum by (instance) (midstream_resident_bytes{job="midstream-worker"})'},
        "bytes",
    ),
]

REDIS = [
    Panel(
        "Memory",
        "Memory that Redis uses, and that it may still use.",
        {"used": "max(midstream_redis_memory_bytes)", "left": "min(midstream_redis_headroom_bytes)"},
        "bytes",
        stacked=True,
    ),
    Panel(
        "Round trip",
        "Round trip of a PING on the shared connection, once a second.",
        quantiles("midstream_redis_round_trip_seconds"),
        "s",
    ),
    Panel(
        "Append",
        "Time to append and publish the first and the last entry of an attempt.",
        quantiles("midstream_append_seconds"),
        "s",
    ),
    Panel(
        "Commands/s",
        "Commands as Redis counts them, those in scripts included.",
        {"commands": "max(midstream_redis_commands_per_second)"},
        "ops",
    ),
    Panel(
        "Pipelines/s",
        "Writes to Redis; each has all commands of one turn of an event loop.",
        {"{{job}} {{connection}}": rate("midstream_redis_writes_total", "job, connection")},
        "ops",
    ),
    Panel(
        "Connections lost",
        "",
        {
            "{{job}} {{connection}}": "sum by (job, connection) (increase(midstream_redis_reconnects_total[$__rate_interval]))",
            "parts that are connected": "sum(midstream_redis_up)",
        },
    ),
    Panel(
        "Keys",
        "Logs, delivery notes, idempotency keys. All of them expire.",
        {"keys": "max(midstream_redis_keys)"},
    ),
    Panel(
        "Clients",
        "Connections to Redis, those of other programs included.",
        {"clients": "max(midstream_redis_clients)"},
    ),
    Panel(
        "Archive",
        "Ended streams that were written to the archive, logs that were brought back for a reader, and writes that failed.",
        {
            "archived": rate("midstream_archived_streams_total"),
            "brought back": rate("midstream_restored_streams_total"),
            "failed: {{kind}}": rate("midstream_archive_failures_total", "kind"),
        },
        "ops",
    ),
    Panel(
        "Waiting for the archive",
        "Streams that run or wait for the archive, and processes that reach its database. It grows while the database is away.",
        {"streams": "max(midstream_unarchived_streams)", "reach it": "sum(midstream_archive_up)"},
    ),
    Panel("Archive write time", "Of one transaction.", quantiles("midstream_archive_write_seconds"), "s"),
    Panel(
        "Webhooks",
        "Those that arrived, tries that failed, and those that were given up.",
        {
            "arrived": rate("midstream_webhooks_delivered_total"),
            "failed: {{kind}}": rate("midstream_webhook_failures_total", "kind"),
            "given up: {{reason}}": rate("midstream_webhooks_dead_total", "reason"),
        },
    ),
    Panel(
        "Webhooks that are tried again",
        "They grow while a receiver is away.",
        {"tried again": "max(midstream_webhooks_waiting)", "given up, kept": "max(midstream_webhooks_dead_kept)"},
    ),
    Panel(
        "Oldest webhook that is tried again",
        "For how long it has been tried; after a day it is given up.",
        {"oldest": "max(midstream_webhook_oldest_seconds)"},
        "s",
    ),
    Panel("Time of a webhook's try", "Until the receiver has answered.", quantiles("midstream_webhook_seconds"), "s"),
    Panel(
        "Lost data",
        "Keys that Redis evicted, and logs that workers had to repair. Both must be 0.",
        {
            "evicted": "max(midstream_redis_evicted_keys)",
            "repairs": "sum(increase(midstream_log_repairs_total[$__rate_interval]))",
        },
    ),
    Panel(
        "Silent streams compared",
        "Checks for pushed messages that were lost, and those that found some.",
        {
            "checks": rate("midstream_log_checks_total"),
            "found more": rate('midstream_log_reads_total{reason="check"}'),
        },
        "ops",
    ),
]

DASHBOARDS = {
    "overview": ("Midstream: overview", OVERVIEW),
    "streams": ("Midstream: streams and readers", STREAMS),
    "producers": ("Midstream: producers", PRODUCERS),
    "redis": ("Midstream: Redis", REDIS),
}


def dashboard(name: str, title: str, panels: list[Panel]) -> dict[str, Any]:
    """Returns the dashboard's JSON as Grafana stores it."""
    drawn: list[dict[str, Any]] = []
    x = y = 0
    for number, panel in enumerate(panels, 1):
        height = 4 if panel.kind == "stat" else _ROW_HEIGHT
        if x + panel.width > _COLUMNS:
            x, y = 0, y + (drawn[-1]["gridPos"]["h"])
        drawn.append(_drawn(number, panel, {"h": height, "w": panel.width, "x": x, "y": y}))
        x += panel.width
    return {
        "uid": f"midstream-{name}",
        "title": title,
        "tags": ["midstream"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}]
        },
        "links": [
            {"type": "dashboards", "title": "Midstream", "tags": ["midstream"], "asDropdown": False, "keepTime": True}
        ],
        "panels": drawn,
    }


def _drawn(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": color, "value": at} for color, at in zip(("yellow", "red"), panel.thresholds, strict=False)]
    custom = {"fillOpacity": 10, "showPoints": "never"} | ({"stacking": {"mode": "normal"}} if panel.stacked else {})
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    options: dict[str, Any] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    if panel.kind == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value"}
    else:
        defaults["custom"] = custom
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": source,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(65 + index), "datasource": source, "expr": expression, "legendFormat": legend or "__auto"}
            for index, (legend, expression) in enumerate(panel.expressions.items())
        ],
    }


def main(arguments: list[str]) -> int:
    out_of_date = []
    for name, (title, panels) in DASHBOARDS.items():
        path = _DIRECTORY / f"{name}.json"
        made = json.dumps(dashboard(name, title, panels), indent=1, ensure_ascii=False) + "\n"
        if "--check" in arguments:
            if not path.exists() or path.read_text() != made:
                out_of_date.append(path.name)
        else:
            path.write_text(made)
    if out_of_date:
        sys.stderr.write(f"out of date: {', '.join(out_of_date)}; to make them again: python {sys.argv[0]}\n")
    return 1 if out_of_date else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
