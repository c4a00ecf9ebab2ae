"""The settings, which are environment variables: one definition for the processes, `midstream settings` and the docs.

Read once per process, in its `__main__`, and handed down. Every limit has its unit in its name and its reason beside it.
(docs/decisions/0010-settings-without-a-library.md)
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.errors import Unusable

PREFIX = "MIDSTREAM_"
_NOT_SETTINGS = frozenset({"MIDSTREAM_URL", "MIDSTREAM_API_KEY"})
"""Variables of the command line: the gateway that `midstream tail`, `top` and `usage` ask, and the key that they show it."""
_OTHER_NAMES = {"OPENAI_API_BASE": "OPENAI_BASE_URL", "OPENAI_BASE": "OPENAI_BASE_URL", "OPENAI_KEY": "OPENAI_API_KEY"}
"""Names under which others, or earlier versions of OpenAI's SDK, know a setting."""
_OF_KUBERNETES = re.compile(r"_(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)$")
"""Variables that Kubernetes sets for each service, as for one that is called midstream-gateway."""
_WARNINGS_MAX = 20


def _setting(
    default: Any,
    unit: str,
    why: str,
    *,
    least: float | None = None,
    most: float = math.inf,
    env: str = "",
    choices: tuple[str, ...] = (),
) -> Any:
    metadata = {"unit": unit, "why": why, "least": least, "most": most, "env": env, "choices": choices}
    return field(default=default, metadata=metadata, repr=unit not in ("secret", "URL"))  # a URL may have a password


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting. Its variable is MIDSTREAM_<NAME IN CAPITALS>, unless `env` names another."""

    redis_url: str = _setting(
        "redis://127.0.0.1:6379/0",
        "URL",
        "Where the logs are: redis://, rediss:// or unix://; with ?ssl_ca_certs=, &ssl_certfile= and &ssl_keyfile= after rediss:// where the server or the client has a certificate of your own; redis+cluster://host:port,host:port for a cluster; redis+sentinel://host:port,host:port/primary-name/0 for a primary that Sentinels know. If it is not set, `midstream up` and `demo` start an embedded Valkey.",
    )
    sentinel_username: str = _setting(
        "", "name", "The user of the Sentinels, where they have one of their own; the primary's is in the URL."
    )
    sentinel_password: str = _setting("", "secret", "The password of the Sentinels.")
    host: str = _setting(
        "127.0.0.1", "address", "The address at which the gateway listens; 0.0.0.0 for all of the machine's."
    )
    port: int = _setting(8000, "port", "The gateway's port; 0 takes a free one.", least=0, most=65535)
    auth: str = _setting(
        "auto",
        "auto, required, none",
        "Whether clients have to show who they are. required: by an API key or a token. none: whoever reaches the port may do everything. auto: they have to if keys are named (MIDSTREAM_API_KEYS, MIDSTREAM_API_KEYS_FILE, MIDSTREAM_JWT_KEYS); else nobody has to where the gateway listens on a loopback address only, and elsewhere it does not start.",
        choices=("auto", "required", "none"),
    )
    token_keys: str = _setting(
        "",
        "secret",
        "The keys by which gateways sign access tokens and the console's sessions: one, or the new one and the one before it, separated by a comma; each with at least 32 characters (`openssl rand -hex 32`). All gateways of one Redis need the same. Needed where authentication is on; `midstream up` makes one.",
    )
    api_keys_file: str = _setting(
        "",
        "path",
        "A file of API keys, beside those in Redis (`midstream keys`): a line for each, NAME SCOPE,SCOPE KEY. KEY is a key, or sha256: and its digest. It is read again when it changes.",
    )
    api_keys: str = _setting("", "secret", "API keys as in MIDSTREAM_API_KEYS_FILE, separated by semicolons.")
    jwt_keys: str = _setting(
        "",
        "URL or path",
        "The JSON Web Key Set of the identity provider whose users may come by themselves, each with a JWT: an https address, or a file. It is read every ten minutes, and when an unknown key id comes.",
    )
    jwt_issuer: str = _setting("", "text", "The `iss` that a user's JWT must have. Needed with MIDSTREAM_JWT_KEYS.")
    jwt_audience: str = _setting("", "text", "The `aud` that a user's JWT must have. Needed with MIDSTREAM_JWT_KEYS.")
    jwt_algorithms: str = _setting(
        "RS256,ES256",
        "names",
        "The algorithms by which a user's JWT may be signed. The token has no say in it.",
    )
    jwt_scopes: str = _setting(
        "create,read,cancel", "scopes", "What a user may do with their own streams: of create, read, cancel, write."
    )
    jwt_leeway_seconds: float = _setting(
        30.0,
        "seconds",
        "By so much the clocks of the identity provider and of the gateways may differ.",
        least=0,
        most=600,
    )
    user_cookie: str = _setting(
        "",
        "name",
        "The cookie in which your application keeps its user's token (a JWT), if it does: requests of its pages are that user's.",
    )
    log_level: str = _setting(
        "info",
        "level",
        "debug, info, warning or error. Lines go to standard error.",
        choices=("debug", "info", "warning", "error"),
    )
    log_format: str = _setting(
        "auto",
        "auto, json, text",
        "json: one object per line. text: for people. auto: text on a terminal, else json.",
        choices=("auto", "json", "text"),
    )
    log_texts: int = _setting(
        0,
        "0 or 1",
        "1 logs prompts, answers and the provider's own messages, too. They are private, so by default they are not logged.",
        least=0,
        most=1,
    )
    metrics_host: str = _setting(
        "127.0.0.1",
        "address",
        "The address of MIDSTREAM_METRICS_PORT; 0.0.0.0 for a Prometheus on another machine.",
    )
    metrics_port: int = _setting(
        0,
        "port",
        "The port at which a worker serves /metrics and /healthz, and a gateway /metrics, /healthz and /readyz. If it is taken, as with several processes on one machine, the next free one of the fifteen after it. 0: none. A gateway serves them at its own port, too; with authentication on, only if it has no such port.",
        least=0,
        most=65520,
    )

    provider: str = _setting(
        "",
        "name",
        "openai (any OpenAI-compatible API), simulated, or package.module:object, a generator of your own. If it is not set: openai if OPENAI_API_KEY or OPENAI_BASE_URL is set, else simulated.",
    )
    default_model: str = _setting(
        "",
        "model",
        "The model for requests that name none. If it is not set: gpt-4o-mini, or where the provider has another address than OpenAI's and does not list that, the first of its list (GET /v1/models) that answers chats.",
    )
    providers: str = _setting(
        "",
        "names",
        "Several providers by name, in place of MIDSTREAM_PROVIDER: chat=openai,agent=app:answer. A request chooses one by its model or by midstream.provider; the first answers those that name none.",
    )
    openai_api_key: str = _setting(
        "", "secret", "The provider's key. Most local servers need none.", env="OPENAI_API_KEY"
    )
    openai_base_url: str = _setting(
        "", "URL", "The provider's address, with its /v1. If it is not set: OpenAI's own.", env="OPENAI_BASE_URL"
    )

    provider_on_cancel: str = _setting(
        "close",
        "close, drain",
        "What happens to a cancelled answer. close: its connection is closed. drain: it is read to its end for its usage, for providers that bill all of it anyway.",
        choices=("close", "drain"),
    )

    redis_start_seconds: float = _setting(
        2.5, "seconds", "How long a starting process tries to reach Redis before it gives up with an error.", least=0.1
    )
    redis_reply_seconds: float = _setting(
        5.0,
        "seconds",
        "A connection whose oldest command has waited for its reply for so long counts as dead, and is replaced.",
        least=0.1,
    )
    redis_wait_seconds: float = _setting(
        15.0,
        "seconds",
        "How long a request waits for a Redis that does not answer before it gets 503: longer than a failover, shorter than proxies wait.",
        least=0,
    )
    reconnect_seconds_max: float = _setting(
        1.0,
        "seconds",
        "The longest pause between two attempts to reconnect to Redis. The first pause is 20 ms; all have jitter.",
        least=0.02,
    )

    worker_concurrency: int = _setting(
        1000,
        "attempts",
        "How many answers one worker generates at once, at about 60 KB and one provider connection each.",
        least=1,
    )
    lease_seconds: float = _setting(
        2.0,
        "seconds",
        "How long a worker's claim on a request holds without renewal. The streams of a dead worker are taken over when it has run out, so that readers wait for less than 3 s. It is renewed four times in this time: a worker that is held up for three quarters of it loses its answers to another.",
        least=0.3,
    )
    attempts_max: int = _setting(
        3,
        "attempts",
        "How many attempts one stream may have: a request that kills its workers ends after so many.",
        least=1,
    )
    provider_tries_max: int = _setting(
        4,
        "tries",
        "How often an attempt calls the provider before it gives up, as long as no token has come; readers do not notice.",
        least=1,
    )
    provider_backoff_seconds: float = _setting(
        0.5,
        "seconds",
        "The pause before the second try. It doubles from try to try, with jitter, up to 30 s. The provider's Retry-After takes precedence.",
        least=0,
    )
    first_token_seconds: float = _setting(
        120.0,
        "seconds",
        "How long a provider may take until the first token: reasoning models think first.",
        least=0.1,
    )
    between_tokens_seconds: float = _setting(
        60.0, "seconds", "How long a provider may send nothing in mid-answer before it counts as stalled.", least=0.1
    )
    attempt_seconds: float = _setting(
        3600.0,
        "seconds",
        "How long one attempt may take in all. Keep it far below MIDSTREAM_LOG_TTL_SECONDS: an expired log no longer fences off earlier workers.",
        least=1,
    )
    stream_entries_max: int = _setting(
        200_000,
        "entries",
        "A log that would have more entries ends as failed: log_full. No model answers at such length.",
        least=10,
    )
    stream_bytes_max: int = _setting(
        16 << 20,
        "bytes",
        "A log whose values, without the request, would have more bytes ends as failed: log_full. A worker keeps a copy of what it writes, to repair a Redis that has lost entries.",
        least=1024,
    )
    entry_tokens_max: int = _setting(
        64,
        "tokens",
        "How many tokens may go into one entry. Tokens that come while an append is under way share the next entry; a reader can resume within it.",
        least=1,
        most=200,
    )
    entry_milliseconds: int = _setting(
        0,
        "ms",
        "The least time between two entries of one stream, rounded up to whole 20 ms: tokens that come in between share the next one. 100 ms reads as smoothly to a person, at 20 tokens a second, and costs a quarter less. `midstream.pace_ms` of a request wins. 0: each token at once.",
        least=0,
        most=5000,
    )
    worker_unsent_bytes_max: int = _setting(
        1 << 20,
        "bytes",
        "How much text one attempt holds while Redis does not answer, before it stops reading from the provider.",
        least=1024,
    )
    worker_drain_seconds: float = _setting(
        20.0,
        "seconds",
        "After SIGTERM a worker lets its answers finish for so long, then hands the rest to other workers.",
        least=0,
    )
    queue_requests_max: int = _setting(
        100_000, "requests", "How many requests may wait and run. Above it, new ones get 503.", least=1
    )
    min_replicas: int = _setting(
        0,
        "replicas",
        "How many replicas must have an Idempotency-Key, a stream's first entry, its place in the queue and in the lists of what is to be archived, told of and counted, and its end, before anybody is told of them (WAIT). 0: none.",
        least=0,
        most=5,
    )
    queue_lanes: int = _setting(
        0,
        "lanes",
        "Into how many keys the request queue is divided, so that in a cluster it is spread over the masters. 0: 16 in a cluster, else 1. All gateways and workers must have the same.",
        least=0,
        most=256,
    )
    queue_seconds: float = _setting(
        300.0, "seconds", "How long a request may wait for a worker before it ends as failed: queue_timeout.", least=1
    )

    log_ttl_seconds: int = _setting(
        86_400,
        "seconds",
        "A log expires so long after its start. Must be longer than any attempt lives: an expired log no longer fences off earlier workers.",
        least=60,
    )
    ended_ttl_seconds: int = _setting(
        3_600,
        "seconds",
        "A log expires so long after its terminal event: how long an answer can be read again. With MIDSTREAM_ARCHIVE_URL so long after it was archived, and at least 10: 300 are enough then.",
        least=1,
    )
    archive_url: str = _setting(
        "",
        "URL",
        "The database in which ended streams are kept: sqlite:///path/to/file or postgresql://user:password@host/name. Needs midstream[archive]. If it is not set, an answer is gone when its log expires; `midstream up --data-dir` keeps them in archive.sqlite there.",
    )
    archive_key: str = _setting(
        "",
        "secret",
        "Encrypts texts in the archive (AES-256-GCM): 32 random bytes in base64, as `openssl rand -base64 32` prints. Several, separated by commas, to change it: the first encrypts, each decrypts. If it is not set, texts are stored compressed but readable.",
    )
    archive_seconds: float = _setting(
        20.0,
        "seconds",
        "How long the archive's database may take for one command. A reader of an archived answer gets 503 then; ended streams wait in Redis.",
        least=0.5,
    )
    archive_days: int = _setting(
        365, "days", "A stream is removed from the archive so long after its creation. 0: never.", least=0
    )
    archive_bytes_max: int = _setting(
        50 << 30,
        "bytes",
        "Above this size of all archived answers, compressed, the oldest are removed from the archive. 0: no limit.",
        least=0,
    )
    webhook_url: str = _setting(
        "",
        "secret",
        "Where a signed POST goes when a stream has ended (a webhook), unless its request or its API key names another address: an https URL. Its host need not be in MIDSTREAM_WEBHOOK_HOSTS.",
    )
    webhook_text: int = _setting(
        0,
        "0 or 1",
        "1: webhooks to MIDSTREAM_WEBHOOK_URL have the answer's text, up to 64 KiB.",
        least=0,
        most=1,
    )
    webhook_secrets: str = _setting(
        "",
        "secret",
        "What signs webhooks (Standard Webhooks): whsec_ and 24 to 64 random bytes in base64, as `midstream webhooks secret --new` prints. Two, separated by a comma, while the first replaces the second: both sign. Workers need it; without it they send no webhooks.",
    )
    webhook_hosts: str = _setting(
        "",
        "names",
        "The hosts to which a request may have webhooks sent (midstream.webhook): names or addresses, separated by commas, *.example.com for all below example.com, * for all. If it is not set: none.",
    )
    webhook_networks: str = _setting(
        "",
        "networks",
        "Networks that are not public, and to which webhooks may be sent all the same, as in 10.1.0.0/16. If it is not set: none.",
    )
    webhook_http: int = _setting(
        0,
        "0 or 1",
        "1: webhooks may go to http URLs, too: whoever is between can read them.",
        least=0,
        most=1,
    )
    webhook_seconds: float = _setting(
        15.0,
        "seconds",
        "How long a receiver of webhooks may take to answer, from the look-up of its name to the head of its response. Then the try has failed.",
        least=0.1,
        most=30,
    )
    webhook_backoff_seconds: float = _setting(
        5.0,
        "seconds",
        "How long after its first try a webhook is tried again. Each later pause is four times as long, with jitter, up to three hours; Retry-After may make it longer, up to an hour.",
        least=0.1,
        most=3600,
    )
    webhook_retry_seconds: float = _setting(
        86_400.0,
        "seconds",
        "For how long a webhook that fails is tried. Then it is given up, and `midstream webhooks` lists it for a week.",
        least=0,
        most=86_400,
    )
    tombstone_ttl_seconds: int = _setting(
        300,
        "seconds",
        "How long late writes to a deleted stream are refused: far longer than a lease.",
        least=10,
    )

    body_bytes_max: int = _setting(
        24 << 20,
        "bytes",
        "The largest request body, decoded: room for several photos. It is stored in Redis until the answer ends; with a response of OpenAI's API that is stored, as long as its log.",
        least=1024,
    )
    external_streams_max: int = _setting(
        10_000,
        "streams",
        "Streams of external writers that run at once, over all gateways. Beyond it a new one is refused with 503.",
        least=1,
    )
    external_stream_seconds: int = _setting(
        43_200,
        "seconds",
        "A stream of an external writer that has not ended after so long ends as failed: log_full. Must be shorter than a log lives.",
        least=10,
    )
    gateway_processes: int = _setting(
        1,
        "processes",
        "How many processes one gateway has, all at its one port (Linux). 0: one per core that it may use, by CPU affinity and its container's CPU limit. One process serves tens of thousands of readers and leaves the other cores to Redis and the workers.",
        least=0,
        most=64,
    )
    cors_origins: str = _setting(
        "",
        "origins",
        "Origins whose pages may use the gateway, beside its own: exact, separated by commas, as in https://app.example.com; * for all. If it is not set: no others.",
    )
    hosts: str = _setting(
        "",
        "names",
        "Host names that the gateway answers for, beside localhost and IP addresses: separated by commas, as in chat.example.com; * for all. Others get 421, which stops DNS rebinding: a page whose own host name points here. If it is not set: none on a loopback address, all elsewhere.",
    )
    path_prefix: str = _setting(
        "",
        "path",
        "The path below which a proxy offers this gateway, as in /ai: it stands before the paths in answers (Location, events_url). Requests may have it, or the proxy may have removed it. If it is not set: none.",
    )
    console: str = _setting(
        "auto",
        "auto, on, off",
        "Whether the gateway serves the console at /, and its data. It names every live stream. auto: if the gateway listens on a loopback address, or authentication is on: then it needs an API key with the scope admin.",
        choices=("auto", "on", "off"),
    )
    written_streams: str = _setting(
        "auto",
        "auto, on, off",
        "Whether programs may make and write streams of their own at /v1/stream/ (Durable Streams). auto: only where the gateway asks for credentials, or listens on a loopback address, so that no stranger fills Redis.",
        choices=("auto", "on", "off"),
    )
    append_bytes_max: int = _setting(
        1 << 20,
        "bytes",
        "The largest body of one append to a written stream: a message that many readers get is in memory once for each of its last 256 neighbours.",
        least=1024,
        most=16 << 20,
    )
    written_streams_max: int = _setting(
        10_000,
        "streams",
        "How many written streams one principal may have at a time. Above it, new ones get 429.",
        least=1,
    )
    written_bytes_max: int = _setting(
        1 << 30,
        "bytes",
        "How many bytes the messages of one principal's written streams may have in all. Above it, appends get 429. Counted each 64 KiB of a stream.",
        least=1024,
    )
    written_life_seconds_max: int = _setting(
        2_592_000,
        "seconds",
        "The longest life that a written stream may be given: Stream-TTL, Stream-Expires-At. One without either lives MIDSTREAM_LOG_TTL_SECONDS after each write and read.",
        least=60,
    )
    long_poll_seconds: float = _setting(
        20.0,
        "seconds",
        "How long a long-poll waits for something new before it is answered with 204: shorter than the time-outs of proxies.",
        least=0.1,
        most=600,
    )
    connections_max: int = _setting(
        20_000,
        "readers",
        "How many readers one gateway process takes, at about 12 KB each. Above it, new ones get 503 with Retry-After.",
        least=1,
    )
    connection_seconds: float = _setting(
        900.0,
        "seconds",
        "A response lasts so long at most (less up to a fifth, at random), then its reader has to reconnect: so load spreads over new gateways.",
        least=0.1,
    )
    revoke_ends_readers: int = _setting(
        0,
        "0 or 1",
        "1: a key that is revoked ends the connections of its readers within five seconds. 0: when they have to reconnect, after MIDSTREAM_CONNECTION_SECONDS at the latest.",
        least=0,
        most=1,
    )
    keepalive_seconds: int = _setting(
        15,
        "seconds",
        "How often every reader gets a comment: proxies close connections that are silent for 60 s, some after 30.",
        least=1,
    )
    idle_connection_seconds: int = _setting(
        75,
        "seconds",
        "How long a connection without a request stays open. Longer than load balancers keep theirs (mostly 60 s), or they send a request into one that is just closing.",
        least=1,
    )
    idle_connections_max: int = _setting(
        5_000,
        "connections",
        "How many connections without a complete request one gateway process keeps. Above it those that have waited longest are closed; one that has come within the last two seconds is not. Readers do not count.",
        least=1,
    )
    idle_connections_per_address: int = _setting(
        500,
        "connections",
        "How many of them one address may have, a trusted proxy's excepted; an IPv6 address counts with all of its /64. 0: no limit of its own.",
        least=0,
    )
    request_seconds: float = _setting(
        60.0,
        "seconds",
        "How long a request may take to arrive completely, from its first byte; a new connection, to begin one; and a client, to take the next part of an answer that is no event stream.",
        least=0.1,
    )
    retry_milliseconds: int = _setting(
        2_000,
        "milliseconds",
        "How long clients wait before they reconnect (the `retry:` field of the event stream).",
        least=0,
    )
    ring_events: int = _setting(
        256,
        "events",
        "How many of a followed stream's newest events are kept encoded in memory. Readers further back are served from the log.",
        least=16,
    )
    page_events: int = _setting(
        256,
        "events",
        "How many events a page of a log has. Pages begin at multiples of it, so that readers share them.",
        least=16,
    )
    page_cache_bytes_max: int = _setting(
        64 << 20,
        "bytes",
        "How many bytes of encoded pages are kept in memory. The least recently used go first.",
        least=0,
    )
    sweep_seconds: float = _setting(
        5.0,
        "seconds",
        "A followed stream without news for so long is compared with its log, because pub/sub may lose the last message; "
        "then again, at growing intervals, up to four times this.",
        least=0.1,
    )
    delivery_report_seconds: float = _setting(
        5.0,
        "seconds",
        "How often a gateway notes how far its open connections have come. When it is killed, receipts lack so much at most.",
        least=0.1,
    )
    orphan_seconds: float = _setting(
        300.0,
        "seconds",
        "A running stream without news for so long has no worker any more, and is ended as failed: worker_lost.",
        least=1,
    )
    send_buffer_bytes: int = _setting(
        65_536,
        "bytes",
        "SO_SNDBUF of a reader's socket. Without it the kernel buffers 3–4 MB for each reader that does not read.",
        least=4096,
    )
    dead_peer_seconds: float = _setting(
        60.0,
        "seconds",
        "A reader that acknowledges no byte for so long (TCP_USER_TIMEOUT, Linux) is disconnected; it can resume.",
        least=1,
    )
    drain_seconds: float = _setting(
        0.8,
        "seconds",
        "How long a gateway that has got SIGTERM waits for its responses to end before it closes their connections.",
        least=0.05,
    )

    limit_creates_per_minute: int = _setting(
        0,
        "streams",
        "How many streams one principal may create in a minute, on all gateways together; so many at once, then one whenever its share of the minute has passed. 0: no limit. This and the other limits of one principal may be set for a key of its own.",
        least=0,
    )
    limit_streams: int = _setting(
        0,
        "streams",
        "How many streams of one principal may run or wait at the same time. 0: no limit.",
        least=0,
    )
    limit_readers: int = _setting(
        0,
        "readers",
        "How many connections may follow one stream at the same time, on all gateways together. 0: no limit.",
        least=0,
    )
    limit_request_bytes: int = _setting(
        0,
        "bytes",
        "How many bytes of one principal's requests may be stored in Redis at the same time. A request's large fields (photos) count until its answer ends, what lies in the log as long as the log. 0: no limit.",
        least=0,
    )
    limit_tokens_per_day: int = _setting(
        0,
        "tokens",
        "How many tokens may be generated in a day (UTC) for one principal. They count when their stream ends, so that streams that run already may go beyond it. 0: no limit.",
        least=0,
    )
    limit_creates_per_minute_all: int = _setting(
        0,
        "streams",
        "As MIDSTREAM_LIMIT_CREATES_PER_MINUTE, for all principals together.",
        least=0,
    )
    limit_streams_all: int = _setting(0, "streams", "As MIDSTREAM_LIMIT_STREAMS, for all principals together.", least=0)
    limit_request_bytes_all: int = _setting(
        0, "bytes", "As MIDSTREAM_LIMIT_REQUEST_BYTES, for all principals together.", least=0
    )
    limit_tokens_per_day_all: int = _setting(
        0, "tokens", "As MIDSTREAM_LIMIT_TOKENS_PER_DAY, for all principals together.", least=0
    )
    limit_appends_per_second: int = _setting(
        0,
        "appends",
        "How many appends one principal may make in a second, to all its streams, over one gateway process; so many at once, then one whenever its share of the second has passed. A body of lines is slowed down instead of being refused. 0: no limit.",
        least=0,
    )
    limit_stream_appends_per_second: int = _setting(
        0, "appends", "As MIDSTREAM_LIMIT_APPENDS_PER_SECOND, for one stream.", least=0
    )
    limit_connections: int = _setting(
        0,
        "requests",
        "How many requests one address may have under way at the same time in one gateway process, those that follow streams among them. An IPv6 address counts with all of its /64. 0: no limit.",
        least=0,
    )
    trusted_proxies: str = _setting(
        "",
        "networks",
        "Addresses and networks of the proxies whose X-Forwarded-For is believed, as in 10.0.0.0/8,192.168.1.7: for MIDSTREAM_LIMIT_CONNECTIONS. If it is not set: none, and a request comes from its peer.",
    )
    usage_days: int = _setting(
        62,
        "days",
        "How long the usage of a principal on a day can be read: two months, to bill one while the next goes on. About 1 KB for each principal, day and model.",
        least=1,
        most=3660,
    )
    usage_seconds: float = _setting(
        30.0,
        "seconds",
        "How often a running stream is looked at, to see whether it has ended without being counted: after the death of the process that ended it. Longer than MIDSTREAM_REDIS_WAIT_SECONDS is sensible.",
        least=0.1,
        most=3600,
    )

    @property
    def unkept_ttl_seconds(self) -> int:
        """How long a log lives after its terminal event, if nobody shortens it: with an archive, until it is archived."""
        return max(self.ended_ttl_seconds, self.log_ttl_seconds) if self.archive_url else self.ended_ttl_seconds

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Returns the settings in the environment. Raises Unusable, which names the variable and the values that it takes."""
        values: dict[str, Any] = {}
        for setting in described():
            raw = environment.get(setting.env, "").strip()
            if raw:
                values[setting.name] = setting.parse(raw)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Described:
    """One setting, as `midstream settings` lists it."""

    name: str
    env: str
    default: Any
    unit: str
    why: str
    least: float | None
    most: float
    choices: tuple[str, ...] = ()
    """The only values of a text; without any it may be any text."""

    def parse(self, raw: str) -> Any:
        """Returns the value that a variable's text stands for. Raises Unusable."""
        kind = type(self.default)
        if kind is str:
            if self.choices and raw.lower() not in self.choices:
                *first, last = self.choices
                raise Unusable(f"{self.env}={raw!r} must be {', '.join(first)} or {last}")
            return raw.lower() if self.choices else raw
        try:
            value = kind(raw)
            finite = math.isfinite(value)
        except (ValueError, OverflowError):
            number = "a whole number" if kind is int else "a number"
            raise Unusable(f"{self.env}={raw!r} must be {number} ({self.unit}), as in {self.default}") from None
        if not finite or (self.least is not None and value < self.least) or value > self.most:
            most = "" if self.most == math.inf else f" and at most {_shown(self.most)}"
            raise Unusable(f"{self.env}={raw} must be at least {_shown(self.least or 0)}{most} ({self.unit})")
        return value


