"""`midstream keys`: makes, lists, revokes and replaces the API keys of services."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson

from midstream.operator import operator
from midstream.redis_connection import connected
from shared.accounts import OWN_LIMITS
from shared.api_keys import ApiKey, ApiKeyTable, BadKey, checked_scopes, create, digest_of, is_key
from shared.logs import audit_line
from shared.settings import Settings, described
from shared.webhook_target import BadTarget, Targets, target_of

T = TypeVar("T")

_DURATION = re.compile(r"(\d{1,6})([smhdy])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "y": 365 * 86_400}
_SHOWN_ONCE = "This key is shown now and never again: Midstream stores its digest only."


def seconds_of(duration: str) -> float:
    """Returns the seconds of a duration such as 90d, 12h or 1y. Raises ValueError."""
    match = _DURATION.fullmatch(duration)
    if match is None or not int(match[1]):
        raise ValueError(f"must be a number and s, m, h, d or y, as in 90d, not {duration!r}")
    return float(int(match[1]) * _SECONDS[match[2]])


def limits_of(options: list[str]) -> dict[str, float]:
    """Returns the limits in `NAME=NUMBER` options. Raises BadKey."""
    found = {}
    for option in options:
        name, _, value = option.partition("=")
        full_name = f"limit_{name.replace('-', '_')}"
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if full_name not in OWN_LIMITS or not 0 <= number < 2**53:
            names = ", ".join(sorted(name.removeprefix("limit_") for name in OWN_LIMITS))
            raise BadKey(f"--limit {option[:80]}: must be NAME=NUMBER; the limits are {names}")
        found[full_name] = number
    return found


def create_key(
    redis_url: str,
    name: str,
    scopes: str,
    expires: float | None,
    limits: list[str],
    webhook: str,
    *,
    webhook_text: bool,
    as_json: bool,
    stored: bool = True,
) -> int:
    """Makes a key and prints it. Without `stored`, the line for a file of keys, and nothing is written to Redis."""
    wanted, own_limits = checked_scopes(scopes.split(",")), limits_of(limits)
    if webhook:
        _check_webhook(webhook, stored=stored)
    webhook_fields = {"url": webhook, "text": webhook_text} if webhook else {}

    async def run(table: ApiKeyTable) -> tuple[str, ApiKey]:
        return await create(table, name, wanted, expires, own_limits, webhook_fields)

    key, entry = asyncio.run(_without_redis(run) if not stored else _with_table(redis_url, run))
    audit_line("key_created", **operator(), **_audit_fields(entry), in_redis=stored)
    if as_json:
        print(orjson.dumps({"key": key, **_as_json(entry)}, option=orjson.OPT_INDENT_2).decode())
    elif stored:
        print(f"{key}\n\n{_SHOWN_ONCE}\n{_line(entry)}")
    else:
        print(f"{key}\n\n{_SHOWN_ONCE} For MIDSTREAM_API_KEYS_FILE:\n{name} {scopes} sha256:{entry.digest}")
    return 0


def _check_webhook(url: str, *, stored: bool) -> None:
    """Raises BadKey for an address to which the gateways would send nothing."""
    if not stored:
        raise BadKey("--webhook is for keys in Redis: the line of a file has no place for it")
    try:
        Targets(Settings.from_environment(os.environ)).check(url, is_operators=True)
    except BadTarget as error:
        raise BadKey(f"--webhook: {error}") from None


def list_keys(redis_url: str, *, as_json: bool) -> int:
    """Prints what is known of each key in Redis, by name; never a key itself."""

    async def run(table: ApiKeyTable) -> dict[str, ApiKey]:
        return await table.all()

    keys = sorted(asyncio.run(_with_table(redis_url, run)).values(), key=lambda key: (key.name, key.created_at))
    if as_json:
        print(orjson.dumps([_as_json(key) for key in keys], option=orjson.OPT_INDENT_2).decode())
    elif not keys:
        print("There are no API keys. `midstream keys create NAME --scopes create,read,cancel` makes one.")
    for key in [] if as_json else keys:
        print(_line(key))
    return 0


def revoke_key(redis_url: str, which: str) -> int:
    """Revokes the keys with this name, the one with this id, or this key itself. Raises BadKey if there is none."""

    async def run(table: ApiKeyTable) -> list[ApiKey]:
        found = _matching(await table.all(), which)
        for key in found:
            await table.delete(key.digest)
        return found

    for key in asyncio.run(_with_table(redis_url, run)):
        audit_line("key_revoked", **operator(), **_audit_fields(key))
        print(f"revoked: {_line(key)}")
    print("No gateway takes it any more, within five seconds.")
    return 0


def rotate_key(redis_url: str, name: str, grace: float, *, as_json: bool) -> int:
    """Makes a new key with the name, scopes and limits of the newest one; the others expire after `grace` seconds."""

    async def run(table: ApiKeyTable) -> tuple[str, ApiKey, list[ApiKey]]:
        now = time.time()
        former = [key for key in _matching(await table.all(), name) if key.is_valid(now)]
        if not former:
            raise BadKey(f"every key with the name {name!r} has expired: `midstream keys create` makes a new one")
        newest = max(former, key=lambda key: key.created_at)
        lives = None if newest.expires_at is None else newest.expires_at - newest.created_at
        made, entry = await create(table, newest.name, newest.scopes, lives, newest.limits, newest.webhook)
        for key in former:
            until = now + grace if key.expires_at is None else min(key.expires_at, now + grace)
            await table.put(dataclasses.replace(key, expires_at=until))
        return made, entry, former

    key, entry, former = asyncio.run(_with_table(redis_url, run))
    former_ids = [key.id for key in former]
    audit_line("key_rotated", **operator(), **_audit_fields(entry), former=former_ids, grace_seconds=grace)
    if as_json:
        print(orjson.dumps({"key": key, **_as_json(entry)}, option=orjson.OPT_INDENT_2).decode())
    else:
        print(f"{key}\n\n{_SHOWN_ONCE}\n{_line(entry)}\nThe former one stays valid for {grace:g} s.")
    return 0


async def _with_table(redis_url: str, run: Callable[[ApiKeyTable], Awaitable[T]]) -> T:
    settings = Settings.from_environment({**os.environ, "MIDSTREAM_REDIS_URL": redis_url})
    async with connected(settings, name="keys") as connection:
        return await run(ApiKeyTable(connection))


async def _without_redis(run: Callable[[ApiKeyTable], Awaitable[T]]) -> T:
    return await run(ApiKeyTable(_NoRedis()))


class _NoRedis:
    """Commands that store nothing."""

    async def execute(self, *arguments: Any) -> Any:
        return []


def _matching(keys: dict[str, ApiKey], which: str) -> list[ApiKey]:
    if is_key(which):
        found = [key for key in keys.values() if key.digest == digest_of(which)]
    else:
        found = [key for key in keys.values() if which in (key.name, key.id)]
    if not found:
        shown = "this key" if which.startswith("msk_") else repr(which[:80])
        raise BadKey(f"there is no key {shown}: `midstream keys list` shows names and ids")
    return found


def _line(key: ApiKey) -> str:
    expires = "never expires" if key.expires_at is None else _when("expires", "expired", key.expires_at)
    limits = "".join(f"  {name.removeprefix('limit_')}={value:g}" for name, value in sorted(key.limits.items()))
    webhook = f"  webhook to {_host_of(key.webhook)}" if key.webhook else ""
    scopes = ",".join(sorted(key.scopes))
    return f"{key.id}  {key.name}  {scopes}  created {_date(key.created_at)}  {expires}{limits}{webhook}"


def _host_of(webhook: Mapping[str, Any]) -> str:
    """Returns where a key's webhooks go, without the path and the query, which may have a secret."""
    try:
        return target_of(str(webhook.get("url"))).authority
    except BadTarget:
        return "an address that cannot be read"


def _when(future: str, past: str, at: float) -> str:
    return f"{future if at > time.time() else past} {_date(at)}"


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _as_json(key: ApiKey) -> dict[str, Any]:
    entry = {"id": key.id, **orjson.loads(key.stored())}
    return {**entry, "webhook": {**entry["webhook"], "url": _host_of(key.webhook)}} if key.webhook else entry


def _audit_fields(key: ApiKey) -> dict[str, Any]:
    """Returns what an audit line has of a key."""
    return {"name": key.name, "key_id": key.id, "scopes": sorted(key.scopes), "expires_at": key.expires_at}


def redis_url_of(option: str | None) -> str:
    """Returns the Redis that was named, or that of the environment, or the default."""
    default = next(str(setting.default) for setting in described() if setting.name == "redis_url")
    return option or os.environ.get("MIDSTREAM_REDIS_URL") or default
