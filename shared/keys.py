"""Every Redis key and channel: its name, its type, who writes it, when it expires.

| name | type | written by | expires |
|---|---|---|---|
| `midstream:{<id>}:log` | stream | create: gateway; the attempts: workers; cancel: gateway | `log_ttl_seconds` from the start, `ended_ttl_seconds` from the terminal event |
| `midstream:{<id>}:deliveries` | hash: connection to JSON | gateway | with its log |
| `midstream:{<id>}:request` | hash: field to JSON (`shared.large_fields`) | `append.lua` with `accepted` | deleted with the terminal event; `log_ttl_seconds` from the start |
| `midstream:{<id>}:kept` | the same, for an API that goes on from it | `append.lua` with `accepted` | with its log |
| `midstream:{<id>}:live` | shard channel | `append.lua`, `end.lua` | – |
| `midstream:{<id>}:lease` | hash: the lease of an external writer (`shared.external_writes`) | gateway, `write.lua` | when the lease runs out, and with the terminal event |
| `midstream:writers` | sorted set: streams of external writers, to the time at which the lease is looked at | gateway | `log_ttl_seconds` after the last addition |
| `midstream:requests`, with several lanes `midstream:requests:{<n>}` | stream, group `workers` | enqueue: gateway; claims: workers | `log_ttl_seconds` after the last enqueue or renewal |
| `midstream:{<tag>}:replicated` | string, empty | `shared.replicas`, in the slot of what it follows | 5 s |
| `midstream:idempotency:<digest>` | string | gateway | `log_ttl_seconds` |
| `midstream:chat:<digest>` | string: a chat's newest stream (AI SDK) | gateway | `log_ttl_seconds` |
| `midstream:api-keys` | hash: SHA-256 of an API key to JSON (`shared.api_keys`) | `midstream keys` | never |
| `midstream:{processes}:until` | sorted set: process to the time until which it counts as there (ms) | every process | 67 s after the last word of any |
| `midstream:{processes}:about` | hash: process to JSON | every process | with the above |

The braces are a Redis Cluster hash tag: everything of one stream lives in one slot, which its scripts need.
"""

from __future__ import annotations

import hashlib

PREFIX = "midstream:"
REQUESTS = b"midstream:requests"
GROUP = b"workers"
API_KEYS = b"midstream:api-keys"
WRITERS = b"midstream:writers"
PROCESSES_UNTIL = b"midstream:{processes}:until"
PROCESSES_ABOUT = b"midstream:{processes}:about"


def log_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:log" % stream_id.encode()


def deliveries_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:deliveries" % stream_id.encode()


def request_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:request" % stream_id.encode()


def kept_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:kept" % stream_id.encode()


def lease_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:lease" % stream_id.encode()


def live_channel(stream_id: str) -> bytes:
    return b"midstream:{%b}:live" % stream_id.encode()


def idempotency_key(digest: str) -> bytes:
    return b"midstream:idempotency:" + digest.encode()


def chat_key(principal: str, chat_id: str) -> bytes:
    """`chat_id` is what a client made up: hashed, so that any text is a key of bounded length."""
    return b"midstream:chat:" + hashlib.sha256(f"{principal}\0{chat_id}".encode()).hexdigest().encode()


def replicated_key(tag: bytes) -> bytes:
    return b"midstream:{%b}:replicated" % tag


def lane_keys(lanes: int) -> tuple[bytes, ...]:
    """Returns the keys of the request queue: one, or several whose slots are spread over the masters of a cluster."""
    return (REQUESTS,) if lanes == 1 else tuple(b"midstream:requests:{%d}" % lane for lane in range(lanes))
