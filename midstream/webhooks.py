"""`midstream webhooks`: those that have failed, what came of them, and the secrets that receivers need."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson

from midstream.redis_connection import connected
from shared.due_list import DueList
from shared.errors import Unusable
from shared.keys import WEBHOOKS_DEAD, WEBHOOKS_WAITING
from shared.settings import Settings
from shared.webhooks import DEAD_MAX, Pending, Secrets, WebhookStore, new_secret

T = TypeVar("T")

_SECRET_BYTES = 32
"""As many as HMAC-SHA256 uses; Standard Webhooks allows 24 to 64."""
Work = Callable[[WebhookStore], Awaitable[T]]


def list_webhooks(redis_url: str, *, count: int, as_json: bool) -> int:
    """Prints the webhooks that were given up, then those that are tried again, the oldest first. Raises Unusable."""

    async def run(store: WebhookStore) -> list[Pending]:
        found: list[Pending] = []
        for key in (WEBHOOKS_DEAD, WEBHOOKS_WAITING):
            stream_ids = await store.listed(key, count - len(found)) if count > len(found) else []
            found += [pending for pending in [await store.pending(stream_id) for stream_id in stream_ids] if pending]
        return found

    found = asyncio.run(_with_store(redis_url, run))
    for pending in found:
        print(orjson.dumps(_about(pending)).decode() if as_json else _line(pending))
    if not found and not as_json:
        print("No webhook has failed.")
    return 0


def show_webhook(redis_url: str, stream_id: str, *, as_json: bool) -> int:
    """Prints a webhook that has failed, with its body. Raises Unusable if there is none."""
    pending = asyncio.run(_with_store(redis_url, lambda store: _known(store, stream_id)))
    body = orjson.loads(pending.body)
    if as_json:
        print(orjson.dumps({**_about(pending), "body": body}, option=orjson.OPT_INDENT_2).decode())
    else:
        print(f"{_line(pending)}\n{orjson.dumps(body, option=orjson.OPT_INDENT_2).decode()}")
    return 0


def retry_webhooks(redis_url: str, stream_id: str) -> int:
    """Has a webhook that has failed sent now, and tried for another day; without an id all that were given up. Raises Unusable."""

    async def run(store: WebhookStore) -> int:
        stream_ids = [stream_id] if stream_id else await store.listed(WEBHOOKS_DEAD, DEAD_MAX)
        revived = 0
        for dead_id in stream_ids:
            pending = await _known(store, dead_id) if stream_id else await store.pending(dead_id)
            if pending is not None:
                await store.revive(pending)
                revived += 1
        return revived

    revived = asyncio.run(_with_store(redis_url, run))
    print(f"{revived} to be sent now.")
    return 0


def print_secrets(settings: Settings, principal: str, *, is_new: bool) -> int:
    """Prints a new random secret, or the secrets by which a receiver verifies: the settings' own, or one principal's. Raises Unusable."""
    if is_new:
        print(new_secret(secrets.token_bytes(_SECRET_BYTES)))
        return 0
    own = Secrets.of(settings.webhook_secrets)
    if not own:
        raise Unusable("MIDSTREAM_WEBHOOK_SECRETS is not set: `midstream webhooks secret --new` makes a secret for it")
    for text in (own.for_principal(principal) if principal else own).texts():
        print(text)
    return 0


async def _known(store: WebhookStore, stream_id: str) -> Pending:
    pending = await store.pending(stream_id)
    if pending is None:
        raise Unusable(f"no webhook of the stream {stream_id[:80]!r} has failed, or it was more than a week ago")
    return pending


def _about(pending: Pending) -> dict[str, Any]:
    """Returns what is shown of a webhook: of its address only the host, since the rest may have a secret."""
    return {
        "id": pending.stream_id,
        "state": "dead" if pending.dead_at else "waiting",
        "host": pending.host,
        "tries": pending.tries,
        "first_at": pending.first_at,
        "dead_at": pending.dead_at or None,
        "error": pending.error,
        "signed_for": pending.signer or None,
    }


def _line(pending: Pending) -> str:
    state, first = (
        "dead" if pending.dead_at else "waiting",
        time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(pending.first_at)),
    )
    return f"{pending.stream_id}  {state:7}  {pending.host}  first try {first}, {pending.tries} in all: {pending.error}"


async def _with_store(redis_url: str, run: Work[T]) -> T:
    settings = Settings.from_environment({**os.environ, "MIDSTREAM_REDIS_URL": redis_url})
    async with connected(settings, name="webhooks", scripts=DueList.SCRIPTS) as connection:
        return await run(WebhookStore(connection, log_ttl_seconds=settings.log_ttl_seconds))
