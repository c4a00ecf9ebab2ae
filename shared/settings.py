"""What can be told by environment: one definition for the processes, `midstream settings` and the docs.

Read once per process, in its `__main__`, and handed down. Every limit has its unit in its name and its reason beside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.errors import Unusable

PREFIX = "MIDSTREAM_"


def _setting(
    default: Any, unit: str, why: str, *, least: float | None = None, most: float = math.inf, env: str = ""
) -> Any:
    return field(default=default, metadata={"unit": unit, "why": why, "least": least, "most": most, "env": env})


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting; each can be told as MIDSTREAM_<NAME IN CAPITALS>."""

    redis_url: str = _setting(
        "redis://127.0.0.1:6379/0",
        "URL",
        "Where the log lives: redis://, rediss:// or unix://. `midstream up` and `demo` start an embedded Valkey when it is not told.",
    )
    host: str = _setting(
        "127.0.0.1", "address", "Where the gateway listens; 0.0.0.0 for all of the machine's addresses."
    )
    port: int = _setting(8000, "port", "The gateway's port; 0 takes a free one.", least=0, most=65535)
    log_level: str = _setting("info", "level", "debug, info, warning or error, on standard error.")
    log_format: str = _setting(
        "auto",
        "auto, json, text",
        "One JSON object per line, or lines for people; auto: text on a terminal, else json.",
    )
    log_texts: int = _setting(
        0,
        "0 or 1",
        "1 puts prompts, answers and the provider's own messages on the log too; they are nobody's business by default.",
        least=0,
        most=1,
    )
    metrics_host: str = _setting(
        "127.0.0.1",
        "address",
        "Where a worker serves /metrics and /healthz; 0.0.0.0 for Prometheus on another machine.",
    )
    metrics_port: int = _setting(
        0,
        "port",
        "A worker's port for /metrics, or the next free one of the fifteen after it, for several workers of one machine; 0: none. A gateway has them at its own port.",
        least=0,
        most=65520,
    )

    provider: str = _setting(
        "",
        "name",
        "openai (any OpenAI-compatible API) or simulated. Not told: openai where OPENAI_API_KEY or OPENAI_BASE_URL is set, else simulated.",
    )
    default_model: str = _setting("gpt-4o-mini", "model", "The model of a request that names none.")
    openai_api_key: str = _setting(
        "", "secret", "The provider's key. A local server mostly needs none.", env="OPENAI_API_KEY"
    )
    openai_base_url: str = _setting(
        "", "URL", "The provider's address, with its /v1; not told: OpenAI's own.", env="OPENAI_BASE_URL"
    )

    provider_on_cancel: str = _setting(
        "close",
        "close, drain",
        "What becomes of a cancelled answer: its connection is closed, or, for a provider that bills it whole all the same, it is read to its end for the usage.",
    )

    redis_start_seconds: float = _setting(
        2.5, "seconds", "How long a starting process tries to reach Redis before it says that it cannot.", least=0.1
    )
    redis_reply_seconds: float = _setting(
        5.0,
        "seconds",
        "A connection whose oldest command is unanswered for so long is dead, and is made anew.",
        least=0.1,
    )
    redis_wait_seconds: float = _setting(
        15.0,
        "seconds",
        "How long a request waits for a Redis that is away before it gets 503: longer than a failover, shorter than proxies wait.",
        least=0,
    )
    reconnect_seconds_max: float = _setting(
        1.0,
        "seconds",
        "The longest pause between two tries to reconnect to Redis; the first is 20 ms, with jitter.",
        least=0.02,
    )

    worker_concurrency: int = _setting(
        1000,
        "attempts",
        "How many answers one worker generates at once, at about 60 KB and one provider connection each.",
        least=1,
    )
    lease_seconds: float = _setting(
        10.0,
        "seconds",
        "How long a worker's claim holds without renewal (every third of it): a dead worker's streams are taken over after it.",
        least=0.3,
    )
    attempts_max: int = _setting(
        3,
        "attempts",
        "How often one request is tried with output: a request that kills its worker ends after so many.",
        least=1,
    )
    provider_tries_max: int = _setting(
        4,
        "tries",
        "How often an attempt asks the provider before the first token came; readers do not see it.",
        least=1,
    )
    provider_backoff_seconds: float = _setting(
        0.5,
        "seconds",
        "The pause before the second try; it doubles, with jitter, to 30 s. A Retry-After wins.",
        least=0,
    )
    first_token_seconds: float = _setting(
        120.0,
        "seconds",
        "How long a provider may take to the first token: reasoning models think before they speak.",
        least=0.1,
    )
    between_tokens_seconds: float = _setting(
        60.0, "seconds", "How long a provider may be silent in mid-answer before it counts as stalled.", least=0.1
    )
    attempt_seconds: float = _setting(
        3600.0,
        "seconds",
        "How long one attempt may take in all; far below the log's expiry, which forgets the fence.",
        least=1,
    )
    stream_entries_max: int = _setting(
        200_000, "entries", "A log with more ends as failed: log_full; no model answers that long.", least=10
    )
    stream_bytes_max: int = _setting(
        16 << 20,
        "bytes",
        "The same in payload bytes. A worker holds a copy of what it writes, to repair a Redis that forgot.",
        least=1024,
    )
    entry_tokens_max: int = _setting(
        64,
        "tokens",
        "How many tokens that wait for a round trip go into one entry: a reader may come back inside it.",
        least=1,
        most=200,
    )
    worker_unsent_bytes_max: int = _setting(
        1 << 20,
        "bytes",
        "What one attempt holds while Redis is away before it stops reading from the provider.",
        least=1024,
    )
    worker_drain_seconds: float = _setting(
        20.0,
        "seconds",
        "How long a worker that was asked to stop lets its answers finish before it hands them back.",
        least=0,
    )
    queue_requests_max: int = _setting(
        100_000, "requests", "Requests that wait or run; above it, create answers 503.", least=1
    )
    queue_seconds: float = _setting(
        300.0, "seconds", "How long a request waits for a worker before it ends as failed: queue_timeout.", least=1
    )

    log_ttl_seconds: int = _setting(
        86_400,
        "seconds",
        "A log's expiry from its start: longer than any attempt lives, since an expired log forgets its fence.",
        least=60,
    )
    ended_ttl_seconds: int = _setting(
        3_600, "seconds", "A log's expiry from its terminal event: how long an answer can be read again.", least=1
    )
    tombstone_ttl_seconds: int = _setting(
        300,
        "seconds",
        "How long a deleted stream's name stays barred to late writes: far longer than a lease.",
        least=10,
    )

    body_bytes_max: int = _setting(
        1 << 20, "bytes", "The largest request body; it is kept in Redis with the stream.", least=1024
    )
    gateway_processes: int = _setting(
        1,
        "processes",
        "How many processes one gateway is, all at its one port (Linux); 0: one per core that it may use, by its affinity and its container's CPU limit. One serves tens of thousands of readers and leaves the other cores to Redis and the workers.",
        least=0,
        most=64,
    )
    cors_origins: str = _setting(
        "",
        "origins",
        "Whose pages may use the gateway beside its own origin's: exact origins, separated by commas, as in https://app.example.com; * for all. Not told: nobody else's.",
    )
    hosts: str = _setting(
        "",
        "names",
        "The host names that the gateway answers for beside localhost and literal addresses, separated by commas, as in chat.example.com; * for all. Others get 421, so that no page can let its own name point here. Not told: none on a loopback address, all elsewhere.",
    )
    console: str = _setting(
        "auto",
        "auto, on, off",
        "The console at /, and what it is fed by. It names every live stream, and who knows a stream's name may read and cancel it; so auto means: only where the gateway listens on a loopback address.",
    )
    connections_max: int = _setting(
        20_000,
        "readers",
        "Readers of one gateway process, at about 12 KB each; above it, 503 with Retry-After.",
        least=1,
    )
    connection_seconds: float = _setting(
        900.0,
        "seconds",
        "How old a response grows (less up to a fifth, at random) before its reader is asked to come back: so load spreads again.",
        least=0.1,
    )
    keepalive_seconds: int = _setting(
        15,
        "seconds",
        "A comment goes to every reader this often: proxies cut what is silent for 60 s, some for 30.",
        least=1,
    )
    idle_connection_seconds: int = _setting(
        75,
        "seconds",
        "How long a connection without a request stays open: longer than load balancers keep theirs (60 s mostly), or they meet one that is just closing.",
        least=1,
    )
    request_seconds: float = _setting(
        60.0,
        "seconds",
        "How long a request may take to come whole, from its first byte; a new connection to begin one; and a client to take the next part of an answer that is no reader's.",
        least=0.1,
    )
    retry_milliseconds: int = _setting(
        2_000, "milliseconds", "What clients are told to wait before they reconnect.", least=0
    )
    ring_events: int = _setting(
        256,
        "events",
        "The newest encoded events of a followed stream, kept in memory; readers further back read the log.",
        least=16,
    )
    page_events: int = _setting(
        256, "events", "History is read in pages cut at multiples of it, so that readers can share them.", least=16
    )
    page_cache_bytes_max: int = _setting(
        64 << 20, "bytes", "Pages of history kept encoded in memory, the least recently used go first.", least=0
    )
    sweep_seconds: float = _setting(
        5.0,
        "seconds",
        "A followed stream that is silent for so long is compared with its log, since a lost last push has no successor; "
        "and again, at longer and longer intervals, up to four times this.",
        least=0.1,
    )
    delivery_report_seconds: float = _setting(
        5.0,
        "seconds",
        "How often a gateway notes how far its open connections have come: what a receipt can lack when it is killed.",
        least=0.1,
    )
    orphan_seconds: float = _setting(
        300.0,
        "seconds",
        "A running stream that is silent for so long has no worker left to speak for it, and is ended as failed: worker_lost.",
        least=1,
    )
    send_buffer_bytes: int = _setting(
        65_536,
        "bytes",
        "SO_SNDBUF of a reader's socket: else the kernel keeps 3–4 MB for each that does not read.",
        least=4096,
    )
    dead_peer_seconds: float = _setting(
        60.0,
        "seconds",
        "A reader that takes no byte for so long (TCP_USER_TIMEOUT, Linux) is cut off; it can resume.",
        least=1,
    )
    drain_seconds: float = _setting(
        0.8, "seconds", "How long a gateway that was asked to stop takes to send its readers away.", least=0.05
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """The settings that the environment tells. Raises Unusable that names the variable and what it takes."""
        told: dict[str, Any] = {}
        for setting in described():
            raw = environment.get(setting.env, "").strip()
            if raw:
                told[setting.name] = setting.parse(raw)
        return cls(**told)


@dataclass(frozen=True, slots=True)
class Described:
    """One setting as it is listed."""

    name: str
    env: str
    default: Any
    unit: str
    why: str
    least: float | None
    most: float

    def parse(self, raw: str) -> Any:
        kind = type(self.default)
        if kind is str:
            return raw
        try:
            value = kind(raw)
            finite = math.isfinite(value)
        except (ValueError, OverflowError):
            number = "a whole number" if kind is int else "a number"
            raise Unusable(f"{self.env}={raw!r} must be {number} ({self.unit}), as in {self.default}") from None
        if not finite or (self.least is not None and value < self.least) or value > self.most:
            most = "" if self.most == math.inf else f" and at most {self.most:g}"
            raise Unusable(f"{self.env}={raw} must be at least {self.least:g}{most} ({self.unit})")
        return value


def described() -> Iterator[Described]:
    """Every setting with its variable, default, unit and reason, in the order of their definition."""
    for one in dataclasses.fields(Settings):
        about = one.metadata
        yield Described(
            one.name,
            about["env"] or PREFIX + one.name.upper(),
            one.default,
            about["unit"],
            about["why"],
            about["least"],
            about["most"],
        )
