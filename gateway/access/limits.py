"""Limits on what a principal, and all principals together, may use. They are kept in Redis, so all gateways enforce them together.

A refusal is 429 with `Retry-After` and the fields `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11), which
say which limit it is. While Redis is away nothing is admitted: a create waits for Redis in any case.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping

from gateway import metrics
from gateway.http.problems import Problem, too_many
from shared.accounts import OWN_LIMITS, Accounts, Allowance, Refusal
from shared.event_log import EventLog
from shared.events import TERMINAL
from shared.ids import created_at
from shared.settings import Settings

_STREAMS_RETRY_SECONDS, _BYTES_RETRY_SECONDS = 1, 5
"""When a refused client may try again: a stream may end at any moment, and then its place is free."""
_LOOKED_AT_MAX = 100
"""Streams that count as running, the oldest first, whose logs are looked at before one more is refused: 1 ms of Redis."""
_LOOK_SECONDS = 0.05
"""The pause before a look: it serves all creates that are refused in that time."""
_DAY_SECONDS = 86_400

Overrides = Callable[[str], Mapping[str, object]]
"""Returns the limits of its own that a principal of this name has, by the names of the settings."""


class OwnLimits:
    """The limits of each principal: its own, else those of the settings."""

    def __init__(self, settings: Settings, overrides: Overrides) -> None:
        self._settings = settings
        self._overrides = overrides

    def of(self, principal_name: str) -> dict[str, int]:
        """Returns the limits of a principal by name (`OWN_LIMITS`); 0: none.

        What is no number of at least 0 in an override has no effect.
        """
        own = self._overrides(principal_name)
        return {name: _whole(own.get(name), getattr(self._settings, name)) for name in OWN_LIMITS}


def _whole(own: object, otherwise: int) -> int:
    return int(own) if isinstance(own, int | float) and own >= 0 and math.isfinite(own) else otherwise


class Limits:
    """Admits streams to their logs. `for_all` holds for all principals together; each one's own are in the settings or its key."""

    def __init__(self, accounts: Accounts, log: EventLog, own: OwnLimits, settings: Settings) -> None:
        self._accounts = accounts
        self._log = log
        self._own = own
        self._begins_seconds = 2 * settings.redis_wait_seconds
        """A stream without a log that is younger may still begin: its create waits for Redis."""
        self._looks: dict[str | None, asyncio.Task[bool]] = {}
        """For each account, the look that has not begun to read."""
        self.for_all = Allowance(
            settings.limit_creates_per_minute_all,
            settings.limit_streams_all,
            settings.limit_request_bytes_all,
            settings.limit_tokens_per_day_all,
        )

    def own(self, owner: str) -> Allowance:
        """Returns the limits of a principal."""
        own = self._own.of(owner)
        return Allowance(
            own["limit_creates_per_minute"],
            own["limit_streams"],
            own["limit_request_bytes"],
            own["limit_tokens_per_day"],
        )

    def apply_to(self, owner: str) -> bool:
        """Returns whether a create for this owner may be refused: then nothing may be written for it before it is admitted."""
        return bool(self.own(owner) or self.for_all)

    async def admit(
        self, stream_id: str, owner: str, bytes_with_log: int, bytes_until_end: int, *, for_good: bool
    ) -> None:
        """Enters a stream whose log has not begun into its owner's account. May be repeated: `for_good`, so that replicas have
        the entry where they are waited for, once no limit forbids it, since who is over a limit must not hold up the others.

        Where no limit applies, and of a cluster only the master of the accounts is away, it is not entered, so that creates go on;
        then it is counted when it ends. Raises Problem 429 if a limit forbids it, and Disconnected, RedisRefused, LogFull.
        """
        own = self.own(owner)
        if self._accounts.are_away and not own and not self.for_all:
            return
        stream = stream_id, owner, bytes_with_log, bytes_until_end
        refusal = await self._accounts.admit(*stream, own, self.for_all, for_good=for_good)
        if refusal is not None and refusal.limit == "streams":
            account = owner if refusal.is_own else None
            if await self._some_have_ended(account):
                refusal = await self._accounts.admit(*stream, own, self.for_all, for_good=for_good)
        if refusal is not None:
            raise _too_many(refusal, own if refusal.is_own else self.for_all)

    async def _some_have_ended(self, owner: str | None) -> bool:
        """Looks whether streams that count as running have ended, and takes them from the account. Returns whether there were any.

        Whoever ends a stream says so to its account, but later than to its readers; and may have died before.
        """
        look = self._looks.get(owner)
        if look is None:
            look = self._looks[owner] = asyncio.get_running_loop().create_task(self._look(owner))
            look.add_done_callback(_retrieved)
        return await asyncio.shield(look)

    async def _look(self, owner: str | None) -> bool:
        try:
            await asyncio.sleep(_LOOK_SECONDS)
        finally:
            del self._looks[owner]  # who comes later needs what is read later
        running = await self._accounts.running(owner, _LOOKED_AT_MAX)
        newest = await asyncio.gather(*(self._log.newest(stream_id) for stream_id in running))
        oldest_begun_at = time.time() - self._begins_seconds
        ended = [
            stream_id
            for stream_id, entries in zip(running, newest, strict=True)
            if (entries[-1].field in TERMINAL if entries else created_at(stream_id) < oldest_begun_at)
        ]
        if ended:
            await self._accounts.ended(owner, ended)
        return bool(ended)


def _retrieved(look: asyncio.Task[bool]) -> None:
    """Marks the error of a look as retrieved: all who waited for it may have gone."""
    if not look.cancelled():
        look.exception()


def _too_many(refusal: Refusal, allowance: Allowance) -> Problem:
    """Returns the answer to a create that was refused."""
    whose = "one principal" if refusal.is_own else "all principals together"
    if refusal.limit == "creates":
        quota, unit, window_seconds = allowance.creates_per_minute, "requests", 60
        seconds = max(1, math.ceil(refusal.seconds))
        detail = f"{quota} streams a minute may be created by {whose}"
    elif refusal.limit == "streams":
        quota, unit, window_seconds = allowance.streams, "concurrent-requests", 0
        seconds = _STREAMS_RETRY_SECONDS
        detail = f"{quota} streams of {whose} may run at the same time"
    elif refusal.limit == "bytes":
        quota, unit, window_seconds = allowance.request_bytes, "content-bytes", 0
        seconds = _BYTES_RETRY_SECONDS
        detail = f"{quota} bytes of requests of {whose} may be stored at the same time"
    else:
        quota, unit, window_seconds = allowance.tokens_per_day, "tokens", _DAY_SECONDS
        seconds = math.ceil(_DAY_SECONDS - time.time() % _DAY_SECONDS)
        detail = f"{quota} tokens a day (UTC) may be generated for {whose}"
    name = refusal.limit if refusal.is_own else f"{refusal.limit}-all"
    metrics.over_limit(refusal.limit, "principal" if refusal.is_own else "all")
    return too_many(f"{detail}; try again in {seconds} s", name, quota, unit, seconds, window_seconds)
