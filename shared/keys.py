"""Every Redis key and channel: its name, its type, who writes it, when it expires.

| name | type | written by | expires |
|---|---|---|---|
| `midstream:{<id>}:log` | stream | create: gateway; the attempts: workers; cancel: gateway | `log_ttl_seconds` from the start, `ended_ttl_seconds` from the terminal event |
| `midstream:{<id>}:deliveries` | hash: connection to JSON | gateway | with its log |
| `midstream:{<id>}:request` | hash: field to JSON (`shared.large_fields`) | `append.lua` with `accepted` | deleted with the terminal event; `log_ttl_seconds` from the start |
| `midstream:{<id>}:kept` | the same, for an API that goes on from it | `append.lua` with `accepted` | with its log |
| `midstream:{<id>}:readers` | hash: gateway process to a number of readers, where that is limited | gateway | 30 s after the last note |
| `midstream:{<id>}:writer` | hash: what the next append to a written stream is compared with (`shared.written_log`) | `create_written.lua`, `append_written.lua` | with its log |
| `midstream:{<id>}:live` | shard channel | `append.lua`, `append_written.lua`, `end.lua` | – |
| `midstream:{<id>}:lease` | hash: the lease of an external writer (`shared.external_writes`) | gateway, `write.lua` | when the lease runs out, and with the terminal event |
| `midstream:writers` | sorted set: streams of external writers, to the time at which the lease is looked at | gateway | `log_ttl_seconds` after the last addition |
| `midstream:requests`, with several lanes `midstream:requests:{<n>}` | stream, group `workers` | enqueue: gateway; claims: workers | `log_ttl_seconds` after the last enqueue or renewal |
| `midstream:{<tag>}:replicated` | string, empty | `shared.replicas`, in the slot of what it follows | 5 s |
| `midstream:idempotency:<digest>` | string | gateway | `log_ttl_seconds` |
| `midstream:name:<digest>` | string: the id of the written stream with this name | gateway | later than its stream |
| `midstream:{held-<digest>}:until`, `midstream:{held-<digest>}:bytes` | sorted set, hash: the written streams of one owner, the ends of their lives (ms) and their bytes | gateway | `written_life_seconds_max` after the last note |
| `midstream:chat:<digest>` | string: a chat's newest stream (AI SDK) | gateway | `log_ttl_seconds` |
| `midstream-access:api-keys` | hash: SHA-256 of an API key to JSON (`shared.api_keys`) | `midstream keys` | never |
| `midstream:{processes}:until` | sorted set: process to the time until which it counts as there (ms) | every process | 67 s after the last word of any |
| `midstream:{processes}:about` | hash: process to JSON | every process | with the above |
| `midstream:{accounts}:looks` | sorted set: stream to the time of the next look at its account entry (ms) | `admit.lua`, `settle.lua`, `shared.accounts` | `log_ttl_seconds` after the last write |
| `midstream:{accounts}:entries` | hash: stream to JSON (`shared.accounts`) | `admit.lua`, `settle.lua`, `shared.accounts` | with the above |
| `midstream:{accounts}:state:<account>` | hash: `bytes`, `bucket` | `admit.lua`, `settle.lua` | with the above |
| `midstream:{accounts}:running:<account>` | sorted set: stream to the time of its creation (ms) | `admit.lua`, `settle.lua`, who ends a stream | with the above |
| `midstream:{accounts}:usage:<day>:<account>` | hash: counts by model | `settle.lua` | `usage_days` after the last write |
| `midstream:{accounts}:principals:<day>` | sorted set: principals with usage | `settle.lua` | with the above |
| `midstream:{unkept}:due` | sorted set: stream that is still to be archived, to the time of the next look (ms) | gateways; workers (`shared.unkept`) | `log_ttl_seconds` after the last look |
| `midstream:{webhooks}:due` | sorted set: stream whose end is still to be told, to the time of the next look (ms) | gateways, workers (`shared.webhooks`) | `log_ttl_seconds` after the last look |
| `midstream:{webhooks}:waiting`, `midstream:{webhooks}:dead` | sorted sets: stream whose webhook has failed, to the time of its first try; given up, to the time of that (ms) | workers | 25 h; 7 days after the last one |
| `midstream:{webhooks}:gone` | sorted set: SHA-256 of an address that answered 410, to the time until which nothing is sent there (ms) | workers | 24 h after the last one |
| `midstream:{<id>}:webhook` | hash: a webhook that has failed (`shared.webhooks`) | workers | 25 h after the first try; 7 days after it was given up |
| `midstream:{<id>}:webhook-claim` | string, empty: a process sends this webhook now | workers | some seconds after a try may last |
| `midstream:{unkept}:trouble` | hash: `write`, while workers cannot write to the archive | workers (`shared.unkept`) | 60 s after the last failure |
| `midstream:{<id>}:part:<random>` | stream: a log that is being brought back from the archive | `restore.lua` | 60 s |

The braces are a Redis Cluster hash tag: everything of one stream lives in one slot, which its scripts need. So do all
accounts: a limit for all principals is checked together with one's own. `<account>` is a hash of the principal's name, or `all`.
"""

