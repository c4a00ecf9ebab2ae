"""Every Redis key and channel: its name, its type, who writes it, when it expires.

| name | type | written by | expires |
|---|---|---|---|
| `midstream:{<id>}:log` | stream | create: gateway; the attempts: workers; cancel: gateway | `log_ttl_seconds` from the start, `ended_ttl_seconds` from the terminal event |
| `midstream:{<id>}:deliveries` | hash: connection to JSON | gateway | with its log |
| `midstream:{<id>}:live` | shard channel | `append.lua`, `end.lua` | – |
| `midstream:requests` | stream, group `workers` | enqueue: gateway; claims: workers | `log_ttl_seconds` after the last enqueue or renewal |
| `midstream:idempotency:<digest>` | string | gateway | `log_ttl_seconds` |

The braces are a Redis Cluster hash tag: everything of one stream lives in one slot, which its scripts need.
"""

from __future__ import annotations

PREFIX = "midstream:"
REQUESTS = b"midstream:requests"
GROUP = b"workers"


def log_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:log" % stream_id.encode()


def deliveries_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:deliveries" % stream_id.encode()


def live_channel(stream_id: str) -> bytes:
    return b"midstream:{%b}:live" % stream_id.encode()


def idempotency_key(digest: str) -> bytes:
    return b"midstream:idempotency:" + digest.encode()
