"""Every Redis key and channel: its name, its type, who writes it, when it expires.

| name | type | written by | expires |
|---|---|---|---|
| `midstream:{<id>}:log` | stream | create: gateway; the attempts: workers; cancel: gateway | `log_ttl_seconds` from the start, `ended_ttl_seconds` from the terminal event |
| `midstream:{<id>}:deliveries` | hash: connection to JSON | gateway | with its log |
| `midstream:{<id>}:request` | hash: field to JSON (`shared.large_fields`) | `append.lua` with `accepted` | deleted with the terminal event; `log_ttl_seconds` from the start |
| `midstream:{<id>}:kept` | the same, for an API that goes on from it | `append.lua` with `accepted` | with its log |
| `midstream:{<id>}:readers` | hash: gateway process to a number of readers, where that is limited | gateway | 30 s after the last note |
| `midstream:{<id>}:live` | shard channel | `append.lua`, `end.lua` | – |
| `midstream:requests` | stream, group `workers` | enqueue: gateway; claims: workers | `log_ttl_seconds` after the last enqueue or renewal |
| `midstream:idempotency:<digest>` | string | gateway | `log_ttl_seconds` |
| `midstream:chat:<digest>` | string: a chat's newest stream (AI SDK) | gateway | `log_ttl_seconds` |
| `midstream:api-keys` | hash: SHA-256 of an API key to JSON (`shared.api_keys`) | `midstream keys` | never |
| `midstream:{processes}:until` | sorted set: process to the time until which it counts as there (ms) | every process | 67 s after the last word of any |
| `midstream:{processes}:about` | hash: process to JSON | every process | with the above |
| `midstream:{accounts}:looks` | sorted set: stream to the time of the next look at its account entry (ms) | `admit.lua`, `settle.lua`, `looks.lua` | `log_ttl_seconds` after the last write |
| `midstream:{accounts}:entries` | hash: stream to JSON (`shared.accounts`) | `admit.lua`, `settle.lua`, `looks.lua` | with the above |
| `midstream:{accounts}:state:<account>` | hash: `bytes`, `bucket` | `admit.lua`, `settle.lua` | with the above |
| `midstream:{accounts}:running:<account>` | sorted set: stream to the time of its creation (ms) | `admit.lua`, `settle.lua`, who ends a stream | with the above |
| `midstream:{accounts}:usage:<day>:<account>` | hash: counts by model | `settle.lua` | `usage_days` after the last write |
| `midstream:{accounts}:principals:<day>` | sorted set: principals with usage | `settle.lua` | with the above |

The braces are a Redis Cluster hash tag: everything of one stream lives in one slot, which its scripts need. So do all
accounts: a limit for all principals is checked together with one's own. `<account>` is a hash of the principal's name, or `all`.
"""

from __future__ import annotations

import hashlib

PREFIX = "midstream:"
REQUESTS = b"midstream:requests"
GROUP = b"workers"
API_KEYS = b"midstream:api-keys"
PROCESSES_UNTIL = b"midstream:{processes}:until"
PROCESSES_ABOUT = b"midstream:{processes}:about"
ACCOUNT_LOOKS = b"midstream:{accounts}:looks"
ACCOUNT_ENTRIES = b"midstream:{accounts}:entries"


def log_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:log" % stream_id.encode()


def deliveries_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:deliveries" % stream_id.encode()


def request_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:request" % stream_id.encode()


def kept_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:kept" % stream_id.encode()


def readers_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:readers" % stream_id.encode()


def live_channel(stream_id: str) -> bytes:
    return b"midstream:{%b}:live" % stream_id.encode()


def idempotency_key(digest: str) -> bytes:
    return b"midstream:idempotency:" + digest.encode()


def chat_key(principal: str, chat_id: str) -> bytes:
    """`chat_id` is what a client made up: hashed, so that any text is a key of bounded length."""
    return b"midstream:chat:" + hashlib.sha256(f"{principal}\0{chat_id}".encode()).hexdigest().encode()


def account_key(account: str, name: str) -> bytes:
    """`name`: `state` or `running`."""
    return b"midstream:{accounts}:%b:%b" % (name.encode(), account.encode())


def usage_key(day: str, account: str) -> bytes:
    """`day`: as in 2026-11-28, UTC."""
    return b"midstream:{accounts}:usage:%b:%b" % (day.encode(), account.encode())


def principals_key(day: str) -> bytes:
    return b"midstream:{accounts}:principals:%b" % day.encode()