from __future__ import annotations

import hashlib

PREFIX = "midstream:"
REQUESTS = b"midstream:requests"
GROUP = b"workers"
ACCESS_PREFIX = "midstream-access:"
"""Of what decides who may do what: a worker's user in Redis has nothing here, and a gateway's may only read."""
API_KEYS = b"midstream-access:api-keys"
WRITERS = b"midstream:writers"
PROCESSES_UNTIL = b"midstream:{processes}:until"
PROCESSES_ABOUT = b"midstream:{processes}:about"
ACCOUNT_LOOKS = b"midstream:{accounts}:looks"
ACCOUNT_ENTRIES = b"midstream:{accounts}:entries"
UNKEPT = b"midstream:{unkept}:due"
WEBHOOKS_DUE = b"midstream:{webhooks}:due"
WEBHOOKS_WAITING = b"midstream:{webhooks}:waiting"
WEBHOOKS_DEAD = b"midstream:{webhooks}:dead"
WEBHOOKS_GONE = b"midstream:{webhooks}:gone"
ARCHIVE_TROUBLE = b"midstream:{unkept}:trouble"


def log_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:log" % stream_id.encode()


def deliveries_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:deliveries" % stream_id.encode()


def request_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:request" % stream_id.encode()


def part_key(stream_id: str, restoration: str) -> bytes:
    """`restoration`: who brings the log back, since several may at the same time."""
    return b"midstream:{%b}:part:%b" % (stream_id.encode(), restoration.encode())


def kept_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:kept" % stream_id.encode()


def webhook_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:webhook" % stream_id.encode()


def webhook_claim_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:webhook-claim" % stream_id.encode()


def readers_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:readers" % stream_id.encode()


def writer_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:writer" % stream_id.encode()


def lease_key(stream_id: str) -> bytes:
    return b"midstream:{%b}:lease" % stream_id.encode()


def live_channel(stream_id: str) -> bytes:
    return b"midstream:{%b}:live" % stream_id.encode()


def idempotency_key(digest: str) -> bytes:
    return b"midstream:idempotency:" + digest.encode()


def name_key(owner: str, name: str) -> bytes:
    """The key of a written stream's name, which its owner chose."""
    return b"midstream:name:" + name_digest(owner, name).encode()


def name_digest(owner: str, name: str) -> str:
    """Returns what stands for the name of an owner's written stream: nobody reads the name from it."""
    return _digest(owner, name).decode()


def held_until_key(owner: str) -> bytes:
    return b"midstream:{held-%b}:until" % _digest(owner)


def held_bytes_key(owner: str) -> bytes:
    return b"midstream:{held-%b}:bytes" % _digest(owner)


def chat_key(principal: str, chat_id: str) -> bytes:
    """`chat_id` is what a client made up: hashed, so that any text is a key of bounded length."""
    return b"midstream:chat:" + _digest(principal, chat_id)


def replicated_key(tag: bytes) -> bytes:
    return b"midstream:{%b}:replicated" % tag


def lane_keys(lanes: int) -> tuple[bytes, ...]:
    """Returns the keys of the request queue: one, or several whose slots are spread over the masters of a cluster."""
    return (REQUESTS,) if lanes == 1 else tuple(b"midstream:requests:{%d}" % lane for lane in range(lanes))


def account_key(account: str, name: str) -> bytes:
    """`name`: `state` or `running`."""
    return b"midstream:{accounts}:%b:%b" % (name.encode(), account.encode())


def usage_key(day: str, account: str) -> bytes:
    """`day`: as in 2026-11-28, UTC."""
    return b"midstream:{accounts}:usage:%b:%b" % (day.encode(), account.encode())


def principals_key(day: str) -> bytes:
    return b"midstream:{accounts}:principals:%b" % day.encode()


def _digest(*texts: str) -> bytes:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest().encode()
