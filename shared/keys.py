"""Every Redis key and channel. docs/reference/log-format.md says of each what it holds, who writes it, and when it expires.

The braces are a Redis Cluster hash tag: everything of one stream lives in one slot, which its scripts need. So do all accounts: a
limit for all principals is checked together with one's own.
"""

from __future__ import annotations

import hashlib

PREFIX = "midstream:"
REQUESTS = b"midstream:requests"
GROUP = b"workers"
ACCESS_PREFIX = "midstream-access:"
"""The prefix of what decides who may do what: a worker's user in Redis has no key with it, and a gateway's may only read them."""
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
    """Returns the key of a part of a log that `restoration` brings back from the archive: several may at the same time."""
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
    """Returns the key of a written stream's name, which its owner chose."""
    return b"midstream:name:" + name_digest(owner, name).encode()


def name_digest(owner: str, name: str) -> str:
    """Returns what stands for the name of an owner's written stream: nobody reads the name from it."""
    return _digest(owner, name).decode()


def held_until_key(owner: str) -> bytes:
    return b"midstream:{held-%b}:until" % _digest(owner)


def held_bytes_key(owner: str) -> bytes:
    return b"midstream:{held-%b}:bytes" % _digest(owner)


def chat_key(principal: str, chat_id: str) -> bytes:
    """Returns the key of a chat's newest stream. Its id may be any text: hashed, so that the key has a bounded length."""
    return b"midstream:chat:" + _digest(principal, chat_id)


def replicated_key(tag: bytes) -> bytes:
    """Returns the key of the write that WAIT waits for (`shared.replicas`), in the slot of this hash tag."""
    return b"midstream:{%b}:replicated" % tag


def lane_keys(lanes: int) -> tuple[bytes, ...]:
    """Returns the keys of the request queue: one, or several whose slots are spread over the masters of a cluster."""
    return (REQUESTS,) if lanes == 1 else tuple(b"midstream:requests:{%d}" % lane for lane in range(lanes))


def account_key(account: str, name: str) -> bytes:
    """Returns the key of what an account uses now. `name`: `state` or `running`."""
    return b"midstream:{accounts}:%b:%b" % (name.encode(), account.encode())


def usage_key(day: str, account: str) -> bytes:
    """Returns the key of an account's counts of a day, as in 2026-11-28 (UTC)."""
    return b"midstream:{accounts}:usage:%b:%b" % (day.encode(), account.encode())


def principals_key(day: str) -> bytes:
    return b"midstream:{accounts}:principals:%b" % day.encode()


def _digest(*texts: str) -> bytes:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest().encode()