def _shown(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def described() -> Iterator[Described]:
    """Yields every setting, in the order of definition."""
    for setting in dataclasses.fields(Settings):
        metadata = setting.metadata
        yield Described(
            setting.name,
            metadata["env"] or PREFIX + setting.name.upper(),
            setting.default,
            metadata["unit"],
            metadata["why"],
            metadata["least"],
            metadata["most"],
            metadata["choices"],
        )


def unknown(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that look like settings and are none, each with a warning that names the nearest setting."""
    names = {setting.env.removeprefix(PREFIX): setting.env for setting in described()}
    warnings = {}
    for variable in sorted(environment):
        if variable in _OTHER_NAMES:
            meant = _OTHER_NAMES[variable]
            if environment.get(meant):
                continue
        elif (
            not variable.upper().startswith(PREFIX)
            or variable in names.values()
            or variable in _NOT_SETTINGS
            or _OF_KUBERNETES.search(variable)
            or ("://" in environment[variable] and variable.endswith("_PORT"))
        ):
            continue
        else:
            nearest = difflib.get_close_matches(variable.upper().removeprefix(PREFIX), names, 1)
            meant = names[nearest[0]] if nearest else ""
        did_you_mean = f"did you mean {meant}?" if meant else "`midstream settings` lists all"
        warnings[variable[:100]] = f"{variable[:100]} is no setting, and has no effect: {did_you_mean}"
        if len(warnings) == _WARNINGS_MAX:
            break
    return warnings
